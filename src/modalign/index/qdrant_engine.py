"""Qdrant: a collection on a server, or in a folder of the client's local mode.

A server (`url`) searches a graph of its own; its key, where it wants one, is read from the
environment, $QDRANT_API_KEY. The local mode looks at every row and reads all of them when it is
opened, so it is for small sets. It keeps its points as pickles: they are looked through, as those
of any store are, before it may read them.
"""

from __future__ import annotations

import os
import time
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
)
from modalign.stores import Store, StoreSpec
from modalign.stores.qdrant_collection import connect, driver_errors, open_collection

SETTINGS = ("url",)
COLLECTION = "rows"
ADDED_AT_ONCE = 512
SEARCHED = (32, 64, 128, 256, 512, 1024)
QUERIES_AT_ONCE = 64
TIMEOUT_S = 60
LOOK_EVERY_S = 0.2
KEY_VARIABLE = "QDRANT_API_KEY"


class QdrantEngine(Engine):
    """One collection of either sort."""

    @classmethod
    def settle(cls, settings: Mapping[str, Any], *, rows: int, width: int) -> dict[str, Any]:
        """Return the server's address, where there is one."""
        import_extra("qdrant_client", extra="qdrant")
        for name in settings:
            check_known(name, SETTINGS, what="qdrant: setting")
        if "url" in settings and not str(settings["url"]).startswith(("http://", "https://")):
            raise UsageError(
                f"qdrant: url={settings['url']}, expected http://HOST:PORT; leave it out for a "
                "local folder",
                url=settings["url"],
            )
        return {name: str(value) for name, value in settings.items()}

    @classmethod
    def build(cls, folder: Path, rows: UnitRows, plan: Plan) -> None:
        """Make the collection and upload all rows; wait until a server has indexed them."""
        models = import_extra("qdrant_client.models", extra="qdrant")
        name = _collection(plan)
        with building_engine(_where(folder, plan), *driver_errors()):
            client = _connected(folder, plan)
            try:
                vectors = models.VectorParams(size=rows.width, distance=models.Distance.COSINE)
                client.create_collection(name, vectors_config=vectors)
                done = 0
                for block in grouped(rows.blocks(), ADDED_AT_ONCE):
                    client.upsert(
                        name,
                        models.Batch(
                            ids=list(range(done, done + len(block))), vectors=block.tolist()
                        ),
                        wait=True,
                    )
                    done += len(block)
                    plan.progress("qdrant: rows", done, len(rows), "")
                _wait_for(client, name, models)
            finally:
                client.close()

    @classmethod
    def open(cls, folder: Path, *, rows: int, width: int, plan: Plan) -> Engine:
        """Open a local folder as a store is, or connect to the server."""
        if "url" not in plan.settings:
            # Not by a spec, which a folder's name may not fit in.
            text = f"qdrant:{folder}#{COLLECTION}"
            store = open_collection(StoreSpec(text, "qdrant", str(folder), COLLECTION, {}))
            with reading_engine(str(folder), RuntimeError):
                _check_size((store.count, store.width), (rows, width))
            return LocalQdrant(store)
        with reading_engine(_where(folder, plan), *driver_errors()):
            client = _connected(folder, plan)
            name = _collection(plan)
            size = client.get_collection(name).config.params.vectors.size
            _check_size((client.count(name).count, size), (rows, width))
        return QdrantServer(client, name, _where(folder, plan))

    @classmethod
    def discard(cls, plan: Plan) -> None:
        """Delete a server's collection."""
        if "url" in plan.settings:
            with reading_engine(_where(Path(), plan), *driver_errors()):
                client = _connected(Path(), plan)
                try:
                    client.delete_collection(_collection(plan))
                finally:
                    client.close()


class LocalQdrant(QdrantEngine):
    """A folder, read as a store that somebody else made is."""

    def __init__(self, store: Store) -> None:
        """Take an open store."""
        self._store = store

    def efforts(self) -> Sequence[Effort]:
        """Return the one there is: every row is looked at."""
        return [{"oversample": 2}]

    def candidates(self, queries: np.ndarray, k: int, effort: Effort) -> np.ndarray:
        """Return the nearest by the client's own sums."""
        hits = self._store.search(queries, k * effort["oversample"])
        found = [[int(name) if name else -1 for name in names] for names in hits.ids]
        return np.array(found, np.int64).reshape(len(queries), -1)

    def memory_bytes(self) -> int:
        """Return the size of the vectors, which are all in memory as float32."""
        return self._store.count * self._store.width * 4

    def close(self) -> None:
        """Remove the private copy."""
        self._store.close()


class QdrantServer(QdrantEngine):
    """A collection behind an address."""

    def __init__(self, client: Any, name: str, where: str) -> None:
        """Take a client that has found the collection."""
        self._client = client
        self._name = name
        self._where = where

    def efforts(self) -> Sequence[Effort]:
        """Return how many nodes of the graph the server looks at."""
        return [{"hnsw_ef": size, "oversample": 2} for size in SEARCHED]

    def candidates(self, queries: np.ndarray, k: int, effort: Effort) -> np.ndarray:
        """Ask the server, 64 queries at once."""
        models = import_extra("qdrant_client.models", extra="qdrant")
        wanted = k * effort["oversample"]
        found = np.full((len(queries), wanted), -1, np.int64)
        chosen = models.SearchParams(hnsw_ef=max(effort["hnsw_ef"], wanted))
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            requests = [
                models.QueryRequest(query=query, limit=wanted, params=chosen)
                for query in queries[start : start + QUERIES_AT_ONCE].tolist()
            ]
            with reading_engine(self._where, *driver_errors()):
                answers = self._client.query_batch_points(self._name, requests)
            for query, answer in enumerate(answers, start):
                places = [point.id for point in answer.points]
                found[query, : len(places)] = places
        return found

    def memory_bytes(self) -> int:
        """Return nothing: it is the server's."""
        return 0

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def _collection(plan: Plan) -> str:
    return f"modalign-{plan.name}" if "url" in plan.settings else COLLECTION


def _where(folder: Path, plan: Plan) -> str:
    url = plan.settings.get("url")
    return f"{url}#{_collection(plan)}" if url else str(folder)


def _connected(folder: Path, plan: Plan) -> Any:
    url = plan.settings.get("url")
    if url is None:
        return connect(path=str(folder))
    return connect(
        url=url,
        api_key=os.environ.get(KEY_VARIABLE),
        timeout=TIMEOUT_S,
        check_compatibility=False,
    )


def _wait_for(client: Any, name: str, models: Any) -> None:
    """Wait until a collection's graph is finished."""
    while client.get_collection(name).status == models.CollectionStatus.YELLOW:
        time.sleep(LOOK_EVERY_S)


def _check_size(found: tuple[int, int], expected: tuple[int, int]) -> None:
    if found != expected:
        raise RuntimeError(f"holds {found[0]} rows of width {found[1]}")
