// A query in the page's address, so that a link says what was searched for.
//
//   ?q=words &like=INDEX/ID &mix=text:70,image:30 &modality=image,audio &index=photos
//   &filter={"label":["dog"]} &k=40 &open=INDEX/ID &file=image
//
// A file is too large for an address: `file` says of which kind it was.

import { EMPTY, FILE_KINDS, PARTS, STEP, changed, partsOf, sharesOf } from "./query.js";

/** Return the address of a query, "?..." or ".", and of the item that is open. */
export function addressOf(query, open = null) {
  const fields = new URLSearchParams();
  const kinds = [...Object.keys(query.files), ...query.absent];
  if (query.text) fields.set("q", query.text);
  if (query.like) fields.set("like", query.like);
  if (kinds.length) fields.set("file", kinds.join(","));
  if (Object.keys(query.weights).length) fields.set("mix", mixOf(query));
  if (query.modalities.length) fields.set("modality", query.modalities.join(","));
  if (query.indexes.length) fields.set("index", query.indexes.join(","));
  if (Object.keys(query.filter).length) fields.set("filter", JSON.stringify(query.filter));
  if (query.k !== STEP) fields.set("k", String(query.k));
  if (open) fields.set("open", open);
  const text = fields.toString();
  return text ? `?${text}` : "./";
}

function mixOf(query) {
  const shares = sharesOf(query);
  return partsOf(query)
    .map((part) => `${part}:${Math.round(100 * shares[part])}`)
    .join(",");
}

/**
 * Return what an address says: the query, the item that is open, and what could not be read.
 *
 * `files` are those of the query that this page still holds, modality -> File.
 */
export function readAddress(search, files = {}) {
  const fields = new URLSearchParams(search);
  const problems = [];
  const kinds = namesIn(fields.get("file")).filter((kind) => FILE_KINDS.includes(kind));
  const held = Object.fromEntries(kinds.filter((kind) => files[kind]).map((kind) => [kind, files[kind]]));
  const query = changed(EMPTY, {
    text: (fields.get("q") ?? "").trim(),
    like: itemIn(fields.get("like"), "like", problems),
    files: held,
    absent: kinds.filter((kind) => !(kind in held)),
    weights: weightsIn(fields.get("mix")),
    modalities: namesIn(fields.get("modality")),
    indexes: namesIn(fields.get("index")),
    filter: filterIn(fields.get("filter"), problems),
    k: countIn(fields.get("k")),
  });
  return { query, open: itemIn(fields.get("open"), "open", problems), problems };
}

function namesIn(text) {
  return (text ?? "").split(",").filter(Boolean);
}

function itemIn(text, name, problems) {
  if (!text) return null;
  if (/^[^/]+\/./su.test(text)) return text;
  problems.push(`“${name}” is “${text}”, expected the name of a collection, a slash and an id`);
  return null;
}

function weightsIn(text) {
  const weights = {};
  for (const entry of namesIn(text)) {
    const [part, number] = entry.split(":");
    if (PARTS.includes(part) && Number(number) > 0) weights[part] = Number(number) / 100;
  }
  return weights;
}

function filterIn(text, problems) {
  if (!text) return {};
  try {
    const filter = JSON.parse(text);
    if (filter && typeof filter === "object" && !Array.isArray(filter)) return filter;
  } catch {
    // Said below, as of any other value that is no filter.
  }
  problems.push("its filter could not be read and was left out");
  return {};
}

function countIn(text) {
  const number = Math.floor(Number(text));
  return number >= 1 ? number : STEP;
}
