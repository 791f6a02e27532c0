"""Stores of others are read and searched by their own engines, and never changed."""

from __future__ import annotations

import json
import os
import pickle
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from uuid import UUID

import numpy as np
import pytest

from modalign.errors import (
    CorruptError,
    DataError,
    MismatchError,
    MissingExtraError,
    ShapeError,
    UsageError,
)
from modalign.storage import sha256_file
from modalign.stores import Store, StoreSpec, check_cosine, length_spread, open_store
from modalign.stores.snapshot import Snapshot

ROWS, WIDTH = 40, 6
IDS = [f"it's {row}" for row in range(ROWS)]
TEXTS = [f"caption {row}" for row in range(ROWS)]
VECTORS = np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype(np.float32)
QUERIES = np.random.default_rng(1).normal(size=(3, WIDTH)).astype(np.float32)
# Engines round the cosine, and those that store unit vectors round twice.
ROUNDING = 2e-6


# Writers: as each engine's own users write --------------------------------------------------


def write_npy(folder: Path, vectors: np.ndarray, ids: Sequence[str], metric: str) -> str:
    np.save(folder / "v.npy", vectors)
    (folder / "v.ids.txt").write_text("".join(f"{name}\n" for name in ids), "utf-8")
    return f"npy:{folder / 'v.npy'}"


def write_npz(folder: Path, vectors: np.ndarray, ids: Sequence[str], metric: str) -> str:
    np.savez(folder / "v.npz", vectors=vectors, ids=np.array(ids), text=np.array(TEXTS[: len(ids)]))
    return f"npz:{folder / 'v.npz'}?value=text"


def write_parquet(folder: Path, vectors: np.ndarray, ids: Sequence[str], metric: str) -> str:
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra [parquet] is not installed")
    table = arrow_table(vectors, ids)
    parquet.write_table(table, folder / "v.parquet", row_group_size=7)
    return f"parquet:{folder / 'v.parquet'}?value=text"


def arrow_table(vectors: np.ndarray, ids: Sequence[str]):
    import pyarrow

    rows = pyarrow.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1])
    return pyarrow.table({"id": list(ids), "vector": rows, "text": TEXTS[: len(ids)]})


def write_faiss(folder: Path, vectors: np.ndarray, ids: Sequence[str], metric: str) -> str:
    faiss = importorskip("faiss", extra="faiss")
    kind = faiss.IndexFlatL2 if metric == "l2" else faiss.IndexFlatIP
    index = kind(vectors.shape[1])
    index.add(vectors)
    faiss.write_index(index, str(folder / "v.index"))
    (folder / "v.ids.txt").write_text("".join(f"{name}\n" for name in ids), "utf-8")
    return f"faiss:{folder / 'v.index'}"


def write_lancedb(folder: Path, vectors: np.ndarray, ids: Sequence[str], metric: str) -> str:
    lancedb = importorskip("lancedb", extra="lancedb")
    lancedb.connect(str(folder / "lance")).create_table("captions", arrow_table(vectors, ids))
    return f"lancedb:{folder / 'lance'}#captions?value=text&metric={metric}"


def write_lancedb_index(folder: Path, vectors: np.ndarray, ids: Sequence[str], metric: str) -> str:
    lancedb = importorskip("lancedb", extra="lancedb")
    table = lancedb.connect(str(folder / "lance")).create_table(
        "captions", arrow_table(vectors, ids)
    )
    config = lancedb.index.IvfFlat(distance_type=metric, num_partitions=1)
    table.create_index("vector", config=config)
    return f"lancedb:{folder / 'lance'}#captions?value=text"


def write_qdrant(
    folder: Path, vectors: np.ndarray, ids: Sequence[str], metric: str, name: str = ""
) -> str:
    qdrant = importorskip("qdrant_client", extra="qdrant")
    models = qdrant.models
    distance = {"cosine": "Cosine", "l2": "Euclid", "dot": "Dot"}[metric]
    config = models.VectorParams(size=vectors.shape[1], distance=models.Distance(distance))
    client = qdrant.QdrantClient(path=str(folder / "qdrant"))
    for collection in ("captions", "others"):
        client.create_collection(collection, vectors_config={name: config} if name else config)
    points = [
        models.PointStruct(
            id=row,
            vector={name: vectors[row].tolist()} if name else vectors[row].tolist(),
            payload={"key": {"name": ids[row]}, "text": TEXTS[row]},
        )
        for row in range(len(ids))
    ]
    client.upsert("captions", points)
    client.close()
    # As in a folder that was copied from elsewhere: the client would make it anew.
    (folder / "qdrant" / ".lock").unlink()
    return f"qdrant:{folder / 'qdrant'}#captions?id=payload.key.name&value=text"


def write_qdrant_named(folder: Path, vectors: np.ndarray, ids: Sequence[str], metric: str) -> str:
    return write_qdrant(folder, vectors, ids, metric, name="words") + "&vector=words"


def write_chroma(folder: Path, vectors: np.ndarray, ids: Sequence[str], metric: str) -> str:
    chromadb = importorskip("chromadb", extra="chroma")
    settings = chromadb.config.Settings(anonymized_telemetry=False)
    client = chromadb.PersistentClient(str(folder / "chroma"), settings=settings)
    space = {"dot": "ip"}.get(metric, metric)
    client.create_collection(
        "captions", configuration={"hnsw": {"space": space}}, embedding_function=None
    ).add(ids=list(ids), embeddings=vectors, documents=TEXTS[: len(ids)])
    client.close()
    return f"chroma:{folder / 'chroma'}#captions"


def importorskip(module: str, *, extra: str):
    return pytest.importorskip(module, reason=f"the extra [{extra}] is not installed")


@dataclass(frozen=True)
class Case:
    """One kind of store with one metric."""

    write: Callable[[Path, np.ndarray, Sequence[str], str], str]
    metric: str
    opened: str = "in place"
    texts: bool = True
    rows: bool = False


CASES = {
    "npy": Case(write_npy, "cosine", texts=False, rows=True),
    "npz": Case(write_npz, "cosine", rows=True),
    "parquet": Case(write_parquet, "cosine", rows=True),
    "faiss dot": Case(write_faiss, "dot", texts=False, rows=True),
    "faiss l2": Case(write_faiss, "l2", texts=False, rows=True),
    "lancedb cosine": Case(write_lancedb, "cosine"),
    "lancedb l2": Case(write_lancedb, "l2"),
    "lancedb dot": Case(write_lancedb, "dot"),
    "lancedb index cosine": Case(write_lancedb_index, "cosine"),
    "lancedb index l2": Case(write_lancedb_index, "l2"),
    "qdrant cosine": Case(write_qdrant, "cosine", "snapshot"),
    "qdrant l2": Case(write_qdrant, "l2", "snapshot"),
    "qdrant dot": Case(write_qdrant, "dot", "snapshot"),
    "qdrant named": Case(write_qdrant_named, "cosine", "snapshot"),
    "chroma cosine": Case(write_chroma, "cosine", "snapshot"),
    "chroma l2": Case(write_chroma, "l2", "snapshot"),
    "chroma dot": Case(write_chroma, "dot", "snapshot"),
}
# One of each kind, for what does not hang on the metric.
KINDS = ("npy", "npz", "parquet", "faiss dot", "lancedb cosine", "qdrant cosine", "chroma cosine")

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
every_kind = pytest.mark.parametrize("case", [CASES[kind] for kind in KINDS], ids=KINDS)
# Chroma reads its own collections of given vectors through what it calls a legacy configuration.
pytestmark = pytest.mark.filterwarnings("ignore:legacy embedding function:DeprecationWarning")


@pytest.fixture(autouse=True)
def snapshots(tmp_path, monkeypatch) -> Path:
    """Snapshots go here, so that what is left of one is seen."""
    folder = tmp_path / "snapshots"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    """Where the store lies, alone."""
    (tmp_path / "store").mkdir()
    return tmp_path / "store"


def state(folder: Path) -> dict[str, tuple[str, int, int]]:
    """Of every file and folder: hash, when it was last written, mode."""
    return {
        path.relative_to(folder).as_posix(): (
            sha256_file(path) if path.is_file() else "",
            path.stat().st_mtime_ns,
            path.stat().st_mode,
        )
        for path in [folder, *folder.rglob("*")]
    }


def brute_force(vectors: np.ndarray, queries: np.ndarray, metric: str) -> np.ndarray:
    """Similarity [Q, N] in float64, row by row."""
    v, q = vectors.astype(np.float64), queries.astype(np.float64)
    if metric == "l2":
        return -((q[:, None] - v[None]) ** 2).sum(axis=2)
    if metric == "cosine":
        v = v / np.linalg.norm(v, axis=1, keepdims=True)
        q = q / np.linalg.norm(q, axis=1, keepdims=True)
    return q @ v.T


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


# The contract -------------------------------------------------------------------------------


@every_case
def test_the_engine_finds_what_brute_force_finds(case, folder):
    with open_store(case.write(folder, VECTORS, IDS, case.metric)) as store:
        assert (store.width, store.metric, store.count) == (WIDTH, case.metric, ROWS)
        hits = store.search(QUERIES, 5)
    expected = brute_force(VECTORS, QUERIES, case.metric)
    order = np.argsort(-expected, axis=1)[:, :5]
    assert hits.ids == [[IDS[row] for row in rows] for rows in order]
    assert (hits.similarity.dtype, hits.rows.dtype) == (np.float32, np.int64)
    np.testing.assert_allclose(
        hits.similarity, np.take_along_axis(expected, order, axis=1), rtol=1e-5, atol=ROUNDING
    )
    np.testing.assert_array_equal(hits.rows, order if case.rows else np.full_like(order, -1))


@every_kind
def test_more_than_there_are_gives_all(case, folder):
    with open_store(case.write(folder, VECTORS, IDS, case.metric)) as store:
        hits = store.search(QUERIES[:1], ROWS + 9)
        none = store.search(QUERIES[:0], 3)
    assert sorted(hits.ids[0]) == sorted(IDS)
    assert (none.ids, none.similarity.shape) == ([], (0, 3))


@every_case
def test_vectors_come_in_the_order_asked_without_those_that_are_not_there(case, folder):
    asked = [IDS[30], "none such", IDS[2], IDS[17], IDS[2], "7"]
    with open_store(case.write(folder, VECTORS, IDS, case.metric)) as store:
        found, vectors = store.vectors(asked)
        nobody, nothing = store.vectors(["none such"])
    assert found == [IDS[30], IDS[2], IDS[17], IDS[2]]
    np.testing.assert_allclose(vectors, VECTORS[[30, 2, 17, 2]], rtol=1e-6)
    assert vectors.dtype == np.float32
    assert (nobody, nothing.shape) == ([], (0, WIDTH))


@every_kind
def test_ids_by_the_thousand_come_back_whole(case, folder, monkeypatch):
    monkeypatch.setattr("modalign.stores.contract.IDS_AT_ONCE", 3)
    with open_store(case.write(folder, VECTORS, IDS, case.metric)) as store:
        assert store.vectors(IDS)[0] == IDS


@every_kind
def test_texts_beside_the_vectors_are_read_by_id(case, folder):
    with open_store(case.write(folder, VECTORS, IDS, case.metric)) as store:
        found = store.values([IDS[30], "none such", IDS[2]])
    assert found == ([TEXTS[30], None, TEXTS[2]] if case.texts else [None] * 3)


@every_kind
def test_some_ids_are_told_for_messages(case, folder):
    with open_store(case.write(folder, VECTORS, IDS, case.metric)) as store:
        sample = store.ids_sample(4)
    assert len(set(sample)) == 4
    assert set(sample) <= set(IDS)


@every_kind
def test_a_store_describes_itself_as_json(case, folder):
    spec = case.write(folder, VECTORS, IDS, case.metric)
    with open_store(spec) as store:
        described = json.loads(json.dumps(store.describe()))
        assert store.name == spec
    assert described == {
        "kind": spec.partition(":")[0],
        "collection": "captions" if "#" in spec else None,
        "width": WIDTH,
        "metric": case.metric,
        "count": ROWS,
        "opened": case.opened,
    }


# Read-only ----------------------------------------------------------------------------------


@every_case
def test_no_file_changes_comes_or_goes(case, folder, snapshots):
    spec = case.write(folder, VECTORS, IDS, case.metric)
    before = state(folder)
    with open_store(spec) as store:
        sums = store.checksums()
        store.search(QUERIES, 5)
        store.vectors(IDS)
        store.values(IDS[:3])
        store.ids_sample(3)
        assert state(folder) == before
        assert store.checksums() == sums
    store.close()
    assert state(folder) == before
    assert sums == store.checksums()
    assert sorted(sums.values()) == sorted(hash_ for hash_, _, _ in before.values() if hash_)
    assert list(snapshots.iterdir()) == []


@every_kind
def test_no_file_changes_when_something_goes_wrong_midway(case, folder, snapshots):
    spec = case.write(folder, VECTORS, IDS, case.metric)
    before = state(folder)

    def break_off():
        with open_store(spec) as store:
            store.search(QUERIES, 2)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        break_off()
    assert state(folder) == before
    assert list(snapshots.iterdir()) == []


@every_kind
def test_a_store_that_is_refused_on_opening_is_left_as_it_was(case, folder, snapshots):
    other = "dot" if case.metric != "dot" else "l2"
    spec = case.write(folder, VECTORS, IDS, case.metric).replace("&metric=cosine", "")
    if spec.startswith("lancedb"):
        pytest.skip("a table without an index takes any metric")
    before = state(folder)
    with pytest.raises(UsageError, match=rf"metric={other}.*leave metric= out"):
        open_store(f"{spec}{'&' if '?' in spec else '?'}metric={other}")
    assert state(folder) == before
    assert list(snapshots.iterdir()) == []


@every_kind
def test_a_store_nobody_may_write_to_is_read(case, folder):
    spec = case.write(folder, VECTORS, IDS, case.metric)
    paths = [folder, *folder.rglob("*")]
    modes = [path.stat().st_mode for path in paths]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        before = state(folder)
        with open_store(spec) as store:
            assert store.search(VECTORS[:1], 1).similarity[0, 0] > 0
            assert store.vectors(IDS[:2])[0] == IDS[:2]
        assert state(folder) == before
    finally:
        for path, mode in zip(paths, modes, strict=True):
            path.chmod(mode)


def test_a_snapshot_may_be_written_where_its_source_may_not(folder):
    (folder / "sub").mkdir()
    (folder / "sub" / "a").write_bytes(b"1")
    (folder / "sub" / "a").chmod(0o444)
    (folder / "sub").chmod(0o555)
    snapshot = Snapshot(folder)
    (folder / "sub").chmod(0o755)
    for path in (snapshot.folder / "sub", snapshot.folder / "sub" / "a"):
        assert path.stat().st_mode & 0o200
    snapshot.close()
    assert not snapshot.folder.exists()


def test_a_snapshot_of_what_cannot_be_copied_leaves_nothing(folder, snapshots):
    (folder / "a").write_bytes(b"1")

    def vanish(name):
        (folder / name).unlink()
        return True

    with pytest.raises(DataError, match=r"store/a: cannot be copied to .*name another place"):
        Snapshot(folder, wanted=vanish)
    assert list(snapshots.iterdir()) == []


# Specs --------------------------------------------------------------------------------------


def test_a_spec_is_taken_apart():
    found = StoreSpec.parse("lancedb:a#b/c#words?vector=my%20v&id=k")
    assert (found.kind, found.path, found.collection) == ("lancedb", "a#b/c", "words")
    assert found.options == {"vector": "my v", "id": "k"}
    assert found.where == "a#b/c#words"
    assert StoreSpec.parse("qdrant:http://host:6333#c").path == "http://host:6333"
    assert StoreSpec.parse("npy:a#b.npy").path == "a#b.npy"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("vectors.npy", r"expected KIND:PATH.*known kinds: chroma, faiss, lancedb, npy"),
        ("milvus:a#b", r"kind 'milvus' is unknown; known: chroma, faiss, lancedb, npy, npz"),
        ("lancedb:#t", r"expected lancedb:FOLDER#TABLE"),
        ("npy:", r"expected npy:FILE.npy"),
        ("npy:a.npy?vector=v", r"option 'vector' is unknown; known: ids, metric"),
        ("npy:a.npy?ids", r"option 'ids' is not name=value"),
        ("npy:a.npy?ids=a&ids=b", r"option 'ids' is given twice"),
        ("npy:a.npy?metric=hamming", r"metric 'hamming' is unknown; known: cosine, dot, l2"),
    ],
)
def test_a_spec_that_is_none_is_refused(spec, message):
    with pytest.raises(UsageError, match=message):
        open_store(spec)


@every_kind
def test_a_path_that_is_not_there_is_named_and_not_made(case, folder, tmp_path):
    spec = case.write(folder, VECTORS, IDS, case.metric)
    folder.rename(tmp_path / "moved")
    with pytest.raises(DataError, match=r"store/.*: is no (file|folder), expected the store of"):
        open_store(spec)
    assert not folder.exists()


@pytest.mark.parametrize("kind", ["lancedb cosine", "qdrant cosine", "chroma cosine"])
def test_a_collection_that_is_not_there_lists_those_that_are(kind, folder, snapshots):
    spec = CASES[kind].write(folder, VECTORS, IDS, "cosine")
    before = state(folder)
    with pytest.raises(UsageError, match=r"no (table|collection) 'nope', expected.*captions"):
        open_store(spec.replace("#captions", "#nope"))
    with pytest.raises(UsageError, match=r"names no (table|collection), expected.*captions"):
        open_store(spec.replace("#captions", ""))
    assert state(folder) == before
    assert list(snapshots.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "known"),
    [
        ("npz", "vectors, ids, text"),
        ("parquet", "id, vector, text"),
        ("lancedb cosine", "id, vector, text"),
        ("qdrant named", "words"),
    ],
)
def test_a_vector_that_is_not_there_lists_what_is(kind, known, folder):
    spec = CASES[kind].write(folder, VECTORS, IDS, "cosine").replace("&vector=words", "")
    with pytest.raises(DataError, match=rf"has no 'nope', expected one of: {known}; .*vector="):
        open_store(f"{spec}&vector=nope")


@pytest.mark.parametrize(
    ("spec", "module", "extra"),
    [
        ("lancedb:{}#t", "lancedb", "lancedb"),
        ("qdrant:{}#c", "qdrant_client", "qdrant"),
        ("qdrant:http://127.0.0.1:1#c", "qdrant_client", "qdrant"),
        ("chroma:{}#c", "chromadb", "chroma"),
        ("faiss:{}/v.index", "faiss", "faiss"),
        ("parquet:{}/v.parquet", "pyarrow", "parquet"),
    ],
)
def test_a_missing_package_is_named_with_its_install_line(spec, module, extra, folder, monkeypatch):
    for name in ("v.index", "v.parquet"):
        (folder / name).write_bytes(b"")
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Absent(module), *sys.meta_path])
    with pytest.raises(MissingExtraError, match=rf"run: pip install 'modalign\[{extra}\]'"):
        open_store(spec.format(folder))


class Absent:
    """An import path on which one package is not installed."""

    def __init__(self, module: str) -> None:
        self.module = module

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.split(".")[0] == self.module:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_opening_a_file_of_rows_loads_no_engine():
    code = (
        "import sys, modalign.stores; print([name for name in ('lancedb', 'qdrant_client', "
        "'chromadb', 'faiss', 'pyarrow', 'torch') if name in sys.modules])"
    )
    source = Path(__file__).resolve().parent.parent / "src"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.strip() == "[]"


# Bad vectors --------------------------------------------------------------------------------


@every_kind
def test_queries_that_cannot_be_asked_are_refused(case, folder):
    with open_store(case.write(folder, VECTORS, IDS, case.metric)) as store:
        with pytest.raises(ShapeError, match=r"queries \(3, 5\), expected \[queries, 6\]"):
            store.search(QUERIES[:, :5], 1)
        with pytest.raises(UsageError, match="k is 0, expected 1 or more"):
            store.search(QUERIES, 0)
        with pytest.raises(UsageError, match="query 1 is NaN or infinite"):
            store.search(np.where(np.arange(3)[:, None] == 1, np.nan, QUERIES), 1)
        if case.metric == "cosine":
            with pytest.raises(UsageError, match="query 2 is zero"):
                store.search(QUERIES * [[1], [1], [0]], 1)


# LanceDB, Qdrant and Chroma take no NaN themselves; a zero vector has its place under dot.
@pytest.mark.parametrize(
    ("kind", "value", "what"),
    [
        *((kind, np.nan, "NaN or infinite") for kind in ("npy", "npz", "parquet", "faiss dot")),
        *((kind, 0.0, "zero") for kind in KINDS if kind != "faiss dot"),
    ],
)
def test_a_vector_no_search_can_rank_is_named_by_its_id(kind, value, what, folder):
    vectors = VECTORS.copy()
    vectors[11] = value
    message = rf"vector of id \"it's 11\" is {what}, expected finite .*mend or drop the row"
    with open_store(CASES[kind].write(folder, vectors, IDS, CASES[kind].metric)) as store:
        with pytest.raises(DataError, match=message):
            store.vectors([IDS[3], IDS[11]])
        assert store.vectors([IDS[3]])[0] == [IDS[3]]
        if store.kind in ("npy", "npz", "parquet"):
            with pytest.raises(DataError, match=message):
                store.search(QUERIES, 1)


@pytest.mark.parametrize(
    "kind", ["npy", "npz", "parquet", "faiss dot", "lancedb cosine", "qdrant cosine"]
)
def test_an_id_that_stands_twice_is_named(kind, folder):
    spec = CASES[kind].write(folder, VECTORS[:3], ["a", "b", "a"], CASES[kind].metric)

    def read():
        with open_store(spec) as store:
            store.vectors(["a", "b"])

    with pytest.raises(DataError, match=r"id 'a' stands in two rows, expected every id once"):
        read()


@pytest.mark.parametrize("kind", ["parquet", "lancedb"])
def test_mixed_widths_name_the_first_odd_row(kind, folder):
    write_lists(kind, folder, [[1.0, 2.0], [3.0, 4.0], [5.0], [6.0]])
    with pytest.raises(DataError, match=r"id 'c' has a vector of width 1, expected width 2"):
        open_store(spec_of_lists(kind, folder))


@pytest.mark.parametrize("kind", ["parquet", "lancedb"])
def test_a_row_without_a_vector_is_named(kind, folder):
    write_lists(kind, folder, [[1.0, 2.0], None, [3.0, 4.0], [5.0, 6.0]])
    with pytest.raises(DataError, match=r"id 'b' has no vector, expected width 2"):
        open_store(spec_of_lists(kind, folder))


@pytest.mark.parametrize("kind", ["parquet", "lancedb"])
def test_a_column_of_other_things_is_refused(kind, folder):
    write_lists(kind, folder, ["w", "x", "y", "z"])
    with pytest.raises(DataError, match=r"column 'words' is string, expected lists of real"):
        open_store(spec_of_lists(kind, folder))


def test_lists_of_one_width_are_vectors_in_parquet(folder):
    write_lists("parquet", folder, [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    with open_store(spec_of_lists("parquet", folder)) as store:
        assert store.width == 2
        assert store.search(np.array([[0.0, 3.0]]), 1).ids == [["b"]]


def test_lists_of_one_width_are_not_searched_by_lancedb(folder):
    write_lists("lancedb", folder, [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    with pytest.raises(DataError, match=r"is list<.*>, expected lists of one fixed size"):
        open_store(spec_of_lists("lancedb", folder))


def write_lists(kind: str, folder: Path, rows: list) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra [parquet] is not installed")
    import pyarrow

    # LanceDB mends or refuses a column of the name "vector" itself.
    table = pyarrow.table({"id": ["a", "b", "c", "d"], "words": rows})
    if kind == "parquet":
        parquet.write_table(table, folder / "v.parquet")
    else:
        importorskip("lancedb", extra="lancedb").connect(str(folder)).create_table("t", table)


def spec_of_lists(kind: str, folder: Path) -> str:
    path = f"parquet:{folder / 'v.parquet'}" if kind == "parquet" else f"lancedb:{folder}#t"
    return f"{path}?vector=words"


@pytest.mark.parametrize("kind", ["npy", "npz"])
@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array(["a", "b"]), "is of dtype <U1, expected real numbers"),
        (np.ones((2, 2), complex), "is of dtype complex128, expected real numbers"),
        (np.ones((2, 3, 4)), r"has shape \(2, 3, 4\), expected \[rows, width\]"),
        (np.ones((0, 4)), "is empty, expected vectors"),
    ],
)
def test_an_array_of_other_things_is_refused(kind, array, message, folder):
    path = folder / f"v.{kind}"
    np.save(path, array) if kind == "npy" else np.savez(path, vectors=array)
    with pytest.raises((DataError, ShapeError), match=message):
        open_store(f"{kind}:{path}")


def test_python_objects_are_never_unpickled(folder):
    array = np.array([object()], dtype=object)
    np.save(folder / "v.npy", array, allow_pickle=True)
    np.savez(folder / "v.npz", vectors=array)
    for kind in ("npy", "npz"):
        with pytest.raises(CorruptError, match=r"v\.np.: .*(never unpickled|allow_pickle)"):
            open_store(f"{kind}:{folder}/v.{kind}")


@pytest.mark.parametrize(
    "kind", ["npy", "npz", "parquet", "faiss dot", "lancedb cosine", "qdrant cosine"]
)
def test_a_store_cut_off_is_refused(kind, folder):
    spec = CASES[kind].write(folder, VECTORS, IDS, CASES[kind].metric)
    largest = max(
        (path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    os.truncate(largest, largest.stat().st_size // 2)

    def read():
        with open_store(spec) as store:
            store.vectors(IDS)

    with pytest.raises(DataError, match=r"restore"):
        read()


@pytest.mark.parametrize("kind", ["npz", "parquet", "faiss dot", "qdrant cosine", "chroma cosine"])
def test_a_store_of_other_bytes_is_refused(kind, folder, snapshots):
    spec = CASES[kind].write(folder, VECTORS, IDS, CASES[kind].metric)
    noise = np.random.default_rng(5).bytes(9000)
    for path in folder.rglob("*"):
        if path.suffix in (".npz", ".parquet", ".index", ".sqlite", ".sqlite3"):
            path.write_bytes(noise)
    with pytest.raises(CorruptError, match=r"cannot be read \(.*restore it"):
        open_store(spec)
    assert list(snapshots.iterdir()) == []


# Cosine -------------------------------------------------------------------------------------


def store_of(metric: str, kind: str = "faiss") -> Store:
    facts = SimpleNamespace(where="s")
    return SimpleNamespace(metric=metric, kind=kind, facts=facts, compresses=False)


def test_lengths_are_told_by_hand():
    assert length_spread(np.array([[3.0, 4.0], [0.0, 2.0]])) == (2.0, 5.0)
    assert length_spread(np.zeros((0, 2))) == (1.0, 1.0)


@pytest.mark.parametrize("metric", ["dot", "l2"])
def test_vectors_of_several_lengths_are_not_ordered_by_cosine(metric):
    vectors = unit(VECTORS) * np.linspace(0.9, 2, ROWS)[:, None]
    with pytest.raises(MismatchError, match=rf"metric is {metric} and .* lengths 0.9 to 2,"):
        check_cosine(store_of(metric), vectors)
    with pytest.raises(MismatchError, match=r"ask for it with \?metric=cosine"):
        check_cosine(store_of(metric, "lancedb"), vectors)
    check_cosine(store_of("cosine"), vectors)
    check_cosine(store_of(metric), unit(vectors) * 1.0009)
    with pytest.raises(MismatchError, match=r"lengths 1\.002 to 1\.002"):
        check_cosine(store_of(metric), unit(vectors) * 1.002)


# One kind each ------------------------------------------------------------------------------


def test_rows_without_ids_are_known_by_their_numbers(folder):
    np.save(folder / "v.npy", VECTORS.astype(np.float16))
    with open_store(f"npy:{folder / 'v.npy'}") as store:
        found, vectors = store.vectors(["7", "07", "40", "-1"])
        assert found == ["7"]
        np.testing.assert_array_equal(vectors[0], VECTORS[7].astype(np.float16))
        assert list(store.checksums()) == ["v.npy"]


def test_ids_may_stand_in_another_file_and_must_fit(folder):
    np.save(folder / "v.npy", VECTORS[:2])
    (folder / "names").write_text("a\nb\n", "utf-8")
    with open_store(f"npy:{folder}/v.npy?ids={folder}/names") as store:
        assert store.ids_sample(9) == ["a", "b"]
        assert list(store.checksums()) == ["names", "v.npy"]
    (folder / "names").write_text("a\nb\nc\n", "utf-8")
    with pytest.raises(DataError, match="3 ids for the 2 vectors"):
        open_store(f"npy:{folder}/v.npy?ids={folder}/names")
    with pytest.raises(DataError, match="nope: cannot be read"):
        open_store(f"npy:{folder}/v.npy?ids={folder}/nope")


@pytest.mark.parametrize("factory", ["IVF2,Flat", "HNSW8", "IDMap2,Flat", "IDMap,Flat"])
def test_faiss_indexes_give_their_vectors_back(factory, folder):
    faiss = importorskip("faiss", extra="faiss")
    index = faiss.index_factory(WIDTH, factory, faiss.METRIC_INNER_PRODUCT)
    index.verbose = False
    many = np.random.default_rng(2).normal(size=(200, WIDTH)).astype(np.float32)
    index.train(many)
    mapped = factory.startswith("IDMap")
    index.add_with_ids(many, np.arange(200) + 1000) if mapped else index.add(many)
    faiss.write_index(index, str(folder / "v.index"))
    names = ["1007", "1199"] if mapped else ["7", "199"]
    with open_store(f"faiss:{folder}/v.index") as store:
        found, vectors = store.vectors([*names, "200"])
        assert found == names
        np.testing.assert_allclose(vectors, many[[7, 199]], rtol=1e-6)
        best = np.argmax(many @ many[7])
        assert store.search(many[7:8] * 5, 1).rows.tolist() == [[best]]


def test_rows_of_an_ivf_index_are_known_by_the_numbers_they_were_added_under(folder):
    faiss = importorskip("faiss", extra="faiss")
    index = faiss.index_factory(WIDTH, "IVF2,Flat", faiss.METRIC_INNER_PRODUCT)
    index.nprobe = 2
    many = unit(np.random.default_rng(2).normal(size=(200, WIDTH))).astype(np.float32)
    index.train(many)
    numbers = 10**12 - 7 * np.arange(200)
    index.add_with_ids(many, numbers)
    faiss.write_index(index, str(folder / "v.index"))
    with open_store(f"faiss:{folder}/v.index") as store:
        found, vectors = store.vectors([str(numbers[5]), "5", str(numbers[199])])
        assert found == [str(numbers[5]), str(numbers[199])]
        np.testing.assert_allclose(vectors, many[[5, 199]], rtol=1e-6)
        hits = store.search(many[[5, 199]], 1)
        assert hits.ids == [[str(numbers[5])], [str(numbers[199])]]
        assert hits.rows.tolist() == [[194], [0]]
    (folder / "v.ids.txt").write_text("\n".join(map(str, range(200))), encoding="utf-8")
    with pytest.raises(DataError, match="have numbers of their own, such as 99999999"):
        open_store(f"faiss:{folder}/v.index")


def test_an_index_that_compresses_is_not_told_to_scale_its_vectors(folder):
    faiss = importorskip("faiss", extra="faiss")
    index = faiss.index_factory(8, "PQ2x4", faiss.METRIC_INNER_PRODUCT)
    many = unit(np.random.default_rng(2).normal(size=(700, 8))).astype(np.float32)
    index.train(many)
    index.add(many)
    faiss.write_index(index, str(folder / "v.index"))
    with open_store(f"faiss:{folder}/v.index") as store:
        _, vectors = store.vectors([str(row) for row in range(700)])
        with pytest.raises(
            MismatchError, match=r"compresses its vectors: .* attach the vectors it"
        ):
            check_cosine(store, vectors)


def test_an_approximate_engine_that_finds_too_few_says_so(folder):
    faiss = importorskip("faiss", extra="faiss")
    index = faiss.index_factory(2, "IVF2,Flat", faiss.METRIC_L2)
    rows = np.repeat(np.array([[0, 1], [0, -1]], np.float32), 60, axis=0)[:100]
    index.train(rows)
    index.add(rows)
    faiss.write_index(index, str(folder / "v.index"))
    with open_store(f"faiss:{folder}/v.index") as store:
        hits = store.search(np.array([[0, 1]]), 80)
    assert len([name for name in hits.ids[0] if name]) == 60
    assert hits.ids[0][60:] == [""] * 20
    assert hits.rows[0, 60:].tolist() == [-1] * 20
    assert np.isneginf(hits.similarity[0, 60:]).all()
    assert hits.similarity[0, 0] == 0


def test_lancedb_takes_the_metric_of_its_index(folder):
    spec = write_lancedb_index(folder, VECTORS, IDS, "cosine")
    with pytest.raises(MismatchError, match="searches by cosine, metric=dot was asked for"):
        open_store(f"{spec}&metric=dot")
    plain = write_lancedb(folder / "plain", VECTORS, IDS, "cosine").partition("?")[0]
    with open_store(plain) as store:
        assert store.metric == "l2"


def test_whole_numbers_are_ids_in_lancedb(folder):
    lancedb = importorskip("lancedb", extra="lancedb")
    import pyarrow

    table = arrow_table(VECTORS, IDS).set_column(0, "id", pyarrow.array(range(ROWS)))
    lancedb.connect(str(folder)).create_table("t", table)
    with open_store(f"lancedb:{folder}#t") as store:
        assert store.vectors(["7", "07", "x", "1); --"])[0] == ["7"]


def test_points_are_known_by_their_own_ids_in_qdrant(folder):
    spec = write_qdrant(folder, VECTORS, IDS, "dot").partition("?")[0]
    with open_store(spec) as store:
        found, vectors = store.vectors(["7", "07", "x", str(UUID(int=3)), "40"])
        assert found == ["7"]
        np.testing.assert_array_equal(vectors, VECTORS[7:8])
        assert store.values(["7"]) == [None]


def test_a_qdrant_point_that_would_run_code_is_refused(folder, snapshots, tmp_path):
    spec = write_qdrant(folder, VECTORS, IDS, "cosine")

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    with closing(sqlite3.connect(folder / "qdrant/collection/captions/storage.sqlite")) as database:
        database.execute("UPDATE points SET point = ? WHERE rowid = 3", (pickle.dumps(Bomb()),))
        database.commit()
    with pytest.raises(CorruptError, match=r"a point asks to run posix\.mkdir"):
        open_store(spec)
    assert not (tmp_path / "ran").exists()
    assert list(snapshots.iterdir()) == []


def test_other_collections_of_a_qdrant_folder_are_not_copied(folder, snapshots):
    with open_store(write_qdrant(folder, VECTORS, IDS, "cosine")):
        copied = [path.parent.name for path in snapshots.rglob("storage.sqlite")]
    assert copied == ["captions"]


def test_a_qdrant_server_that_is_not_there_is_named():
    importorskip("qdrant_client", extra="qdrant")
    with pytest.raises(DataError, match=r"http://127.0.0.1:1: does not answer as Qdrant"):
        open_store("qdrant:http://127.0.0.1:1#captions")


class QdrantAnswers(BaseHTTPRequestHandler):
    """As much of Qdrant's HTTP as reading needs; whatever else is asked gets a 405."""

    asked: list[str]

    def do_GET(self) -> None:
        vectors = {"size": 2, "distance": "Cosine"}
        answers = {
            "/collections": {"collections": [{"name": "captions"}]},
            "/collections/captions": {
                "status": "green",
                "optimizer_status": "ok",
                "segments_count": 1,
                "config": {
                    "params": {"vectors": vectors},
                    "hnsw_config": {"m": 16, "ef_construct": 9, "full_scan_threshold": 9},
                    "optimizer_config": {
                        "deleted_threshold": 0.2,
                        "vacuum_min_vector_number": 9,
                        "default_segment_number": 0,
                        "flush_interval_sec": 5,
                    },
                },
                "payload_schema": {},
            },
        }
        self.answer(answers.get(self.path))

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        point = {"id": 7, "version": 0}
        answers = {
            "/collections/captions/points/count": {"count": 1},
            "/collections/captions/points": [{**point, "vector": [0.6, 0.8]}],
            "/collections/captions/points/query/batch": [{"points": [{**point, "score": 0.5}]}],
        }
        self.answer(answers.get(self.path))

    def answer(self, result: object) -> None:
        self.asked.append(f"{self.command} {self.path}")
        body = json.dumps({"result": result, "status": "ok", "time": 0}).encode()
        self.send_response(405 if result is None else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *values: object) -> None:
        pass


def test_a_qdrant_server_is_asked_to_read_and_nothing_else():
    importorskip("qdrant_client", extra="qdrant")
    answers = type("Answers", (QdrantAnswers,), {"asked": []})
    with HTTPServer(("127.0.0.1", 0), answers) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            with open_store(f"qdrant:http://127.0.0.1:{server.server_port}#captions") as store:
                assert store.describe()["opened"] == "server"
                assert (store.width, store.metric, store.count) == (2, "cosine", 1)
                found, vectors = store.vectors(["7", "8"])
                hits = store.search(np.array([[1.0, 0.0]]), 3)
                assert (store.checksums(), store.files()) == ({}, [])
            with pytest.raises(UsageError, match="no collection 'x', expected one of: captions"):
                open_store(f"qdrant:http://127.0.0.1:{server.server_port}#x")
        finally:
            server.shutdown()
            thread.join()
    assert (found, vectors.round(3).tolist()) == (["7"], [[0.6000000238418579, 0.800000011920929]])
    assert (hits.ids, hits.similarity.tolist()) == ([["7"]], [[0.5]])
    assert {line.partition("/points")[2] for line in answers.asked} == {
        "",
        "/count",
        "/query/batch",
    }


def test_chroma_metadata_may_be_the_text(folder):
    spec = write_chroma(folder, VECTORS, IDS, "cosine")
    with open_store(f"{spec}?value=path") as store:
        assert store.values(IDS[:1]) == [None]
