"""A Qdrant collection, in a folder of the client's local mode or on a server.

    qdrant:FOLDER#COLLECTION
    qdrant:http://HOST:PORT#COLLECTION

Options: `vector=` names the vector where the collection has named ones; `id=` a field of the
payload that holds the ids, else the points' own are taken; `value=` a field of texts or paths.
Fields within fields are joined by dots; a leading "payload." may be written.

The client's local mode locks its folder and repairs what it finds, so a folder is opened as a
snapshot: a private copy of this one collection, deleted on `close`. It also unpickles every point
without asking what is in it; the copy is looked through first, and refused where it names
anything but Qdrant's own models. A server is asked to read and search, nothing else.
"""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import sqlite3
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np

from modalign.errors import CorruptError, DataError, MismatchError, import_extra
from modalign.gallery import Hits
from modalign.storage import read_json
from modalign.stores.contract import (
    IDS_AT_ONCE,
    Facts,
    Metric,
    Store,
    check_collection,
    check_column,
    check_filled,
    check_metric,
    chunks,
    engine_errors,
    existing_path,
    folder_files,
    padded_hits,
    unique_places,
)
from modalign.stores.registry import StoreSpec
from modalign.stores.snapshot import Snapshot

METRICS: dict[str, Metric] = {"Cosine": "cosine", "Euclid": "l2", "Dot": "dot"}
META_FILE = "meta.json"
POINTS_FILE = "storage.sqlite"
QUERIES_AT_ONCE = 64
TIMEOUT_S = 60
# What a pickled point may name besides Qdrant's models: all of it is data.
PLAIN = (("uuid", "UUID"), ("datetime", "datetime"), ("datetime", "timezone"))


class QdrantStore(Store):
    """One collection, through Qdrant's client."""

    def __init__(
        self,
        facts: Facts,
        client: Any,
        *,
        names: Mapping[str, str],
        closing: ExitStack,
        folder: Path | None = None,
    ) -> None:
        """Take a client that has the collection, and the folder it was copied from."""
        super().__init__(facts, closing=closing)
        self._client = client
        self._names = names
        self._folder = folder

    def ids_sample(self, limit: int) -> list[str]:
        """Return the first ids."""
        field = self._names.get("id")
        with engine_errors(self.facts.where, *driver_errors()):
            points, _ = self._client.scroll(
                self.facts.collection, limit=limit, with_payload=[field] if field else False
            )
        return [name for point in points if (name := self._id_of(point)) is not None]

    def read(self, ids: Sequence[str]) -> tuple[list[str], np.ndarray]:
        """Ask for points, a thousand at a time."""
        vector = self._names.get("vector")
        found, rows = [], [np.zeros((0, self.width), np.float32)]
        for name, point in self._points(ids, with_vectors=[vector] if vector else True):
            values = point.vector.get(vector) if vector and point.vector else point.vector
            if not values or len(values) != self.width:
                raise DataError(
                    f"{self.facts.where}: id {name!r} has {len(values or [])} numbers, expected a "
                    f"vector of width {self.width}; mend or drop the point",
                    id=name,
                )
            found.append(name)
            rows.append(np.asarray(values, np.float32)[None])
        return found, np.concatenate(rows)

    def nearest(self, queries: np.ndarray, k: int) -> Hits:
        """Search by the collection's own index, or in local mode through all points."""
        models = import_extra("qdrant_client.models", extra="qdrant")
        field = self._names.get("id")
        found: list[list[tuple[str, int, float]]] = []
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            requests = [
                models.QueryRequest(
                    query=query,
                    using=self._names.get("vector"),
                    limit=k,
                    with_payload=[field] if field else False,
                )
                for query in queries[start : start + QUERIES_AT_ONCE].tolist()
            ]
            with engine_errors(self.facts.where, *driver_errors()):
                answers = self._client.query_batch_points(self.facts.collection, requests)
            found += [
                [
                    (name, -1, self._similarity(point.score))
                    for point in answer.points
                    if (name := self._id_of(point)) is not None
                ]
                for answer in answers
            ]
        return padded_hits(found, k)

    def read_values(self, ids: Sequence[str]) -> Mapping[str, str | None]:
        """Return what stands in the payload's field that `value=` names."""
        field = self._names.get("value")
        if field is None:
            return {}
        return {
            name: None if (value := _field(point.payload, field)) is None else str(value)
            for name, point in self._points(ids, with_payload=[field])
        }

    def files(self) -> list[Path]:
        """Return every file of the folder; none of a server."""
        return folder_files(self._folder) if self._folder else []

    @property
    def root(self) -> Path:
        """The folder; nothing is relative to it of a server."""
        return self._folder or Path()

    def _points(
        self, ids: Sequence[str], *, with_payload: Any = False, with_vectors: Any = False
    ) -> Iterator[tuple[str, Any]]:
        """Yield (id, point) of what is there."""
        for part in chunks(ids):
            names = {key: name for name in part if (key := self._key_of(name)) is not None}
            with engine_errors(self.facts.where, *driver_errors()):
                points = self._client.retrieve(
                    self.facts.collection,
                    ids=list(names),
                    with_payload=with_payload,
                    with_vectors=with_vectors,
                )
            for point in points:
                yield names[point.id], point

    def _key_of(self, name: str) -> Any:
        """Return the point's own id, a whole number or a UUID as text; None where it is none."""
        if "id" in self._names:
            return self._keys.get(name)
        if name.isdecimal() and str(int(name)) == name:
            return int(name)
        try:
            return name if str(UUID(name)) == name else None
        except ValueError:
            return None

    def _id_of(self, point: Any) -> str | None:
        """Return a point's id in our sense; None where its payload has none."""
        field = self._names.get("id")
        value = point.id if field is None else _field(point.payload, field)
        return None if value is None else str(value)

    @cached_property
    def _keys(self) -> dict[str, Any]:
        """The points' own ids by those in the payload; every payload is read for it, once."""
        field, offset = self._names["id"], None
        names: list[str] = []
        keys: list[Any] = []
        while True:
            with engine_errors(self.facts.where, *driver_errors()):
                points, offset = self._client.scroll(
                    self.facts.collection,
                    limit=10 * IDS_AT_ONCE,
                    offset=offset,
                    with_payload=[field],
                )
            for point in points:
                if (name := self._id_of(point)) is not None:
                    names.append(name)
                    keys.append(point.id)
            if offset is None:
                break
        place = unique_places(names, where=self.facts.where)
        return {name: keys[row] for name, row in place.items()}

    def _similarity(self, score: float) -> float:
        # Qdrant's score of Euclid is the distance, not its square.
        return -(score**2) if self.metric == "l2" else score


def open_collection(spec: StoreSpec) -> Store:
    """Open a collection; see `open_store`."""
    if spec.path.startswith(("http://", "https://")):
        return _open_server(spec)
    folder = existing_path(spec.path, spec=spec.text, folder=True)
    import_extra("qdrant_client", extra="qdrant")
    meta = _meta(folder, spec)
    name = check_collection(spec.collection, meta["collections"], spec=spec.text, what="collection")
    points = Path("collection", name)
    with ExitStack() as opened:
        snapshot = Snapshot(folder, wanted=lambda file: file.is_relative_to(points))
        opened.callback(snapshot.close)
        _write_meta(snapshot.folder, meta, name)
        with engine_errors(spec.where, *driver_errors()):
            _check_pickles(snapshot.folder / points / POINTS_FILE, where=spec.where)
            client = connect(path=str(snapshot.folder))
        opened.callback(client.close)
        facts, names = _facts(client, spec, opened="snapshot")
        closing = opened.pop_all()
    return QdrantStore(facts, client, names=names, closing=closing, folder=folder)


def _open_server(spec: StoreSpec) -> Store:
    import_extra("qdrant_client", extra="qdrant")
    with ExitStack() as opened:
        try:
            client = connect(url=spec.path, timeout=TIMEOUT_S, check_compatibility=False)
            opened.callback(client.close)
            known = [each.name for each in client.get_collections().collections]
        except driver_errors() as error:
            raise DataError(
                f"{spec.path}: does not answer as Qdrant ({' '.join(str(error).split())[:160]}), "
                "expected a server; check the address, and that it runs",
                url=spec.path,
            ) from error
        check_collection(spec.collection, known, spec=spec.text, what="collection")
        facts, names = _facts(client, spec, opened="server")
        closing = opened.pop_all()
    return QdrantStore(facts, client, names=names, closing=closing)


def connect(**options: Any) -> Any:
    """Return a client of a server or of a folder, without its warnings."""
    qdrant = import_extra("qdrant_client", extra="qdrant")
    with warnings.catch_warnings():
        # Told of a collection of more than 20,000 points: whoever wrote it has read it.
        warnings.filterwarnings("ignore", "Local mode is not recommended", UserWarning)
        return qdrant.QdrantClient(**options)


def _facts(client: Any, spec: StoreSpec, *, opened: Any) -> tuple[Facts, dict[str, str]]:
    """Return what the collection is, and the names of its vector and its payload's fields."""
    with engine_errors(spec.where, *driver_errors()):
        vectors = client.get_collection(spec.collection).config.params.vectors
        count = client.count(spec.collection).count
    names = {
        option: name.removeprefix("payload.") if option in ("id", "value") else name
        for option, name in spec.options.items()
        if option != "metric"
    }
    if isinstance(vectors, Mapping):
        check_column(names.get("vector", ""), vectors, option="vector", where=spec.where)
        vectors = vectors[names["vector"]]
    elif "vector" in names:
        raise DataError(
            f"{spec.where}: has no {names['vector']!r}, expected its one vector, which has no "
            "name; leave vector= out",
            name=names["vector"],
        )
    check_filled(count, where=spec.where)
    if vectors.multivector_config is not None:
        raise MismatchError(f"{spec.where}: holds several vectors a point, expected one each")
    metric = check_metric(
        spec.options.get("metric"), vectors.distance.value, known=METRICS, where=spec.where
    )
    facts = Facts(
        spec.text,
        spec.kind,
        spec.where,
        width=vectors.size,
        metric=metric,
        count=count,
        collection=spec.collection,
        opened=opened,
    )
    return facts, names


def _field(payload: Mapping[str, Any] | None, name: str) -> Any:
    """Return a field of a payload, or of a field in it; None where there is none."""
    value: Any = payload
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


# The folder of local mode -----------------------------------------------------------------


def _meta(folder: Path, spec: StoreSpec) -> dict[str, Any]:
    path = folder / META_FILE
    if not path.is_file():
        raise DataError(
            f"{folder}: holds no {META_FILE}, expected a folder of Qdrant's local mode for "
            f"{spec.text}; check the path. A server's own folder is read through the server",
            file=folder,
        )
    meta = read_json(path)
    if not isinstance(meta, dict) or not isinstance(meta.get("collections"), dict):
        raise CorruptError(
            f"{path}: lists no collections, expected what Qdrant wrote; restore it from a backup",
            file=path,
        )
    return meta


def _write_meta(folder: Path, meta: Mapping[str, Any], name: str) -> None:
    """Tell the client of the one collection that was copied."""
    one = {"collections": {name: meta["collections"][name]}, "aliases": {}}
    (folder / META_FILE).write_text(json.dumps(one), encoding="utf-8")


def _check_pickles(path: Path, *, where: str) -> None:
    """Raise a CorruptError where loading a point would run anything but Qdrant's models."""
    if not path.is_file():
        raise CorruptError(f"{where}: has no {POINTS_FILE}; restore it from a backup", file=path)
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
        for (data,) in database.execute("SELECT point FROM points"):
            _PlainUnpickler(io.BytesIO(data)).load()


class _PlainUnpickler(pickle.Unpickler):
    """Makes points, and refuses whatever else a pickle asks for."""

    def find_class(self, module: str, name: str) -> Any:
        """Return one of Qdrant's models, or a plain value's class."""
        if (module, name) in PLAIN:
            return super().find_class(module, name)
        if module.startswith("qdrant_client.") and "." not in name:
            models = import_extra("qdrant_client.models", extra="qdrant")
            found = super().find_class(module, name)
            # PointStruct's own base: a class of data, not a function.
            if isinstance(found, type) and issubclass(found, models.PointStruct.__bases__):
                return found
        raise pickle.UnpicklingError(f"a point asks to run {module}.{name}")


def driver_errors() -> tuple[type[Exception], ...]:
    """Return what the client raises on broken files and from servers."""
    errors = import_extra("qdrant_client.http.exceptions", extra="qdrant")
    stored = (sqlite3.Error, pickle.UnpicklingError, EOFError, AttributeError, TypeError)
    return errors.ApiException, ValueError, RuntimeError, OSError, *stored
