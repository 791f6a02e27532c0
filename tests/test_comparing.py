"""Recipes side by side: what is trained, what is read again, and what the figures say."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interruptions import Stop
from modalign import align, load_encoder, read_pairs
from modalign.cli import main
from modalign.comparing import STUDIES, Comparison, Variant, compare, format_comparison, planned
from modalign.comparing.figures import direction_json, paired_difference, pooled_interval
from modalign.comparing.runs import Runs, fitted, with_closest_width, with_equal_passes
from modalign.comparing.variants import named_study, possible_scores
from modalign.errors import DataError, UsageError
from modalign.evaluation import bootstrap_interval
from modalign.recipes import named_recipe
from modalign.space.aligning import Job
from vector_spaces import contents, spec, write_world

SETTINGS = {
    "width": "32",
    "batch_size": "64",
    "epochs": "1",
    "min_steps": "20",
    "validate_steps": "10",
}
SET = [text for name, value in SETTINGS.items() for text in ("--set", f"{name}={value}")]
TEXTS = ["shared=oneencoder", "directed=alt-moe,experts=4"]
SCORES = ("contrast", "prediction", "fused")
NAMES = ("pairs", "encoders")
VARIANT_KEYS = {
    "name", "score", "recipe", "changes", "trainable_parameters", "seconds", "steps", "directions",
}  # fmt: skip
DIRECTION_KEYS = {
    "from", "to", "queries", "gallery", "recall_at_1", "interval_95", "recall_at_5",
    "recall_at_10", "difference", "difference_95",
}  # fmt: skip


def plan(*texts: str, study: str | None = None, seeds: tuple[int, ...] = (0,), **chosen: Any):
    return planned(study, texts, settings=SETTINGS, seeds=seeds, **chosen)


def opened(root: Path, *names: str) -> dict[str, Any]:
    """Return the pairs of a world's modalities, pictures and texts by default, and encoders."""
    modalities = names or ("image", "text")
    encoders = {name: load_encoder(spec(root, name), modality=name) for name in modalities}
    reads = {name: encoder.reads for name, encoder in encoders.items()}
    pairs = read_pairs(root / "pairs.csv", modalities, reads=reads)
    return {"pairs": pairs, "encoders": encoders}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Pairs of pictures and texts, 16 of 160 held out, and a cache of their features."""
    root = tmp_path_factory.mktemp("world")
    write_world(root)
    return {"root": root, "cache": root / "cache", **opened(root)}


@pytest.fixture
def compared(world) -> Callable[..., dict[str, Any]]:
    def call(comparison: Comparison, out: Path, **options: Any) -> dict[str, Any]:
        job = {"out": out, "cache": world["cache"], **options}
        return compare(world["pairs"], world["encoders"], comparison, **job)

    return call


@pytest.fixture(scope="module")
def two(world, tmp_path_factory):
    """A shared space and directed maps from two seeds, measured by every score."""
    out = tmp_path_factory.mktemp("two")
    comparison = plan(*TEXTS, seeds=(0, 1), scores=SCORES)
    shown = compare(world["pairs"], world["encoders"], comparison, out=out, cache=world["cache"])
    return {"out": out, "shown": shown}


# Two families, one table --------------------------------------------------------------------


def test_both_families_stand_in_one_report_with_a_row_for_each_score(two):
    rows = two["shown"]["variants"]
    names = [(row["name"], row["score"]) for row in rows]
    assert names == [("shared", None), *(("directed", score) for score in SCORES)]
    for row in rows:
        assert row.keys() >= VARIANT_KEYS
        assert [run["seed"] for run in row["runs"]] == [0, 1]
        assert [(d["from"], d["to"]) for d in row["directions"]] == [
            ("image", "text"),
            ("text", "image"),
        ]
        for entry in row["directions"]:
            assert entry.keys() >= DIRECTION_KEYS
            low, high = entry["interval_95"]
            assert low <= entry["recall_at_1"] <= high
            assert (entry["queries"], entry["gallery"]) == (16, 16)
    assert two["shown"]["trained"] == 4


def test_differences_are_to_the_first_row(two):
    first, *others = two["shown"]["variants"]
    assert [d["difference"] for d in first["directions"]] == [None, None]
    assert [d["difference_95"] for d in first["directions"]] == [None, None]
    for row in others:
        for entry, reference in zip(row["directions"], first["directions"], strict=True):
            apart = entry["recall_at_1"] - reference["recall_at_1"]
            assert entry["difference"] == pytest.approx(apart)
            low, high = entry["difference_95"]
            assert low <= entry["difference"] <= high


@pytest.mark.parametrize(("place", "name"), [(0, "oneencoder"), (1, "alt-moe")])
def test_a_run_is_what_align_makes_of_the_same_recipe_and_seed(two, world, tmp_path, place, name):
    recipe = plan(*TEXTS).variants[place].recipe
    options = {"seed": 1, "cache": world["cache"], "recipe": recipe}
    space = align(world["pairs"], world["encoders"], out=tmp_path / "space", **options)
    record = space.stages[0].record
    row = two["shown"]["variants"][place]
    measured = record["validation"]["directions"]
    by_seed = [d["recall_at_1_by_seed"][1] for d in row["directions"]]
    assert by_seed == [d["recall_at_1"] for d in measured]
    assert row["trainable_parameters"] == sum(record["trainable"].values())
    assert row["runs"][1]["best_step"] == record["best_step"]


def test_a_run_keeps_what_was_chosen_for_it(world, compared, tmp_path):
    settings = {"width": "16", "min_steps": "90", "batch_size": "64"}
    texts = ["chosen=auto,budget=120", "all=combined"]
    comparison = planned(None, texts, settings=settings, seeds=(0,))
    compared(comparison, tmp_path / "out")
    runs = [json.loads(path.read_text("utf-8")) for path in (tmp_path / "out/runs").iterdir()]
    (chosen,) = (run for run in runs if run["plan"]["recipe"].get("choose"))
    (left,) = (run for run in runs if run is not chosen)
    recipe = comparison.variants[0].recipe
    options = {"seed": 0, "cache": world["cache"], "recipe": recipe}
    space = align(world["pairs"], world["encoders"], out=tmp_path / "space", **options)
    record = space.stages[0].record
    for name in ("kept", "shares", "corrections", "kept_step"):
        assert chosen["chosen"][name] == record["chosen"][name]
    assert chosen["members"]["shares"] == record["members"]["shares"]
    assert "chosen" not in left
    assert len(left["members"]["shares"]) == len(comparison.variants[1].recipe.member_names)


@pytest.mark.parametrize("score", SCORES)
def test_a_score_is_measured_as_evaluate_measures_it(two, world, tmp_path, score):
    recipe = plan(*TEXTS).variants[1].recipe
    options = {"seed": 0, "cache": world["cache"], "recipe": recipe}
    space = align(world["pairs"], world["encoders"], out=tmp_path / "space", **options)
    evaluated = space.evaluate(
        world["pairs"], score=score, split="validation", cache=world["cache"]
    )
    row = two["shown"]["variants"][1 + SCORES.index(score)]
    by_seed = [d["recall_at_1_by_seed"][0] for d in row["directions"]]
    assert by_seed == [direction.recall_at_1 for direction in evaluated]


def test_the_table_has_a_line_for_each_direction_of_each_row(two):
    heading, *lines = format_comparison(two["shown"]).split("\n")
    assert heading.split()[:4] == ["variant", "score", "parameters", "steps"]
    assert len(lines) == 8
    assert lines[0].startswith("shared ")
    assert lines[1].startswith("   ")
    assert lines[2].startswith("directed  contrast ")
    assert "text -> image" in lines[7]
    # The first row has nothing to differ from.
    assert lines[0].count(" to ") == 0
    assert lines[2].count(" to ") == 1


# What is kept, and what is trained ----------------------------------------------------------


def test_a_second_call_trains_nothing_and_says_the_same(two, compared):
    before = contents(two["out"] / "runs")
    again = compared(plan(*TEXTS, seeds=(0, 1), scores=SCORES), two["out"])
    assert (again["trained"], again["variants"]) == (0, two["shown"]["variants"])
    assert contents(two["out"] / "runs") == before
    assert len(before) == 4
    assert not (two["out"] / "work").exists()


def test_another_name_or_score_or_reference_trains_nothing(two, compared):
    again = compared(
        plan("maps=alt-moe,experts=4", "one=oneencoder", scores=("fused",)), two["out"]
    )
    assert again["trained"] == 0
    assert [row["name"] for row in again["variants"]] == ["maps", "one"]


@pytest.mark.parametrize(
    ("texts", "chosen"),
    [
        (["a=oneencoder,dropout=0.2"], {}),
        (["a=oneencoder"], {"seeds": (7,)}),
        (["a=oneencoder"], {"split": "train"}),
    ],
)
def test_another_recipe_seed_or_split_is_another_run(two, compared, texts, chosen):
    shown = compared(plan(*texts, **chosen), two["out"])
    assert shown["trained"] == 1


def test_other_features_are_other_runs(two, world, tmp_path):
    write_world(tmp_path, seed=1)
    other = opened(tmp_path)
    options = {"out": two["out"], "cache": world["cache"]}
    assert compare(other["pairs"], other["encoders"], plan(*TEXTS), **options)["trained"] == 2


def test_other_pairs_of_the_same_features_are_another_run(two, world, tmp_path):
    lines = (world["root"] / "pairs.csv").read_text(encoding="utf-8").split("\n")
    fewer = tmp_path / "pairs.csv"
    fewer.write_text("\n".join(lines[:120]), encoding="utf-8")
    reads = {name: encoder.reads for name, encoder in world["encoders"].items()}
    pairs = read_pairs(fewer, ["image", "text"], reads=reads)
    options = {"out": two["out"], "cache": world["cache"]}
    assert compare(pairs, world["encoders"], plan(TEXTS[0]), **options)["trained"] == 1


def test_the_ranks_of_every_query_are_kept_as_integers(two):
    for path in (two["out"] / "runs").iterdir():
        for entry in json.loads(path.read_text(encoding="utf-8"))["measured"]:
            assert all(isinstance(rank, int) and rank >= 1 for rank in entry["ranks"])


def test_interrupted_inside_a_run_it_goes_on_there_and_ends_with_the_same_ranks(
    two, compared, tmp_path
):
    def stop(task: str, done: int, total: int, note: str) -> None:
        if task.startswith("train directed") and done == 13:
            raise Stop

    def records(folder: Path) -> dict[str, dict[str, Any]]:
        files = (folder / "runs").iterdir()
        return {path.name: json.loads(path.read_text(encoding="utf-8")) for path in files}

    out = tmp_path / "out"
    with pytest.raises(Stop):
        compared(plan(*TEXTS), out, checkpoint_seconds=0, progress=stop)
    assert len(records(out)) == 1
    assert compared(plan(*TEXTS), out)["trained"] == 1
    assert sorted(run["resumed_from"] for run in records(out).values()) == [0, 13]
    unbroken = records(two["out"])
    for name, record in records(out).items():
        assert unbroken[name]["resumed_from"] == 0
        assert record["measured"] == unbroken[name]["measured"]


def test_killed_between_runs_it_goes_on_with_the_next(world, run, tmp_path):
    out = tmp_path / "out"
    call = command(world, out, "--variant", TEXTS[0], "--variant", TEXTS[1], "--seeds", 3)
    child = subprocess.Popen(
        [sys.executable, "-m", "modalign", *call],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent / "src")},
    )
    deadline = time.monotonic() + 60
    while not list(out.glob("runs/*.json")) and time.monotonic() < deadline:
        time.sleep(0.001)
    child.send_signal(signal.SIGKILL)
    child.communicate(timeout=60)
    done = contents(out / "runs")
    whole = [name for name in done if name.endswith(".json")]
    assert 1 <= len(whole) < 6
    shown = json.loads(run(*call, "--json")[1])
    assert shown["trained"] == 6 - len(whole)
    after = contents(out / "runs")
    assert len(after) == 6
    assert {name: after[name] for name in whole} == {name: done[name] for name in whole}


def test_a_loss_that_is_not_finite_names_the_variant_and_keeps_what_is_done(compared, tmp_path):
    texts = ["fine=oneencoder", "wild=oneencoder,learning_rate=1e30"]
    with pytest.raises(DataError, match=r"variant wild, seed 0: training: the loss of step \d+"):
        compared(plan(*texts), tmp_path / "out")
    assert len(list((tmp_path / "out" / "runs").iterdir())) == 1


def test_what_cannot_be_built_is_said_before_anything_is_trained(compared, tmp_path):
    texts = ["fine=oneencoder", "narrow=alt-moe,router=grouped,experts=1,top_k=1"]
    with pytest.raises(UsageError, match=r"variant narrow: router grouped: 1 experts for 2 groups"):
        compared(plan(*texts), tmp_path / "out")
    assert list((tmp_path / "out" / "runs").iterdir()) == []


def test_results_do_not_go_into_a_space(compared, tmp_path):
    (tmp_path / "space.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UsageError, match="is a space, expected a folder for results"):
        compared(plan(*TEXTS), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["space.json"]


def test_a_variant_for_other_modalities_is_named(world, tmp_path):
    pairs, encoders = (opened(world["root"], "image", "text", "audio")[n] for n in NAMES)
    with pytest.raises(UsageError, match="variant shared: align joins two modalities, the call"):
        compare(pairs, encoders, plan(*TEXTS), out=tmp_path / "out", cache=world["cache"])


def test_maps_between_three_modalities_are_compared_in_all_directions(world, tmp_path):
    pairs, encoders = (opened(world["root"], "image", "text", "audio")[n] for n in NAMES)
    options = {"out": tmp_path / "out", "cache": world["cache"]}
    one, other = plan(TEXTS[1], "one=alt-moe,directions=image>text,text>audio").variants
    rows = compare(pairs, encoders, Comparison((one, other), (0,)), **options)["variants"]
    ways = [[(d["from"], d["to"]) for d in row["directions"]] for row in rows]
    assert (len(ways[0]), ways[1]) == (6, [("image", "text"), ("text", "audio")])
    assert all(d["difference"] is not None for d in rows[1]["directions"])


# Equal parameters, equal passes -------------------------------------------------------------


def test_the_width_whose_parameters_come_closest_is_found(world, tmp_path):
    comparison = plan(study="families")
    encoded = Job(named_recipe("oneencoder"), cache=world["cache"]).encode(
        world["pairs"], world["encoders"]
    )
    runs = Runs(tmp_path, encoded, world["encoders"], "validation", Job(named_recipe("alt-moe")))
    shared, directed = fitted(comparison, runs)
    assert shared == comparison.variants[0]
    width = directed.changes["width"]
    assert width % 8 == 0
    target = runs.count(shared)[0]
    apart = {
        wide: abs(runs.count(directed.changed({"width": wide}))[0] - target)
        for wide in range(8, 4 * width, 8)
    }
    assert apart[width] == min(apart.values())


@pytest.mark.parametrize(
    ("target", "width"),
    [(0, 8), (64, 8), (159, 8), (160, 8), (161, 16), (16 * 16, 16), (10**6, 1000)],
)
def test_of_widths_by_hand_the_closest_is_taken_the_smaller_of_two(target, width):
    # Squares: 64 for width 8, 256 for 16, and 160 is as far from both.
    found = with_closest_width(
        Variant("a", "alt-moe"), target, count=lambda variant: variant.changes["width"] ** 2
    )
    assert found.changes == {"width": width}


def test_widths_stay_multiples_of_the_heads():
    variant = Variant("a", "oneencoder", {"heads": 12, "width": 24})
    assert with_closest_width(variant, 0, count=lambda v: v.recipe.width).changes["width"] == 24


def test_the_counts_of_the_report_are_those_that_were_trained(compared, tmp_path):
    rows = compared(plan(*TEXTS, equal_to="shared"), tmp_path / "out")["variants"]
    shared, directed = (row["trainable_parameters"] for row in rows)
    assert abs(directed / shared - 1) < 0.1
    assert rows[1]["changes"]["width"] != 32


def test_a_dense_network_has_the_parameters_of_the_experts(compared, tmp_path):
    rows = compared(plan(study="moe-or-mlp"), tmp_path / "out")["variants"]
    moe, mlp = (row["trainable_parameters"] for row in rows)
    assert moe == pytest.approx(mlp, rel=0.01)


def test_joint_training_takes_as_many_batches_of_each_direction(compared, tmp_path):
    shown = compared(plan(study="alternation"), tmp_path / "out")
    steps = {row["name"]: row["steps"] for row in shown["variants"]}
    assert steps == {"round-robin": 20, "random": 20, "adaptive": 20, "joint": 10}


def test_what_a_call_says_of_joint_training_is_left_as_it_is():
    joint = Variant("joint", "alt-moe", {"alternation": "joint", "min_steps": 25})
    assert with_equal_passes(joint, 12).changes["min_steps"] == 3
    assert not plan("joint=alt-moe,alternation=joint").equal_passes
    other = Variant("other", "alt-moe", {"min_steps": 25})
    assert with_equal_passes(other, 12) == other


# Figures by hand ----------------------------------------------------------------------------


def test_with_one_seed_the_interval_is_the_usual_one():
    hits = np.random.default_rng(0).random(50) < 0.3
    assert pooled_interval(hits[None]) == bootstrap_interval(hits, seed=0)


def test_the_interval_draws_queries_each_with_its_mean_over_the_seeds():
    # Both queries have a mean of one half, however they are drawn.
    assert pooled_interval(np.array([[1, 0], [0, 1]])) == (0.5, 0.5)
    # Means 0 and 1: one draw in four takes the first twice, one in four the second.
    assert pooled_interval(np.array([[0, 1], [0, 1]])) == (0.0, 1.0)
    # Means one half and 1: no draw is below one half.
    assert pooled_interval(np.array([[0, 1], [1, 1]])) == (0.5, 1.0)


def test_a_difference_is_paired_by_query():
    easy = np.array([[1, 1, 1, 0, 0, 0]])
    assert paired_difference(easy, easy) == (0.0, (0.0, 0.0))
    # Each query is one half better, whichever are drawn: hard ones widen nothing.
    reference = np.array([[0, 1, 0, 1], [0, 1, 0, 1]])
    better = np.array([[1, 1, 1, 1], [0, 2, 0, 2]])
    assert paired_difference(better, reference) == (0.5, (0.5, 0.5))
    # One query of four is better. All four draws miss it in .32 of the cases, so the interval
    # begins at 0; three or more take it in .051, all four in .004, so it ends at three of four.
    apart, interval = paired_difference(np.array([[1, 1, 0, 0]]), np.array([[1, 0, 0, 0]]))
    assert (apart, interval) == (0.25, (0.0, 0.75))


def test_variants_of_different_numbers_of_seeds_can_be_held_against_each_other():
    apart, _ = paired_difference(np.array([[1, 0], [1, 1]]), np.array([[0, 1]]))
    assert apart == 0.25


def test_recall_is_the_mean_over_seeds_and_queries():
    ranks = np.array([[1, 2, 6, 11], [1, 1, 5, 10]])
    shown = direction_json(("image", "text"), ranks, 20, np.array([[2, 1, 1, 1]]))
    assert [shown[f"recall_at_{k}"] for k in (1, 5, 10)] == [3 / 8, 5 / 8, 7 / 8]
    assert (shown["queries"], shown["gallery"]) == (4, 20)
    assert shown["recall_at_1_by_seed"] == [0.25, 0.5]
    assert shown["difference"] == 3 / 8 - 3 / 4


# What is asked for --------------------------------------------------------------------------


def test_a_variant_is_read_with_the_types_of_its_fields():
    text = "a=alt-moe,top_k=1,dropout=0,standardize=off,directions=image>text,text>image,noise=.5"
    assert Variant.parse(text) == Variant(
        "a",
        "alt-moe",
        {
            "top_k": 1,
            "dropout": 0.0,
            "standardize": False,
            "directions": "image>text,text>image",
            "noise": 0.5,
        },
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("oneencoder", r"variant 'oneencoder': expected NAME=RECIPE\[,FIELD=VALUE,...\]"),
        ("=oneencoder", r"variant '=oneencoder': expected NAME=RECIPE"),
        ("a=oneencoder,wide", r"variant 'a=oneencoder,wide': expected NAME=RECIPE"),
        ("a=twoencoder", r"recipe 'twoencoder' is unknown; known: alt-moe, alt-moe-paper, auto"),
        ("a=oneencoder,experts=4", r"oneencoder recipe field 'experts' is unknown; known: bank_"),
        ("a=oneencoder,width=wide", r"width is 'wide', expected a whole number"),
        ("a=oneencoder,dropout=some", r"dropout is 'some', expected a number"),
        ("a=oneencoder,standardize=1", r"standardize is '1', expected on or off"),
        ("a=oneencoder,width=8,width=16", r"width is given twice"),
        ("a=oneencoder,dropout=2", r"dropout is 2.0, expected 0 <= dropout < 1"),
    ],
)
def test_a_variant_that_is_no_recipe_says_what_was_expected(text, message):
    with pytest.raises(UsageError, match=message):
        planned(None, [text], settings={})


@pytest.mark.parametrize(
    ("texts", "chosen", "message"),
    [
        ([], {}, "there are no variants, expected one at least"),
        ([TEXTS[0], TEXTS[0]], {}, "variant shared is named twice"),
        (["moe=alt-moe"], {"study": "moe-or-mlp"}, "variant moe is named twice"),
        (TEXTS, {"study": "tables"}, "study 'tables' is unknown; known: alternation, balance,"),
        (TEXTS, {"scores": ("cosine",)}, "score 'cosine' is unknown; known: contrast, fused, pred"),
        (TEXTS, {"equal_to": "third"}, "equal parameters: variant 'third' is unknown; known: dir"),
        (
            ["a=alt-moe,contrast_weight=0,score=prediction"],
            {"scores": ("contrast", "fused")},
            "variant a: cannot be measured by contrast, fused, it trains prediction; ask for",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(texts, chosen, message):
    with pytest.raises(UsageError, match=message):
        plan(*texts, **chosen)


def test_a_field_that_no_variant_has_is_refused():
    with pytest.raises(UsageError, match="recipe field 'experts' is unknown"):
        planned(None, ["a=oneencoder"], settings={"experts": "4"})


def test_settings_reach_all_that_have_the_field_and_do_not_say_it():
    variants = planned(
        None, ["a=oneencoder,width=64", "b=alt-moe"], settings={"width": "8", "experts": "3"}
    ).variants
    assert [dict(variant.changes) for variant in variants] == [
        {"width": 64},
        {"width": 8, "experts": 3},
    ]


def test_a_study_is_taken_with_what_the_call_changes():
    own = named_study("families")
    changed = planned("families", ["more=alt-moe"], settings={}, seeds=(5,), scores=("fused",))
    assert [v.name for v in changed.variants] == [*(v.name for v in own.variants), "more"]
    assert (changed.seeds, changed.scores, changed.split) == ((5,), ("fused",), "validation")
    assert changed.equal_to == "oneencoder"
    assert planned("families", [], settings={}) == own


@pytest.mark.parametrize(
    ("changes", "scores"),
    [
        ({}, ["contrast", "prediction", "fused"]),
        ({"prediction_weight": 0.0}, ["contrast", "fused"]),
        ({"contrast_weight": 0.0, "score": "prediction"}, ["prediction"]),
        ({"directions": "image>text"}, ["contrast", "prediction"]),
        ({"directions": "image>text, text>image"}, ["contrast", "prediction", "fused"]),
    ],
)
def test_maps_are_measured_by_what_they_train(changes, scores):
    assert possible_scores(Variant("a", "alt-moe", changes).recipe) == scores


def test_studies_share_the_runs_they_have_in_common():
    plain = {name: named_recipe("alt-moe") for name in STUDIES}
    plain |= {"objectives": named_recipe("mlp"), "closed-forms": named_recipe("closed-form")}
    with_plain = [
        name
        for name, (study, _) in STUDIES.items()
        if plain[name] in [variant.recipe for variant in study.variants]
    ]
    assert with_plain == list(STUDIES)
    for study, _ in STUDIES.values():
        assert any(variant.recipe != study.variants[0].recipe for variant in study.variants)


def test_objectives_differ_in_one_thing_each():
    first, *others = STUDIES["objectives"][0].variants
    assert first.recipe == named_recipe("mlp")
    for variant in others:
        if variant.recipe_name == "mlp":
            assert len(variant.changes) == 1
            assert variant.recipe != first.recipe


# The command --------------------------------------------------------------------------------


@pytest.fixture
def run(capsys):
    """Call the command line in this process; return its status, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return call


def command(world: dict[str, Any], out: Path, *options: object) -> list[str]:
    root = world["root"]
    encoders = [t for m in ("image", "text") for t in ("--encoder", f"{m}={spec(root, m)}")]
    call = ["compare", root / "pairs.csv", *encoders, "--cache", world["cache"], *SET, *options]
    return [str(word) for word in [*call, "--out", out]]


def test_the_command_prints_one_object_and_keeps_it(two, world, run):
    variants = ["--variant", TEXTS[0], "--variant", TEXTS[1]]
    call = command(world, two["out"], *variants, "--seeds", 2, "--score", "fused")
    status, out, err = run(*call, "--json")
    assert (status, err) == (0, "")
    shown = json.loads(out)
    assert shown.keys() >= {"study", "variants", "seeds", "split", "pairs", "trained"}
    assert (shown["seeds"], shown["split"], shown["trained"]) == ([0, 1], "validation", 0)
    assert shown["pairs"]["rows"] == {"train": 144, "validation": 16}
    same = [two["shown"]["variants"][0], two["shown"]["variants"][3]]
    assert shown["variants"] == same
    kept = (two["out"] / "comparison.json").read_text(encoding="utf-8")
    assert json.loads(kept) == shown


def test_the_command_prints_a_table_and_what_it_means(two, world, run):
    variants = ["--variant", TEXTS[1], "--variant", TEXTS[0]]
    status, out, err = run(*command(world, two["out"], *variants, "--seeds", 2, "--score", "fused"))
    assert (status, err) == (0, "")
    lines = out.split("\n")
    assert lines[0].startswith("variant ")
    assert lines[1].startswith("directed  fused ")
    assert lines[5] == "2 seeds, rows: validation; figures are means over the seeds."


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        ([], 2, "no variant is given, expected --variant NAME=RECIPE[,FIELD=VALUE,...] or --study"),
        (["--study", "all"], 2, "study 'all' is unknown; known: alternation, balance,"),
        (["--variant", "a=other"], 2, "recipe 'other' is unknown"),
        (["--variant", TEXTS[0], "--split", "test"], 2, "split test has no rows; there are 144 tr"),
        (["--variant", TEXTS[0], "--validation", "0"], 2, "holds no rows out to validate with"),
        (["--study", "losses", "--seeds", "0"], 2, "Invalid value for '--seeds'"),
    ],
)
def test_the_command_says_what_is_wrong(world, run, tmp_path, options, status, message):
    found, out, err = run(*command(world, tmp_path / "out", *options))
    assert (found, out) == (status, "")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_help_lists_every_study_with_what_it_asks(run):
    _, out, _ = run("compare", "--help")
    listed = out.split("Studies:\n")[1].split("\n\n")[0].strip().split("\n")
    shown = [line.split(maxsplit=1) for line in listed]
    assert shown == [[name, text] for name, (_, text) in STUDIES.items()]
