// The page: what the address says is what is shown, and what is asked becomes the address.

import { addressOf, readAddress } from "./address.js";
import { RefusedError, UnreachableError, isReady, onTokenWanted, sendForJson } from "./api.js";
import { Collections } from "./collections.js";
import { Composer } from "./composer.js";
import { askForToken, copy } from "./dialogs.js";
import { button, byId } from "./elements.js";
import { Filters } from "./filters.js";
import { addRecent, keepFiles, keptFiles, recents, showRecents } from "./history.js";
import { ItemDialog } from "./item.js";
import { onKeys, showKeys } from "./keys.js";
import { switchTheme } from "./light.js";
import { EMPTY, STEP, changed, described, itemOf, keyOf, partsOf } from "./query.js";
import { Gallery } from "./results.js";
import { Searches } from "./searches.js";
import { absent, failing, home, nothing, slow } from "./states.js";
import { Wait } from "./waiting.js";
import { counted, isUnlikely, listed, nameOf } from "./words.js";

const MIX_MS = 150;
const NOTICE_MS = 12000;
const GHOSTS = 12;

const RANKED = {
  probability: "the most probable first",
  similarity: "the most similar first",
  rank: "the best of each collection in turn, as their scores cannot be compared",
};

class Page {
  constructor() {
    this.query = EMPTY;
    this.collections = null;
    this.failed = null;
    // Every item seen in this visit: what a link or a dialog speaks of need not be asked for.
    this.items = new Map();
    this.searches = new Searches();
    this.wait = new Wait(byId("results"), byId("progress"));
    this.composer = new Composer({
      search: (query) => this.go(query),
      mixed: (query) => this.mix(query),
      notice: (text) => this.notice(text),
    });
    this.filters = new Filters((query) => this.choose(query));
    this.gallery = new Gallery(byId("gallery"), {
      open: (hit) => this.open(hit),
      like: (hit) => this.like(hit, null),
    });
    this.dialog = new ItemDialog({
      like: (hit, modality) => this.like(hit, modality),
      add: (hit) => this.add(hit),
      step: (by) => this.step(by),
      linkTo: (hit) => new URL(addressOf(EMPTY, keyOf(hit)), document.baseURI).href,
      closed: () => this.closed(),
    });
  }

  async start() {
    history.scrollRestoration = "manual";
    onTokenWanted(askForToken);
    this.listen();
    await this.begin();
  }

  /** Ask what there is, then show what the address says. */
  async begin() {
    const { query, open } = this.read();
    this.query = query;
    this.composer.show(query);
    document.body.dataset.view = partsOf(query).length || query.absent.length ? "results" : "home";
    const how = document.body.dataset.view === "home" ? "still" : "new";
    const spaces = await this.waiting(how, () => sendForJson("/v1/spaces"), () => this.begin());
    if (!spaces) return;
    this.collections = new Collections(spaces.spaces);
    this.composer.know(this.collections);
    // Somebody was quicker, and searches already.
    if (this.query !== query && partsOf(this.query).length) {
      this.filters.show(this.query, this.collections);
      return;
    }
    await this.show(this.query, { how: "new" });
    this.showOpen(open);
  }

  read() {
    const read = readAddress(location.search, keptFiles(history.state?.files));
    if (read.problems.length) this.notice(`This link is not whole: ${read.problems.join("; ")}.`);
    return read;
  }

  // Going somewhere -------------------------------------------------------------------------

  /** Show another query and put it into the address. */
  go(query, { how = "new", replace = false } = {}) {
    clearTimeout(this.mixing);
    this.dialog.leave();
    const state = { files: keepFiles(query.files), y: 0 };
    const address = addressOf(query);
    if (replace) history.replaceState({ ...state, y: scrollY }, "", address);
    else {
      this.keepPlace();
      history.pushState(state, "", address);
    }
    if (how === "new") scrollTo(0, 0);
    return this.show(query, { how });
  }

  choose(query) {
    if (partsOf(query).length) this.go(query, { how: "same" });
    else this.go(query, { replace: true });
  }

  mix(query) {
    clearTimeout(this.mixing);
    this.mixing = setTimeout(() => this.go(changed(query, {}), { how: "same", replace: true }), MIX_MS);
  }

  like(hit, modality) {
    this.items.set(keyOf(hit), hit);
    const fields = { text: "", files: {}, absent: [], like: keyOf(hit), weights: {} };
    if (modality) fields.modalities = [modality];
    this.go(changed(this.query, fields));
  }

  add(hit) {
    this.items.set(keyOf(hit), hit);
    this.go(changed(this.query, { like: keyOf(hit) }));
  }

  more() {
    const first = this.gallery.hits.length;
    const k = Math.min(this.query.k + STEP, this.mostK);
    this.go({ ...this.query, k }, { how: "same", replace: true }).then(() => this.gallery.focus(first));
  }

  get mostK() {
    return this.collections?.limits.k ?? 100;
  }

  /** Keep where the page is scrolled to, for coming back. */
  keepPlace() {
    history.replaceState({ ...history.state, y: scrollY }, "");
  }

  /** The user went back or forward. */
  async returned() {
    const { query, open } = this.read();
    const same = addressOf(query) === addressOf(this.query) && sameFiles(query, this.query);
    if (!same || this.failed) {
      this.dialog.leave();
      await this.show(query, { how: "back" });
      scrollTo(0, history.state?.y ?? 0);
    }
    this.showOpen(open);
  }

  // Searching -------------------------------------------------------------------------------

  /**
   * Show a query. `how` says what is seen meanwhile: of a "new" one where results will be; of the
   * "same" with other settings, what is there; on the way "back", what was found then.
   */
  async show(query, { how }) {
    this.searches.stop();
    this.query = { ...query, k: Math.min(query.k, this.mostK) };
    this.composer.show(this.query, this.items.get(query.like) ?? null);
    if (this.collections) this.filters.show(this.query, this.collections);
    const said = described(this.query);
    document.title = said ? `${said} · modalign` : "modalign";
    byId("share").hidden = !said;
    if (!partsOf(this.query).length) this.showStart();
    else await this.find(how);
  }

  showStart() {
    this.wait.end();
    this.failed = null;
    this.gallery.clear();
    this.head("", "");
    const missing = this.missing();
    document.body.dataset.view = missing.length ? "results" : "home";
    this.state(...missing);
    if (!missing.length && this.collections) {
      const search = (text) => this.go(changed(this.query, { text }));
      const again = (entry) => this.again(entry);
      this.state(...home(this.collections, recents(), { search, again }));
    }
  }

  /** What is said where a link spoke of files. */
  missing() {
    if (!this.query.absent.length) return [];
    return [absent(this.query, { pick: () => byId("file").click() })];
  }

  again({ address, files }) {
    const { query } = readAddress(address, keptFiles(files));
    this.go(query);
  }

  async find(how) {
    const { query } = this;
    document.body.dataset.view = "results";
    const name = JSON.stringify([addressOf(query), keepFiles(query.files)]);
    // What was seen is seen again; a search that is made again is asked anew.
    const kept = how === "back" ? this.searches.kept(name) : null;
    if (query.like && !this.items.has(query.like)) this.meet(query.like);
    if (matchMedia("(hover: none)").matches) this.composer.words.blur();
    const answer = kept ?? (await this.waiting(how, () => this.searches.send(query, name), () => this.find("new")));
    if (!answer || this.query !== query) return;
    this.wait.end();
    this.failed = null;
    addRecent(addressOf(query), described(query, { letters: 200 }), keepFiles(query.files));
    this.present(answer);
  }

  /** Learn what an item is that a link speaks of. */
  async meet(like) {
    const item = await this.item(like).catch(() => null);
    if (item && this.query.like === like) this.composer.show(this.query, item);
  }

  async item(key) {
    if (!this.items.has(key)) {
      const { index, id } = itemOf(key);
      const path = `/v1/items/${encodeURIComponent(id)}?index=${encodeURIComponent(index)}`;
      this.items.set(key, { similarity: 0, probability: null, ...(await sendForJson(path)) });
    }
    return this.items.get(key);
  }

  present({ hits, ranked_by: rankedBy, seconds }) {
    for (const hit of hits) this.items.set(keyOf(hit), hit);
    this.state(...this.missing());
    if (!hits.length) {
      this.head("No results", "");
      this.gallery.clear();
      this.state(nothing(this.query, { clear: () => this.go(unfiltered(this.query)) }));
      return;
    }
    const byChance = rankedBy === "probability";
    const noneLikely = byChance && hits.every(isUnlikely);
    const order = noneLikely ? "none of them a likely match; these come closest" : RANKED[rankedBy];
    this.head(
      `${counted(hits.length, "result", "results")} for ${described(this.query, { names: false, letters: 120 })}`,
      `Found in ${told(seconds)}, ${order}.`,
    );
    this.gallery.show(hits, { parted: byChance });
    this.offerMore(hits.length);
  }

  offerMore(number) {
    const { k } = this.query;
    if (number < k) byId("more").replaceChildren();
    else if (k >= this.mostK) byId("more").replaceChildren(`These are the best ${k}; more are not shown. Say more in the search, or filter.`);
    else {
      const step = Math.min(STEP, this.mostK - k);
      byId("more").replaceChildren(button(`Show ${step} more`, null, { class: "plain", onclick: () => this.more() }));
    }
  }

  // Waiting and failing ---------------------------------------------------------------------

  /** Wait for a task of the server; undefined where it was ended or failed. */
  async waiting(how, task, again) {
    this.failed = null;
    try {
      return await this.wait.during(task, {
        soon: () => this.showWaiting(how),
        late: (isCurrent) => this.showSlow(isCurrent),
      });
    } catch (error) {
      if (error.name !== "AbortError") this.fail(error, again);
      return undefined;
    }
  }

  showWaiting(how) {
    if (how === "still" || (how === "same" && this.gallery.hits.length)) return;
    this.state();
    this.head("Searching …", "");
    this.gallery.wait(GHOSTS);
  }

  async showSlow(isCurrent) {
    const ready = await isReady();
    if (isCurrent()) this.state(slow(ready, { stop: () => this.stop() }));
  }

  stop() {
    this.searches.stop();
    this.wait.end();
    this.failed = null;
    this.gallery.clear();
    this.state();
    this.head("Stopped", "");
    byId("more").replaceChildren(button("Search again", null, { class: "plain", onclick: () => this.find("new") }));
  }

  fail(error, again) {
    if (!(error instanceof RefusedError || error instanceof UnreachableError)) throw error;
    this.failed = { error, again };
    this.gallery.clear();
    this.head("", "");
    document.body.dataset.view = "results";
    const clear = () => this.go(unfiltered(this.query));
    this.state(failing(error, this.query, this.collections?.limits ?? {}, { again, clear }));
  }

  // Opening ---------------------------------------------------------------------------------

  open(hit) {
    this.keepPlace();
    history.pushState({ ...history.state, opened: true }, "", addressOf(this.query, keyOf(hit)));
    this.showItem(hit);
  }

  showItem(hit) {
    const place = this.gallery.hits.findIndex((each) => keyOf(each) === keyOf(hit));
    const shown = place < 0 ? hit : this.gallery.hits[place];
    const answers = this.collections?.answers.filter((to) => this.collections.leads([hit.modality], to)) ?? [];
    this.dialog.show(shown, { place, number: this.gallery.hits.length, answers });
  }

  /** Show the item that the address names, or none. */
  async showOpen(key) {
    if (!key) {
      this.dialog.leave();
      return;
    }
    try {
      this.showItem(await this.item(key));
    } catch (error) {
      this.notice(`The item ${itemOf(key).id} cannot be opened: ${error.message}`);
    }
  }

  step(by) {
    const { hits } = this.gallery;
    const open = readAddress(location.search).open;
    const next = hits[hits.findIndex((hit) => keyOf(hit) === open) + by];
    if (!open || !next) return;
    history.replaceState(history.state, "", addressOf(this.query, keyOf(next)));
    this.showItem(next);
  }

  /** The dialog was closed by hand: the address follows. */
  closed() {
    const open = readAddress(location.search).open;
    if (history.state?.opened) history.back();
    else history.replaceState(history.state, "", addressOf(this.query));
    const place = this.gallery.hits.findIndex((hit) => keyOf(hit) === open);
    if (place >= 0) this.gallery.focus(place);
  }

  // Saying ----------------------------------------------------------------------------------

  head(found, ranked) {
    byId("found").textContent = found;
    byId("count").textContent = found;
    byId("ranked").textContent = ranked;
    byId("more").replaceChildren();
  }

  state(...elements) {
    byId("state").replaceChildren(...elements);
  }

  notice(text) {
    clearTimeout(this.noticed);
    byId("notice").textContent = text;
    if (text) this.noticed = setTimeout(() => this.notice(""), NOTICE_MS);
  }

  share() {
    const kinds = Object.keys(this.query.files);
    const left = listed(kinds.map((kind) => `the ${nameOf(kind)}`));
    const it = kinds.length > 1 ? "them" : "it";
    const said = kinds.length
      ? `The link is copied, without ${left}: a link cannot carry files, so whoever opens it is asked for ${it}.`
      : "The link to this search is copied.";
    copy(new URL(addressOf(this.query), document.baseURI).href, said);
  }

  // Listening -------------------------------------------------------------------------------

  listen() {
    addEventListener("popstate", () => this.returned());
    addEventListener("online", () => this.failed?.again());
    addEventListener("pagehide", () => this.keepPlace());
    byId("share").addEventListener("click", () => this.share());
    byId("theme").addEventListener("click", switchTheme);
    byId("keys-open").addEventListener("click", showKeys);
    byId("recent-open").addEventListener("click", () => this.showRecents());
    document.querySelector(".brand").addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      this.go(EMPTY);
      this.composer.words.focus();
    });
    this.composer.words.addEventListener("keydown", (event) => {
      if (event.key === "ArrowDown" && this.gallery.focus(0)) event.preventDefault();
    });
    onKeys({
      "/": () => this.composer.words.select(),
      "?": showKeys,
      h: () => this.showRecents(),
      t: switchTheme,
      Escape: () => this.escape(),
    });
  }

  showRecents() {
    showRecents((entry) => this.again(entry));
  }

  escape() {
    if (this.composer.recorder.busy) this.composer.recorder.cancel();
    else if (this.filters.isOpen) this.filters.fold(false);
  }
}

function sameFiles(one, other) {
  return JSON.stringify(keepFiles(one.files)) === JSON.stringify(keepFiles(other.files));
}

function unfiltered(query) {
  return changed(query, { filter: {}, modalities: [], indexes: [] });
}

function told(seconds) {
  return seconds < 1 ? `${Math.max(1, Math.round(1000 * seconds))} ms` : `${seconds.toFixed(1)} s`;
}

new Page().start();
