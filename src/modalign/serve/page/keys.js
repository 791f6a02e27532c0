// The keys of the page.

import { openDialog } from "./dialogs.js";
import { make } from "./elements.js";

const KEYS = [
  ["/", "go to the search box"],
  ["Enter", "search; in the results: open"],
  ["↓", "from the box into the results"],
  ["← ↑ → ↓", "move between results"],
  ["m", "more like this result"],
  ["p", "play or pause this sound or clip"],
  ["h", "recent searches"],
  ["t", "dark or light"],
  ["Esc", "close what is open"],
  ["?", "show these keys"],
];

/** Show the keys. */
export function showKeys() {
  const rows = KEYS.map(([keys, what]) =>
    make(
      "tr",
      {},
      make("th", { scope: "row" }, ...keys.split(" ").map((key) => make("kbd", {}, key))),
      make("td", {}, what),
    ),
  );
  const table = make("table", { class: "keys" }, make("tbody", {}, ...rows));
  openDialog("Keys", [table], { kind: "small" });
}

/** Call the function of a key that is pressed outside of text fields and dialogs. */
export function onKeys(functions) {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    if (!(event.key in functions) || document.querySelector("dialog[open]")) return;
    if (event.target.closest?.("input:not([type=checkbox]):not([type=range]), textarea, select")) return;
    event.preventDefault();
    functions[event.key]();
  });
}
