"""Indexes: what is added is found, what is deleted is not, filters hold, and results are exact."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from index_cases import (
    ROWS,
    WEIGHTS,
    WIDTH,
    drawn,
    exact_index,
    gallery_of,
    metadata_of,
    other_queries,
)
from modalign.errors import CorruptError, DataError, MismatchError, ShapeError, UsageError
from modalign.gallery import Gallery, header_sha256, unit_rows
from modalign.index import build_index, is_index, load_index, segments
from modalign.index.ranking import unit_queries
from modalign.index.registry import parse_engine
from modalign.index.scanning import Scanner
from modalign.storage import TEMPORARY, locked

SOURCE = Path(__file__).resolve().parent.parent / "src"
CAT, DOG = {"label": "cat"}, {"label": "dog"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "index"
    exact_index(folder).close()
    return folder


@pytest.fixture
def index(tmp_path, made):
    shutil.copytree(made, tmp_path / "index")
    with load_index(tmp_path / "index") as copied:
        yield copied


def add_some(index, count=50, *, prefix="new", seed=9, **options):
    vectors = drawn(count, seed=seed)
    ids = [f"{prefix}{n}" for n in range(count)]
    index.add(ids, vectors, **options)
    return ids, vectors


# What is found


@pytest.mark.parametrize("queries", [1, 7])
@pytest.mark.parametrize("k", [1, 10, ROWS, ROWS + 5])
def test_search_finds_what_the_gallery_finds_bit_by_bit(index, queries, k):
    asked = other_queries(queries)
    expected = gallery_of(drawn()).search(asked, k)
    found = index.search(asked, k)
    assert found.ids == expected.ids
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_array_equal(found.similarity, expected.similarity)
    assert (found.rows.dtype, found.similarity.dtype) == (np.int64, np.float32)


@pytest.mark.parametrize("rows", [1, 35, 36, 1000])
def test_however_many_queries_are_ranked_together_finds_the_same(index, monkeypatch, rows):
    expected = gallery_of(drawn()).search(other_queries(7), 12)
    monkeypatch.setattr("modalign.index.ranking.RANKED_AT_ONCE", rows)
    found = index.search(other_queries(7), 12)
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_array_equal(found.similarity, expected.similarity)


def test_a_single_query_scanned_in_bfloat16_is_as_exact(tmp_path):
    vectors = drawn(3000, width=64)
    queries = other_queries(20, width=64)
    # A hundred rows so near to the first query that bfloat16 cannot tell which is nearest.
    noise = np.random.default_rng(5).standard_normal((100, 64))
    vectors[1000:1100] = queries[0] * (1 + 0.002 * noise)
    gallery = gallery_of(vectors)
    with build_index(gallery, tmp_path / "index", engine="exact") as index:
        view = index.state().view
        scanner = Scanner(copy_rows=1)
        for query in queries:
            unit = unit_queries(query[None], 64, where="")
            ((rows, similarity),) = scanner.search(view, unit, 10)
            expected = gallery.search(query[None], 10)
            np.testing.assert_array_equal(rows, expected.rows[0])
            np.testing.assert_array_equal(similarity, expected.similarity[0])
        assert scanner.memory_bytes() == 2 * vectors.size


def test_rows_added_and_deleted_after_the_bfloat16_copy_are_seen(tmp_path):
    vectors = drawn(1000, width=64)
    with build_index(gallery_of(vectors), tmp_path / "index", engine="exact") as index:
        scanner = Scanner(copy_rows=1)
        query = vectors[7:8].astype(np.float32)
        query /= np.linalg.norm(query)
        scanner.search(index.state().view, query, 3)
        index.add(["twin"], vectors[7:8])
        index.delete(["7"])
        ((rows, _),) = scanner.search(index.state().view, query, 3)
        assert rows[0] == 1000
        assert 7 not in rows
        assert scanner.memory_bytes() == 2 * vectors.size, "the copy was made once"


def test_of_equally_similar_items_the_first_added_comes_first(tmp_path):
    same = np.repeat(drawn(4, width=8), 5, axis=0)
    with build_index(gallery_of(same), tmp_path / "index", engine="exact") as index:
        index.add(["later"], same[:1])
        hits = index.search(same[:1].astype(np.float32), 7)
        assert hits.ids[0][:6] == ["0", "1", "2", "3", "4", "later"]


def test_vectors_of_float32_are_kept_as_they_are(tmp_path):
    vectors = drawn(50).astype(np.float32) * np.float32(1e10)
    gallery = gallery_of(vectors)
    with build_index(gallery, tmp_path / "index", engine="exact") as index:
        found, expected = index.search(vectors[:3], 5), gallery.search(vectors[:3], 5)
        assert found.ids == expected.ids
        np.testing.assert_array_equal(found.similarity, expected.similarity)


def test_a_query_of_zeros_finds_the_first_rows(index):
    hits = index.search(np.zeros((1, WIDTH), np.float32), 3)
    assert hits.ids == [["0", "1", "2"]]
    assert hits.similarity.tolist() == [[0.0, 0.0, 0.0]]


def test_no_queries_find_nothing(index):
    hits = index.search(np.zeros((0, WIDTH), np.float32), 3)
    assert (hits.ids, hits.rows.shape) == ([], (0, 3))


def test_hits_are_shown_by_their_values_and_vectors(index):
    hits = index.search(drawn()[5:6].astype(np.float32), 2)
    assert hits.ids[0][0] == "5"
    assert index.shown(hits)[0][0] == "/media/5.jpg"
    np.testing.assert_array_equal(index.result_vectors(hits, 0)[0], drawn()[5])


@pytest.mark.parametrize(
    ("queries", "k", "error", "match"),
    [
        (np.zeros((1, WIDTH + 1)), 3, ShapeError, r"queries \(1, 25\), expected \[queries, 24\]"),
        (np.zeros(WIDTH), 3, ShapeError, r"queries \(24,\), expected"),
        (np.full((2, WIDTH), np.nan), 3, UsageError, "query 0 is NaN or infinite"),
        (np.ones((1, WIDTH)), 0, UsageError, "k is 0, expected 1 or more"),
    ],
)
def test_what_cannot_be_asked_is_refused(index, queries, k, error, match):
    with pytest.raises(error, match=match):
        index.search(queries, k)


def test_an_index_says_what_its_gallery_was(index):
    assert (index.modality, index.width, index.embedding) == ("image", WIDTH, WEIGHTS)
    assert (index.encoder, index.engine_name, len(index)) == ("encoder", "exact", ROWS)
    assert str(index.media_root) == "/media"
    assert index.where == f"index {index.folder}"


def test_values_that_are_no_paths_have_no_folder(tmp_path):
    gallery = Gallery.from_arrays(["a", "b"], drawn(2), modality="text", values=["a b", "/c"])
    with build_index(gallery, tmp_path / "index", engine="exact") as index:
        assert index.media_root is None


# Adding and deleting


def test_added_items_are_found_at_once_and_after_loading(index):
    ids, vectors = add_some(index, values=[f"v{n}" for n in range(50)])
    assert len(index) == ROWS + 50
    for opened in (index, load_index(index.folder)):
        hits = opened.search(vectors.astype(np.float32), 1)
        assert [found[0] for found in hits.ids] == ids
        assert opened.item("new3").value == "v3"
        np.testing.assert_array_equal(opened.vectors_of(["new3"])[0], vectors[3])


def test_adding_a_few_at_a_time_keeps_the_segments_few_and_every_row(index):
    vectors = drawn(100, seed=4)
    for n in range(100):
        index.add([f"n{n}"], vectors[n : n + 1])
    files = list((index.folder / "vectors").glob("*.npy"))
    assert len(files) <= 9
    np.testing.assert_array_equal(index.vectors_of([f"n{n}" for n in range(100)]), vectors)
    assert [index.item(f"n{n}").row for n in (0, 99)] == [ROWS, ROWS + 99]
    assert index.verify() == []


def test_deleted_items_are_never_found(index):
    query = drawn()[5:6].astype(np.float32)
    assert index.delete(["5", "6"]) == 2
    assert "5" not in index.search(query, ROWS).ids[0]
    assert len(index) == index.search(query, ROWS).rows.shape[1] == ROWS - 2
    with pytest.raises(UsageError, match="id '5' is not there"):
        index.item("5")
    reopened = load_index(index.folder)
    assert len(reopened) == ROWS - 2
    assert "6" not in reopened.search(query, ROWS).ids[0]


def test_an_id_that_was_deleted_may_be_added_again(index):
    index.delete(["5"])
    index.add(["5"], drawn(1, seed=3))
    assert index.item("5").row == ROWS


def test_ids_that_are_there_are_replaced_only_when_asked(index):
    vectors = drawn(2, seed=3)
    with pytest.raises(UsageError, match=r"id '5' is there already, expected new ids"):
        index.add(["5", "new"], vectors)
    assert len(index) == ROWS
    assert index.add(["5", "new"], vectors, replace=True, metadata=[{"label": "x"}, {}]) == 2
    assert len(index) == ROWS + 1
    np.testing.assert_array_equal(index.vectors_of(["5"])[0], vectors[0])
    assert index.count({"label": "x"}) == 1
    assert index.verify() == []


def test_unknown_ids_are_not_deleted_nor_any_with_them(index):
    match = r"4 ids \('a', 'b', 'c', \.\.\.\) are not there"
    with pytest.raises(UsageError, match=match):
        index.delete(["5", "a", "b", "c", "d"])
    assert len(index) == ROWS


@pytest.mark.parametrize(
    ("ids", "vectors", "options", "error", "match"),
    [
        (["a", "a"], drawn(2), {}, DataError, "duplicate id 'a' in places 0 and 1"),
        (["a"], drawn(2), {}, ShapeError, r"vectors \(2, 24\) for 1 ids, expected \[1, 24\]"),
        (["a"], drawn(1, width=7), {}, ShapeError, r"vectors \(1, 7\) for 1 ids"),
        ([7], drawn(1), {}, UsageError, "id 7 in place 0, expected text"),
        (["a"], drawn(1), {"values": []}, ShapeError, "0 values for 1 ids, expected one each"),
        (["a"], drawn(1), {"metadata": [{}, {}]}, ShapeError, "2 metadata for 1 ids"),
        (["a", "b"], np.array([[1.0] * 24, [0] * 24]), {}, DataError, "vector of 'b' .* is zero"),
        (["a"], np.full((1, 24), 1e-9), {}, DataError, "is zero in float16"),
        (["a"], np.full((1, 24), np.nan), {}, DataError, "'a' .* is NaN or infinite"),
        (["a"], np.full((1, 24), 1e6), {}, DataError, "is NaN or infinite in float16"),
        (["a"], drawn(1), {"metadata": [{"x": {}}]}, UsageError, "field 'x': {} is dict, expected"),
        (["a"], drawn(1), {"metadata": [{"x": float("nan")}]}, UsageError, "nan is float"),
        (["a"], drawn(1), {"metadata": [{"x": 2**70}]}, UsageError, "number of 64 bits"),
    ],
)
def test_what_cannot_be_added_is_refused_whole(index, ids, vectors, options, error, match):
    with pytest.raises(error, match=match):
        index.add(ids, vectors, **options)
    assert len(index) == ROWS
    assert len(list((index.folder / "vectors").iterdir())) == 1


def test_nothing_can_be_added(index):
    assert index.add([], np.zeros((0, WIDTH), np.float32)) == 0


def test_an_index_can_be_emptied_and_filled_again(tmp_path):
    with exact_index(tmp_path / "index", drawn(3)) as index:
        index.delete(["0", "1", "2"])
        assert len(index) == 0
        hits = index.search(np.ones((2, WIDTH), np.float32), 5)
        assert (hits.ids, hits.rows.shape) == ([[], []], (2, 0))
        index.add(["again"], drawn(1))
        assert index.search(np.ones((1, WIDTH), np.float32), 5).ids == [["again"]]


@pytest.mark.parametrize("name", ["ключ", "日本/語.jpg", "a b\n'\"", "\udcff.jpg", "\x00", " "])
def test_ids_values_and_metadata_of_any_text_come_back(index, name):
    index.add([name], drawn(1, seed=5), values=[name], metadata=[{name: name}])
    reopened = load_index(index.folder)
    assert reopened.item(name).value == name
    assert reopened.item(name).metadata == {name: name}
    assert reopened.count({name: name}) == 1
    assert reopened.search(drawn(1, seed=5).astype(np.float32), 1).ids == [[name]]


def test_values_that_are_too_long_to_be_read_at_once_are_read_in_parts(index):
    ids = [f"long{n}" for n in range(9)]
    index.add(ids, drawn(9, seed=5), values=[f"{n}" * 3000 for n in range(9)])
    reopened = load_index(index.folder)
    with reopened.rows.database.reading() as connection:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 20_000)
    rows = np.arange(ROWS, ROWS + 9)
    assert reopened.rows.values_of(rows) == [f"{n}" * 3000 for n in range(9)]
    assert reopened.item("long8").value == "8" * 3000


def test_numbers_of_metadata_come_back_as_they_were(index):
    numbers = {
        "whole": 2**63 - 1,
        "less": -(2**63 - 1),
        "small": 5e-324,
        "e": 1e300,
        "third": 1 / 3,
    }
    index.add(["n"], drawn(1, seed=5), metadata=[{**numbers, "list": [True, None, 1.0]}])
    assert load_index(index.folder).item("n").metadata == {**numbers, "list": [True, None, 1.0]}


def test_a_gallery_is_added_only_to_an_index_of_its_own_kind(index):
    more = gallery_of(drawn(30, seed=8), prefix="more")
    assert index.add_gallery(more, metadata={"more1": {"label": "snow"}}) == 30
    assert index.filtered({"label": "snow"}).search(np.ones((1, WIDTH)), 5).ids == [["more1"]]
    with pytest.raises(UsageError, match="are there already"):
        index.add_gallery(more)
    index.add_gallery(more, replace=True)
    assert len(index) == ROWS + 30
    with pytest.raises(MismatchError, match=r"its modality is 'audio', .* has 'image'"):
        index.add_gallery(gallery_of(drawn(2), prefix="x", modality="audio"))
    other = Gallery.from_arrays(["x"], drawn(1), modality="image", embedding="v" * 64)
    with pytest.raises(MismatchError, match="its weights is 'vvvvvvvvvvvv'"):
        index.add_gallery(other)
    with pytest.raises(UsageError, match="metadata: id 'nowhere' is not in the gallery"):
        index.add_gallery(gallery_of(drawn(2), prefix="y"), metadata={"nowhere": {}})


# Filters


def by_hand(where):
    """Rows that fit, by the rules read aloud."""
    return [
        name for name, fields in metadata_of([str(n) for n in range(ROWS)]).items() if where(fields)
    ]


@pytest.mark.parametrize(
    ("filter_", "where"),
    [
        ({}, lambda f: True),
        (CAT, lambda f: f["label"] == "cat"),
        ({"label": ["cat", "dog"]}, lambda f: f["label"] in ("cat", "dog")),
        ({"label": []}, lambda f: False),
        ({"label": {"ne": "cat"}}, lambda f: f["label"] != "cat"),
        ({"year": {"gte": 2000, "lt": 2010}}, lambda f: 2000 <= f["year"] < 2010),
        ({"year": {"gt": 2000, "lte": 2010.5}}, lambda f: 2000 < f["year"] <= 2010),
        ({"year": 2000.0}, lambda f: f["year"] == 2000),
        ({"year": "2000"}, lambda f: False),
        ({"year": True}, lambda f: False),
        ({"label": {"gt": "cat"}}, lambda f: f["label"] > "cat"),
        ({"tags": "t3"}, lambda f: "t3" in f["tags"]),
        ({"tags": None}, lambda f: False),
        ({"label": "dog", "year": 1990}, lambda f: f["label"] == "dog" and f["year"] == 1990),
    ],
)
def test_a_filter_holds(index, filter_, where):
    expected = by_hand(where)
    view = index.filtered(filter_)
    assert len(view) == index.count(filter_) == len(expected)
    query = other_queries(2)
    hits = view.search(query, 15)
    everything = gallery_of(drawn()).search(query, ROWS)
    kept = set(expected)
    best = [[name for name in names if name in kept][:15] for names in everything.ids]
    assert hits.ids == best


def test_a_field_that_only_some_items_have_can_be_asked_for(index):
    index.add(["odd"], drawn(1, seed=3), metadata=[{"colour": "red", "sure": True}])
    assert index.count({"colour": None}) == ROWS
    assert index.count({"colour": {"ne": "red"}}) == ROWS
    assert index.count({"sure": True}) == 1
    assert index.count({"sure": 1}) == 0
    index.delete(["odd"])
    assert index.count({"colour": "red"}) == 0


def test_a_filtered_view_follows_what_is_added_and_deleted(index):
    view = index.filtered(CAT)
    before = len(view)
    index.add(["late"], drawn(1, seed=3), metadata=[CAT])
    assert len(view) == before + 1
    assert view.search(drawn(1, seed=3).astype(np.float32), 1).ids == [["late"]]
    index.delete(["late"])
    assert len(view) == before
    assert view.modality == "image"
    assert view.where.endswith('index filtered by {"label": "cat"}')


@pytest.mark.parametrize(
    ("filter_", "match"),
    [
        ({"colour": 1}, "no item has a field 'colour'; known: label, tags, year"),
        ({"year": {"above": 3}}, "operator 'above' is unknown; known: gt, gte, lt, lte, ne"),
        ({"year": {}}, r"field 'year': {} says nothing"),
        ({"year": {"gt": [3]}}, r"\[3\] is list, expected text"),
        ({"year": {"gt": True}}, "true and false have no order"),
        ({"year": [[1]]}, r"\[1\] is list, expected"),
        ({"year": float("inf")}, "inf is float, expected"),
        ([1], "filter: is list, expected a JSON object"),
        ({3: 4}, "field 3, expected the name"),
        ({"year": list(range(10_001))}, "1 conditions of 10,001 values, expected at most 100 of"),
    ],
)
def test_a_malformed_filter_is_refused(index, filter_, match):
    with pytest.raises(UsageError, match=match):
        index.filtered(filter_)


def test_a_filter_cannot_smuggle_statements_into_the_database(index):
    nasty = "'; DROP TABLE items; --"
    index.add(["x"], drawn(1, seed=3), metadata=[{nasty: nasty}])
    assert index.count({nasty: nasty}) == 1
    assert index.count({"label": nasty}) == 0
    assert len(index) == ROWS + 1


def test_fields_list_their_values_where_they_are_few(index):
    index.add(["x"], drawn(1, seed=3), metadata=[{"label": "ant", "mixed": [True, 2, 1.5, "b"]}])
    more = [{"serial": n} for n in range(51)]
    index.add([f"s{n}" for n in range(51)], drawn(51, seed=4), metadata=more)
    fields = index.metadata_fields()
    assert fields["label"] == ["ant", "cat", "dog", "rain"]
    assert fields["mixed"] == [True, 1.5, 2, "b"]
    assert fields["serial"] is None
    assert fields["year"] == list(range(1990, 2030))


# The folder


def test_a_folder_that_is_no_index_is_refused(tmp_path):
    assert not is_index(tmp_path)
    with pytest.raises(UsageError, match=r"no index here \(there is no index.json\)"):
        load_index(tmp_path)


def test_a_folder_that_is_there_is_not_overwritten(index):
    with pytest.raises(UsageError, match="index: is there already; choose another"):
        build_index(gallery_of(drawn(3)), index.folder)
    assert len(load_index(index.folder)) == ROWS


def rewrite_header(folder, **changes):
    stored = json.loads((folder / "index.json").read_bytes()) | changes
    stored["header_sha256"] = header_sha256(stored)
    (folder / "index.json").write_text(json.dumps(stored))


def test_a_newer_format_asks_for_a_newer_modalign(index):
    rewrite_header(index.folder, format=2)
    with pytest.raises(DataError, match="format 2, this modalign reads 1; upgrade"):
        load_index(index.folder)


def test_a_header_that_was_changed_is_refused(index):
    text = (index.folder / "index.json").read_text().replace("image", "audio")
    (index.folder / "index.json").write_text(text)
    with pytest.raises(CorruptError, match="its own hash does not fit"):
        load_index(index.folder)


def test_a_database_of_another_index_is_refused(index, tmp_path):
    with exact_index(tmp_path / "other") as other:
        (index.folder / "items.sqlite").write_bytes((other.folder / "items.sqlite").read_bytes())
    with pytest.raises(CorruptError, match="belongs to another index"):
        load_index(index.folder)


def test_a_database_that_is_missing_or_none_is_refused(index):
    (index.folder / "items.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(CorruptError, match=r"items\.sqlite: is not what was written"):
        load_index(index.folder)
    (index.folder / "items.sqlite").unlink()
    with pytest.raises(CorruptError, match=r"items\.sqlite: is missing"):
        load_index(index.folder)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-10]), "000001.npy: holds .* bytes"),
        (lambda file: file.unlink(), "000001.npy: cannot be read"),
        (lambda file: np.save(file, drawn(3)), r"holds float16 \(3, 24\), the index says"),
        (lambda file: file.write_bytes(b"\x93NUMPY\x01\x00" + b"\xff" * 200), "no .npy file"),
    ],
)
def test_a_broken_segment_is_refused(index, damage, match):
    damage(index.folder / "vectors" / "000001.npy")
    with pytest.raises(DataError, match=match):
        load_index(index.folder)


def test_verify_finds_flipped_bits(index):
    assert index.verify() == []
    file = index.folder / "vectors" / "000001.npy"
    data = bytearray(file.read_bytes())
    data[-7] ^= 1
    file.write_bytes(data)
    (problem,) = load_index(index.folder).verify()
    assert "000001.npy: is not what was written: sha256" in problem


def test_verify_finds_rows_that_the_database_lost(index):
    with sqlite3.connect(index.folder / "items.sqlite") as connection:
        connection.execute("DELETE FROM items WHERE row = 3")
    connection.close()
    assert any("names 639 rows, the segments hold 640" in line for line in index.verify())
    with pytest.raises(CorruptError, match="rows are found that the database does not name"):
        index.search(drawn()[3:4].astype(np.float32), 3)


def test_opening_for_writing_removes_what_a_killed_writer_left(index):
    orphan = index.folder / "vectors" / "000002.npy"
    half = index.folder / "vectors" / f".000003.npy.0a{TEMPORARY}"
    for file in (orphan, half):
        file.write_bytes(b"half")
    load_index(index.folder, read_only=True).close()
    assert orphan.exists(), "a reader removes nothing"
    load_index(index.folder).close()
    assert not orphan.exists()
    assert not half.exists()
    assert len(index.search(np.ones((1, WIDTH)), 3).ids[0]) == 3


def test_a_read_only_index_is_searched_and_not_changed(index):
    with load_index(index.folder, read_only=True) as reader:
        with pytest.raises(UsageError, match="was opened read-only"):
            add_some(reader)
        with pytest.raises(UsageError, match="was opened read-only"):
            reader.delete(["5"])
        with pytest.raises(UsageError, match="was opened read-only"):
            reader.rebuild("exact")
        add_some(index)
        assert len(reader) == ROWS + 50, "it sees what others add"


def test_a_closed_index_says_so(index):
    index.close()
    with pytest.raises(UsageError, match="this index is closed; load it again"):
        index.search(np.ones((1, WIDTH)), 3)


def test_an_index_opens_without_reading_its_ids(index):
    with load_index(index.folder, read_only=True) as reader:
        (segment,) = reader.state().view.segments
        base = segment.array.base
        assert isinstance(base, np.memmap)
        assert "scale" not in vars(segment)


def test_searching_never_writes_into_the_vectors(index):
    file = index.folder / "vectors" / "000001.npy"
    before = file.read_bytes()
    index.search(other_queries(3), 5)
    index.state().view.segments[0].array[:] = 0
    assert file.read_bytes() == before


# Several at once


def test_threads_search_while_another_adds_and_deletes(index):
    query = drawn()[7:8].astype(np.float32)
    errors: list[Exception] = []
    done = threading.Event()

    def search():
        try:
            while not done.is_set():
                hits = index.search(query, 10)
                assert hits.ids[0][0] == "7"
                assert len(set(hits.ids[0])) == 10
                index.filtered(CAT).search(query, 5)
                index.shown(hits)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    for turn in range(12):
        ids, _ = add_some(index, 20, prefix=f"t{turn}-", seed=turn)
        index.delete(ids[::2])
    done.set()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(index) == ROWS + 120
    assert index.verify() == []


def test_threads_that_add_wait_for_each_other(index):
    threads = [
        threading.Thread(target=add_some, args=(index, 5), kwargs={"prefix": f"t{n}-"})
        for n in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(index) == ROWS + 30
    assert index.verify() == []


def test_two_objects_on_one_folder_see_each_other(index):
    with load_index(index.folder) as other:
        add_some(other)
        assert len(index) == ROWS + 50
        index.delete(["new3"])
        assert len(other) == ROWS + 49
        add_some(index, prefix="mine")
        assert other.item("mine4").row == ROWS + 54


HOLDING = """
import sys, time
from pathlib import Path
from modalign.storage import locked
with locked(Path(sys.argv[1])):
    print("ready", flush=True)
    time.sleep(60)
"""


def test_another_process_that_writes_is_named(index):
    index.rows.wait_s = 0.1
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDING, index.folder],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    )
    assert child.stdout is not None
    child.stdout.readline()
    try:
        with pytest.raises(UsageError, match=rf"process {child.pid} is at work in it; wait"):
            add_some(index)
        load_index(index.folder).close()
        assert len(index.search(np.ones((1, WIDTH)), 3).ids[0]) == 3, "readers do not wait"
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    add_some(index)
    assert len(index) == ROWS + 50


def test_a_short_wait_for_another_writer_is_no_error(index):
    lock = locked(index.folder)
    lock.__enter__()
    timer = threading.Timer(0.2, lock.__exit__, (None, None, None))
    timer.start()
    add_some(index)
    timer.join()
    assert len(index) == ROWS + 50


# Which engine


@pytest.mark.parametrize(
    ("text", "settings", "expected"),
    [
        ("exact", {}, ("exact", {})),
        ("auto", {}, ("exact", {})),
        ("faiss", {}, ("faiss", {})),
        ("faiss-hnsw", {}, ("faiss", {"kind": "hnsw"})),
        ("lancedb", {"uri": "s3://b"}, ("lancedb", {"uri": "s3://b"})),
    ],
)
def test_an_engine_is_named_with_its_kind(text, settings, expected):
    assert parse_engine(text, settings, rows=100) == expected


@pytest.mark.parametrize(
    ("text", "settings", "match"),
    [
        ("annoy", {}, "index engine 'annoy' is unknown; known: exact, faiss, lancedb, qdrant"),
        ("exact", {"kind": "x"}, "exact: takes no settings, kind given"),
        ("faiss-ivf", {"kind": "hnsw"}, "its kind is ivf, and hnsw is asked for"),
    ],
)
def test_an_engine_that_is_none_is_refused(text, settings, match):
    with pytest.raises(UsageError, match=match):
        parse_engine(text, settings, rows=100)


@pytest.mark.parametrize("recall", [0.0, -1.0, 1.01, float("nan")])
def test_a_recall_outside_of_its_range_is_refused(tmp_path, recall):
    with pytest.raises(UsageError, match="expected above 0 and at most 1"):
        build_index(gallery_of(drawn(5)), tmp_path / "index", recall=recall)
    assert not (tmp_path / "index").exists()


# What is deleted is gone


def folder_bytes(folder: Path) -> bytes:
    """All that lies in a folder."""
    return b"".join(p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file())


@pytest.mark.parametrize("engine", ["exact", "faiss-hnsw"])
def test_a_rebuild_leaves_no_byte_of_what_was_deleted(tmp_path, engine):
    if engine != "exact":
        pytest.importorskip("faiss", reason="faiss is not installed")
    secret = np.arange(1, WIDTH + 1, dtype=np.float16)[None] * np.float16(0.317)
    with exact_index(tmp_path / "index") as index:
        index.add(
            ["secret id"], secret, values=["secret words"], metadata=[{"secret field": "secret x"}]
        )
        index.add(["after"], drawn(1, seed=3))
        index.rebuild(engine)
        before = index.vectors_of([str(row) for row in range(ROWS)])
        assert index.search(secret.astype(np.float32), 1).ids == [["secret id"]]
        parts = [b"secret id", b"secret words", b"secret x", secret.tobytes()]
        if engine != "exact":
            parts.append(unit_rows(secret).astype(np.float16).tobytes())
        for part in parts:
            assert part in folder_bytes(index.folder)
        index.delete(["secret id", "5"])
        with load_index(index.folder, read_only=True) as reader:
            expected = reader.search(drawn()[:7].astype(np.float32), 20)
            index.rebuild()
            # It has the rows open that have been overwritten.
            found = reader.search(drawn()[:7].astype(np.float32), 20)
        assert found.ids == expected.ids
        np.testing.assert_array_equal(found.similarity, expected.similarity)
        everything = folder_bytes(index.folder)
        for part in (*parts, drawn()[5].tobytes()):
            assert part not in everything
        assert index.verify() == []
        names = [str(row) for row in range(ROWS) if row != 5]
        kept = np.delete(before, 5, axis=0)
        np.testing.assert_array_equal(index.vectors_of(names), kept)
        assert index.rows.erase() == 0
        index.add(["secret id"], secret)
        assert index.search(secret.astype(np.float32), 1).ids == [["secret id"]]
    with load_index(tmp_path / "index") as index:
        np.testing.assert_array_equal(index.vectors_of(names), kept)
        assert len(index) == ROWS + 1


@pytest.mark.parametrize("rows", [1, 3, 4, 640])
def test_rows_are_overwritten_in_every_segment_and_block(tmp_path, monkeypatch, rows):
    monkeypatch.setattr("modalign.index.rows.block_rows", lambda width: rows)
    with exact_index(tmp_path / "index") as index:
        # Each smaller than what is there: a segment of its own.
        for count in (90, 40, 10):
            index.add([f"{count}-{row}" for row in range(count)], drawn(count, seed=count))
        assert len(index.state().view.segments) == 4
        gone = ["0", "3", "4", "639", "90-0", "90-89", "10-9"]
        index.delete(gone)
        assert index.rows.erase() == len(gone)
        view = index.state().view
        zeros = np.flatnonzero(~view.vectors(np.arange(view.rows)).any(axis=1))
        np.testing.assert_array_equal(zeros, view.deleted)
        assert len(zeros) == len(gone)
        assert index.verify() == []
        assert len(list((index.folder / "vectors").iterdir())) == 4


def test_ids_of_any_length_leave_nothing_however_they_came_and_went(tmp_path):
    draw = random.Random(0)
    with exact_index(tmp_path / "index") as index:
        gone: list[str] = []
        there: list[str] = []
        for turn in range(4):
            names = [f"{turn}-{row}-" + "x" * draw.randrange(60) + "!" for row in range(200)]
            index.add(names, drawn(200, seed=turn), values=[f"words of {name}" for name in names])
            there += names
            draw.shuffle(there)
            index.delete(there[:90])
            gone, there = gone + there[:90], there[90:]
        assert index.rows.erase() == len(gone)
        everything = folder_bytes(index.folder)
        assert all(name.encode() in everything for name in there)
        assert not [name for name in gone if name.encode() in everything]
        assert index.verify() == []


def test_a_segment_that_is_written_anew_while_it_is_opened_is_looked_for_again(
    tmp_path, monkeypatch
):
    with exact_index(tmp_path / "index") as index:
        index.delete(["5"])
        opened = segments._lent

        def late(rows: np.ndarray) -> np.ndarray:
            monkeypatch.setattr(segments, "_lent", opened)
            index.rows.erase()
            return opened(rows)

        monkeypatch.setattr(segments, "_lent", late)
        with load_index(index.folder, read_only=True) as reader:
            assert len(reader) == ROWS - 1
            assert reader.search(drawn()[:1].astype(np.float32), 1).ids == [["0"]]
