// A sound from the microphone, as samples, and the panel that shows it being recorded.

import { button, draw, make } from "./elements.js";
import { encodeWav, joined } from "./wav.js";
import { clock } from "./words.js";

const LONGEST_S = 30;
const BARS = 48;
const FRAME_MS = 60;
// Speech at an arm's length fills half the height.
const GAIN = 4;

/** What went wrong, and the way out, by the name of the browser's error. */
const REFUSALS = {
  NotAllowedError:
    "The browser was not allowed to use the microphone. Allow it in the browser's address bar, or pick a file instead.",
  NotFoundError: "There is no microphone on this device. Pick a file instead.",
  NotReadableError: "Another program is using the microphone. Close it and try again, or pick a file.",
};

/** One recording: `start`, then `stop` for the file or `cancel`. */
class Recording {
  blocks = [];
  length = 0;
  level = 0;

  async start() {
    if (!navigator.mediaDevices?.getUserMedia) {
      throw new Error(
        "Browsers only record on pages served over https, or by this very machine. Pick a file instead.",
      );
    }
    this.stream = await navigator.mediaDevices.getUserMedia({
      // As the room sounds: what cleans up a call takes away what is searched by.
      audio: { echoCancellation: false, noiseSuppression: false, autoGainControl: false },
    });
    this.context = new AudioContext();
    await this.context.audioWorklet.addModule(new URL("page/tap.js", document.baseURI));
    const tap = new AudioWorkletNode(this.context, "modalign-tap", { numberOfOutputs: 0 });
    tap.port.onmessage = ({ data }) => this.take(data);
    this.context.createMediaStreamSource(this.stream).connect(tap);
    await this.context.resume();
  }

  take(block) {
    this.blocks.push(block);
    this.length += block.length;
    this.level = Math.max(this.level, ...block.map(Math.abs));
  }

  /** Return the loudest since the last call, 0 to 1. */
  loudness() {
    const { level } = this;
    this.level = 0;
    return Math.min(1, GAIN * level);
  }

  get seconds() {
    return this.context ? this.length / this.context.sampleRate : 0;
  }

  stop() {
    this.release();
    return encodeWav(joined(this.blocks), this.context.sampleRate);
  }

  release() {
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    if (this.context?.state !== "closed") this.context?.close();
  }
}

/**
 * The recording panel.
 *
 * `done(file)` takes a recording; `failed(text)` is told why there is none.
 */
export class Recorder {
  constructor(panel, { done, failed, limitS = LONGEST_S }) {
    this.panel = panel;
    this.done = done;
    this.failed = failed;
    this.limitS = limitS;
  }

  get busy() {
    return !this.panel.hidden;
  }

  async start() {
    if (this.busy) return;
    const recording = new Recording();
    this.recording = recording;
    this.show();
    try {
      await recording.start();
    } catch (error) {
      recording.release();
      if (this.recording !== recording) return;
      this.close();
      this.failed(REFUSALS[error.name] ?? error.message);
      return;
    }
    // Cancelled while the browser was asking.
    if (this.recording !== recording) recording.release();
    else this.timer = setInterval(() => this.tick(), FRAME_MS);
  }

  show() {
    const bars = Array.from({ length: BARS }, (_, place) =>
      draw("rect", { x: 4 * place, y: 11, width: 2, height: 2, rx: 1 }),
    );
    this.bars = bars;
    this.levels = [];
    this.time = make("output", { class: "time" }, "0:00");
    this.panel.replaceChildren(
      make("span", { class: "live", "aria-hidden": "true" }),
      draw(
        "svg",
        { viewBox: `0 0 ${4 * BARS - 2} 24`, preserveAspectRatio: "none", "aria-hidden": "true" },
        ...bars,
      ),
      this.time,
      button("Cancel", null, { class: "plain", onclick: () => this.cancel() }),
      button("Stop and search", "stop", { class: "strong", onclick: () => this.finish() }),
    );
    this.panel.hidden = false;
    this.panel.querySelector(".strong").focus();
  }

  tick() {
    const { recording } = this;
    this.levels.push(recording.loudness());
    this.levels.slice(-BARS).forEach((level, place, shown) => {
      const bar = this.bars[BARS - shown.length + place];
      const height = 2 + 22 * level;
      bar.setAttribute("height", height.toFixed(1));
      bar.setAttribute("y", (12 - height / 2).toFixed(1));
    });
    this.time.textContent = `${clock(recording.seconds)} of ${clock(this.limitS)}`;
    if (recording.seconds >= this.limitS) this.finish();
  }

  finish() {
    const { recording } = this;
    if (!recording?.length) {
      this.cancel();
      this.failed("Nothing was recorded yet: let it run for a moment, then stop.");
      return;
    }
    const file = recording.stop();
    this.close();
    this.done(file);
  }

  cancel() {
    this.recording?.release();
    this.close();
  }

  close() {
    clearInterval(this.timer);
    this.recording = null;
    this.panel.hidden = true;
    this.panel.replaceChildren();
  }
}
