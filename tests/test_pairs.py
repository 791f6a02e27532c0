"""Tables and folders into items and pairs, and everything that can be wrong with them."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from modalign.errors import DataError, UsageError
from modalign.pairs import Skipped, read_items, read_pairs

KEYS = {"a": "key", "b": "key"}
PHOTOS = ["1.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg"]


@pytest.fixture
def folder(tmp_path):
    """A folder with five photos that nobody opens."""
    for name in PHOTOS:
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def write(path, *lines):
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def write_json_lines(path, *records):
    return write(path, *(json.dumps(record) for record in records))


def key_table(folder, *rows, header="a,b"):
    return write(folder / "keys.csv", header, *rows)


def read_keys(path, **options):
    return read_pairs(path, ["a", "b"], reads=KEYS, **{"validation": 0, **options})


def values_by_row(pairs, modality):
    items, links = pairs.items[modality], pairs.links[modality]
    rows = [[] for _ in pairs.splits]
    for row, item in zip(links.rows.tolist(), links.items.tolist(), strict=True):
        rows[row].append(items.values[item])
    return rows


# What a table gives


RECORDS = [("a1", "b1"), ("a2", "b1"), ("a1", "b2")]


def write_csv(path):
    return write(path, "a,b", *(",".join(record) for record in RECORDS))


def write_tsv(path):
    return write(path, "a\tb", *("\t".join(record) for record in RECORDS))


def write_jsonl(path):
    return write_json_lines(path, *({"a": a, "b": b} for a, b in RECORDS))


def write_parquet(path):
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    a, b = zip(*RECORDS, strict=True)
    parquet.write_table(pyarrow.table({"a": list(a), "b": list(b)}), path)
    return path


@pytest.mark.parametrize(
    ("name", "writer"),
    [
        ("t.csv", write_csv),
        ("t.CSV", write_csv),
        ("t.tsv", write_tsv),
        ("t.jsonl", write_jsonl),
        ("t.ndjson", write_jsonl),
        ("t.parquet", write_parquet),
    ],
)
def test_every_format_gives_the_same_pairs(tmp_path, name, writer):
    path = writer(tmp_path / name)
    pairs = read_keys(path)
    assert pairs.modalities == ("a", "b")
    assert pairs.items["a"].values == ("a1", "a2")
    assert pairs.items["b"].ids == ("b1", "b2")
    assert pairs.positives("a", "b").tolist() == [[0, 0], [0, 1], [1, 0]]
    assert pairs.items["a"].rows.tolist() == [1, 2]
    assert pairs.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert pairs.source == path


def test_five_captions_of_a_photo_are_five_positives(folder):
    captions = [f"caption {i}" for i in range(5)]
    table = write_json_lines(folder / "p.jsonl", {"image": "1.jpg", "text": captions})
    pairs = read_pairs(table, ["image", "text"], validation=0)
    assert pairs.positives("image", "text").tolist() == [[0, i] for i in range(5)]
    assert pairs.positives("text", "image").tolist() == [[i, 0] for i in range(5)]


def test_a_cell_that_is_a_json_list_of_strings_is_a_list(tmp_path):
    pairs = read_keys(key_table(tmp_path, 'x,"[""p"", ""q""]"', "y,[p", "z,[1]", 'w,"[""[""]"'))
    assert values_by_row(pairs, "b") == [["p", "q"], ["[p"], ["[1]"], ["["]]
    assert values_by_row(read_keys(key_table(tmp_path, "x,[laughs] a man")), "b") == [
        ["[laughs] a man"]
    ]


@pytest.mark.parametrize(
    "cell", ['["a dog", "b"', "['a dog', 'a cat']", '["p"] q', '["a", 1]', '[ "a", ']
)
def test_a_cell_that_begins_as_a_list_and_is_none_is_an_error(tmp_path, cell):
    table = tmp_path / "keys.csv"
    with table.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["a", "b"], ["x", "p"], ["y", cell]])
    with pytest.raises(DataError, match=r"keys.csv row 2 \(line 3\): column 'b' holds") as caught:
        read_keys(table)
    assert "is no JSON list of texts" in str(caught.value)
    assert "write a text that begins so as a list of one" in str(caught.value)
    # As a list of one text it is that text.
    with table.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["a", "b"], ["y", json.dumps([cell])]])
    assert values_by_row(read_keys(table), "b") == [[cell]]


@pytest.mark.parametrize(
    ("name", "mark", "shown"),
    [("t.csv", ";", "';'"), ("t.csv", "\t", r"'\\t'"), ("t.tsv", ",", "','")],
)
def test_another_separator_is_told(tmp_path, name, mark, shown):
    for row in ("x{}y", "x{}y, z\tw"):
        table = write(tmp_path / name, f"a{mark}b", row.format(mark))
        with pytest.raises(DataError, match=f"the separator seems to be {shown}, expected"):
            read_keys(table)


def test_pairs_know_their_rows_and_what_was_held_out_with_what(tmp_path):
    rows = [f"x{row},y{row}" for row in range(20)]
    pairs = read_keys(key_table(tmp_path, *rows), validation=0.2, seed=7)
    assert pairs.rows.tolist() == list(range(1, 21))
    assert (pairs.split_seed, pairs.validation_share) == (7, 0.2)
    assert len(pairs.held_out()) == 4
    first, second = pairs.held_out().tolist()[:2]
    dropped = pairs.without("a", [first - 1], ["broken"])
    assert dropped.held_out().tolist() == pairs.held_out().tolist()[1:]
    again = dropped.holding_out(np.array([first, second]), seed=1, share=0.1)
    assert again.held_out().tolist() == [second]
    assert (again.split_seed, again.validation_share) == (1, 0.1)
    rows = [f"{row},{'train' if number % 2 else 'val'}" for number, row in enumerate(rows)]
    named = read_keys(key_table(tmp_path, *rows, header="a,b,split"), validation=0.2)
    assert (named.split_seed, named.validation_share) == (None, None)


def test_pairs_of_two_splits_are_counted(tmp_path):
    path = write(
        tmp_path / "p.csv",
        "a,b,split",
        "x,1,train",
        "x,2,train",
        "y,1,train",
        "y,2,validation",
        "x,2,validation",
        "y,1,validation",
        "y,1,validation",
        "z,3,test",
    )
    pairs = read_pairs(path, ["a", "b"], reads=KEYS)
    assert pairs.repeated("validation") == 2
    assert pairs.repeated("test") == 0
    with pytest.raises(UsageError, match="split"):
        pairs.repeated("other")


def test_a_list_on_both_sides_joins_each_with_each(tmp_path):
    table = write_json_lines(
        tmp_path / "p.jsonl",
        {"a": ["x", "y"], "b": ["p", "q", "p"]},
        {"a": "y", "b": ["q", "r"]},
    )
    pairs = read_keys(table)
    assert pairs.positives("a", "b").tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [1, 2]]
    assert pairs.positives("a", "b").dtype == np.int64


def test_the_same_caption_of_two_photos_is_one_text_with_two_positives(folder):
    table = write(folder / "p.csv", "image,text", "1.jpg,a dog", "2.jpg,a dog")
    pairs = read_pairs(table, ["image", "text"], validation=0)
    assert pairs.items["text"].values == ("a dog",)
    assert pairs.positives("text", "image").tolist() == [[0, 0], [0, 1]]


def test_two_ways_to_write_a_path_are_one_item_under_the_first(folder):
    (folder / "sub").mkdir()
    os.symlink(folder / "1.jpg", folder / "link.jpg")
    names = ["1.jpg", "./1.jpg", "sub/../1.jpg", str(folder / "1.jpg"), "link.jpg", "2.jpg"]
    table = write(folder / "p.csv", "image,text", *(f"{name},t" for name in names))
    images = read_pairs(table, ["image", "text"], validation=0).items["image"]
    assert images.ids == ("1.jpg", "2.jpg")
    assert images.values == (str(folder / "1.jpg"), str(folder / "2.jpg"))


def test_a_linked_file_keeps_the_name_it_is_read_by(folder):
    os.symlink(folder / "1.jpg", folder / "link.png")
    table = write(folder / "p.csv", "image", "link.png")
    assert read_items(table, "image").values == (str(folder / "link.png"),)


def test_paths_are_relative_to_the_table_not_to_the_process(folder, monkeypatch):
    table = write(folder / "p.csv", "image", "1.jpg")
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    items = read_items("../p.csv", "image")
    assert items.values == (str(folder / "1.jpg"),)
    assert items.source.is_absolute()
    assert read_keys(f"../{key_table(folder, 'x,p').name}").source.is_absolute()
    assert read_items(table, "image").values == (str(folder / "1.jpg"),)


def test_columns_may_have_other_names_than_their_modalities(folder):
    table = write(folder / "p.csv", "photo,caption", "1.jpg,a dog")
    pairs = read_pairs(table, {"image": "photo", "text": "caption"}, validation=0)
    assert pairs.items["text"].values == ("a dog",)
    assert pairs.items["image"].reads == "file"


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbfa,b\r\nx,y\r\n")
    (tmp_path / "t.jsonl").write_bytes(b'\xef\xbb\xbf{"a": "x", "b": "y"}\n')
    for name in ("t.csv", "t.jsonl"):
        assert read_keys(tmp_path / name).items["a"].values == ("x",)


def test_a_cell_may_hold_separators_quotes_and_line_ends(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b'a,b\r\n"x, ""y""\nz\r\n",p\r\nu,q\r\n')
    pairs = read_keys(path)
    assert pairs.items["a"].values == ('x, "y"\nz\r\n', "u")
    assert pairs.items["a"].lines.tolist() == [2, 5]


def test_a_long_cell_is_read(tmp_path):
    limit = csv.field_size_limit()
    path = key_table(tmp_path, f"{'x' * (limit + 1)},p")
    assert len(read_keys(path).items["a"].values[0]) == limit + 1
    assert csv.field_size_limit() == limit


def test_numbers_are_keys_and_ids_by_their_text(tmp_path):
    table = write_json_lines(
        tmp_path / "t.jsonl",
        {"a": 7, "b": [1, "2"], "id": 10},
        {"a": "7", "b": 2.5, "id": "11"},
    )
    pairs = read_keys(table)
    assert values_by_row(pairs, "a") == [["7"], ["7"]]
    assert values_by_row(pairs, "b") == [["1", "2"], ["2.5"]]


def test_blank_lines_are_no_rows(tmp_path):
    table = key_table(tmp_path, "x,p", "", "y,q", "")
    assert read_keys(table).items["a"].rows.tolist() == [1, 2]
    assert read_keys(table).items["a"].lines.tolist() == [2, 4]
    lines = write(tmp_path / "t.jsonl", '{"a": "x", "b": "p"}', "", '{"a": "y", "b": "q"}')
    assert read_keys(lines).items["a"].where(1) == "t.jsonl row 2 (line 3)"


def test_an_item_says_where_it_appears_first(tmp_path):
    items = read_keys(key_table(tmp_path, "x,p", "x,q", "y,p")).items
    assert items["a"].where(1) == "keys.csv row 3 (line 4)"
    assert items["b"].where(1) == "keys.csv row 2 (line 3)"


def test_items_and_pairs_cannot_be_changed(tmp_path):
    pairs = read_keys(key_table(tmp_path, "x,p"))
    with pytest.raises(FrozenInstanceError, match="sha256"):
        pairs.sha256 = ""
    with pytest.raises(FrozenInstanceError, match="ids"):
        pairs.items["a"].ids = ()


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=8), delimiter=st.sampled_from(",\t")
)
def test_any_text_written_by_csv_is_read_back_unchanged(tmp_path, rows, delimiter):
    assume(not any(cell.isspace() or is_json_list(cell) for row in rows for cell in row))
    path = tmp_path / ("t.csv" if delimiter == "," else "t.tsv")
    with path.open("w", encoding="utf-8", newline="") as handle:
        csv.writer(handle, delimiter=delimiter).writerows([("a", "b"), *rows])
    pairs = read_pairs(path, ["a", "b"], reads={"a": "text", "b": "text"}, validation=0)
    assert values_by_row(pairs, "a") == [[a] for a, _ in rows]
    assert values_by_row(pairs, "b") == [[b] for _, b in rows]


def is_json_list(cell):
    if re.match(r"""\[\s*["']""", cell):
        return True  # or is meant as one
    try:
        return isinstance(json.loads(cell), list)
    except (ValueError, RecursionError):
        return False


# Ids


def test_a_text_is_named_by_its_row_or_by_its_place_in_the_row(tmp_path):
    table = write_json_lines(
        tmp_path / "t.jsonl",
        {"a": "x", "b": "one"},
        {"a": "y", "b": ["one", "two", "three"]},
        {"a": "z", "b": "four"},
    )
    pairs = read_pairs(table, ["a", "b"], reads={"a": "key", "b": "text"}, validation=0)
    assert pairs.items["b"].ids == ("1", "2#1", "2#2", "3")


def test_a_text_is_named_by_the_id_of_its_row(tmp_path):
    table = write_json_lines(
        tmp_path / "t.jsonl",
        {"id": "first", "a": "x", "b": "one"},
        {"id": "second", "a": "y", "b": ["two", "three"]},
    )
    pairs = read_pairs(table, ["a", "b"], reads={"a": "key", "b": "text"}, validation=0)
    assert pairs.items["b"].ids == ("first", "second#0", "second#1")
    assert pairs.items["a"].ids == ("x", "y")


def test_an_id_twice_is_an_error_that_names_both_rows(tmp_path):
    table = key_table(tmp_path, "i,x,p", "j,y,q", "i,z,r", header="id,a,b")
    expected = r"keys\.csv row 3 \(line 4\): id 'i' is taken by keys\.csv row 1 \(line 2\)"
    with pytest.raises(DataError, match=expected):
        read_keys(table)
    assert (
        len(
            read_pairs(
                table, KEYS | {"a": "a", "b": "b", "id": None}, reads=KEYS, validation=0
            ).items["a"]
        )
        == 3
    )


def test_an_id_that_looks_like_the_place_of_another_is_an_error(tmp_path):
    table = write_json_lines(
        tmp_path / "t.jsonl",
        {"id": "i", "a": "x", "b": ["one", "two"]},
        {"id": "i#1", "a": "y", "b": "three"},
    )
    with pytest.raises(DataError, match=r"t\.jsonl row 2: the id 'i#1' of a text is taken"):
        read_pairs(table, ["a", "b"], reads={"a": "key", "b": "text"}, validation=0)


@pytest.mark.parametrize(
    ("value", "message"), [("", "column 'id' is empty"), ([1], "column 'id' holds a list")]
)
def test_an_id_must_be_a_text_or_a_number(tmp_path, value, message):
    table = write_json_lines(tmp_path / "t.jsonl", {"id": value, "a": "x", "b": "y"})
    with pytest.raises(DataError, match=rf"t\.jsonl row 1: {message}"):
        read_keys(table)


# Malformed tables


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"t\.csv: is empty, expected a header and rows"),
        ("a,b\n", r"t\.csv: has no rows, expected at least one"),
        ("a,b,a\n1,2,3\n", r"t\.csv header: names 'a' 2 times"),
        ("a,b\n1,2\n3\n", r"t\.csv row 2 \(line 3\): has 1 cells, expected 2"),
        ("a,b\n1,2,3\n", r"t\.csv row 1 \(line 2\): has 3 cells, expected 2"),
        ("a,b\n1\n2\n3\n", r"row 1 \(line 2\): has 1 cells.*\(and 2 more rows\)"),
        ('a,b\n1,2\n3,"4\n5,6\n', r"t\.csv row 2 \(line 3\): has a quote that is never closed"),
        ('a,b\n1,"2"3\n', r"t\.csv row 1 \(line 2\): is not well quoted .*double each inside"),
        ('a,b\n1\n2,"3', r"row 1 \(line 2\): has 1 cells.*\(and 1 more row\)"),
        ('a,"b\n1,2\n', r"t\.csv header: has a quote that is never closed"),
    ],
)
def test_a_malformed_csv_is_an_error_with_its_row(tmp_path, content, message):
    (tmp_path / "t.csv").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_keys(tmp_path / "t.csv", on_error="skip")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"t\.jsonl: has no rows"),
        ('{"a": 1, "b": 2}\n{"a": 1,\n', r"t\.jsonl row 2: is not JSON \(.* at column 9\)"),
        ('\n{"a"}\n', r"t\.jsonl row 1 \(line 2\): is not JSON"),
        ("[1, 2]\n", r"t\.jsonl row 1: is JSON, but a list, expected an object"),
        ("3\n4\n", r"row 1: is JSON, but a number, expected an object.*\(and 1 more row\)"),
        ("[" * 100_000 + "\n", r"t\.jsonl row 1: is not JSON that can be read"),
        ('{"a": ' + "1" * 5000 + "}\n", r"t\.jsonl row 1: is not JSON that can be read"),
        ('{"a": {"x": 1}, "b": 1}\n', r"row 1: column 'a' holds an object, expected a key"),
        ('{"a": true, "b": 1}\n', r"row 1: column 'a' holds true or false, expected a key"),
        ('{"a": [["x"]], "b": 1}\n', r"row 1: column 'a' holds a list, expected a key"),
        ('{"a": "\\ud800", "b": 1}\n', r"t\.jsonl row 1: is not UTF-8"),
    ],
)
def test_a_malformed_jsonl_is_an_error_with_its_row(tmp_path, content, message):
    (tmp_path / "t.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_keys(tmp_path / "t.jsonl", on_error="skip")


def test_a_number_is_no_text(tmp_path):
    table = write_json_lines(tmp_path / "t.jsonl", {"a": "x", "b": 3})
    with pytest.raises(DataError, match="row 1: column 'b' holds a number, expected text"):
        read_pairs(table, ["a", "b"], reads={"a": "key", "b": "text"})


def test_a_file_that_is_not_parquet_is_an_error(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "t.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"t\.parquet: is not Parquet that can be read"):
        read_keys(tmp_path / "t.parquet")


def test_an_empty_cell_of_parquet_is_found_by_its_row(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"a": ["x", None], "b": [["p"], ["q", "r"]]})
    parquet.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"t\.parquet row 2: column 'a' is empty"):
        read_keys(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    ("name", "content", "where"),
    [
        ("t.csv", b"a,b\nx,y\nx,caf\xe9\n", r"row 2 \(line 3\)"),
        ("t.csv", b"a,b\xe9\nx,y\n", "header"),
        ("t.csv", "a,b\nx,y\n".encode("utf-16"), "header"),
        ("t.jsonl", b'{"a": "x", "b": "caf\xe9"}\n', "row 1"),
        ("t.jsonl", '{"a": "x"}\n'.encode("utf-16"), "row 1"),
    ],
)
def test_text_that_is_not_utf8_is_an_error_with_its_row(tmp_path, name, content, where):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{where}: is not UTF-8 text; save the file again"):
        read_keys(tmp_path / name)


def test_an_unknown_ending_lists_the_known(tmp_path):
    with pytest.raises(DataError, match=r"'\.xlsx' is not supported, expected one of \.csv, \.tsv"):
        read_keys(write(tmp_path / "t.xlsx", "a,b"))
    with pytest.raises(DataError, match=r"'\.gz' is not supported.*unpack the file first"):
        read_keys(write(tmp_path / "t.tsv.gz", "a\tb"))


def test_a_missing_table_and_a_folder_in_its_place_are_errors(tmp_path):
    with pytest.raises(DataError, match=r"no\.csv: there is no such file"):
        read_keys(tmp_path / "no.csv")
    with pytest.raises(DataError, match=r"is a folder, expected a table \(\.csv, "):
        read_keys(tmp_path)


# What is asked for


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet"])
def test_a_missing_column_lists_the_columns_there_are(tmp_path, name):
    writers = {"t.csv": write_csv, "t.jsonl": write_jsonl, "t.parquet": write_parquet}
    table = writers[name](tmp_path / name)
    with pytest.raises(DataError, match=r"has no column 'photo'; its columns: a, b;"):
        read_pairs(table, {"image": "photo", "b": "b"}, reads={"b": "key"})


def test_an_absent_reserved_column_is_missed_only_where_it_was_named(tmp_path):
    table = key_table(tmp_path, "x,p")
    columns = {"a": "a", "b": "b"}
    read_pairs(table, columns, reads=KEYS, validation=0)
    with pytest.raises(DataError, match="has no column 'part'"):
        read_pairs(table, {**columns, "split": "part"}, reads=KEYS)


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ("image", {}, "columns is the text 'image'"),
        (["a"], {"reads": {"a": "key"}}, r"columns name 1 modalities \(a\), expected at least two"),
        ([], {}, r"columns name 0 modalities \(none\)"),
        (["text", "b"], {}, "modality 'b': nothing says what its column holds"),
        (["a", "b"], {"reads": {"a": "key", "b": "number"}}, "'number' is unknown; known: file,"),
        (["text", "image"], {"reads": KEYS}, "reads: modality 'a' is unknown; known: image, text"),
        ({"image": None, "text": "b"}, {}, "modality 'image': no column is named"),
        (["text", "image"], {"on_error": "stop"}, "on_error 'stop' is unknown; known: raise, skip"),
        (["text", "image"], {"validation": 0.6}, r"validation is 0\.6, expected a share"),
        (["text", "image"], {"validation": float("nan")}, "validation is nan"),
    ],
)
def test_a_call_that_cannot_be_meant_is_a_usage_error(tmp_path, columns, options, message):
    with pytest.raises(UsageError, match=message):
        read_pairs(key_table(tmp_path, "x,p"), columns, **options)


# Empty cells and missing files


@pytest.mark.parametrize("cell", ["", "  ", "[]", '"["""", ""x""]"'])
def test_an_empty_cell_is_an_error_with_its_row(tmp_path, cell):
    table = key_table(tmp_path, "x,p", f"y,{cell}")
    with pytest.raises(
        DataError, match=r"row 2 \(line 3\): column 'b' is empty, expected a key; .*--on-error skip"
    ):
        read_keys(table)


@pytest.mark.parametrize("record", [{"a": "x"}, {"a": "x", "b": None}, {"a": "x", "b": []}])
def test_an_absent_value_of_json_is_an_empty_cell(tmp_path, record):
    table = write_json_lines(tmp_path / "t.jsonl", {"a": "x", "b": "y"}, record)
    with pytest.raises(DataError, match=r"t\.jsonl row 2: column 'b' is empty"):
        read_keys(table)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "no.jpg",
            r"column 'image': 'no\.jpg' does not exist in .*, expected the path of an image",
        ),
        ("A dog runs.", r"'A dog runs\.' looks like text, expected the path of an image file"),
        ("a dog " * 99, r"'a dog .*…' looks like text"),
        ("hello there.everybody", r"'hello there\.everybody' looks like text"),
        ("dog", "'dog' does not exist"),
        ("my dog.jpg", r"'my dog\.jpg' does not exist"),
        ("sub", "'sub' is a folder, expected the path of an image file"),
        ("1.jpg/x.jpg", r"'1\.jpg/x\.jpg' cannot be opened \(Not a directory\)"),
        ("a\0b.jpg", r"'a\\x00b\.jpg' cannot be opened"),
        ("https://example.org/1.jpg", "is an address, expected the path of a file; download"),
        ("pipe", "'pipe' is no regular file"),
    ],
)
def test_a_path_without_a_file_is_an_error_with_row_and_value(folder, value, message):
    (folder / "sub").mkdir()
    os.mkfifo(folder / "pipe")
    table = write_json_lines(
        folder / "p.jsonl", {"image": "1.jpg", "text": "t"}, {"image": value, "text": "t"}
    )
    with pytest.raises(DataError, match=rf"p\.jsonl row 2: .*{message}") as caught:
        read_pairs(table, ["image", "text"])
    assert (caught.value.row, caught.value.value) == (2, value)


def test_the_first_of_many_wrong_rows_is_shown_and_the_others_are_counted(folder):
    rows = [f"{i}.png,t" for i in range(18)]
    table = write(folder / "p.csv", "image,text", "1.jpg,t", *rows)
    with pytest.raises(DataError, match=r"p\.csv row 2 .*'0\.png'.*\(and 17 more rows\)"):
        read_pairs(table, ["image", "text"])


def test_skipping_leaves_out_wrong_rows_with_all_their_items_and_lists_them(folder):
    table = write(
        folder / "p.csv",
        "image,text",
        "1.jpg,one",
        "no.jpg,only here",
        "2.jpg,",
        "3.jpg,one",
        ",",
    )
    pairs = read_pairs(table, ["image", "text"], validation=0, on_error="skip")
    assert pairs.items["image"].ids == ("1.jpg", "3.jpg")
    assert pairs.items["text"].values == ("one",)
    assert pairs.items["image"].rows.tolist() == [1, 4]
    assert pairs.positives("text", "image").tolist() == [[0, 0], [0, 1]]
    assert pairs.split_sizes() == {"train": 2}
    assert [(s.where, s.value) for s in pairs.skipped] == [
        ("p.csv row 2 (line 3)", "no.jpg"),
        ("p.csv row 3 (line 4)", ""),
        ("p.csv row 5 (line 6)", ""),
    ]
    assert "'no.jpg' does not exist" in pairs.skipped[0].reason
    assert "column 'image' is empty" in pairs.skipped[2].reason


def test_the_rows_left_after_skipping_keep_their_splits(tmp_path):
    table = key_table(tmp_path, ",p,train", "x,q,train", "y,r,val", header="a,b,split")
    pairs = read_keys(table, on_error="skip", validation=0.1)
    assert pairs.members("a", split="train").tolist() == [0]
    assert pairs.positives("a", "b", split="validation").tolist() == [[1, 1]]


def test_nothing_left_to_use_is_an_error(folder):
    table = write(folder / "p.csv", "image,text", "no.jpg,t", "2.jpg,")
    with pytest.raises(DataError, match=r"p\.csv: all 2 rows would be skipped .*row 1 .*no\.jpg"):
        read_pairs(table, ["image", "text"], on_error="skip")


# Splits


def test_the_split_column_is_read_in_all_its_words(tmp_path):
    words = ["train", "validation", "val", "valid", "dev", "test"]
    rows = [f"a{i},b{i},{word}" for i, word in enumerate(words)]
    pairs = read_keys(key_table(tmp_path, *rows, header="a,b,split"), validation=0.1)
    assert pairs.split_sizes() == {"train": 1, "validation": 4, "test": 1}
    assert pairs.members("a", split="validation").tolist() == [1, 2, 3, 4]
    assert pairs.positives("a", "b", split="test").tolist() == [[5, 5]]
    assert pairs.members("a").tolist() == [0, 1, 2, 3, 4, 5]


def test_an_unknown_split_lists_the_known(tmp_path):
    table = key_table(tmp_path, "x,p,train", "y,q,eval", "z,r,Train", header="a,b,split")
    message = r"row 2 \(line 3\): split 'eval' is unknown; known: train, validation, val, .*1 more"
    with pytest.raises(DataError, match=message):
        read_keys(table)


def test_an_empty_split_is_an_empty_cell(tmp_path):
    table = key_table(tmp_path, "x,p,train", "y,q,", "z,r,val", header="a,b,split")
    with pytest.raises(DataError, match=r"row 2 \(line 3\): column 'split' is empty"):
        read_keys(table)
    assert read_keys(table, on_error="skip", validation=0.1).split_sizes() == {
        "train": 1,
        "validation": 1,
    }


@pytest.mark.parametrize(("word", "absent"), [("train", "validation"), ("val", "train")])
def test_a_split_column_without_train_or_validation_rows_is_an_error(tmp_path, word, absent):
    table = key_table(tmp_path, *(f"a{i},b{i},{word}" for i in range(5)), header="a,b,split")
    with pytest.raises(DataError, match=rf"keys\.csv: its splits have no {absent} rows"):
        read_keys(table, validation=0.1)
    assert sum(read_keys(table, validation=0).split_sizes().values()) == 5


def test_the_split_column_can_be_ignored_or_be_another(tmp_path):
    rows = [f"a{i},b{i},test,{'dev' if i else 'train'}" for i in range(5)]
    table = key_table(tmp_path, *rows, header="a,b,split,part")
    columns = {"a": "a", "b": "b"}
    ignored = read_pairs(table, {**columns, "split": None}, reads=KEYS)
    assert ignored.split_sizes() == {"train": 3, "validation": 2}
    other = read_pairs(table, {**columns, "split": "part"}, reads=KEYS)
    assert other.split_sizes() == {"train": 1, "validation": 4}


def split_of(pairs, modality):
    """Each value's split, which must be one."""
    items = pairs.items[modality]
    parts = {
        name: set(pairs.members(modality, split=name).tolist()) for name in ("train", "validation")
    }
    assert not parts["train"] & parts["validation"]
    return {items.values[i]: name for name, part in parts.items() for i in part}


def test_rows_that_share_a_file_or_a_key_are_held_out_together(tmp_path):
    # Chained over both columns: a0-b0, a0-b1, a1-b1 ...: groups of 4 rows without a common item.
    rows = [f"a{g}{i},b{g}{j}" for g in range(20) for i, j in [(0, 0), (0, 1), (1, 1), (1, 2)]]
    pairs = read_keys(key_table(tmp_path, *rows), validation=0.1)
    assert pairs.split_sizes() == {"train": 72, "validation": 8}
    groups = {name[1:-1] for name, split in split_of(pairs, "a").items() if split == "validation"}
    assert len(groups) == 2
    assert groups == {
        name[1:-1] for name, split in split_of(pairs, "b").items() if split == "validation"
    }


def test_two_chains_that_meet_late_are_one_group(tmp_path):
    rows = ["a1,b1", "a2,b2", "a3,b3", "a3,b1", "a2,b3", *(f"x{i},y{i}" for i in range(4))]
    pairs = read_keys(key_table(tmp_path, *rows), validation=0.5)
    assert len({split_of(pairs, "a")[name] for name in ("a1", "a2", "a3")}) == 1


def test_a_list_cell_ties_its_items_together(tmp_path):
    rows = [{"a": [f"l{i}", f"r{i}"], "b": f"{i}"} for i in range(10)]
    rows += [{"a": f"r{i}", "b": f"other {i}"} for i in range(10)]
    pairs = read_keys(write_json_lines(tmp_path / "t.jsonl", *rows), validation=0.3)
    splits = split_of(pairs, "a")
    assert all(splits[f"l{i}"] == splits[f"r{i}"] for i in range(10))
    assert pairs.split_sizes() == {"train": 14, "validation": 6}


def test_a_label_text_shared_by_many_rows_glues_nothing(tmp_path):
    table = key_table(tmp_path, *(f"a{i},dog" for i in range(40)))
    pairs = read_pairs(table, ["a", "b"], reads={"a": "key", "b": "text"})
    assert pairs.split_sizes() == {"train": 36, "validation": 4}
    with pytest.raises(DataError, match=r"its 40 rows form 1 groups that share no a or b item"):
        read_pairs(table, ["a", "b"], reads=KEYS)


def test_where_all_is_text_rows_that_share_the_first_are_held_out_together(tmp_path):
    table = key_table(tmp_path, *(f"de {i // 2},en" for i in range(20)))
    pairs = read_pairs(table, ["a", "b"], reads={"a": "text", "b": "text"}, validation=0.3)
    split_of(pairs, "a")
    assert pairs.split_sizes() == {"train": 14, "validation": 6}


def test_the_same_seed_holds_out_the_same_rows_in_any_order(tmp_path):
    rows = [f"a{i},b{i}" for i in range(60)]
    first = split_of(read_keys(key_table(tmp_path, *rows), validation=0.2), "a")
    again = split_of(read_keys(key_table(tmp_path, *reversed(rows)), validation=0.2), "a")
    other = split_of(read_keys(key_table(tmp_path, *rows), validation=0.2, seed=1), "a")
    assert first == again != other
    assert list(first.values()).count("validation") == 12
    held_out = sorted(
        (f"a{i}" for i in range(60)), key=lambda k: hashlib.sha256(f"0\0{k}".encode()).digest()
    )[:12]
    assert {k for k, split in first.items() if split == "validation"} == set(held_out)


def test_the_draw_of_texts_does_not_depend_on_their_order(tmp_path):
    rows = [f"de {i},en {i}" for i in range(40)]
    drawn = []
    for ordered in (rows, rows[::-1]):
        table = key_table(tmp_path, *ordered)
        drawn.append(
            split_of(read_pairs(table, ["a", "b"], reads=dict.fromkeys("ab", "text")), "a")
        )
    assert drawn[0] == drawn[1]


def test_the_draw_does_not_depend_on_where_the_files_lie(tmp_path):
    drawn = []
    for place in ("here", "there"):
        folder = tmp_path / place
        folder.mkdir()
        for i in range(30):
            (folder / f"{i}.jpg").write_bytes(b"")
        table = write(folder / "p.csv", "image,text", *(f"{i}.jpg,t{i}" for i in range(30)))
        drawn.append(read_pairs(table, ["image", "text"]).members("image", split="validation"))
    assert drawn[0].tolist() == drawn[1].tolist()


def test_at_least_two_groups_are_held_out_of_at_least_four(tmp_path):
    rows = [f"a{i},b{i}" for i in range(4)]
    assert read_keys(key_table(tmp_path, *rows), validation=0.1).split_sizes() == {
        "train": 2,
        "validation": 2,
    }
    with pytest.raises(DataError, match=r"its 3 rows form 3 groups .*needed at least 4"):
        read_keys(key_table(tmp_path, *rows[:3]), validation=0.1)


def test_unknown_modalities_and_splits_are_usage_errors(tmp_path):
    pairs = read_keys(key_table(tmp_path, "x,p"))
    with pytest.raises(UsageError, match="modality 'c' is unknown; known: a, b"):
        pairs.positives("a", "c")
    with pytest.raises(UsageError, match="split 'val' is unknown; known: test, train, validation"):
        pairs.members("a", split="val")
    assert pairs.positives("a", "b", split="test").shape == (0, 2)
    assert pairs.members("a", split="test").tolist() == []


# Leaving items out later


def test_without_drops_an_item_its_rows_and_what_is_left_alone(tmp_path):
    table = key_table(tmp_path, "x,p", "y,p", "y,q", "z,r")
    pairs = read_keys(table)
    rest = pairs.without("a", [1], ["it is broken"])
    assert rest.items["a"].ids == ("x", "z")
    assert rest.items["b"].ids == ("p", "r")
    assert rest.positives("a", "b").tolist() == [[0, 0], [1, 1]]
    assert rest.items["b"].where(1) == "keys.csv row 4 (line 5)"
    assert rest.split_sizes() == {"train": 2}
    assert rest.skipped == (Skipped("keys.csv row 2 (line 3)", "y", "it is broken"),)
    assert rest.sha256 == pairs.sha256
    assert len(pairs.items["a"]) == 3


def test_without_keeps_a_row_that_has_another_item_of_the_modality(tmp_path):
    table = write_json_lines(
        tmp_path / "t.jsonl", {"a": "x", "b": ["p", "q"]}, {"a": "y", "b": "q"}
    )
    rest = read_keys(table).without("b", [1], ["broken"])
    assert values_by_row(rest, "a") == [["x"]]
    assert values_by_row(rest, "b") == [["p"]]


def test_the_rows_left_without_an_item_keep_their_splits(tmp_path):
    rows = ["x,p,train", "y,q,train", "z,r,val"]
    pairs = read_keys(key_table(tmp_path, *rows, header="a,b,split"))
    rest = pairs.without("a", [0], ["broken"])
    assert rest.members("b", split="train").tolist() == [0]
    assert rest.positives("a", "b", split="validation").tolist() == [[1, 1]]


# Rows that lack modalities


THREE = {"a": "key", "b": "key", "c": "key"}


def read_three(path, **options):
    options = {"validation": 0, "may_be_empty": True, **options}
    return read_pairs(path, ["a", "b", "c"], reads=THREE, **options)


def test_a_row_may_lack_modalities_where_that_is_allowed(tmp_path):
    rows = ["x,p,u", "y,,v", ",q,w"]
    pairs = read_three(key_table(tmp_path, *rows, header="a,b,c"))
    assert values_by_row(pairs, "a") == [["x"], ["y"], []]
    assert values_by_row(pairs, "b") == [["p"], [], ["q"]]
    assert pairs.positives("a", "b").tolist() == [[0, 0]]
    assert pairs.positives("a", "c").tolist() == [[0, 0], [1, 1]]
    with pytest.raises(DataError, match=r"row 2 .*column 'b' is empty"):
        read_three(key_table(tmp_path, *rows, header="a,b,c"), may_be_empty=False)


def test_a_row_of_one_modality_joins_nothing(tmp_path):
    table = key_table(tmp_path, "x,p,u", "y,,", header="a,b,c")
    message = r"row 2 \(line 3\): 1 of the columns 'a', 'b', 'c' hold something, expected two"
    with pytest.raises(DataError, match=message):
        read_three(table)
    pairs = read_three(table, on_error="skip")
    assert len(pairs.skipped) == 1
    assert len(pairs.splits) == 1


def test_rows_that_lack_a_modality_are_held_out_with_those_they_share_items_with(tmp_path):
    rows = [f"x{n // 2},{'' if n % 2 else f'p{n}'},u{n}" for n in range(40)]
    rows += [f",p{n},u{n}" for n in range(40, 80)]
    pairs = read_three(key_table(tmp_path, *rows, header="a,b,c"), validation=0.2)
    assert set(pairs.split_sizes()) == {"train", "validation"}
    splits = pairs.splits[:40].reshape(20, 2)
    assert (splits[:, 0] == splits[:, 1]).all()
    assert pairs.splits[40:].any()


def test_without_keeps_rows_that_never_had_the_modality(tmp_path):
    pairs = read_three(key_table(tmp_path, "x,p,u", "y,,v", "z,q,w", header="a,b,c"))
    rest = pairs.without("b", [0], ["broken"])
    assert values_by_row(rest, "a") == [["y"], ["z"]]
    assert values_by_row(rest, "b") == [[], ["q"]]


def test_without_nothing_changes_nothing(tmp_path):
    pairs = read_keys(key_table(tmp_path, "x,p", "y,q")).without("a", [], [])
    assert (pairs.items["a"].ids, pairs.skipped) == (("x", "y"), ())


def test_without_the_last_rows_of_a_split_is_an_error(tmp_path):
    table = key_table(tmp_path, "x,p,train", "y,q,val", header="a,b,split")
    with pytest.raises(
        DataError, match=r"no validation rows are left without 1 items \(the first, .*row 2 .*cut"
    ):
        read_keys(table).without("a", [1], ["cut off"])


def test_without_an_unknown_item_or_a_reason_is_a_usage_error(tmp_path):
    pairs = read_keys(key_table(tmp_path, "x,p", "y,q"))
    with pytest.raises(UsageError, match="a item 2 is unknown, expected 0 to 1"):
        pairs.without("a", [2], ["broken"])
    with pytest.raises(UsageError, match="a item -1 is unknown"):
        pairs.without("a", [-1], ["broken"])
    with pytest.raises(UsageError, match="1 items and 0 reasons"):
        pairs.without("a", [1], [])
    with pytest.raises(UsageError, match="modality 'c' is unknown"):
        pairs.without("c", [1], ["broken"])


# Items alone


def test_the_items_of_a_folder_are_its_fitting_files_in_order(folder):
    for name in ["b/2.PNG", "b/.hidden.jpg", ".git/3.jpg", "a/notes.txt", "a/sound.wav"]:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"")
    images = read_items(folder, "image")
    assert images.ids == (*PHOTOS, "b/2.PNG")
    assert images.values[-1] == str(folder / "b" / "2.PNG")
    assert images.where(5) == f"{folder.name}/b/2.PNG"
    assert read_items(folder, "audio").ids == ("a/sound.wav",)
    assert read_items(folder, "note", reads="file").ids == (
        *PHOTOS,
        "a/notes.txt",
        "a/sound.wav",
        "b/2.PNG",
    )


def test_linked_folders_are_followed_once(folder):
    (folder / "sub").mkdir()
    (folder / "sub" / "s.jpg").write_bytes(b"")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "h.jpg").write_bytes(b"")
    os.symlink(folder, folder / "0")
    os.symlink(folder / ".hidden", folder / "linked")
    os.symlink(folder / "1.jpg", folder / "z.jpg")
    assert read_items(folder, "image").ids == (*PHOTOS, "linked/h.jpg", "sub/s.jpg")


def test_a_folder_without_fitting_files_says_what_it_holds(tmp_path):
    with pytest.raises(DataError, match=r"holds no image file, expected \.bmp, .*; found nothing"):
        read_items(tmp_path, "image")
    for name in ("a.txt", "b.TXT", "README"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=r"found 2 \.txt, 1 no ending"):
        read_items(tmp_path, "image")


def test_a_broken_link_in_a_folder_is_an_error_or_is_skipped(folder):
    os.symlink(folder / "gone.jpg", folder / "0.jpg")
    with pytest.raises(DataError, match=r"/0\.jpg: '0\.jpg' does not exist"):
        read_items(folder, "image")
    images = read_items(folder, "image", on_error="skip")
    assert images.ids == tuple(PHOTOS)
    assert [skipped.value for skipped in images.skipped] == ["0.jpg"]


def test_a_folder_holds_no_texts(folder):
    with pytest.raises(UsageError, match="is a folder of files, and text reads a text"):
        read_items(folder, "text")


def test_a_text_file_gives_one_item_a_line(tmp_path):
    path = tmp_path / "t.txt"
    path.write_bytes('\ufeffa dog\r\n\r\n["x"] \r\na dog\r\nlast'.encode())
    items = read_items(path, "text")
    assert items.values == ("a dog", '["x"] ', "last")
    assert items.ids == ("1", "2", "4")
    assert items.where(1) == "t.txt row 2 (line 3)"
    assert items.reads == "text"


def test_a_text_file_may_list_paths(folder):
    images = read_items(write(folder / "list.txt", "2.jpg", "1.jpg"), "image")
    assert images.values == (str(folder / "2.jpg"), str(folder / "1.jpg"))


def test_an_empty_text_file_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"t\.txt: is empty, expected one item a line"):
        read_items(write(tmp_path / "t.txt", ""), "text")


def test_a_column_of_a_table_gives_items(folder):
    table = write(folder / "p.csv", "id,image,caption", "i,1.jpg,a dog", "j,2.jpg,a cat")
    assert read_items(table, "image").ids == ("1.jpg", "2.jpg")
    texts = read_items(table, "text", column="caption")
    assert (texts.ids, texts.values) == (("i", "j"), ("a dog", "a cat"))
    assert read_items(table, "molecule", column="id", reads="key").values == ("i", "j")


def test_items_of_a_table_are_checked_as_pairs_are(folder):
    table = write(folder / "p.csv", "image", "1.jpg", "no.jpg")
    with pytest.raises(DataError, match=r"p\.csv row 2 \(line 3\): column 'image': 'no\.jpg'"):
        read_items(table, "image")
    images = read_items(table, "image", on_error="skip")
    assert images.ids == ("1.jpg",)
    assert images.skipped[0].where == "p.csv row 2 (line 3)"


def test_a_call_for_items_that_cannot_be_meant_is_an_error(folder):
    with pytest.raises(DataError, match="no: there is no such file or folder"):
        read_items(folder / "no", "image")
    with pytest.raises(UsageError, match="has no columns, and column 'x' was named"):
        read_items(folder, "image", column="x")
    with pytest.raises(UsageError, match="modality 'smell': nothing says what"):
        read_items(folder, "smell")
    with pytest.raises(DataError, match="has no column 'image'; its columns: photo"):
        read_items(write(folder / "p.csv", "photo", "1.jpg"), "image")


def test_reading_pairs_loads_neither_torch_nor_pyarrow(tmp_path):
    code = (
        f"import sys; sys.path[:] = {sys.path}; from modalign.pairs import read_items; "
        f"read_items({str(write_csv(tmp_path / 't.csv'))!r}, 'text', column='a'); "
        "print('torch' in sys.modules, 'pyarrow' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert out.stdout.split() == ["False", "False"]


# Real manifests


@pytest.mark.data
def test_the_manifest_of_flickr8k_is_read(data_folder):
    pairs = read_pairs(
        data_folder / "flickr8k/manifest.jsonl", {"image": "image", "text": "captions"}
    )
    assert len(pairs.items["image"]) == 5000
    assert pairs.split_sizes() == {"train": 4500, "validation": 500}
    captions = {tuple(pair) for pair in pairs.positives("image", "text").tolist()}
    lines = (data_folder / "flickr8k/manifest.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert len(captions) == sum(len(set(record["captions"])) for record in records)
    assert len(pairs.items["text"]) == len({text for r in records for text in r["captions"]})
    held_out = pairs.members("image", split="validation")
    assert len(held_out) == 500


@pytest.mark.data
def test_the_manifest_of_esc10_is_read_with_its_labels_as_shared_texts(data_folder):
    columns = {"audio": "audio", "text": "label"}
    manifest = data_folder / "esc10/manifest.csv"
    pairs = read_pairs(manifest, columns)
    assert (len(pairs.items["audio"]), len(pairs.items["text"])) == (320, 10)
    assert pairs.split_sizes() == {"train": 240, "validation": 80}
    drawn = read_pairs(manifest, {**columns, "split": None})
    assert drawn.split_sizes() == {"train": 288, "validation": 32}


@pytest.mark.data
def test_a_packed_manifest_is_refused_with_the_endings_that_are_read(data_folder):
    with pytest.raises(DataError, match=r"pairs\.tsv\.gz: ending '\.gz' .*\.parquet; unpack"):
        read_pairs(
            data_folder / "multi30k_text/pairs.tsv.gz",
            {"text": "en", "de": "de"},
            reads={"de": "text"},
        )


@pytest.mark.data
def test_the_molecules_are_read_by_their_keys(data_folder):
    columns = {"molecule": "SMILES", "text": "description"}
    pairs = read_pairs(data_folder / "molecules/pairs.tsv", columns, reads={"molecule": "key"})
    assert pairs.split_sizes() == {"train": 2963, "validation": 337}
