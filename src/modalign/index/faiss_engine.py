"""FAISS, in memory.

    flat       float16, every row is looked at
    int8       as flat, a byte a number
    binary     as flat, a bit a number (RaBitQ: sides of random planes through the middle)
    truncated  as flat, in the directions that hold most of the vectors' energy
    ivf        lists around centres, a byte a number, in those directions
    hnsw       a graph of near neighbours, float16

Whatever the kind, more rows are proposed than are wanted, as the effort says, and the durable
vectors decide: that is what makes up for what a kind has rounded off.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modalign.errors import UsageError, check_known, import_extra
from modalign.index.contract import (
    Effort,
    Engine,
    Plan,
    UnitRows,
    building_engine,
    grouped,
    reading_engine,
    whole_setting,
)
from modalign.storage import load_array, save_array

INDEX_FILE = "index.faiss"
PROJECTION_FILE = "projection.npy"
# auto: below, every row is looked at; up to the second, a graph; beyond, which takes a graph long
# to build, lists.
FLAT_ROWS, GRAPH_ROWS = 20_000, 250_000
# Share of the vectors' energy that truncated ones keep.
ENERGY = 0.95
WIDTH_STEP = 16
ENERGY_SAMPLE = 50_000
# Per list, and rounds of k-means.
TRAINED_ON, ROUNDS = 48, 8
QUANTISER_SAMPLE = 100_000
LINKS, BUILD_EFFORT = 32, 64
ADDED_AT_ONCE = 8192
SETTINGS = ("kind", "width", "lists", "links")
PROJECTED = ("truncated", "ivf", "binary")

OVERSAMPLED = {
    "flat": (2, 4),
    "int8": (2, 4, 8, 16, 32),
    "binary": (2, 4, 8, 16, 32, 64, 128, 256),
    "truncated": (2, 4, 8, 16, 32, 64, 128),
}
PROBED = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
SEARCHED = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)


class FaissEngine(Engine):
    """One index of FAISS."""

    kinds = ("auto", "flat", "ivf", "hnsw", "int8", "binary", "truncated")

    def __init__(
        self, index: Any, projection: np.ndarray | None, kind: str, *, file_bytes: int
    ) -> None:
        """Take what `open` has read."""
        self._faiss = import_extra("faiss", extra="faiss")
        self._index = index
        self._projection = projection
        self._kind = kind
        self._file_bytes = file_bytes

    @classmethod
    def settle(cls, settings: Mapping[str, Any], *, rows: int, width: int) -> dict[str, Any]:
        """Return the kind that such a number of rows wants, and its sizes."""
        import_extra("faiss", extra="faiss")
        for name in settings:
            check_known(name, SETTINGS, what="faiss: setting")
        kind = settings.get("kind", "auto")
        check_known(kind, cls.kinds, what="faiss: kind")
        if kind == "auto":
            kind = "flat" if rows < FLAT_ROWS else "hnsw" if rows <= GRAPH_ROWS else "ivf"
        settled: dict[str, Any] = {"kind": kind}
        if kind in ("truncated", "ivf"):
            # 0: as many directions as hold most of the energy.
            settled["width"] = whole_setting(settings, "width", 0, allowed=range(width + 1))
        if kind == "ivf":
            settled["lists"] = whole_setting(
                settings, "lists", usual_lists(rows), allowed=range(1, max(2, rows + 1))
            )
        if kind == "hnsw":
            settled["links"] = whole_setting(settings, "links", LINKS, allowed=range(4, 129))
        unused = sorted(set(settings) - set(settled) - {"kind"})
        if unused:
            raise UsageError(
                f"faiss: kind {kind} takes no {', '.join(unused)}; leave it out", kind=kind
            )
        return settled

    @classmethod
    def build(cls, folder: Path, rows: UnitRows, plan: Plan) -> None:
        """Train on a sample, add all rows, and write."""
        faiss = import_extra("faiss", extra="faiss")
        projection = _projection(rows, plan)
        sample = rows.sample(_sample_size(plan.settings), seed=plan.seed)
        if projection is not None:
            save_array(folder / PROJECTION_FILE, projection)
            sample = sample @ projection
        index = _empty(faiss, sample.shape[1], plan)
        if not index.is_trained:
            plan.progress("faiss: train", 0, 1, "")
            index.train(sample)
            plan.progress("faiss: train", 1, 1, "")
        done = 0
        for block in grouped(rows.blocks(), ADDED_AT_ONCE):
            index.add(block if projection is None else block @ projection)
            done += len(block)
            plan.progress("faiss: add", done, len(rows), "")
        with building_engine(str(folder), RuntimeError):
            faiss.write_index(index, str(folder / INDEX_FILE))

    @classmethod
    def open(cls, folder: Path, *, rows: int, width: int, plan: Plan) -> FaissEngine:
        """Read the index into memory."""
        faiss = import_extra("faiss", extra="faiss")
        file = folder / INDEX_FILE
        kind = plan.settings["kind"]
        projection = load_array(folder / PROJECTION_FILE) if kind in PROJECTED else None
        with reading_engine(str(file), RuntimeError, MemoryError):
            index = faiss.read_index(str(file))
            sizes = (index.ntotal, index.d if projection is None else projection.shape[0])
            if sizes != (rows, width):
                raise RuntimeError(f"holds {sizes[0]} rows of width {sizes[1]}")
        return cls(index, projection, kind, file_bytes=file.stat().st_size)

    def efforts(self) -> Sequence[Effort]:
        """Return how many times more are proposed, and lists or graph nodes looked at."""
        if self._kind in OVERSAMPLED:
            return [{"oversample": times} for times in OVERSAMPLED[self._kind]]
        if self._kind == "hnsw":
            return [{"ef": size, "oversample": 2} for size in SEARCHED]
        lists = self._index.nlist
        probed = [number for number in PROBED if number < lists] + [lists]
        ladder = [{"nprobe": n, "oversample": 4 if n < 256 else 8} for n in probed]
        return [*ladder, {"nprobe": lists, "oversample": 32}]

    def candidates(self, queries: np.ndarray, k: int, effort: Effort) -> np.ndarray:
        """Return the nearest by what the index holds."""
        wanted = min(k * effort["oversample"], self._index.ntotal)
        if self._projection is not None:
            queries = queries @ self._projection
        _, found = self._index.search(
            np.ascontiguousarray(queries), wanted, params=self._parameters(effort, wanted)
        )
        return np.asarray(found, np.int64)

    def _parameters(self, effort: Effort, wanted: int) -> Any:
        if self._kind == "hnsw":
            return self._faiss.SearchParametersHNSW(efSearch=max(effort["ef"], wanted))
        if self._kind == "ivf":
            return self._faiss.SearchParametersIVF(nprobe=effort["nprobe"])
        return None

    def memory_bytes(self) -> int:
        """Return the size of the file, which is what was read into memory."""
        return self._file_bytes


def usual_lists(rows: int) -> int:
    """Return how many lists are usual: a power of two near 4 sqrt(n), with rows to train on."""
    power = 2 ** round(math.log2(4 * math.sqrt(max(1, rows))))
    return int(max(1, min(power, rows // TRAINED_ON)))


def energy_width(energies: np.ndarray, share: float = ENERGY) -> int:
    """Return how many directions hold a share of the energy, rounded up to a multiple of 16.

    Args:
        energies: Of each direction, falling, float [D].
        share: Of their sum.
    """
    held = np.cumsum(energies) / max(float(energies.sum()), 1e-30)
    needed = int(np.searchsorted(held, share)) + 1
    return min(len(energies), -(-needed // WIDTH_STEP) * WIDTH_STEP)


def _projection(rows: UnitRows, plan: Plan) -> np.ndarray | None:
    """Return the matrix that vectors are multiplied by before they are indexed, float32 [D, d]."""
    kind = plan.settings["kind"]
    if kind not in PROJECTED:
        return None
    if kind == "binary":
        # A random rotation spreads what a vector holds evenly over its bits.
        square = np.random.default_rng(plan.seed).standard_normal((rows.width, rows.width))
        rotation: np.ndarray = np.linalg.qr(square)[0].astype(np.float32)
        return rotation
    sample = rows.sample(ENERGY_SAMPLE, seed=plan.seed).astype(np.float64)
    # Not centred: it is the inner product that is to be kept.
    energies, directions = np.linalg.eigh(sample.T @ sample)
    width = plan.settings["width"] or energy_width(energies[::-1])
    chosen: np.ndarray = directions[:, ::-1][:, :width].astype(np.float32)
    return np.ascontiguousarray(chosen)


def _sample_size(settings: Mapping[str, Any]) -> int:
    return max(QUANTISER_SAMPLE, TRAINED_ON * int(settings.get("lists", 0)))


def _empty(faiss: Any, width: int, plan: Plan) -> Any:
    """Return an index of a kind without rows."""
    product, quantiser = faiss.METRIC_INNER_PRODUCT, faiss.ScalarQuantizer
    kind = plan.settings["kind"]
    if kind == "binary":
        return faiss.IndexRaBitQ(width, product)
    if kind == "hnsw":
        index = faiss.IndexHNSWSQ(width, quantiser.QT_fp16, plan.settings["links"], product)
        index.hnsw.efConstruction = BUILD_EFFORT
        return index
    if kind == "ivf":
        centres = faiss.IndexFlatIP(width)
        index = faiss.IndexIVFScalarQuantizer(
            centres, width, plan.settings["lists"], quantiser.QT_8bit, product, False
        )
        # Python's object would free the centres with itself.
        centres.this.disown()
        index.own_fields = True
        index.cp.niter, index.cp.seed = ROUNDS, plan.seed + 1
        index.cp.min_points_per_centroid = 1
        index.cp.max_points_per_centroid = TRAINED_ON
        return index
    code = quantiser.QT_8bit if kind == "int8" else quantiser.QT_fp16
    return faiss.IndexScalarQuantizer(width, code, product)
