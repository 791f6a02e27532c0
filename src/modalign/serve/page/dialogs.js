// Dialogs: one frame for all, and the small ones.

import { button, byId, make } from "./elements.js";

const TOAST_MS = 4000;
let fading = 0;

/**
 * Open a dialog over the page and return it; Escape and a click beside it close it.
 *
 * `closed()` is called afterwards, however it was closed.
 */
export function openDialog(title, content, { kind = "", closed = () => {} } = {}) {
  const close = button("Close", "close", { class: "icon close" }, { seen: false });
  const heading = make("h2", { id: `dialog-${kind || "title"}` }, title);
  const dialog = make(
    "dialog",
    { class: kind, "aria-labelledby": heading.id },
    make("div", { class: "sheet" }, make("div", { class: "bar" }, heading, close), ...content),
  );
  close.addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
  dialog.addEventListener("close", () => {
    dialog.remove();
    closed();
  });
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/** Ask for the server's token; the promise is of what was given, or of null. */
export function askForToken(wasWrong) {
  return new Promise((answer) => {
    let given = null;
    const input = make("input", { type: "password", id: "token", autocomplete: "off", required: true, spellcheck: "false" });
    const form = make(
      "form",
      { class: "token" },
      make(
        "p",
        {},
        wasWrong
          ? "This token was not accepted. Check it, and try again."
          : "This server answers only those who know its token. Whoever started the server has it.",
      ),
      make("label", { for: "token" }, "Token"),
      input,
      make("p", { class: "quiet" }, "It is kept in this tab alone, and forgotten when the tab is closed."),
      make("div", { class: "actions" }, make("button", { type: "submit", class: "strong" }, "Go on")),
    );
    const dialog = openDialog("A token is wanted", [form], { kind: "small", closed: () => answer(given) });
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      given = input.value.trim() || null;
      dialog.close();
    });
    input.focus();
  });
}

/** Copy a text, and say so; where the browser will not, show it to be copied by hand. */
export async function copy(text, said) {
  try {
    await navigator.clipboard.writeText(text);
    toast(said);
  } catch {
    const field = make("input", { type: "text", readonly: true, "aria-label": "Text to copy" });
    field.value = text;
    openDialog("Copy this", [make("p", {}, said), field], { kind: "small" });
    field.select();
  }
}

/** Say something for a moment at the foot of the page. */
export function toast(text) {
  const element = byId("said");
  element.textContent = text;
  element.classList.add("shown");
  clearTimeout(fading);
  fading = setTimeout(() => element.classList.remove("shown"), TOAST_MS);
}
