"""A Chroma collection in a folder.

    chroma:FOLDER#COLLECTION     `value=` names a field of the metadata; without it the documents
                                 are the texts

Chroma opens its database to write: it migrates, and compacts what was added. So a folder is opened
as a snapshot, a private copy deleted on `close`. Its search is approximate (HNSW).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from modalign.errors import CorruptError, DataError, import_extra
from modalign.gallery import Hits
from modalign.stores.contract import (
    Facts,
    Metric,
    Store,
    check_collection,
    check_filled,
    check_metric,
    chunks,
    engine_errors,
    existing_path,
    folder_files,
    padded_hits,
    similarity_of,
)
from modalign.stores.registry import StoreSpec
from modalign.stores.snapshot import Snapshot

METRICS: dict[str, Metric] = {"cosine": "cosine", "l2": "l2", "ip": "dot"}
DATABASE_FILE = "chroma.sqlite3"
QUERIES_AT_ONCE = 64


class ChromaStore(Store):
    """One collection, through Chroma's client on a copy."""

    def __init__(
        self,
        facts: Facts,
        client: Any,
        *,
        closing: ExitStack,
        folder: Path,
        value: str | None = None,
    ) -> None:
        """Take a client on a snapshot that has the collection, and the folder of the store."""
        super().__init__(facts, closing=closing)
        self._collection = _collection(client, facts.collection)
        self._folder = folder
        self._value = value

    def ids_sample(self, limit: int) -> list[str]:
        """Return the first ids."""
        with engine_errors(self.facts.where, *_broken()):
            return list(self._collection.get(limit=limit, include=[])["ids"])

    def read(self, ids: Sequence[str]) -> tuple[list[str], np.ndarray]:
        """Ask for vectors, a thousand at a time."""
        found: list[str] = []
        parts = [np.zeros((0, self.width), np.float32)]
        for part in self._parts(ids, "embeddings"):
            found += part["ids"]
            parts.append(np.asarray(part["embeddings"], np.float32))
        return found, np.concatenate(parts)

    def nearest(self, queries: np.ndarray, k: int) -> Hits:
        """Search by the collection's index."""
        found: list[list[tuple[str, int, float]]] = []
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            with engine_errors(self.facts.where, *_broken()):
                answer = self._collection.query(
                    query_embeddings=queries[start : start + QUERIES_AT_ONCE],
                    n_results=k,
                    include=["distances"],
                )
            for ids, distances in zip(answer["ids"], answer["distances"], strict=True):
                hits = zip(ids, distances, strict=True)
                found.append([(name, -1, similarity_of(d, self.metric)) for name, d in hits])
        return padded_hits(found, k)

    def read_values(self, ids: Sequence[str]) -> Mapping[str, str | None]:
        """Return the documents, or what stands in the metadata's field that `value=` names."""
        values: dict[str, str | None] = {}
        kept = "documents" if self._value is None else "metadatas"
        for part in self._parts(ids, kept):
            for name, value in zip(part["ids"], part[kept], strict=True):
                if self._value is not None:
                    value = (value or {}).get(self._value)
                values[name] = None if value is None else str(value)
        return values

    def files(self) -> list[Path]:
        """Return every file of the folder."""
        return folder_files(self._folder)

    @property
    def root(self) -> Path:
        """The folder."""
        return self._folder

    def _parts(self, ids: Sequence[str], kept: str) -> Iterator[Any]:
        for part in chunks(ids):
            with engine_errors(self.facts.where, *_broken()):
                found = self._collection.get(ids=list(part), include=[kept])
            if found["ids"]:
                yield found


def open_collection(spec: StoreSpec) -> Store:
    """Open a collection; see `open_store`."""
    folder = existing_path(spec.path, spec=spec.text, folder=True)
    import_extra("chromadb", extra="chroma")
    if not (folder / DATABASE_FILE).is_file():
        raise DataError(
            f"{folder}: holds no {DATABASE_FILE}, expected a folder of Chroma for {spec.text}; "
            "check the path",
            file=folder,
        )
    with ExitStack() as opened:
        snapshot = Snapshot(folder)
        opened.callback(snapshot.close)
        with engine_errors(spec.where, *_broken()):
            client = _client(snapshot.folder)
        opened.callback(client.close)
        facts = _facts(client, spec)
        closing = opened.pop_all()
    value = spec.options.get("value")
    return ChromaStore(facts, client, closing=closing, folder=folder, value=value)


def _client(folder: Path) -> Any:
    chromadb = import_extra("chromadb", extra="chroma")
    config = import_extra("chromadb.config", extra="chroma")
    # What is searched for is nobody else's business.
    settings = config.Settings(anonymized_telemetry=False)
    return chromadb.PersistentClient(str(folder), settings=settings)


def _collection(client: Any, name: str | None) -> Any:
    # Vectors are given: no embedding function is made, which could load a model.
    return client.get_collection(name, embedding_function=None)


def _facts(client: Any, spec: StoreSpec) -> Facts:
    with engine_errors(spec.where, *_broken()):
        known = [each.name for each in client.list_collections()]
    name = check_collection(spec.collection, known, spec=spec.text, what="collection")
    with engine_errors(spec.where, *_broken()):
        collection = _collection(client, name)
        count = collection.count()
        own = _space(collection)
        check_filled(count, where=spec.where)
        width = len(collection.get(limit=1, include=["embeddings"])["embeddings"][0])
    return Facts(
        spec.text,
        spec.kind,
        spec.where,
        width=width,
        metric=check_metric(spec.options.get("metric"), own, known=METRICS, where=spec.where),
        count=count,
        collection=name,
        opened="snapshot",
    )


def _space(collection: Any) -> str:
    """Return Chroma's word for the metric."""
    with warnings.catch_warnings():
        # A collection of vectors that came from outside has no embedding function on record,
        # which Chroma calls a legacy configuration.
        warnings.filterwarnings("ignore", "legacy embedding function", DeprecationWarning)
        configuration = collection.configuration
    for index in ("hnsw", "spann"):
        if configuration.get(index):
            return str(configuration[index]["space"])
    raise CorruptError(f"{collection.name}: its configuration names no metric; write it again")


def _broken() -> tuple[type[Exception], ...]:
    errors = import_extra("chromadb.errors", extra="chroma")
    return errors.ChromaError, ValueError, RuntimeError, OSError, TypeError, KeyError
