"""The pair tables of the real run: photos with captions, sounds with titles, moving photos.

Media stay where they are; only tables, and the clips made from photos, are written.
"""

from __future__ import annotations

import csv
import json
import random
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

SIDE = 160
FRAMES = 12
RATE = 8
# What the camera does, and the window of the photo it sees first and last: (left, top, side).
MOTIONS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "the camera pans to the right": ((0.0, 0.15, 0.7), (0.3, 0.15, 0.7)),
    "the camera pans to the left": ((0.3, 0.15, 0.7), (0.0, 0.15, 0.7)),
    "the camera moves up": ((0.15, 0.3, 0.7), (0.15, 0.0, 0.7)),
    "the camera moves down": ((0.15, 0.0, 0.7), (0.15, 0.3, 0.7)),
    "the camera zooms in": ((0.0, 0.0, 1.0), (0.2, 0.2, 0.6)),
    "the camera zooms out": ((0.2, 0.2, 0.6), (0.0, 0.0, 1.0)),
}


@dataclass(frozen=True)
class Tables:
    """Pair files: photos and sounds and clips for training, and what is only evaluated."""

    photos: Path
    sounds: Path
    sound_classes: Path
    clips: Path
    clips_and_photos: Path


def write_tables(data: Path, folder: Path, *, train_clips: int, seed: int) -> Tables:
    """Write the tables, and draw the clips that are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    photos = read_photos(data)
    with open(data / "esc10/manifest.csv", encoding="utf-8", newline="") as file:
        sounds = list(csv.DictReader(file))
    clips = clip_rows(photos, folder / "clips", train_clips=train_clips, seed=seed)
    validation = [clip for clip in clips if clip["split"] == "val"]
    return Tables(
        write_rows(folder / "photos.jsonl", [photo_row(photo) for photo in photos]),
        write_rows(folder / "sounds.jsonl", [sound_row(s, data, titles=True) for s in sounds]),
        write_rows(folder / "classes.jsonl", [sound_row(s, data, titles=False) for s in sounds]),
        write_rows(folder / "clips.jsonl", [without(clip, "image") for clip in clips]),
        write_rows(folder / "clips_and_photos.jsonl", validation),
    )


def read_photos(data: Path) -> list[dict[str, Any]]:
    """Return the photos of the manifest, each by its whole path."""
    manifest = (data / "flickr8k/manifest.jsonl").read_text(encoding="utf-8")
    photos = [json.loads(line) for line in manifest.splitlines()]
    for photo in photos:
        photo["image"] = str((data / "flickr8k" / photo["image"]).resolve())
    return photos


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write one JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def photo_row(photo: dict[str, Any]) -> dict[str, Any]:
    """Return a photo with its five captions."""
    return {"image": photo["image"], "text": photo["captions"], "split": photo["split"]}


def sound_row(sound: dict[str, str], data: Path, *, titles: bool) -> dict[str, Any]:
    """Return a sound with its label, and the free title its author gave it if asked for."""
    title = Path(sound["freesound_title"]).stem.replace("_", " ").replace("-", " ").strip()
    texts = [sound["label"], title] if titles and title else [sound["label"]]
    path = str((data / "esc10" / sound["audio"]).resolve())
    return {"audio": path, "text": list(dict.fromkeys(texts)), "split": sound["split"]}


def clip_rows(
    photos: list[dict[str, Any]], folder: Path, *, train_clips: int, seed: int
) -> list[dict[str, Any]]:
    """Return clips of some training photos and of all validation photos."""
    folder.mkdir(exist_ok=True)
    draw = random.Random(seed)
    training = [photo for photo in photos if photo["split"] == "train"]
    chosen = draw.sample(training, train_clips)
    rows = []
    for photo in chosen + [photo for photo in photos if photo["split"] == "val"]:
        phrase = draw.choice(list(MOTIONS))
        path = folder / (Path(photo["image"]).stem + ".mp4")
        if not path.exists():
            write_clip(Path(photo["image"]), path, phrase)
        captions = [f"{caption.rstrip(' .')}, {phrase}" for caption in photo["captions"][:2]]
        rows.append(
            {
                "video": str(path.resolve()),
                "image": photo["image"],
                "text": captions,
                "split": photo["split"],
            }
        )
    return rows


def write_clip(photo: Path, path: Path, phrase: str) -> None:
    """Write a clip in which a window moves over a photo."""
    image = Image.open(photo).convert("RGB")
    first, last = (np.array(window) for window in MOTIONS[phrase])
    temporary = path.with_suffix(".part.mp4")
    with av.open(str(temporary), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"preset": "ultrafast"})
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, RATE)
        for moment in np.linspace(0.0, 1.0, FRAMES):
            left, top, side = first + moment * (last - first)
            box = (left * image.width, top * image.height)
            corner = (box[0] + side * image.width, box[1] + side * image.height)
            seen = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=(*box, *corner))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(seen), "rgb24")))
        container.mux(stream.encode())
    temporary.rename(path)


def without(row: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a row without one column."""
    return {key: value for key, value in row.items() if key != name}
