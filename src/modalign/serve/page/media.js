// Pictures, sounds and clips of the server, shown and played; one plays at a time.

import { addressAt, hasToken, send } from "./api.js";
import { button, icon, make } from "./elements.js";
import { whenSeen } from "./seen.js";
import { wave } from "./waves.js";
import { nameOf, titleOfHit } from "./words.js";

const KINDS = ["image", "audio", "video", "text"];
// Media fetched with a token, kept as addresses of this page.
const MOST_BLOBS = 300;
const blobs = new Map();
let playing = null;

/** Return how a hit is shown: by its modality, or by what there is of it. */
export function kindOf(hit) {
  if (KINDS.includes(hit.modality)) return hit.modality;
  if (hit.thumbnail) return "image";
  return hit.media ? "audio" : "text";
}

/** Return a path as an address that elements can load; with a token its bytes are fetched here. */
export async function sourceOf(path) {
  if (!hasToken()) return addressAt(path);
  if (!blobs.has(path)) blobs.set(path, blobOf(path));
  const found = blobs.get(path);
  blobs.delete(path);
  blobs.set(path, found);
  forgetOldest();
  return found;
}

async function blobOf(path) {
  try {
    return URL.createObjectURL(await (await send(path)).blob());
  } catch (error) {
    blobs.delete(path);
    throw error;
  }
}

function forgetOldest() {
  if (blobs.size <= MOST_BLOBS) return;
  const [path, address] = blobs.entries().next().value;
  blobs.delete(path);
  address.then((url) => URL.revokeObjectURL(url), () => {});
}

/** Return a hit's picture, loaded as it comes near; a sign takes its place where there is none. */
export function picture(path, alt, kind) {
  const image = make("img", { alt, decoding: "async", draggable: "false" });
  const fail = () => image.replaceWith(sign(kind, alt));
  image.addEventListener("error", fail, { once: true });
  image.addEventListener("load", () => image.classList.add("here"), { once: true });
  whenSeen(image, () => sourceOf(path).then((url) => (image.src = url), fail));
  return image;
}

/** Return what stands for an item that cannot be shown. */
export function sign(kind, name) {
  return make("div", { class: "sign" }, icon(kind), make("span", {}, name));
}

/** Return what a card shows of a hit. */
export function preview(hit) {
  const kind = kindOf(hit);
  const title = titleOfHit(hit);
  if (kind === "text") return make("blockquote", {}, hit.value ?? title);
  if (kind === "audio" && hit.media) return wave(hit.media);
  const path = hit.thumbnail ?? (kind === "image" ? hit.media : null);
  return path ? picture(path, title, kind) : sign(kind, title);
}

/** Return the button that plays a hit in its frame; null where there is nothing to play. */
export function playButton(hit, frame) {
  const kind = kindOf(hit);
  if (!hit.media || (kind !== "audio" && kind !== "video")) return null;
  const name = `the ${nameOf(kind)} ${titleOfHit(hit)}`;
  const player = button(`Play ${name}`, "play", { class: "play" }, { seen: false });
  player.addEventListener("click", () => toggle(hit, kind, frame, player, name));
  return player;
}

async function toggle(hit, kind, frame, player, name) {
  const medium = frame.querySelector(kind) ?? mediumIn(frame, kind, player, name);
  if (!medium.paused) {
    medium.pause();
    return;
  }
  playing?.pause();
  playing = medium;
  try {
    if (!medium.src) medium.src = await sourceOf(hit.media);
    await medium.play();
  } catch (error) {
    // Paused again before it began: nothing is wrong.
    if (error.name !== "AbortError") cannotPlay(medium, frame, kind, name);
  }
}

function mediumIn(frame, kind, player, name) {
  const medium = make(kind, { preload: "none", playsinline: kind === "video" });
  const show = (isPlaying) => {
    const words = `${isPlaying ? "Pause" : "Play"} ${name}`;
    player.setAttribute("aria-label", words);
    player.title = words;
    player.replaceChildren(icon(isPlaying ? "pause" : "play"));
    frame.classList.toggle("playing", isPlaying);
  };
  medium.addEventListener("play", () => show(true));
  medium.addEventListener("pause", () => show(false));
  medium.addEventListener("ended", () => show(false));
  medium.addEventListener("timeupdate", () => {
    frame.querySelector(".wave")?.progress?.(medium.currentTime / medium.duration || 0);
  });
  frame.append(medium);
  return medium;
}

function cannotPlay(medium, frame, kind, name) {
  medium.remove();
  frame.classList.remove("playing");
  frame.append(make("p", { class: "cannot", role: "status" }, `This browser cannot play ${name}.`));
}

/** Stop what plays. */
export function hush() {
  playing?.pause();
  playing = null;
}

/** Return a hit in full: the picture itself, or a player with all controls. */
export function large(hit) {
  const kind = kindOf(hit);
  const title = titleOfHit(hit);
  if (kind === "text") return make("blockquote", { class: "large" }, hit.value ?? title);
  if (!hit.media) return sign(kind, title);
  const element =
    kind === "image"
      ? make("img", { alt: title, class: "large" })
      : make(kind, { controls: true, preload: "metadata", playsinline: true, class: "large" });
  const fail = () => element.replaceWith(sign(kind, "It cannot be shown: the file is gone, or of a kind that this browser does not read."));
  element.addEventListener("error", fail, { once: true });
  if (kind !== "image") {
    element.setAttribute("aria-label", title);
    element.addEventListener("play", () => {
      if (playing !== element) playing?.pause();
      playing = element;
    });
  }
  sourceOf(hit.media).then((url) => (element.src = url), fail);
  return kind === "audio" ? make("div", { class: "listen" }, wave(hit.media, element), element) : element;
}
