"""kill -9 and full disks: nothing acknowledged is lost, and the next open mends the rest."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from index_cases import ROWS, WIDTH, drawn, exact_index, gallery_of
from modalign.errors import DataError
from modalign.index import build_index, is_index, load_index
from modalign.storage import TEMPORARY

SOURCE = Path(__file__).resolve().parent.parent / "src"
ADDED_AT_ONCE = 400

ADDING = f"""
import sys
from pathlib import Path
import numpy as np
from modalign.index import load_index
index = load_index(Path(sys.argv[1]))
vectors = np.load(sys.argv[2])
for turn in range(10_000):
    ids = [f"{{turn}}-{{n}}" for n in range({ADDED_AT_ONCE})]
    index.add(ids, vectors, metadata=[{{"turn": turn}}] * len(ids))
    print("added", turn, flush=True)
    if turn:
        index.delete([f"{{turn - 1}}-0"])
        print("deleted", turn - 1, flush=True)
"""
REBUILDING = """
import sys
from pathlib import Path
from modalign.index import load_index
index = load_index(Path(sys.argv[1]))
for turn in range(10_000):
    index.rebuild("faiss-hnsw" if turn % 2 else "faiss-int8")
    print("rebuilt", flush=True)
"""
ERASING = """
import sys
from pathlib import Path
from modalign.index import load_index
index = load_index(Path(sys.argv[1]))
print("ready", flush=True)
for turn in range(600):
    index.delete([str(turn)])
    index.rows.erase()
"""
BUILDING = """
import sys
from pathlib import Path
from modalign.gallery import Gallery
from modalign.index import build_index
print("ready", flush=True)
build_index(Gallery.load(Path(sys.argv[2])), Path(sys.argv[1]), engine="faiss-hnsw")
"""


def start(code: str, *arguments: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    )


def kill_when(child, moment, *, said=0):
    """Kill a child at a moment after it has said so many lines; return all it said."""
    lines = [child.stdout.readline() for _ in range(said)]
    deadline = time.monotonic() + 20
    while not moment() and child.poll() is None and time.monotonic() < deadline:
        pass
    child.send_signal(signal.SIGKILL)
    lines += child.stdout.readlines()
    child.stdout.close()
    child.wait()
    assert child.returncode == -signal.SIGKILL
    return [line.split() for line in lines if line.endswith("\n")]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    exact_index(folder / "index").close()
    np.save(folder / "more.npy", drawn(ADDED_AT_ONCE, seed=2))
    return folder


@pytest.fixture
def folder(tmp_path, made):
    shutil.copytree(made / "index", tmp_path / "index")
    return tmp_path / "index"


def after(milliseconds):
    def moment(_folder):
        begin = time.monotonic()
        return lambda: time.monotonic() - begin > milliseconds / 1000

    return moment


def new_segment(folder):
    """A segment lies there, and its transaction has not ended, or just has."""
    known = set((folder / "vectors").glob("*.npy"))
    return lambda: bool(set((folder / "vectors").glob("*.npy")) - known)


def half_segment(folder):
    return lambda: any((folder / "vectors").glob(f".*{TEMPORARY}"))


def in_transaction(folder):
    return lambda: (folder / "items.sqlite-journal").exists()


@pytest.mark.parametrize("said", [1, 6])
@pytest.mark.parametrize(
    "moment", [half_segment, new_segment, in_transaction, after(0), after(7), after(19)]
)
def test_a_killed_writer_loses_nothing_it_acknowledged(folder, made, moment, said):
    child = start(ADDING, folder, made / "more.npy")
    lines = [child.stdout.readline().split() for _ in range(said)]
    lines += kill_when(child, moment(folder))
    added = [int(turn) for what, turn in lines if what == "added"]
    deleted = [int(turn) for what, turn in lines if what == "deleted"]
    with load_index(folder) as index:
        assert index.verify() == []
        assert sorted(path.name for path in (folder / "vectors").iterdir()) == [
            segment.file.name for segment in index.state().view.segments
        ]
        vectors = drawn(ADDED_AT_ONCE, seed=2)
        for turn in added:
            names = [f"{turn}-{n}" for n in range(1, ADDED_AT_ONCE)]
            np.testing.assert_array_equal(index.vectors_of(names), vectors[1:])
        fitting = index.count({"turn": added}) + len(deleted)
        # The deletion that was under way may have been done and not been told of.
        assert fitting in (ADDED_AT_ONCE * len(added), ADDED_AT_ONCE * len(added) - 1)
        last = added[-1] + 1
        assert index.count({"turn": {"gt": last - 1}}) in (0, ADDED_AT_ONCE), "all of it or nothing"
        np.testing.assert_array_equal(index.vectors_of([str(ROWS - 1)])[0], drawn()[-1])
        index.add(["after"], vectors[:1])
        assert index.search(vectors[:1].astype(np.float32), ROWS * 99).rows.shape[1] == len(index)


@pytest.mark.parametrize("moment", [half_segment, new_segment, in_transaction, after(5), after(23)])
def test_killed_while_it_overwrites_what_was_deleted_all_else_is_there(folder, moment):
    kill_when(start(ERASING, folder), moment(folder), said=1)
    with load_index(folder) as index:
        assert index.verify() == []
        assert sorted(path.name for path in (folder / "vectors").iterdir()) == [
            segment.file.name for segment in index.state().view.segments
        ]
        gone = ROWS - len(index)
        names = [str(row) for row in range(gone, ROWS)]
        np.testing.assert_array_equal(index.vectors_of(names), drawn()[gone:])
        assert index.rows.erase() in (0, 1)
        vectors = index.state().view.vectors(np.arange(gone))
        assert not vectors.any()


@pytest.mark.parametrize("milliseconds", [0, 90])
def test_a_killed_rebuild_leaves_an_engine_that_works_or_none(folder, milliseconds):
    pytest.importorskip("faiss", reason="faiss is not installed")
    child = start(REBUILDING, folder)
    kill_when(child, after(milliseconds)(folder), said=2)
    with load_index(folder) as index:
        assert index.engine_problem == ""
        assert index.engine_name in ("faiss-hnsw", "faiss-int8")
        assert index.verify() == []
        assert not list((folder / "engine").glob(f".*{TEMPORARY}"))
        hits = index.search(drawn()[:5].astype(np.float32), 1)
        assert hits.ids == [["0"], ["1"], ["2"], ["3"], ["4"]]
        index.rebuild()
        assert len(list((folder / "engine").iterdir())) == 1, "what no one names is removed"


@pytest.mark.parametrize("milliseconds", [50, 200])
def test_a_killed_build_leaves_nothing_that_looks_like_an_index(tmp_path, milliseconds):
    pytest.importorskip("faiss", reason="faiss is not installed")
    gallery = gallery_of(drawn(6000))
    written = type(gallery).write(
        tmp_path / "gallery",
        modality="image",
        width=WIDTH,
        embedding="",
        encoder="",
        ids=gallery.ids,
        vectors=[gallery.vectors],
    )
    child = start(BUILDING, tmp_path / "index", tmp_path / "gallery")
    kill_when(child, after(milliseconds)(tmp_path), said=1)
    assert not is_index(tmp_path / "index")
    with build_index(written, tmp_path / "index", engine="exact") as index:
        assert len(index) == 6000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gallery", "index"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of two mebibytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if mounted.returncode:
        pytest.skip(f"no file system may be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_stops_an_add_and_loses_nothing(small_disk, made):
    folder = small_disk / "index"
    shutil.copytree(made / "index", folder)
    with load_index(folder) as index:
        rows = len(index)
        with pytest.raises(DataError, match=r"the disk is full .*; free .* bytes"):
            index.add([f"n{n}" for n in range(60_000)], drawn(60_000))
        # Room for the vectors, and none for what the database would have to say of them.
        with pytest.raises(DataError, match=r"items\.sqlite: the disk is full; free some space"):
            index.add(["x"], drawn(1), metadata=[{f"field {n}": "t" * 99 for n in range(20_000)}])
        assert len(index) == rows
        assert len(list((folder / "vectors").iterdir())) == 1
        assert index.verify() == []
        index.add(["small"], drawn(1))
    with load_index(folder) as index:
        assert len(index) == rows + 1


def test_a_full_disk_stops_a_rebuild_and_the_old_engine_stays(small_disk, made):
    pytest.importorskip("faiss", reason="faiss is not installed")
    folder = small_disk / "index"
    shutil.copytree(made / "index", folder)
    with load_index(folder) as index:
        index.rebuild("faiss-int8")
        (small_disk / "filler").write_bytes(bytes(os.statvfs(small_disk).f_bavail * 4096 - 20_000))
        with pytest.raises(DataError, match=r"could not be built \(.*No space left"):
            index.rebuild("faiss-hnsw")
        assert index.engine_name == "faiss-int8"
        hits = index.search(drawn()[:2].astype(np.float32), 1)
        assert hits.ids == [["0"], ["1"]]
        assert index.verify() == []
