"""The search page in a real browser, over all photos and sounds of the real data.

    python bench/page.py --data ../shared/data [--screenshots FOLDER] [--json]

5,000 photos and 320 sounds are embedded into one space by `modalign`'s own commands and served;
a Chromium types a query, drops a photo, plays a sound and opens the address it was shown, as a
guest would. Screenshots show data that must not be passed on: they are for looking at, here.
"""

from __future__ import annotations

import base64
import csv
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from measuring import Figure, add_data, minilm_spec, note, parser, print_figures
from photo_tables import photo_row, read_photos, sound_row, write_rows
from serve import serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WORDS = "a dog barking on the beach"
ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --mute-audio"
).split()
PAINT_MS, OPENED, PLAYS_S = 500, 5, 20
DROPPED = """([data, name]) => {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  const carried = new DataTransfer();
  carried.items.add(new File([bytes], name, { type: "image/jpeg" }));
  for (const kind of ["dragenter", "dragover", "drop"]) {
    const told = { dataTransfer: carried, bubbles: true, cancelable: true };
    document.body.dispatchEvent(new DragEvent(kind, told));
  }
}"""


def main() -> int:
    options = parser(__doc__)
    add_data(options)
    options.add_argument("--work", type=Path, default=Path("bench/output/page"))
    options.add_argument("--screenshots", type=Path, help="by default in --work")
    chosen = options.parse_args()
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        sys.exit("page: chromium is not installed: apt-get install chromium")
    photos = read_photos(chosen.data)
    space, galleries = made(chosen, photos)
    shots = chosen.screenshots or chosen.work
    shots.mkdir(parents=True, exist_ok=True)
    with serving(space, galleries) as server:
        figures = visited(server.url, browser, photo=Path(photos[-1]["image"]), shots=shots)
    print_figures(f"The page over {len(photos):,} photos and 320 sounds", figures, chosen)
    return int(any(figure.reached is False for figure in figures))


# What is served -----------------------------------------------------------------------------


def made(options: Any, photos: list[dict[str, Any]]) -> tuple[Path, Path]:
    """Return a space and the folder of its galleries, made where they are not there yet."""
    work = options.work
    space, galleries = work / "space", work / "galleries"
    if (galleries / "audio").is_dir():
        return space, galleries
    note("page: making the space and the galleries, minutes where nothing is encoded yet")
    work.mkdir(parents=True, exist_ok=True)
    with open(options.data / "esc10/manifest.csv", encoding="utf-8", newline="") as file:
        clips = list(csv.DictReader(file))
    sounds = [sound_row(clip, options.data, titles=True) for clip in clips]
    tables = {
        "image": write_rows(work / "photos.jsonl", [photo_row(photo) for photo in photos]),
        "audio": write_rows(work / "sounds.jsonl", sounds),
    }
    specs = {
        "image": f"onnx:{(options.data / 'encoders/mobilenetv2_224.onnx').resolve()}",
        "audio": f"onnx:{(options.data / 'encoders/yamnet.onnx').resolve()}",
        "text": str(minilm_spec()),
    }
    image, text, audio = (f"{name}={specs[name]}" for name in ("image", "text", "audio"))
    # What an interrupted call left is made again; features are kept.
    for folder in (space, galleries):
        shutil.rmtree(folder, ignore_errors=True)
    lines: list[list[object]] = [
        ["align", tables["image"], "--encoder", image, "--encoder", text, "--out", space],
        ["add", space, tables["audio"], "--encoder", audio, "--anchor", "text"],
        *(["embed", space, t, "--modality", n, "--out", galleries / n] for n, t in tables.items()),
    ]
    shared = ["--seed", str(options.seed), "--cache", str(work.resolve() / "features")]
    for line in lines:
        command = [sys.executable, "-m", "modalign", *map(str, line), *shared]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return space, galleries


# The visit ----------------------------------------------------------------------------------


def visited(url: str, browser: str, *, photo: Path, shots: Path) -> list[Figure]:
    """Do what a guest does, and say how it went."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=browser, args=ARGUMENTS)
        painted = first_paint(launched, url)
        page = opened(launched, url)
        words = typed(page, shots)
        found = names(page)
        sound = played(page, shots)
        guest = opened(launched, page.evaluate("location.href"))
        same = shared(guest, found)
        dropped = searched_by(guest, photo, shots)
        launched.close()
    return [painted, words, sound, same, dropped]


def opened(browser: Browser, url: str) -> Page:
    """Open an address as somebody who was never here."""
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    page.set_default_timeout(20_000)
    page.goto(url)
    return page


def results(page: Page, since: float) -> tuple[int, float]:
    """Wait for results and their pictures; return how many, and how long it took."""
    from playwright.sync_api import expect

    expect(page.locator("#found")).to_contain_text(re.compile(r"^\d+ results? for"))
    expect(page.locator("#results:not([aria-busy])")).to_have_count(1)
    expect(page.locator("#gallery img.here").first).to_be_visible()
    return page.locator("#gallery .hit").count(), time.monotonic() - since


def names(page: Page) -> list[str]:
    """Return what the results are called, in their order."""
    told = "all => all.map(e => e.getAttribute('aria-label'))"
    found: list[str] = page.locator("#gallery .open").evaluate_all(told)
    return found


def first_paint(browser: Browser, url: str) -> Figure:
    """Open the page some times."""
    milliseconds = []
    for _ in range(OPENED):
        page = opened(browser, url)
        page.locator("#words").wait_for()
        page.wait_for_timeout(300)
        asked = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
        milliseconds.append(float(page.evaluate(asked)))
        page.context.close()
    middle, low, high = median(milliseconds), min(milliseconds), max(milliseconds)
    return Figure(
        f"first paint, median of {OPENED} visits",
        f"under {PAINT_MS} ms",
        f"{middle:.0f} ms ({low:.0f} to {high:.0f})",
        middle < PAINT_MS,
        {"milliseconds": milliseconds},
    )


def typed(page: Page, shots: Path) -> Figure:
    """Type words, by keys alone."""
    page.locator("#words").wait_for()
    began = time.monotonic()
    page.keyboard.press("/")
    page.keyboard.type(WORDS)
    page.keyboard.press("Enter")
    count, seconds = results(page, began)
    told = "all => [...new Set(all.map(e => e.dataset.kind))].sort()"
    kinds = page.locator("#gallery .hit").evaluate_all(told)
    page.screenshot(path=shots / "words.png")
    return Figure(
        f"words typed: {WORDS!r}",
        "photos and sounds",
        f"{count} results after {seconds:.2f} s: {' and '.join(kinds)}",
        {"image", "audio"} <= set(kinds),
        {"first": names(page)[:5]},
    )


def played(page: Page, shots: Path) -> Figure:
    """Play the first sound that was found."""
    page.locator("#gallery .hit[data-kind=audio] .play").first.click()
    audio = "document.querySelector('#gallery audio')"
    # The page's policy lets no text be run as code, so it is asked again and again.
    end = time.monotonic() + PLAYS_S
    while not (plays := page.evaluate(f"{audio}?.currentTime > 0.2")) and time.monotonic() < end:
        page.wait_for_timeout(50)
    length = float(page.evaluate(f"{audio}?.duration ?? 0"))
    page.screenshot(path=shots / "sound.png")
    measured = f"one of {length:.1f} s" if plays else f"not within {PLAYS_S} s"
    return Figure("a sound is played", "it plays", measured, bool(plays))


def shared(guest: Page, found: list[str]) -> Figure:
    """See whether an address that was handed on shows what its sender saw."""
    results(guest, time.monotonic())
    same = names(guest) == found
    said = "the same" if same else "others"
    return Figure("the address in another browser", "the same results", said, same)


def searched_by(page: Page, photo: Path, shots: Path) -> Figure:
    """Drop a photo."""
    began = time.monotonic()
    page.evaluate(DROPPED, [base64.b64encode(photo.read_bytes()).decode(), photo.name])
    # What was there before is no answer.
    page.locator("#parts li").first.wait_for()
    count, seconds = results(page, began)
    page.screenshot(path=shots / "photo.png")
    said = f"{count} results after {seconds:.2f} s"
    return Figure("a photo is dropped", "results", said, count > 0)


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    sys.exit(main())
