// What this browser remembers. Where storage is switched off it lasts as long as the page.

const kept = new Map();

function area(where) {
  try {
    return where === "tab" ? window.sessionStorage : window.localStorage;
  } catch {
    return null;
  }
}

/** Return what was remembered under a name, or null; `where` is "browser" or "tab". */
export function recall(name, where = "browser") {
  try {
    const text = area(where)?.getItem(`modalign.${name}`);
    if (text != null) return text;
  } catch {
    // As if it were not there.
  }
  return kept.get(name) ?? null;
}

/** Remember a text; null forgets it. */
export function remember(name, text, where = "browser") {
  if (text === null) kept.delete(name);
  else kept.set(name, text);
  try {
    if (text === null) area(where)?.removeItem(`modalign.${name}`);
    else area(where)?.setItem(`modalign.${name}`, text);
  } catch {
    // Full or switched off: `kept` has it.
  }
}
