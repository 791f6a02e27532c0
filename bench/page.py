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
from typing import Any

from measuring import Figure, add_data, minilm_spec, note, parser, print_figures
from photo_tables import photo_row, read_photos, sound_row, write_rows
from serve import serving

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
        figures = visited(server.url, browser, Path(photos[-1]["image"]), shots)
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
    shutil.rmtree(space, ignore_errors=True)
    call("align", tables["image"], "--encoder", image, "--encoder", text, "--out", space, options)
    call("add", space, tables["audio"], "--encoder", audio, "--anchor", "text", options)
    for name, table in tables.items():
        call("embed", space, table, "--modality", name, "--out", galleries / name, options)
    return space, galleries


def call(command: str, *arguments: Any) -> None:
    """Run a command of modalign; the last argument is the script's options."""
    *words, options = arguments
    seeded = ["--seed", str(options.seed), "--cache", str(options.work.resolve() / "features")]
    line = [sys.executable, "-m", "modalign", command, *map(str, words), *seeded]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)


# The visit ----------------------------------------------------------------------------------


def visited(url: str, browser: str, photo: Path, shots: Path) -> list[Figure]:
    """Do what a guest does, and say how it went."""
    from playwright.sync_api import Page, expect, sync_playwright

    def searched(page: Page, since: float) -> tuple[int, float]:
        expect(page.locator("#found")).to_contain_text(re.compile(r"^\d+ results? for"))
        expect(page.locator("#results:not([aria-busy])")).to_have_count(1)
        expect(page.locator("#gallery img.here").first).to_be_visible()
        return page.locator("#gallery .hit").count(), time.monotonic() - since

    def names(page: Page) -> list[str]:
        told = "all => all.map(e => e.getAttribute('aria-label'))"
        found: list[str] = page.locator("#gallery .open").evaluate_all(told)
        return found

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=browser, args=ARGUMENTS)
        paints = []
        for _ in range(OPENED):
            page = launched.new_page(viewport={"width": 1280, "height": 900})
            page.set_default_timeout(20_000)
            page.goto(url)
            expect(page.locator("#words")).to_be_visible()
            page.wait_for_timeout(300)
            paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
            paints.append(float(page.evaluate(paint)))
        began = time.monotonic()
        page.keyboard.press("/")
        page.keyboard.type(WORDS)
        page.keyboard.press("Enter")
        count, seconds = searched(page, began)
        first, kinds = names(page), "all => [...new Set(all.map(e => e.dataset.kind))].sort()"
        found_kinds = page.locator("#gallery .hit").evaluate_all(kinds)
        page.screenshot(path=shots / "words.png")

        page.locator("#gallery .hit[data-kind=audio] .play").first.click()
        heard = "document.querySelector('#gallery audio')"
        # The page's policy lets no text be run as code, so it is asked again and again.
        end = time.monotonic() + PLAYS_S
        while not page.evaluate(f"{heard}?.currentTime > 0.2"):
            if time.monotonic() > end:
                sys.exit("page: the sound does not play")
            page.wait_for_timeout(50)
        length = float(page.evaluate(f"{heard}.duration"))
        page.screenshot(path=shots / "sound.png")
        address = page.evaluate("location.href")

        guest = launched.new_context(viewport={"width": 1280, "height": 900}).new_page()
        began = time.monotonic()
        guest.goto(address)
        searched(guest, began)
        same = names(guest) == first

        began = time.monotonic()
        guest.evaluate(DROPPED, [base64.b64encode(photo.read_bytes()).decode(), photo.name])
        dropped, waited = searched(guest, began)
        guest.screenshot(path=shots / "photo.png")
        launched.close()
    painted = sorted(paints)[len(paints) // 2]
    return [
        Figure(
            f"first paint, median of {OPENED} visits",
            "under 500 ms",
            f"{painted:.0f} ms ({min(paints):.0f} to {max(paints):.0f})",
            painted < PAINT_MS,
            {"milliseconds": paints},
        ),
        Figure(
            f"words typed: {WORDS!r}",
            "photos and sounds",
            f"{count} results after {seconds:.2f} s: {' and '.join(found_kinds)}",
            {"image", "audio"} <= set(found_kinds),
            {"first": first[:5]},
        ),
        Figure("a sound is played", "it plays", f"one of {length:.1f} s", length > 0),
        Figure("the address in another browser", "the same results", str(same).lower(), same),
        Figure(
            "a photo is dropped",
            "results",
            f"{dropped} results after {waited:.2f} s",
            dropped > 0,
        ),
    ]


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    sys.exit(main())
