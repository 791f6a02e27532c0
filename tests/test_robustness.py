"""Robustness: what perturbations do to texts and pictures, and recall before and after."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modalign import align, load_encoder, read_pairs
from modalign.errors import UsageError
from modalign.evaluation import retrieval_ranks
from modalign.features import encode_items
from modalign.robustness import PICTURE_PERTURBATIONS, TEXT_PERTURBATIONS, measure_robustness
from modalign.robustness.perturbing import (
    attributes_inserted,
    blurred,
    cropped,
    greyscale,
    mistyped,
    noisy,
    words_swapped,
)
from modalign.robustness.trials import Trial, drawn_rows, perturbed_items
from modalign.space import Space
from modalign.space.encoded import EncodedPairs
from modalign.worlds import WorldSizes, write_world

TEXT = "A man in the boat throws two nets over dark water"


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def pixels(height: int = 30, width: int = 50) -> np.ndarray:
    return rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


# What perturbations do


def test_an_attribute_follows_every_article_and_number():
    found = attributes_inserted(TEXT, rng()).split()
    assert len(found) == len(TEXT.split()) + 3
    for article in ("A", "the", "two"):
        del found[found.index(article) + 1]
    assert found == TEXT.split()
    assert attributes_inserted("dogs run", rng()).split()[1:] == ["dogs", "run"]


def test_swapped_words_are_the_same_words_elsewhere():
    found = words_swapped(TEXT, rng())
    assert found != TEXT
    assert sorted(found.split()) == sorted(TEXT.split())
    assert words_swapped("dogs", rng()) == "dogs"


def test_a_typo_changes_some_long_words_by_one_letter():
    for seed in range(30):
        found = mistyped(TEXT, rng(seed)).split()
        changed = [(a, b) for a, b in zip(TEXT.split(), found, strict=True) if a != b]
        # Two letters that are the same may have been swapped.
        assert len(changed) <= 2
        for before, after in changed:
            assert len(before) >= 4
            assert abs(len(before) - len(after)) <= 1
            assert (before[0], before[-1]) == (after[0], after[-1]) or len(after) == len(before)
    assert mistyped("a big dog", rng()) == "a big dog"


def test_a_crop_is_a_part_of_the_picture():
    whole = pixels()
    part = cropped(whole, rng())
    assert part.shape == (18, 30, 3)
    places = [
        (top, left)
        for top in range(13)
        for left in range(21)
        if (whole[top : top + 18, left : left + 30] == part).all()
    ]
    assert len(places) == 1
    assert cropped(pixels(1, 1), rng()).shape == (1, 1, 3)


def test_blur_noise_and_grey_keep_the_shape_and_do_what_they_say():
    whole = pixels(200, 300)
    grey = greyscale(whole, rng())
    assert (grey == grey[..., :1]).all()
    assert blurred(whole, rng()).std() < 0.8 * whole.std()
    middle = np.full((200, 300, 3), 128, np.uint8)
    assert noisy(middle, rng()).std() == pytest.approx(20, rel=0.02)
    for perturb in PICTURE_PERTURBATIONS.values():
        before = whole.copy()
        assert perturb(whole, rng()).dtype == np.uint8
        assert (whole == before).all()


# Recall before and after


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "world"
    write_world(folder, scenes=WorldSizes(pictures=160, sounds=0, clips=0, test=30))
    return folder


@pytest.fixture(scope="module")
def space(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Space, EncodedPairs]:
    folder = tmp_path_factory.mktemp("robust")
    encoders = {
        "image": load_encoder("builtin:pixels"),
        "text": load_encoder("builtin:ngrams"),
    }
    pairs = read_pairs(world / "pictures.jsonl", ["image", "text"])
    made = align(pairs, encoders, out=folder / "s", recipe="closed-form", cache=folder / "f")
    return made, made.encode_pairs(pairs, cache=folder / "f")


BOTH = [("image", "text"), ("text", "image")]


def test_every_perturbation_is_measured_on_the_queries_it_fits(space):
    made, encoded = space
    cache = made.folder.parent / "f"
    found = measure_robustness(made, encoded, BOTH, Trial(cache=cache, queries=12))
    names = [(entry["from"], entry["perturbation"]) for entry in found]
    assert names == [
        *(("image", name) for name in PICTURE_PERTURBATIONS),
        *(("text", name) for name in TEXT_PERTURBATIONS),
    ]
    for entry in found:
        assert entry["queries"] == 12
        apart = entry["perturbed_recall_at_1"] - entry["recall_at_1"]
        assert entry["difference"] == pytest.approx(apart)
        low, high = entry["interval_95"]
        assert low <= entry["difference"] <= high
        assert entry["changed"] > 0.5
    assert min(entry["difference"] for entry in found) < -0.1


def test_the_figures_are_those_of_a_space_that_is_asked_by_hand(space):
    made, encoded = space
    cache = made.folder.parent / "f"
    trial = Trial(names=["typos"], cache=cache, queries=10**6)
    (entry,) = measure_robustness(made, encoded, [("text", "image")], trial)
    members = {m: encoded.pairs.members(m, split="validation") for m in ("image", "text")}
    texts = encoded.pairs.items["text"].select(members["text"])
    with perturbed_items(texts, "typos", trial) as (changed, _):
        features = encode_items(changed, made.encoder("text"), cache=cache).table
    queries = made.query(features.take(np.arange(len(features))), source="text", target="image")
    images = encoded.tables["image"].subset(members["image"])
    gallery = made.embed_features("image", images.take(np.arange(len(images))))
    links = encoded.pairs.positives("text", "image", split="validation")
    places = np.stack(
        [np.searchsorted(members[m], links[:, side]) for side, m in enumerate(("text", "image"))], 1
    )
    ranks = retrieval_ranks(queries, gallery, places)
    assert entry["perturbed_recall_at_1"] == pytest.approx(float(np.mean(ranks == 1)))
    plain = made.evaluate_encoded(encoded, directions=[("text", "image")])[0]
    assert entry["recall_at_1"] == plain.recall_at_1


def test_the_same_seed_perturbs_the_same_way_and_leaves_no_files(space):
    _, encoded = space
    items = encoded.pairs.items["image"].select(np.arange(3))
    trial = Trial(queries=3)
    seen = []
    for _ in range(2):
        with perturbed_items(items, "noise", trial) as (changed, share):
            assert share == 1.0
            seen.append([np.asarray(Image.open(value)).tobytes() for value in changed.values])
        assert not any(Path(value).exists() for value in changed.values)
    assert seen[0] == seen[1]
    assert drawn_rows(9, trial).tolist() == drawn_rows(9, trial).tolist()


def test_what_cannot_be_perturbed_is_said(space):
    made, encoded = space
    with pytest.raises(UsageError, match=r"none of typos fits queries by image"):
        measure_robustness(made, encoded, [("image", "text")], Trial(names=["typos"]))
    with pytest.raises(UsageError, match=r"perturbation.*melt.*attributes"):
        measure_robustness(made, encoded, BOTH, Trial(names=["melt"]))
