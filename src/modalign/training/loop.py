"""The training loop: steps, validation, best weights, checkpoints, resume."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modalign.errors import CorruptError, DataError
from modalign.recipes import CHECKPOINT_SECONDS, Recipe
from modalign.storage import write_json_lines
from modalign.training.checkpoints import read_checkpoint, write_checkpoint
from modalign.training.optimizer import Optimizer

CHECKPOINT_FILE = "checkpoint.safetensors"
# The best weights lie on disk alone, each in a file named by its step: a checkpoint that is
# gone on from finds its own, whatever was better after it.
BEST_FILE = "best-{step}.safetensors"
LOG_FILE = "log.jsonl"

# Share of a one-cycle spent rising, and how far below the top it starts.
WARM_SHARE = 0.3
START_SHARE = 0.04
# Of its time limit, how much a run may lag behind before its learning rate goes by the clock.
GRACE = 0.1


class Objective(ABC):
    """What the loop needs to know of a job.

    Attributes:
        parameters: All that is trained, by name; nothing else moves. None where all was fitted
            by a formula: then it is measured, and no step is taken.
        steps_per_epoch: Steps of one pass over the pairs.
        kept_step: The step whose weights are kept, where that is settled: the run ends there,
            and what is measured on the way decides nothing. None: the best step's.
    """

    parameters: dict[str, nn.Parameter]
    steps_per_epoch: int
    kept_step: int | None = None

    @abstractmethod
    def train_mode(self) -> None:
        """Put what is trained in train mode, and all that is frozen in eval mode."""

    @abstractmethod
    def loss(self, step: int) -> Tensor:
        """Return the loss of a step, a scalar; a function of the step and the weights."""

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Measure the validation split; "recall" decides, ties by "mean_reciprocal_rank"."""

    def state(self) -> dict[str, Any]:
        """Return what `loss` remembers of earlier steps, as JSON values; nothing as a rule."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:  # noqa: B027 - most remember nothing
        """Take what `state` gave, when a run is gone on with."""


@dataclass
class RunState:
    """Where a run is: all of a checkpoint but the tensors."""

    step: int = 0
    best_step: int = 0
    best: dict[str, float] = field(default_factory=dict)
    stale: int = 0
    rate_factor: float = 1.0
    finished: bool = False
    out_of_time: bool = False
    seconds: float = 0.0


@dataclass(frozen=True)
class FitResult:
    """How a run went.

    Attributes:
        steps: Steps taken.
        best_step: Step whose weights were kept.
        best: Validation figures of those weights.
        seconds: Wall time in the loop, interruptions excluded.
        resumed_from: Step the run went on from, 0 where it began anew.
        out_of_time: Whether the limit ended it.
    """

    steps: int
    best_step: int
    best: dict[str, float]
    seconds: float
    resumed_from: int
    out_of_time: bool = False


def fit(
    objective: Objective,
    recipe: Recipe,
    *,
    folder: Path,
    run: str,
    seed: int,
    progress: Callable[[str, int, int, str], None],
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    limit: float = math.inf,
) -> FitResult:
    """Train, and leave the weights that were best on validation in the objective's parameters.

    Args:
        objective: The job.
        recipe: Optimisation, schedule, patience.
        folder: Where the checkpoint and the log are written; a checkpoint of the same run
            there is gone on from.
        run: Hash of all that the run depends on; a checkpoint of another run is ignored.
        seed: What dropout is drawn from.
        progress: Called with ("train", step, steps, note).
        checkpoint_seconds: Time between checkpoints; 0 writes one after every step.
        limit: Seconds after which no further step is taken, interruptions excluded. Of a run that
            lags behind, the learning rate falls in time for it.

    Raises:
        DataError: The loss is not finite.
    """
    loop = _Loop(objective, recipe, folder=folder, run=run, seed=seed, limit=limit)
    try:
        return _run(loop, progress, checkpoint_seconds)
    finally:
        loop.optimizer.close()


def clear(folder: Path) -> None:
    """Remove what `fit` left to go on from; the log stays."""
    for path in [folder / CHECKPOINT_FILE, *folder.glob(BEST_FILE.format(step="*"))]:
        path.unlink(missing_ok=True)


def _run(
    loop: _Loop, progress: Callable[[str, int, int, str], None], checkpoint_seconds: float
) -> FitResult:
    resumed_from = loop.resume()
    if not loop.last and not loop.state.best:
        loop.validate()
    with torch.random.fork_rng(devices=[loop.device] if loop.device.type == "cuda" else []):
        while not loop.ended():
            loop.advance()
            if loop.seconds_since_saved() >= checkpoint_seconds:
                loop.save()
            progress("train", loop.state.step, loop.last, loop.note())
    loop.finish()
    state = loop.state
    progress("train", loop.last, loop.last, loop.note())
    return FitResult(
        state.step, state.best_step, state.best, state.seconds, resumed_from, state.out_of_time
    )


class _Loop:
    def __init__(
        self,
        objective: Objective,
        recipe: Recipe,
        *,
        folder: Path,
        run: str,
        seed: int,
        limit: float,
    ) -> None:
        self.objective = objective
        self.recipe = recipe
        self.folder = folder
        self.run = run
        self.seed = seed
        devices = [parameter.device for parameter in objective.parameters.values()]
        self.device = devices[0] if devices else torch.device("cpu")
        wanted = max(recipe.min_steps, recipe.epochs * objective.steps_per_epoch)
        # The schedule is of all steps, also where an earlier one's weights are kept.
        self.steps = wanted if devices else 0
        kept = objective.kept_step
        self.last = self.steps if kept is None else min(kept, self.steps)
        self.limit = limit
        self.state = RunState()
        self.optimizer = Optimizer(objective.parameters, recipe)
        self.lines: list[dict[str, Any]] = []
        self.losses: list[Tensor] = []
        self._saved = self._began = time.monotonic()

    def ended(self) -> bool:
        """Return whether the last step is done, or recall has not risen for long enough."""
        return self.state.finished or self.state.step >= self.last

    def advance(self) -> None:
        """Take one step; validate when it is time."""
        if not self.state.best:
            self.validate()
        self._step()
        state = self.state
        state.out_of_time = self._seconds() >= self.limit and state.step < self.last
        if (
            state.step % self.recipe.validate_steps == 0
            or state.step == self.last
            or state.out_of_time
        ):
            self.validate()
            if state.stale >= self.recipe.patience or state.out_of_time:
                state.finished = True

    def _step(self) -> None:
        state = self.state
        torch.manual_seed(step_seed(self.seed, state.step))
        rate = self.recipe.learning_rate * self._rate_share()
        self.objective.train_mode()
        with autocast(self.recipe.precision, self.device.type):
            loss = self.objective.loss(state.step)
        self.optimizer.minimize(loss, rate=rate)
        self.losses.append(loss.detach())
        state.step += 1

    def _rate_share(self) -> float:
        if self.recipe.schedule == "one-cycle":
            return one_cycle(max(self.state.step, self._late()), self.steps)
        return self.state.rate_factor

    def _late(self) -> float:
        """Return the step that a run of its limit should be at, where it is later than planned.

        A cycle that is cut off before its rate falls leaves weights of little use. Of a run that
        is in time nothing depends on the clock.
        """
        used = self._seconds() / max(self.limit, 1e-9) if self.limit < math.inf else 0.0
        return self.steps * min((used - GRACE) / (1 - GRACE), 1.0)

    def validate(self) -> None:
        """Measure the weights as they are, and keep them where they are the best so far."""
        state = self.state
        # First, for weights after a loss that is not finite cannot be measured.
        loss = {"loss": self._mean_loss()} if self.losses else {}
        figures = self.objective.validate()
        self.lines.append({"step": state.step, **figures, **loss})
        write_log(self.folder / LOG_FILE, self.lines)
        settled = self.objective.kept_step is not None
        if settled or not state.best or rank_key(figures) > rank_key(state.best):
            state.best, state.best_step, state.stale = figures, state.step, 0
            write_checkpoint(self._best_file(), self._weights(), {"run": self.run})
        else:
            state.stale += 1
            state.rate_factor *= 0.8

    def _mean_loss(self) -> float:
        losses, self.losses = torch.stack(self.losses), []
        bad = torch.nonzero(~torch.isfinite(losses))
        if len(bad):
            step = self.state.step - len(losses) + int(bad[0])
            raise DataError(
                f"training: the loss of step {step} is {float(losses[bad[0]])}, expected a "
                "finite one; lower --learning-rate, or raise --temperature",
                step=step,
            )
        return round(float(losses.mean()), 6)

    def note(self) -> str:
        """Return what the progress bar says."""
        best = self.state.best.get("recall", 0.0)
        which = "best recall@1" if self.objective.kept_step is None else "recall@1"
        return f"{which} {best:.3f} at step {self.state.best_step}"

    def seconds_since_saved(self) -> float:
        """Return the age of the last checkpoint, or of the run."""
        return time.monotonic() - self._saved

    def _seconds(self) -> float:
        return self.state.seconds + time.monotonic() - self._began

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        state = self.state
        state.seconds, self._began = self._seconds(), time.monotonic()
        tensors = {f"optimizer.{name}": value for name, value in self.optimizer.state().items()}
        tensors.update({f"weights.{name}": value for name, value in self._weights().items()})
        for index, loss in enumerate(self.losses):
            tensors[f"losses.{index}"] = loss
        header = {
            "run": self.run,
            "state": vars(state),
            "lines": self.lines,
            "objective": self.objective.state(),
        }
        write_checkpoint(self.folder / CHECKPOINT_FILE, tensors, header)
        for path in self.folder.glob(BEST_FILE.format(step="*")):
            if path != self._best_file():
                path.unlink()
        self._saved = time.monotonic()

    def resume(self) -> int:
        """Go on from the folder's checkpoint if it is of this run; return its step."""
        found = read_checkpoint(self.folder / CHECKPOINT_FILE, run=self.run)
        if found is None:
            return 0
        tensors, header = found
        state = RunState(**header["state"])
        if state.best and not self._best_file(state.best_step).exists():
            return 0
        self.state = state
        self.lines = header["lines"]
        self.objective.restore(header["objective"])
        self.losses = [loss.to(self.device) for loss in _part(tensors, "losses").values()]
        self.optimizer.restore(_part(tensors, "optimizer"))
        self._put(_part(tensors, "weights"))
        return self.state.step

    def finish(self) -> None:
        """Save the end, and put the best weights in place."""
        self.state.finished = True
        self.save()
        # Before the best weights are read: not all of it is needed at once.
        self.optimizer.close()
        found = read_checkpoint(self._best_file(), run=self.run)
        if found is None:
            raise CorruptError(
                f"{self._best_file()}: the best weights cannot be read; run the same command "
                "again with the file deleted, it begins anew",
                file=self._best_file(),
            )
        self._put(found[0])

    def _best_file(self, step: int | None = None) -> Path:
        step = self.state.best_step if step is None else step
        return self.folder / BEST_FILE.format(step=step)

    def _weights(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.objective.parameters.items()}

    def _put(self, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in self.objective.parameters.items():
            parameter.data.copy_(weights[name])


def _part(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Return the tensors of one kind, without it in their names; numbered ones in their order."""
    found = {name.partition(".")[2]: t for name, t in tensors.items() if name.startswith(kind)}
    return {name: found[name] for name in sorted(found, key=lambda n: (len(n), n))}


def one_cycle(step: float, steps: int) -> float:
    """Return the share of the largest learning rate: a cosine up, then a cosine down to 0.

    Source: Smith & Topin 2018, arXiv:1708.07120.
    """
    warm = WARM_SHARE * steps
    if step < warm:
        return START_SHARE + (1 - START_SHARE) * (1 - math.cos(math.pi * step / warm)) / 2
    return (1 + math.cos(math.pi * (step - warm) / (steps - warm))) / 2


def rank_key(figures: Mapping[str, float]) -> tuple[float, float]:
    """Return what validations are compared by: recall, then mean reciprocal rank."""
    return figures["recall"], figures["mean_reciprocal_rank"]


def step_seed(seed: int, step: int) -> int:
    """Return the seed of a step's dropout: every (seed, step) has its own."""
    return (seed * 1_000_003 + step * 7_919 + 12_345) % 2**63


def autocast(precision: str, device: str) -> AbstractContextManager[Any]:
    """Return the context a training step computes in."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device, dtype=torch.bfloat16)


def write_log(path: Path, lines: list[dict[str, Any]]) -> None:
    """Write the log's lines; a resumed run writes the same ones again."""
    write_json_lines(path, lines)
