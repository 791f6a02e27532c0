// Recent searches, kept in this browser alone, and the files of this visit.

import { openDialog } from "./dialogs.js";
import { button, icon, make } from "./elements.js";
import { recall, remember } from "./store.js";

const NAME = "recent";
const MOST = 30;

// Files live as long as the page: history and links only know them by a number.
const files = new Map();

/** Keep the files of a query and return their numbers, modality -> number. */
export function keepFiles(held) {
  return Object.fromEntries(
    Object.entries(held).map(([kind, file]) => {
      const known = [...files].find(([, each]) => each === file);
      // Begun at the time of loading: numbers of an earlier visit name nothing here.
      const number = known?.[0] ?? `${Math.floor(performance.timeOrigin)}-${files.size}`;
      files.set(number, file);
      return [kind, number];
    }),
  );
}

/** Return the files of numbers, those that are still here. */
export function keptFiles(numbers) {
  return Object.fromEntries(
    Object.entries(numbers ?? {})
      .map(([kind, number]) => [kind, files.get(number)])
      .filter(([, file]) => file),
  );
}

/** Return recent searches, the latest first: [{address, label, files}]. */
export function recents() {
  try {
    const entries = JSON.parse(recall(NAME) ?? "[]");
    return Array.isArray(entries) ? entries.filter(isEntry) : [];
  } catch {
    return [];
  }
}

function isEntry(entry) {
  return typeof entry?.address === "string" && entry.address.startsWith("?") && typeof entry.label === "string";
}

/** Remember a search; the same one moves to the front. */
export function addRecent(address, label, numbers) {
  const others = recents().filter((entry) => entry.label !== label);
  remember(NAME, JSON.stringify([{ address, label, files: numbers }, ...others].slice(0, MOST)));
}

/** Whether all that a recent search needs is still here. */
export function isWhole({ address, files: numbers }) {
  const kinds = new URLSearchParams(address).get("file");
  return !kinds || Object.keys(keptFiles(numbers)).length === kinds.split(",").length;
}

/** Show recent searches; `again(entry)` is told which one is wanted. */
export function showRecents(again) {
  const content = make("div", { class: "recents" });
  const dialog = openDialog("Recent searches", [content], { kind: "drawer" });
  const fill = () => {
    const entries = recents();
    content.replaceChildren(
      ...(entries.length
        ? [
            make("ol", {}, ...entries.map((entry) => recentItem(entry, () => {
              dialog.close();
              again(entry);
            }))),
            button("Forget them all", null, {
              class: "plain",
              onclick: () => {
                remember(NAME, null);
                fill();
              },
            }),
          ]
        : [make("p", {}, "Nothing yet. What you search for is listed here.")]),
      make("p", { class: "quiet" }, "They are kept in this browser and sent nowhere."),
    );
  };
  fill();
}

/** Return a recent search as an item of a list. */
export function recentItem(entry, onclick) {
  const again = make("button", { type: "button", onclick }, icon("clock"), make("span", {}, entry.label));
  if (!isWhole(entry)) again.append(make("small", {}, "its file is no longer here"));
  return make("li", {}, again);
}
