// Plain words for what programs say in numbers and names.

const NAMES = {
  image: ["picture", "pictures"],
  audio: ["sound", "sounds"],
  video: ["clip", "clips"],
  text: ["text", "texts"],
};

// A match this probable is called so.
const LIKELIHOODS = [
  [0.9, "very likely", 4],
  [0.6, "likely", 3],
  [0.3, "perhaps", 2],
  [0, "unlikely", 1],
];
const LIKELY_ENOUGH = 0.3;

/** Return what a modality is called: one of them, or several. */
export function nameOf(modality, number = 1) {
  const [one, many] = NAMES[modality] ?? [modality, modality];
  return number === 1 ? one : many;
}

/** Return a modality as a title: Pictures. */
export function titleOf(modality) {
  return capital(nameOf(modality, 2));
}

/** Return a text with its first letter large. */
export function capital(text) {
  return text.charAt(0).toLocaleUpperCase("en") + text.slice(1);
}

/** Return the word, the level (1 to 4) and the percentage of a probability. */
export function likelihood(probability) {
  const [, word, level] = LIKELIHOODS.find(([least]) => probability >= least) ?? LIKELIHOODS.at(-1);
  return { word, level, percent: percentage(probability) };
}

/** Whether a hit is no more than unlikely; false where nothing is known of it. */
export function isUnlikely(hit) {
  return hit.probability !== null && hit.probability < LIKELY_ENOUGH;
}

function percentage(share) {
  if (share < 0.01) return "under 1 %";
  if (share > 0.99) return "over 99 %";
  return `${Math.round(share * 100)} %`;
}

/** Return a hit's score in words. */
export function scoreWords(hit) {
  if (hit.probability === null) return `similarity ${hit.similarity.toFixed(2)}`;
  const { word, percent } = likelihood(hit.probability);
  return `${word}, ${percent}`;
}

/** Return a message as a sentence. */
export function sentence(text) {
  const begun = capital(text.trim());
  return /[.!?…]$/u.test(begun) ? begun : `${begun}.`;
}

/** Return a count with its noun: 1 result, 2,000 results. */
export function counted(number, one, many) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

/** Return names as one text: a, b and c. */
export function listed(names, last = "and") {
  if (names.length < 2) return names.join("");
  return `${names.slice(0, -1).join(", ")} ${last} ${names.at(-1)}`;
}

/** Return bytes in the largest unit that keeps a whole number in front. */
export function sized(bytes) {
  if (bytes < 2 ** 10) return counted(bytes, "byte", "bytes");
  if (bytes < 2 ** 20) return `${Math.round(bytes / 2 ** 10)} KB`;
  return `${(bytes / 2 ** 20).toFixed(bytes < 10 * 2 ** 20 ? 1 : 0)} MB`;
}

/** Return seconds as a clock shows them: 1:05. */
export function clock(seconds) {
  const whole = Math.floor(seconds);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

/** Return a text of at most so many letters. */
export function shortened(text, letters) {
  return text.length <= letters ? text : `${text.slice(0, letters - 1).trimEnd()}…`;
}

/** Return what a hit is called: its title or label where it has one, else its text or file. */
export function titleOfHit(hit) {
  const { metadata = {} } = hit;
  const named = [metadata.title, metadata.caption, metadata.name].find(
    (value) => typeof value === "string" && value.trim(),
  );
  return named ?? hit.value ?? hit.id.split("/").at(-1);
}

/** Return a value of the metadata as text. */
export function told(value) {
  if (value === null || value === undefined) return "–";
  if (Array.isArray(value)) return value.map(told).join(", ");
  if (typeof value === "boolean") return value ? "yes" : "no";
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}
