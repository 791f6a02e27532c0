"""Small spaces of drawn vectors, for the tests of spaces and of the command line."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from modalign.recipes import AltMoERecipe, OneEncoderRecipe
from modalign.worlds import draw_vectors

WIDTHS = {"image": 24, "text": 16, "audio": 20, "video": 12, "sensor": 8}
RECIPE = OneEncoderRecipe(
    width=32,
    heads=2,
    feedforward=32,
    batch_size=64,
    epochs=1,
    min_steps=60,
    learning_rate=5e-3,
    dropout=0.0,
    feature_dropout=0.0,
    validate_steps=20,
)
# The same on the command line: sizes of the first stage, then what a later one may change too.
STEPS = (
    "--batch-size 64 --epochs 1 --min-steps 60 --learning-rate 5e-3 --dropout 0 "
    "--feature-dropout 0 --validate-steps 20"
).split()
SIZES = ["--width", "32", "--heads", "2", "--feedforward", "32", *STEPS]

DIRECTED = AltMoERecipe(
    width=32,
    experts=4,
    batch_size=64,
    epochs=1,
    min_steps=80,
    learning_rate=5e-3,
    dropout=0.0,
    feature_dropout=0.0,
    validate_steps=20,
)
DIRECTED_SIZES = (
    "--width 32 --experts 4 --batch-size 64 --epochs 1 --min-steps 80 --learning-rate 5e-3 "
    "--dropout 0 --feature-dropout 0 --validate-steps 20"
).split()


def key(modality: str, row: int) -> str:
    """Return the id of an item, as in a17."""
    return f"{modality[0]}{row}"


def write_vectors(path: Path, values: np.ndarray, ids: Sequence[str]) -> None:
    """Write a file for `vectors:`."""
    np.savez(path, vectors=values, ids=np.array(ids))


def write_world(folder: Path, *, rows: int = 160, seed: int = 0) -> Path:
    """Write MODALITY.npz for each of `WIDTHS`, and pairs.csv with a column for each."""
    folder.mkdir(parents=True, exist_ok=True)
    views = draw_vectors(rows, widths=WIDTHS, latent=6, noise=0.02, seed=seed)
    for modality, values in views.items():
        write_vectors(
            folder / f"{modality}.npz", values, [key(modality, row) for row in range(rows)]
        )
    table = [[key(modality, row) for modality in WIDTHS] for row in range(rows)]
    write_table(folder / "pairs.csv", list(WIDTHS), table)
    return folder


def write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Path:
    """Write a CSV file."""
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def spec(folder: Path, modality: str) -> str:
    """Return the encoder of a modality."""
    return f"vectors:{folder / f'{modality}.npz'}"


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return the time of change and the bytes of every file below a folder."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def flip_bit(path: Path, place: int | None = None) -> None:
    """Flip one bit of a file, in its middle by default."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if place is None else place] ^= 0x04
    path.write_bytes(bytes(data))
