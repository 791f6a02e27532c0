"""A small space of drawn pictures, words, sounds and clips, and a server on it, for its tests."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Event
from typing import Any

from starlette.testclient import TestClient

from modalign import align, load_encoder, load_space, read_items, read_pairs
from modalign.encoders import Encoder, Features
from modalign.encoders.builtin import Ngrams
from modalign.gallery import Gallery
from modalign.index import build_index
from modalign.serve.app import make_app
from modalign.serve.indexes import open_served
from modalign.serve.service import Service
from modalign.serve.settings import Settings
from modalign.space import Space
from modalign.worlds import WorldSizes, write_world
from vector_spaces import RECIPE

SIZES = WorldSizes(pictures=40, sounds=20, clips=20, test=0)
ENCODERS = {
    "image": "builtin:pixels?cells=4",
    "text": "builtin:ngrams?width=256",
    "audio": "builtin:logmel",
    "video": "builtin:frames",
}
LABELS = ("dog", "rain", "sea")


def wait_for(condition: Callable[[], bool], *, seconds: float = 20.0) -> None:
    """Wait until a condition holds, and fail where it does not in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


@dataclass(frozen=True)
class Kept:
    """What a server is started on.

    Attributes:
        folder: Where all of it lies: space, photos, sounds, captions, world.
        images: Files of the index `photos`, in its order.
    """

    folder: Path
    images: Sequence[Path]

    @property
    def sound(self) -> Path:
        """A sound that can be uploaded."""
        return sorted((self.folder / "world").rglob("*.wav"))[0]

    @property
    def clip(self) -> Path:
        """A clip that can be uploaded."""
        return sorted((self.folder / "world").rglob("*.mp4"))[0]

    def service(self, *indexes: str, encoder: Encoder | None = None, **settings: Any) -> Service:
        """Return a service on the space and some of its indexes, which the caller closes.

        Args:
            indexes: Names, or NAME=FOLDER; by default all.
            encoder: Takes the place of the space's own of its modality.
            settings: Of the server.
        """
        chosen = Settings(**{"workers": 2, **settings})
        names = indexes or ("photos", "sounds", "captions")
        served = [
            open_served(
                name if "=" in name else str(self.folder / name), media_root=chosen.media_root
            )
            for name in names
        ]
        space = load_space(self.folder / "space")
        if encoder is not None:
            space.use_encoder(encoder.modality, encoder)
        return Service(space, served, chosen, self.folder / "thumbnails")

    @contextmanager
    def client(self, *indexes: str, **settings: Any) -> Iterator[TestClient]:
        """Give a client of a server that runs in this process, and stop it in the end."""
        service = self.service(*indexes, **settings)
        with TestClient(
            make_app(service), base_url="http://127.0.0.1", raise_server_exceptions=False
        ) as client:
            yield client


class GatedWords(Ngrams):
    """The space's own text encoder, which can be held up and made to fail.

    A text that begins with "slow" waits for `gate`; one that begins with "poison" fails as only
    a fault of the program would.

    Attributes:
        gate: Closed by default.
        seen: Every text that was begun with.
    """

    def __init__(self) -> None:
        super().__init__("vectors", 256)
        self.spec = ENCODERS["text"]
        self.gate = Event()
        self.seen: list[str] = []

    def prepare(self, value: str) -> Features:
        """Compute a feature, sooner or later."""
        self.seen.append(value)
        if value.startswith("slow"):
            assert self.gate.wait(20)
        if value.startswith("poison"):
            raise RuntimeError("a fault of the program, in /home/somebody/secret.py")
        return super().prepare(value)


@cache
def kept_below(base: Path) -> Kept:
    """Return what servers are started on, made once in a process, below a temporary folder."""
    folder = base / "served"
    folder.mkdir()
    return make_kept(folder)


def make_kept(folder: Path) -> Kept:
    """Draw a world, join it, and make of it an index of pictures and two galleries."""
    world = write_world(folder / "world", scenes=SIZES)
    cache = folder / "cache"
    encoders = {name: load_encoder(spec, modality=name) for name, spec in ENCODERS.items()}
    recipe = RECIPE.changed({"min_steps": 10})
    pictures = read_pairs(world.pictures, ["image", "text"])
    pair = {name: encoders[name] for name in ("image", "text")}
    space = align(pictures, pair, out=folder / "space", recipe=recipe, cache=cache)
    for name, table in (("audio", world.sounds), ("video", world.clips)):
        space.add(read_pairs(table, [name, "text"]), encoders[name], anchor="text", cache=cache)
    images = photo_index(folder, space, world.pictures)
    sounds = read_items(world.sounds, "audio")
    space.embed_items(sounds, out=folder / "sounds", cache=cache)
    lines = folder / "captions.txt"
    lines.write_text("a red circle\ntwo blue squares\na green star\n", encoding="utf-8")
    space.embed_items(read_items(lines, "text"), out=folder / "captions", cache=cache)
    return Kept(folder, images)


def photo_index(folder: Path, space: Space, table: Path) -> list[Path]:
    """Write the index `photos`, with ids that hold slashes and with metadata."""
    items = read_items(table, "image")
    gallery = Gallery.write(
        folder / "photo-gallery",
        modality="image",
        width=space.gallery_width("image"),
        embedding=space.embedding_sha256("image"),
        encoder=space.encoder("image").fingerprint,
        ids=[f"album/{row:02d} & more?.png" for row in range(len(items.ids))],
        vectors=[space.embed("image", items.values, exact=True)],
        values=items.values,
    )
    metadata = {
        name: {"label": LABELS[row % 3], "year": 2000 + row} for row, name in enumerate(gallery.ids)
    }
    build_index(gallery, folder / "photos", metadata=metadata)
    return [Path(value) for value in items.values]


def photo_id(row: int) -> str:
    """Return the id of a picture."""
    return f"album/{row:02d} & more?.png"


def silence(seconds: int, *, rate: int = 8000) -> bytes:
    """Return a WAV of silence in 8 bits."""
    size = seconds * rate
    head = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + size, b"WAVE", b"fmt ", 16, 1, 1,
                       rate, rate, 1, 8, b"data", size)  # fmt: skip
    return head + b"\x80" * size


def animation(frames: int, *, side: int = 2) -> bytes:
    """Return a GIF of so many frames."""
    head = b"GIF89a" + struct.pack("<HHBBB", side, side, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    frame = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0"
    return head + frame * frames + b";"
