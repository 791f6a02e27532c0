"""Where rows go among the experts of directed maps: load, evenness, and experts left idle."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from modalign.connectors.mixture import TASKS, Direction, Task, direction_name
from modalign.errors import ShapeError, UsageError
from modalign.features import FeatureRows
from modalign.recipes import AltMoERecipe
from modalign.space.directed import DirectedMaps
from modalign.space.encoded import EncodedPairs
from modalign.space.paired import chunks
from modalign.space.space import Space, SplitSides, recipe_of

# An expert is dead below this share of what it would carry if all were used alike.
DEAD_SHARE = 1 / 20


@dataclass(frozen=True)
class RoutingRow:
    """How some rows use the experts.

    A row with a direction was counted; one without is the mean of those that its source or its
    task names, each with the same weight, and of all of them where it names neither.

    Attributes:
        source: Modality of the rows; None: of all.
        target: Modality they are mapped into; None: any.
        task: What their vectors are for; None: both.
        router: How rows find experts.
        rows: Rows looked at, tokens where each is mapped by itself.
        load: Share of the rows' choices by expert, sums to 1; with a dense router, which leaves
            none out, the mean gate share.
        gate: Mean gate share by expert, sums to 1.
        open: Experts that the rows may choose from, numbered as in the weights, from 0.
    """

    source: str | None
    target: str | None
    task: Task | None
    router: str
    rows: int
    load: tuple[float, ...]
    gate: tuple[float, ...]
    open: tuple[int, ...]

    @property
    def direction(self) -> str | None:
        """As in image>text, None where it is a mean over directions."""
        if self.source is None or self.target is None:
            return None
        return direction_name(self.source, self.target)

    @property
    def entropy(self) -> float:
        """How evenly the open experts are used, 0 to 1."""
        return load_entropy([self.load[expert] for expert in self.open])

    @property
    def dead(self) -> tuple[int, ...]:
        """Open experts that are hardly used."""
        return tuple(dead_experts(self.load, self.open))

    def as_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "direction": self.direction,
            "from": self.source,
            "to": self.target,
            "task": self.task,
            "router": self.router,
            "rows": self.rows,
            "load": [round(share, 6) for share in self.load],
            "gate": [round(share, 6) for share in self.gate],
            "entropy": round(self.entropy, 6),
            "open": list(self.open),
            "dead": list(self.dead),
        }


def expert_load(chosen: np.ndarray, *, experts: int) -> np.ndarray:
    """Return the share of the rows' choices that fell on each expert.

    Args:
        chosen: Experts of each row, int [N, k], at least one row.
        experts: E.

    Returns:
        float64 [E], sums to 1.

    Raises:
        ShapeError: There is no choice to count, or one of an expert that is not there.

    Source: f of Fedus et al. 2022, arXiv:2101.03961, equation 5; for top-k, choices are counted.
    """
    if not chosen.size or chosen.min() < 0 or chosen.max() >= experts:
        raise ShapeError(
            f"choices {tuple(chosen.shape)} of {experts} experts, expected at least one, each from "
            f"0 to {experts - 1}"
        )
    return np.bincount(chosen.ravel(), minlength=experts) / chosen.size


def load_entropy(load: Sequence[float] | np.ndarray) -> float:
    """Return how even a load is: its entropy by the logarithm of the number of experts.

    Args:
        load: Shares, float [E], sum to 1.

    Returns:
        0 where one expert carries all, 1 where all carry alike; a single expert does.

    Raises:
        ShapeError: The shares are not finite, below 0, or do not sum to 1.

    Source: Shannon 1948, normalised (Pielou's evenness).
    """
    shares = np.asarray(load, np.float64)
    if (
        not len(shares)
        or not (shares >= 0).all()
        or not math.isclose(shares.sum(), 1, abs_tol=1e-4)
    ):
        raise ShapeError(
            f"load {shares.tolist()}: expected shares of at least one expert, from 0 on, that sum "
            "to 1"
        )
    if len(shares) == 1:
        return 1.0
    used = shares[shares > 0]
    entropy = float(-(used * np.log(used)).sum() / math.log(len(shares)))
    return min(max(entropy, 0.0), 1.0)


def dead_experts(load: Sequence[float], among: Sequence[int]) -> list[int]:
    """Return the experts that carry less than `DEAD_SHARE` of an even load.

    Args:
        load: Shares by expert, float [E].
        among: Experts that may be chosen: one that may not is none of the dead.
    """
    limit = DEAD_SHARE / len(among)
    return [expert for expert in among if load[expert] < limit]


def routing_table(
    space: Space, encoded: EncodedPairs, *, split: str | None = None
) -> list[RoutingRow]:
    """Return how each direction and task of a directed space uses the experts.

    Args:
        space: Of directed maps.
        encoded: Pairs of some of its modalities; directions from them are looked at.
        split: Which rows, or "all"; by default test where there are any, else validation.

    Returns:
        A row for each direction and each task that was trained; then, where directions share
        their experts, means by source, by task, and over all.

    Raises:
        UsageError: The space is a shared one, has no direction from these modalities, or the
            split has no rows.
    """
    family = space.family
    if not isinstance(family, DirectedMaps):
        raise UsageError(
            f"space {space.folder}: is a shared space, it has no experts, expected directed maps; "
            "align with --recipe alt-moe"
        )
    tables = SplitSides(family, encoded, split).tables
    table = [
        routing_row(family, direction, task, tables[direction[0]])
        for direction, task in trained(space)
        if direction[0] in tables and len(tables[direction[0]])
    ]
    if not table:
        raise UsageError(
            f"space {space.folder}: no map starts from {' or '.join(tables)}, expected pairs of a "
            "modality that one starts from; name its column"
        )
    return [*table, *means(table)] if family.recipe.share_experts else table


def trained(space: Space) -> Iterator[tuple[Direction, Task]]:
    """Yield each direction with each task that training gave a weight."""
    for stage in space.stages:
        recipe = recipe_of(stage)
        assert isinstance(recipe, AltMoERecipe)
        tasks = [task for task in TASKS if recipe.task_weights[task]]
        for source, target in stage.record["directions"]:
            yield from (((source, target), task) for task in tasks)


def routing_row(
    family: DirectedMaps, direction: Direction, task: Task, table: FeatureRows
) -> RoutingRow:
    """Count where the rows of a table go."""
    router = str(family.model.shape(direction)["router"])
    parts = []
    for features in chunks(table):
        routing = family.routing(direction, features, task=task)
        shares = routing.shares.double().cpu().numpy()
        load = expert_load(routing.chosen.cpu().numpy(), experts=shares.shape[1])
        parts.append((len(shares), load, shares.mean(0)))
    sizes = [size for size, _, _ in parts]
    gate = np.average([shares for _, _, shares in parts], axis=0, weights=sizes)
    load = np.average([share for _, share, _ in parts], axis=0, weights=sizes)
    return RoutingRow(
        *direction,
        task,
        router=router,
        rows=sum(sizes),
        # All are chosen: what weighs them is the gate.
        load=tuple((gate if router == "dense" else load).tolist()),
        gate=tuple(gate.tolist()),
        open=tuple(family.model.open_to(direction, task)),
    )


def means(table: Sequence[RoutingRow]) -> Iterator[RoutingRow]:
    """Yield the means by source, by task, and over all."""
    for source in dict.fromkeys(row.source for row in table):
        yield mean_row([row for row in table if row.source == source], source=source)
    for task in dict.fromkeys(row.task for row in table):
        yield mean_row([row for row in table if row.task == task], task=task)
    yield mean_row(table)


def mean_row(
    table: Sequence[RoutingRow], *, source: str | None = None, task: Task | None = None
) -> RoutingRow:
    """Return the mean of some rows, each with the same weight.

    Choices are not added up: an expert that only the modality with few items uses would look
    idle.
    """
    return RoutingRow(
        source,
        None,
        task,
        router=table[0].router,
        rows=sum(row.rows for row in table),
        load=mean_shares([row.load for row in table]),
        gate=mean_shares([row.gate for row in table]),
        open=tuple(sorted({expert for row in table for expert in row.open})),
    )


def mean_shares(shares: Iterable[Sequence[float]]) -> tuple[float, ...]:
    """Return means by expert; those that a later stage brought count 0 before it."""
    rows = list(shares)
    width = max(len(row) for row in rows)
    padded = [[*row, *[0.0] * (width - len(row))] for row in rows]
    return tuple(float(value) for value in np.mean(padded, axis=0))
