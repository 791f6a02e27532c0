"""kill -9 and Ctrl-C at many moments: the same command goes on and ends with the same bits."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from modalign.cli import main
from modalign.storage import TEMPORARY
from modalign.worlds import World, WorldSizes, write_world

SOURCE = Path(__file__).resolve().parent.parent / "src"
FIRST, SECOND = "0-image+text", "1-audio"
STAGE_FILES = ["log.jsonl", "run.json", "stage.json", "weights.safetensors"]
# What the bits of a stage are: run.json says how long it took.
PROVED = ["log.jsonl", "stage.json", "weights.safetensors"]
TRAINING = (
    "--width 32 --feedforward 64 --batch-size 32 --epochs 1 --min-steps 40 --validate-steps 10 "
    "--checkpoint-seconds 0"
).split()
TEXTS = 6000


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "modalign", *map(str, arguments), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    )


def run(*arguments: str | Path) -> dict[str, Any]:
    """Run a command that must end well; return what it printed."""
    child = start(*arguments)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    printed: dict[str, Any] = json.loads(out)
    return printed


def end(child: subprocess.Popen[str], number: int, moment: Callable[[], bool]) -> tuple[int, str]:
    """Send a signal as soon as the moment has come; return the exit status and stderr."""
    deadline = time.monotonic() + 60
    while not moment() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    came = moment()
    child.send_signal(number)
    _, err = child.communicate(timeout=60)
    assert came, err
    return child.returncode, err


def stage_bytes(space: Path, name: str) -> dict[str, bytes]:
    return {file: (space / "stages" / name / file).read_bytes() for file in PROVED}


def all_bytes(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def stage_names(space: Path) -> list[str]:
    """The stages that space.json names; none where there is no space yet."""
    path = space / "space.json"
    header = json.loads(path.read_bytes()) if path.exists() else {"stages": []}
    return [entry["name"] for entry in header["stages"]]


@dataclass(frozen=True)
class Made:
    """A small world, and what unbroken runs make of it."""

    world: World
    cache: Path
    space: Path
    before_adding: Path

    def align(self, out: Path, cache: Path) -> Sequence[str | Path]:
        encoders = ["--encoder", "image=builtin:pixels", "--encoder", "text=builtin:ngrams"]
        return ["align", self.world.pictures, *encoders, "--out", out, "--cache", cache, *TRAINING]

    def add(self, space: Path, cache: Path) -> Sequence[str | Path]:
        encoder = ["--encoder", "audio=builtin:logmel"]
        return ["add", space, self.world.sounds, *encoder, "--cache", cache, *TRAINING]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    world = write_world(
        folder / "world", scenes=WorldSizes(pictures=40, sounds=40, clips=0, test=0), seed=0
    )
    made = Made(world, folder / "cache", folder / "space", folder / "before")
    run(*made.align(made.space, made.cache))
    shutil.copytree(made.space, made.before_adding)
    run(*made.add(made.space, made.cache))
    return made


# encode


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A file of texts, and the features of an unbroken run by name of their files."""
    folder = tmp_path_factory.mktemp("texts")
    lines = [f"text {row} of {'many ' * (row % 5)}words" for row in range(TEXTS)]
    (folder / "texts.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    printed = run(*encode(folder / "texts.txt", folder / "cache"))
    assert printed["features"]["text"]["encoded"] == TEXTS
    return folder / "texts.txt", all_bytes(folder / "cache")


def encode(file: Path, cache: Path) -> Sequence[str | Path]:
    return ["encode", file, "--encoder", "text=builtin:ngrams", "--cache", cache]


def rows_of(features: dict[str, bytes]) -> dict[bytes, bytes]:
    """Every row's bytes by its key, however the rows lie in shards."""
    rows: dict[bytes, bytes] = {}
    for name in (name for name in features if name.endswith(".keys.npy")):
        keys, values = features[name][128:], features[name.replace("keys", "values")][128:]
        count = len(keys) // 16
        width = len(values) // count
        for row in range(count):
            rows[keys[16 * row : 16 * row + 16]] = values[width * row : width * row + width]
    return rows


@pytest.mark.parametrize("pattern", ["*/.*.partial", "*/000000.values.npy"])
def test_a_killed_encode_goes_on_and_ends_with_the_same_features(tmp_path, texts, pattern):
    file, whole = texts
    end(start(*encode(file, tmp_path)), signal.SIGKILL, lambda: any(tmp_path.glob(pattern)))
    printed = run(*encode(file, tmp_path))["features"]["text"]
    assert printed["items"] == TEXTS
    found = rows_of(all_bytes(tmp_path))
    assert len(found) == TEXTS
    assert found == rows_of(whole)
    assert not list(tmp_path.rglob(f".*{TEMPORARY}"))


def test_an_interrupted_encode_says_so_and_keeps_its_rows(tmp_path, texts):
    file, whole = texts
    status, err = end(
        start(*encode(file, tmp_path)),
        signal.SIGINT,
        lambda: any(tmp_path.glob("*/000000.values.npy")),
    )
    assert status == 1
    assert err.splitlines()[-1] == (
        "modalign: interrupted; finished work is kept, run the same command again to go on"
    )
    printed = run(*encode(file, tmp_path))["features"]["text"]
    assert printed["encoded"] < TEXTS
    assert rows_of(all_bytes(tmp_path)) == rows_of(whole)


# align and add

# Moment -> whether it has come, told from the cache, the work folder and the space.
Moment = Callable[[Path, Path, Path], bool]


def lines_of(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


MOMENTS: dict[str, Moment] = {
    "encoding": lambda cache, work, space: any(cache.glob("*/000000.keys.npy")),
    "first checkpoint": lambda cache, work, space: (work / "checkpoint.safetensors").exists(),
    "late step": lambda cache, work, space: lines_of(work / "log.jsonl") >= 4,
    "writing the stage": lambda cache, work, space: (
        (work / "weights.safetensors").exists() or (space / "stages" / work.name).exists()
    ),
}


@pytest.mark.parametrize("name", ["encoding", "late step", "writing the stage"])
def test_a_killed_align_goes_on_and_ends_with_the_same_bits(tmp_path, made, name):
    cache, space = tmp_path / "cache", tmp_path / "space"
    work = space / "work" / FIRST
    command = made.align(space, cache)
    end(start(*command), signal.SIGKILL, lambda: MOMENTS[name](cache, work, space))
    if FIRST not in stage_names(space):
        if work.exists():
            (work / f".checkpoint.0123{TEMPORARY}").write_bytes(b"half")
        run(*command)
    assert stage_names(space) == [FIRST]
    assert stage_bytes(space, FIRST) == stage_bytes(made.space, FIRST)
    assert sorted(p.name for p in (space / "stages" / FIRST).iterdir()) == STAGE_FILES
    if name == "late step":
        record = json.loads((space / "stages" / FIRST / "run.json").read_bytes())
        assert record["resumed_from"] > 0


@pytest.mark.parametrize("name", ["first checkpoint", "writing the stage"])
def test_a_killed_add_goes_on_and_changes_no_earlier_file(tmp_path, made, name):
    cache, space = tmp_path / "cache", tmp_path / "space"
    shutil.copytree(made.before_adding, space)
    before = all_bytes(space / "stages")
    work = space / "work" / SECOND
    command = made.add(space, cache)
    end(start(*command), signal.SIGKILL, lambda: MOMENTS[name](cache, work, space))
    assert {name: all_bytes(space / "stages")[name] for name in before} == before
    assert stage_names(space)[0] == FIRST
    if SECOND not in stage_names(space):
        run(*command)
    assert {name: all_bytes(space / "stages")[name] for name in before} == before
    assert stage_bytes(space, SECOND) == stage_bytes(made.space, SECOND)
    assert (space / "space.json").read_bytes() == (made.space / "space.json").read_bytes()
    assert main(["verify", str(space)]) == 0


def test_a_stage_that_no_header_names_is_made_again(tmp_path, made):
    space = tmp_path / "space"
    shutil.copytree(made.space, space)
    # Killed between the stage's rename and that of space.json.
    shutil.copy(made.before_adding / "space.json", space / "space.json")
    (space / "stages" / SECOND / "weights.safetensors").write_bytes(b"not what was named")
    run(*made.add(space, made.cache))
    assert stage_bytes(space, SECOND) == stage_bytes(made.space, SECOND)
    assert stage_names(space) == [FIRST, SECOND]


def test_an_interrupted_add_says_so_and_harms_nothing(tmp_path, made):
    space = tmp_path / "space"
    shutil.copytree(made.before_adding, space)
    before = all_bytes(space / "stages")
    checkpoint = space / "work" / SECOND / "checkpoint.safetensors"
    status, err = end(start(*made.add(space, made.cache)), signal.SIGINT, checkpoint.exists)
    assert status == 1
    assert err.splitlines()[-1] == (
        "modalign: interrupted; finished work is kept, run the same command again to go on"
    )
    assert all_bytes(space / "stages") == before
    assert main(["verify", str(space)]) == 0
