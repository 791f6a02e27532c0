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

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modalign.encoders import Encoder, Features
from modalign.encoders.contract import Output
from modalign.errors import CorruptError, DataError, MismatchError, ShapeError
from modalign.storage import load_array, read_json, save_array, write_json

FORMAT = 1
KEY_BYTES = 16
STORED = np.dtype(np.float16)

# Mapped pages count as resident until they are given back; this many bytes may be.
RESIDENT_BYTES = 256 * 2**20
PAGE_BYTES = 4096


@dataclass(frozen=True)
class Shard:
    """Some consecutive rows of a store, mapped from disk."""

    values: np.ndarray
    offsets: np.ndarray | None

    def __len__(self) -> int:
        return len(self.values) if self.offsets is None else len(self.offsets) - 1

    def release(self) -> None:
        """Give the mapped pages back; the next read maps them again."""
        mapped = self.values.base
        if isinstance(mapped, mmap.mmap):
            mapped.madvise(mmap.MADV_DONTNEED)


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
        self._touched = 0
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
        if manifest["fingerprint"] != encoder.fingerprint:
            raise MismatchError(
                f"{folder}: holds features of another {manifest['modality']} encoder than "
                f"{encoder.spec}; differs: "
                f"{', '.join(differences(manifest['encoder'], encoder.describe()))}; choose "
                "another folder, or load the encoder it was written with",
                folder=folder,
                stored=manifest["fingerprint"],
                given=encoder.fingerprint,
            )
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
        self.manifest["shards"].append(entry)
        write_json(self.folder / "store.json", self.manifest)
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
        self._give_back(len(rows))
        if len(self._shards) == 1:
            return self._read_shard(self._shards[0], rows)
        return self._read_across(rows)

    def _read_across(self, rows: np.ndarray) -> Features:
        shard_of = np.searchsorted(self._starts, rows, side="right") - 1
        order = np.argsort(shard_of, kind="stable")
        present, first = np.unique(shard_of[order], return_index=True)
        pieces = np.split(order, first[1:]) if len(rows) else []
        found = [
            self._read_shard(self._shards[shard], rows[piece] - self._starts[shard])
            for shard, piece in zip(present, pieces, strict=True)
        ]
        if self.output == "vectors":
            values = np.empty((len(rows), self.width), STORED)
            for piece, part in zip(pieces, found, strict=True):
                values[piece] = part.values
            return Features(values)
        longest = max((part.values.shape[1] for part in found), default=0)
        values = np.zeros((len(rows), longest, self.width), STORED)
        mask = np.zeros((len(rows), longest), bool)
        for piece, part in zip(pieces, found, strict=True):
            length = part.values.shape[1]
            values[piece, :length], mask[piece, :length] = part.values, part.mask
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

    def _give_back(self, rows: int) -> None:
        """Keep the resident size from growing with the store."""
        row_bytes = max(PAGE_BYTES, self.width * STORED.itemsize)
        self._touched += rows * row_bytes
        if self._touched > RESIDENT_BYTES:
            self._touched = 0
            for shard in self._shards:
                shard.release()

    def _attach(self, entry: dict[str, Any]) -> None:
        path = self.folder / entry["name"]
        keys = load_array(path.with_name(f"{path.name}.keys.npy"))
        values = load_array(path.with_name(f"{path.name}.values.npy"), mapped=True)
        offsets = None
        if self.output == "tokens":
            offsets = load_array(path.with_name(f"{path.name}.offsets.npy"))
        shard = Shard(values, offsets)
        if not (len(shard) == len(keys) == entry["rows"] and values.shape[1] == self.width):
            raise CorruptError(
                f"{path}: {len(shard)} rows of width {values.shape[1]} and {len(keys)} keys, the "
                f"manifest says {entry['rows']} rows of width {self.width}; delete the folder "
                f"{self.folder} to encode again",
                file=path,
            )
        start = len(self)
        packed = keys.tobytes()
        for row in range(len(keys)):
            key = packed[row * KEY_BYTES : (row + 1) * KEY_BYTES]
            self._row_of[key] = start + row
        self._shards.append(shard)
        self._starts.append(start + len(keys))


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


def valid_positions(part: Features) -> np.ndarray:
    """Return the mask of a single token feature, bool [L]."""
    if part.mask is None:
        raise ShapeError("a store of tokens was given a feature without a mask")
    return np.asarray(part.mask[0], bool)


def differences(stored: dict[str, Any], given: dict[str, Any]) -> list[str]:
    """Return the names of a description's entries that two encoders do not share."""
    names = sorted(stored.keys() | given.keys())
    return [name for name in names if stored.get(name) != given.get(name)]


def check_format(manifest: dict[str, Any], path: Path) -> None:
    """Raise a DataError unless this version can read the manifest."""
    if manifest.get("format") != FORMAT:
        raise DataError(
            f"{path}: format {manifest.get('format')}, this modalign reads {FORMAT}; upgrade "
            "modalign to read it",
            file=path,
        )
