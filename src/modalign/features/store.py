"""FeatureStore: encoder outputs, written once, read by row.

A store is a folder of shards and a manifest:

    store.json               which encoder, width, output, and the shards in order
    000000.keys.npy          content hash of each row, uint8 [n, 16]
    000000.values.npy        float16 [n, D_m], or [T, D_m]: the valid positions of n rows
    000000.offsets.npy       int64 [n + 1], where each row's positions start; tokens only

A shard's files are on the disk before the manifest names it, so a writer killed at any
moment leaves a store that holds every acknowledged row; files that no manifest names are
overwritten by the next writer. Rows are never changed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modalign.encoders import Encoder, Features
from modalign.encoders.contract import Output, canonical_json
from modalign.errors import CorruptError, DataError, MismatchError, ShapeError
from modalign.storage import limit_mapped, load_array, read_json, save_array, write_json

FORMAT = 1
KEY_BYTES = 16
STORED = np.dtype(np.float16)
MANIFEST_KEYS = ("encoder", "fingerprint", "modality", "width", "output", "shards")


@dataclass(frozen=True)
class Shard:
    """Some consecutive rows of a store, mapped from disk."""

    values: np.ndarray
    offsets: np.ndarray | None

    def __len__(self) -> int:
        return len(self.values) if self.offsets is None else len(self.offsets) - 1


class FeatureStore:
    """Features of one encoder, found by content key.

    Use `FeatureStore.open`; one process writes at a time (the caller locks the folder).
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        """Read what `manifest` names; see `open`."""
        self.folder = folder
        self.width: int = manifest["width"]
        self.output: Output = manifest["output"]
        self.manifest = manifest
        self._shards: list[Shard] = []
        self._starts: list[int] = [0]
        self._row_of: dict[bytes, int] = {}
        for entry in manifest["shards"]:
            self._attach(entry)

    @classmethod
    def open(cls, folder: Path, encoder: Encoder) -> FeatureStore:
        """Open an encoder's store, or begin an empty one.

        Raises:
            MismatchError: The folder holds another encoder's features; the message names
                what differs.
            CorruptError: A file is not what was written.
        """
        manifest_file = folder / "store.json"
        if not manifest_file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            manifest = {
                "format": FORMAT,
                "encoder": encoder.describe(),
                "fingerprint": encoder.fingerprint,
                "modality": encoder.modality,
                "width": encoder.width,
                "output": encoder.output,
                "dtype": STORED.name,
                "shards": [],
            }
            write_json(manifest_file, manifest)
            return cls(folder, manifest)
        manifest = read_json(manifest_file)
        check_format(manifest, manifest_file)
        check_same_encoder(manifest, encoder, folder)
        return cls(folder, manifest)

    def __len__(self) -> int:
        return self._starts[-1]

    def rows_of(self, keys: Sequence[bytes]) -> np.ndarray:
        """Return the row of each content key, int64 [N]; -1 where it is not stored."""
        return np.fromiter((self._row_of.get(key, -1) for key in keys), np.int64, len(keys))

    def append(self, keys: Sequence[bytes], parts: Sequence[Features]) -> None:
        """Store rows durably: when this returns, they survive a kill and a power cut.

        Args:
            keys: Content keys, 16 bytes each.
            parts: One feature (one row) a key, valid positions first.
        """
        if len(keys) != len(parts):
            raise ShapeError(f"store {self.folder}: {len(keys)} keys for {len(parts)} features")
        if not keys:
            return
        name = f"{len(self._shards):06d}"
        entry = {"name": name, "rows": len(keys)}
        save_array(
            self.folder / f"{name}.keys.npy",
            np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), KEY_BYTES),
        )
        if self.output == "vectors":
            values = np.concatenate([part.values for part in parts])
        else:
            rows = [part.values[0][valid_positions(part)] for part in parts]
            offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
            save_array(self.folder / f"{name}.offsets.npy", offsets)
            values = np.concatenate(rows)
        save_array(self.folder / f"{name}.values.npy", values.astype(STORED))
        manifest = {**self.manifest, "shards": [*self.manifest["shards"], entry]}
        write_json(self.folder / "store.json", manifest)
        self.manifest = manifest
        self._attach(entry)

    def read(self, rows: np.ndarray) -> Features:
        """Return rows in the order asked for, float16; tokens padded to the longest of them.

        Args:
            rows: int64 [N], 0 <= row < len(store).
        """
        rows = np.asarray(rows, np.int64)
        if len(rows) and not (0 <= int(rows.min()) and int(rows.max()) < len(self)):
            raise ShapeError(
                f"store {self.folder}: rows {rows.min()} to {rows.max()} were asked for, there "
                f"are {len(self)}"
            )
        limit_mapped(shard.values for shard in self._shards)
        if len(self._shards) == 1:
            return self._read_shard(self._shards[0], rows)
        return self._read_across(rows)

    def _read_across(self, rows: np.ndarray) -> Features:
        order = np.argsort(rows)
        ascending = rows[order]
        bounds = np.searchsorted(ascending, self._starts)
        pieces = [
            (slice(low, high), ascending[low:high] - start, shard)
            for low, high, start, shard in zip(
                bounds[:-1], bounds[1:], self._starts[:-1], self._shards, strict=True
            )
            if low < high
        ]
        if self.output == "vectors":
            values = np.empty((len(rows), self.width), STORED)
            for piece, local, shard in pieces:
                values[order[piece]] = shard.values[local]
            return Features(values)
        found = [(order[piece], self._read_shard(shard, local)) for piece, local, shard in pieces]
        longest = max((part.values.shape[1] for _, part in found), default=0)
        values = np.zeros((len(rows), longest, self.width), STORED)
        mask = np.zeros((len(rows), longest), bool)
        for places, part in found:
            length = part.values.shape[1]
            values[places, :length], mask[places, :length] = part.values, part.mask
        return Features(values, mask)

    def _read_shard(self, shard: Shard, rows: np.ndarray) -> Features:
        if shard.offsets is None:
            return Features(np.take(shard.values, rows, axis=0))
        starts = shard.offsets[rows]
        lengths = shard.offsets[rows + 1] - starts
        positions = np.arange(int(lengths.max(initial=0)))
        mask = positions < lengths[:, None]
        values = np.take(shard.values, np.where(mask, starts[:, None] + positions, 0), axis=0)
        values[~mask] = 0
        return Features(values, mask)

    def _attach(self, entry: dict[str, Any]) -> None:
        keys, shard = self._load_shard(entry)
        start = len(self)
        packed = keys.tobytes()
        for row in range(len(keys)):
            key = packed[row * KEY_BYTES : (row + 1) * KEY_BYTES]
            self._row_of[key] = start + row
        self._shards.append(shard)
        self._starts.append(start + len(keys))

    def _load_shard(self, entry: dict[str, Any]) -> tuple[np.ndarray, Shard]:
        """Map a shard's files and return its keys and rows."""
        name, rows = entry["name"], entry["rows"]
        try:
            keys = load_array(self.folder / f"{name}.keys.npy")
            values = load_array(self.folder / f"{name}.values.npy", mapped=True)
            offsets = None
            if self.output == "tokens":
                offsets = load_array(self.folder / f"{name}.offsets.npy")
        except DataError as error:
            # Without this file alone the store would be no better: the folder has to go.
            raise self._corrupt(error.details["file"], "is missing or broken") from error
        if keys.shape != (rows, KEY_BYTES) or keys.dtype != np.uint8:
            raise self._corrupt(
                self.folder / f"{name}.keys.npy",
                f"is {keys.dtype} {keys.shape}, expected uint8 ({rows}, {KEY_BYTES})",
            )
        positions = values.shape[0] if values.ndim else 0
        if offsets is not None and not sound_offsets(offsets, rows, positions):
            raise self._corrupt(
                self.folder / f"{name}.offsets.npy",
                f"does not divide {positions} positions into {rows} rows",
            )
        expected = (rows if offsets is None else positions, self.width)
        if values.shape != expected or values.dtype != STORED:
            raise self._corrupt(
                self.folder / f"{name}.values.npy",
                f"is {values.dtype} {values.shape}, expected {STORED} {expected}",
            )
        # A plain view: each read of a memmap makes another one, which costs more than the read.
        return keys, Shard(np.asarray(values), offsets)

    def _corrupt(self, file: Path, what: str) -> CorruptError:
        return CorruptError(
            f"{file}: {what}; delete the folder {self.folder}, and the next run encodes its items "
            "again",
            file=file,
        )


@dataclass(frozen=True)
class FeatureTable:
    """Features of a list of items, in its order: a store and the items' rows in it."""

    store: FeatureStore
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def width(self) -> int:
        """D_m."""
        return self.store.width

    def take(self, indices: np.ndarray) -> Features:
        """Return the features of some items, float16, in the order asked for."""
        return self.store.read(self.rows[indices])

    def subset(self, indices: np.ndarray) -> FeatureTable:
        """Return a table of some of the items."""
        return FeatureTable(self.store, self.rows[indices])


@dataclass(frozen=True)
class FeatureArray:
    """Features held in memory, read as a `FeatureTable` is."""

    features: Features

    def __len__(self) -> int:
        return len(self.features)

    @property
    def width(self) -> int:
        """D_m."""
        return self.features.width

    def take(self, indices: np.ndarray) -> Features:
        """Return some rows, in the order asked for."""
        return self.features[indices]

    def subset(self, indices: np.ndarray) -> FeatureArray:
        """Return some rows as a table."""
        return FeatureArray(self.features[indices])


# Features of a list of items, wherever they lie.
FeatureRows = FeatureTable | FeatureArray


def valid_positions(part: Features) -> np.ndarray:
    """Return the mask of a single token feature, bool [L]."""
    if part.mask is None:
        raise ShapeError("a store of tokens was given a feature without a mask")
    return np.asarray(part.mask[0], bool)


def differences(stored: dict[str, Any], given: dict[str, Any]) -> list[str]:
    """Return the names of a description's entries that two encoders do not share."""
    # As JSON gives it back: a tuple is a list there.
    given = json.loads(canonical_json(given))
    names = sorted(stored.keys() | given.keys())
    return [name for name in names if stored.get(name) != given.get(name)]


def sound_offsets(offsets: np.ndarray, rows: int, positions: int) -> bool:
    """Return whether offsets divide all positions into rows."""
    if offsets.shape != (rows + 1,) or offsets.dtype != np.int64:
        return False
    return bool(offsets[0] == 0 and offsets[-1] == positions and (np.diff(offsets) >= 0).all())


def check_format(manifest: Any, path: Path) -> None:
    """Raise unless this version can read the manifest.

    Raises:
        DataError: It is of another format.
        CorruptError: It lacks an entry.
    """
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise DataError(
            f"{path}: format {found}, this modalign reads {FORMAT}; upgrade modalign to read it, "
            f"or delete the folder {path.parent} to encode again",
            file=path,
            found=found,
        )
    lacking = [name for name in MANIFEST_KEYS if name not in manifest]
    if lacking:
        raise CorruptError(
            f"{path}: has no {', '.join(lacking)}; delete the folder {path.parent}, and the next "
            "run encodes its items again",
            file=path,
        )


def check_same_encoder(manifest: dict[str, Any], encoder: Encoder, folder: Path) -> None:
    """Raise a MismatchError that names what differs unless a store is this encoder's."""
    names = differences(manifest["encoder"], encoder.describe())
    if manifest["fingerprint"] == encoder.fingerprint and not names:
        return
    raise MismatchError(
        f"{folder}: holds features of another {manifest['modality']} encoder than "
        f"{encoder.spec}; differs: {', '.join(names) or 'fingerprint'}; choose another folder, or "
        "load the encoder it was written with",
        folder=folder,
        stored=manifest["fingerprint"],
        given=encoder.fingerprint,
    )
