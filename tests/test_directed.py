"""Directed maps: what a step moves, raw vectors as the gallery, ways over several maps."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from interruptions import Stop, stopping_at
from modalign import Gallery, Space, UsageError, align, load_encoder, load_space, read_items
from modalign.cli import main
from modalign.encoders import Encoder, Features
from modalign.evaluation import ranks
from modalign.features.store import FeatureArray
from modalign.pairs import Pairs, read_pairs
from modalign.recipes import AltMoERecipe, named_recipe
from modalign.space.aligning import counted
from modalign.space.directed import (
    DirectedMaps,
    DirectedObjective,
    of_direction,
    shortest_way,
)
from modalign.space.families import Sides
from modalign.space.paired import PairedTables
from modalign.space.space import verify_space
from modalign.training import FitResult, fit
from modalign.training.checkpoints import read_checkpoint
from modalign.training.optimizer import Optimizer
from modalign.worlds import draw_vectors
from vector_spaces import DIRECTED as MADE
from vector_spaces import RECIPE as SHARED
from vector_spaces import STEPS, WIDTHS, contents, flip_bit, key, spec, write_world

SMALL = AltMoERecipe(
    width=12,
    experts=4,
    top_k=2,
    batch_size=16,
    epochs=1,
    min_steps=16,
    validate_steps=4,
    learning_rate=0.01,
    weight_decay=0.1,
)
VIEWS = {"image": 10, "text": 8, "audio": 6}
THERE, BACK = ("image", "text"), ("text", "image")


# One stage's training ---------------------------------------------------------------------


def paired(first: str, second: str, *, start: int, count: int) -> PairedTables:
    """Some rows of one world; most of the second have two rows of the first."""
    world = draw_vectors(200, widths=VIEWS, latent=4, seed=0)
    tables: dict[str, Any] = {
        name: FeatureArray(Features(world[name][start : start + count])) for name in (first, second)
    }
    rows = np.arange(count)
    pairs = np.concatenate([np.stack([rows, rows], 1), np.stack([rows, rows - rows % 2], 1)])
    return PairedTables(first, second, tables, np.unique(pairs, axis=0))


def objective_of(family: DirectedMaps, recipe: AltMoERecipe, growth: Any) -> DirectedObjective:
    joined = list(dict.fromkeys(tuple(sorted(d)) for d in growth.directions))
    made = family.objective(
        recipe,
        growth,
        train=[paired(a, b, start=0, count=60) for a, b in joined],
        validation=[paired(a, b, start=60, count=30) for a, b in joined],
        seed=0,
    )
    assert isinstance(made, DirectedObjective)
    return made


def first_stage(**changes: Any) -> DirectedObjective:
    torch.manual_seed(0)
    recipe = SMALL.changed(changes)
    family = DirectedMaps(recipe)
    growth = family.growth(recipe, {"image": 10, "text": 8}, anchor=None)
    family.grow(recipe, growth)
    return objective_of(family, recipe, growth)


def later_stage(first: DirectedObjective, **changes: Any) -> DirectedObjective:
    torch.manual_seed(1)
    first.family.remember(first.temperature)
    recipe = first.recipe.changed(changes)
    growth = first.family.growth(recipe, {"audio": 6}, anchor="text")
    first.family.grow(recipe, growth)
    return objective_of(first.family, recipe, growth)


def sha256(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.detach().numpy().tobytes()).hexdigest()


def hashes(module: nn.Module) -> dict[str, str]:
    """The sha256 of every parameter and buffer."""
    return {name: sha256(tensor) for name, tensor in module.state_dict().items()}


class Run:
    """Steps by hand, as the loop takes them."""

    def __init__(self, objective: DirectedObjective) -> None:
        self.objective = objective
        self.optimizer = Optimizer(objective.parameters, objective.recipe)

    def step(self, number: int) -> None:
        self.objective.train_mode()
        rate = self.objective.recipe.learning_rate
        self.optimizer.minimize(self.objective.loss(number), rate=rate)

    def state(self) -> dict[str, str]:
        """The hash of every trained tensor, and of each of its moments."""
        found = {name: sha256(p) for name, p in self.objective.parameters.items()}
        for moved, value in self.optimizer.state().items():
            moment, _, name = moved.partition(".")
            found[f"{name} {moment}"] = sha256(value)
        return found

    def moved(self, number: int) -> set[str]:
        """Take a step; return the tensors that are other ones, or have other moments."""
        before = self.state()
        self.step(number)
        after = self.state()
        return {name.split(" ")[0] for name in after if before.get(name) != after[name]}


def of(direction: str, names: set[str]) -> set[str]:
    return {name for name in names if direction in name}


@pytest.mark.parametrize("balance", [0.0, 0.1])
def test_a_step_moves_its_direction_the_experts_and_nothing_else(balance):
    """Momentum and decay too: the other direction was trained before, and has both."""
    run = Run(first_stage(dropout=0.0, balance_weight=balance))
    for number in range(4):
        run.step(number)
    every = set(run.objective.parameters)
    shared = of("mixtures.shared.", every)
    assert every == of("image>text", every) | of("text>image", every) | shared
    # An expert that no row of the batch chose stays as well.
    always = of(".gate.", shared) | of(".norms.", shared)
    for number, direction in ((4, "image>text"), (5, "text>image")):
        moved = run.moved(number)
        assert moved - shared == of(direction, every)
        assert moved >= always
        assert of(".experts.", moved)


def test_a_joint_step_moves_all():
    run = Run(first_stage(alternation="joint"))
    assert run.moved(0) == set(run.objective.parameters)


def test_where_directions_have_their_own_experts_those_of_others_stay():
    run = Run(first_stage(share_experts=False))
    run.step(0)
    run.step(1)
    assert not of("text>image", run.moved(2))
    assert of("mixtures.text>image", run.moved(3))


def test_an_added_stage_moves_only_its_own(tmp_path):
    for added_experts in (0, 3):
        objective = later_stage(first_stage(), added_experts=added_experts)
        model = objective.model
        before = hashes(model)
        fitted(objective, tmp_path / str(added_experts))
        after = hashes(model)
        own = {f"stages.1.{name}" for name, _ in model.stages[1].named_parameters()}
        assert {name for name in before if before[name] != after[name]} == own
        assert any("mixtures" in name for name in own) == (added_experts > 0)


def test_what_a_stage_trains_is_listed_and_counted():
    for added_experts in (0, 3):
        objective = later_stage(first_stage(), added_experts=added_experts)
        sizes = {name: p.numel() for name, p in objective.model.stages[1].named_parameters()}
        sizes |= {"log_temperature.audio>text": 1, "log_temperature.text>audio": 1}
        assert counted(objective.parameters) == sizes
        wanting = {name for name, p in objective.model.named_parameters() if p.requires_grad}
        assert wanting == {f"stages.1.{name}" for name in sizes if "temperature" not in name}


@pytest.mark.parametrize(
    ("task", "other"), [("prediction", "contrast"), ("contrast", "prediction")]
)
def test_a_task_without_weight_is_not_touched(task, other):
    changes = {f"{task}_weight": 0.0, "score": other, "alternation": "joint"}
    run = Run(first_stage(**changes))
    run.step(0)
    moved = run.moved(1)
    assert not {name for name in moved if f".{task}" in name}
    assert {name for name in moved if f".{other}" in name}
    # Nor is it counted.
    assert not {name for name in run.objective.parameters if f".{task}" in name}


def test_the_temperature_moves_only_where_it_is_learned(tmp_path):
    for learned in (True, False):
        objective = first_stage(learn_temperature=learned)
        fitted(objective, tmp_path / str(learned))
        for value in objective.temperature.values():
            assert (value == pytest.approx(0.05, rel=1e-6)) == (not learned)
        assert objective.temperature.keys() == {"image>text", "text>image"}


def test_all_that_is_frozen_is_in_eval_mode_during_a_step():
    objective = later_stage(first_stage(), added_experts=3)
    objective.model.train()
    objective.train_mode()
    own = set(map(id, objective.model.stages[1].modules()))
    inside = [m for m in objective.model.stages.modules() if m is not objective.model.stages]
    assert all(module.training == (id(module) in own) for module in inside)
    inherited = objective.model.stages[1].shared().all_experts()[:4]
    assert not any(expert.training for expert in inherited)


# The loss ---------------------------------------------------------------------------------


def slow_half(u: np.ndarray, v: np.ndarray, partners: np.ndarray, temperature: float) -> float:
    total = 0.0
    for row in range(len(u)):
        e = np.exp(v @ u[row] / temperature)
        negatives = e[~partners[row]].sum()
        total += np.mean(
            [-np.log(e[p] / (e[p] + negatives)) for p in np.flatnonzero(partners[row])]
        )
    return total / len(u)


def slow_prediction(predicted: np.ndarray, wanted: np.ndarray, kind: str, reduction: str) -> float:
    each = []
    for a, b in zip(predicted, wanted, strict=True):
        if kind == "cosine":
            each.append(1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b))
            continue
        gaps = [abs(x - y) for x, y in zip(a, b, strict=True)]
        parts = [g * g if kind == "l2" else g * g / 2 if g < 1 else g - 0.5 for g in gaps]
        each.append(sum(parts) / (len(parts) if reduction == "mean" else 1))
    return float(np.mean(each))


def unit(x: np.ndarray) -> np.ndarray:
    lengths: np.ndarray = x / np.linalg.norm(x, axis=1, keepdims=True)
    return lengths


@pytest.mark.parametrize("direction", [THERE, BACK])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"prediction": "l2", "reduction": "sum"},
        {"prediction": "cosine", "prediction_weight": 2.0, "contrast_weight": 0.25},
        {"prediction_weight": 0.0},
        {"contrast_weight": 0.0, "score": "prediction"},
    ],
)
def test_the_loss_of_a_direction_is_that_of_a_slow_twin(direction, changes):
    """Against the target's raw features; two captions of one photo are no negatives."""
    options = {"dropout": 0.0, "feature_dropout": 0.0, "temperature": 0.3, **changes}
    objective = first_stage(**options)
    objective.train_mode()
    tables = objective.train[direction].tables
    batch = objective.batches[direction].batch(3)
    pairs = {tuple(pair) for pair in objective.train[direction].oriented(direction[0]).tolist()}
    partners = np.array([[(a, b) in pairs for b in batch.second] for a in batch.first])
    assert partners.sum() > len(partners)
    source = torch.from_numpy(tables[direction[0]].take(batch.first).values)
    wanted = tables[direction[1]].take(batch.second).values.astype(np.float64)
    with torch.no_grad():
        made = objective.model(direction, source, tasks=("prediction", "contrast"))
    recipe, expected = objective.recipe, 0.0
    if recipe.prediction_weight:
        predicted = made["prediction"].double().numpy()
        expected += recipe.prediction_weight * slow_prediction(
            predicted, wanted, recipe.prediction, recipe.reduction
        )
    if recipe.contrast_weight:
        u, v = unit(made["contrast"].double().numpy()), unit(wanted)
        both = slow_half(u, v, partners, 0.3) + slow_half(v, u, partners.T, 0.3)
        expected += recipe.contrast_weight * both / 2
    loss = objective.direction_loss(direction, 3)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)


def test_the_paper_weighs_prediction_and_contrast_alike():
    assert (SMALL.prediction_weight, SMALL.contrast_weight) == (0.5, 0.5)
    paper = named_recipe("alt-moe-paper")
    assert isinstance(paper, AltMoERecipe)
    assert (paper.width, paper.experts, paper.top_k, paper.temperature) == (2048, 12, 4, 0.03)
    assert (paper.prediction, paper.reduction, paper.balance_weight) == ("smooth-l1", "mean", 0)


def test_a_joint_loss_is_the_sum_over_directions():
    options = {"dropout": 0.0, "feature_dropout": 0.0, "alternation": "joint"}
    objective = first_stage(**options)
    parts = [objective.direction_loss(d, 2) for d in (THERE, BACK)]
    assert float(objective.loss(2).detach()) == pytest.approx(float(sum(parts).detach()))


def test_an_epoch_takes_every_direction_over_its_pairs():
    # 60 rows, half of them with a second partner, are 90 pairs: 5 whole batches of 16.
    assert first_stage().steps_per_epoch == 2 * 5
    assert first_stage(alternation="joint").steps_per_epoch == 5


def test_balancing_adds_its_share_to_the_loss():
    options = {"dropout": 0.0, "feature_dropout": 0.0}
    plain, balanced = first_stage(**options), first_stage(**options, balance_weight=0.5)
    difference = balanced.direction_loss(THERE, 0) - plain.direction_loss(THERE, 0)
    # The balance loss is 1 at least, and E at most.
    assert 0.5 * 0.9 < float(difference.detach()) < 0.5 * 4


def test_features_are_standardised_with_the_figures_of_the_training_split():
    objective = first_stage()
    values = objective.train[THERE].tables["image"].take(np.arange(60)).values
    known = objective.model.map_of(THERE).standardization
    np.testing.assert_allclose(known.mean, values.mean(0), atol=1e-5)
    np.testing.assert_allclose(known.deviation, values.std(0), atol=1e-5)
    plain = first_stage(standardize=False).model.map_of(THERE).standardization
    assert torch.equal(plain.mean, torch.zeros(10))


# Going on ---------------------------------------------------------------------------------


def fitted(objective: DirectedObjective, folder: Path, *, stop: int = -1) -> FitResult:
    folder.mkdir(exist_ok=True)
    return fit(
        objective,
        objective.recipe,
        folder=folder,
        run="one",
        seed=5,
        progress=stopping_at(stop),
        checkpoint_seconds=1e9 if stop < 0 else 0.0,
    )


def test_the_loop_leaves_the_other_direction_and_its_moments_where_they_are(tmp_path):
    objective = first_stage(min_steps=6, validate_steps=6)
    seen: list[dict[str, str]] = []

    def told(task: str, done: int, total: int, note: str) -> None:
        found = read_checkpoint(tmp_path / "checkpoint.safetensors", run="one")
        assert found is not None
        state = {}
        for name, tensor in found[0].items():
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                moment, _, parameter = rest.partition(".")
                state[f"{parameter} {moment}"] = sha256(tensor)
            elif kind == "weights":
                state[rest] = sha256(tensor)
        seen.append(state)

    recipe = objective.recipe
    options = {"run": "one", "seed": 5, "progress": told, "checkpoint_seconds": 0.0}
    fit(objective, recipe, folder=tmp_path, **options)
    for step in range(2, 6):
        before, after = seen[step - 1], seen[step]
        moved = {name for name in after if before[name] != after[name]}
        active, other = ("image>text", "text>image")[:: 1 if step % 2 == 0 else -1]
        assert not of(other, moved), step
        assert len(of(active, moved)) == len(of(active, set(after))) > 30


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("alternation", ["adaptive", "random", "round-robin"])
def test_a_stage_goes_on_to_the_same_bits(tmp_path, alternation, precision):
    options = {"alternation": alternation, "precision": precision, "noise": 0.3}
    whole, broken, third = (later_stage(first_stage(**options), added_experts=2) for _ in range(3))
    fitted(whole, tmp_path / "whole")
    with pytest.raises(Stop):
        fitted(broken, tmp_path / "broken", stop=7)
    assert fitted(third, tmp_path / "broken").resumed_from == 7
    assert hashes(third.model) == hashes(whole.model)
    assert third.alternation.state() == whole.alternation.state()
    logs = [(tmp_path / name / "log.jsonl").read_bytes() for name in ("whole", "broken")]
    assert logs[0] == logs[1]


def test_the_first_stage_finds_its_pairs(tmp_path):
    for alternation in ("round-robin", "joint", "adaptive", "random"):
        options = {"min_steps": 60, "validate_steps": 30, "learning_rate": 0.02, "width": 24}
        still = {"dropout": 0.0, "feature_dropout": 0.0}
        objective = first_stage(alternation=alternation, **options, **still)
        result = fitted(objective, tmp_path / alternation)
        assert result.best["recall"] > 5 / 30, alternation


# Directions -------------------------------------------------------------------------------


def planned(directions: str, *modalities: str, anchor: str | None = None) -> list[str]:
    recipe = SMALL.changed({"directions": directions})
    growth = DirectedMaps(recipe).growth(recipe, dict.fromkeys(modalities, 4), anchor=anchor)
    return [">".join(direction) for direction in growth.directions]


def test_all_directions_of_a_stage_are_trained_unless_some_are_named():
    assert planned("all", "a", "b") == ["a>b", "b>a"]
    assert len(planned("all", "a", "b", "c", "d")) == 12
    assert set(planned("all", "new", anchor="old")) == {"old>new", "new>old"}
    assert planned("b>a, a>c", "a", "b", "c") == ["b>a", "a>c"]


@pytest.mark.parametrize(
    ("directions", "words"),
    [
        ("a>b,a>d", "direction 'a>d' is unknown; known: a>b, a>c, b>a, b>c, c>a, c>b"),
        ("a>b,b>a", "c is in none of them, expected each modality in one at least"),
        ("a>b,b>c,a>b", "directions a>b,b>c,a>b: one is named twice"),
        ("a-b", "direction 'a-b': expected SOURCE>TARGET"),
        ("", "direction '': expected SOURCE>TARGET"),
    ],
)
def test_directions_that_cannot_be_trained_are_refused_by_name(directions, words):
    with pytest.raises(UsageError, match=words):
        planned(directions, "a", "b", "c")


def test_a_direction_without_pairs_is_refused():
    tables = [paired("image", "text", start=0, count=20)]
    assert of_direction(tables, BACK) is tables[0]
    with pytest.raises(UsageError, match="direction image>audio: there are no pairs of its modal"):
        of_direction(tables, ("image", "audio"))


def test_the_shortest_way_is_taken_and_none_is_none():
    maps = [("a", "b"), ("b", "c"), ("c", "d"), ("b", "d"), ("d", "a")]
    assert shortest_way(maps, "a", "d") == ("a", "b", "d")
    assert shortest_way(maps, "d", "a") == ("d", "a")
    assert shortest_way(maps, "c", "b") == ("c", "d", "a", "b")
    assert shortest_way(maps, "a", "e") is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"top_k": 9}, "top_k is 9, expected at most the number of experts, 4; change one"),
        ({"top_k": 0}, "top_k is 0, expected 1 or more"),
        ({"experts": 0}, "experts is 0, expected 1 or more"),
        ({"added_experts": -1}, "added_experts is -1, expected 0 or more"),
        ({"noise": -0.1}, "noise is -0.1, expected 0 or more"),
        ({"balance_weight": float("nan")}, "balance_weight is nan, expected 0 or more"),
        ({"prediction_weight": -1}, "prediction_weight is -1, expected 0 or more"),
        ({"prediction_weight": 0, "contrast_weight": 0}, "weight are 0, expected one above"),
        ({"contrast_weight": 0}, "score is contrast and contrast_weight is 0"),
        ({"prediction_weight": 0, "score": "prediction"}, "score is prediction and prediction_w"),
        ({"router": "best"}, "router 'best' is unknown; known: dense, fixed-modality"),
        ({"modality_embedding": "no"}, "modality_embedding 'no' is unknown; known: both, common"),
        ({"granularity": "words"}, "granularity 'words' is unknown; known: tokens, vectors"),
        ({"prediction": "l1"}, "prediction loss 'l1' is unknown; known: cosine, l2, smooth-l1"),
        ({"reduction": "max"}, "reduction 'max' is unknown; known: mean, sum"),
        ({"alternation": "turns"}, "alternation 'turns' is unknown; known: adaptive, joint"),
        ({"score": "both"}, "score 'both' is unknown; known: contrast, fused, prediction"),
    ],
)
def test_recipes_that_no_run_could_use_are_refused_by_name(changes, words):
    with pytest.raises(UsageError, match=words):
        SMALL.changed(changes)


# Spaces -----------------------------------------------------------------------------------

SHORT = MADE.changed({"min_steps": 4, "validate_steps": 4})


def encoder_of(world: Path, modality: str) -> Encoder:
    return load_encoder(spec(world, modality), modality=modality)


def pairs_of(world: Path, *modalities: str) -> Pairs:
    return read_pairs(world / "pairs.csv", modalities, reads=dict.fromkeys(modalities, "key"))


class World:
    """Vectors of five modalities, and where to put what is made of them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = write_world(root / "world")
        self.cache = root / "cache"

    def align(self, out: Path, *modalities: str, **options: Any) -> Space:
        names = modalities or ("image", "text")
        encoders = {name: encoder_of(self.folder, name) for name in names}
        given = {"recipe": MADE, "cache": self.cache, **options}
        return align(pairs_of(self.folder, *names), encoders, out=out, **given)

    def add(self, space: Space, modality: str, anchor: str, **changes: Any) -> None:
        pairs = pairs_of(self.folder, modality, anchor)
        encoder = encoder_of(self.folder, modality)
        space.add(pairs, encoder, anchor=anchor, changes=changes, cache=self.cache)

    def features(self, modality: str) -> np.ndarray:
        values: np.ndarray = np.load(self.folder / f"{modality}.npz")["vectors"]
        return values.astype(np.float16)

    def evaluate(self, space: Space, *modalities: str, **options: Any) -> dict[Any, Any]:
        pairs = pairs_of(self.folder, *modalities)
        found = space.evaluate(pairs, cache=self.cache, split="validation", **options)
        return {(d.source, d.target): d for d in found}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def grown(world: World) -> dict[str, Any]:
    """A space of image and text; audio added on frozen, sensor on grown experts."""
    root = world.root / "grown"
    root.mkdir()
    space = world.align(root / "space")
    texts = read_items(world.folder / "pairs.csv", "text", reads="key")
    space.embed_items(texts, out=root / "texts", cache=world.cache)
    states = []
    for modality, anchor, experts in (("audio", "text", 0), ("sensor", "image", 3)):
        queries = {
            d: space.query(world.features(d[0]), source=d[0], target=d[1]) for d in (THERE, BACK)
        }
        states.append((contents(root), queries))
        world.add(space, modality, anchor, added_experts=experts)
    return {"root": root, "space": space, "before": states}


@pytest.fixture(scope="module")
def space(grown: dict[str, Any]) -> Space:
    made: Space = grown["space"]
    return made


@pytest.fixture(scope="module")
def texts(grown: dict[str, Any], space: Space) -> Gallery:
    return Gallery.load(grown["root"] / "texts")


def test_a_gallery_holds_the_encoders_vectors_bit_for_bit(texts: Gallery, world: World):
    assert np.array_equal(texts.vectors, world.features("text"))
    assert texts.vectors.dtype == np.float16


def test_what_is_embedded_is_what_the_encoder_gave(space: Space, world: World):
    features = world.features("image")
    assert np.array_equal(space.embed_features("image", features), features.astype(np.float32))
    given = space.embed("image", [key("image", 3)], exact=True)
    assert np.array_equal(given, features[3:4].astype(np.float32))
    assert space.gallery_width("image") == WIDTHS["image"]


def test_what_is_stored_of_tokens_is_their_mean_over_valid_positions(space: Space):
    values = np.random.default_rng(0).standard_normal((2, 3, WIDTHS["text"])).astype(np.float32)
    mask = np.array([[True, True, False], [True, True, True]])
    stored = space.embed_features("text", Features(values, mask))
    np.testing.assert_allclose(stored, [values[0, :2].mean(0), values[1].mean(0)], rtol=1e-6)


def test_a_gallery_is_of_every_space_with_that_encoder(
    texts: Gallery, world: World, tmp_path: Path
):
    other = world.align(tmp_path / "other", recipe=SHORT, seed=9)
    other.check_gallery(texts)
    assert other.verify([texts.folder])["ok"]
    assert len(other.search(texts, [key("image", 0)], modality="image", k=3).ids[0]) == 3


@contextmanager
def counting(space: Space) -> Iterator[list[tuple[int, ...]]]:
    """The shape of what goes through each call of the connectors."""
    calls: list[tuple[int, ...]] = []
    handles = [
        space.family.model.map_of(direction).projection.register_forward_hook(
            lambda module, given, out: calls.append(tuple(given[0].shape))
        )
        for direction in space.family.model.directions
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def test_search_maps_the_query_alone(space: Space, texts: Gallery, world: World, tmp_path: Path):
    with counting(space) as calls:
        items = read_items(world.folder / "pairs.csv", "image", reads="key")
        space.embed_items(items, out=tmp_path / "images", cache=world.cache)
        space.check_gallery(texts)
        assert calls == []
        space.search(texts, [key("image", 0)], modality="image", k=5)
        # One block: the query, padded to the block's size; no row of the gallery's 160.
        ((rows, width),) = calls
        assert rows <= 32 < len(texts)
        assert width == WIDTHS["image"]
        space.search(texts, [key("sensor", 0)], modality="sensor", k=5)
        assert len(calls) == 3, "sensor > image > text"


def test_a_search_finds_what_belongs_to_the_query(space: Space, texts: Gallery):
    hits = space.search(texts, [key("image", row) for row in range(40)], modality="image", k=10)
    assert np.mean([key("text", row) in hits.ids[row] for row in range(40)]) > 0.8


def test_a_query_alone_among_others_or_with_more_threads_has_the_same_bits(
    space: Space, world: World
):
    for source, target in (THERE, ("sensor", "text"), ("audio", "image")):
        features = world.features(source)
        together = space.query(features, source=source, target=target)
        assert together.shape == (160, WIDTHS[target])
        np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
        alone = [space.query(row[None], source=source, target=target) for row in features[:6]]
        assert np.array_equal(np.concatenate(alone), together[:6])
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(2 if threads == 1 else 1)
            other = space.query(features[5:], source=source, target=target)
        finally:
            torch.set_num_threads(threads)
        assert np.array_equal(other, together[5:])


# Adding


def test_adding_changes_no_earlier_file_but_space_json(grown: dict[str, Any]):
    now = contents(grown["root"])
    for before, _ in grown["before"]:
        for name, state in before.items():
            if name not in ("space/space.json", "space/.modalign.lock"):
                assert now[name] == state, name


def test_frozen_or_grown_experts_leave_old_directions_bit_identical(
    grown: dict[str, Any], world: World
):
    again = load_space(grown["root"] / "space")
    for _, queries in grown["before"]:
        for (source, target), vectors in queries.items():
            now = again.query(world.features(source), source=source, target=target)
            assert np.array_equal(now, vectors)
    report = again.verify([grown["root"] / "texts"])
    assert report["ok"]
    assert [entry["name"] for entry in report["stages"]] == ["0-image+text", "1-audio", "2-sensor"]


def test_a_stage_on_frozen_experts_stores_none_and_a_grown_one_its_own(space: Space):
    frozen, own = (stage.record["trainable"] for stage in space.stages[1:])
    assert not [name for name in frozen if "experts" in name]
    assert len({name.split(".")[3] for name in own if "experts" in name}) == 3
    assert own["mixtures.shared.gate.weight"] == (4 + 3) * 32
    assert [stage.record["kind"] for stage in space.stages] == [
        "mixture",
        "directed-maps",
        "directed-maps",
    ]


def test_a_modality_added_is_found_and_finds(space: Space, world: World):
    found = world.evaluate(space, "image", "text", "audio")
    for direction in (("audio", "text"), ("text", "audio"), THERE, BACK):
        assert found[direction].recall_at_1 > 0.5, direction


def test_a_way_over_two_maps_finds_more_than_chance(space: Space, world: World):
    # A gallery of 16: chance is 1 in 16.
    found = world.evaluate(space, "image", "audio")
    assert space.family.query_way("audio", "image")[2:] == ("audio", "text", "image")
    assert found["audio", "image"].gallery == 16
    assert found["audio", "image"].recall_at_1 > 0.25
    assert found["image", "audio"].recall_at_1 > 0.25


def test_each_map_on_a_way_predicts_features_and_the_last_one_gives_what_is_gone_by(
    space: Space, world: World
):
    model = space.family.model
    features = torch.from_numpy(world.features("audio").astype(np.float32))
    for score in ("contrast", "prediction"):
        with torch.no_grad():
            texts = model(("audio", "text"), features, tasks=["prediction"])["prediction"]
            expected = model(("text", "image"), texts, tasks=[score])[score].double().numpy()
        found = sent(space, world, "audio", "image", score)
        np.testing.assert_allclose(found, unit(expected), rtol=1e-4, atol=1e-5)


def test_where_nothing_leads_the_maps_are_listed(world: World, tmp_path: Path):
    space = world.align(tmp_path / "space", recipe=SHORT.changed({"directions": "image>text"}))
    space.query(world.features("image"), source="image", target="text")
    with pytest.raises(
        UsageError, match="no map leads from text to image, the maps are image>text; align or add"
    ):
        space.query(world.features("text"), source="text", target="image")
    # The directions of the first stage are no wish of a later one's.
    world.add(space, "audio", "text", min_steps=4, validate_steps=4)
    assert sorted(space.stages[1].record["maps"]) == ["audio>text", "text>audio"]
    with pytest.raises(UsageError, match="the maps are image>text, audio>text, text>audio"):
        space.query(world.features("audio"), source="audio", target="image")


def test_three_modalities_are_aligned_at_once_in_six_directions(world: World, tmp_path: Path):
    recipe = MADE.changed({"min_steps": 180, "validate_steps": 60})
    space = world.align(tmp_path / "space", "image", "text", "audio", recipe=recipe)
    assert len(space.stages) == 1
    assert len(space.stages[0].record["maps"]) == 6
    found = world.evaluate(space, "image", "text", "audio")
    assert len(found) == 6
    assert min(direction.recall_at_1 for direction in found.values()) > 0.25
    assert space.verify()["ok"]


@pytest.mark.parametrize(
    "changes",
    [{"router": name} for name in ("fixed-modality", "fixed-skill", "grouped", "dense", "mlp")]
    + [
        {"granularity": "tokens", "modality_embedding": "both"},
        {"share_experts": False, "renormalise": True},
        {"prediction": "l2", "score": "prediction", "contrast_weight": 0.0},
        {"prediction": "cosine", "alternation": "joint", "score": "fused"},
        {"precision": "bfloat16", "noise": 0.5, "balance_weight": 0.01},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_every_choice_is_trained_grown_and_read_again(
    world: World, tmp_path: Path, changes: dict[str, Any]
):
    space = world.align(tmp_path / "space", recipe=SHORT.changed(changes))
    old = space.query(world.features("image")[:5], source="image", target="text")
    world.add(space, "audio", "text", added_experts=2)
    again = load_space(tmp_path / "space")
    now = again.query(world.features("image")[:5], source="image", target="text")
    assert np.array_equal(now, old)
    assert again.verify()["ok"]
    for name, value in changes.items():
        assert getattr(again.recipe, name) == value


@pytest.mark.parametrize("router", ["fixed-modality", "grouped"])
def test_experts_of_modalities_take_a_new_one_only_with_its_own(
    world: World, tmp_path: Path, router: str
):
    space = world.align(tmp_path / "space", recipe=SHORT.changed({"router": router}))
    with pytest.raises(UsageError, match=f"router {router}: .* audio has none"):
        world.add(space, "audio", "text")
    assert load_space(tmp_path / "space").modalities == ["image", "text"]
    assert space.verify()["ok"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("width", 64),
        ("router", "dense"),
        ("renormalise", True),
        ("share_experts", False),
        ("modality_embedding", "both"),
        ("granularity", "tokens"),
    ],
)
def test_what_the_first_stage_decided_cannot_be_changed_by_a_later_one(
    space: Space, world: World, field: str, value: Any
):
    with pytest.raises(UsageError, match=f"{field} is {value}, this space's first stage has"):
        world.add(space, "video", "text", **{field: value})


# Proof


@pytest.mark.parametrize("stage", ["0-image+text", "1-audio", "2-sensor"])
def test_verify_names_the_stage_of_a_flipped_bit(space: Space, tmp_path: Path, stage: str):
    shutil.copytree(space.folder, tmp_path / "space")
    flip_bit(tmp_path / "space" / "stages" / stage / "weights.safetensors")
    report = verify_space(tmp_path / "space")
    broken = [entry["name"] for entry in report["stages"] if not entry["ok"]]
    assert (report["ok"], broken) == (False, [stage])


def test_verify_names_a_gallery_whose_bit_flipped(space: Space, texts: Gallery, tmp_path: Path):
    shutil.copytree(texts.folder, tmp_path / "texts")
    flip_bit(tmp_path / "texts" / "vectors.npy")
    report = space.verify([tmp_path / "texts", texts.folder])
    assert [entry["ok"] for entry in report["galleries"]] == [False, True]


def test_the_hash_of_a_map_covers_its_own_weights_its_experts_and_its_routing(space: Space):
    family = load_space(space.folder).family
    way = family.query_way("audio", "image")

    def way_hash() -> str:
        return family.way_sha256(way, "encoder")

    found = {way_hash()}
    assert way_hash() in found
    # Every hop counts; a map that is not on the way does not.
    on_it = [
        family.model.map_of(("audio", "text")).heads["prediction"].weight,
        family.model.map_of(("text", "image")).heads["contrast"].weight,
        family.model.map_of(("text", "image")).standardization.mean,
        family.model.stages[0].shared().experts[3].inner.bias,
        family.model.stages[0].shared().gate.weight,
    ]
    for tensor in on_it:
        tensor.data.view(-1)[0] += 1
        found.add(way_hash())
    mixture = family.model.stages[0].shared()
    for changes in ({"top_k": 3}, {"renormalise": True}, {"per_token": True}, {"router": "dense"}):
        mixture.shape = dataclasses.replace(mixture.shape, **changes)
        found.add(way_hash())
    assert len(found) == 1 + len(on_it) + 4
    family.model.map_of(("image", "text")).heads["contrast"].weight.data += 1
    assert way_hash() in found
    assert family.way_sha256(way, "another") not in found
    assert family.way_sha256(("map", "prediction", *way[2:]), "encoder") not in found


# Scores


def slow_recall(similarity: np.ndarray) -> float:
    """Row i belongs to column i."""
    return float(np.mean(ranks(similarity, np.eye(len(similarity), dtype=bool)) == 1))


def sent(space: Space, world: World, source: str, target: str, score: str) -> np.ndarray:
    way = space.family.query_way(source, target, score=score)
    return space.family.send(way, Features(world.features(source))).astype(np.float64)


def held_out(world: World) -> np.ndarray:
    members = pairs_of(world.folder, "image", "text").members("image", split="validation")
    assert len(members) == 16
    return np.asarray(members)


@pytest.mark.parametrize("direction", [THERE, BACK, ("audio", "image")])
@pytest.mark.parametrize("score", ["contrast", "prediction", "fused"])
def test_scores_are_those_of_a_slow_twin(
    space: Space, world: World, direction: tuple[str, str], score: str
):
    source, target = direction
    rows = held_out(world)

    def similarity(a: str, b: str, kind: str) -> np.ndarray:
        mapped = sent(space, world, a, b, kind)[rows]
        products: np.ndarray = mapped @ unit(world.features(b)[rows].astype(np.float64)).T
        return products

    if score == "fused":
        expected = similarity(source, target, "contrast") / space.family.temperature_of(
            source, target
        ) + similarity(target, source, "contrast").T / space.family.temperature_of(target, source)
    else:
        expected = similarity(source, target, score)
    found = world.evaluate(space, source, target, score=score)[direction]
    assert found.gallery == 16
    assert found.recall_at_1 == pytest.approx(slow_recall(expected))
    mrr = np.mean(1 / ranks(expected, np.eye(16, dtype=bool)))
    assert found.mean_reciprocal_rank == pytest.approx(mrr)


def test_fused_products_are_the_sum_of_both_similarities_over_their_temperatures(
    space: Space, world: World
):
    tables: dict[str, Any] = {
        name: FeatureArray(Features(world.features(name))) for name in ("image", "text")
    }
    family = space.family
    assert family.temperature_of(*THERE) != family.temperature_of(*BACK)
    queries, gallery = Sides(family, tables).between(*THERE, score="fused")
    raw = {name: unit(world.features(name).astype(np.float64)) for name in tables}
    there = sent(space, world, *THERE, "contrast") @ raw["text"].T
    back = sent(space, world, *BACK, "contrast") @ raw["image"].T
    expected = there / family.temperature_of(*THERE) + back.T / family.temperature_of(*BACK)
    np.testing.assert_allclose(queries @ gallery.T, expected, rtol=1e-4, atol=1e-3)


def test_the_temperature_of_a_direction_is_what_its_stage_recorded(space: Space):
    recorded = {k: v for s in space.stages for k, v in s.record["temperature"].items()}
    assert len(recorded) == 6
    again = load_space(space.folder).family
    for name, value in recorded.items():
        assert again.temperature_of(*name.split(">")) == value


def test_scores_differ_and_an_unknown_one_lists_the_known(space: Space, world: World):
    contrast, prediction = (sent(space, world, *THERE, s) for s in ("contrast", "prediction"))
    assert np.abs(contrast - prediction).max() > 0.01
    with pytest.raises(UsageError, match="score 'best' is unknown; known: contrast, fused"):
        world.evaluate(space, "image", "text", score="best")


def test_a_recipe_decides_what_is_gone_by(world: World, tmp_path: Path):
    for score in ("prediction", "fused"):
        recipe = SHORT.changed({"score": score})
        space = world.align(tmp_path / score, recipe=recipe)
        told = world.evaluate(space, "image", "text", score=score)
        assert world.evaluate(space, "image", "text") == told
        kind = "contrast" if score == "fused" else score
        features = world.features("image")
        assert np.array_equal(
            space.query(features, source="image", target="text"),
            sent(space, world, *THERE, kind).astype(np.float32),
        )


def test_a_shared_space_has_no_scores_to_choose_from(world: World, tmp_path: Path):
    recipe = SHARED.changed({"min_steps": 4, "validate_steps": 4})
    shared = world.align(tmp_path / "shared", recipe=recipe)
    for score in ("prediction", "fused"):
        with pytest.raises(UsageError, match="a shared space has one kind of vector, only dir"):
            world.evaluate(shared, "image", "text", score=score)


def test_a_shared_space_still_joins_two_modalities_at_once(world: World, tmp_path: Path):
    with pytest.raises(UsageError, match="align joins two modalities, the call names 3: image"):
        world.align(tmp_path / "shared", "image", "text", "audio", recipe=SHARED)


# Routing


def test_the_routing_of_features_is_that_of_the_rows_alone(space: Space, world: World):
    family = space.family
    assert isinstance(family, DirectedMaps)
    features = Features(world.features("image"))
    together = family.routing(THERE, features, task="contrast")
    assert together.shares.shape == (160, 4)
    assert together.chosen.shape == (160, 2)
    torch.testing.assert_close(together.shares.sum(1), torch.ones(160))
    alone = family.routing(THERE, features[7:8], task="contrast")
    assert torch.equal(alone.chosen[0], together.chosen[7])
    other = family.routing(THERE, features, task="prediction")
    assert not torch.equal(other.shares, together.shares)


# The command line -------------------------------------------------------------------------


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Call a command with --json, which must succeed; return the one object on stdout."""

    def call(*arguments: object) -> dict[str, Any]:
        capsys.readouterr()
        status = main([*map(str, arguments), "--json"])
        out, err = capsys.readouterr()
        assert (status, err) == (0, "")
        value: dict[str, Any] = json.loads(out)
        return value

    return call


def named(folder: Path, *modalities: str) -> list[str]:
    """Return --encoder options for some modalities."""
    given = [("--encoder", f"{modality}={spec(folder, modality)}") for modality in modalities]
    return [text for pair in given for text in pair]


def test_the_commands_are_the_same_for_directed_maps(
    world: World, printed: Callable[..., dict[str, Any]], tmp_path: Path
):
    space, gallery, pairs = tmp_path / "space", tmp_path / "texts", world.folder / "pairs.csv"
    cache = ["--cache", world.cache]
    sizes = ["--width", "32", "--experts", "4", "--top-k", "2", "--alternation", "adaptive", *STEPS]
    made = printed(
        "align", pairs, *named(world.folder, "image", "text"), "--recipe", "alt-moe",
        "--out", space, *sizes, *cache,
    )  # fmt: skip
    assert made["stage"] == "0-image+text"
    assert [d["from"] for d in made["validation"]["directions"]] == ["image", "text"]
    stored = printed("embed", space, pairs, "--modality", "text", "--out", gallery, *cache)
    assert (stored["rows"], stored["width"]) == (160, WIDTHS["text"])
    added = printed(
        "add", space, pairs, *named(world.folder, "audio"), "--anchor", "text",
        "--added-experts", "2", *STEPS, *cache,
    )  # fmt: skip
    assert added["stage"] == "1-audio"
    hits = printed("search", space, gallery, "--query", f"audio={key('audio', 3)}", "-k", 5)
    assert (hits["from"], hits["to"], len(hits["hits"])) == ("audio", "text", 5)
    assert hits["hits"][0]["similarity"] >= hits["hits"][-1]["similarity"]
    measured = printed("evaluate", space, pairs, *cache)["directions"]
    assert len(measured) == 6
    assert printed("verify", space, "--gallery", gallery)["ok"]
    recipe = json.loads((space / "stages" / "0-image+text" / "stage.json").read_text("utf-8"))
    assert recipe["recipe"]["alternation"] == "adaptive"
    assert recipe["family"] == "alt-moe"


def test_a_wrong_recipe_on_the_command_line_is_one_line(
    world: World, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    arguments = [
        "align", str(world.folder / "pairs.csv"), *named(world.folder, "image", "text"),
        "--out", str(tmp_path / "space"), "--recipe", "alt-moe", "--cache", str(world.cache),
    ]  # fmt: skip
    for flags, words in (
        (["--top-k", "9"], "top_k is 9, expected at most the number of experts, 8"),
        (["--directions", "image>smell"], "direction 'image>smell' is unknown; known: image>text"),
        (["--score", "prediction", "--prediction-weight", "0"], "nothing trains what search"),
    ):
        assert main([*arguments, *flags]) == 2
        err = capsys.readouterr().err
        assert words in err
        assert err.count("\n") == 1
    assert not (tmp_path / "space" / "space.json").exists()
