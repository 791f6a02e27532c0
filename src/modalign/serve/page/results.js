// The gallery: one card a hit, kept where the next answer has it too, and moved to its new place.

import { DRAGGED } from "./composer.js";
import { button, calm, draw, icon, make } from "./elements.js";
import { hush, kindOf, playButton, preview } from "./media.js";
import { keyOf } from "./query.js";
import { capital, isUnlikely, likelihood, nameOf, scoreWords, titleOfHit } from "./words.js";

const GLIDE_MS = 320;
const DOTS = 4;

/** Return a hit's score for the eye: dots and words where it is a probability. */
export function score(hit) {
  if (hit.probability === null) {
    return make("span", { class: "score" }, "similarity ", make("b", {}, hit.similarity.toFixed(2)));
  }
  const { word, level, percent } = likelihood(hit.probability);
  const dots = Array.from({ length: DOTS }, (_, place) =>
    draw("circle", { cx: 4 + 9 * place, cy: 4, r: 3, class: place < level ? "on" : "off" }),
  );
  const meter = draw("svg", { class: "meter", viewBox: "0 0 35 8", "aria-hidden": "true" }, ...dots);
  return make("span", { class: `score level-${level}` }, meter, make("b", {}, word), ` ${percent}`);
}

/** The results. `open(hit)` and `like(hit)` are told what was asked of a card. */
export class Gallery {
  constructor(list, { open, like }) {
    this.list = list;
    this.open = open;
    this.like = like;
    this.hits = [];
    this.cards = new Map();
    list.addEventListener("keydown", (event) => this.keyed(event));
    list.addEventListener("focusin", (event) => this.entered(event.target));
  }

  /** Show hits in their order; a line stands before the first that is unlikely. */
  show(hits, { parted }) {
    const before = this.places();
    const focused = this.list.contains(document.activeElement) ? document.activeElement : null;
    const cards = new Map(hits.map((hit) => [keyOf(hit), this.card(hit)]));
    if (hits.every((hit) => this.cards.get(keyOf(hit)) === undefined)) hush();
    this.hits = hits;
    this.cards = cards;
    const items = [...cards.values()];
    const split = parted ? hits.findIndex(isUnlikely) : -1;
    if (split > 0) items.splice(split, 0, make("li", { class: "divider" }, "From here on a match is unlikely"));
    this.list.replaceChildren(...items);
    this.activate(this.active && cards.has(this.active) ? this.active : this.keyAt(0));
    // Cards that move lose the focus; where the card itself is gone, the first result takes it.
    if (focused?.isConnected) focused.focus({ preventScroll: true });
    else if (focused) this.focus(0, { preventScroll: true });
    this.glide(before);
  }

  /** Show where results will be. */
  wait(number) {
    hush();
    this.cards = new Map();
    this.hits = [];
    const ghost = () => make("li", { class: "hit ghost", "aria-hidden": "true" }, make("div", { class: "frame" }), make("div", { class: "below" }));
    this.list.replaceChildren(...Array.from({ length: number }, ghost));
  }

  clear() {
    hush();
    this.hits = [];
    this.cards = new Map();
    this.list.replaceChildren();
  }

  card(hit) {
    const known = this.cards.get(keyOf(hit));
    if (!known) return this.newCard(hit);
    known.querySelector(".score").replaceWith(score(hit));
    known.querySelector(".open").setAttribute("aria-label", labelOf(hit));
    known.hit = hit;
    return known;
  }

  newCard(hit) {
    const title = titleOfHit(hit);
    const frame = make("div", { class: "frame" }, preview(hit));
    const open = make("button", { type: "button", class: "open", "aria-label": labelOf(hit), tabindex: "-1" });
    const play = playButton(hit, frame);
    const like = make(
      "button",
      { type: "button", class: "alike", "aria-label": `More like ${title}` },
      icon("alike"),
      make("span", {}, "More like this"),
    );
    const card = make(
      "li",
      { class: "hit", "data-kind": kindOf(hit), draggable: "true" },
      frame,
      make("div", { class: "below" }, score(hit), make("span", { class: "name", title }, title)),
    );
    frame.append(open, ...(play ? [play] : []), like);
    card.hit = hit;
    open.addEventListener("click", () => this.open(card.hit));
    like.addEventListener("click", () => this.like(card.hit));
    card.addEventListener("dragstart", ({ dataTransfer }) => dataTransfer.setData(DRAGGED, keyOf(card.hit)));
    return card;
  }

  // Moving by keys --------------------------------------------------------------------------

  keyAt(place) {
    return this.hits[place] ? keyOf(this.hits[place]) : null;
  }

  entered(element) {
    const card = element.closest(".hit");
    if (card?.hit) this.activate(keyOf(card.hit));
  }

  /** Let the Tab key reach one card's buttons alone; arrow keys reach the others. */
  activate(key) {
    this.active = key;
    for (const [each, card] of this.cards) {
      for (const element of card.querySelectorAll("button")) element.tabIndex = each === key ? 0 : -1;
    }
  }

  /** Give the focus to a hit by its place. */
  focus(place, options = {}) {
    const key = this.keyAt(place);
    if (key === null) return false;
    this.activate(key);
    this.cards.get(key).querySelector(".open").focus(options);
    return true;
  }

  /** Return the place of the card that has the focus, or -1. */
  get place() {
    const card = document.activeElement?.closest?.(".hit");
    return card?.hit ? this.hits.findIndex((hit) => keyOf(hit) === keyOf(card.hit)) : -1;
  }


  keyed(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { place } = this;
    if (place < 0) return;
    const target = {
      ArrowRight: place + 1,
      ArrowLeft: place - 1,
      ArrowDown: this.below(place, 1),
      ArrowUp: this.below(place, -1),
      Home: 0,
      End: this.hits.length - 1,
    }[event.key];
    if (target !== undefined) {
      event.preventDefault();
      if (target >= 0) this.focus(Math.min(target, this.hits.length - 1));
    } else if (event.key === "m") this.like(this.hits[place]);
    else if (event.key === "p") this.cards.get(this.keyAt(place)).querySelector(".play")?.click();
  }

  /** Return the place of the card above (-1) or below (1) the one at a place. */
  below(place, step) {
    const cards = this.hits.map((hit) => this.cards.get(keyOf(hit)));
    const here = cards[place];
    const rows = cards
      .map((card, at) => ({ at, top: card.offsetTop, off: Math.abs(card.offsetLeft - here.offsetLeft) }))
      .filter(({ top }) => (step > 0 ? top > here.offsetTop : top < here.offsetTop));
    if (!rows.length) return place;
    const next = step > 0 ? Math.min(...rows.map((row) => row.top)) : Math.max(...rows.map((row) => row.top));
    return rows.filter((row) => row.top === next).sort((a, b) => a.off - b.off)[0].at;
  }

  // Gliding ---------------------------------------------------------------------------------

  places() {
    if (calm()) return new Map();
    return new Map([...this.cards].map(([key, card]) => [key, card.getBoundingClientRect()]));
  }

  /** Let each card glide from where it was; new ones fade in. */
  glide(before) {
    if (!before.size) return;
    const timing = { duration: GLIDE_MS, easing: "cubic-bezier(.2, .7, .2, 1)" };
    for (const [key, card] of this.cards) {
      const from = before.get(key);
      const to = card.getBoundingClientRect();
      if (!from) card.animate({ opacity: [0, 1] }, timing);
      else if (from.left !== to.left || from.top !== to.top) {
        const shift = `translate(${from.left - to.left}px, ${from.top - to.top}px)`;
        card.animate({ transform: [shift, "none"] }, timing);
      }
    }
  }
}

function labelOf(hit) {
  return `${capital(nameOf(kindOf(hit)))}: ${titleOfHit(hit)}; ${scoreWords(hit)}. Open it`;
}
