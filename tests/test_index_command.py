"""`modalign index` as scripts meet it: what it prints, what it refuses, and what it leaves."""

from __future__ import annotations

import json

import pytest

from index_cases import drawn, gallery_of
from modalign.cli import main
from modalign.errors import DataError
from modalign.gallery import Gallery
from modalign.index import load_index
from modalign.index.metadata import read_metadata
from vector_spaces import SIZES, spec, write_table, write_world

IDS = [f"i{row}" for row in range(160)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A world, a space of image and text, another of it, and a gallery of images."""
    root = tmp_path_factory.mktemp("made")
    world = write_world(root / "world")
    pairs, cache = world / "pairs.csv", ["--cache", root / "cache"]
    encoders = [f"--encoder={name}={spec(world, name)}" for name in ("image", "text")]
    for name, seed in (("space", 0), ("other", 1)):
        call("align", pairs, *encoders, "--out", root / name, *SIZES, "--seed", seed, *cache)
    call("embed", root / "space", pairs, "--modality=image", "--out", root / "gallery", *cache)
    return {"root": root, "pairs": pairs, "cache": cache, "gallery": root / "gallery"}


def call(*arguments):
    assert main([str(argument) for argument in arguments]) == 0


@pytest.fixture
def run(capsys):
    def ran(*arguments):
        capsys.readouterr()
        status = main(["index", *(str(argument) for argument in arguments)])
        return status, *capsys.readouterr()

    return ran


@pytest.fixture
def printed(run):
    def ran(*arguments):
        status, out, err = run(*arguments, "--json")
        assert (status, err) == (0, "")
        return json.loads(out)

    return ran


@pytest.fixture
def refused(run):
    def ran(*arguments, status=2):
        found, out, err = run(*arguments)
        assert (found, out) == (status, "")
        assert err.startswith("modalign: ")
        assert err.count("\n") == 1
        return err

    return ran


def write_gallery(folder, vectors, *, prefix="", embedding=None, like=None):
    """Write a gallery that looks as if the same space had made it."""
    gallery = gallery_of(vectors, prefix=prefix)
    return Gallery.write(
        folder,
        modality="image",
        width=vectors.shape[1],
        embedding=embedding or (like.embedding if like else "w" * 64),
        encoder="encoder",
        ids=gallery.ids,
        vectors=[vectors],
        values=gallery._values,
    )


# Making


def test_an_index_is_made_and_searched(made, printed, tmp_path, capsys):
    report = printed(made["gallery"], "--out", tmp_path / "index")
    assert report["items"] == report["added"] == 160
    assert (report["modality"], report["width"], report["engine"]) == ("image", 32, "exact")
    assert (report["tuning"], report["fields"], report["stale_share"]) == ({}, [], 0.0)
    search = ["search", made["root"] / "space", "--text", "t5", "-k", 3, "--json", *made["cache"]]
    found = []
    for stored in (made["gallery"], tmp_path / "index"):
        call(*search[:2], stored, *search[2:])
        hits = json.loads(capsys.readouterr().out)["hits"]
        found.append([{**hit, "gallery": None} for hit in hits])
    assert found[0] == found[1]


def test_real_queries_tune_the_engine_by_each_modality(made, printed, tmp_path):
    pytest.importorskip("faiss", reason="faiss is not installed")
    report = printed(
        made["gallery"], "--out", tmp_path / "index", "--kind", "hnsw", "--recall", "0.9",
        "--space", made["root"] / "space", "--queries", made["pairs"], "--split", "all",
        *made["cache"],
    )  # fmt: skip
    assert report["engine"] == "faiss-hnsw"
    assert set(report["tuning"]) == {"text", "image"}
    for entry in report["tuning"].values():
        assert entry["reached"]
        assert (entry["wanted"], entry["queries"], entry["note"]) == (0.9, 160, "")
    again = printed(
        "--out", tmp_path / "index", "--recall", "0.5", "--space", made["root"] / "space",
        "--queries", made["pairs"], "--split", "all", *made["cache"],
    )  # fmt: skip
    assert {entry["wanted"] for entry in again["tuning"].values()} == {0.5}
    assert not again["rebuilt"]


def test_an_engine_tuned_without_real_queries_says_so_loudly(made, run, tmp_path):
    pytest.importorskip("faiss", reason="faiss is not installed")
    status, out, err = run(made["gallery"], "--out", tmp_path / "index", "--backend", "faiss-ivf")
    assert (status, err) == (0, "")
    assert "160 image vectors of width 32, engine faiss-ivf" in out
    assert "NOTE: tuned on the gallery's own vectors: queries of another modality lie" in out
    assert "--space SPACE --queries PAIRS" in out


def test_metadata_is_typed_and_can_be_asked(made, printed, tmp_path):
    rows = [
        [name, f"label {n % 3}", str(n), "true" if n % 2 else "false", "007", ""]
        for n, name in enumerate(IDS)
    ]
    table = write_table(tmp_path / "about.csv", ["id", "label", "n", "odd", "code", "none"], rows)
    out = tmp_path / "index"
    report = printed(made["gallery"], "--out", out, "--metadata", table)
    assert report["fields"] == ["code", "label", "n", "odd"]
    with load_index(out) as index:
        assert index.count({"label": "label 1", "odd": True, "n": {"lt": 10}}) == 2
        assert index.item("i7").metadata == {
            "label": "label 1", "n": 7, "odd": True, "code": "007",
        }  # fmt: skip


def test_search_keeps_to_a_filter_where_there_is_metadata(made, tmp_path, capsys):
    table = write_table(tmp_path / "t.csv", ["id", "odd"], [[n, n[-1] in "13579"] for n in IDS])
    call("index", made["gallery"], "--out", tmp_path / "index", "--metadata", table)
    capsys.readouterr()

    def searched(gallery, where, *rest):
        query = ["--text", "t5", "-k", 4, "--filter", where, *made["cache"], *rest]
        status = main([str(part) for part in ("search", made["root"] / "space", gallery, *query)])
        return status, *capsys.readouterr()

    status, out, _ = searched(tmp_path / "index", '{"odd": "False"}', "--json")
    assert status == 0
    assert [int(hit["id"][1:]) % 2 for hit in json.loads(out)["hits"]] == [0, 0, 0, 0]
    for gallery, where, message in (
        (tmp_path / "index", "{odd: 1}", "is no JSON"),
        (tmp_path / "index", '{"even": true}', "no item has a field 'even'; known: odd"),
        (made["gallery"], "{}", "has no metadata to filter by"),
    ):
        status, _, err = searched(gallery, where)
        assert (status, message in err) == (2, True), err


# Changing


@pytest.fixture
def index(tmp_path):
    vectors = drawn(300)
    write_gallery(tmp_path / "gallery", vectors)
    call("index", tmp_path / "gallery", "--out", tmp_path / "index")
    return tmp_path / "index"


def test_a_gallery_is_added_once_and_replaced_when_asked(index, printed, refused, tmp_path):
    write_gallery(tmp_path / "more", drawn(40, seed=5), prefix="more")
    add = [tmp_path / "more", "--out", index, "--add"]
    assert printed(*add)["items"] == 340
    assert "40 ids ('more0', 'more1', 'more2', ...) are there already" in refused(*add)
    report = printed(*add, "--replace")
    assert (report["added"], report["items"]) == (40, 340)


def test_items_are_deleted_by_id(index, printed, refused):
    report = printed("--out", index, "--delete", "3", "--delete", "5")
    assert (report["deleted"], report["items"]) == (2, 298)
    assert "id '3' is not there" in refused("--out", index, "--delete", "3")


def test_an_engine_is_rebuilt_when_asked_and_when_it_is_due(index, printed, tmp_path):
    pytest.importorskip("faiss", reason="faiss is not installed")
    report = printed("--out", index, "--rebuild", "--backend", "faiss-flat")
    assert (report["rebuilt"], report["engine"]) == (True, "faiss-flat")
    write_gallery(tmp_path / "few", drawn(10, seed=5), prefix="few")
    report = printed(tmp_path / "few", "--out", index, "--add")
    assert not report["rebuilt"]
    assert report["stale_share"] == pytest.approx(10 / 310, abs=1e-4)
    write_gallery(tmp_path / "many", drawn(200, seed=6), prefix="many")
    report = printed(tmp_path / "many", "--out", index, "--add")
    assert (report["rebuilt"], report["stale_share"]) == (True, 0.0)
    assert report["engine"] == "faiss-flat"


# What is refused


def test_calls_that_cannot_be_meant_are_refused(index, refused, tmp_path):
    gallery = tmp_path / "gallery"
    assert "--out is missing" in refused(gallery)
    assert "nothing to do" in refused("--out", index)
    assert "GALLERY is missing" in refused("--out", index, "--add")
    assert "--replace goes with --add" in refused(gallery, "--out", tmp_path / "x", "--replace")
    assert "expected --add too" in refused(gallery, "--out", index, "--delete", "3")
    assert "given together" in refused(gallery, "--out", tmp_path / "x", "--space", tmp_path)
    assert "index: is there already" in refused(gallery, "--out", index)
    assert "no gallery here" in refused(tmp_path / "nowhere", "--out", tmp_path / "x")
    assert "no gallery here" in refused(index, "--out", tmp_path / "x")
    assert "no index here" in refused("--out", gallery, "--rebuild")
    assert "recall is 1.5, expected above 0" in refused(
        gallery, "--out", tmp_path / "x", "--recall", "1.5"
    )
    assert "'nosuch' is unknown; known: exact" in refused(
        gallery, "--out", tmp_path / "x", "--backend", "nosuch"
    )
    assert "cannot be written" in refused(gallery, "--out", tmp_path / "no" / "x")
    assert not (tmp_path / "x").exists()


def test_a_gallery_of_another_space_is_refused(made, refused, index, tmp_path):
    message = refused(
        made["gallery"], "--out", tmp_path / "x", "--space", made["root"] / "other",
        "--queries", made["pairs"], *made["cache"],
    )  # fmt: skip
    assert "were made with other weights" in message
    write_gallery(tmp_path / "other", drawn(3), prefix="x", embedding="v" * 64)
    assert "its weights is 'vvvvvvvvvvvv'" in refused(tmp_path / "other", "--out", index, "--add")


def test_metadata_that_does_not_fit_is_refused(refused, index, tmp_path):
    call_ = [tmp_path / "gallery", "--out", tmp_path / "x", "--metadata"]
    rows = [[name, "x"] for name in ("0", "a", "b", "c", "d")]
    table = write_table(tmp_path / "about.csv", ["id", "label"], rows)
    message = refused(*call_, table)
    assert "metadata: 4 ids ('a', 'b', 'c', ...) are not in the gallery" in message
    table = write_table(tmp_path / "about.csv", ["name", "label"], rows)
    assert "has no column 'id'; its columns: name, label" in refused(*call_, table, status=1)
    assert "there is no such file" in refused(*call_, tmp_path / "none.csv")
    assert not (tmp_path / "x").exists()


def test_the_type_of_a_column_is_what_all_its_cells_are(tmp_path):
    header = ["id", "whole", "real", "mixed", "truth", "code", "empty"]
    rows = [["a", "1", "1", "1", "true", "01", ""], ["b", "-2", "2.5e3", "x", "", "2", ""]]
    found = read_metadata(write_table(tmp_path / "t.csv", header, rows))
    assert found == {
        "a": {"whole": 1, "real": 1, "mixed": "1", "truth": True, "code": "01"},
        "b": {"whole": -2, "real": 2500.0, "mixed": "x", "code": "2"},
    }
    lines = [{"id": "a", "tags": ["x", 1], "n": None}, {"id": "b", "tags": "7"}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert read_metadata(tmp_path / "t.jsonl") == {"a": {"tags": ["x", 1]}, "b": {"tags": "7"}}


@pytest.mark.parametrize("cells", [["a", "a"], ["a", ""]])
def test_an_id_that_comes_twice_or_is_empty_is_named_with_its_row(tmp_path, cells):
    table = write_table(tmp_path / "t.csv", ["id", "x"], [[cell, "1"] for cell in cells])
    with pytest.raises(DataError, match=r"t\.csv row 2 \(line 3\): id '.?' (comes twice|is no)"):
        read_metadata(table)


# The report


def test_the_report_has_a_line_for_each_kind(made, printed, run, tmp_path):
    pytest.importorskip("faiss", reason="faiss is not installed")
    asked = ["--space", made["root"] / "space", "--queries", made["pairs"], "--split", "all"]
    call_ = [made["gallery"], "--report", "--recall", "0.9", *asked, *made["cache"]]
    report = printed(*call_)["report"]
    kinds = ["exact", "flat", "ivf", "hnsw", "int8", "binary", "truncated"]
    assert [(each["kind"], each["source"]) for each in report] == [
        (kind, source) for kind in kinds for source in ("text", "image")
    ]
    keys = {
        "kind", "source", "bytes", "build_seconds", "recall_at_10", "recall_at_1",
        "least_recall_at_10", "milliseconds", "effort", "reached",
    }  # fmt: skip
    assert all(set(each) == keys for each in report)
    assert all(each["recall_at_10"] > 0.8 for each in report)
    status, out, err = run(*call_)
    assert (status, err) == (0, "")
    assert out.splitlines()[0].split() == (
        "kind queries bytes build s recall@10 recall@1 least ms effort".split()
    )
    assert len(out.splitlines()) == 15
