"""Files are whole or not there: kills, full disks, hostile arrays, locks."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from modalign.errors import CorruptError, DataError, ShapeError, UsageError
from modalign.storage import (
    TEMPORARY,
    _exchange,
    array_sha256,
    building,
    load_array,
    locked,
    publish_folder,
    read_json,
    read_json_lines,
    save_array,
    save_array_blocks,
    sha256_file,
    sweep,
    write_bytes,
    write_json,
    write_json_lines,
    writing,
)

SOURCE = Path(__file__).resolve().parent.parent / "src"


def start_child(code: str, *arguments: Path) -> subprocess.Popen[str]:
    """Run Python in a process of its own and wait for its first line, "ready"."""
    child = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def kill(child: subprocess.Popen[str]) -> None:
    child.send_signal(signal.SIGKILL)
    child.communicate()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Writing and reading


def test_json_is_written_byte_for_byte(tmp_path):
    write_json(tmp_path / "a.json", {"name": "é\udcff", "k": [1, 0.5]})
    expected = b'{\n  "name": "\\u00e9\\udcff",\n  "k": [\n    1,\n    0.5\n  ]\n}\n'
    assert (tmp_path / "a.json").read_bytes() == expected
    assert read_json(tmp_path / "a.json") == {"name": "é\udcff", "k": [1, 0.5]}
    assert names(tmp_path) == ["a.json"]


def test_json_lines_keep_line_ends_and_order(tmp_path):
    values = ["a\nb", "", "c\u2028d", "1,2"]
    write_json_lines(tmp_path / "a.jsonl", values)
    assert read_json_lines(tmp_path / "a.jsonl") == values
    write_json_lines(tmp_path / "none.jsonl", [])
    assert read_json_lines(tmp_path / "none.jsonl") == []


def test_a_nan_is_not_written_and_the_old_file_stays(tmp_path):
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(UsageError, match=r"a\.json: .*expected finite numbers"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert read_json(tmp_path / "a.json") == 1
    with pytest.raises(UsageError, match=r"a\.json: .*expected finite numbers"):
        write_json_lines(tmp_path / "a.json", [1, float("inf")])
    assert read_json(tmp_path / "a.json") == 1


def test_an_error_in_the_block_leaves_the_old_file_and_no_other(tmp_path):
    write_bytes(tmp_path / "a", b"old")

    def fail():
        with writing(tmp_path / "a") as handle:
            handle.write(b"new")
            raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        fail()
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"none/a: cannot be written \(No such file"):
        write_bytes(tmp_path / "none" / "a", b"")


def test_a_folder_is_not_written_over_by_a_file(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(UsageError, match="a: is a folder, expected a file"):
        write_bytes(tmp_path / "a", b"")
    assert names(tmp_path) == ["a"]


def test_a_name_as_long_as_names_can_be_is_written(tmp_path):
    write_bytes(tmp_path / ("a" * 255), b"x")
    assert names(tmp_path) == ["a" * 255]


@pytest.mark.parametrize(
    "data", [b"", b"{", b'{"a": NaN}', b"[" * 100_000, b"\xff\xfe", b"1" * 5000 + b"x"]
)
def test_what_is_no_json_is_named(tmp_path, data):
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(CorruptError, match=r"a\.json: is no JSON \(.*\); restore"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("line", [b"1,2", b"[3", b"{", b""])
def test_the_broken_line_is_named(tmp_path, line):
    (tmp_path / "a.jsonl").write_bytes(b'"x"\n' + line + b'\n"y"\n')
    with pytest.raises(CorruptError, match=r"a\.jsonl, line 2: is no JSON"):
        read_json_lines(tmp_path / "a.jsonl")


def test_a_last_line_without_its_end_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'"x"\n12')
    with pytest.raises(CorruptError, match=r"a\.jsonl: ends within line 2"):
        read_json_lines(tmp_path / "a.jsonl")


@pytest.mark.parametrize("read", [read_json, read_json_lines, load_array, sha256_file])
def test_a_missing_file_is_named(tmp_path, read):
    with pytest.raises(DataError, match=r"none: cannot be read \(No such file"):
        read(tmp_path / "none")


# Kills and full disks

KILLED_WRITER = """
import sys, time
from pathlib import Path
from modalign.storage import writing
with writing(Path(sys.argv[1])) as handle:
    handle.write(b"new" * 500_000)
    handle.flush()
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_writer_killed_in_the_middle_leaves_the_old_file_whole(tmp_path):
    write_bytes(tmp_path / "a", b"old")
    child = start_child(KILLED_WRITER, tmp_path / "a")
    assert sweep(tmp_path) == [], "the file of a living writer is no leftover"
    kill(child)
    assert (tmp_path / "a").read_bytes() == b"old"
    leftover = [tmp_path / name for name in names(tmp_path) if name != "a"]
    assert [path.stat().st_size for path in leftover] == [1_500_000]
    assert leftover[0].name.endswith(TEMPORARY)
    assert sweep(tmp_path) == leftover
    assert names(tmp_path) == ["a"]


KILLED_ANYWHERE = """
import sys
from pathlib import Path
from modalign.storage import write_bytes
print("ready", flush=True)
while True:
    for letter in b"ab":
        write_bytes(Path(sys.argv[1]), bytes([letter]) * 300_000)
"""


def test_a_writer_killed_anywhere_leaves_one_whole_file(tmp_path):
    for milliseconds in (5, 9, 14, 22, 37):
        write_bytes(tmp_path / "a", b"a" * 300_000)
        child = start_child(KILLED_ANYWHERE, tmp_path / "a")
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(milliseconds / 1000)
        kill(child)
        data = (tmp_path / "a").read_bytes()
        assert data in (b"a" * 300_000, b"b" * 300_000)
        sweep(tmp_path)
        assert names(tmp_path) == ["a"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one mebibyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if mounted.returncode:
        pytest.skip(f"no file system may be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_the_old_file_and_says_what_is_lacking(small_disk):
    write_bytes(small_disk / "a", b"old")
    match = r"a: the disk is full \(No space.*\); free 2,000,000 bytes and run the same command"
    with pytest.raises(DataError, match=match):
        write_bytes(small_disk / "a", bytes(2_000_000))
    assert (small_disk / "a").read_bytes() == b"old"
    assert names(small_disk) == ["a"]


def test_a_full_disk_stops_an_array_and_a_folder_likewise(small_disk):
    array = np.zeros((1000, 500), np.float32)
    with pytest.raises(DataError, match=r"a\.npy: the disk is full .* free 2,000,000 bytes and"):
        save_array(small_disk / "a.npy", array)

    def fill():
        with building(small_disk / "folder") as work:
            for name in "abc":
                (work / name).write_bytes(bytes(400_000))

    with pytest.raises(DataError, match=r"folder: the disk is full .* free .* bytes or more and"):
        fill()
    assert names(small_disk) == []


LIMITED_WRITER = """
import resource, sys
from pathlib import Path
from modalign.errors import DataError
from modalign.storage import write_bytes
print("ready", flush=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_bytes(Path(sys.argv[1]), bytes(200_000))
except DataError as error:
    print(error)
"""


def test_a_file_larger_than_the_limit_leaves_the_old_one(tmp_path):
    write_bytes(tmp_path / "a", b"old")
    child = start_child(LIMITED_WRITER, tmp_path / "a")
    output, _ = child.communicate()
    assert "a: larger than this file system or `ulimit -f` allows a file to be" in output
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


# Folders


def fill(folder: Path, text: str) -> None:
    (folder / "below").mkdir()
    (folder / "below" / "a").write_text(text, encoding="utf-8")


def test_a_built_folder_is_there_whole(tmp_path):
    with building(tmp_path / "final") as work:
        fill(work, "new")
        assert names(tmp_path) == [work.name], "nothing at its place before the end"
    assert (tmp_path / "final" / "below" / "a").read_text(encoding="utf-8") == "new"
    assert names(tmp_path) == ["final"]


def test_a_folder_given_up_leaves_nothing(tmp_path):
    def fail():
        with building(tmp_path / "final") as work:
            fill(work, "new")
            raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        fail()
    assert names(tmp_path) == []


def test_a_folder_that_is_there_is_refused_before_any_work(tmp_path):
    (tmp_path / "final").mkdir()
    fill(tmp_path / "final", "old")
    with pytest.raises(UsageError, match="final: is there already; choose another"):
        building(tmp_path / "final").__enter__()
    assert names(tmp_path) == ["final"]


def test_a_folder_that_came_meanwhile_is_not_written_over(tmp_path):
    for name in ("work", "final"):
        (tmp_path / name).mkdir()
        fill(tmp_path / name, name)
    with pytest.raises(UsageError, match="final: is there already"):
        publish_folder(tmp_path / "work", tmp_path / "final")
    assert (tmp_path / "final" / "below" / "a").read_text(encoding="utf-8") == "final"


def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "final").write_bytes(b"old")
    for replace in (False, True):
        with pytest.raises(UsageError, match="final: is there already"):
            building(tmp_path / "final", replace=replace).__enter__()
    with pytest.raises(UsageError, match="final: is there already"):
        publish_folder(tmp_path / "work", tmp_path / "final")


def test_a_replaced_folder_is_the_new_one_alone(tmp_path):
    for text in ("old", "new"):
        with building(tmp_path / "final", replace=True) as work:
            fill(work, text)
            if text == "new":
                found = (tmp_path / "final" / "below" / "a").read_text(encoding="utf-8")
                assert found == "old", "the old one serves until the end"
    assert (tmp_path / "final" / "below" / "a").read_text(encoding="utf-8") == "new"
    assert names(tmp_path) == ["final"]


@pytest.mark.skipif(sys.platform != "linux", reason="folders are exchanged at once on Linux alone")
def test_two_folders_change_places_at_once(tmp_path):
    for name in ("work", "final"):
        (tmp_path / name).mkdir()
        fill(tmp_path / name, name)
    assert _exchange(tmp_path / "work", tmp_path / "final")
    assert (tmp_path / "final" / "below" / "a").read_text(encoding="utf-8") == "work"
    with pytest.raises(FileNotFoundError, match="none"):
        _exchange(tmp_path / "work", tmp_path / "none")


KILLED_REPLACER = """
import sys
from pathlib import Path
from modalign.storage import building
print("ready", flush=True)
while True:
    with building(Path(sys.argv[1]), replace=True) as work:
        for name in "abcdef":
            (work / name).write_bytes(b"x" * 1000)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="folders are exchanged at once on Linux alone")
def test_a_replacer_killed_anywhere_leaves_a_whole_folder(tmp_path):
    for milliseconds in (6, 11, 17, 29, 43):
        child = start_child(KILLED_REPLACER, tmp_path / "final")
        while not (tmp_path / "final").exists():
            assert child.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(milliseconds / 1000)
        kill(child)
        assert [path.stat().st_size for path in (tmp_path / "final").iterdir()] == [1000] * 6
        sweep(tmp_path)
        assert names(tmp_path) == ["final"]


def test_sweep_removes_folders_and_leaves_all_that_is_finished(tmp_path):
    (tmp_path / f".final.0011{TEMPORARY}").mkdir()
    fill(tmp_path / f".final.0011{TEMPORARY}", "half")
    write_bytes(tmp_path / "a", b"whole")
    (tmp_path / f"mine{TEMPORARY}").write_bytes(b"named so by the user")
    with building(tmp_path / "final") as work:
        assert [path.name for path in sweep(tmp_path)] == [f".final.0011{TEMPORARY}"]
        assert work.is_dir()
    assert names(tmp_path) == ["a", "final", f"mine{TEMPORARY}"]


# Locks

HOLDER = """
import sys, time
from pathlib import Path
from modalign.storage import locked
with locked(Path(sys.argv[1])):
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_locked_folder_names_the_process_that_holds_it(tmp_path):
    child = start_child(HOLDER, tmp_path / "new")
    with (
        pytest.raises(UsageError, match=f"new: process {child.pid} is at work in it; wait"),
        locked(tmp_path / "new", wait=False),
    ):
        pytest.fail("the lock is held")
    kill(child)
    with locked(tmp_path / "new", wait=False):
        pass


def test_who_waits_for_a_lock_says_so_and_gets_it_when_the_holder_dies(tmp_path, caplog):
    child = start_child(HOLDER, tmp_path)
    threading.Timer(0.1, lambda: kill(child)).start()
    with caplog.at_level(logging.WARNING), locked(tmp_path):
        assert child.wait() == -signal.SIGKILL
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: waiting for process {child.pid}, which is at work in it"
    ]


def test_a_lock_ends_with_its_block(tmp_path, caplog):
    for _ in range(2):
        with locked(tmp_path):
            pass
    assert caplog.records == []


def test_a_file_is_no_folder_to_lock(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(UsageError, match="a: is a file, expected a folder"):
        locked(tmp_path / "a").__enter__()


# Arrays


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype=np.float16).reshape(3, 4),
        np.arange(24, dtype=np.int64).reshape(2, 3, 4).transpose(2, 0, 1),
        np.zeros((0, 5), np.float32),
        np.array(["a", "bcd"]),
        np.array([True, False]),
    ],
    ids=["float16", "strided", "empty", "text", "bool"],
)
def test_arrays_come_back_as_they_were(tmp_path, array, mapped):
    save_array(tmp_path / "a.npy", array)
    for found in (load_array(tmp_path / "a.npy", mapped=mapped), np.load(tmp_path / "a.npy")):
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)


def test_arrays_numpy_wrote_are_read(tmp_path):
    array = np.asfortranarray(np.arange(12.0).reshape(3, 4))
    np.save(tmp_path / "a.npy", array)
    for mapped in (False, True):
        np.testing.assert_array_equal(load_array(tmp_path / "a.npy", mapped=mapped), array)


def test_a_mapped_array_is_read_only_and_begins_at_a_register(tmp_path):
    save_array(tmp_path / "a.npy", np.ones((3, 5), np.float32))
    array = load_array(tmp_path / "a.npy", mapped=True)
    assert array.ctypes.data % 64 == 0
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0] = 2


def test_blocks_make_up_the_array(tmp_path):
    array = np.arange(20, dtype=np.float32).reshape(5, 4)
    parts = (array[:2], array[2:2], array[2:])
    save_array_blocks(tmp_path / "a.npy", parts, shape=(5, 4), dtype=array.dtype)
    save_array(tmp_path / "b.npy", array)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([np.zeros((2, 4), np.float32)], "2 rows came, expected 5"),
        ([np.zeros((6, 4), np.float32)], "6 rows came, expected 5"),
        ([np.zeros((5, 3), np.float32)], r"float32 \(5, 3\) after row 0, expected float32"),
        ([np.zeros((5, 4))], r"float64 \(5, 4\) after row 0, expected float32"),
    ],
)
def test_blocks_that_do_not_fit_write_nothing(tmp_path, blocks, message):
    with pytest.raises(ShapeError, match=message):
        save_array_blocks(tmp_path / "a.npy", blocks, shape=(5, 4), dtype=np.dtype(np.float32))
    assert names(tmp_path) == []


def test_objects_are_neither_written_nor_read(tmp_path):
    array = np.array([{"a": 1}], dtype=object)
    with pytest.raises(UsageError, match="holds Python objects"):
        save_array(tmp_path / "a.npy", array)
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(CorruptError, match="holds Python objects, which are never unpickled"):
        load_array(tmp_path / "a.npy")


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize(("change", "found"), [(-1, 47), (1, 49), (-48, 0)])
def test_a_file_of_another_length_is_refused(tmp_path, change, found, mapped):
    save_array(tmp_path / "a.npy", np.zeros((3, 4), np.float32))
    data = (tmp_path / "a.npy").read_bytes() + b"x"
    (tmp_path / "a.npy").write_bytes(data[: len(data) - 1 + change] if change < 1 else data)
    with pytest.raises(CorruptError, match=rf"a\.npy: holds {found} bytes of rows, .* 48 bytes"):
        load_array(tmp_path / "a.npy", mapped=mapped)


HEADERS = {
    "more than there is": "{'descr': '<f4', 'fortran_order': False, 'shape': (10**0, 4), }",
    "huge": "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999, 4), }",
    "negative": "{'descr': '<f4', 'fortran_order': False, 'shape': (-3, -4), }",
    "too wide": "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 10000000000000000000000), }",
    "too many axes": "{'descr': '<f4', 'fortran_order': False, 'shape': (0," + "1," * 80 + "), }",
    "no bytes": "{'descr': '|S0', 'fortran_order': False, 'shape': (99999999999999,), }",
    "no such dtype": "{'descr': '<q9', 'fortran_order': False, 'shape': (3, 4), }",
    "not a dict": "[1]",
    "deep": "(" * 3000,
    "minus": "-" * 3000 + "1",
    "open text": "{'descr': '''",
    "not text": "\xff\x00",
    "too long": " " * 20_000,
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS.keys())
@pytest.mark.parametrize("version", [1, 2, 3, 9])
def test_a_hostile_header_is_refused(tmp_path, header, version):
    text = header.encode("latin-1") + b"\n"
    size = len(text).to_bytes(2 if version == 1 else 4, "little")
    rows = b"" if "(0" in header or "S0" in header else bytes(48)
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY" + bytes([version, 0]) + size + text + rows)
    for mapped in (False, True):
        with pytest.raises(CorruptError, match=r"a\.npy: (is no \.npy file|holds (48|0) bytes)"):
            load_array(tmp_path / "a.npy", mapped=mapped)


@pytest.mark.parametrize("data", [b"", b"\x93NUM", b"PK\x03\x04zip", b"\x80\x04.pickle"])
def test_another_kind_of_file_is_refused(tmp_path, data):
    (tmp_path / "a.npy").write_bytes(data)
    with pytest.raises(CorruptError, match=r"a\.npy: is no \.npy file"):
        load_array(tmp_path / "a.npy")


@pytest.mark.filterwarnings("ignore:Reading `.npy`", "ignore:.*escape sequence", "ignore:Data type")
def test_a_header_with_flipped_bytes_is_refused_or_gives_an_array(tmp_path):
    save_array(tmp_path / "a.npy", np.zeros((3, 4), np.float32))
    whole = (tmp_path / "a.npy").read_bytes()
    draw = random.Random(0)
    refused = 0
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 3)):
            data[draw.randrange(128)] = draw.randrange(256)
        (tmp_path / "a.npy").write_bytes(data)
        try:
            assert load_array(tmp_path / "a.npy").nbytes == 48
        except CorruptError:
            refused += 1
    assert refused > 100


# Hashes


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc" * 1_000_000)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(b"abc" * 1_000_000).hexdigest()


def test_the_hash_of_an_array_is_that_of_dtype_shape_and_values():
    array = np.arange(6, dtype=np.int16).reshape(2, 3)
    expected = hashlib.sha256(b"<i2 (2, 3)\n" + array.tobytes()).hexdigest()
    assert array_sha256(array) == expected
    assert array_sha256(np.asfortranarray(array)) == expected
    others = (array.reshape(3, 2), array.astype(np.int32), array.view(np.uint16), array + 1)
    assert expected not in {array_sha256(other) for other in others}
