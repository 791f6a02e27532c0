"""Recipe auto: all that is left open is settled by rows held out of the training rows.

Within a time budget, members are trained on most of the training rows; which of them stay, their
shares, the closed forms' strength and the hub corrections are chosen on the others. Then what
stays is trained on all training rows with nothing left to choose: validation rows measure it, and
fit the probability, which moves no result.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from modalign.connectors.members import CLOSED_FORMS, TRAINED
from modalign.encoders.contract import canonical_json
from modalign.evaluation import bootstrap_interval, retrieval_ranks
from modalign.recipes import CombinedRecipe, Settled
from modalign.scoring import NoCorrection, best_candidate
from modalign.space.combined import CombinedSpace
from modalign.space.families import Growth, Sides
from modalign.space.held import ENOUGH, parted
from modalign.space.joining import FirstMembers, Settings, best_settings
from modalign.space.paired import PairedTables
from modalign.space.scored import candidates_of, correction_ranks, direction_name
from modalign.storage import read_json, sweep, write_json
from modalign.training import FitResult, fit

# Networks are trained twice, before and after the choice; fewer steps than this are no use.
LEAST_STEPS = 60
TIMED_STEPS = 7
# Time until networks begin, with what is left to do of it afterwards, over itself, at most.
FITTED_AGAIN = 1.3
# Of the budget, what training may take before the choice if it turns out slower than planned.
MOST_BEFORE = 0.6
# Pairs that closed forms are measured by, over several draws where one holds fewer.
MEASURED_PAIRS, MOST_DRAWS = 2000, 10
# What is held of them at a time, covariances and their axes, 1 GiB.
MOST_NUMBERS = 1 << 27
# Between the seeds of these draws.
DRAW_APART = 1_000_003
PLAN_FILE = "plan.json"
SETTLED_FILE = "settled.json"


@dataclass(frozen=True)
class Chosen:
    """What was chosen.

    Attributes:
        recipe: To train on all training rows.
        notes: What was tried, what won and by how much; part of the stage's record.
        limit: Seconds that are left to train in.
    """

    recipe: CombinedRecipe
    notes: dict[str, Any]
    limit: float


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
    draws = draws_of(len(held.pairs), widths)
    others = (parted(paired, seed=seed + number * DRAW_APART) for number in range(1, draws))
    parts = [(train, held), *others]
    forms, ranks = _closed_forms(recipe, widths, parts, seed=seed, device=device)
    recipe = replace(recipe, settled=Settled(closed_forms=forms))
    trial = _Trial(recipe, widths, train, held, seed=seed, device=device)
    steps = _planned_steps(work, trial.job, recipe, began)
    wanted = _wanted_steps(recipe, trial.job)
    too_few = bool(trial.job.trained) and steps < min(LEAST_STEPS, wanted)
    if too_few:
        recipe = _without_networks(recipe)
        trial = _Trial(recipe, widths, train, held, seed=seed, device=device)
    trial.take_steps(max(steps, 1))
    plan = {"recipe": trial.recipe.as_json(), "seed": seed, "rows": _digest(train)}
    result = fit(
        trial.job,
        trial.recipe,
        folder=work,
        run=hashlib.sha256(canonical_json(plan)).hexdigest(),
        seed=seed,
        progress=lambda _, *rest: progress("choose", *rest),
        checkpoint_seconds=checkpoint_seconds,
        limit=MOST_BEFORE * recipe.budget,
    )
    found, notes = trial.settled(result, ranks)
    if not recipe.regularisation:
        forms = for_more_rows(forms, len(paired.pairs) / len(train.pairs))
    found = replace(found, settled=replace(found.settled, closed_forms=forms))
    notes |= {
        "closed_forms": forms,
        "steps": 0 if too_few else steps,
        "steps_taken": result.steps,
        "budget": recipe.budget,
    }
    if too_few:
        notes["budget_note"] = (
            f"{recipe.budget:g} seconds are too few to train networks; the closed form was taken"
        )
    found = _in_time(work, found, result, left=recipe.budget - (time.monotonic() - began))
    notes["wanted_steps"] = wanted
    # A tenth of grace: what was planned to end in time may end a little after.
    left = 1.1 * recipe.budget - (time.monotonic() - began)
    return Chosen(found, notes, max(left, 0.0))


def draws_of(held: int, widths: Mapping[str, int]) -> int:
    """Return of how many draws closed forms are chosen; of wide features fewer fit into memory.

    Args:
        held: Pairs that a draw holds out.
        widths: D_m by modality.
    """
    fit = MOST_NUMBERS // (4 * sum(width**2 for width in widths.values()))
    return max(1, min(MEASURED_PAIRS // held, MOST_DRAWS, fit))


def with_steps(notes: Mapping[str, Any], kept: int) -> dict[str, Any]:
    """Return the notes of a choice, with the steps that its networks were trained in the end.

    Args:
        notes: See `Chosen`.
        kept: The step whose weights were kept, 0 where no network was.
    """
    wanted, budget = notes["wanted_steps"], notes["budget"]
    found = {**notes, "kept_step": kept}
    if 0 < kept < wanted:
        found["steps_note"] = (
            f"networks took {kept} of {wanted} steps in {budget:g} seconds; a longer --budget may "
            "find more"
        )
    return found


class _Trial:
    """Members trained on some rows, and what others say of them.

    Args:
        recipe: With all members that may be chosen.
        widths: D_m by modality.
        train: Rows to train on.
        held: Rows to choose by.
        seed: Of training.
        device: A torch device name.
    """

    def __init__(
        self,
        recipe: CombinedRecipe,
        widths: Mapping[str, int],
        train: PairedTables,
        held: PairedTables,
        *,
        seed: int,
        device: str,
    ) -> None:
        self.recipe, self.seed = recipe, seed
        self.train, self.held = train, held
        self.family, self.growth, self.job = fitted(
            recipe, widths, train, held, seed=seed, device=device
        )

    def take_steps(self, steps: int) -> None:
        """Let training take some steps, and keep the last one's weights.

        Where the learning rate has fallen weights are best as a rule; what a few rows say of an
        earlier step is mostly chance.
        """
        self.job.kept_step = steps
        self.recipe = replace(
            self.recipe, min_steps=steps, epochs=1, validate_steps=max(10, steps // 6)
        )

    def settled(
        self, result: FitResult, ranks: Mapping[str, Sequence[np.ndarray]]
    ) -> tuple[CombinedRecipe, dict[str, Any]]:
        """Choose what is left open, on the rows held out; return the recipe and notes.

        Args:
            result: How training went.
            ranks: Of closed forms by each correction, by direction: they count with those of
                the members joined, for few rows tell corrections apart badly.
        """
        # Before the shares: a member that is left out has one of 0.
        alone = self.job.member_vectors(self.job.validation)
        settled = self.job.settle()["members"]
        own = correction_ranks(
            self.family,
            self.recipe,
            self.growth,
            train=self.train,
            held=self.job.validation,
            seed=self.seed,
        )
        best = {
            name: best_candidate(
                np.concatenate([found, *ranks.get(name, ())], axis=1),
                candidates_of(self.recipe, name),
            )
            for name, found in own.items()
        }
        chosen = {name: candidates_of(self.recipe, name)[place] for name, place in best.items()}
        corrections = {name: correction.as_json() for name, correction in chosen.items()}
        # By direction, where hubs are corrected.
        corrected = {
            name: own[name][best[name]]
            for name, correction in chosen.items()
            if type(correction) is not NoCorrection
        }
        shares = self.family.model.shares.tolist()
        names = self.recipe.member_names
        kept = [(name, share) for name, share in zip(names, shares, strict=True) if share > 0]
        notes = {
            "held_out": {"pairs": len(self.held.pairs), "trained_on": len(self.train.pairs)},
            "candidates": names,
            "kept": [name for name, _ in kept],
            "shares": [round(share**2, 4) for _, share in kept],
            "tried": settled["tried"],
            "shares_by": "likelihood",
            "corrections": corrections,
            "compared": compared(self, alone, corrected),
        }
        if len(self.held.pairs) < ENOUGH:
            notes["rows_note"] = (
                f"by {len(self.held.pairs)} held-out pairs little can be told apart"
            )
        recipe = replace(
            self.recipe,
            members=",".join(name for name, _ in kept),
            choose=False,
            settled=Settled(
                closed_forms=self.recipe.settled.closed_forms,
                step=result.steps if any(name in TRAINED for name, _ in kept) else 0,
                shares=[share for _, share in kept],
                corrections=corrections,
            ),
        )
        return recipe, notes


def fitted(
    recipe: CombinedRecipe,
    widths: Mapping[str, int],
    train: PairedTables,
    held: PairedTables,
    *,
    seed: int,
    device: str,
) -> tuple[CombinedSpace, Growth, FirstMembers]:
    """Return a space's first stage, and the job of training its networks.

    Args:
        recipe: Of two modalities.
        widths: D_m by modality.
        train: What closed forms are fitted to, and networks are to be trained on.
        held: What settings are chosen by, where the recipe leaves them open.
        seed: What the stage is drawn from.
        device: A torch device name.
    """
    family = CombinedSpace(recipe, device=device)
    growth = family.growth(recipe, widths, anchor=None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        family.grow(recipe, growth)
    job = family.objective(recipe, growth, train=[train], validation=[held], seed=seed)
    assert isinstance(job, FirstMembers)
    return family, growth, job


def _closed_forms(
    recipe: CombinedRecipe,
    widths: Mapping[str, int],
    parts: Sequence[tuple[PairedTables, PairedTables]],
    *,
    seed: int,
    device: str,
) -> tuple[dict[str, dict[str, float]], dict[str, list[np.ndarray]]]:
    """Choose the closed forms' settings by the mean over several draws of rows held out.

    A closed form takes a second: of few rows it is fitted and measured several times.

    Args:
        recipe: With the members that may be chosen.
        widths: D_m by modality.
        parts: Of each draw the rows to fit to, and those held out.
        seed: What a stage is drawn from.
        device: A torch device name.

    Returns:
        The settings by closed form; and by direction the ranks of each draw's queries by each
        correction, where the first closed form is used as it was settled.
    """
    names = [name for name in recipe.member_names if name in CLOSED_FORMS]
    names += [recipe.start] if "residual" in recipe.member_names else []
    if not names:
        return {}, {}
    plain = replace(recipe, members=",".join(dict.fromkeys(names)))
    drawn = [fitted(plain, widths, *part, seed=seed, device=device) for part in parts]
    jobs = [job for *_, job in drawn]

    def mean_rank(name: str, tried: Settings) -> float:
        return float(np.mean([job.score(name, tried) for job in jobs]))

    settings = jobs[0].settings
    chosen = {n: best_settings(settings(n), partial(mean_rank, n)) for n in dict.fromkeys(names)}
    ranks: dict[str, list[np.ndarray]] = {}
    for (train, held), (family, growth, job) in zip(parts, drawn, strict=True):
        job.begin_with(chosen)
        # By the first one alone.
        family.model.shares.copy_(torch.eye(len(chosen))[0])
        each = correction_ranks(family, plain, growth, train=train, held=held, seed=seed)
        for name, by_correction in each.items():
            ranks.setdefault(name, []).append(by_correction)
    forms = {name: found._asdict() for name, found in chosen.items()}
    return forms, ranks


def for_more_rows(
    forms: Mapping[str, Mapping[str, float]], times: float
) -> dict[str, dict[str, float]]:
    """Return closed forms' settings for so many times the rows that they were chosen on.

    What is regularised is a mean over rows: of twice as many, half as much is as strong. A
    rotation has nothing to regularise.
    """
    return {
        name: {**found, "regularisation": round(found["regularisation"] / times, 6)}
        if name != "procrustes"
        else dict(found)
        for name, found in forms.items()
    }


def _digest(paired: PairedTables) -> str:
    return hashlib.sha256(np.ascontiguousarray(paired.pairs).tobytes()).hexdigest()


def _planned_steps(work: Path, job: FirstMembers, recipe: CombinedRecipe, began: float) -> int:
    """Return the steps that the budget allows; an interrupted call keeps to its first plan."""
    if (work / PLAN_FILE).exists():
        return int(read_json(work / PLAN_FILE)["steps"])
    steps = 0
    if any(name in TRAINED for name in recipe.member_names):
        seconds = _step_seconds(job)
        # Closed forms are fitted again on all rows, but not tried again.
        left = recipe.budget - FITTED_AGAIN * (time.monotonic() - began)
        steps = min(_wanted_steps(recipe, job), max(0, int(left / 2 / seconds)))
    write_json(work / PLAN_FILE, {"steps": steps})
    return steps


def _wanted_steps(recipe: CombinedRecipe, job: FirstMembers) -> int:
    """Return the steps that are taken where the budget allows them."""
    return max(recipe.min_steps, recipe.epochs * job.steps_per_epoch)


def _step_seconds(job: FirstMembers) -> float:
    taken = []
    job.train_mode()
    with torch.random.fork_rng(devices=[]):
        for step in range(TIMED_STEPS):
            begin = time.monotonic()
            torch.autograd.backward(job.loss(step))
            taken.append(time.monotonic() - begin)
            for parameter in job.parameters.values():
                parameter.grad = None
    # The optimizer's share, and the validations between.
    return 1.3 * median(taken)


def _in_time(
    work: Path, recipe: CombinedRecipe, result: FitResult, *, left: float
) -> CombinedRecipe:
    """Plan the steps on all rows anew, by what a step took; an interrupted call keeps the plan.

    A plan of fewer steps keeps the weights at the same part of its way.
    """
    settled = recipe.settled
    assert settled.step is not None
    whole = result.steps if result.out_of_time else recipe.min_steps
    if (work / SETTLED_FILE).exists():
        steps = int(read_json(work / SETTLED_FILE)["steps"])
    else:
        steps = whole
        if settled.step:
            steps = max(1, min(steps, int(left * result.steps / max(result.seconds, 1e-9))))
        write_json(work / SETTLED_FILE, {"steps": steps})
    step = min(steps, -(-settled.step * steps // whole))
    return replace(recipe, min_steps=steps, settled=replace(settled, step=step))


def _without_networks(recipe: CombinedRecipe) -> CombinedRecipe:
    names = [name for name in recipe.member_names if name not in TRAINED]
    return replace(recipe, members=",".join(names or [recipe.start]))


def told_apart(names: Sequence[str]) -> list[str]:
    """Return members' names, a number after those of a kind that was there before."""
    before = [list(names[:place]).count(name) for place, name in enumerate(names)]
    return [f"{name} {n + 1}" if n else name for name, n in zip(names, before, strict=True)]


def compared(
    trial: _Trial,
    vectors: Sequence[Mapping[str, np.ndarray]],
    corrected: Mapping[str, np.ndarray],
) -> list[dict[str, Any]]:
    """Return recall@1 of each member alone and of what was chosen, with intervals.

    Args:
        trial: Settled.
        vectors: Each member's of the rows held out.
        corrected: By direction the ranks with the correction that was chosen, where one was.

    Returns:
        Of each direction a row for each member, one for "joined" and, where hubs are corrected,
        one for "corrected"; "behind" is by how much the last one of its direction is better, with
        an interval of the difference.
    """
    paired = trial.job.validation
    sides = Sides(trial.family, paired.tables)
    rows = []
    for source, target in trial.growth.directions:
        positives = paired.oriented(source)
        queries, gallery = sides.between(source, target)
        hits = {
            name: retrieval_ranks(of[source], of[target], positives) == 1
            for name, of in zip(told_apart(trial.recipe.member_names), vectors, strict=True)
        }
        hits["joined"] = retrieval_ranks(queries, gallery, positives) == 1
        if (direction := direction_name((source, target))) in corrected:
            hits["corrected"] = corrected[direction] == 1
        last = hits[[*hits][-1]]
        for name, found in hits.items():
            row = {
                "name": name,
                "from": source,
                "to": target,
                "recall_at_1": float(found.mean()),
                "interval_95": list(bootstrap_interval(found, seed=0)),
            }
            if found is not last:
                gain = last.astype(np.float64) - found
                row["behind"] = float(gain.mean())
                row["behind_interval_95"] = list(bootstrap_interval(gain, seed=0))
            rows.append(row)
    return rows
