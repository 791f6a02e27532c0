// The box: words, and files that are dropped, pasted, picked or recorded.

import { button, byId, icon, make } from "./elements.js";
import { picture } from "./media.js";
import { showMix } from "./mix.js";
import { FILE_KINDS, changed, itemOf, partsOf } from "./query.js";
import { Recorder } from "./record.js";
import { capital, listed, nameOf, shortened, sized, titleOfHit } from "./words.js";

// Where a file does not say what it is, its ending does.
const ENDINGS = {
  image: /\.(avif|bmp|gif|jpe?g|png|tiff?|webp)$/iu,
  audio: /\.(aac|aiff?|flac|m4a|mp3|oga|ogg|opus|wav)$/iu,
  video: /\.(avi|m4v|mkv|mov|mp4|mpe?g|webm)$/iu,
};
// What a result that is dragged into the box is known by.
export const DRAGGED = "application/x-modalign-item";

/** Return "image", "audio" or "video", or null where a file is none of them. */
function kindOfFile(file) {
  const [kind] = file.type.split("/");
  if (FILE_KINDS.includes(kind)) return kind;
  return FILE_KINDS.find((each) => ENDINGS[each].test(file.name)) ?? null;
}

/** The search box. `search(query)` is told of a new query, `mixed(query)` of other weights. */
export class Composer {
  constructor({ search, mixed, notice }) {
    this.search = search;
    this.mixed = mixed;
    this.notice = notice;
    this.collections = null;
    this.urls = [];
    this.form = byId("composer");
    this.words = byId("words");
    this.parts = byId("parts");
    this.recorder = new Recorder(byId("recording"), {
      done: (file) => this.take([file]),
      failed: notice,
    });
    this.listen();
  }

  listen() {
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    const file = byId("file");
    byId("pick").addEventListener("click", () => file.click());
    file.addEventListener("change", () => {
      this.take([...file.files]);
      file.value = "";
    });
    byId("record").addEventListener("click", () => this.recorder.start());
    document.addEventListener("paste", (event) => {
      const files = [...(event.clipboardData?.files ?? [])];
      if (!files.length) return;
      event.preventDefault();
      this.take(files);
    });
    this.listenToDrops();
  }

  listenToDrops() {
    let depth = 0;
    const over = (is) => document.body.classList.toggle("dropping", is);
    document.addEventListener("dragenter", (event) => {
      event.preventDefault();
      depth += 1;
      over(true);
    });
    document.addEventListener("dragleave", () => {
      depth = Math.max(0, depth - 1);
      if (!depth) over(false);
    });
    document.addEventListener("dragover", (event) => event.preventDefault());
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      depth = 0;
      over(false);
      this.drop(event.dataTransfer);
    });
  }

  drop(data) {
    const like = data.getData(DRAGGED);
    if (like) this.search(changed(this.query, { like }));
    else if (data.files.length) this.take([...data.files]);
    else this.notice("Only files can be dropped. Save the picture to this device first, then drop its file.");
  }

  /** Learn what can be searched by. */
  know(collections) {
    this.collections = collections;
    const kinds = collections.fileKinds;
    byId("file").accept = kinds.map((kind) => `${kind}/*`).join(",");
    byId("pick").hidden = !kinds.length;
    byId("record").hidden = !kinds.includes("audio");
    this.words.disabled = !collections.takesWords;
    this.recorder.limitS = Math.min(this.recorder.limitS, collections.limits.duration_s ?? Infinity);
    const pick = `Pick a ${listed(kinds.map((kind) => nameOf(kind)), "or")}`;
    byId("pick").setAttribute("aria-label", pick);
    byId("pick").title = pick;
  }

  /** Search by what the box holds. */
  submit() {
    if (this.recorder.busy) {
      this.recorder.finish();
      return;
    }
    const next = changed(this.query, { text: this.words.value.trim() });
    // Long words are shown from their beginning again.
    this.words.scrollLeft = 0;
    if (partsOf(next).length) this.search(next);
    else {
      this.words.focus();
      this.notice("Write some words, or drop a picture, a sound or a clip.");
    }
  }

  /** Search by files as well, one of each kind. */
  take(files) {
    const taken = {};
    const problems = [];
    for (const file of files) {
      const kind = kindOfFile(file);
      const problem = this.problemOf(file, kind, taken);
      if (problem) problems.push(problem);
      else taken[kind] = file;
    }
    this.notice(problems.join(" "));
    if (!Object.keys(taken).length) return;
    this.search(
      changed(this.query, {
        text: this.words.value.trim(),
        files: { ...this.query.files, ...taken },
        absent: this.query.absent.filter((kind) => !(kind in taken)),
      }),
    );
  }

  problemOf(file, kind, taken) {
    const { fileKinds, limits } = this.collections ?? { fileKinds: FILE_KINDS, limits: {} };
    const known = listed(fileKinds.map((each) => nameOf(each, 2)), "or") || "no files";
    const name = shortened(file.name, 40);
    if (kind === null) return `“${name}” is no picture, sound or clip that can be searched by.`;
    if (!fileKinds.includes(kind)) return `“${name}” is a ${nameOf(kind)}; this server can be asked by ${known}.`;
    if (kind in taken) return `One ${nameOf(kind)} at a time: “${name}” was left out.`;
    if (!file.size) return `“${name}” is empty.`;
    if (file.size > limits.upload_bytes) {
      return `“${name}” has ${sized(file.size)}; the server takes ${sized(limits.upload_bytes)} at most. Choose a smaller one.`;
    }
    return null;
  }

  /** Show a query in the box. `item` is the one that more is wanted of, where it is known. */
  show(query, item = null) {
    // What is being written is left alone, unless the query says something else now.
    if (this.query?.text !== query.text) this.words.value = query.text;
    this.query = query;
    if (!this.holds(query, item)) this.showChips(query, item);
    this.words.placeholder = this.placeholder();
    showMix(byId("mix"), query, this.collections, (weights) => this.mixed({ ...this.query, weights }));
  }

  /** Whether the chips of a query are there already, so that pictures need not blink. */
  holds(query, item) {
    const wanted = [query.like, item, ...FILE_KINDS.map((kind) => query.files[kind])];
    const is = this.held?.every((each, place) => each === wanted[place]) ?? false;
    this.held = wanted;
    return is;
  }

  showChips(query, item) {
    const urls = this.urls;
    this.urls = [];
    const chips = partsOf(query)
      .filter((part) => part !== "text")
      .map((part) => (part === "like" ? this.likeChip(query.like, item) : this.fileChip(part)));
    this.parts.replaceChildren(...chips);
    this.parts.hidden = !chips.length;
    for (const url of urls) URL.revokeObjectURL(url);
  }

  placeholder() {
    if (this.words.disabled) return "Drop a file to search by";
    if (!this.parts.hidden) return "Add words: at night, in the snow …";
    const isNarrow = matchMedia("(max-width: 36rem)").matches;
    return isNarrow ? "Describe it in words" : "Describe it in words, or drop a file";
  }

  fileChip(kind) {
    const file = this.query.files[kind];
    const url = URL.createObjectURL(file);
    this.urls.push(url);
    return this.chip(this.glimpse(kind, url), nameOf(kind), file.name, () => {
      const files = { ...this.query.files };
      delete files[kind];
      return { files };
    });
  }

  glimpse(kind, url) {
    if (kind === "image") return make("img", { src: url, alt: "" });
    if (kind === "video") return make("video", { src: url, muted: true, preload: "metadata", "aria-hidden": "true", tabindex: "-1" });
    const sound = make("audio", { src: url, preload: "metadata" });
    const play = button("Play your sound", "play", { class: "icon" }, { seen: false });
    play.addEventListener("click", () => (sound.paused ? sound.play() : sound.pause()));
    for (const event of ["play", "pause", "ended"]) {
      sound.addEventListener(event, () => play.replaceChildren(icon(sound.paused ? "play" : "pause")));
    }
    return make("span", { class: "glimpse" }, play, sound);
  }

  likeChip(like, item) {
    const { index, id } = itemOf(like);
    const modality = item?.modality ?? this.collections?.index(index)?.modality ?? "item";
    const glimpse = item?.thumbnail
      ? picture(item.thumbnail, "", modality)
      : make("span", { class: "glimpse" }, icon(["image", "audio", "video", "text"].includes(modality) ? modality : "alike"));
    return this.chip(glimpse, `like this ${nameOf(modality)}`, item ? titleOfHit(item) : id, () => ({ like: null }));
  }

  chip(glimpse, what, name, without) {
    const remove = button(`Remove: ${what} ${name}`, "close", { class: "icon" }, { seen: false });
    remove.addEventListener("click", () => {
      this.search(changed(this.query, without()));
      this.words.focus();
    });
    return make(
      "li",
      {},
      glimpse,
      make("span", { class: "about" }, make("b", {}, capital(what)), make("span", {}, shortened(name, 60))),
      remove,
    );
  }
}
