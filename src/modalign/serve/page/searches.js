// One search at a time: a new one ends the one before, and answers are kept for going back.

import { sendForJson } from "./api.js";
import { formOf } from "./query.js";

const MOST = 30;

/** Sends searches. */
export class Searches {
  constructor() {
    this.answers = new Map();
    this.controller = null;
  }

  /** Return the answer that is kept under a name, if there is one. */
  kept(name) {
    return this.answers.get(name) ?? null;
  }

  /** End the search that is under way. */
  stop() {
    this.controller?.abort();
    this.controller = null;
  }

  /** Search, ending what was under way; rejects with an AbortError where it is ended itself. */
  async send(query, name) {
    this.stop();
    const controller = new AbortController();
    this.controller = controller;
    const answer = await sendForJson("/v1/search", {
      method: "POST",
      body: formOf(query),
      signal: controller.signal,
    });
    if (controller.signal.aborted) throw new DOMException("ended", "AbortError");
    this.answers.set(name, answer);
    if (this.answers.size > MOST) this.answers.delete(this.answers.keys().next().value);
    return answer;
  }
}
