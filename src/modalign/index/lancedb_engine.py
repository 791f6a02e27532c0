"""LanceDB: a table on the disk, or in object storage where `uri` names one.

    flat   every row is looked at, on the disk
    ivf    lists around centres, about a bit a number (IVF_RQ)
    hnsw   graphs of near neighbours, a byte a number (IVF_HNSW_SQ)

The table holds a float32 copy of the vectors and their places, nothing else: LanceDB computes in
what it stores, and of float16 an index takes four times as long to build. In object storage,
LanceDB finds credentials and regions in the environment, as its own documentation says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
from modalign.stores.contract import folder_files

TABLE = "rows"
SETTINGS = ("kind", "uri", "lists")
FLAT_ROWS = 5_000
# A graph is made of each part of so many rows.
GRAPH_ROWS = 1_000_000
LINKS, BUILD_EFFORT = 20, 128
TRAINED_ON, ROUNDS = 64, 10
ADDED_AT_ONCE = 8192
QUERIES_AT_ONCE = 64
PROBED = (4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
SEARCHED = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768)
BROKEN = (RuntimeError, ValueError, OSError)


class LanceEngine(Engine):
    """One table."""

    kinds = ("auto", "flat", "ivf", "hnsw")

    def __init__(self, table: Any, where: str, settings: Mapping[str, Any], *, size: int) -> None:
        """Take what `open` has found."""
        self._table = table
        self._where = where
        self._settings = settings
        self._size = size

    @classmethod
    def settle(cls, settings: Mapping[str, Any], *, rows: int, width: int) -> dict[str, Any]:
        """Return the kind that such a number of rows wants.

        Graphs answer no faster than lists here, and take eight times as long to build.
        """
        import_extra("lancedb", extra="lancedb")
        for name in settings:
            check_known(name, SETTINGS, what="lancedb: setting")
        kind = settings.get("kind", "auto")
        check_known(kind, cls.kinds, what="lancedb: kind")
        if kind == "auto":
            kind = "flat" if rows < FLAT_ROWS else "ivf"
        settled: dict[str, Any] = {"kind": kind}
        if "uri" in settings:
            settled["uri"] = str(settings["uri"])
        if kind == "ivf":
            usual = max(1, min(rows // 256, int(2 * rows**0.5)))
            settled["lists"] = whole_setting(
                settings, "lists", usual, allowed=range(1, max(2, rows + 1))
            )
        elif "lists" in settings:
            raise UsageError(f"lancedb: kind {kind} takes no lists; leave it out", kind=kind)
        return settled

    @classmethod
    def build(cls, folder: Path, rows: UnitRows, plan: Plan) -> None:
        """Write the table, then its index."""
        pyarrow = import_extra("pyarrow", extra="lancedb")
        schema = pyarrow.schema(
            [("place", pyarrow.int64()), ("vector", pyarrow.list_(pyarrow.float32(), rows.width))]
        )
        with building_engine(_where(folder, plan), *BROKEN):
            table = _connected(folder, plan).create_table(
                _table_name(plan), data=_batches(rows, plan), schema=schema
            )
            config = _config(plan, rows=len(rows))
            if config is not None:
                plan.progress("lancedb: index", 0, 1, "")
                table.create_index("vector", config=config)
                plan.progress("lancedb: index", 1, 1, "")

    @classmethod
    def open(cls, folder: Path, *, rows: int, width: int, plan: Plan) -> LanceEngine:
        """Open the table; its index is read as it is searched."""
        where = _where(folder, plan)
        with reading_engine(where, *BROKEN):
            table = _connected(folder, plan).open_table(_table_name(plan))
            found = (table.count_rows(), table.schema.field("vector").type.list_size)
            if found != (rows, width):
                raise RuntimeError(f"holds {found[0]} rows of width {found[1]}")
        indices = [file for file in folder_files(folder) if "_indices" in file.parts]
        size = sum(file.stat().st_size for file in indices)
        return cls(table, where, plan.settings, size=size)

    def efforts(self) -> Sequence[Effort]:
        """Return how many lists or graph nodes are looked at."""
        if self._settings["kind"] == "flat":
            return [{"oversample": 2}]
        if self._settings["kind"] == "hnsw":
            return [{"ef": size, "oversample": 4} for size in SEARCHED]
        lists = self._settings["lists"]
        probed = [number for number in PROBED if number < lists] + [lists]
        ladder = [{"nprobe": n, "oversample": 4 if n < 16 else 16} for n in probed]
        return [*ladder, *({"nprobe": lists, "oversample": times} for times in (32, 64))]

    def candidates(self, queries: np.ndarray, k: int, effort: Effort) -> np.ndarray:
        """Return the nearest by what the index holds, 64 queries at once."""
        wanted = k * effort["oversample"]
        found = np.full((len(queries), wanted), -1, np.int64)
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            part = queries[start : start + QUERIES_AT_ONCE]
            with reading_engine(self._where, *BROKEN):
                hits = self._asked(part if len(part) > 1 else part[0], wanted, effort).to_arrow()
            places = hits["place"].to_numpy()
            # One query has no column that numbers it.
            numbers = (
                hits["query_index"].to_numpy() if len(part) > 1 else np.zeros(len(places), int)
            )
            for query in range(len(part)):
                own = places[numbers == query]
                found[start + query, : len(own)] = own
        return found

    def _asked(self, queries: np.ndarray, wanted: int, effort: Effort) -> Any:
        asked = (
            self._table.search(queries, vector_column_name="vector")
            .distance_type("dot")
            .select(["place", "_distance"])
            .limit(wanted)
        )
        if "nprobe" in effort:
            return asked.nprobes(effort["nprobe"])
        return asked.ef(max(effort["ef"], wanted)) if "ef" in effort else asked

    def memory_bytes(self) -> int:
        """Return the size of the index's files, which LanceDB keeps what it read of."""
        return self._size

    @classmethod
    def discard(cls, plan: Plan) -> None:
        """Drop a table that lies elsewhere."""
        if "uri" in plan.settings:
            with reading_engine(_where(Path(), plan), *BROKEN):
                _connected(Path(), plan).drop_table(_table_name(plan), ignore_missing=True)


def _where(folder: Path, plan: Plan) -> str:
    return f"{plan.settings['uri']}#{plan.name}" if "uri" in plan.settings else str(folder)


def _table_name(plan: Plan) -> str:
    return plan.name if "uri" in plan.settings else TABLE


def _connected(folder: Path, plan: Plan) -> Any:
    lancedb = import_extra("lancedb", extra="lancedb")
    return lancedb.connect(plan.settings.get("uri", str(folder)))


def _batches(rows: UnitRows, plan: Plan) -> Iterator[Any]:
    """Yield all rows as batches of Arrow."""
    pyarrow = import_extra("pyarrow", extra="lancedb")
    done = 0
    for block in grouped(rows.blocks(), ADDED_AT_ONCE):
        flat = pyarrow.array(block.reshape(-1))
        places = pyarrow.array(np.arange(done, done + len(block)))
        vectors = pyarrow.FixedSizeListArray.from_arrays(flat, rows.width)
        yield pyarrow.record_batch([places, vectors], names=["place", "vector"])
        done += len(block)
        plan.progress("lancedb: rows", done, len(rows), "")


def _config(plan: Plan, *, rows: int) -> Any:
    """Return what LanceDB builds an index by; None where every row is looked at."""
    kinds = import_extra("lancedb.index", extra="lancedb")
    usual = {"distance_type": "dot", "sample_rate": TRAINED_ON, "max_iterations": ROUNDS}
    if plan.settings["kind"] == "ivf":
        return kinds.IvfRq(num_partitions=plan.settings["lists"], **usual)
    if plan.settings["kind"] == "hnsw":
        parts = -(-rows // GRAPH_ROWS)
        return kinds.HnswSq(num_partitions=parts, m=LINKS, ef_construction=BUILD_EFFORT, **usual)
    return None
