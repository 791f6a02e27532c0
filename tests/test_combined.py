"""Members in one space: closed forms, networks, shares, scoring, and the choice among them."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from interruptions import Stop, stopping_at
from modalign import align, load_encoder, load_space, read_pairs
from modalign.cli.making import told_choice
from modalign.cli.options import recipe_changes
from modalign.connectors.members import new_member
from modalign.errors import UsageError
from modalign.evaluation import retrieval_ranks
from modalign.recipes import CombinedRecipe
from modalign.report import write_report
from modalign.report.spaces import measure
from modalign.scoring import NoCorrection
from modalign.space import Space
from modalign.space.choosing import draws_of, for_more_rows
from modalign.space.encoded import encode_pairs
from modalign.space.held import parted
from modalign.space.joining import (
    HALF,
    REGULARISATIONS,
    FirstMembers,
    Settings,
    best_settings,
)
from modalign.space.paired import PairedTables
from modalign.space.scored import RERANKED
from modalign.space.shares import (
    PRIOR,
    Choices,
    chosen_shares,
    expected_weights,
    likeliest_weights,
    mean_reciprocal_rank_both,
    parts_of_one,
    usual_weights,
)
from vector_spaces import contents, key, spec, write_table, write_world

SMALL = CombinedRecipe(
    width=16,
    hidden=32,
    batch_size=64,
    epochs=1,
    min_steps=60,
    validate_steps=20,
    learning_rate=3e-3,
    feature_dropout=0.1,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"), rows=400)


def made(world: Path, out: Path, recipe: CombinedRecipe, **options: object) -> Space:
    pairs = read_pairs(
        world / "pairs.csv", ["image", "text"], reads={"image": "key", "text": "key"}
    )
    encoders = {name: load_encoder(spec(world, name), modality=name) for name in pairs.modalities}
    return align(pairs, encoders, out=out, recipe=recipe, cache=out.parent / "features", **options)


def recall(space: Space) -> dict[str, float]:
    return {
        f"{d['from']}->{d['to']}": d["recall_at_1"]
        for d in space.stages[-1].record["validation"]["directions"]
    }


@pytest.mark.parametrize("member", ["cca", "ridge", "procrustes", "subspace", "residual", "mlp"])
def test_each_member_alone_makes_a_space_that_finds(world, tmp_path, member):
    space = made(world, tmp_path / "s", SMALL.changed({"members": member}))
    least = 0.1 if member == "procrustes" else 0.5  # a rotation cannot undo two random maps
    assert min(recall(space).values()) > least
    assert space.verify()["ok"]
    steps = space.stages[0].record["steps"]
    assert steps == (60 if member in ("residual", "mlp") else 0)
    assert (space.stages[0].trainable_parameters > 0) == (steps > 0)


LOSSES = {
    "sigmoid": {"loss": "sigmoid"},
    "distribution": {"loss": "distribution"},
    "mixup": {"mixup": 1.0},
    "neighbourhood": {"neighbourhood_weight": 5.0},
    "uniformity": {"uniformity_weight": 0.1, "alignment_weight": 0.1},
}


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_trains_both_stages_to_a_space_that_finds(world, tmp_path, name):
    recipe = SMALL.changed({"members": "mlp", "min_steps": 100, **LOSSES[name]})
    space = made(world, tmp_path / "s", recipe)
    assert min(recall(space).values()) > 0.4
    plain = made(world, tmp_path / "plain", recipe.changed({k: DEFAULTS[k] for k in LOSSES[name]}))
    features = np.load(world / "image.npz")["vectors"][:9]
    assert not np.allclose(
        space.embed_features("image", features), plain.embed_features("image", features)
    )
    pairs = read_pairs(
        world / "pairs.csv", ["audio", "text"], reads={"audio": "key", "text": "key"}
    )
    space.add(pairs, load_encoder(spec(world, "audio"), modality="audio"), cache=tmp_path / "f")
    assert space.stages[1].record["steps"] == 100
    assert min(recall(space).values()) > 0.4


DEFAULTS = CombinedRecipe().as_json()


def test_a_broken_off_run_with_mixed_pairs_ends_with_the_same_bits(world, tmp_path):
    recipe = SMALL.changed({"members": "mlp", "mixup": 0.5, "loss": "sigmoid"})
    whole = made(world, tmp_path / "a", recipe)
    with pytest.raises(Stop):
        made(
            world,
            tmp_path / "b",
            recipe,
            checkpoint_seconds=0.0,
            progress=stopping_at(30),
        )
    resumed = made(world, tmp_path / "b", recipe)
    weights = [next((space.folder / "stages").rglob("*.safetensors")) for space in (whole, resumed)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_members_lie_side_by_side_by_their_shares(world, tmp_path):
    space = made(world, tmp_path / "s", SMALL.changed({"members": "cca,residual,mlp"}))
    features = np.load(world / "image.npz")["vectors"][:9]
    vectors = space.embed_features("image", features)
    assert vectors.shape == (9, space.gallery_width("image")) == (9, 48)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    shares = list(space.stages[0].record["members"]["shares"].values())
    for number, share in enumerate(shares):
        part = vectors[:, 16 * number : 16 * (number + 1)]
        np.testing.assert_allclose(np.linalg.norm(part, axis=1), share, atol=1e-3)


def test_a_row_has_the_same_bits_alone_and_among_others(world, tmp_path):
    space = made(world, tmp_path / "s", SMALL)
    features = np.load(world / "text.npz")["vectors"][:70]
    among = space.embed_features("text", features)
    for row in (0, 33, 69):
        alone = space.embed_features("text", features[row : row + 1])
        assert alone.tobytes() == among[row : row + 1].tobytes()


def test_a_residual_starts_as_its_closed_form(world, tmp_path):
    closed = made(world, tmp_path / "a", SMALL.changed({"members": "cca"}))
    # A rate of almost nothing: the network beside it adds nothing.
    still = SMALL.changed({"members": "residual", "learning_rate": 1e-12, "min_steps": 1})
    start = made(world, tmp_path / "b", still)
    features = np.load(world / "image.npz")["vectors"][:9]
    np.testing.assert_allclose(
        start.embed_features("image", features), closed.embed_features("image", features), atol=1e-5
    )


def test_training_leaves_the_closed_form_of_a_residual_as_it_is(world, tmp_path):
    short = SMALL.changed({"members": "cca,residual", "min_steps": 20})
    space = made(world, tmp_path / "s", short)
    for modality in space.modalities:
        closed, residual = space.family.model.of(modality).members
        assert torch.equal(residual.skip.weight.T, closed.matrix)
        assert torch.equal(residual.skip.bias, closed.offset)
        assert residual.outer.weight.abs().max() > 0


def test_a_residual_is_stored_as_when_its_closed_form_was_trained_on():
    """Spaces written then are opened, and their galleries are searched."""
    member = new_member("residual", 5, 3, hidden=4, dropout=0.1, feature_dropout=0.5)
    shapes = {name: list(tensor.shape) for name, tensor in member.state_dict().items()}
    assert shapes == {
        "inner.weight": [4, 5],
        "inner.bias": [4],
        "outer.weight": [3, 4],
        "outer.bias": [3],
        "skip.weight": [3, 5],
        "skip.bias": [3],
    }


def test_an_added_modality_moves_nothing_and_is_found_by_one_it_never_met(world, tmp_path):
    space = made(world, tmp_path / "s", SMALL.changed({"scoring": "chosen"}))
    features = np.load(world / "image.npz")["vectors"]
    before, files = space.embed_features("image", features), contents(tmp_path / "s" / "stages")
    pairs = read_pairs(
        world / "pairs.csv", ["audio", "text"], reads={"audio": "key", "text": "key"}
    )
    space.add(pairs, load_encoder(spec(world, "audio"), modality="audio"), cache=tmp_path / "f")
    after = contents(tmp_path / "s" / "stages")
    assert {name: after[name] for name in files} == files
    assert space.embed_features("image", features).tobytes() == before.tobytes()
    assert min(recall(space).values()) > 0.5
    sounds = space.query(np.load(world / "audio.npz")["vectors"], source="audio", target="image")
    ranks = retrieval_ranks(sounds, before, np.stack([np.arange(400)] * 2, axis=1))
    assert np.mean(ranks <= 10) > 0.6
    assert space.verify()["ok"]


def test_an_interrupted_run_ends_with_the_same_bits(world, tmp_path):
    whole = made(world, tmp_path / "a", SMALL)
    with pytest.raises(Stop):
        made(world, tmp_path / "b", SMALL, progress=stopping_at(31), checkpoint_seconds=0.0)
    again = made(world, tmp_path / "b", SMALL)
    assert again.stages[0].run["resumed_from"] == 31
    key = "weights_sha256"
    assert again.stages[0].record[key] == whole.stages[0].record[key]


# Scoring in the space


@pytest.fixture(scope="module")
def scored(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Space:
    """A space whose correction does something, whatever validation rows would have chosen."""
    out = tmp_path_factory.mktemp("scored") / "s"
    recipe = SMALL.changed({"members": "cca", "scoring": "csls", "width": 3, "bank_items": 100})
    return made(world, out, recipe)


def test_a_stage_keeps_what_corrects_its_directions(scored: Space):
    record = scored.stages[0].record["scoring"]
    assert set(record) == {"image->text", "text->image"}
    for entry in record.values():
        assert entry["correction"] == {"name": "csls", "k": 10, "centred": False}
        assert entry["bank"] == 100
        assert entry["calibration"]["results"] == 400
        assert 0 <= entry["calibration_error"] < 0.2
        assert sum(found["count"] for found in entry["reliability"]) == 400
    loaded = load_space(scored.folder)
    mine, theirs = (s.family.scoring["text", "image"] for s in (scored, loaded))
    assert mine.bank.queries.dtype == np.float16
    assert mine.bank.queries.tobytes() == theirs.bank.queries.tobytes()
    assert mine.calibration == theirs.calibration


def test_search_ranks_by_corrected_similarity_and_says_how_probable(world, scored, tmp_path):
    pairs = read_pairs(
        world / "pairs.csv", ["image", "text"], reads={"image": "key", "text": "key"}
    )
    gallery, _ = scored.embed_items(pairs.items["image"], out=tmp_path / "g", cache=tmp_path / "f")
    hits = scored.search(gallery, ["t11", "t12"], modality="text", k=5)
    queries = scored.query(
        np.load(world / "text.npz")["vectors"][11:13], source="text", target="image"
    )
    scoring = scored.family.scoring["text", "image"]
    vectors = np.asarray(gallery.vectors, np.float32)
    similarity = queries @ vectors.T
    corrected = scoring.applied(queries, vectors).similarity()
    assert len(gallery) > RERANKED
    np.testing.assert_array_equal(hits.rows, np.argsort(-corrected, axis=1)[:, :5])
    np.testing.assert_allclose(
        hits.similarity, np.take_along_axis(similarity, hits.rows, 1), atol=2e-3
    )
    assert hits.probability.shape == (2, 5)
    assert (np.diff(hits.probability, axis=1) <= 1e-6).all()


def test_several_galleries_are_ranked_by_one_probability(world, tmp_path):
    space = made(world, tmp_path / "s", SMALL.changed({"members": "cca", "scoring": "chosen"}))
    pairs = read_pairs(
        world / "pairs.csv", ["audio", "text"], reads={"audio": "key", "text": "key"}
    )
    space.add(pairs, load_encoder(spec(world, "audio"), modality="audio"), cache=tmp_path / "f")
    galleries = []
    for name in ("image", "audio"):
        items = read_pairs(world / "pairs.csv", [name, "text"], reads={name: "key", "text": "key"})
        made_now, _ = space.embed_items(
            items.items[name], out=tmp_path / name, cache=tmp_path / "f"
        )
        galleries.append(made_now)
    texts = [f"t{number}" for number in range(0, 400, 8)]
    tops = []
    for text in texts:
        found = space.search_parts(galleries, [space.query_part("text", text)], k=6)
        assert found.ranked_by == "probability"
        best = [found.hits[number].probability[0, place] for number, place in found.order]
        everything = np.concatenate([hits.probability[0] for hits in found.hits])
        np.testing.assert_allclose(best, np.sort(everything)[::-1][:6], atol=1e-6)
        tops.append({found.hits[number].ids[0][place] for number, place in found.order})
    # Each text's picture and its sound are both found near the top: neither modality hides one.
    for letter in "ia":
        assert (
            np.mean([f"{letter}{t[1:]}" in top for t, top in zip(texts, tops, strict=True)]) > 0.7
        )
    # Pictures and sounds had no pairs in training: the best of each gallery in turn.
    found = space.search_parts(galleries, [space.query_part("image", "i3")], k=5)
    assert found.ranked_by == "rank"
    assert found.order == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2)]


def test_evaluation_goes_by_corrected_similarity(world, scored, tmp_path):
    pairs = read_pairs(
        world / "pairs.csv", ["image", "text"], reads={"image": "key", "text": "key"}
    )
    before = scored.evaluate(pairs, cache=tmp_path / "f", directions=[("text", "image")])[0]
    kept = scored.family.scoring.pop(("text", "image"))
    try:
        plain = scored.evaluate(pairs, cache=tmp_path / "f", directions=[("text", "image")])[0]
    finally:
        scored.family.scoring["text", "image"] = kept
    shown = scored.stages[0].record["validation"]["directions"]
    assert before.mean_reciprocal_rank != plain.mean_reciprocal_rank
    assert before.mean_reciprocal_rank in [d["mean_reciprocal_rank"] for d in shown]


def test_without_scoring_no_bank_is_kept(world, tmp_path):
    space = made(world, tmp_path / "s", SMALL.changed({"members": "cca"}))
    scoring = space.family.scoring["text", "image"]
    assert scoring.correction == NoCorrection()
    assert len(scoring.bank) == 0


# Shares and the choice of members


def member(rows: int, noise: float, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shared = np.random.default_rng(9).standard_normal((rows, 6))
    sides = {m: shared + noise * rng.standard_normal((rows, 6)) for m in ("image", "text")}
    return {m: s / np.linalg.norm(s, axis=1, keepdims=True) for m, s in sides.items()}


def test_members_that_err_differently_are_joined_and_one_that_knows_nothing_is_left_out():
    members = [member(200, 0.8, 1), member(200, 0.8, 2), member(200, 50.0, 3)]
    paired = PairedTables("image", "text", {}, np.stack([np.arange(200)] * 2, axis=1))
    shares, tried = chosen_shares(members, paired, usual=[1.0, 1.0, 1.0])
    assert min(shares[:2]) > 0
    assert shares[2] == 0
    assert np.square(shares).sum() == pytest.approx(1)
    alone = [mean_reciprocal_rank_both(m["image"], m["text"], paired.pairs) for m in members[:2]]
    assert max(entry["mean_reciprocal_rank"] for entry in tried) > max(alone)


def expected_of(members: list[dict[str, np.ndarray]], pairs: np.ndarray, usual: list[float]):
    alone = [mean_reciprocal_rank_both(m["image"], m["text"], pairs) for m in members]
    expected = np.array(expected_weights(usual, alone))
    return expected / expected.sum()


def test_few_rows_leave_members_about_where_they_are_expected():
    members = [member(4, 0.8, 1), member(4, 0.8, 2), member(4, 0.8, 3)]
    paired = PairedTables("image", "text", {}, np.stack([np.arange(4)] * 2, axis=1))
    usual = usual_weights(["cca", "residual", "mlp"])
    assert usual == [1.0, 0.5, 0.5]
    shares, _ = chosen_shares(members, paired, usual=usual)
    expected = expected_of(members, paired.pairs, usual)
    np.testing.assert_allclose(np.square(shares), expected, atol=0.1)
    assert usual_weights(["mlp", "residual"]) == [0.5, 0.5]
    assert usual_weights(["cca", "ridge", "mlp"]) == [0.5, 0.5, 1.0]


def test_many_rows_move_members_to_what_finds_their_pairs():
    """The third one repeats the first one's errors, which what each finds alone does not say."""
    members = [member(600, 1.0, 1), member(600, 1.0, 2)]
    members.append(members[0])
    paired = PairedTables("image", "text", {}, np.stack([np.arange(600)] * 2, axis=1))
    usual = [1.0, 1.0, 1.0]
    shares, tried = chosen_shares(members, paired, usual=usual)
    found = np.square(shares)
    assert found[1] > expected_of(members, paired.pairs, usual)[1] + 0.05
    *_, expected, chosen = tried
    assert chosen["weights"] == pytest.approx(found.tolist())
    assert chosen["mean_reciprocal_rank"] > expected["mean_reciprocal_rank"]


def choices_of(rows: int = 7) -> Choices:
    """Two members; the first query has two positives, the last item answers nobody."""
    sides = [member(rows, 0.5, 1), member(rows, 2.0, 2)]
    pairs = np.array([(0, 0), (0, 3), *((row, row) for row in range(1, rows - 1))])
    return Choices.of([m["image"] for m in sides], [m["text"] for m in sides], pairs)


def test_what_choices_cost_is_the_conditional_logit_in_loops():
    choices, weights = choices_of(), np.array([3.0, 1.5])
    assert choices.cosines.shape == (2, 6, 7)
    cost = 0.0
    for query in range(6):
        odds = [float(weights @ choices.cosines[:, query, item]) for item in range(7)]
        total = math.log(sum(math.exp(value) for value in odds))
        positives = [item for item in range(7) if choices.chosen[query, item]]
        assert positives == ([0, 3] if query == 0 else [query])
        cost += sum(total - odds[item] for item in positives) / len(positives)
    value, slope, curvature = choices.terms(weights)
    assert value == pytest.approx(cost, rel=1e-5)
    step = 1e-2
    for n in range(2):
        up, down = (choices.terms(weights + sign * step * np.eye(2)[n]) for sign in (1, -1))
        assert (up[0] - down[0]) / (2 * step) == pytest.approx(slope[n], abs=1e-3)
        np.testing.assert_allclose((up[1] - down[1]) / (2 * step), curvature[n], atol=1e-3)


def test_choices_by_blocks_cost_what_they_cost_at_once(monkeypatch):
    whole = choices_of().terms(np.array([3.0, 1.5]))
    monkeypatch.setattr("modalign.space.shares.BLOCK", 14)
    for found, wanted in zip(choices_of().terms(np.array([3.0, 1.5])), whole, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_of_very_many_queries_some_are_looked_at(monkeypatch):
    monkeypatch.setattr("modalign.space.shares.MOST_COMPARED", 21)
    assert choices_of().cosines.shape == (2, 3, 7)


def test_likeliest_weights_are_those_that_a_search_finds():
    """Held to what is expected, none below 0: a member that misleads is left out."""
    sides = [member(60, 1.0, 1), member(60, 1.2, 2), member(60, 1.0, 3)]
    misleading = {"image": sides[2]["image"], "text": -sides[2]["text"]}
    parts = [(m["image"], m["text"]) for m in (*sides[:2], misleading)]
    pairs = np.stack([np.arange(60)] * 2, axis=1)
    expected = [0.5, 0.3, 0.2]
    found = np.array(likeliest_weights(parts, pairs, expected=expected))
    assert found[2] == 0
    there = Choices.of([a for a, _ in parts], [b for _, b in parts], pairs)
    back = Choices.of([b for _, b in parts], [a for a, _ in parts], pairs)

    def cost(weights: np.ndarray) -> float:
        return (there.terms(weights)[0] + back.terms(weights)[0]) / 2

    scales = np.linspace(0.5, 30, 600)
    scale = scales[np.argmin([cost(scale * np.array(expected)) for scale in scales])]

    def held(weights: np.ndarray) -> float:
        off = weights / scale - expected
        return cost(weights) + PRIOR / 2 * float(off @ off)

    rng = np.random.default_rng(0)
    for size in (0.02, 0.2, 2.0):
        for _ in range(60):
            other = np.maximum(found + size * rng.standard_normal(3), 0)
            assert held(found) <= held(other) + 0.01


def test_members_that_know_nothing_stay_where_they_are_expected():
    # Every item's opposite answers it: no weight above 0 makes that likelier.
    parts = [(-m["text"], m["text"]) for m in (member(40, 1.0, 1), member(40, 1.0, 2))]
    pairs = np.stack([np.arange(40)] * 2, axis=1)
    assert likeliest_weights(parts, pairs, expected=[0.7, 0.3]) == [0.7, 0.3]


def test_a_member_that_finds_less_counts_for_much_less_and_one_that_finds_half_not_at_all():
    assert expected_weights([1.0, 0.5, 0.5], [0.4, 0.4, 0.4]) == [1.0, 0.5, 0.5]
    assert expected_weights([1.0, 0.5, 0.5], [0.4, 0.32, 0.4]) == pytest.approx(
        [1.0, 0.5 * 0.8**6, 0.5]
    )
    assert expected_weights([1.0, 0.5, 0.5], [0.4, 0.2, 0.4]) == pytest.approx([1.0, 0.0, 0.5])


class Rows:
    """A table that knows which rows it has."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows

    def subset(self, rows: np.ndarray) -> Rows:
        return Rows(self.rows[rows])


def paired_rows(first: np.ndarray, second: np.ndarray) -> PairedTables:
    pairs = np.unique(np.stack([first, second], axis=1), axis=0)
    sides = [np.unique(pairs[:, side], return_inverse=True) for side in (0, 1)]
    tables = {m: Rows(items) for m, (items, _) in zip(("image", "text"), sides, strict=True)}
    return PairedTables("image", "text", tables, np.stack([s[1] for s in sides], axis=1))  # type: ignore[arg-type]


def items(paired: PairedTables, name: str) -> set[int]:
    return set(paired.tables[name].rows.tolist())  # type: ignore[attr-defined]


@pytest.mark.parametrize("seed", range(5))
def test_rows_held_out_for_the_choice_share_no_item_with_the_others(seed):
    rng = np.random.default_rng(0)
    paired = paired_rows(rng.integers(0, 300, 300), rng.integers(0, 700, 300))
    train, held = parted(paired, seed=seed)
    assert len(train.pairs) + len(held.pairs) == len(paired.pairs)
    # At least 60 rows, here more than 15 %.
    assert 50 <= len(held.pairs) <= 72
    for name in ("image", "text"):
        assert not items(train, name) & items(held, name)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("turned", [False, True])
def test_where_most_pairs_share_an_item_a_fair_part_is_held_out_all_the_same(seed, turned):
    images = np.arange(1000)
    texts = np.where(images % 10, 0, images)
    sides = (texts, images) if turned else (images, texts)
    train, held = parted(paired_rows(*sides), seed=seed)
    assert 130 <= len(held.pairs) <= 180
    assert len(train.pairs) + len(held.pairs) == 1000
    other = "text" if turned else "image"
    assert not items(train, other) & items(held, other)


def test_pairs_that_cannot_be_parted_are_used_twice():
    one = paired_rows(np.zeros(1, int), np.zeros(1, int))
    assert parted(one, seed=0) == (one, one)
    train, held = parted(paired_rows(np.zeros(9, int), np.arange(9)), seed=0)
    assert len(held.pairs) == 3
    assert len(train.pairs) == 6


def test_auto_says_what_it_tried_and_takes_what_won(world, tmp_path):
    recipe = SMALL.changed({"choose": True, "scoring": "chosen", "budget": 120.0})
    space = made(world, tmp_path / "s", recipe)
    record = space.stages[0].record
    notes = record["chosen"]
    assert record["recipe"]["choose"] is False
    assert record["recipe"]["members"].split(",") == notes["kept"]
    names = {entry["name"] for entry in notes["compared"]}
    assert names - {"corrected"} == {"cca", "residual", "mlp", "joined"}
    chosen = [entry for entry in notes["compared"] if "behind" not in entry]
    assert [entry["from"] for entry in chosen] == ["image", "text"]
    for entry in notes["compared"]:
        if "behind" in entry:
            last = next(c for c in chosen if c["from"] == entry["from"])
            gain = last["recall_at_1"] - entry["recall_at_1"]
            assert entry["behind"] == pytest.approx(gain)
            low, high = entry["behind_interval_95"]
            assert low <= gain <= high
    for name, entry in record["scoring"].items():
        # Beside what was settled stands what the plain cosine finds.
        assert entry["tried"][0]["name"] == "none"
        assert entry["correction"] == notes["corrections"][name]
        assert len(entry["tried"]) == (1 if entry["correction"]["name"] == "none" else 2)
    assert min(recall(space).values()) > 0.6
    assert not (tmp_path / "s" / "work").exists()
    page = reported(space, world, tmp_path)
    shares = zip(notes["kept"], notes["shares"], strict=True)
    kept = " + ".join(f"{name} ({100 * share:.0f} %)" for name, share in shares)
    assert f'Kept: <span class="strong">{kept}</span>' in page
    assert ("Networks trained" in page) != ("Networks were tried" in page)
    assert "Recipe " in page
    for direction in ("image → text", "text → image"):
        assert f"{direction}: on the line, what is said is what is seen." in page
    assert "What more pairs would bring" in page
    figures = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    ways = figures["forecast"]["directions"]
    assert [(way["from"], way["to"]) for way in ways] == [("image", "text"), ("text", "image")]
    for way in ways:
        *_, now = way["measured"]
        assert f"{now['items']}</th>" in page
        assert [entry["times"] for entry in way["forecast"]] == [1, 2, 10]


def test_validation_rows_have_no_say_in_what_auto_makes(tmp_path):
    """The same training rows with other validation rows, even false ones: the same weights."""
    world = write_world(tmp_path, rows=400)
    recipe = SMALL.changed({"choose": True, "scoring": "chosen", "budget": 120.0, "min_steps": 90})
    made_of = []
    for number, shift in enumerate((0, 1)):
        partners = [*range(300), *(300 + (row + 37 * shift) % 100 for row in range(100))]
        rows = [
            [key("image", row), key("text", partner), "train" if row < 300 else "validation"]
            for row, partner in enumerate(partners)
        ]
        write_table(world / "pairs.csv", ["image", "text", "split"], rows)
        made_of.append(made(world, tmp_path / f"s{number}", recipe))
    first, second = (space.stages[0].record for space in made_of)
    # What is said of validation rows differs, or the test would say nothing.
    assert recall(made_of[0]) != recall(made_of[1])
    assert first["recipe"] == second["recipe"]
    assert first["recipe"]["settled"]["step"] == first["best_step"] == first["steps"]
    assert {k: v["correction"] for k, v in first["scoring"].items()} == {
        k: v["correction"] for k, v in second["scoring"].items()
    }
    states = [space.family.model.state_dict() for space in made_of]
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        np.testing.assert_array_equal(tensor.numpy(), states[1][name].numpy(), err_msg=name)


def test_what_auto_settled_is_what_its_recipe_says_and_makes_again(world, tmp_path):
    recipe = SMALL.changed({"choose": True, "scoring": "chosen", "budget": 120.0})
    record = made(world, tmp_path / "s", recipe).stages[0].record
    notes, settled = record["chosen"], record["recipe"]["settled"]
    assert settled["closed_forms"] == notes["closed_forms"]
    assert np.square(settled["shares"]).sum() == pytest.approx(1)
    assert len(settled["shares"]) == len(notes["kept"])
    again = CombinedRecipe.from_json(json.loads(json.dumps(record["recipe"])))
    twin = made(world, tmp_path / "t", again).stages[0].record
    assert twin["best_step"] == record["best_step"]
    assert twin["embeddings"] == record["embeddings"]
    assert twin["validation"] == record["validation"]


def test_a_machine_slower_than_planned_ends_in_time(world, tmp_path, monkeypatch):
    """Steps are timed as fast, and then take long."""
    monkeypatch.setattr("modalign.space.choosing._step_seconds", lambda job: 1e-6)
    loss = FirstMembers.loss

    def slow(self: FirstMembers, step: int) -> Tensor:
        time.sleep(0.02)
        return loss(self, step)

    monkeypatch.setattr(FirstMembers, "loss", slow)
    recipe = SMALL.changed({"members": "mlp", "choose": True, "budget": 3.0, "min_steps": 100_000})
    # A process's first one has torch load for seconds, which are not of this.
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])
    began = time.monotonic()
    record = made(world, tmp_path / "s", recipe).stages[0].record
    assert time.monotonic() - began < 12
    assert 20 < record["chosen"]["steps_taken"] < 150
    assert 0 < record["steps"] < 150
    words = f"networks took {record['steps']} of 100000 steps in 3 seconds; a longer --budget"
    assert words in record["chosen"]["steps_note"]
    assert words in told_choice(record["chosen"])
    assert min(d["recall_at_1"] for d in record["validation"]["directions"]) > 0.3


def test_a_machine_that_slows_down_after_the_choice_says_what_it_did_in_the_end(
    world, tmp_path, monkeypatch
):
    loss = FirstMembers.loss

    def slow(self: FirstMembers, step: int) -> Tensor:
        time.sleep(0.1 if self.recipe.settled.shares else 0.0)
        return loss(self, step)

    monkeypatch.setattr(FirstMembers, "loss", slow)
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])
    recipe = SMALL.changed({"members": "mlp", "choose": True, "budget": 3.0, "min_steps": 80})
    record = made(world, tmp_path / "s", recipe).stages[0].record
    assert record["chosen"]["steps_taken"] == 80
    assert record["out_of_time"]
    taken = record["chosen"]["kept_step"]
    assert 0 < taken == record["best_step"] < 80
    assert f"networks took {taken} of 80 steps in 3 seconds" in record["chosen"]["steps_note"]


@pytest.mark.parametrize(
    ("text", "value"), [("60s", 60.0), ("1.5m", 90.0), ("1h", 3600.0), ("45", 45.0), ("2e2", 200.0)]
)
def test_a_budget_is_typed_with_its_unit_or_in_seconds(text, value):
    assert recipe_changes({"budget": text}) == {"budget": value}


@pytest.mark.parametrize("text", ["inf", "soon", "60x", "-5s", ""])
def test_a_budget_that_is_no_time_is_refused(text):
    with pytest.raises(UsageError, match=r"budget is .*, expected a time: seconds, or as in 60s"):
        recipe_changes({"budget": text})


def test_where_too_few_pairs_are_there_the_page_forecasts_nothing(tmp_path):
    world = write_world(tmp_path, rows=60)
    space = made(world, tmp_path / "s", SMALL.changed({"members": "cca"}))
    assert "What more pairs would bring" not in reported(space, world, tmp_path)


def reported(space: Space, world: Path, folder: Path) -> str:
    """The page about a space."""
    pairs = read_pairs(
        world / "pairs.csv", ["image", "text"], reads={"image": "key", "text": "key"}
    )
    encoders = {name: space.encoder(name) for name in pairs.modalities}
    encoded = encode_pairs(space.as_trained(pairs), encoders, cache=folder / "features")
    path, _ = write_report(folder / "report", measure(space, encoded, forecast=True).report())
    return path.read_text(encoding="utf-8")


def test_a_budget_too_small_gives_the_closed_form_and_says_so(world, tmp_path):
    recipe = SMALL.changed({"choose": True, "budget": 0.0})
    space = made(world, tmp_path / "s", recipe)
    record = space.stages[0].record
    assert record["recipe"]["members"] == "cca"
    assert record["steps"] == 0
    assert "too few to train networks; the closed form was taken" in record["chosen"]["budget_note"]
    assert "too few to train networks" in reported(space, world, tmp_path)


def test_a_choice_among_closed_forms_alone_is_none_of_a_budget(world, tmp_path):
    recipe = SMALL.changed({"choose": True, "members": "cca,ridge"})
    notes = made(world, tmp_path / "s", recipe).stages[0].record["chosen"]
    assert "budget_note" not in notes
    assert notes["candidates"] == ["cca", "ridge"]
    assert notes["steps"] == 0


def test_networks_of_few_steps_stay_where_no_more_were_asked_for(world, tmp_path):
    recipe = SMALL.changed({"choose": True, "min_steps": 12, "validate_steps": 4})
    notes = made(world, tmp_path / "s", recipe).stages[0].record["chosen"]
    assert "budget_note" not in notes
    assert notes["candidates"] == ["cca", "residual", "mlp"]
    assert notes["steps"] == notes["steps_taken"] == 12


def test_members_of_one_kind_are_told_apart(world, tmp_path):
    recipe = SMALL.changed({"choose": True, "members": "cca,mlp,mlp"})
    notes = made(world, tmp_path / "s", recipe).stages[0].record["chosen"]
    ways = [row["name"] for row in notes["compared"] if row["from"] == "image"]
    assert ways[:3] == ["cca", "mlp", "mlp 2"]


@pytest.mark.parametrize("start", ["cca", "ridge", "procrustes", "subspace"])
def test_a_residual_starts_from_any_closed_form(world, tmp_path, start):
    """Texts have 16 dimensions, the recipe asks for 8: a ridge regression has 16 all the same."""
    changes = {"members": f"{start},residual", "start": start, "min_steps": 1, "width": 8}
    space = made(world, tmp_path / "s", SMALL.changed(changes))
    assert space.family.model.widths == [16 if start == "ridge" else 8] * 2
    assert min(recall(space).values()) > 0.3


def test_the_strength_kept_of_a_closed_form_is_the_best_of_those_tried(world, tmp_path):
    found = made(world, tmp_path / "s", SMALL.changed({"members": "ridge"}))
    notes = found.stages[0].record["members"]["ridge"]
    tried = {}
    for strength in {*REGULARISATIONS, notes["regularisation"]}:
        recipe = SMALL.changed({"members": "ridge", "regularisation": strength})
        record = made(world, tmp_path / f"{strength}", recipe).stages[0].record
        tried[strength] = record["members"]["ridge"]["mean_reciprocal_rank"]
    assert notes["tried"] == len(REGULARISATIONS) + 2
    assert len(set(tried.values())) > 1
    assert notes["mean_reciprocal_rank"] == max(tried.values())
    assert tried[notes["regularisation"]] == max(tried.values())


def test_settings_are_looked_for_half_way_to_the_next_too():
    def rank(settings: Settings) -> float:
        return -abs(math.log(settings.regularisation / 0.5)) - abs(settings.power - 0.5)

    options = [Settings(r, p) for r in REGULARISATIONS for p in (0.25, 0.5, 1.0)]
    found = best_settings(options, rank)
    assert found.power == 0.5
    assert 0.5 / math.sqrt(HALF) < found.regularisation < 0.5 * math.sqrt(HALF)
    assert found not in options
    assert best_settings(options[:1], rank) == options[0]


def test_more_rows_need_a_weaker_closed_form_where_it_has_a_strength():
    forms = {
        "cca": {"regularisation": 0.3, "power": 0.5},
        "procrustes": {"regularisation": 0.03, "power": 1.0},
    }
    assert for_more_rows(forms, 1.5) == {
        "cca": {"regularisation": 0.2, "power": 0.5},
        "procrustes": {"regularisation": 0.03, "power": 1.0},
    }


def test_a_strength_that_was_asked_for_stays(world, tmp_path):
    changes = {"choose": True, "members": "cca,ridge", "regularisation": 0.7}
    record = made(world, tmp_path / "s", SMALL.changed(changes)).stages[0].record
    forms = record["chosen"]["closed_forms"]
    assert {found["regularisation"] for found in forms.values()} == {0.7}
    assert record["recipe"]["settled"]["closed_forms"] == forms


@pytest.mark.parametrize(
    ("held", "widths", "draws"),
    [(50, (1280, 384), 10), (500, (1280, 384), 4), (5000, (24, 16), 1), (50, (4096, 4096), 1)],
)
def test_as_many_draws_as_say_something_and_fit_into_memory(held, widths, draws):
    assert draws_of(held, dict(zip(("image", "text"), widths, strict=True))) == draws


def test_statistics_of_closed_forms_are_given_back_before_networks_train(world, tmp_path):
    seen = []
    loss = FirstMembers.loss

    def watched(self: FirstMembers, step: int) -> Tensor:
        seen.append(self.forms)
        return loss(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FirstMembers, "loss", watched)
        made(world, tmp_path / "s", SMALL.changed({"min_steps": 3}))
    assert set(seen) == {None}


def test_of_very_many_equal_members_none_is_lost():
    assert expected_weights([1.0] * 60, [0.5] * 60) == [1.0] * 60
    assert sum(parts_of_one([1.0] * 60)) == pytest.approx(1)


def test_one_member_is_not_weighed(monkeypatch):
    monkeypatch.setattr("modalign.space.shares.likeliest_weights", None)
    paired = PairedTables("image", "text", {}, np.stack([np.arange(9)] * 2, axis=1))
    shares, tried = chosen_shares([member(9, 0.5, 1)], paired, usual=[1.0])
    assert shares == [1.0]
    assert [entry["weights"] for entry in tried] == [[1.0]]


def test_unknown_parts_are_refused():
    with pytest.raises(UsageError, match="member"):
        CombinedRecipe(members="cca,magic")
    with pytest.raises(UsageError, match="members is '', expected one at least"):
        CombinedRecipe(members="")
    with pytest.raises(UsageError, match="scoring"):
        CombinedRecipe(scoring="magic")
