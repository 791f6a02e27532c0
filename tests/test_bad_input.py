"""What bad input gets: one line with the way out, exit 1 or 2, and nothing stored harmed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from modalign.cli import main
from vector_spaces import (
    SIZES,
    STEPS,
    contents,
    flip_bit,
    key,
    spec,
    write_table,
    write_vectors,
    write_world,
)

Refused = Callable[..., str]
ROWS = 24


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Call the command line, which must say in one line what is wrong; return the line."""

    def call(status: int, *arguments: object) -> str:
        capsys.readouterr()
        found = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert found == status, err
        assert out == ""
        assert err.startswith("modalign: ")
        assert err.count("\n") == 1, err
        assert "Traceback" not in err
        return err

    return call


@pytest.fixture
def works(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Call the command line, which must work; return what it prints as JSON."""

    def call(*arguments: object) -> dict[str, Any]:
        capsys.readouterr()
        status = main([str(argument) for argument in [*arguments, "--json"]])
        out, err = capsys.readouterr()
        assert status == 0, err
        value: dict[str, Any] = json.loads(out)
        return value

    return call


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of pictures, and photos.csv with a caption of each."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for row in range(ROWS):
        pixels = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((96, 96)).save(folder / f"{row}.jpg")
    rows = [[f"photos/{row}.jpg", f"a picture, number {row}"] for row in range(ROWS)]
    return write_table(tmp_path / "photos.csv", ["image", "text"], rows)


def align_photos(pairs: Path) -> list[object]:
    return [
        "align", pairs, "--encoder", "image=builtin:pixels", "--encoder", "text=builtin:ngrams",
        "--out", pairs.parent / "space", "--cache", pairs.parent / "cache", *SIZES,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Vectors, a space of image, text and audio made of them, and a gallery."""
    root = tmp_path_factory.mktemp("vectors")
    world, space, gallery = write_world(root / "world"), root / "space", root / "gallery"
    found = {"root": root, "world": world, "space": space, "gallery": gallery}
    for call in (
        align_vectors(world, space),
        ["add", space, world / "pairs.csv", *named(world, "audio"), "--anchor", "text", *STEPS],
        ["embed", space, world / "pairs.csv", "--modality", "image", "--out", gallery],
    ):
        assert main([str(argument) for argument in [*call, "--cache", root / "cache"]]) == 0
    return found


def named(world: Path, *modalities: str) -> list[str]:
    specs = [f"{modality}={spec(world, modality)}" for modality in modalities]
    return [text for value in specs for text in ("--encoder", value)]


def align_vectors(world: Path, space: Path) -> list[object]:
    encoders = named(world, "image", "text")
    return ["align", world / "pairs.csv", *encoders, "--out", space, *SIZES]


# Media ------------------------------------------------------------------------------------


def test_a_truncated_jpeg_is_named_with_its_row_and_the_rest_goes_on(
    photos: Path, refused: Refused, works: Any
):
    broken = photos.parent / "photos" / "7.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    line = refused(1, *align_photos(photos))
    assert "photos.csv row 8 (line 9)" in line
    assert "7.jpg" in line
    assert "--on-error skip" in line
    assert not (photos.parent / "space" / "space.json").exists()
    # The row that was mended goes on from what is encoded already.
    shutil.copy(photos.parent / "photos" / "6.jpg", broken)
    shown = works(*align_photos(photos))
    assert shown["encoded"]["image"] < ROWS


@pytest.mark.parametrize("content", [b"", b"RIFF\x00\x00\x00\x00WAVE", b"no sound at all"])
def test_a_wav_without_sound_is_named_with_its_row(
    tmp_path: Path, refused: Refused, content: bytes
):
    for row in range(9):
        (tmp_path / f"{row}.wav").write_bytes(content)
    rows = [[f"{row}.wav", f"sound {row}"] for row in range(9)]
    pairs = write_table(tmp_path / "sounds.csv", ["audio", "text"], rows)
    line = refused(
        1, "align", pairs, "--encoder", "audio=builtin:logmel", "--encoder", "text=builtin:ngrams",
        "--out", tmp_path / "space", "--cache", tmp_path / "cache", *SIZES,
    )  # fmt: skip
    assert "sounds.csv row 1 (line 2)" in line
    assert "0.wav" in line


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("two dogs run along a beach", "looks like text, expected the path of an image file"),
        ("photos", "expected the path of an image file"),
        ("photos/none.jpg", "does not exist in"),
        ("https://example.org/a.jpg", "is an address, expected the path of a file"),
        ("", "is empty"),
    ],
)
def test_a_cell_that_is_no_picture_is_told_before_any_work(
    photos: Path, refused: Refused, cell: str, words: str
):
    lines = photos.read_text(encoding="utf-8").splitlines()
    lines[5] = f"{cell},five"
    photos.write_text("\n".join(lines), encoding="utf-8")
    line = refused(1, *align_photos(photos))
    assert "photos.csv row 5 (line 6)" in line
    assert words in line
    assert not (photos.parent / "cache").exists()


# Pair files -------------------------------------------------------------------------------


def test_a_pair_file_with_a_byte_order_mark_works(photos: Path, works: Any):
    photos.write_bytes(b"\xef\xbb\xbf" + photos.read_bytes())
    assert works(*align_photos(photos))["encoded"]["image"] == ROWS


def test_wrong_quoting_is_told_with_its_line(photos: Path, refused: Refused):
    lines = photos.read_text(encoding="utf-8").splitlines()
    lines[9] = lines[9].split(",")[0] + ',"a picture that never ends'
    photos.write_text("\n".join(lines) + "\n", encoding="utf-8")
    line = refused(1, *align_photos(photos))
    assert "photos.csv" in line
    assert "line 10" in line


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "photos.csv"),
        (b"image,text\n", "photos.csv"),
        (b"picture,caption\na.jpg,b\n", "--column"),
        (b"image;text\na.jpg;b\n", "the separator seems to be ';', expected ','"),
        (b'image,text\nphotos/1.jpg,"[""a dog"", ""b"""\n', "photos.csv row 1 (line 2): column"),
        (b"\xff\xfe\x00\x01 no table", "photos.csv"),
    ],
)
def test_a_table_without_what_is_asked_for_is_one_line(
    photos: Path, refused: Refused, content: bytes, words: str
):
    photos.write_bytes(content)
    assert words in refused(1, *align_photos(photos))


def test_a_folder_where_a_table_is_meant_is_one_line(photos: Path, refused: Refused):
    assert "is a folder, expected a table" in refused(1, *align_photos(photos.parent / "photos"))


def test_ten_items_are_enough_and_three_are_not(
    vectors: dict[str, Path], works: Any, refused: Any, tmp_path: Path
):
    for count in (10, 3):
        rows = [[key("image", row), key("text", row)] for row in range(count)]
        write_table(tmp_path / f"{count}.csv", ["image", "text"], rows)
    call = [*named(vectors["world"], "image", "text"), "--cache", tmp_path / "cache", *SIZES]
    shown = works("align", tmp_path / "10.csv", *call, "--out", tmp_path / "space")
    assert [d["queries"] for d in shown["validation"]["directions"]] == [2, 2]
    assert_finite(tmp_path / "space")
    line = refused(1, "align", tmp_path / "3.csv", *call, "--out", tmp_path / "other")
    assert "3.csv: its 3 rows form 3 groups" in line
    assert "add rows" in line


# Vectors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_vectors_that_are_not_finite_are_named_with_their_id_and_row(
    vectors: dict[str, Path], refused: Refused, tmp_path: Path, bad: float
):
    shutil.copytree(vectors["world"], tmp_path / "world")
    values = np.load(tmp_path / "world" / "text.npz")["vectors"].copy()
    values[12, 3] = bad
    write_vectors(tmp_path / "world" / "text.npz", values, [key("text", row) for row in range(160)])
    line = refused(
        1, *align_vectors(tmp_path / "world", tmp_path / "space"), "--cache", tmp_path / "cache"
    )
    assert "pairs.csv row 13 (line 14)" in line
    assert "t12" in line
    assert "text.npz" in line


def assert_finite(space: Path) -> None:
    from safetensors.numpy import load_file

    for path in space.rglob("weights.safetensors"):
        assert all(np.isfinite(tensor).all() for tensor in load_file(path).values()), path


def constant_dimension(values: np.ndarray) -> np.ndarray:
    values[:, 3] = 7.0
    return values


def all_equal(values: np.ndarray) -> np.ndarray:
    values[:] = values[0]
    return values


def all_zero(values: np.ndarray) -> np.ndarray:
    return np.zeros_like(values)


def huge_beside_tiny(values: np.ndarray) -> np.ndarray:
    values[:, 0] *= 6e4 / np.abs(values[:, 0]).max()
    values[:, 1] *= 1e-7
    return values


@pytest.mark.parametrize("change", [constant_dimension, all_equal, all_zero, huge_beside_tiny])
def test_features_that_tell_little_are_trained_on_without_nan(
    vectors: dict[str, Path], works: Any, tmp_path: Path, change: Callable[..., np.ndarray]
):
    world, space = tmp_path / "world", tmp_path / "space"
    shutil.copytree(vectors["world"], world)
    values = change(np.load(world / "text.npz")["vectors"].copy())
    write_vectors(world / "text.npz", values, [key("text", row) for row in range(160)])
    cache = ["--cache", tmp_path / "cache"]
    shown = works(*align_vectors(world, space), *cache)
    assert all(0 <= d["recall_at_1"] <= 1 for d in shown["validation"]["directions"])
    pairs = world / "pairs.csv"
    works("add", space, pairs, *named(world, "audio"), "--anchor", "text", *STEPS, *cache)
    works("embed", space, pairs, "--modality", "text", "--out", tmp_path / "gallery", *cache)
    works("evaluate", space, pairs, *cache)
    assert_finite(space)


def test_collapsed_features_score_no_more_than_chance(
    vectors: dict[str, Path], works: Any, tmp_path: Path
):
    world = tmp_path / "world"
    shutil.copytree(vectors["world"], world)
    values = all_equal(np.load(world / "text.npz")["vectors"].copy())
    write_vectors(world / "text.npz", values, [key("text", row) for row in range(160)])
    shown = works(*align_vectors(world, tmp_path / "space"), "--cache", tmp_path / "cache")
    there, back = shown["validation"]["directions"]
    # All texts are equally similar to a picture; one picture is the nearest to all texts.
    assert there["recall_at_1"] == 0.0
    assert back["recall_at_1"] <= 1 / 16


def test_one_caption_for_all_pictures_is_trained_on_without_nan(
    vectors: dict[str, Path], works: Any, tmp_path: Path
):
    rows = [[key("image", row), "a photo"] for row in range(40)]
    pairs = write_table(tmp_path / "pairs.csv", ["image", "text"], rows)
    works(
        "align", pairs, *named(vectors["world"], "image"), "--encoder", "text=builtin:ngrams",
        "--out", tmp_path / "space", "--cache", tmp_path / "cache", *SIZES,
    )  # fmt: skip
    assert_finite(tmp_path / "space")
    rows = [[key("audio", row), "a photo"] for row in range(40)]
    pairs = write_table(tmp_path / "sounds.csv", ["audio", "text"], rows)
    works(
        "add", tmp_path / "space", pairs, *named(vectors["world"], "audio"),
        "--cache", tmp_path / "cache", *STEPS,
    )  # fmt: skip
    assert_finite(tmp_path / "space")


def test_a_run_that_leaves_all_bounds_ends_with_the_way_out(
    vectors: dict[str, Path], refused: Refused, tmp_path: Path
):
    line = refused(
        1, *align_vectors(vectors["world"], tmp_path / "space"), "--cache", tmp_path / "cache",
        "--learning-rate", "1e38",
    )  # fmt: skip
    assert "expected a finite one; lower --learning-rate" in line
    assert not (tmp_path / "space" / "space.json").exists()


# Spaces -----------------------------------------------------------------------------------


def test_wrong_additions_leave_the_space_as_it_is(
    vectors: dict[str, Path], refused: Refused, tmp_path: Path
):
    before = contents(vectors["space"])
    add = ["add", vectors["space"], vectors["world"] / "pairs.csv", "--cache", tmp_path / "cache"]
    there = refused(2, *add, *named(vectors["world"], "audio"), "--anchor", "text")
    assert "has audio already (its modalities: image, text, audio)" in there
    assert "give the new modality another name" in there
    missing = refused(2, *add, *named(vectors["world"], "video"), "--anchor", "smell")
    assert "anchor 'smell' is unknown; known: audio, image, text" in missing
    assert contents(vectors["space"]) == before


def test_a_space_of_a_newer_format_is_refused_by_every_command(
    vectors: dict[str, Path], refused: Refused, tmp_path: Path
):
    space, pairs = tmp_path / "space", vectors["world"] / "pairs.csv"
    shutil.copytree(vectors["space"], space)
    header = json.loads((space / "space.json").read_text(encoding="utf-8"))
    (space / "space.json").write_text(json.dumps({**header, "format": 2}), encoding="utf-8")
    for call in (
        ["verify", space],
        ["search", space, vectors["gallery"], "--text", "t1"],
        ["evaluate", space, pairs],
        ["embed", space, pairs, "--modality", "image", "--out", tmp_path / "gallery"],
        ["add", space, pairs, *named(vectors["world"], "video"), "--anchor", "text"],
    ):
        line = refused(1, *call)
        assert f"{space / 'space.json'}: format 2, this modalign reads 1; upgrade" in line


def test_a_flipped_bit_is_found_by_verify_with_file_and_stage_and_used_by_no_command(
    vectors: dict[str, Path], refused: Refused, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    space = tmp_path / "space"
    shutil.copytree(vectors["space"], space)
    weights = space / "stages" / "1-audio" / "weights.safetensors"
    flip_bit(weights)
    assert main(["verify", str(space)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["stage 0-image+text: unchanged", "stage 1-audio: CHANGED"]
    assert lines[2].strip() == f"{weights}: changed since it was written"
    line = refused(1, "search", space, vectors["gallery"], "--text", "t1")
    assert str(weights) in line
    assert "stage 1-audio" in line
    assert "restore the file from a copy" in line


def test_a_broken_gallery_is_told_by_search_and_by_verify(
    vectors: dict[str, Path], refused: Refused, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    gallery = tmp_path / "gallery"
    shutil.copytree(vectors["gallery"], gallery)
    (gallery / "vectors.npy").write_bytes((gallery / "vectors.npy").read_bytes()[:-100])
    line = refused(1, "search", vectors["space"], gallery, "--text", "t1")
    assert str(gallery / "vectors.npy") in line
    assert main(["verify", str(vectors["space"]), "--gallery", str(gallery), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert [stage["ok"] for stage in report["stages"]] == [True, True]
    assert "vectors.npy" in report["galleries"][0]["problems"][0]


# The machine ------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a small file system, where that is allowed."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("size", ["64k", "128k"])
def test_align_on_a_full_disk_says_so_and_goes_on_when_there_is_room(
    vectors: dict[str, Path], refused: Refused, works: Any, tmp_path: Path, size: str
):
    space = tmp_path / "disk" / "space"
    call = [*align_vectors(vectors["world"], space), "--cache", tmp_path / "cache"]
    with small_disk(tmp_path / "disk", size):
        line = refused(1, *call, "--feedforward", "256", "--checkpoint-seconds", "0")
        assert "the disk is full" in line
        assert "run the same command again" in line
        assert str(tmp_path / "disk") in line
        assert not (space / "space.json").exists()
        shutil.copytree(space, tmp_path / "rescued", dirs_exist_ok=True)
    assert works(*call[:-2], "--cache", tmp_path / "cache")["encoded"] == {"image": 0, "text": 0}


def test_embed_on_a_full_disk_leaves_no_gallery_and_the_space_as_it_is(
    vectors: dict[str, Path], refused: Refused, tmp_path: Path
):
    before = contents(vectors["space"])
    with small_disk(tmp_path / "disk", "8k") as disk:
        line = refused(
            1, "embed", vectors["space"], vectors["world"] / "pairs.csv", "--modality", "image",
            "--out", disk / "gallery", "--cache", vectors["root"] / "cache",
        )  # fmt: skip
        assert "the disk is full" in line
        assert list(disk.iterdir()) == []
    assert contents(vectors["space"]) == before


def test_encoding_to_a_full_disk_says_so(
    vectors: dict[str, Path], refused: Refused, tmp_path: Path
):
    with small_disk(tmp_path / "disk", "8k") as disk:
        line = refused(
            1, "encode", vectors["world"] / "pairs.csv", *named(vectors["world"], "image"),
            "--cache", disk / "cache",
        )  # fmt: skip
        assert "the disk is full" in line
        assert "run the same command again" in line


def test_ctrl_c_ends_in_one_line_and_the_next_run_goes_on(
    vectors: dict[str, Path], works: Any, tmp_path: Path
):
    space = tmp_path / "space"
    call = [
        *align_vectors(vectors["world"], space), "--cache", tmp_path / "cache",
        "--min-steps", "100000", "--patience", "100000",
    ]  # fmt: skip
    child = subprocess.Popen(
        [sys.executable, "-m", "modalign", *map(str, call), "--checkpoint-seconds", "0.05"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent / "src")},
    )
    checkpoint = space / "work" / "0-image+text" / "checkpoint.safetensors"
    deadline = time.monotonic() + 60
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, out) == (1, "")
    assert err == (
        "modalign: interrupted; finished work is kept, run the same command again to go on\n"
    )
    assert checkpoint.exists()
    again = works(*align_vectors(vectors["world"], space), "--cache", tmp_path / "cache")
    assert again["encoded"] == {"image": 0, "text": 0}
