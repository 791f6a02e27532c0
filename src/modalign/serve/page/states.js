// What the page says where there are no results to show: at the start, while waiting, at the end.

import { RefusedError, UnreachableError } from "./api.js";
import { button, icon, make } from "./elements.js";
import { recentItem } from "./history.js";
import { partsOf } from "./query.js";
import { capital, counted, listed, nameOf, sentence, sized } from "./words.js";

const SUGGESTIONS = 6;
const RECENT = 4;

/** The start: how to ask, and what was asked last. */
export function home(collections, recent, { search, again }) {
  const suggested = collections.takesWords ? collections.suggestions(SUGGESTIONS) : [];
  return [
    suggested.length ? chips("Try", suggested.map((word) => button(word, null, { class: "toggle", onclick: () => search(word) }))) : null,
    recent.length
      ? make(
          "div",
          { class: "recents" },
          make("h2", {}, "Searched lately"),
          make("ol", {}, ...recent.slice(0, RECENT).map((entry) => recentItem(entry, () => again(entry)))),
        )
      : ways(collections),
  ].filter(Boolean);
}

function chips(title, buttons) {
  return make("div", { class: "suggested", role: "group", "aria-label": title }, make("span", { class: "quiet" }, title), ...buttons);
}

function ways(collections) {
  const kinds = collections.fileKinds.map((kind) => nameOf(kind));
  const lines = [
    collections.takesWords ? "Describe what you look for in your own words." : null,
    kinds.length ? `Drop or pick a ${listed(kinds, "or")}, or paste a picture.` : null,
    collections.isQueryable("audio") ? "Record a sound with the microphone." : null,
    "Mix two of them, and say which counts more.",
  ];
  return make("ul", { class: "ways-in" }, ...lines.filter(Boolean).map((line) => make("li", {}, line)));
}

/** Nothing was found. */
export function nothing(query, { clear }) {
  const isFiltered = Object.keys(query.filter).length || query.modalities.length || query.indexes.length;
  if (isFiltered) {
    return state("Nothing fits these filters", "No item is of the kind and carries the metadata that you asked for.", [
      button("Clear the filters", null, { class: "strong", onclick: clear }),
    ]);
  }
  return state("There is nothing to find", `What is served here holds no items yet.`);
}

/** It takes long. */
export function slow(isReady, { stop }) {
  const text =
    isReady === false
      ? "The server is still starting: it loads its encoders first. Your search waits for it."
      : "The first search after a start loads the encoders, and large files take a while to read.";
  return state("Still searching …", text, [button("Stop", null, { class: "plain", onclick: stop })]);
}

/** A link spoke of files that it could not bring; what is left of the query was searched by. */
export function absent(query, { pick }) {
  const names = listed(query.absent.map((kind) => `a ${nameOf(kind)}`));
  const first = nameOf(query.absent[0]);
  const rest = partsOf(query).length ? " What is below was found by the rest of the search." : "";
  return state(
    `This search was made with ${names}`,
    `A link cannot carry files, and they are gone when the page is loaded anew. Drop or pick the ${first} again to search by it.${rest}`,
    [button(`Pick the ${first}`, "attach", { class: "strong", onclick: pick })],
  );
}

/** Something failed: what happened, and the way out. `actions`: again, clear, stop. */
export function failing(error, query, limits, actions) {
  const { title, text, ways } = explained(error, query, limits, actions);
  const element = state(title, text, ways);
  element.classList.add("failing");
  element.setAttribute("role", "alert");
  if (error.status === 503) countDown(element, error.retryAfterS, actions.again);
  return element;
}

function explained(error, query, limits, { again, clear }) {
  const retry = (words = "Try again") => button(words, null, { class: "strong", onclick: again });
  if (error instanceof UnreachableError) return unreachable(error, retry());
  if (!(error instanceof RefusedError)) throw error;
  const message = sentence(error.message);
  const filtered = Object.keys(query.filter).length || query.modalities.length || query.indexes.length;
  const unfiltered = filtered ? [button("Clear the filters", null, { class: "strong", onclick: clear })] : [];
  const kinds = Object.keys(query.files);
  const files = kinds.length === 1 ? `the ${nameOf(kinds[0])}` : "this";
  switch (error.status) {
    case 400:
      return { title: "This cannot be searched so", text: message, ways: unfiltered };
    case 401:
      return { title: "A token is wanted", text: "Without its token this server searches for nobody.", ways: [retry("Enter the token")] };
    case 404:
      return { title: "It is no longer here", text: message, ways: [] };
    case 413:
      return {
        title: `${capital(files)} is too large`,
        text: `${message} ${limits.upload_bytes ? `This server takes ${sized(limits.upload_bytes)} at most: choose a smaller one.` : ""}`,
        ways: [],
      };
    case 415:
    case 422:
      return { title: `${capital(files)} cannot be read`, text: `${message} Choose another one.`, ways: [] };
    case 503:
      return { title: "The server is busy", text: "It is answering as many searches as it can.", ways: [retry("Try now")] };
    case 504:
      return { title: "It took too long", text: message, ways: [retry()] };
    default:
      return { title: "The server failed", text: message, ways: [retry()] };
  }
}

function unreachable(error, retry) {
  if (navigator.onLine === false) {
    return { title: "You are offline", text: "The search goes on by itself once there is a network again.", ways: [retry] };
  }
  return {
    title: "The server does not answer",
    text: `${error.message} It may have been stopped, or is out of reach. Your search is kept: start the server, then try again.`,
    ways: [retry],
  };
}

/** Say how many seconds are left, and try again at the end, as long as it is shown. */
function countDown(element, seconds, again) {
  const output = make("p", { class: "quiet", "aria-live": "off" });
  element.append(output);
  let left = Math.ceil(seconds);
  const tick = () => {
    if (!element.isConnected) return;
    if (left <= 0) {
      again();
      return;
    }
    output.textContent = `Trying again in ${counted(left, "second", "seconds")}.`;
    left -= 1;
    setTimeout(tick, 1000);
  };
  queueMicrotask(tick);
}

function state(title, text, ways = []) {
  return make(
    "div",
    { class: "state" },
    make("h2", {}, title),
    make("p", {}, text),
    ways.length ? make("div", { class: "actions" }, ...ways) : null,
  );
}
