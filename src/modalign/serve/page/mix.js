// How much each part of a query counts: one slider between two parts, one each for more.

import { make } from "./elements.js";
import { itemOf, partsOf, sharesOf } from "./query.js";
import { capital, nameOf } from "./words.js";

const STEP = 5;
const LEAST = 5;
const HALF = 50;

/** Show the sliders of a query, or nothing where it has one part. `mixed(weights)` is told. */
export function showMix(panel, query, collections, mixed) {
  const parts = partsOf(query);
  // Being dragged: what it shows is newer than the query.
  if (panel.dataset.parts === parts.join() && panel.contains(document.activeElement)) return;
  panel.dataset.parts = parts.join();
  panel.hidden = parts.length < 2;
  const names = Object.fromEntries(parts.map((part) => [part, partName(part, query, collections)]));
  const shares = sharesOf(query);
  const sliders = parts.length === 2 ? balance : levels;
  panel.replaceChildren(...(parts.length < 2 ? [] : sliders(parts, names, shares, mixed)));
}

function partName(part, query, collections) {
  if (part === "text") return "your words";
  if (part !== "like") return `your ${nameOf(part)}`;
  const index = collections?.index(itemOf(query.like).index);
  return `the ${index ? nameOf(index.modality) : "item"} found`;
}

/** One slider: all of the first part at its left, all of the second at its right. */
function balance([first, second], names, shares, mixed) {
  const slider = make("input", {
    type: "range",
    min: LEAST,
    max: 100 - LEAST,
    step: STEP,
    id: "balance",
    "aria-label": `Between ${names[first]} and ${names[second]}`,
  });
  slider.value = String(Math.round(100 * shares[second]));
  const left = make("output", { for: "balance" });
  const right = make("output", { for: "balance" });
  const tell = () => {
    const share = Number(slider.value);
    left.textContent = `${100 - share} %`;
    right.textContent = `${share} %`;
    slider.setAttribute("aria-valuetext", `${100 - share} % ${names[first]}, ${share} % ${names[second]}`);
  };
  slider.addEventListener("input", () => {
    tell();
    const share = Number(slider.value) / 100;
    mixed({ [first]: 1 - share, [second]: share });
  });
  tell();
  return [
    make("span", { class: "end" }, capital(names[first]), " ", left),
    slider,
    make("span", { class: "end" }, capital(names[second]), " ", right),
  ];
}

/** A slider for each part; what is told is always shares of the whole. */
function levels(parts, names, shares, mixed) {
  const sliders = {};
  const outputs = {};
  const tell = () => {
    const whole = parts.reduce((sum, part) => sum + Number(sliders[part].value), 0);
    const weights = Object.fromEntries(parts.map((part) => [part, Number(sliders[part].value) / whole]));
    for (const part of parts) {
      const share = `${Math.round(100 * weights[part])} %`;
      outputs[part].textContent = share;
      sliders[part].setAttribute("aria-valuetext", share);
    }
    return weights;
  };
  // The largest in the middle, so that each can be raised and lowered.
  const most = Math.max(...Object.values(shares));
  const rows = parts.map((part) => {
    const slider = make("input", { type: "range", min: LEAST, max: 100, step: STEP, id: `level-${part}` });
    slider.value = String(Math.round((HALF * shares[part]) / most));
    slider.addEventListener("input", () => mixed(tell()));
    sliders[part] = slider;
    outputs[part] = make("output", { for: slider.id });
    return make("label", { class: "level" }, capital(names[part]), slider, outputs[part]);
  });
  tell();
  return rows;
}
