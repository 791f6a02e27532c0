// What is searched for: a plain object that is never changed, only made anew.
//
//   text        words, "" where there are none
//   like        "INDEX/ID" of an item to search by, or null
//   files       modality -> File, of what was dropped, picked or recorded
//   absent      modalities of files that a link spoke of and could not bring
//   weights     part -> how much it counts; a part that is not named counts 1
//   modalities  of the answers; none means all
//   indexes     searched; none means all
//   filter      field -> values, or {gte, lte}
//   k           answers wanted

import { listed, nameOf, shortened } from "./words.js";

export const STEP = 20;
export const FILE_KINDS = ["image", "audio", "video"];
// In the order they are shown and mixed.
export const PARTS = ["like", ...FILE_KINDS, "text"];
// A part may fade, but a weight is above 0.
const LEAST_WEIGHT = 0.01;

export const EMPTY = Object.freeze({
  text: "",
  like: null,
  files: {},
  absent: [],
  weights: {},
  modalities: [],
  indexes: [],
  filter: {},
  k: STEP,
});

/** Return a query with some of its fields changed, asking for the first answers again. */
export function changed(query, fields) {
  const next = { ...query, k: STEP, ...fields };
  const parts = new Set(partsOf(next));
  const weights = Object.entries(next.weights).filter(([part]) => parts.has(part));
  return { ...next, weights: parts.size > 1 ? Object.fromEntries(weights) : {} };
}

/** Return the names of the parts there are, as in ["image", "text"]. */
export function partsOf(query) {
  return PARTS.filter((part) => {
    if (part === "text") return query.text !== "";
    if (part === "like") return query.like !== null;
    return part in query.files;
  });
}

/** Return each part's share of the query, part -> 0 to 1. */
export function sharesOf(query) {
  const parts = partsOf(query);
  const weights = parts.map((part) => Math.max(LEAST_WEIGHT, query.weights[part] ?? 1));
  const whole = weights.reduce((sum, weight) => sum + weight, 0);
  return Object.fromEntries(parts.map((part, place) => [part, weights[place] / whole]));
}

/** Return the index and the id that "INDEX/ID" names. */
export function itemOf(like) {
  const slash = like.indexOf("/");
  return { index: like.slice(0, slash), id: like.slice(slash + 1) };
}

/** Return the name of a hit, "INDEX/ID". */
export function keyOf(hit) {
  return `${hit.index}/${hit.id}`;
}

/** Return the query as a form for POST /v1/search. */
export function formOf(query) {
  const form = new FormData();
  if (query.text) form.set("text", query.text);
  if (query.like) form.set("like", query.like);
  for (const [kind, file] of Object.entries(query.files)) form.set(kind, file, file.name);
  if (partsOf(query).length > 1) form.set("weights", JSON.stringify(sharesOf(query)));
  if (query.modalities.length) form.set("modality", query.modalities.join(","));
  if (query.indexes.length) form.set("indexes", query.indexes.join(","));
  if (Object.keys(query.filter).length) form.set("filter", JSON.stringify(query.filter));
  form.set("k", String(query.k));
  return form;
}

/** Return a query in words: “red stars” with the picture cat.jpg. */
export function described(query, { names = true, letters = 60 } = {}) {
  const said = [];
  if (query.like) said.push(`like ${shortened(itemOf(query.like).id, 40)}`);
  for (const [kind, file] of Object.entries(query.files)) {
    said.push(names ? `the ${nameOf(kind)} ${shortened(file.name, 32)}` : `a ${nameOf(kind)}`);
  }
  for (const kind of query.absent) said.push(`a ${nameOf(kind)} that is not here`);
  if (query.text) said.push(`“${shortened(query.text, letters)}”`);
  return listed(said, said.length > 2 ? "and" : "with");
}
