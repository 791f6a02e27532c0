// One result, large: what it is, all that is known of it, and where to go from it.

import { copy, openDialog } from "./dialogs.js";
import { button, make } from "./elements.js";
import { hush, kindOf, large, sourceOf } from "./media.js";
import { keyOf } from "./query.js";
import { score } from "./results.js";
import { capital, nameOf, shortened, titleOf, titleOfHit, told } from "./words.js";

/** The dialog of a result. See `actions` of the constructor. */
export class ItemDialog {
  /**
   * @param actions `like(hit, modality)` and `add(hit)` search; `step(by)` shows a neighbour;
   *   `linkTo(hit)` returns an address; `closed()` is told that it was closed by hand.
   */
  constructor(actions) {
    this.actions = actions;
    this.dialog = null;
  }

  get isOpen() {
    return this.dialog !== null;
  }

  /** Show a hit; one without a score comes from a link. */
  show(hit, { place = -1, number = 0, answers = [] } = {}) {
    hush();
    const content = [
      make("figure", { "data-kind": kindOf(hit) }, large(hit), ...this.steps(place, number)),
      make(
        "div",
        { class: "told" },
        ...this.standing(hit, place, number),
        this.ways(hit, answers),
        table(hit),
        this.tools(hit),
      ),
    ];
    if (this.dialog) this.refill(hit, content);
    else this.open(hit, content);
  }

  open(hit, content) {
    const dialog = openDialog(headline(hit), content, {
      kind: "item",
      closed: () => {
        hush();
        if (this.dialog !== dialog) return;
        this.dialog = null;
        this.actions.closed();
      },
    });
    this.dialog = dialog;
    dialog.addEventListener("keydown", (event) => this.keyed(event));
    dialog.querySelector(".ways button").focus({ focusVisible: false });
  }

  refill(hit, content) {
    this.dialog.querySelector("h2").textContent = headline(hit);
    const sheet = this.dialog.querySelector(".sheet");
    const focused = document.activeElement?.dataset.step;
    sheet.replaceChildren(sheet.firstElementChild, ...content);
    const next = this.dialog.querySelector(`[data-step="${focused ?? ""}"]:not(:disabled)`);
    (next ?? this.dialog.querySelector(".ways button")).focus({ focusVisible: false });
    this.dialog.scrollTop = 0;
  }

  /** Close without telling: the page is on its way elsewhere. */
  leave() {
    const { dialog } = this;
    this.dialog = null;
    dialog?.close();
  }

  keyed(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    // A player's own keys move within the sound, and an input's within its text.
    if (event.target.closest("audio, video, input")) return;
    if (event.key === "ArrowRight") this.actions.step(1);
    else if (event.key === "ArrowLeft") this.actions.step(-1);
    else if (event.key === "m") this.dialog.querySelector(".ways button").click();
  }

  steps(place, number) {
    if (place < 0 || number < 2) return [];
    const step = (words, name, by, isEnd) =>
      button(words, name, { class: `step ${name}`, "data-step": by, disabled: isEnd, onclick: () => this.actions.step(by) }, { seen: false });
    return [
      step("The result before", "left", -1, place === 0),
      step("The next result", "right", 1, place === number - 1),
    ];
  }

  standing(hit, place, number) {
    if (place < 0) return [];
    const words = make("p", { class: "standing" }, score(hit), make("span", { class: "quiet" }, `result ${place + 1} of ${number}`));
    if (hit.probability === null) return [words];
    return [words, make("p", { class: "quiet" }, `similarity ${hit.similarity.toFixed(3)}`)];
  }

  /** More like this, of any modality. */
  ways(hit, answers) {
    const modalities = answers.length > 1 ? answers : [];
    return make(
      "div",
      { class: "ways", role: "group", "aria-label": "More like this" },
      button("More like this", "alike", { class: "strong", onclick: () => this.actions.like(hit, null) }),
      button("Add to the search", "add", { class: "plain", onclick: () => this.actions.add(hit) }),
      modalities.length ? make("span", { class: "quiet" }, "or only") : null,
      ...modalities.map((modality) =>
        button(titleOf(modality), null, {
          class: "toggle",
          "aria-label": `${titleOf(modality)} like this`,
          onclick: () => this.actions.like(hit, modality),
        }),
      ),
    );
  }

  tools(hit) {
    const tools = make(
      "div",
      { class: "actions" },
      button("Copy link", "link", {
        class: "plain",
        onclick: () => copy(this.actions.linkTo(hit), "The link to this item is copied."),
      }),
      button("Copy id", null, { class: "plain", onclick: () => copy(hit.id, "The id is copied.") }),
    );
    if (hit.media) {
      const link = make("a", { class: "plain", target: "_blank", rel: "noopener" }, "Open the file");
      sourceOf(hit.media).then((url) => (link.href = url), () => link.remove());
      tools.append(link);
    }
    return tools;
  }
}

function headline(hit) {
  return shortened(kindOf(hit) === "text" ? capital(nameOf(hit.modality)) : titleOfHit(hit), 120);
}

/** All that is known of an item, the metadata first. */
function table(hit) {
  const rows = [
    ...Object.entries(hit.metadata ?? {}),
    ["id", hit.id],
    ["collection", hit.index],
    ["modality", hit.modality],
  ];
  return make(
    "table",
    { class: "facts" },
    make("caption", { class: "unseen" }, `What is known of ${keyOf(hit)}`),
    make(
      "tbody",
      {},
      ...rows.map(([name, value]) =>
        make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, told(value))),
      ),
    ),
  );
}
