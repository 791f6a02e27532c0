// One wait at a time: what is quick shows nothing, what takes a while is seen, what is slow is told.

const SOON_MS = 300;
const LATE_MS = 5000;

/** Marks a region as busy and shows a bar while something is waited for. */
export class Wait {
  constructor(region, bar) {
    this.region = region;
    this.bar = bar;
    this.timers = [];
    this.current = null;
  }

  /**
   * Wait for a task, in the place of any before, and return what it comes to.
   *
   * `soon()` is called when it takes longer than a blink, `late(isCurrent)` when it is slow.
   */
  async during(task, { soon, late }) {
    this.end();
    const current = Symbol("wait");
    this.current = current;
    this.region.setAttribute("aria-busy", "true");
    this.timers = [
      setTimeout(() => {
        this.bar.hidden = false;
        soon();
      }, SOON_MS),
      setTimeout(() => late(() => this.current === current), LATE_MS),
    ];
    try {
      return await task();
    } finally {
      if (this.current === current) this.end();
    }
  }

  /** End what is shown of waiting. */
  end() {
    for (const timer of this.timers) clearTimeout(timer);
    this.current = null;
    this.bar.hidden = true;
    this.region.removeAttribute("aria-busy");
  }
}
