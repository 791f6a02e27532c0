"""What an engine has made of the rows: a folder that can be made again at any time.

    engine/faiss-3f9c.../artefact.json   which engine, with what settings, of which rows
                         places.npy      the rows it was built of, where some were deleted before
                         data/           the engine's own files

It is written under another name, fsynced and renamed, and counts once a transaction has named it.
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from modalign.errors import CorruptError, DataError
from modalign.index.contract import Effort, Engine, Plan, Progress
from modalign.index.registry import engine_class
from modalign.index.segments import View
from modalign.storage import building, load_array, read_json, save_array, sha256_file, write_json

FORMAT = 1
ENGINE_FOLDER = "engine"
RECORD_FILE = "artefact.json"
PLACES_FILE = "places.npy"
DATA_FOLDER = "data"
# Engines trust their own files: what is no larger than this altogether is hashed before they read
# it, of larger ones the sizes are looked at, and `verify` hashes all.
HASHED_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Record:
    """The file `artefact.json`.

    Attributes:
        engine: Its name.
        settings: Settled.
        rows: The first rows of the index that it covers.
        count: Of these, what was not deleted when it was built.
        width: D.
        seed: Of all that was drawn.
        seconds: It took to build.
        files: Size and sha256 of each file, by its path below the folder.
        format: Of the folder.
    """

    engine: str
    settings: dict[str, Any]
    rows: int
    count: int
    width: int
    seed: int
    seconds: float
    files: dict[str, tuple[int, str]] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def shown(self) -> str:
        """The engine with its kind, as "faiss-ivf"."""
        kind = self.settings.get("kind")
        return f"{self.engine}-{kind}" if kind else self.engine


class LiveRows:
    """The rows of a view that are not deleted, for an engine to be built from."""

    def __init__(self, view: View) -> None:
        """Take a view."""
        self.view = view
        self.rows = view.live(0, view.rows)

    @property
    def width(self) -> int:
        """D."""
        return self.view.width

    def __len__(self) -> int:
        return len(self.rows)

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield unit rows in order, float32 [n, D]."""
        for first, block, scale in self.view.blocks(0, self.view.rows):
            kept = self.view.live(first, first + len(block)) - first
            if len(kept) == len(block):
                yield block.astype(np.float32) * scale[:, None]
            elif len(kept):
                yield block[kept].astype(np.float32) * scale[kept, None]

    def sample(self, count: int, *, seed: int) -> np.ndarray:
        """Return so many rows drawn without repeats, or all, float32 [n, D]."""
        rows = self.rows
        if count < len(rows):
            rows = np.sort(np.random.default_rng(seed).choice(rows, count, replace=False))
        found: np.ndarray = self.view.vectors(rows).astype(np.float32)
        found *= self.view.scale(rows)[:, None]
        return found


@dataclass(frozen=True, eq=False)
class Artefact:
    """An engine open for search, in rows of the index.

    Attributes:
        name: Of its folder.
        record: What it was built of.
        engine: In places of what it was built of.
        places: The row of each place; None where they are the same.
        folder: Where it lies.
    """

    name: str
    record: Record
    engine: Engine
    places: np.ndarray | None
    folder: Path

    def candidates(self, queries: np.ndarray, k: int, effort: Effort) -> np.ndarray:
        """Return rows that may be among the k nearest, int64 [Q, m], -1 for none."""
        found = self.engine.candidates(queries, k, effort)
        # A file whose bits have flipped may name what is not there.
        found = np.where(found < self.record.count, found, -1)
        if self.places is None:
            return found
        return np.where(found < 0, -1, self.places[found])

    def disk_bytes(self) -> int:
        """Return the size of its files."""
        return sum(size for size, _ in self.record.files.values())

    def verify(self) -> list[str]:
        """Hash every file again and return what is wrong."""
        problems = []
        for name, (_, expected) in self.record.files.items():
            file = self.folder / name
            found = sha256_file(file) if file.is_file() else "missing"
            if found != expected:
                problems.append(
                    f"{file}: is not what was written: sha256 {found[:12]}, expected "
                    f"{expected[:12]}; build the engine again"
                )
        return problems


def build_artefact(
    index: Path,
    view: View,
    *,
    engine: str,
    settings: Mapping[str, Any],
    seed: int,
    progress: Progress,
) -> str:
    """Build an engine from all rows of a view, and return the name of its folder.

    Raises:
        UsageError: The engine or a setting is unknown, or does not fit the rows.
        DataError: The disk is full.
        MissingExtraError: The engine's package is not installed.
    """
    made = engine_class(engine)
    rows = LiveRows(view)
    settled = made.settle(settings, rows=len(rows), width=view.width)
    name = f"{engine}-{secrets.token_hex(6)}"
    (index / ENGINE_FOLDER).mkdir(exist_ok=True)
    plan = Plan(settled, name, seed, progress)
    begin = time.perf_counter()
    with building(index / ENGINE_FOLDER / name) as work:
        (work / DATA_FOLDER).mkdir()
        made.build(work / DATA_FOLDER, rows, plan)
        if len(rows) != view.rows:
            save_array(work / PLACES_FILE, rows.rows)
        record = Record(
            engine=engine,
            settings=settled,
            rows=view.rows,
            count=len(rows),
            width=view.width,
            seed=seed,
            seconds=round(time.perf_counter() - begin, 3),
            files=_file_hashes(work),
        )
        write_json(work / RECORD_FILE, asdict(record))
    return name


def open_artefact(index: Path, view: View) -> Artefact:
    """Open the artefact that a view names.

    Raises:
        DataError: It is missing, broken, cut off, of a newer format or of other rows.
        MissingExtraError: The engine's package is not installed.
    """
    if Path(view.artefact).name != view.artefact:
        raise CorruptError(
            f"{index}: its engine's folder is named {view.artefact!r}, expected a plain name; "
            "build the engine again"
        )
    folder = index / ENGINE_FOLDER / view.artefact
    record = _read_record(folder / RECORD_FILE)
    _check_files(folder, record)
    if record.width != view.width or not 0 < record.rows <= view.rows:
        raise CorruptError(
            f"{folder}: is of {record.rows} rows of width {record.width}, the index has "
            f"{view.rows} of {view.width}; build the engine again",
            file=folder,
        )
    places = None
    if record.count != record.rows:
        places = load_array(folder / PLACES_FILE)
        if places.shape != (record.count,) or places.dtype != np.int64:
            raise CorruptError(
                f"{folder / PLACES_FILE}: holds {places.dtype} {places.shape}, expected int64 "
                f"{(record.count,)}; build the engine again",
                file=folder / PLACES_FILE,
            )
    plan = Plan(record.settings, view.artefact, record.seed)
    engine = engine_class(record.engine).open(
        folder / DATA_FOLDER, rows=record.count, width=record.width, plan=plan
    )
    return Artefact(view.artefact, record, engine, places, folder)


def remove_others(index: Path, current: str) -> None:
    """Remove every artefact but the current one, and what it made outside of its folder."""
    folder = index / ENGINE_FOLDER
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.name == current or path.name.startswith("."):
            continue
        _discard(path)
        shutil.rmtree(path)


def _discard(folder: Path) -> None:
    try:
        record = _read_record(folder / RECORD_FILE)
    except DataError:
        return
    engine_class(record.engine).discard(Plan(record.settings, folder.name, record.seed))


def _file_hashes(folder: Path) -> dict[str, tuple[int, str]]:
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_size, sha256_file(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _read_record(path: Path) -> Record:
    stored = read_json(path)
    found = stored.get("format") if isinstance(stored, dict) else None
    if isinstance(found, int) and found > FORMAT:
        raise DataError(
            f"{path}: format {found}, this modalign reads {FORMAT}; upgrade modalign to use it",
            file=path,
            found=found,
        )
    names = {each.name for each in fields(Record)}
    if found != FORMAT or set(stored) != names:
        raise CorruptError(f"{path}: is not what was written; build the engine again", file=path)
    files = {name: (int(size), str(digest)) for name, (size, digest) in stored["files"].items()}
    return Record(**{**stored, "files": files})


def _check_files(folder: Path, record: Record) -> None:
    hashed = sum(size for size, _ in record.files.values()) <= HASHED_BYTES
    for name, (size, digest) in record.files.items():
        file = folder / name
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            raise CorruptError(
                f"{file}: {'is missing' if found is None else f'holds {found:,} bytes'}, expected "
                f"{size:,} bytes; build the engine again",
                file=file,
            )
        if hashed and sha256_file(file) != digest:
            raise CorruptError(
                f"{file}: is not what was written: its sha256 differs; build the engine again",
                file=file,
            )
