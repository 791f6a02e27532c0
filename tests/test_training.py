"""Training: batches and their positives, rates, best weights, what moves, and resuming."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from interruptions import Stop, stopping_at
from modalign.encoders import Features
from modalign.errors import CorruptError, DataError
from modalign.features.store import FeatureArray
from modalign.recipes import CombinedRecipe, OneEncoderRecipe
from modalign.space.aligning import counted
from modalign.space.combined import CombinedSpace
from modalign.space.families import Growth, send_table
from modalign.space.paired import PairedTables
from modalign.space.shared import AddedObjective, JointObjective, SharedSpace
from modalign.storage import read_json_lines
from modalign.training import FitResult, Objective, PairBatches, fit
from modalign.training.batches import Batch, Partners
from modalign.training.checkpoints import read_checkpoint, write_checkpoint
from modalign.training.loop import START_SHARE, WARM_SHARE, one_cycle
from modalign.training.optimizer import LARGE, Optimizer
from modalign.worlds import draw_vectors

SMALL = OneEncoderRecipe(
    width=16,
    feedforward=32,
    batch_size=16,
    epochs=1,
    min_steps=20,
    validate_steps=5,
    learning_rate=0.01,
)


def many_to_many(*, first: int, second: int, count: int, seed: int) -> np.ndarray:
    """Pairs between items that have several partners each, or none; each pair once."""
    rng = np.random.default_rng(seed)
    chosen = rng.choice(first * second, count, replace=False)
    return np.stack([chosen // second, chosen % second], axis=1)


def partner_sets(pairs: np.ndarray) -> dict[int, set[int]]:
    partners: dict[int, set[int]] = defaultdict(set)
    for a, b in pairs.tolist():
        partners[a].add(b)
    return partners


# Batches


def test_an_epoch_draws_each_pair_once_in_whole_batches():
    pairs = many_to_many(first=9, second=7, count=31, seed=0)
    batches = PairBatches(pairs, batch_size=4, seed=3)
    assert batches.steps_per_epoch == 7
    known = {tuple(pair) for pair in pairs.tolist()}
    for epoch in range(3):
        drawn: list[tuple[int, int]] = []
        for step in range(7 * epoch, 7 * epoch + 7):
            batch = batches.batch(step)
            assert len(batch.first) == len(batch.second) == 4
            drawn += zip(batch.first.tolist(), batch.second.tolist(), strict=True)
        assert len(set(drawn)) == 28
        assert set(drawn) <= known


def test_the_order_is_a_function_of_seed_and_epoch_alone():
    pairs = many_to_many(first=9, second=7, count=32, seed=0)
    straight = PairBatches(pairs, batch_size=8, seed=3)
    drawn = [straight.batch(step).first.tolist() for step in range(12)]
    jumping = PairBatches(pairs, batch_size=8, seed=3)
    for step in (11, 0, 5, 4, 7, 5):
        assert jumping.batch(step).first.tolist() == drawn[step]
    other = PairBatches(pairs, batch_size=8, seed=4)
    assert [other.batch(step).first.tolist() for step in range(4)] != drawn[:4]
    assert drawn[:4] != drawn[4:8]


def test_fewer_pairs_than_a_batch_are_one_batch():
    pairs = np.array([[0, 0], [1, 1], [2, 2]])
    batches = PairBatches(pairs, batch_size=512, seed=0)
    assert (batches.batch_size, batches.steps_per_epoch) == (3, 1)
    assert sorted(batches.batch(5).first.tolist()) == [0, 1, 2]


def test_no_pairs_are_an_error():
    with pytest.raises(DataError, match="no pairs in the train split, expected some"):
        PairBatches(np.zeros((0, 2), np.int64), batch_size=4, seed=0)


@pytest.mark.parametrize("seed", range(4))
def test_positives_of_a_batch_are_those_of_a_slow_twin(seed):
    pairs = many_to_many(first=6, second=11, count=40, seed=seed)
    partners = partner_sets(pairs)
    batches = PairBatches(pairs, batch_size=13, seed=seed)
    for step in range(9):
        batch = batches.batch(step)
        slow = [[int(b) in partners[int(a)] for b in batch.second] for a in batch.first]
        assert batch.positives.tolist() == slow
        assert batch.positives.diagonal().all()


def test_five_captions_of_one_photo_are_positives_of_it_and_of_no_other():
    pairs = np.array([[photo, 5 * photo + caption] for photo in range(4) for caption in range(5)])
    batch = PairBatches(pairs, batch_size=20, seed=0).batch(0)
    same = batch.first[:, None] == batch.second[None, :] // 5
    assert batch.positives.tolist() == same.tolist()
    assert batch.positives.sum(1).tolist() == [5] * 20


def test_partners_are_those_of_a_slow_twin():
    pairs = many_to_many(first=8, second=5, count=17, seed=2)
    partners = partner_sets(pairs)
    asked = np.array([7, 0, 0, 3, 1, 7, 2])
    rows, columns = Partners(pairs).of(asked)
    found = sorted(zip(rows.tolist(), columns.tolist(), strict=True))
    assert found == sorted((row, b) for row, a in enumerate(asked) for b in partners[int(a)])


def test_repeated_items_are_found_wherever_they_occur():
    partners = Partners(np.array([[0, 2], [0, 3], [1, 3]]))
    found = partners.within(np.array([1, 0, 0]), np.array([3, 2, 3, 9]))
    assert found.tolist() == [
        [True, False, True, False],
        [True, True, True, False],
        [True, True, True, False],
    ]


# A small objective


class Slope(Objective):
    """The loss of its one weight falls by 1 for 1, so that AdamW moves it by the rate exactly."""

    def __init__(self, recalls: Sequence[float], *, bad_step: int = -1) -> None:
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.parameters = {"weight": self.weight}
        self.steps_per_epoch = 1
        self.recalls = list(recalls)
        self.bad_step = bad_step
        self.validated = 0

    def train_mode(self) -> None:
        pass

    def loss(self, step: int) -> Tensor:
        return self.weight.sum() * (math.nan if step == self.bad_step else 1.0)

    def validate(self) -> dict[str, float]:
        if not torch.isfinite(self.weight).all():
            raise RuntimeError("weights that are not finite were measured")
        recall = self.recalls[min(self.validated, len(self.recalls) - 1)]
        self.validated += 1
        return {"recall": recall, "mean_reciprocal_rank": 0.5}


class Guess(Objective):
    """A linear map with dropout that learns to find its own rows; nothing is scripted."""

    def __init__(self, *, frozen: bool = False) -> None:
        rng = np.random.default_rng(0)
        self.x = torch.from_numpy(rng.standard_normal((24, 6))).float()
        self.y = self.x @ torch.from_numpy(rng.standard_normal((6, 4))).float()
        generator = torch.Generator().manual_seed(1)
        self.matrix = nn.Parameter(torch.randn(6, 4, generator=generator))
        self.bias = nn.Parameter(torch.zeros(4), requires_grad=not frozen)
        self.parameters = {"matrix": self.matrix}
        if not frozen:
            self.parameters["bias"] = self.bias
        self.steps_per_epoch = 3
        self.dtypes: set[torch.dtype] = set()

    def train_mode(self) -> None:
        pass

    def loss(self, step: int) -> Tensor:
        rows = torch.from_numpy(np.random.default_rng([7, step]).permutation(24)[:8])
        product = nn.functional.dropout(self.x[rows], 0.3) @ self.matrix
        self.dtypes.add(product.dtype)
        return (product.float() + self.bias - self.y[rows]).square().mean()

    def validate(self) -> dict[str, float]:
        with torch.no_grad():
            error = float((self.x @ self.matrix + self.bias - self.y).square().mean())
        return {"recall": 1 / (1 + error), "mean_reciprocal_rank": 0.5}


def quiet(task: str, done: int, total: int, note: str) -> None:
    pass


def fitted(
    objective: Objective, recipe: OneEncoderRecipe, folder: Path, **options: Any
) -> FitResult:
    folder.mkdir(exist_ok=True)
    given: dict[str, Any] = {"run": "one", "seed": 5, "progress": quiet, **options}
    return fit(objective, recipe, folder=folder, **given)


def weights_by_step(
    objective: Slope, seen: dict[int, float]
) -> Callable[[str, int, int, str], None]:
    def told(task: str, done: int, total: int, note: str) -> None:
        # The last call comes when the best weights are in place.
        seen.setdefault(done, float(objective.weight.detach()))

    return told


def rates(recalls: Sequence[float], folder: Path, **changes: Any) -> list[float]:
    """The learning rate of every step, as the weight shows it."""
    objective = Slope(recalls)
    seen = {0: 0.0}
    fitted(objective, SMALL.changed(changes), folder, progress=weights_by_step(objective, seen))
    return [seen[step] - seen[step + 1] for step in range(len(seen) - 1)]


# Rates


def test_one_cycle_starts_low_peaks_at_one_and_ends_at_zero():
    shares = [one_cycle(step, 200) for step in range(201)]
    assert shares[0] == START_SHARE
    top = int(WARM_SHARE * 200)
    assert shares[top] == 1.0
    assert shares[200] == pytest.approx(0.0, abs=1e-12)
    assert shares[top // 2] == pytest.approx((1 + START_SHARE) / 2)
    assert np.all(np.diff(shares[: top + 1]) > 0)
    assert np.all(np.diff(shares[top:]) < 0)


def test_every_step_has_the_rate_of_the_cycle(tmp_path):
    found = rates([0.5], tmp_path, patience=100)
    assert found == pytest.approx([0.01 * one_cycle(step, 20) for step in range(20)], rel=1e-4)


def test_the_plateau_lowers_the_rate_where_recall_does_not_rise(tmp_path):
    # Validated at steps 0, 5, 10, 15: it rises at 5, not at 10, and rises at 15.
    found = rates([0.1, 0.2, 0.2, 0.3, 0.3], tmp_path, schedule="plateau")
    assert found == pytest.approx([0.01] * 10 + [0.008] * 10, rel=1e-4)


def test_weight_decay_is_for_matrices_alone():
    matrix, bias = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    optimizer = Optimizer({"m": matrix, "b": bias}, SMALL.changed({"weight_decay": 0.1}))
    optimizer.minimize((matrix.sum() + bias.sum()) * 0, rate=0.01)
    assert torch.equal(bias, torch.ones(2))
    assert torch.allclose(matrix, torch.full((2, 2), 1 - 0.01 * 0.1))


class Wide:
    """A product of a large matrix, a small one and a bias, and AdamW over all of them at once."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        self.parameters = {
            "wide": nn.Parameter(torch.randn(LARGE // 64, 64) / 100),
            "narrow": nn.Parameter(torch.randn(64, 8)),
            "bias": nn.Parameter(torch.randn(8)),
            "idle": nn.Parameter(torch.randn(LARGE // 64, 64)),
        }

    def loss(self, step: int) -> Tensor:
        x = torch.randn(3, LARGE // 64, generator=torch.Generator().manual_seed(step))
        wide, narrow, bias, _ = self.parameters.values()
        return (torch.tanh(x @ wide) @ narrow + bias).square().mean()


def test_large_parameters_move_in_the_backward_pass_as_one_adamw_would_move_them():
    recipe = SMALL.changed({"weight_decay": 0.1})
    found, expected = Wide(), Wide()
    optimizer = Optimizer(found.parameters, recipe)
    groups = [
        {"params": [p for p in expected.parameters.values() if p.ndim == d], "weight_decay": decay}
        for d, decay in ((2, 0.1), (1, 0.0))
    ]
    twin = torch.optim.AdamW(groups, lr=0.0, fused=True)
    for step in range(3):
        optimizer.minimize(found.loss(step), rate=0.01 * (step + 1))
        for group in twin.param_groups:
            group["lr"] = 0.01 * (step + 1)
        twin.zero_grad()
        expected.loss(step).backward()
        twin.step()
    for name, parameter in found.parameters.items():
        assert torch.equal(parameter, expected.parameters[name])
        assert parameter.grad is None
    assert {key.partition(".")[2] for key in optimizer.state()} == {"wide", "narrow", "bias"}


def test_moments_that_are_restored_go_on_to_the_same_bits():
    straight, broken = Wide(), Wide()
    first = Optimizer(straight.parameters, SMALL)
    before = Optimizer(broken.parameters, SMALL)
    for optimizer, job in ((first, straight), (before, broken)):
        optimizer.minimize(job.loss(0), rate=0.01)
    moments = {key: value.clone() for key, value in before.state().items()}
    before.close()
    after = Optimizer(broken.parameters, SMALL)
    after.restore(moments)
    for optimizer, job in ((first, straight), (after, broken)):
        optimizer.minimize(job.loss(1), rate=0.01)
    for name, parameter in straight.parameters.items():
        assert torch.equal(parameter, broken.parameters[name])


def test_a_closed_optimizer_moves_nothing():
    job = Wide()
    optimizer = Optimizer(job.parameters, SMALL)
    optimizer.minimize(job.loss(0), rate=0.01)
    optimizer.close()
    before = job.parameters["wide"].detach().clone()
    job.loss(1).backward()
    assert torch.equal(job.parameters["wide"], before)
    assert job.parameters["wide"].grad is not None


# Stopping, the best weights, the log


def test_the_weights_that_were_best_on_validation_are_kept(tmp_path):
    objective = Slope([0.1, 0.2, 0.6, 0.3, 0.4])
    seen: dict[int, float] = {}
    result = fitted(objective, SMALL, tmp_path, progress=weights_by_step(objective, seen))
    assert (result.steps, result.best_step, result.best["recall"]) == (20, 10, 0.6)
    assert float(objective.weight.detach()) == seen[10] != seen[20]


def test_a_tie_in_recall_is_broken_by_the_reciprocal_rank_and_then_by_the_earlier_step(tmp_path):
    class Ranked(Slope):
        def validate(self) -> dict[str, float]:
            rank = [0.1, 0.3, 0.3, 0.2, 0.1][self.validated]
            return {**super().validate(), "mean_reciprocal_rank": rank}

    assert fitted(Ranked([0.5]), SMALL, tmp_path).best_step == 5


def test_training_stops_where_recall_has_not_risen_for_long_enough(tmp_path):
    recipe = SMALL.changed({"patience": 2, "min_steps": 100})
    result = fitted(Slope([0.1, 0.3, 0.2, 0.3, 0.9]), recipe, tmp_path)
    assert (result.steps, result.best_step) == (15, 5)
    assert len(read_json_lines(tmp_path / "log.jsonl")) == 4


def test_the_log_has_a_line_a_validation(tmp_path):
    fitted(Slope([0.1, 0.2, 0.6, 0.3, 0.4]), SMALL, tmp_path)
    lines = read_json_lines(tmp_path / "log.jsonl")
    assert [line["step"] for line in lines] == [0, 5, 10, 15, 20]
    assert [line["recall"] for line in lines] == [0.1, 0.2, 0.6, 0.3, 0.4]
    assert ["loss" in line for line in lines] == [False, True, True, True, True]
    # The mean of the loss since the line before.
    objective = Slope([0.1, 0.2, 0.6, 0.3, 0.4])
    seen = {0: 0.0}
    fitted(objective, SMALL, tmp_path / "b", progress=weights_by_step(objective, seen))
    assert lines[2]["loss"] == pytest.approx(np.mean([seen[s] for s in range(5, 10)]), abs=2e-6)


def test_the_steps_are_epochs_or_the_least_number(tmp_path):
    recipe = SMALL.changed({"epochs": 9, "min_steps": 4})
    assert fitted(Guess(), recipe, tmp_path / "a").steps == 27
    assert fitted(Guess(), recipe.changed({"min_steps": 31}), tmp_path / "b").steps == 31


def test_a_loss_that_is_not_finite_is_named_by_its_step(tmp_path):
    objective = Slope([0.5], bad_step=7)
    with pytest.raises(
        DataError, match=r"the loss of step 7 is nan, expected a finite one; lower --learning-rate"
    ):
        fitted(objective, SMALL, tmp_path)


# What is left alone


def test_the_callers_random_numbers_are_left_as_they_were(tmp_path):
    torch.manual_seed(99)
    before = torch.get_rng_state()
    fitted(Guess(), SMALL, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_does_not_depend_on_the_callers_random_numbers(tmp_path):
    first, second, third = Guess(), Guess(), Guess()
    torch.manual_seed(1)
    fitted(first, SMALL, tmp_path / "a")
    torch.manual_seed(2)
    fitted(second, SMALL, tmp_path / "b")
    fitted(third, SMALL, tmp_path / "c", seed=6)
    assert torch.equal(first.matrix, second.matrix)
    assert not torch.equal(first.matrix, third.matrix)


def test_only_the_listed_parameters_move(tmp_path):
    objective = Guess(frozen=True)
    before = objective.matrix.detach().clone()
    fitted(objective, SMALL, tmp_path)
    assert torch.equal(objective.bias, torch.zeros(4))
    assert not torch.equal(objective.matrix, before)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_a_step_computes_in_the_precision_asked_for(tmp_path, precision, dtype):
    objective = Guess()
    start = objective.validate()["recall"]
    result = fitted(objective, SMALL.changed({"precision": precision}), tmp_path)
    assert objective.dtypes == {dtype}
    assert objective.matrix.dtype == torch.float32
    assert result.best["recall"] > start


# Resuming


def interrupted(folder: Path, *, at: int, every: float = 0.0, **options: Any) -> None:
    """Run until a step; with `every` = 0 a checkpoint was written after that step."""
    with pytest.raises(Stop):
        fitted(
            Guess(), SMALL, folder, progress=stopping_at(at), checkpoint_seconds=every, **options
        )


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Guess, bytes]:
    """The weights and the log of a run that nothing ended."""
    folder = tmp_path_factory.mktemp("unbroken")
    objective = Guess()
    assert fitted(objective, SMALL, folder).resumed_from == 0
    return objective, (folder / "log.jsonl").read_bytes()


def check_same(objective: Guess, folder: Path, unbroken: tuple[Guess, bytes]) -> None:
    expected, log = unbroken
    assert torch.equal(objective.matrix, expected.matrix)
    assert torch.equal(objective.bias, expected.bias)
    assert (folder / "log.jsonl").read_bytes() == log


@pytest.mark.parametrize("at", [1, 4, 5, 6, 13, 19, 20])
def test_a_run_goes_on_from_its_checkpoint_to_the_same_bits(tmp_path, unbroken, at):
    interrupted(tmp_path, at=at)
    objective = Guess()
    assert fitted(objective, SMALL, tmp_path).resumed_from == at
    check_same(objective, tmp_path, unbroken)


def test_steps_since_the_checkpoint_are_taken_again(tmp_path, unbroken):
    interrupted(tmp_path, at=7)
    # Writes the log of steps 10 and 15, and no checkpoint.
    interrupted(tmp_path, at=16, every=1e9)
    objective = Guess()
    assert fitted(objective, SMALL, tmp_path).resumed_from == 7
    check_same(objective, tmp_path, unbroken)


def test_a_run_interrupted_before_its_first_checkpoint_begins_anew(tmp_path, unbroken):
    interrupted(tmp_path, at=9, every=1e9)
    objective = Guess()
    assert fitted(objective, SMALL, tmp_path).resumed_from == 0
    check_same(objective, tmp_path, unbroken)


def test_a_run_interrupted_at_every_step_ends_with_the_same_bits(tmp_path, unbroken):
    for step in range(1, 21):
        interrupted(tmp_path, at=step)
    objective = Guess()
    assert fitted(objective, SMALL, tmp_path).resumed_from == 20
    check_same(objective, tmp_path, unbroken)


def test_a_checkpoint_whose_best_weights_are_gone_is_not_gone_on_from(tmp_path, unbroken):
    interrupted(tmp_path, at=13)
    best = list(tmp_path.glob("best-*.safetensors"))
    assert len(best) == 1
    best[0].unlink()
    objective = Guess()
    assert fitted(objective, SMALL, tmp_path).resumed_from == 0
    check_same(objective, tmp_path, unbroken)


def test_best_weights_that_cannot_be_read_are_an_error_with_a_way_out(tmp_path, unbroken):
    result = fitted(Guess(), SMALL, tmp_path)
    best = tmp_path / f"best-{result.best_step}.safetensors"
    best.write_bytes(best.read_bytes()[:20])
    with pytest.raises(CorruptError, match=r"best-\d+.safetensors: the best weights cannot be"):
        fitted(Guess(), SMALL, tmp_path)
    best.unlink()
    objective = Guess()
    fitted(objective, SMALL, tmp_path)
    check_same(objective, tmp_path, unbroken)


def test_a_finished_run_called_again_takes_no_step(tmp_path, unbroken):
    fitted(Guess(), SMALL, tmp_path)
    objective = Guess()
    result = fitted(objective, SMALL, tmp_path, progress=stopping_at(3))
    assert (result.steps, result.resumed_from) == (20, 20)
    check_same(objective, tmp_path, unbroken)


def test_the_patience_used_up_before_a_stop_counts_after_it(tmp_path):
    recipe = SMALL.changed({"patience": 3, "min_steps": 100, "schedule": "plateau"})
    with pytest.raises(Stop):
        fitted(Slope([0.5]), recipe, tmp_path, progress=stopping_at(12), checkpoint_seconds=0.0)
    objective = Slope([0.5])
    seen: dict[int, float] = {}
    result = fitted(objective, recipe, tmp_path, progress=weights_by_step(objective, seen))
    assert (result.resumed_from, result.steps, result.best_step) == (12, 15, 0)
    assert seen[13] - seen[14] == pytest.approx(0.01 * 0.8**2, rel=1e-4)
    assert float(objective.weight.detach()) == 0.0


def test_the_checkpoint_of_another_run_is_ignored(tmp_path, unbroken):
    interrupted(tmp_path, at=9, run="another")
    objective = Guess()
    assert fitted(objective, SMALL, tmp_path).resumed_from == 0
    check_same(objective, tmp_path, unbroken)


@pytest.mark.parametrize("left", [0, 7, 100, -1])
def test_a_truncated_checkpoint_is_ignored(tmp_path, unbroken, left):
    interrupted(tmp_path, at=9)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:left])
    objective = Guess()
    assert fitted(objective, SMALL, tmp_path).resumed_from == 0
    check_same(objective, tmp_path, unbroken)


@pytest.mark.parametrize("metadata", [None, {"modalign": "no json"}, {"modalign": "[1]"}])
def test_a_file_of_another_kind_is_no_checkpoint(tmp_path, metadata):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, tmp_path / "a", metadata=metadata)
    assert read_checkpoint(tmp_path / "a", run="one") is None


def test_a_checkpoint_gives_back_what_was_written(tmp_path):
    tensors = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.tensor(2.5)}
    write_checkpoint(tmp_path / "a", tensors, {"run": "one", "lines": [0.1]})
    found = read_checkpoint(tmp_path / "a", run="one")
    assert found is not None
    assert {name: tensor.tolist() for name, tensor in found[0].items()} == {
        "a": [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]],
        "b": 2.5,
    }
    assert found[1] == {"run": "one", "lines": [0.1]}
    assert read_checkpoint(tmp_path / "a", run="two") is None
    assert read_checkpoint(tmp_path / "none", run="one") is None


# The two stages of OneEncoder

VIEWS = {"image": 10, "text": 8, "audio": 6}


def paired(first: str, second: str, *, start: int, count: int) -> PairedTables:
    """Some rows of one world; each of the second has two rows of the first."""
    world = draw_vectors(200, widths=VIEWS, latent=4, seed=0)
    tables: dict[str, Any] = {
        name: FeatureArray(Features(world[name][start : start + count])) for name in (first, second)
    }
    rows = np.arange(count)
    pairs = np.concatenate([np.stack([rows, rows], 1), np.stack([rows, rows - rows % 2], 1)])
    return PairedTables(first, second, tables, np.unique(pairs, axis=0))


def splits(first: str, second: str) -> dict[str, Any]:
    return {
        "train": paired(first, second, start=0, count=60),
        "validation": paired(first, second, start=60, count=30),
        "seed": 0,
    }


def first_stage(recipe: OneEncoderRecipe = SMALL) -> JointObjective:
    torch.manual_seed(0)
    family = SharedSpace(recipe)
    both = (("image", "text"), ("text", "image"))
    family.grow(recipe, Growth({"image": 10, "text": 8}, None, both))
    family.remember(recipe.temperature)
    return JointObjective(family, recipe=recipe, **splits("image", "text"))


def later_stage(first: JointObjective, recipe: OneEncoderRecipe = SMALL) -> AddedObjective:
    torch.manual_seed(1)
    both = (("audio", "text"), ("text", "audio"))
    first.family.grow(recipe, Growth({"audio": 6}, "text", both))
    return AddedObjective(first.family, recipe=recipe, **splits("audio", "text"))


def hashes(module: nn.Module) -> dict[str, str]:
    """The sha256 of every parameter and buffer."""
    return {
        name: hashlib.sha256(tensor.detach().numpy().tobytes()).hexdigest()
        for name, tensor in module.state_dict().items()
    }


def test_the_first_stage_trains_all_it_lists_and_finds_its_pairs(tmp_path):
    objective = first_stage()
    before = hashes(objective.model)
    result = fitted(objective, SMALL.changed({"min_steps": 60}), tmp_path)
    after = hashes(objective.model)
    trained = {name for name in objective.parameters if name != "log_temperature"}
    assert trained == dict(objective.model.named_parameters()).keys()
    assert {name for name in before if before[name] != after[name]} == trained
    assert result.best["recall"] > 5 / 30


@pytest.mark.parametrize("learned", [True, False])
def test_the_temperature_moves_only_where_it_is_learned(tmp_path, learned):
    recipe = SMALL.changed({"learn_temperature": learned})
    objective = first_stage(recipe)
    fitted(objective, recipe, tmp_path)
    assert ("log_temperature" in objective.parameters) == learned
    assert (objective.temperature == pytest.approx(0.05, rel=1e-6)) == (not learned)


def test_a_later_stage_moves_its_own_entrance_and_nothing_else(tmp_path):
    first = first_stage()
    model = first.model
    objective = later_stage(first)
    before = hashes(model)
    fitted(objective, SMALL, tmp_path)
    after = hashes(model)
    own = {f"entrances.1.{name}" for name, _ in model.entrances[1].named_parameters()}
    assert {name for name in before if before[name] != after[name]} == own


def test_the_trained_parameters_of_a_later_stage_are_listed_and_counted():
    first = first_stage()
    model = first.model
    objective = later_stage(first)
    sizes = {name: p.numel() for name, p in model.entrances[1].named_parameters()}
    assert counted(objective.parameters) == sizes
    wanting = {name for name, p in model.named_parameters() if p.requires_grad}
    assert wanting == {f"entrances.1.{name}" for name in sizes}


def test_all_that_is_frozen_is_in_eval_mode_during_a_step():
    first = first_stage()
    model = first.model
    objective = later_stage(first)
    model.train()
    objective.train_mode()
    own = set(map(id, model.entrances[1].modules()))
    assert all(module.training == (id(module) in own) for module in model.modules())


def test_the_frozen_bank_has_no_dropout_in_it():
    first = first_stage()
    model = first.model
    model.train()
    objective = later_stage(first)
    table = objective.train.tables["text"]
    model.eval()
    with torch.no_grad():
        values = torch.from_numpy(np.asarray(table.take(np.arange(60)).values))
        expected = model("text", values, None)
    assert torch.allclose(objective.bank, expected, atol=1e-6)
    assert torch.equal(
        objective.bank, torch.from_numpy(send_table(first.family, ("embed", "text"), table))
    )


def slow_bank_loss(
    u: np.ndarray, bank: np.ndarray, batch: Batch, pairs: np.ndarray, *, temperature: float
) -> float:
    """A batch against every row of the bank, and the bank's rows of the batch against it."""
    partners = partner_sets(pairs)
    there, back = [], []
    for row, item in enumerate(batch.first.tolist()):
        e = np.exp(bank @ u[row] / temperature)
        negatives = sum(e[b] for b in range(len(bank)) if b not in partners[item])
        there.append(np.mean([-np.log(e[b] / (e[b] + negatives)) for b in partners[item]]))
    for item in batch.second.tolist():
        e = np.exp(u @ bank[item] / temperature)
        own = [row for row, a in enumerate(batch.first.tolist()) if item in partners[a]]
        negatives = sum(e[row] for row in range(len(u)) if row not in own)
        back.append(np.mean([-np.log(e[row] / (e[row] + negatives)) for row in own]))
    return float(np.mean(there) + np.mean(back)) / 2


def test_the_loss_of_a_later_stage_is_that_of_a_slow_twin():
    recipe = SMALL.changed({"dropout": 0.0, "feature_dropout": 0.0, "temperature": 0.3})
    objective = later_stage(first_stage(recipe), recipe)
    objective.train_mode()
    batch = objective.batches.batch(3)
    u = objective.embed("audio", batch.first).detach().double().numpy()
    bank = objective.bank.double().numpy()
    slow = slow_bank_loss(u, bank, batch, objective.train.pairs, temperature=0.3)
    assert float(objective.loss(3).detach()) == pytest.approx(slow, rel=1e-5)


def test_the_loss_of_members_added_later_is_the_sum_of_slow_twins():
    recipe = CombinedRecipe(
        members="cca,residual,mlp",
        width=16,
        hidden=8,
        batch_size=16,
        dropout=0.0,
        feature_dropout=0.0,
        temperature=0.3,
    )
    family = CombinedSpace(recipe)
    for growth in (
        Growth({"image": 10, "text": 8}, None, (("image", "text"), ("text", "image"))),
        Growth({"audio": 6}, "text", (("audio", "text"), ("text", "audio"))),
    ):
        torch.manual_seed(len(growth.widths))
        family.grow(recipe, growth)
        first, second = growth.directions[0]
        train, validation, seed = splits(first, second).values()
        objective = family.objective(
            recipe, growth, train=[train], validation=[validation], seed=seed
        )
        family.remember(0.3)
    objective.train_mode()
    batch = objective.batches.batch(3)
    members = family.model.of("audio")
    with torch.no_grad():
        features = objective.standardized("audio", batch.first)
        slow = [
            slow_bank_loss(
                members.member(number, features).double().numpy(),
                objective.banks[number].double().numpy(),
                batch,
                train.pairs,
                temperature=0.3,
            )
            for number in (1, 2)
        ]
    assert slow[0] != slow[1]
    assert float(objective.loss(3).detach()) == pytest.approx(sum(slow), rel=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("at", [5, 11])
def test_a_stage_goes_on_to_the_same_bits(tmp_path, precision, at):
    recipe = SMALL.changed({"precision": precision, "schedule": "plateau"})
    first = first_stage(recipe)
    model = first.model
    whole = later_stage(first, recipe)
    fitted(whole, recipe, tmp_path / "whole")
    again = first_stage(recipe)
    with pytest.raises(Stop):
        fitted(
            later_stage(again, recipe),
            recipe,
            tmp_path / "broken",
            progress=stopping_at(at),
            checkpoint_seconds=0.0,
        )
    third = first_stage(recipe)
    assert fitted(later_stage(third, recipe), recipe, tmp_path / "broken").resumed_from == at
    assert hashes(third.model) == hashes(model)
    assert (tmp_path / "broken" / "log.jsonl").read_bytes() == (
        tmp_path / "whole" / "log.jsonl"
    ).read_bytes()
