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

from modalign.errors import DataError
from modalign.recipes import CHECKPOINT_SECONDS, Recipe
from modalign.storage import write_json_lines
from modalign.training.checkpoints import read_checkpoint, write_checkpoint

CHECKPOINT_FILE = "checkpoint.safetensors"
LOG_FILE = "log.jsonl"

# Share of a one-cycle spent rising, and how far below the top it starts.
WARM_SHARE = 0.3
START_SHARE = 0.04


class Objective(ABC):
    """What the loop needs to know of a job.

    Attributes:
        parameters: All that is trained, by name; nothing else moves.
        steps_per_epoch: Steps of one pass over the pairs.
    """

    parameters: dict[str, nn.Parameter]
    steps_per_epoch: int

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
    """

    steps: int
    best_step: int
    best: dict[str, float]
    seconds: float
    resumed_from: int


def fit(
    objective: Objective,
    recipe: Recipe,
    *,
    folder: Path,
    run: str,
    seed: int,
    progress: Callable[[str, int, int, str], None],
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
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

    Raises:
        DataError: The loss is not finite.
    """
    loop = _Loop(objective, recipe, folder=folder, run=run, seed=seed)
    resumed_from = loop.resume()
    with torch.random.fork_rng(devices=[loop.device] if loop.device.type == "cuda" else []):
        while not loop.ended():
            loop.advance()
            if loop.seconds_since_saved() >= checkpoint_seconds:
                loop.save()
            progress("train", loop.state.step, loop.steps, loop.note())
    loop.finish()
    state = loop.state
    progress("train", loop.steps, loop.steps, loop.note())
    return FitResult(state.step, state.best_step, state.best, state.seconds, resumed_from)


class _Loop:
    def __init__(
        self, objective: Objective, recipe: Recipe, *, folder: Path, run: str, seed: int
    ) -> None:
        self.objective = objective
        self.recipe = recipe
        self.folder = folder
        self.run = run
        self.seed = seed
        self.device = next(iter(objective.parameters.values())).device
        self.steps = max(recipe.min_steps, recipe.epochs * objective.steps_per_epoch)
        self.state = RunState()
        self.best_weights = {name: p.detach().clone() for name, p in objective.parameters.items()}
        self.optimizer = make_optimizer(objective.parameters, recipe)
        self.lines: list[dict[str, Any]] = []
        self.losses: list[Tensor] = []
        self._saved = self._began = time.monotonic()

    def ended(self) -> bool:
        """Return whether the last step is done, or recall has not risen for long enough."""
        return self.state.finished or self.state.step >= self.steps

    def advance(self) -> None:
        """Take one step; validate when it is time."""
        if not self.state.best:
            self._validate()
        self._step()
        state = self.state
        if state.step % self.recipe.validate_steps == 0 or state.step == self.steps:
            self._validate()
            if state.stale >= self.recipe.patience:
                state.finished = True

    def _step(self) -> None:
        state = self.state
        torch.manual_seed(step_seed(self.seed, state.step))
        rate = self.recipe.learning_rate * self._rate_share()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.objective.train_mode()
        with autocast(self.recipe.precision, self.device.type):
            loss = self.objective.loss(state.step)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.losses.append(loss.detach())
        state.step += 1

    def _rate_share(self) -> float:
        if self.recipe.schedule == "one-cycle":
            return one_cycle(self.state.step, self.steps)
        return self.state.rate_factor

    def _validate(self) -> None:
        state = self.state
        # First, for weights after a loss that is not finite cannot be measured.
        loss = {"loss": self._mean_loss()} if self.losses else {}
        figures = self.objective.validate()
        self.lines.append({"step": state.step, **figures, **loss})
        write_log(self.folder / LOG_FILE, self.lines)
        if not state.best or rank_key(figures) > rank_key(state.best):
            state.best, state.best_step, state.stale = figures, state.step, 0
            for name, parameter in self.objective.parameters.items():
                self.best_weights[name].copy_(parameter.detach())
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
        return f"best recall@1 {best:.3f} at step {self.state.best_step}"

    def seconds_since_saved(self) -> float:
        """Return the age of the last checkpoint, or of the run."""
        return time.monotonic() - self._saved

    def _seconds(self) -> float:
        return self.state.seconds + time.monotonic() - self._began

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        state = self.state
        state.seconds, self._began = self._seconds(), time.monotonic()
        moments = self.optimizer.state_dict()["state"]
        tensors = {
            f"optimizer.{index}.{name}": tensor
            for index, entry in moments.items()
            for name, tensor in entry.items()
        }
        for name, parameter in self.objective.parameters.items():
            tensors[f"weights.{name}"] = parameter.detach()
            tensors[f"best.{name}"] = self.best_weights[name]
        for index, loss in enumerate(self.losses):
            tensors[f"losses.{index}"] = loss
        header = {
            "run": self.run,
            "state": vars(state),
            "lines": self.lines,
            "objective": self.objective.state(),
        }
        write_checkpoint(self.folder / CHECKPOINT_FILE, tensors, header)
        self._saved = time.monotonic()

    def resume(self) -> int:
        """Go on from the folder's checkpoint if it is of this run; return its step."""
        found = read_checkpoint(self.folder / CHECKPOINT_FILE, run=self.run)
        if found is None:
            return 0
        tensors, header = found
        self.state = RunState(**header["state"])
        self.lines = header["lines"]
        self.objective.restore(header["objective"])
        count = sum(name.startswith("losses.") for name in tensors)
        self.losses = [tensors[f"losses.{index}"].to(self.device) for index in range(count)]
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                index, _, moment = rest.partition(".")
                moments.setdefault(int(index), {})[moment] = tensor
        for name, parameter in self.objective.parameters.items():
            parameter.data.copy_(tensors[f"weights.{name}"])
            self.best_weights[name].copy_(tensors[f"best.{name}"])
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        return self.state.step

    def finish(self) -> None:
        """Save the end, and put the best weights in place."""
        self.state.finished = True
        self.save()
        for name, parameter in self.objective.parameters.items():
            parameter.data.copy_(self.best_weights[name])


def make_optimizer(parameters: Mapping[str, nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """Return AdamW; weight decay is for matrices, not for biases, norms and temperatures."""
    matrices = [p for p in parameters.values() if p.ndim > 1]
    others = [p for p in parameters.values() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True)


def one_cycle(step: int, steps: int) -> float:
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
