"""Which direction trains in which step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from modalign.errors import check_known

# Weight of a new loss in the running mean of a direction's losses.
FRESH = 0.1


class Alternation:
    """The schedule of several directions over the steps of a run.

    "round-robin" takes them in turn, one step each; "random" draws one, all equally likely;
    "adaptive" draws one in proportion to how much of its first loss is left, so that a direction
    that learns slowly gets more steps; "joint" trains all in every step.

    Source: arXiv:2409.05929, algorithm 1, has round-robin; adaptive is ours.

    Args:
        kind: One of the four.
        count: Directions.
        seed: What random and adaptive are drawn from.
    """

    def __init__(self, kind: str, count: int, *, seed: int) -> None:
        check_known(kind, ["round-robin", "random", "adaptive", "joint"], what="alternation")
        self.kind = kind
        self.count = count
        self.seed = seed
        self.first = [math.nan] * count
        self.running = [math.nan] * count

    def turns(self, step: int) -> list[tuple[int, int]]:
        """Return the directions of a step, and the number of the batch each one takes."""
        if self.kind == "joint":
            return [(place, step) for place in range(self.count)]
        if self.kind == "round-robin":
            return [(step % self.count, step // self.count)]
        draw = np.random.default_rng([self.seed, step]).random()
        limits = np.cumsum(self.shares())
        return [(int(np.searchsorted(limits, draw * limits[-1], side="right")), step)]

    def shares(self) -> np.ndarray:
        """Return how likely each direction is drawn, float64 [count]."""
        if self.kind != "adaptive":
            return np.full(self.count, 1 / self.count)
        # One that was never drawn, or whose loss has no share, has all of its loss left.
        left = np.array(
            [
                now / then if math.isfinite(now) and then > 0 else 1.0
                for now, then in self._losses()
            ],
            np.float64,
        )
        left = np.maximum(left, 0.05)
        shares: np.ndarray = left / left.sum()
        return shares

    def _losses(self) -> list[tuple[float, float]]:
        return list(zip(self.running, self.first, strict=True))

    def note(self, place: int, loss: float) -> None:
        """Remember the loss of a direction's step."""
        if math.isnan(self.first[place]):
            self.first[place] = self.running[place] = loss
        self.running[place] += FRESH * (loss - self.running[place])

    def state(self) -> dict[str, Any]:
        """Return what is remembered, as JSON values."""
        return {
            name: [None if math.isnan(value) else value for value in values]
            for name, values in (("first", self.first), ("running", self.running))
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take what `state` gave."""
        for name in ("first", "running"):
            values = [math.nan if value is None else value for value in state[name]]
            setattr(self, name, values)
