"""Pairs that are few, alike or lopsided: right results or clear errors, never a NaN."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modalign import align, load_encoder, read_pairs
from modalign.errors import ModalignError
from modalign.recipes import CombinedRecipe
from modalign.space import Space
from modalign.worlds import draw_vectors
from vector_spaces import key, spec, write_table, write_vectors

AUTO = CombinedRecipe(
    width=32,
    hidden=32,
    batch_size=64,
    epochs=1,
    min_steps=20,
    validate_steps=10,
    scoring="chosen",
    choose=True,
    budget=60.0,
)
WIDTHS = {"image": 48, "text": 40}


def views(rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    return draw_vectors(rows, widths=WIDTHS, latent=6, noise=0.02, seed=seed)


def made(folder: Path, values: dict[str, np.ndarray], table: list[list[str]]) -> Space:
    """A space by recipe auto; the table's rows are image, text, split."""
    folder.mkdir(exist_ok=True)
    for name, rows in values.items():
        write_vectors(folder / f"{name}.npz", rows, [key(name, row) for row in range(len(rows))])
    path = write_table(folder / "pairs.csv", ["image", "text", "split"], table)
    pairs = read_pairs(path, ["image", "text"], reads={"image": "key", "text": "key"})
    encoders = {name: load_encoder(spec(folder, name), modality=name) for name in pairs.modalities}
    return align(pairs, encoders, out=folder / "space", recipe=AUTO, cache=folder / "f")


def rows_of(train: int, held: int) -> list[list[str]]:
    splits = ["train"] * train + ["validation"] * held
    return [[f"i{row}", f"t{row}", split] for row, split in enumerate(splits)]


def numbers(value: Any) -> list[float]:
    """All numbers of a record."""
    if isinstance(value, dict):
        return [found for part in value.values() for found in numbers(part)]
    if isinstance(value, list):
        return [found for part in value for found in numbers(part)]
    return [float(value)] if isinstance(value, int | float) else []


def fewer_pairs_than_dimensions(folder: Path) -> Space:
    return made(folder, views(50), rows_of(30, 20))


def every_pair_three_times(folder: Path) -> Space:
    table = [row for row in rows_of(100, 20) for _ in range(3)]
    return made(folder, views(120), table)


def the_same_vector_under_many_ids(folder: Path) -> Space:
    values = {name: np.concatenate([v, v[:60], v[:60]]) for name, v in views(120).items()}
    values = {name: np.concatenate([v[20:], v[:20]]) for name, v in values.items()}
    return made(folder, values, rows_of(220, 20))


def a_dimension_that_does_not_vary(folder: Path) -> Space:
    values = views(140)
    values["image"][:, 3] = 7.0
    values["text"][:, 0] = 0.0
    return made(folder, values, rows_of(120, 20))


def one_text_of_most_images(folder: Path) -> Space:
    table = [
        [f"i{row}", "t0" if row < 110 and row % 10 else f"t{row}", split]
        for row, (_, _, split) in enumerate(rows_of(120, 20))
    ]
    return made(folder, views(140), table)


def three_validation_items(folder: Path) -> Space:
    return made(folder, views(123), rows_of(120, 3))


def numbers_of_very_different_size(folder: Path) -> Space:
    values = views(140)
    values["image"] = values["image"] * np.logspace(-4, 3, WIDTHS["image"])
    return made(folder, values, rows_of(120, 20))


CASES = {
    fewer_pairs_than_dimensions: 0.2,
    every_pair_three_times: 0.8,
    the_same_vector_under_many_ids: 0.5,
    a_dimension_that_does_not_vary: 0.8,
    one_text_of_most_images: 0.3,
    three_validation_items: 0.6,
    numbers_of_very_different_size: 0.8,
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_auto_gives_finite_numbers_and_a_space_that_finds(case: Callable, tmp_path):
    space = case(tmp_path / "w")
    record = space.stages[0].record
    # Networks were trained on these rows, whatever of them was kept.
    assert record["chosen"]["steps_taken"] == AUTO.min_steps
    assert record["chosen"]["candidates"] == ["cca", "residual", "mlp"]
    assert np.isfinite(numbers(json.loads(json.dumps(record)))).all()
    directions = record["validation"]["directions"]
    assert min(found["recall_at_1"] for found in directions) >= CASES[case]
    for name in WIDTHS:
        rows = np.load(tmp_path / "w" / f"{name}.npz")["vectors"]
        vectors = space.embed_features(name, rows.astype(np.float32))
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)
    for scoring in space.family.scoring.values():
        probability = scoring.calibration.probability(np.linspace(-1, 1, 9))
        assert ((probability > 0) & (probability < 1)).all()
    assert space.verify()["ok"]


def test_a_side_that_says_nothing_is_a_clear_error(tmp_path):
    values = views(60)
    values["text"][:] = values["text"][0]
    with pytest.raises(ModalignError, match="all features of the text side are equal"):
        made(tmp_path / "w", values, rows_of(40, 20))
