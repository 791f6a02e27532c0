"""Load and evenness of experts by hand, the routing table of a space, and what balance changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modalign import Space, UsageError, align, load_encoder, read_pairs
from modalign.cli import main
from modalign.connectors.mixture import Mixture
from modalign.encoders import Features
from modalign.errors import ShapeError
from modalign.features.store import FeatureArray
from modalign.pairs import Pairs
from modalign.recipes import AltMoERecipe
from modalign.report.spaces import shown_directions
from modalign.space.directed import DirectedMaps
from modalign.space.paired import CHUNK_ROWS
from modalign.space.routing import (
    RoutingRow,
    dead_experts,
    expert_load,
    load_entropy,
    means,
    routing_row,
    routing_table,
)
from vector_spaces import RECIPE as SHARED
from vector_spaces import spec, write_world

SMALL = AltMoERecipe(
    width=16,
    experts=6,
    top_k=2,
    batch_size=64,
    epochs=1,
    min_steps=4,
    validate_steps=4,
    learning_rate=5e-3,
    dropout=0.0,
    feature_dropout=0.0,
)


# By hand ----------------------------------------------------------------------------------


def test_load_is_the_share_of_choices():
    chosen = np.array([[0, 1], [0, 2], [0, 1], [2, 1]])
    assert expert_load(chosen, experts=4).tolist() == [3 / 8, 3 / 8, 2 / 8, 0]


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        (np.zeros((0, 2), int), r"choices \(0, 2\) of 3 experts"),
        (np.array([[0, 3]]), "from 0 to 2"),
        (np.array([[0, -1]]), "from 0 to 2"),
    ],
)
def test_choices_that_are_none_or_of_no_expert_are_refused(chosen, words):
    with pytest.raises(ShapeError, match=words):
        expert_load(chosen, experts=3)


@pytest.mark.parametrize(
    ("load", "entropy"),
    [
        ([1.0, 0.0, 0.0], 0.0),
        ([0.25, 0.25, 0.25, 0.25], 1.0),
        ([0.5, 0.5, 0.0, 0.0], 0.5),
        # (2 x 1/4 ln 4 + 1/2 ln 2) / ln 3 = 1.5 ln 2 / ln 3
        ([0.25, 0.5, 0.25], 0.9463946),
        ([1.0], 1.0),
    ],
)
def test_entropy_is_none_where_one_carries_all_and_one_where_all_carry_alike(load, entropy):
    assert load_entropy(load) == pytest.approx(entropy, abs=1e-6)


@pytest.mark.parametrize("load", [[], [0.5, 0.6], [1.5, -0.5], [np.nan, 1.0]])
def test_shares_that_are_none_have_no_entropy(load):
    with pytest.raises(ShapeError, match="shares of at least one expert, from 0 on, that sum to 1"):
        load_entropy(load)


def test_an_expert_is_dead_below_a_twentieth_of_an_even_load():
    # Even would be 1/4, a twentieth of that 0.0125.
    load = [0.0125, 0.0124, 0.5, 0.4751]
    assert dead_experts(load, among=[0, 1, 2, 3]) == [1]
    assert dead_experts(load, among=[0, 2, 3]) == [0]


def counted(source: str, task: Any, load: list[float], rows: int) -> RoutingRow:
    target = {"image": "text", "text": "image"}[source]
    return RoutingRow(
        source, target, task, "learned", rows, tuple(load), tuple(load), tuple(range(len(load)))
    )


def test_means_weigh_directions_alike_and_an_expert_that_came_later_counts_nothing_before():
    table = [
        counted("image", "contrast", [1.0, 0.0], rows=10),
        counted("text", "contrast", [0.0, 0.5, 0.5], rows=1000),
    ]
    image, text, contrast, everything = means(table)
    assert (image.source, image.task, image.direction, image.load) == ("image", None, None, (1, 0))
    assert (text.source, text.load) == ("text", (0, 0.5, 0.5))
    assert (contrast.source, contrast.task) == (None, "contrast")
    assert contrast.load == everything.load == (0.5, 0.25, 0.25)
    assert (everything.task, everything.rows, everything.open) == (None, 1010, (0, 1, 2))


def test_a_row_as_json_says_all_of_it():
    row = RoutingRow(
        "image", "text", "contrast", "grouped", 7, (0.0, 0.6, 0.4, 0.0), (0.0, 0.5, 0.5, 0.0),
        (0, 1, 2),
    )  # fmt: skip
    assert json.loads(json.dumps(row.as_json())) == {
        "direction": "image>text",
        "from": "image",
        "to": "text",
        "task": "contrast",
        "router": "grouped",
        "rows": 7,
        "load": [0.0, 0.6, 0.4, 0.0],
        "gate": [0.0, 0.5, 0.5, 0.0],
        "entropy": 0.612602,
        "open": [0, 1, 2],
        "dead": [0],
    }


# Routers ----------------------------------------------------------------------------------


def family_of(**changes: Any) -> DirectedMaps:
    """Untrained maps between images of width 5 and texts of width 3."""
    torch.manual_seed(0)
    recipe = SMALL.changed({"standardize": False, **changes})
    family = DirectedMaps(recipe)
    family.grow(recipe, family.growth(recipe, {"image": 5, "text": 3}, anchor=None))
    return family


def gate_of(family: DirectedMaps) -> torch.nn.Linear:
    mixture = family.model.stages[0].mixtures["shared"]
    assert isinstance(mixture, Mixture)
    assert mixture.gate is not None
    return mixture.gate


def pictures(count: int) -> FeatureArray:
    rng = np.random.default_rng(0)
    return FeatureArray(Features(rng.standard_normal((count, 5)).astype(np.float32)))


def looked_at(family: DirectedMaps, task: Any = "contrast", rows: int = 9) -> RoutingRow:
    return routing_row(family, ("image", "text"), task, pictures(rows))


# Without weights the gate gives every row these shares of experts 0 to 5.
BIAS = np.log([8.0, 1.0, 4.0, 1.0, 1.0, 1.0])
SHARES = np.array([8, 1, 4, 1, 1, 1]) / 16


def by_bias(**changes: Any) -> DirectedMaps:
    family = family_of(**changes)
    with torch.no_grad():
        gate_of(family).weight.zero_()
        gate_of(family).bias.copy_(torch.from_numpy(BIAS))
    return family


def test_a_learned_gate_is_counted_by_choices_and_by_shares():
    row = looked_at(by_bias())
    assert (row.rows, row.open) == (9, (0, 1, 2, 3, 4, 5))
    assert row.load == (0.5, 0, 0.5, 0, 0, 0)
    assert row.gate == pytest.approx(SHARES, abs=1e-6)
    assert row.dead == (1, 3, 4, 5)


def test_a_dense_gate_leaves_none_out_so_its_shares_are_the_load():
    row = looked_at(by_bias(router="dense"))
    assert row.load == row.gate
    assert row.load == pytest.approx(SHARES, abs=1e-6)
    assert row.dead == ()


def test_a_grouped_gate_chooses_among_the_modalitys_own_and_the_others_are_not_dead():
    row = looked_at(by_bias(router="grouped"))
    assert (row.open, row.load, row.dead) == ((0, 1, 2), (0.5, 0, 0.5, 0, 0, 0), (1,))
    assert row.entropy == pytest.approx(np.log(2) / np.log(3))


@pytest.mark.parametrize(
    ("router", "task", "own"),
    [
        ("fixed-modality", "contrast", (0, 1, 2)),
        ("fixed-skill", "prediction", (0, 1, 2)),
        ("fixed-skill", "contrast", (3, 4, 5)),
    ],
)
def test_fixed_experts_are_used_alike_and_those_of_others_are_not_dead(router, task, own):
    row = looked_at(family_of(router=router), task)
    assert row.load == pytest.approx([(e in own) / 3 for e in range(6)])
    assert row.gate == pytest.approx(row.load)
    assert (row.open, row.dead) == (own, ())
    assert row.entropy == pytest.approx(1.0)


def test_one_network_in_place_of_experts_carries_all():
    row = looked_at(family_of(router="mlp"))
    assert (row.load, row.gate, row.open, row.dead, row.entropy) == ((1,), (1,), (0,), (), 1)


def test_more_rows_than_are_looked_at_together_weigh_by_how_many_they_are():
    family = by_bias(top_k=1)
    values = np.zeros((CHUNK_ROWS + 616, 5), np.float32)
    values[CHUNK_ROWS:] = 100.0
    with torch.no_grad():
        step = family.model.map_of(("image", "text"))
        for parameter in (step.projection.weight, step.projection.bias, step.tasks["contrast"]):
            parameter.zero_()
        step.projection.weight[0, 0] = 1.0
        step.modality["input"].zero_()
        gate_of(family).weight[3, 0] = 1.0  # rows of the last part choose expert 3
    row = routing_row(family, ("image", "text"), "contrast", FeatureArray(Features(values)))
    assert row.rows == 17000
    assert row.load == pytest.approx([16384 / 17000, 0, 0, 616 / 17000, 0, 0])
    assert row.gate[0] == pytest.approx(0.5 * 16384 / 17000)


# Spaces -----------------------------------------------------------------------------------

Make = Callable[..., Space]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("routing") / "world")


def pairs_of(world: Path, *modalities: str) -> Pairs:
    return read_pairs(world / "pairs.csv", modalities, reads=dict.fromkeys(modalities, "key"))


@pytest.fixture(scope="module")
def make(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Align images and texts of the world by `SMALL` with some changes, or by another recipe."""

    def made(recipe: Any = SMALL, **changes: Any) -> Space:
        return align(
            pairs_of(world, "image", "text"),
            {name: load_encoder(spec(world, name), modality=name) for name in ("image", "text")},
            out=tmp_path_factory.mktemp("space") / "space",
            recipe=recipe.changed(changes),
            cache=world / "cache",
        )

    return made


@pytest.fixture(scope="module")
def directed(make: Make, world: Path) -> Space:
    """Images and texts in both directions, sounds with three experts of their own."""
    space = make()
    space.add(
        pairs_of(world, "audio", "text"),
        load_encoder(spec(world, "audio"), modality="audio"),
        changes={"added_experts": 3},
        cache=world / "cache",
    )
    return space


def table_of(space: Space, world: Path, *modalities: str, split: str = "all") -> list[RoutingRow]:
    encoded = space.encode_pairs(pairs_of(world, *modalities), cache=world / "cache")
    return routing_table(space, encoded, split=split)


def test_every_direction_and_task_has_a_row_then_the_means_follow(directed: Space, world: Path):
    table = table_of(directed, world, "image", "text", "audio")
    assert [(row.direction, row.source, row.task) for row in table] == [
        ("image>text", "image", "prediction"),
        ("image>text", "image", "contrast"),
        ("text>image", "text", "prediction"),
        ("text>image", "text", "contrast"),
        ("audio>text", "audio", "prediction"),
        ("audio>text", "audio", "contrast"),
        ("text>audio", "text", "prediction"),
        ("text>audio", "text", "contrast"),
        (None, "image", None),
        (None, "text", None),
        (None, "audio", None),
        (None, None, "prediction"),
        (None, None, "contrast"),
        (None, None, None),
    ]
    assert [len(row.load) for row in table[:8]] == [6] * 4 + [9] * 4
    for row in table:
        assert sum(row.load) == pytest.approx(1)
        assert sum(row.gate) == pytest.approx(1)
        assert 0 <= row.entropy <= 1
    assert table[0].rows == 160


def test_the_rows_are_those_of_the_split(directed: Space, world: Path):
    (first, *_) = table_of(directed, world, "image", "text", split="validation")
    assert first.rows == 16


def test_directions_that_start_from_the_pairs_modalities_are_looked_at(
    directed: Space, world: Path
):
    table = table_of(directed, world, "audio", "image")
    counted = [row.direction for row in table if row.direction]
    assert counted == ["image>text"] * 2 + ["audio>text"] * 2


def test_a_task_that_was_not_trained_has_no_row(make: Make, world: Path):
    table = table_of(make(prediction_weight=0.0), world, "image", "text")
    assert {row.task for row in table if row.direction} == {"contrast"}


def test_where_each_direction_has_its_own_experts_there_are_no_means(make: Make, world: Path):
    table = table_of(make(share_experts=False), world, "image", "text")
    assert [row.direction for row in table] == ["image>text"] * 2 + ["text>image"] * 2


def test_a_shared_space_has_no_experts(make: Make, world: Path):
    with pytest.raises(UsageError, match="is a shared space, it has no experts, expected directed"):
        table_of(make(SHARED, min_steps=4), world, "image", "text")


def test_pairs_that_no_map_starts_from_are_refused(make: Make, world: Path):
    space = make(directions="image>text")
    space.add(
        pairs_of(world, "image", "audio"),
        load_encoder(spec(world, "audio"), modality="audio"),
        changes={"directions": "image>audio"},
        cache=world / "cache",
    )
    with pytest.raises(UsageError, match="no map starts from text or audio, expected pairs of a"):
        table_of(space, world, "text", "audio")


def test_the_balance_loss_evens_the_load(make: Make, world: Path):
    steps = {"top_k": 1, "min_steps": 60, "validate_steps": 60}
    without, balanced = (
        table_of(make(**steps, balance_weight=weight), world, "image", "text")[:4]
        for weight in (0.0, 5.0)
    )
    for before, after in zip(without, balanced, strict=True):
        assert after.entropy > before.entropy
    assert min(row.entropy for row in balanced) > 0.9
    assert min(row.entropy for row in without) < 0.85


# The command ------------------------------------------------------------------------------


def report(capsys: Any, space: Space, world: Path, out: Path, *more: str) -> tuple[int, str, str]:
    capsys.readouterr()
    call = ["report", space.folder, world / "pairs.csv", "--out", out, "--cache", world / "cache"]
    status = main([str(argument) for argument in [*call, *more]])
    return status, *capsys.readouterr()


def test_the_command_writes_both_files_and_prints_directions_and_experts(
    directed: Space, world: Path, tmp_path: Path, capsys: Any
):
    status, out, err = report(capsys, directed, world, tmp_path / "out", "--split", "all")
    assert (status, err) == (0, "")
    assert "image -> text" in out
    assert "load by expert" in out
    assert "audio → text, contrast" in out
    assert f"report: {tmp_path / 'out' / 'report.html'}" in out
    written = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert [stage["name"] for stage in written["stages"]] == ["0-image+text", "1-audio"]
    assert written["routing"] == [
        row.as_json() for row in table_of(directed, world, "image", "text", "audio")
    ]
    assert written["verify"]["ok"]
    assert written["measured_on"].startswith("all rows of pairs.csv")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Recall@1 on all rows of pairs.csv" in page
    assert page.count('<rect class="load') == 4 * 6 + 4 * 9 + (6 + 9 + 9) + 3 * 9


def test_the_command_prints_one_object_and_measures_what_evaluate_does(
    directed: Space, world: Path, tmp_path: Path, capsys: Any
):
    status, out, err = report(capsys, directed, world, tmp_path / "out", "--json")
    assert (status, err) == (0, "")
    shown = json.loads(out)
    assert list(shown) == [
        "report", "figures", "split", "directions", "routing", "verify", "skipped",
    ]  # fmt: skip
    assert shown["split"] == "validation"
    encoded = directed.encode_pairs(
        directed.as_trained(pairs_of(world, "image", "text", "audio")), cache=world / "cache"
    )
    expected = directed.evaluate_encoded(encoded, split="validation")
    assert shown["directions"] == shown_directions(directed, expected)
    apart = {(d["from"], d["to"]) for d in shown["directions"] if not d["paired"]}
    assert apart == {("image", "audio"), ("audio", "image")}


def test_a_shared_space_is_reported_without_experts(
    make: Make, world: Path, tmp_path: Path, capsys: Any
):
    space = make(SHARED, min_steps=4)
    status, out, _ = report(capsys, space, world, tmp_path)
    assert status == 0
    assert "load by expert" not in out
    written = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert written["routing"] == []
    assert "Experts" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_file_in_the_place_of_the_folder_is_refused_before_the_work(
    directed: Space, world: Path, tmp_path: Path, capsys: Any
):
    (tmp_path / "file").write_text("", encoding="utf-8")
    status, _, err = report(capsys, directed, world, tmp_path / "file")
    assert status == 2
    assert "is a file, expected a folder; choose another" in err


def test_a_changed_stage_is_in_the_report_and_the_command_fails(
    make: Make, world: Path, tmp_path: Path, capsys: Any
):
    space = make()
    log = space.folder / "stages" / "0-image+text" / "log.jsonl"
    log.write_text(log.read_text(encoding="utf-8").replace(":", ": "), encoding="utf-8")
    status, _, _ = report(capsys, space, world, tmp_path)
    assert status == 1
    assert "✗ changed" in (tmp_path / "report.html").read_text(encoding="utf-8")
