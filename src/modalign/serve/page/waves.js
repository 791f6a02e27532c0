// Sounds drawn as what they are: the loudness of the file itself, in bars.

import { send } from "./api.js";
import { draw } from "./elements.js";
import { whenSeen } from "./seen.js";

const BARS = 36;
const HEIGHT = 64;
// A sound larger than this is not fetched only to be drawn.
const LARGEST_BYTES = 4 * 2 ** 20;
const RATE_HZ = 8000;
const AT_A_TIME = 2;

const known = new Map();
const waiting = [];
let working = 0;

/**
 * Return a sound as bars, drawn once it comes near the screen. `progress(share)` marks how far it
 * was played; with a player it follows that.
 */
export function wave(path, player = null) {
  const bars = Array.from({ length: BARS }, (_, place) =>
    draw("rect", { x: 4 * place, width: 2.4, rx: 1.2, ...extent(0.06) }),
  );
  const svg = draw(
    "svg",
    { class: "wave", viewBox: `0 0 ${4 * BARS - 1.6} ${HEIGHT}`, "aria-hidden": "true" },
    ...bars,
  );
  svg.progress = (share) =>
    bars.forEach((bar, place) => bar.classList.toggle("played", share > 0 && place <= share * BARS));
  player?.addEventListener("timeupdate", () => svg.progress(player.currentTime / player.duration || 0));
  whenSeen(svg, async () => {
    const peaks = await peaksOf(path);
    peaks?.forEach((peak, place) => {
      for (const [name, value] of Object.entries(extent(peak))) bars[place].setAttribute(name, value);
    });
    svg.classList.toggle("heard", Boolean(peaks));
  });
  return svg;
}

function extent(peak) {
  const height = Math.max(2.4, HEIGHT * peak);
  return { height: height.toFixed(1), y: ((HEIGHT - height) / 2).toFixed(1) };
}

/** Return the loudness of each part of a sound, 0 to 1; null where it cannot be known. */
function peaksOf(path) {
  if (!known.has(path)) known.set(path, queued(() => measured(path)).catch(() => null));
  return known.get(path);
}

/** Run a task when there is room: few at a time, so that playing one is never kept waiting. */
async function queued(task) {
  if (working >= AT_A_TIME) await new Promise((go) => waiting.push(go));
  working += 1;
  try {
    return await task();
  } finally {
    working -= 1;
    waiting.shift()?.();
  }
}

async function measured(path) {
  const leave = new AbortController();
  const response = await send(path, { signal: leave.signal });
  if (Number(response.headers.get("Content-Length")) > LARGEST_BYTES) {
    leave.abort();
    return null;
  }
  const decoder = new OfflineAudioContext(1, 1, RATE_HZ);
  const sound = await decoder.decodeAudioData(await response.arrayBuffer());
  return loudness(sound.getChannelData(0));
}

/** Return the root mean square of each of the bars' parts, the loudest at 1. */
function loudness(samples) {
  const part = Math.max(1, Math.floor(samples.length / BARS));
  const levels = Array.from({ length: BARS }, (_, bar) => {
    let power = 0;
    for (let place = bar * part; place < (bar + 1) * part; place += 1) {
      power += (samples[place] ?? 0) ** 2;
    }
    return Math.sqrt(power / part);
  });
  const loudest = Math.max(...levels);
  // The square root lets quiet parts be seen, as they are heard.
  return levels.map((level) => (loudest ? Math.sqrt(level / loudest) : 0));
}
