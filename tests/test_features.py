"""Features: encoded once, stored by content, read at random; kills, mixing and broken files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modalign.encoders.contract import Encoder, Features, stack_features
from modalign.errors import CorruptError, DataError, MismatchError, ShapeError
from modalign.features import FeatureStore, encode_items
from modalign.features.encoding import cache_folder, content_keys
from modalign.features.store import FeatureArray, differences
from modalign.pairs import Items
from modalign.storage import TEMPORARY, read_json, save_array, write_json

WIDTH = 3


class Noted(Encoder):
    """A text's feature is drawn from its letters; every computed text is noted.

    As tokens it has as many positions as the text has letters.
    """

    modality, spec, reads, width = "text", "noted:letters", "text", WIDTH
    batch_size, lookahead = 4, 8

    def __init__(self, *, output: str = "vectors", seed: int = 0) -> None:
        self.output = output  # type: ignore[assignment]
        self.seed = seed
        self.computed: list[str] = []

    def describe(self) -> dict[str, Any]:
        return {"adapter": "noted", "output": self.output, "seed": self.seed, "sizes": (1, 2)}

    def prepare(self, value: str) -> str:
        if value.startswith("broken"):
            raise DataError(f"{value}: has no letters", value=value)
        return value

    def length_of(self, prepared: str) -> int:
        return len(prepared) if self.output == "tokens" else 0

    def compute(self, inputs: Sequence[str], *, rows: int, length: int) -> Features:
        if "stop" in inputs:
            raise KeyboardInterrupt
        self.computed += inputs
        return stack_features([self.one(v) for v in inputs], width=WIDTH, output=self.output)

    def one(self, value: str) -> Features:
        """Return what is computed for a text, alone."""
        rng = np.random.default_rng([self.seed, zlib.crc32(value.encode())])
        if value.startswith("nan"):
            return Features(np.full((1, WIDTH), np.nan, np.float32))
        if self.output == "vectors":
            return Features(rng.standard_normal((1, WIDTH), np.float32))
        values = rng.standard_normal((1, len(value), WIDTH), np.float32)
        return Features(values, np.ones((1, len(value)), bool))


class NotedFiles(Noted):
    """The same for files: the text is what the file holds."""

    modality, spec, reads = "note", "noted:files", "file"

    def prepare(self, value: str) -> str:
        return super().prepare(Path(value).read_text(encoding="utf-8"))


def texts(*values: str) -> Items:
    ids = tuple(f"id{row}" for row in range(len(values)))
    rows = np.arange(1, len(values) + 1)
    return Items("text", "text", ids, values, Path("notes.csv"), rows, rows + 1)


def files(folder: Path, *contents: str) -> Items:
    """Items of a folder of files, a.txt, b.txt and so on, that hold `contents`."""
    names = [f"{chr(ord('a') + row)}.txt" for row in range(len(contents))]
    for name, content in zip(names, contents, strict=True):
        (folder / name).write_text(content, encoding="utf-8")
    values = tuple(str(folder / name) for name in names)
    zeros = np.zeros(len(names), np.int64)
    return Items("note", "file", tuple(names), values, folder, zeros, zeros)


def words(count: int) -> list[str]:
    """Different texts of many lengths."""
    return [f"{chr(ord('a') + row % 26) * (1 + row % 7)}{row}" for row in range(count)]


def expected(encoder: Noted, values: Sequence[str]) -> np.ndarray:
    """What must be read back of some texts, float16."""
    return np.concatenate([encoder.one(value).values for value in values]).astype(np.float16)


def store_folder(cache: Path) -> Path:
    (folder,) = cache.iterdir()
    return folder


# Encoded once


@pytest.mark.parametrize("output", ["vectors", "tokens"])
def test_a_second_call_encodes_nothing_and_reads_the_same(tmp_path, output):
    items = texts(*words(10))
    first = Noted(output=output)
    encode_items(items, first, cache=tmp_path)
    assert sorted(first.computed) == sorted(items.values)
    second = Noted(output=output)
    result = encode_items(items, second, cache=tmp_path)
    assert (result.encoded, second.computed) == (0, [])
    read = result.table.take(np.arange(10))
    assert read.values.dtype == np.float16
    assert np.array_equal(
        read.values, encode_items(items, first, cache=tmp_path).table.take(np.arange(10)).values
    )


def test_only_what_is_new_is_encoded(tmp_path):
    encode_items(texts("a", "b"), Noted(), cache=tmp_path)
    encoder = Noted()
    result = encode_items(texts("b", "c", "a", "d"), encoder, cache=tmp_path)
    assert (result.encoded, encoder.computed) == (2, ["c", "d"])
    assert np.array_equal(
        result.table.take(np.arange(4)).values, expected(encoder, ["b", "c", "a", "d"])
    )


def test_the_same_content_under_two_names_is_encoded_once(tmp_path):
    folder = tmp_path / "items"
    folder.mkdir()
    encoder = NotedFiles()
    items = files(folder, "cat", "dog", "cat")
    result = encode_items(items, encoder, cache=tmp_path / "cache")
    assert encoder.computed == ["cat", "dog"]
    assert (result.encoded, len(result.table), len(result.table.store)) == (2, 3, 2)
    assert np.array_equal(
        result.table.take(np.arange(3)).values, expected(encoder, ["cat", "dog", "cat"])
    )


def test_a_file_whose_content_changed_is_encoded_again(tmp_path):
    folder = tmp_path / "items"
    folder.mkdir()
    before = encode_items(files(folder, "cat"), NotedFiles(), cache=tmp_path / "cache")
    encoder = NotedFiles()
    after = encode_items(files(folder, "dog"), encoder, cache=tmp_path / "cache")
    assert encoder.computed == ["dog"]
    assert before.digest != after.digest
    assert np.array_equal(after.table.take(np.array([0])).values, expected(encoder, ["dog"]))


def test_two_encoders_have_two_stores_in_one_cache(tmp_path):
    encode_items(texts("a"), Noted(seed=0), cache=tmp_path)
    other = Noted(seed=1)
    result = encode_items(texts("a"), other, cache=tmp_path)
    assert other.computed == ["a"]
    assert np.array_equal(result.table.take(np.array([0])).values, expected(other, ["a"]))
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("output", ["vectors", "tokens"])
def test_no_items_are_an_empty_table(tmp_path, output):
    result = encode_items(texts(), Noted(output=output), cache=tmp_path)
    read = result.table.take(np.arange(0))
    assert (len(result.table), result.encoded, result.failures) == (0, 0, ())
    assert read.values.shape == ((0, WIDTH) if output == "vectors" else (0, 0, WIDTH))
    assert (read.mask is None) == (output == "vectors")


def test_the_cache_lies_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.delenv("MODALIGN_CACHE", raising=False)
    assert cache_folder() == tmp_path / "user" / "modalign"
    monkeypatch.setenv("MODALIGN_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


def test_progress_counts_what_is_encoded(tmp_path):
    seen: list[tuple[str, int, int, str]] = []
    encode_items(texts("a", "b"), Noted(), cache=tmp_path)
    encode_items(
        texts(*"abcdefgh"), Noted(), cache=tmp_path, progress=lambda *told: seen.append(told)
    )
    assert seen == [("encode text", 4, 6, ""), ("encode text", 6, 6, "")]


# Reading


@pytest.mark.parametrize("shard_rows", [1, 4, 100])
def test_vectors_are_read_in_any_order_across_shards(tmp_path, shard_rows):
    encoder = Noted()
    values = words(22)
    result = encode_items(texts(*values), encoder, cache=tmp_path, shard_rows=shard_rows)
    assert len(list(store_folder(tmp_path).glob("*.values.npy"))) == -(-22 // shard_rows)
    order = np.random.default_rng(0).integers(0, 22, 61)
    for table in (result.table, encode_items(texts(*values), encoder, cache=tmp_path).table):
        assert np.array_equal(
            table.take(order).values, expected(encoder, [values[row] for row in order])
        )


@pytest.mark.parametrize("shard_rows", [1, 4, 100])
def test_token_sequences_are_padded_to_the_longest_asked_for(tmp_path, shard_rows):
    encoder = Noted(output="tokens")
    values = words(22)
    encode_items(texts(*values), encoder, cache=tmp_path, shard_rows=shard_rows)
    table = encode_items(texts(*values), encoder, cache=tmp_path).table
    order = np.random.default_rng(1).permutation(22)[:13]
    read = table.take(order)
    chosen = [values[row] for row in order]
    assert read.mask is not None
    assert read.values.shape == (13, max(map(len, chosen)), WIDTH)
    for row, value in enumerate(chosen):
        assert read.mask[row].tolist() == [i < len(value) for i in range(read.values.shape[1])]
        assert np.array_equal(read.values[row, : len(value)], expected(encoder, [value])[0])
        assert not read.values[row, len(value) :].any()


def test_a_subset_of_a_table_or_an_array_is_renumbered(tmp_path):
    encoder = Noted()
    table = encode_items(texts(*"abcd"), encoder, cache=tmp_path).table
    array = FeatureArray(table.take(np.arange(4)))
    for features in (table, array):
        subset = features.subset(np.array([3, 1]))
        assert (len(subset), subset.width) == (2, WIDTH)
        assert np.array_equal(subset.take(np.array([1, 0])).values, expected(encoder, ["b", "d"]))


@pytest.mark.parametrize("row", [-1, 4])
def test_a_row_that_is_not_there_is_named(tmp_path, row):
    table = encode_items(texts(*"abcd"), Noted(), cache=tmp_path).table
    with pytest.raises(ShapeError, match=rf"rows {row} to {row} were asked for, there are 4"):
        table.store.read(np.array([row]))


LARGE_STORE = """
import sys
from pathlib import Path
import numpy as np
sys.path.insert(0, sys.argv[2])
from test_features import Wide
from modalign.features import FeatureStore
def mapped():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssFile"))
store = FeatureStore.open(Path(sys.argv[1]), Wide())
most = 0
for start in range(0, len(store), 2048):
    assert not store.read(np.arange(start, min(start + 2048, len(store)))).values.any()
    most = max(most, mapped())
print(most)
"""


class Wide(Noted):
    """An encoder whose features are 8 KiB a row."""

    width = 4096


def test_the_resident_size_does_not_grow_with_the_store(tmp_path):
    if not Path("/proc/self/status").exists():
        pytest.skip("the resident size of mapped files is read from /proc")
    rows = 100_000  # 819 MB, all holes: no bytes on the disk
    FeatureStore.open(tmp_path, Wide())
    save_array(tmp_path / "000000.keys.npy", np.zeros((rows, 16), np.uint8))
    with (tmp_path / "000000.values.npy").open("wb") as handle:
        header = {"descr": "<f2", "fortran_order": False, "shape": (rows, 4096)}
        np.lib.format.write_array_header_1_0(handle, header)
        handle.truncate(handle.tell() + rows * 8192)
    manifest = read_json(tmp_path / "store.json")
    write_json(tmp_path / "store.json", {**manifest, "shards": [{"name": "000000", "rows": rows}]})
    most_kib = int(run_python(LARGE_STORE, tmp_path, Path(__file__).parent))
    assert most_kib < 620_000


def run_python(code: str, *arguments: Path) -> str:
    source = Path(__file__).resolve().parent.parent / "src"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(source)},
    ).stdout


# Never mixed


def test_a_folder_of_another_encoder_is_refused_by_what_differs(tmp_path):
    FeatureStore.open(tmp_path, Noted(seed=0))
    with pytest.raises(
        MismatchError,
        match=r"another text encoder than noted:letters; differs: seed; choose another folder",
    ):
        FeatureStore.open(tmp_path, Noted(seed=1))
    with pytest.raises(MismatchError, match="differs: output, seed;"):
        FeatureStore.open(tmp_path, Noted(seed=1, output="tokens"))
    assert len(FeatureStore.open(tmp_path, Noted(seed=0))) == 0


def test_a_description_is_compared_as_json_gives_it_back():
    assert differences({"a": [1, 2], "b": 1}, {"a": (1, 2), "c": None, "b": 2}) == ["b"]


def test_a_newer_format_is_refused(tmp_path):
    FeatureStore.open(tmp_path, Noted())
    manifest = read_json(tmp_path / "store.json")
    write_json(tmp_path / "store.json", {**manifest, "format": 2})
    with pytest.raises(DataError, match=r"store\.json: format 2, this modalign reads 1; upgrade"):
        FeatureStore.open(tmp_path, Noted())


# Broken files


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """The folder of a store of ten token sequences in shards of four rows."""
    encode_items(texts(*words(10)), Noted(output="tokens"), cache=tmp_path, shard_rows=4)
    return store_folder(tmp_path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip_header(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(b"shape") + 1] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("harm", [cut, flip_header, Path.unlink])
@pytest.mark.parametrize("part", ["keys", "values", "offsets"])
def test_a_broken_shard_is_named_with_a_way_out_that_works(tmp_path, stored, harm, part):
    harm(stored / f"000001.{part}.npy")
    with pytest.raises(CorruptError) as caught:
        encode_items(texts(*words(10)), Noted(output="tokens"), cache=tmp_path)
    assert str(caught.value) == (
        f"{stored / f'000001.{part}.npy'}: is missing or broken; delete the folder {stored}, and "
        "the next run encodes its items again"
    )
    for file in stored.iterdir():
        file.unlink()
    stored.rmdir()
    assert encode_items(texts(*words(10)), Noted(output="tokens"), cache=tmp_path).encoded == 10


@pytest.mark.parametrize(
    ("part", "array", "found"),
    [
        ("keys", np.zeros((4, 8), np.uint8), r"is uint8 \(4, 8\), expected uint8 \(4, 16\)"),
        ("keys", np.zeros((3, 16), np.uint8), r"is uint8 \(3, 16\), expected uint8 \(4, 16\)"),
        ("values", np.zeros((9, 2), np.float16), "does not divide 9 positions into 4 rows"),
        ("offsets", np.array([0, 9, 2, 3, 4]), r"does not divide \d+ positions into 4 rows"),
        ("offsets", np.array([0, 1, 2]), r"does not divide \d+ positions into 4 rows"),
    ],
)
def test_a_shard_that_the_manifest_does_not_fit_is_named(stored, part, array, found):
    save_array(stored / f"000001.{part}.npy", array)
    with pytest.raises(CorruptError, match=rf"000001\.\w+\.npy: {found}; delete the folder"):
        FeatureStore.open(stored, Noted(output="tokens"))


def test_values_of_another_type_are_named(stored):
    values = np.load(stored / "000001.values.npy")
    save_array(stored / "000001.values.npy", values.astype(np.float32))
    with pytest.raises(CorruptError, match=r"is float32 \(\d+, 3\), expected float16 \(\d+, 3\)"):
        FeatureStore.open(stored, Noted(output="tokens"))


@pytest.mark.parametrize("name", ["shards", "fingerprint", "width"])
def test_a_manifest_without_an_entry_is_named(stored, name):
    manifest = read_json(stored / "store.json")
    del manifest[name]
    write_json(stored / "store.json", manifest)
    with pytest.raises(CorruptError, match=rf"store\.json: has no {name}; delete the folder"):
        FeatureStore.open(stored, Noted(output="tokens"))


@pytest.mark.parametrize("value", [[], None, {"rows": 3}])
def test_a_manifest_of_another_kind_is_named(stored, value):
    write_json(stored / "store.json", value)
    with pytest.raises(DataError, match=r"store\.json: format None, this modalign reads 1"):
        FeatureStore.open(stored, Noted(output="tokens"))


# Broken items


def test_a_broken_item_ends_the_job_and_is_named(tmp_path):
    with pytest.raises(
        DataError,
        match=r"notes\.csv row 3 \(line 4\): broken2: has no letters, or skip broken "
        "items with --on-error skip",
    ):
        encode_items(texts("a", "b", "broken2", "c"), Noted(), cache=tmp_path)
    encoder = Noted()
    assert encode_items(texts("a", "b"), encoder, cache=tmp_path).encoded == 0


def test_skipped_items_are_listed_and_the_others_are_right(tmp_path):
    encoder = Noted()
    values = ["a", "broken1", "b", "nan3", "c", "broken1", "a"]
    result = encode_items(texts(*values), encoder, cache=tmp_path, skip_errors=True)
    assert result.kept.tolist() == [0, 2, 4, 6]
    assert [failure.index for failure in result.failures] == [1, 3, 5]
    assert "broken1: has no letters" in str(result.failures[2].error)
    assert np.array_equal(
        result.table.take(np.arange(4)).values, expected(encoder, ["a", "b", "c", "a"])
    )
    again = encode_items(texts(*values), Noted(), cache=tmp_path, skip_errors=True)
    assert (again.encoded, again.kept.tolist()) == (0, [0, 2, 4, 6])


def test_a_feature_that_is_not_finite_is_never_stored(tmp_path):
    with pytest.raises(DataError, match=r"notes\.csv row 2 .*nan1: encoder .* NaN or infinite"):
        encode_items(texts("a", "nan1"), Noted(), cache=tmp_path)
    store = FeatureStore.open(store_folder(tmp_path), Noted())
    assert np.isfinite(store.read(np.arange(len(store))).values).all()
    assert len(store) == 1


def test_a_file_that_cannot_be_read_is_named_once(tmp_path):
    folder = tmp_path / "items"
    folder.mkdir()
    items = files(folder, "cat", "dog", "fox")
    (folder / "b.txt").unlink()
    (folder / "c.txt").unlink()
    (folder / "c.txt").mkdir()
    with pytest.raises(DataError) as caught:
        encode_items(items, NotedFiles(), cache=tmp_path / "cache")
    assert str(caught.value).startswith("items/b.txt: ")
    assert str(caught.value).count("cannot be read") == 1
    result = encode_items(items, NotedFiles(), cache=tmp_path / "cache", skip_errors=True)
    assert result.kept.tolist() == [0]
    assert [failure.index for failure in result.failures] == [1, 2]
    keys, failures = content_keys(items, NotedFiles())
    assert keys[1:] == [None, None]
    assert len(failures) == 2


def test_all_items_broken_is_an_error_even_where_they_are_skipped(tmp_path):
    with pytest.raises(
        DataError, match=r"notes\.csv: none of 2 text items could be encoded; the first: broken1"
    ):
        encode_items(texts("broken1", "broken2"), Noted(), cache=tmp_path, skip_errors=True)


# Interrupted


def test_an_interrupt_keeps_the_rows_that_are_done(tmp_path):
    values = [*words(9), "stop"]
    with pytest.raises(KeyboardInterrupt):
        encode_items(texts(*values), Noted(), cache=tmp_path)
    encoder = Noted()
    values[-1] = "go"
    result = encode_items(texts(*values), encoder, cache=tmp_path)
    # The first window of eight was done.
    assert encoder.computed == [values[8], "go"]
    assert np.array_equal(result.table.take(np.arange(10)).values, expected(encoder, values))


def test_what_a_killed_writer_left_is_overwritten(tmp_path):
    encode_items(texts(*words(8)), Noted(), cache=tmp_path, shard_rows=4)
    folder = store_folder(tmp_path)
    manifest = read_json(folder / "store.json")
    # Killed after the second shard's files were written, before the manifest named them.
    manifest["shards"].pop()
    write_json(folder / "store.json", manifest)
    save_array(folder / "000001.values.npy", np.ones((9, WIDTH), np.float16))
    leftover = folder / f".000002.keys.npy.0123{TEMPORARY}"
    leftover.write_bytes(b"half")
    encoder = Noted()
    values = [*words(4), "x", "y"]
    result = encode_items(texts(*values), encoder, cache=tmp_path)
    assert encoder.computed == ["x", "y"]
    assert np.array_equal(result.table.take(np.arange(6)).values, expected(encoder, values))
    assert not leftover.exists()


KILLED_ENCODER = """
import sys, time
from pathlib import Path
import numpy as np
sys.path.insert(0, str(Path(sys.argv[2])))
from test_features import Noted, texts, words
from modalign.features import encode_items
def slowly(task, done, total, note):
    print(done, flush=True)
    time.sleep(0.02)
encode_items(texts(*words(200)), Noted(output="tokens"), cache=Path(sys.argv[1]), shard_rows=8,
             progress=slowly)
"""


@pytest.mark.parametrize("told", [1, 5, 21])
def test_a_killed_encoding_goes_on_and_ends_with_the_same_features(tmp_path, told):
    source = Path(__file__).resolve().parent.parent / "src"
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED_ENCODER, tmp_path / "cache", Path(__file__).parent],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(source)},
    )
    assert child.stdout is not None
    for _ in range(told):
        done = int(child.stdout.readline())
    child.send_signal(signal.SIGKILL)
    child.communicate()
    encoder = Noted(output="tokens")
    values = words(200)
    result = encode_items(texts(*values), encoder, cache=tmp_path / "cache")
    assert 0 < result.encoded <= 200 - done + 8
    assert not list(store_folder(tmp_path / "cache").glob(f".*{TEMPORARY}"))
    whole = encode_items(texts(*values), Noted(output="tokens"), cache=tmp_path / "other")
    ours, theirs = result.table.take(np.arange(200)), whole.table.take(np.arange(200))
    assert np.array_equal(ours.values, theirs.values)
    assert np.array_equal(ours.mask, theirs.mask)


def test_the_manifest_names_the_encoder_and_its_shards(tmp_path):
    encode_items(texts(*words(5)), Noted(), cache=tmp_path, shard_rows=4)
    folder = store_folder(tmp_path)
    assert folder.name == f"text-{Noted().fingerprint[:16]}"
    assert json.loads((folder / "store.json").read_bytes()) == {
        "format": 1,
        "encoder": {"adapter": "noted", "output": "vectors", "seed": 0, "sizes": [1, 2]},
        "fingerprint": Noted().fingerprint,
        "modality": "text",
        "width": WIDTH,
        "output": "vectors",
        "dtype": "float16",
        "shards": [{"name": "000000", "rows": 4}, {"name": "000001", "rows": 1}],
    }
