"""A gallery is whole or not there, says what it holds, and finds exactly what is nearest."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from modalign.errors import CorruptError, DataError, ShapeError, UsageError
from modalign.gallery import Gallery, _best_of, _float32, header_sha256

SOURCE = Path(__file__).resolve().parent.parent / "src"
IDS = ["a", "b", "c", "d"]
VECTORS = np.array([[1, 0, 0], [0, 2, 0], [0, 0, 0.5], [0.6, 0.8, 0]], np.float32)


def write(folder, *, ids=IDS, vectors=VECTORS, blocks=None, **changes):
    known = {"modality": "image", "width": 3, "embedding": "e1", "encoder": "f1"}
    vectors = [vectors] if blocks is None else blocks
    return Gallery.write(folder, ids=ids, vectors=vectors, **(known | changes))


def in_memory(vectors, *, block_rows=None):
    """A gallery searched as a whole, or in blocks as one too large for memory."""
    ids = [f"item {row}" for row in range(len(vectors))]
    gallery = Gallery.from_arrays(ids, vectors, modality="image")
    if block_rows:
        gallery.resident_bytes, gallery.block_bytes = 0, block_rows * 4 * vectors.shape[1]
    return gallery


def random_vectors(rows, width, *, seed=0, dtype=np.float16):
    return np.random.default_rng(seed).normal(size=(rows, width)).astype(dtype)


def slow_search(queries, vectors, k):
    """Cosines in float64, sorted; the lower row first."""
    exact = [np.asarray(v, np.float64) for v in (queries, vectors)]
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in exact]
    similarity = unit[0] @ unit[1].T
    return np.argsort(-similarity, axis=1, kind="stable")[:, :k], similarity


# The folder


def test_a_gallery_comes_back_as_it_was_written(tmp_path):
    values = ["1.jpg", "ü\n.jpg", "", "\udcff.jpg"]
    written = write(tmp_path / "g", values=values)
    for found in (written, Gallery.load(tmp_path / "g")):
        assert found.ids == IDS
        assert found.values == values
        assert found.vectors.dtype == np.float16
        np.testing.assert_array_equal(found.vectors, VECTORS.astype(np.float16))
        assert (found.modality, found.embedding, found.encoder) == ("image", "e1", "f1")
        assert (len(found), found.width, found.folder) == (4, 3, tmp_path / "g")
        assert found.verify() == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g"]


def test_the_header_says_what_the_folder_holds(tmp_path):
    write(tmp_path / "g")
    header = json.loads((tmp_path / "g" / "gallery.json").read_text(encoding="utf-8"))
    assert {name: len(value) for name, value in header.pop("files").items()} == {
        "ids.jsonl": 64,
        "vectors.npy": 64,
    }
    assert len(header.pop("header_sha256")) == 64
    assert header == {
        "format": 1,
        "modality": "image",
        "width": 3,
        "rows": 4,
        "dtype": "float16",
        "embedding": "e1",
        "encoder": "f1",
    }
    assert Gallery.load(tmp_path / "g").values is None


def test_equal_galleries_are_equal_byte_for_byte(tmp_path):
    write(tmp_path / "g", values=IDS)
    write(tmp_path / "h", values=iter(IDS), blocks=iter([VECTORS[:1], VECTORS[1:1], VECTORS[1:]]))
    for file in (tmp_path / "g").iterdir():
        assert file.read_bytes() == (tmp_path / "h" / file.name).read_bytes()


def test_a_gallery_that_is_there_is_kept_unless_it_shall_be_replaced(tmp_path):
    write(tmp_path / "g")

    def never():
        raise AssertionError("vectors were made for a gallery that cannot be written")
        yield

    with pytest.raises(UsageError, match="g: is there already; choose another folder"):
        write(tmp_path / "g", blocks=never())
    assert write(tmp_path / "g", embedding="e2", replace=True).embedding == "e2"


def test_only_a_gallery_is_replaced(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").write_bytes(b"dear")
    with pytest.raises(UsageError, match="photos: is there already"):
        write(tmp_path / "photos", replace=True)
    assert (tmp_path / "photos" / "1.jpg").read_bytes() == b"dear"


def test_an_error_while_vectors_come_leaves_the_old_gallery(tmp_path):
    write(tmp_path / "g")

    def break_off():
        yield VECTORS[:2]
        raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        write(tmp_path / "g", embedding="e2", blocks=break_off(), replace=True)
    assert Gallery.load(tmp_path / "g").embedding == "e1"
    assert [path.name for path in tmp_path.iterdir()] == ["g"]


KILLED = """
import sys, time
from pathlib import Path
import numpy as np
from modalign.gallery import Gallery
def blocks():
    yield np.ones((1, 2))
    print("ready", flush=True)
    time.sleep(60)
Gallery.write(Path(sys.argv[1]), modality="image", width=2, embedding="e", encoder="f",
              ids=["a", "b"], vectors=blocks())
"""


def test_a_kill_while_vectors_come_leaves_no_half_gallery(tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "g")],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    child.send_signal(signal.SIGKILL)
    child.communicate()
    with pytest.raises(UsageError, match="g: no gallery here"):
        Gallery.load(tmp_path / "g")
    assert write(tmp_path / "g").verify() == []


# What is refused


def test_a_duplicate_id_is_named_with_both_rows(tmp_path):
    with pytest.raises(DataError, match="duplicate id 'b' in rows 1 and 3"):
        write(tmp_path / "g", ids=["a", "b", "c", "b"])
    with pytest.raises(DataError, match="duplicate id 'b' in rows 1 and 3"):
        Gallery.from_arrays(["a", "b", "c", "b"], VECTORS, modality="image")


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ([np.nan, 1, 1], "NaN or infinite in float16"),
        ([70_000, 1, 1], "NaN or infinite in float16"),
        ([0, 0, 0], "zero in float16"),
        ([1e-9, 0, -1e-9], "zero in float16"),
    ],
)
def test_a_vector_that_cannot_be_searched_is_named(tmp_path, value, what):
    vectors = VECTORS.copy()
    vectors[2] = value
    with pytest.raises(DataError, match=rf"the vector of 'c' \(row 2\) is {what}"):
        write(tmp_path / "g", blocks=[vectors[:1], vectors[1:]])
    assert list(tmp_path.iterdir()) == []


def test_float32_holds_what_float16_cannot(tmp_path):
    vectors = VECTORS * np.float32(1e9)
    gallery = write(tmp_path / "g", vectors=vectors, dtype="float32")
    np.testing.assert_array_equal(gallery.vectors, vectors)
    assert gallery.search(VECTORS[3:], 2).ids == [["d", "b"]]
    with pytest.raises(DataError, match="is NaN or infinite in float32"):
        write(tmp_path / "h", vectors=VECTORS * np.float32(1e31), dtype="float32")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 4}, r"vectors \(4, 3\) after row 0, expected at most 4 rows of width 4"),
        ({"ids": IDS[:3]}, r"vectors \(4, 3\) after row 0, expected at most 3 rows"),
        ({"ids": [*IDS, "e"]}, "4 vectors for 5 ids"),
        ({"values": IDS[:3]}, "3 values for 4 ids"),
        ({"dtype": "int8"}, "vectors of int8, expected float16 or float32"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        write(tmp_path / "g", **changes)
    assert list(tmp_path.iterdir()) == []


def test_arrays_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match=r"3 ids for vectors \(4, 3\), expected \[3, width\]"):
        Gallery.from_arrays(IDS[:3], VECTORS, modality="image")
    with pytest.raises(UsageError, match="vectors of float64"):
        Gallery.from_arrays(IDS, VECTORS.astype(np.float64), modality="image")
    with pytest.raises(ShapeError, match="1 values for 4 ids"):
        Gallery.from_arrays(IDS, VECTORS, modality="image", values=["x"])


def test_a_gallery_of_nothing_is_refused(tmp_path):
    with pytest.raises(DataError, match="there are no items"):
        write(tmp_path / "g", ids=[], blocks=[])


# What was damaged


def rewrite_header(folder, **changes):
    path = folder / "gallery.json"
    header = json.loads(path.read_text(encoding="utf-8")) | changes
    header["header_sha256"] = header_sha256(header)
    path.write_text(json.dumps(header), encoding="utf-8")


def test_a_newer_format_asks_for_an_upgrade(tmp_path):
    write(tmp_path / "g")
    rewrite_header(tmp_path / "g", format=2)
    with pytest.raises(DataError, match=r"gallery\.json: format 2, this .* reads 1; upgrade modal"):
        Gallery.load(tmp_path / "g")


@pytest.mark.parametrize("name", ["ids.jsonl", "values.jsonl", "vectors.npy"])
def test_verify_names_the_file_with_a_flipped_bit(tmp_path, name):
    gallery = write(tmp_path / "g", values=IDS)
    data = bytearray((tmp_path / "g" / name).read_bytes())
    data[-3] ^= 1
    (tmp_path / "g" / name).write_bytes(data)
    (problem,) = gallery.verify()
    assert f"{tmp_path / 'g' / name}: is not what was written" in problem
    (tmp_path / "g" / name).unlink()
    assert "sha256 missing, expected" in gallery.verify()[0]


def test_a_flipped_bit_in_the_header_is_found_at_once(tmp_path):
    write(tmp_path / "g")
    path = tmp_path / "g" / "gallery.json"
    path.write_bytes(path.read_bytes().replace(b'"e1"', b'"e3"'))
    with pytest.raises(CorruptError, match=r"gallery\.json: is not what was written"):
        Gallery.load(tmp_path / "g")


def test_a_header_of_another_kind_is_refused(tmp_path):
    write(tmp_path / "g")
    (tmp_path / "g" / "gallery.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(CorruptError, match=r"gallery\.json: is not what was written"):
        Gallery.load(tmp_path / "g")
    (tmp_path / "g" / "gallery.json").write_text('{"format": 1}', encoding="utf-8")
    rewrite_header(tmp_path / "g")
    with pytest.raises(CorruptError, match=r"gallery\.json: lacks modality, width, rows"):
        Gallery.load(tmp_path / "g")


def test_a_key_added_later_does_not_keep_a_gallery_from_being_read(tmp_path):
    write(tmp_path / "g")
    rewrite_header(tmp_path / "g", language="de")
    assert Gallery.load(tmp_path / "g").ids == IDS


@pytest.mark.parametrize(
    ("changes", "file"),
    [({"rows": 5}, "vectors"), ({"width": 2}, "vectors"), ({"dtype": "float32"}, "vectors")],
)
def test_vectors_that_do_not_fit_the_header_are_refused(tmp_path, changes, file):
    write(tmp_path / "g")
    rewrite_header(tmp_path / "g", **changes)
    with pytest.raises(CorruptError, match=rf"{file}\.npy: holds float16 \(4, 3\), the header"):
        Gallery.load(tmp_path / "g")


@pytest.mark.parametrize("text", ['"a"\n"b"\n"c"\n', '"a"\n"b"\n"c"\n4\n'])
def test_ids_that_do_not_fit_the_header_are_refused(tmp_path, text):
    write(tmp_path / "g")
    (tmp_path / "g" / "ids.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(CorruptError, match=r"ids\.jsonl: holds \d lines, expected 4 of text"):
        Gallery.load(tmp_path / "g")


def test_a_folder_that_is_no_gallery_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"no gallery here \(there is no gallery\.json\)"):
        Gallery.load(tmp_path)


# Search


def test_search_by_hand(tmp_path):
    for gallery in (write(tmp_path / "g"), Gallery.from_arrays(IDS, VECTORS, modality="image")):
        hits = gallery.search(np.array([[0, 5.0, 0], [1, 0, 0.1]]), 3)
        assert hits.ids == [["b", "d", "a"], ["a", "d", "c"]]
        assert hits.rows.tolist() == [[1, 3, 0], [0, 3, 2]]
        np.testing.assert_allclose(hits.similarity[0], [1, 0.8, 0], atol=3e-4)
        assert hits.similarity.dtype == np.float32


@pytest.mark.parametrize("block_rows", [None, 50, 211])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("k", [1, 7, 211, 1000])
def test_search_agrees_with_sorting_all_cosines(k, dtype, block_rows):
    vectors, queries = random_vectors(211, 24, dtype=dtype), random_vectors(13, 24, seed=1)
    hits = in_memory(vectors, block_rows=block_rows).search(queries, k)
    rows, similarity = slow_search(queries, vectors, k)
    np.testing.assert_array_equal(hits.rows, rows)
    expected = np.take_along_axis(similarity, rows, axis=1)
    np.testing.assert_allclose(hits.similarity, expected, atol=3e-7)
    assert hits.ids[3][0] == f"item {rows[3, 0]}"


@pytest.mark.parametrize("block_rows", [None, 50, 211])
@pytest.mark.parametrize("k", [1, 60, 300])
def test_of_equals_the_lower_row_comes_first(k, block_rows):
    vectors = np.repeat(random_vectors(3, 256), 100, axis=0)
    hits = in_memory(vectors, block_rows=block_rows).search(vectors[[0, 100, 200]], k)
    assert hits.rows[:, :60].tolist() == [list(range(a, a + min(k, 60))) for a in (0, 100, 200)]
    assert len(set(hits.similarity[0, :100].tolist())) == 1


def test_rounding_in_the_first_choice_does_not_decide():
    rows = np.tile(np.array([[0.6, 0.8]], np.float32), (50, 1))
    rough = np.float32(0.6) + np.linspace(-9e-7, 9e-7, 50, dtype=np.float32)
    chosen, similarity = _best_of(np.array([1, 0], np.float32), rough, rows, 3)
    assert chosen.tolist() == [0, 1, 2]
    assert similarity.tolist() == [np.float32(0.6)] * 3


def test_hits_do_not_depend_on_other_queries_nor_on_blocks():
    vectors, queries = random_vectors(500, 256), random_vectors(33, 256, seed=1)
    together = in_memory(vectors).search(queries, 20)
    alone = [in_memory(vectors).search(queries[row : row + 1], 20) for row in range(33)]
    in_blocks = in_memory(vectors, block_rows=77).search(queries, 20)
    for other in (in_blocks.similarity, np.concatenate([hits.similarity for hits in alone])):
        np.testing.assert_array_equal(together.similarity, other)
    for rows in (in_blocks.rows, np.concatenate([hits.rows for hits in alone])):
        np.testing.assert_array_equal(together.rows, rows)


def test_many_queries_find_what_each_finds_alone():
    gallery, queries = in_memory(random_vectors(90_000, 4)), random_vectors(200, 4, seed=1)
    together = gallery.search(queries, 3)
    for row in (0, 185, 186, 187, 199):
        np.testing.assert_array_equal(
            gallery.search(queries[row : row + 1], 3).rows, together.rows[row : row + 1]
        )


def test_a_length_counts_neither_in_the_query_nor_in_the_gallery():
    vectors, queries = random_vectors(50, 8), random_vectors(5, 8, seed=1, dtype=np.float64)
    stretched = vectors * np.random.default_rng(2).uniform(0.5, 20, (50, 1)).astype(np.float16)
    expected = in_memory(vectors).search(queries, 9)
    found = in_memory(stretched).search(queries * 1e-20, 9)
    np.testing.assert_allclose(found.similarity, expected.similarity, atol=2e-3)
    np.testing.assert_array_equal(in_memory(vectors).search(queries * 1e20, 9).rows, expected.rows)


def test_every_float16_is_widened_exactly():
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)].reshape(-1, 62)
    widened = _float32(finite[:, ::-1])
    np.testing.assert_array_equal(
        widened.view(np.int32), finite[:, ::-1].astype(np.float32).view(np.int32)
    )
    assert widened.ctypes.data % 64 == 0


def test_a_query_of_zeros_finds_the_first_rows():
    hits = in_memory(random_vectors(9, 4)).search(np.zeros((1, 4)), 3)
    assert hits.rows.tolist() == [[0, 1, 2]]
    assert hits.similarity.tolist() == [[0, 0, 0]]


def test_no_queries_find_nothing():
    hits = in_memory(random_vectors(9, 4)).search(np.zeros((0, 4)), 3)
    assert (hits.ids, hits.rows.shape, hits.similarity.shape) == ([], (0, 3), (0, 3))


@pytest.mark.parametrize(
    ("queries", "k", "message"),
    [
        (np.ones((2, 3)), 1, r"queries \(2, 3\), expected \[queries, 4\]"),
        (np.ones(4), 1, r"queries \(4,\), expected \[queries, 4\]"),
        (np.ones((2, 4)), 0, "k is 0, expected 1 or more"),
        (np.array([[1, 1, 1, 1], [1, np.nan, 1, 1]]), 1, "query 1 is NaN or infinite"),
        (np.array([[1, 1, 1, np.inf]]), 1, "query 0 is NaN or infinite"),
    ],
)
def test_queries_that_cannot_be_asked_are_refused(queries, k, message):
    with pytest.raises(UsageError, match=message):
        in_memory(random_vectors(9, 4)).search(queries, k)


def test_search_loads_no_torch():
    code = "import sys, modalign.gallery, modalign.evaluation; sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    assert (
        subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
    )
