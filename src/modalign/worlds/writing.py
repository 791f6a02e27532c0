"""A world on disk: media files and the pair tables that `modalign align` and `add` read."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import wave
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from modalign.errors import UsageError
from modalign.worlds.pictures import draw_clip, draw_picture
from modalign.worlds.scenes import Scene, draw_scenes
from modalign.worlds.sentences import captions
from modalign.worlds.sounds import SAMPLE_RATE_HZ, synthesise_sound

FRAMES_PER_SECOND = 10
CAPTIONS = 4
VALIDATION_SHARE = 0.1
X264 = {"preset": "ultrafast", "tune": "zerolatency", "crf": "20"}
# Of each kind of medium: the modality's column, and the ending of its files.
MEDIA = {"pictures": ("image", ".png"), "sounds": ("audio", ".wav"), "clips": ("video", ".mp4")}


@dataclass(frozen=True)
class WorldSizes:
    """How many scenes each table has; no scene is in two of them.

    Attributes:
        pictures: Scenes with a picture and captions.
        sounds: Scenes with a sound and captions.
        clips: Scenes with a clip and captions.
        test: Held-out scenes with all four modalities.
    """

    pictures: int = 1500
    sounds: int = 1000
    clips: int = 1000
    test: int = 200

    def __post_init__(self) -> None:
        for name, count in asdict(self).items():
            if count < 0:
                raise UsageError(f"world: {name} is {count}, expected 0 or more", count=count)

    @property
    def total(self) -> int:
        """Scenes in all tables together."""
        return self.pictures + self.sounds + self.clips + self.test


@dataclass(frozen=True)
class World:
    """A world that was written.

    Attributes:
        folder: Where everything lies.
        pictures: Pairs of pictures and captions (JSONL; splits train and validation).
        sounds: Pairs of sounds and captions, of other scenes.
        clips: Pairs of clips and captions, of other scenes again.
        scenes: Held-out scenes in all four modalities (split test).
        states: The hidden state of every scene by id; no pair table, for looking behind it.
    """

    folder: Path
    pictures: Path
    sounds: Path
    clips: Path
    scenes: Path
    states: Path


@dataclass(frozen=True)
class Row:
    """One scene of one table."""

    number: int
    scene: Scene
    table: str
    split: str

    @property
    def id(self) -> str:
        """The scene's number in four digits: equal ids are one scene in all tables."""
        return f"{self.number:04d}"

    @property
    def kinds(self) -> tuple[str, ...]:
        """Which media the scene has: those of its table, or all where it is held out."""
        return tuple(MEDIA) if self.table == "scenes" else (self.table,)


def write_world(
    folder: str | Path,
    *,
    scenes: WorldSizes | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> World:
    """Draw a world and write its media and tables; the same seed writes the same bytes.

    The training scenes of the tables differ: no picture and no sound show the same scene, so that
    searching one by the other only works through their captions. Everything is written under a
    temporary name beside `folder` and renamed at the end.

    Args:
        folder: Where to write; absent or empty.
        scenes: How many scenes each table has.
        seed: Decides the scenes and everything about how they are drawn.
        progress: Called after each scene with the number of scenes done and their total.

    Raises:
        UsageError: The folder has something in it.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(
            f"{folder}: exists, expected a new or empty folder; remove it or name another",
            folder=str(folder),
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        _write_rows(draft, _plan(scenes or WorldSizes(), seed), seed=seed, progress=progress)
        draft.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        draft.rename(folder)
    except BaseException:
        shutil.rmtree(draft)
        raise
    return open_world(folder)


def open_world(folder: str | Path) -> World:
    """Return the world that `write_world` wrote to a folder.

    Raises:
        UsageError: There is none.
    """
    folder = Path(folder)
    tables = {name: folder / f"{name}.jsonl" for name in (*MEDIA, "scenes", "states")}
    for path in tables.values():
        if not path.is_file():
            raise UsageError(f"{path}: is missing, expected a drawn world in {folder}", file=path)
    return World(folder, **tables)


def _plan(sizes: WorldSizes, seed: int) -> list[Row]:
    """Return every scene with the table and the split it belongs to."""
    rows: list[Row] = []
    drawn = iter(draw_scenes(sizes.total, seed=seed))
    for table, count in {**asdict(sizes), "scenes": sizes.test}.items():
        if table == "test":
            continue
        held_back = round(VALIDATION_SHARE * count)
        for position in range(count):
            split = "validation" if position >= count - held_back else "train"
            split = "test" if table == "scenes" else split
            rows.append(Row(len(rows), next(drawn), table, split))
    return rows


def _write_rows(
    folder: Path,
    rows: Sequence[Row],
    *,
    seed: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    for kind in MEDIA:
        (folder / kind).mkdir()

    def write(row: Row) -> dict[str, object]:
        return _write_scene(folder, row, seed)

    lines: dict[str, list[dict[str, object]]] = {name: [] for name in (*MEDIA, "scenes", "states")}
    # Compression and drawing release the interpreter lock most of the time.
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for done, (row, line) in enumerate(zip(rows, pool.map(write, rows), strict=True), start=1):
            lines[row.table].append(line)
            lines["states"].append({"id": row.id, **asdict(row.scene)})
            if progress is not None:
                progress(done, len(rows))
    for table, members in lines.items():
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in members)
        (folder / f"{table}.jsonl").write_text(text, encoding="utf-8")


def _write_scene(folder: Path, row: Row, seed: int) -> dict[str, object]:
    """Write a scene's media and return its line of the table.

    Each medium has a stream of chance of its own, so that no order of writing matters.
    """
    line: dict[str, object] = {"id": row.id}
    for kind in row.kinds:
        column, ending = MEDIA[kind]
        line[column] = f"{kind}/{row.id}{ending}"
        rng = np.random.default_rng([seed, row.number, list(MEDIA).index(kind)])
        WRITERS[kind](folder / kind / f"{row.id}{ending}", row.scene, rng)
    words = np.random.default_rng([seed, row.number, len(MEDIA)])
    return {**line, "text": captions(row.scene, CAPTIONS, words), "split": row.split}


def _write_picture(path: Path, scene: Scene, rng: np.random.Generator) -> None:
    from PIL import Image

    Image.fromarray(draw_picture(scene, rng)).save(path, compress_level=4)


def _write_sound(path: Path, scene: Scene, rng: np.random.Generator) -> None:
    samples = np.round(synthesise_sound(scene, rng) * 32767).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE_HZ)
        file.writeframes(samples.tobytes())


def _write_clip(path: Path, scene: Scene, rng: np.random.Generator) -> None:
    """Write H.264 in MP4, which every browser plays; one thread, so that bytes repeat."""
    import av

    frames = draw_clip(scene, rng)
    # bitexact keeps the versions of the writing library out of the file.
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as file:
        stream = file.add_stream("libx264", rate=FRAMES_PER_SECOND)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {**X264, "threads": "1", "flags": "+bitexact"}
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode(None))


WRITERS: dict[str, Callable[[Path, Scene, np.random.Generator], None]] = {
    "pictures": _write_picture,
    "sounds": _write_sound,
    "clips": _write_clip,
}
