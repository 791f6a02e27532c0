// Which answers: by modality, by collection and by metadata.

import { button, byId, icon, make } from "./elements.js";
import { changed, partsOf } from "./query.js";
import { counted, listed, nameOf, titleOf, told } from "./words.js";

// A range in the words of a text field: 2000..2010, >= 2000, < 5.
const RANGE = /^(-?\d+(?:\.\d+)?)\s*(?:\.\.|–)\s*(-?\d+(?:\.\d+)?)$/u;
const COMPARED = /^(>=|<=|>|<)\s*(-?\d+(?:\.\d+)?)$/u;
const OPERATORS = { ">=": "gte", "<=": "lte", ">": "gt", "<": "lt" };

/** Return what a filter field means that was written by hand; null for nothing. */
export function filterOf(text) {
  const trimmed = text.trim();
  if (!trimmed) return null;
  const range = RANGE.exec(trimmed);
  if (range) return { gte: Number(range[1]), lte: Number(range[2]) };
  const compared = COMPARED.exec(trimmed);
  if (compared) return { [OPERATORS[compared[1]]]: Number(compared[2]) };
  // 2001 may be stored as a number or as text: either will do.
  return /^-?\d+(\.\d+)?$/u.test(trimmed) ? [trimmed, Number(trimmed)] : [trimmed];
}

/** Return a filter field as one would write it. */
export function written(wanted) {
  if (wanted === null) return "nothing";
  if (Array.isArray(wanted)) return listed([...new Set(wanted.map(told))], "or");
  if (typeof wanted !== "object") return told(wanted);
  const { gte, lte, ...others } = wanted;
  if (gte !== undefined && lte !== undefined && !Object.keys(others).length) return `${gte}..${lte}`;
  const signs = { gte: ">=", lte: "<=", gt: ">", lt: "<", ne: "not" };
  return Object.entries(wanted)
    .map(([operator, value]) => `${signs[operator] ?? operator} ${told(value)}`)
    .join(", ");
}

/** The row of filters. `choose(query)` is told of another choice. */
export class Filters {
  constructor(choose) {
    this.row = byId("filters");
    this.choose = choose;
    this.isOpen = false;
  }

  show(query, collections) {
    this.query = query;
    this.collections = collections;
    const focused = this.row.contains(document.activeElement) ? document.activeElement.id : null;
    const scrolled = this.row.querySelector(".panel")?.scrollTop ?? 0;
    this.row.replaceChildren(this.modalities(), ...this.chosen(), this.panel());
    const panel = this.row.querySelector(".panel");
    if (panel) panel.scrollTop = scrolled;
    if (focused) byId(focused)?.focus();
  }

  // Modalities ------------------------------------------------------------------------------

  modalities() {
    const { answers } = this.collections;
    const { modalities } = this.query;
    const all = this.toggle("Everything", "all", !modalities.length, () => ({ modalities: [] }));
    const each = answers.map((modality) => this.modality(modality));
    const more = this.fieldCount() || this.collections.indexes.length > 1;
    const open = button("Filter", "filter", {
      class: "toggle",
      id: "filter-open",
      "aria-expanded": String(this.isOpen),
      "aria-controls": "filter-panel",
      onclick: () => this.fold(!this.isOpen),
    });
    return make(
      "div",
      { class: "toggles", role: "group", "aria-label": "Show" },
      ...(answers.length > 1 ? [all, ...each] : []),
      more ? open : null,
    );
  }

  modality(modality) {
    const chosen = this.query.modalities;
    const is = chosen.includes(modality);
    const others = chosen.filter((each) => each !== modality);
    const toggle = this.toggle(titleOf(modality), modality, is, () => ({
      modalities: is ? others : [...others, modality],
    }));
    toggle.append(make("small", {}, this.collections.itemsOf(modality).toLocaleString("en")));
    const sources = this.collections.modalitiesOf(partsOf(this.query), this.query.like);
    if (!this.collections.leads(sources, modality)) {
      toggle.disabled = !is;
      const names = listed(sources.map((source) => nameOf(source, 2)));
      toggle.title = `No way leads from ${names} to ${nameOf(modality, 2)} in this space.`;
    }
    return toggle;
  }

  toggle(words, name, is, fields) {
    return button(words, null, {
      class: "toggle",
      id: `show-${name}`,
      "aria-pressed": String(is),
      onclick: () => this.choose(changed(this.query, fields())),
    });
  }

  fold(isOpen) {
    this.isOpen = isOpen;
    this.show(this.query, this.collections);
    if (!isOpen) byId("filter-open")?.focus();
  }

  fieldCount() {
    return this.collections.fields(this.query).size;
  }

  // What is chosen --------------------------------------------------------------------------

  chosen() {
    const { filter, indexes } = this.query;
    const chips = Object.entries(filter).map(([field, wanted]) =>
      this.chip(`${field}: ${written(wanted)}`, () => ({ filter: without(filter, field) })),
    );
    if (indexes.length) {
      chips.unshift(this.chip(`in ${listed(indexes)}`, () => ({ indexes: [] })));
    }
    if (!chips.length) return [];
    return [make("ul", { class: "chosen", "aria-label": "Filters in force" }, ...chips)];
  }

  chip(words, fields) {
    const remove = button(`Remove the filter ${words}`, "close", { class: "icon" }, { seen: false });
    remove.addEventListener("click", () => this.choose(changed(this.query, fields())));
    return make("li", {}, make("span", {}, words), remove);
  }

  // The panel -------------------------------------------------------------------------------

  panel() {
    const panel = make("div", { class: "panel", id: "filter-panel", hidden: !this.isOpen });
    if (!this.isOpen) return panel;
    const { indexes } = this.collections;
    if (indexes.length > 1) panel.append(this.collectionsField(indexes));
    for (const [field, values] of this.collections.fields(this.query)) {
      panel.append(values ? this.listedField(field, values) : this.openField(field));
    }
    if (!this.fieldCount()) {
      panel.append(make("p", { class: "quiet" }, "These collections carry no metadata to filter by."));
    }
    panel.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation();
      this.fold(false);
    });
    return panel;
  }

  collectionsField(indexes) {
    const chosen = this.query.indexes;
    return this.field(
      "Collections",
      indexes.map(({ name, modality, items }) =>
        this.check(
          name,
          `index-${name}`,
          chosen.includes(name),
          (is) => ({ indexes: is ? [...chosen, name] : chosen.filter((each) => each !== name) }),
          counted(items, nameOf(modality), nameOf(modality, 2)),
        ),
      ),
    );
  }

  listedField(field, values) {
    const { filter } = this.query;
    const chosen = valuesOf(filter[field]);
    return this.field(
      field,
      values.map((value) =>
        this.check(told(value), `filter-${field}-${typeof value}-${value}`, chosen.includes(value), (is) => {
          const next = is ? [...chosen, value] : chosen.filter((each) => each !== value);
          return { filter: next.length ? { ...filter, [field]: next } : without(filter, field) };
        }),
      ),
    );
  }

  openField(field) {
    const { filter } = this.query;
    const input = make("input", {
      type: "text",
      id: `filter-${field}`,
      placeholder: "a value, or 2000..2010",
      "aria-label": `${field}: a value, or a range as 2000..2010`,
    });
    if (field in filter) input.value = written(filter[field]);
    input.addEventListener("change", () => {
      const wanted = filterOf(input.value);
      const next = wanted === null ? without(filter, field) : { ...filter, [field]: wanted };
      this.choose(changed(this.query, { filter: next }));
    });
    return this.field(field, [input]);
  }

  field(name, children) {
    return make(
      "div",
      { class: "field", role: "group", "aria-label": name },
      make("span", { "aria-hidden": "true" }, name),
      make("div", { class: "values" }, ...children),
    );
  }

  check(words, id, is, fields, more = null) {
    const box = make("input", { type: "checkbox", id });
    box.checked = is;
    box.addEventListener("change", () => this.choose(changed(this.query, fields(box.checked))));
    return make(
      "label",
      { class: "check" },
      box,
      make("span", {}, icon("check"), words, more ? make("small", {}, more) : null),
    );
  }
}

function without(filter, field) {
  const rest = { ...filter };
  delete rest[field];
  return rest;
}

function valuesOf(wanted) {
  if (Array.isArray(wanted)) return wanted;
  return wanted === undefined || (wanted && typeof wanted === "object") ? [] : [wanted];
}
