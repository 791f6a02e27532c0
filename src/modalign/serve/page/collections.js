// What the server has: spaces, their indexes, and which ways lead from what to what.

import { FILE_KINDS } from "./query.js";

/** What GET /v1/spaces says, asked in the page's own words. */
export class Collections {
  constructor(spaces) {
    this.modalities = spaces.flatMap((space) => space.modalities);
    this.indexes = spaces.flatMap((space) => space.indexes);
    this.directions = spaces.flatMap((space) => space.directions);
    this.limits = spaces[0]?.limits ?? {};
  }

  /** Whether words can be searched by. */
  get takesWords() {
    return this.isQueryable("text");
  }

  /** The modalities whose files can be searched by. */
  get fileKinds() {
    return FILE_KINDS.filter((kind) => this.isQueryable(kind));
  }

  isQueryable(modality) {
    return this.modalities.some(({ name, queryable }) => name === modality && queryable);
  }

  /** The modalities of the answers, in the order of the indexes. */
  get answers() {
    return [...new Set(this.indexes.map((index) => index.modality))];
  }

  /** How many items there are of a modality. */
  itemsOf(modality) {
    return this.indexes
      .filter((index) => index.modality === modality)
      .reduce((sum, index) => sum + index.items, 0);
  }

  index(name) {
    return this.indexes.find((index) => index.name === name) ?? null;
  }

  /** Return the modalities that a query is made of; a like counts as what its index holds. */
  modalitiesOf(parts, like) {
    const named = parts.filter((part) => part !== "like");
    const index = like ? this.index(like.slice(0, like.indexOf("/"))) : null;
    return index ? [index.modality, ...named] : named;
  }

  /** Whether every modality of a query leads to a modality of answers. */
  leads(sources, target) {
    return sources.every(
      (source) =>
        source === target ||
        this.directions.some(({ from, to }) => from === source && to === target),
    );
  }

  /** Return the indexes that a query is put to by what it says itself. */
  chosen({ indexes, modalities }) {
    return this.indexes.filter(
      ({ name, modality }) =>
        (!indexes.length || indexes.includes(name)) &&
        (!modalities.length || modalities.includes(modality)),
    );
  }

  /**
   * Return the metadata fields of the chosen indexes: field -> its values, or null where there
   * are too many to list.
   */
  fields(query) {
    const found = new Map();
    for (const { fields } of this.chosen(query)) {
      for (const [field, values] of Object.entries(fields ?? {})) {
        const known = found.get(field);
        found.set(field, values && known !== null ? [...new Set([...(known ?? []), ...values])] : null);
      }
    }
    return found;
  }

  /** Return the chosen indexes that have every field of a filter. */
  filterable(query) {
    const wanted = Object.keys(query.filter);
    return this.chosen(query).filter(({ fields }) => wanted.every((name) => name in (fields ?? {})));
  }

  /** Return a few words that items carry as metadata, to start from. */
  suggestions(number) {
    const words = this.indexes.flatMap(({ fields }) =>
      Object.values(fields ?? {}).map((values) => (values ?? []).filter(isWords)),
    );
    // One of each field in turn, so that no field crowds out the others.
    const longest = Math.max(0, ...words.map((values) => values.length));
    const mixed = Array.from({ length: longest }, (_, place) => words.map((values) => values[place]));
    return [...new Set(mixed.flat().filter(Boolean))].slice(0, number);
  }
}

function isWords(value) {
  return typeof value === "string" && /^\p{L}[\p{L} '-]{2,23}$/u.test(value);
}
