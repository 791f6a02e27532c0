"""Recipe auto: members chosen by rows held out of the training rows, within a time budget.

The validation rows take no part in the choice of members. What is settled after it, the shares, the
closed form's strength, the best step and the hub correction, is chosen on them as in every recipe.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from modalign.connectors.members import TRAINED
from modalign.encoders.contract import canonical_json
from modalign.evaluation import bootstrap_interval, retrieval_ranks
from modalign.recipes import CombinedRecipe
from modalign.space.combined import CombinedSpace
from modalign.space.families import Growth
from modalign.space.joining import FirstMembers
from modalign.space.paired import PairedTables
from modalign.storage import read_json, sweep, write_json
from modalign.training import fit

# Share of the training items that members are chosen by.
HELD_SHARE = 0.15
# Networks are trained twice, before and after the choice; fewer steps than this are no use.
LEAST_STEPS = 60
TIMED_STEPS = 3
PLAN_FILE = "plan.json"


@dataclass(frozen=True)
class Chosen:
    """What was chosen.

    Attributes:
        recipe: To train on all training rows.
        notes: What was tried, what won and by how much; part of the stage's record.
    """

    recipe: CombinedRecipe
    notes: dict[str, Any]


def choose(
    recipe: CombinedRecipe,
    widths: Mapping[str, int],
    paired: PairedTables,
    *,
    work: Path,
    seed: int,
    device: str,
    progress: Any,
    checkpoint_seconds: float,
) -> Chosen:
    """Train all members on most of the training rows, and keep those that help on the others.

    Args:
        recipe: With all members that may be chosen.
        widths: D_m by modality.
        paired: The training rows.
        work: Folder for checkpoints; an interrupted call goes on there.
        seed: Of the rows held out, and of training.
        device: A torch device name.
        progress: Told of the training.
        checkpoint_seconds: See `fit`.
    """
    began = time.monotonic()
    work.mkdir(parents=True, exist_ok=True)
    sweep(work)
    train, held = parted(paired, seed=seed)
    family, growth = grown(recipe, widths, seed=seed, device=device)
    job = family.objective(recipe, growth, train=[train], validation=[held], seed=seed)
    steps = _planned_steps(work, job, recipe, began)
    if steps < LEAST_STEPS:
        recipe = _without_networks(recipe)
        family, growth = grown(recipe, widths, seed=seed, device=device)
        job = family.objective(recipe, growth, train=[train], validation=[held], seed=seed)
    recipe = _of_steps(recipe, steps)
    plan = {"recipe": recipe.as_json(), "seed": seed, "rows": _digest(train)}
    result = fit(
        job,
        recipe,
        folder=work,
        run=hashlib.sha256(canonical_json(plan)).hexdigest(),
        seed=seed,
        progress=lambda _, *rest: progress("choose", *rest),
        checkpoint_seconds=checkpoint_seconds,
    )
    assert isinstance(job, FirstMembers)
    # Before the shares: a member that is left out has one of 0.
    alone = job.member_vectors(job.validation)
    settled = job.settle()["members"]
    kept = _kept(recipe, family)
    notes = {
        "held_out": {"items": len(held.tables[held.first]), "share": HELD_SHARE},
        "candidates": recipe.member_names,
        "kept": kept,
        "tried": settled["tried"],
        "closed_forms": {name: value for name, value in settled.items() if name in {"cca"}},
        "compared": compared(job, alone),
        "steps": steps,
        "best_step": result.best_step,
        "budget": recipe.budget,
    }
    if steps < LEAST_STEPS:
        notes["budget_note"] = (
            f"{recipe.budget:g} seconds are too few to train networks; the closed form was taken"
        )
    return Chosen(replace(recipe, members=",".join(kept), choose=False), notes)


def grown(
    recipe: CombinedRecipe, widths: Mapping[str, int], *, seed: int, device: str
) -> tuple[CombinedSpace, Growth]:
    """Return a space's first stage, untrained, as a seed draws it."""
    family = CombinedSpace(recipe, device=device)
    growth = family.growth(recipe, widths, anchor=None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        family.grow(recipe, growth)
    return family, growth


def parted(paired: PairedTables, *, seed: int) -> tuple[PairedTables, PairedTables]:
    """Part pairs by items of the first modality, with all that is tied to them."""
    groups = _components(paired)
    names = np.unique(groups)
    order = np.random.default_rng([seed, 11]).permutation(names)
    count = max(1, round(HELD_SHARE * len(names)))
    out = np.isin(groups, order[:count])
    if out.all():
        return paired, paired
    return rows_of_pairs(paired, ~out), rows_of_pairs(paired, out)


def _components(paired: PairedTables) -> np.ndarray:
    """Return a group's number for every pair: pairs that share an item are of one group."""
    group = np.arange(len(paired.pairs))
    while True:
        before = group.copy()
        for side in (0, 1):
            items = paired.pairs[:, side]
            least = np.full(items.max() + 1, len(group))
            np.minimum.at(least, items, group)
            group = least[items]
        if np.array_equal(before, group):
            return group


def rows_of_pairs(paired: PairedTables, chosen: np.ndarray) -> PairedTables:
    """Keep some pairs, bool [P], and the items that occur in them."""
    pairs = paired.pairs[chosen]
    first, a = np.unique(pairs[:, 0], return_inverse=True)
    second, b = np.unique(pairs[:, 1], return_inverse=True)
    tables = {
        paired.first: paired.tables[paired.first].subset(first),
        paired.second: paired.tables[paired.second].subset(second),
    }
    return PairedTables(paired.first, paired.second, tables, np.stack([a, b], axis=1))


def _digest(paired: PairedTables) -> str:
    return hashlib.sha256(np.ascontiguousarray(paired.pairs).tobytes()).hexdigest()


def _planned_steps(work: Path, job: Any, recipe: CombinedRecipe, began: float) -> int:
    """Return the steps that the budget allows; an interrupted call keeps to its first plan."""
    if (work / PLAN_FILE).exists():
        return int(read_json(work / PLAN_FILE)["steps"])
    wanted = max(recipe.min_steps, recipe.epochs * job.steps_per_epoch)
    steps = 0
    if any(name in TRAINED for name in recipe.member_names):
        seconds = _step_seconds(job)
        # What came before comes again when all rows are fitted.
        left = recipe.budget - 2 * (time.monotonic() - began)
        steps = min(wanted, max(0, int(left / 2 / seconds)))
    write_json(work / PLAN_FILE, {"steps": steps})
    return steps


def _step_seconds(job: Any) -> float:
    taken = []
    job.train_mode()
    with torch.random.fork_rng(devices=[]):
        for step in range(TIMED_STEPS):
            begin = time.monotonic()
            job.loss(step).backward()
            taken.append(time.monotonic() - begin)
            for parameter in job.parameters.values():
                parameter.grad = None
    # The optimizer's share, and the validations between.
    return 1.5 * median(taken)


def _without_networks(recipe: CombinedRecipe) -> CombinedRecipe:
    names = [name for name in recipe.member_names if name not in TRAINED]
    return replace(recipe, members=",".join(names or [recipe.start]))


def _of_steps(recipe: CombinedRecipe, steps: int) -> CombinedRecipe:
    steps = max(steps, 1)
    return replace(recipe, min_steps=steps, epochs=1, validate_steps=max(10, steps // 6))


def _kept(recipe: CombinedRecipe, family: CombinedSpace) -> list[str]:
    shares = family.model.shares.tolist()
    return [n for n, share in zip(recipe.member_names, shares, strict=True) if share > 0]


def compared(
    job: FirstMembers, vectors: Sequence[Mapping[str, np.ndarray]]
) -> list[dict[str, Any]]:
    """Return recall@1 of each member alone and of all that were joined, with intervals."""
    shares = job.model.shares.tolist()
    paired = job.validation
    joined = {
        m: np.concatenate([s * v[m] for s, v in zip(shares, vectors, strict=True) if s], axis=1)
        for m in (paired.first, paired.second)
    }
    names = job.recipe.member_names
    rows = []
    for name, sides in [*zip(names, vectors, strict=True), ("joined", joined)]:
        for source, target in ((paired.first, paired.second), (paired.second, paired.first)):
            ranks = retrieval_ranks(sides[source], sides[target], paired.oriented(source))
            low, high = bootstrap_interval(ranks == 1, seed=0)
            rows.append(
                {
                    "name": name,
                    "from": source,
                    "to": target,
                    "recall_at_1": float(np.mean(ranks == 1)),
                    "interval_95": [low, high],
                }
            )
    return rows
