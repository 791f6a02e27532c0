"""Runs: variants trained once from each seed on the same features, and what they gave.

A run is one recipe from one seed. What it gave, the rank of every query, is a file of its own in
the results folder, written when the run ends: whoever was interrupted goes on there, and nothing
is trained twice, for another study neither. No space is kept; features come from the cache.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from modalign.comparing.figures import report
from modalign.comparing.variants import Comparison, Variant, possible_scores
from modalign.connectors.mixture import Direction
from modalign.encoders import Encoder
from modalign.encoders.contract import canonical_json
from modalign.errors import DataError, UsageError
from modalign.evaluation import retrieval_ranks
from modalign.pairs import Pairs
from modalign.recipes import AltMoERecipe, Recipe
from modalign.space import aligning
from modalign.space.aligning import Job
from modalign.space.encoded import EncodedPairs, pairs_record
from modalign.space.families import Family, Growth, StageObjective
from modalign.space.scored import fit_scoring
from modalign.space.space import SplitSides, chosen_split
from modalign.space.stages import SPACE_FILE, WORK_FOLDER, versions
from modalign.storage import locked, read_json, sweep, write_json
from modalign.training import fit

RUNS_FOLDER = "runs"
# Widths that are tried for equal parameters are multiples of this.
WIDTH_STEP = 8


def compare(
    pairs: Pairs,
    encoders: Mapping[str, Encoder],
    comparison: Comparison,
    *,
    out: Path | str,
    **options: Any,
) -> dict[str, Any]:
    """Train what was not trained yet, and hold the variants against each other.

    Args:
        pairs: Of the encoders' modalities, with rows to train on and to measure.
        encoders: One for each.
        comparison: What.
        out: The results folder; runs that are there already are read.
        options: Fields of `Job`: device, cache, skip_errors, progress, checkpoint_seconds.

    Returns:
        What `modalign compare --json` prints; see `report`.

    Raises:
        UsageError: The modalities are too few or many, or a variant cannot be built.
        DataError: Too few rows, a broken item, or a loss that is not finite.
    """
    for variant in comparison.variants:
        with naming(f"variant {variant.name}"):
            aligning.check_count(pairs.modalities, variant.recipe)
    aligning.check_rows(pairs)
    chosen_split(pairs, comparison.split)
    out, job = Path(out), Job(comparison.variants[0].recipe, **options)
    check_results_folder(out)
    with locked(out):
        (out / RUNS_FOLDER).mkdir(exist_ok=True)
        sweep(out / RUNS_FOLDER)
        encoded = job.encode(pairs, encoders)
        runs = Runs(out, encoded, encoders, comparison.split, job)
        variants = fitted(comparison, runs)
        trained = train_missing(variants, comparison.seeds, runs)
        shutil.rmtree(out / WORK_FOLDER, ignore_errors=True)
        records = [[runs.read(v, seed) for seed in comparison.seeds] for v in variants]
    return {
        **report(replace(comparison, variants=variants), records),
        "pairs": pairs_record(encoded),
        "trained": trained,
        "skipped": [vars(item) for item in encoded.pairs.skipped],
    }


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Say in an error that comes up inside what it is about."""
    try:
        yield
    except (UsageError, DataError) as error:
        raise type(error)(f"{what}: {error}", **error.details) from error


def check_results_folder(out: Path) -> None:
    """Raise a UsageError where a space is given: in its folder are its stages alone."""
    if (out / SPACE_FILE).exists():
        raise UsageError(
            f"{out}: is a space, expected a folder for results; choose another --out", folder=out
        )


def train_missing(variants: Sequence[Variant], seeds: Sequence[int], runs: Runs) -> int:
    """Train what is not in the results folder; return how many runs that were.

    Every variant is trained from one seed before any is trained from the next, so that a busy
    hour meets them all.
    """
    wanted = [(variant, seed) for seed in seeds for variant in variants]
    trained = 0
    for done, (variant, seed) in enumerate(wanted):
        runs.job.progress("runs", done, len(wanted), f"{variant.name}, seed {seed}")
        if not runs.path(variant, seed).exists():
            runs.train(variant, seed)
            trained += 1
    runs.job.progress("runs", len(wanted), len(wanted), f"{trained} trained now")
    return trained


@dataclass(frozen=True)
class Runs:
    """The runs of a results folder.

    Attributes:
        folder: Of the results.
        encoded: What is trained and measured on.
        encoders: One for each modality.
        split: What is measured.
        job: Device, progress, checkpoints; its recipe and seed are not used.
    """

    folder: Path
    encoded: EncodedPairs
    encoders: Mapping[str, Encoder]
    split: str
    job: Job

    def plan(self, variant: Variant, seed: int) -> dict[str, Any]:
        """Return all that a run depends on; the variant's name is no part of it."""
        modalities = self.encoded.pairs.modalities
        return {
            "family": variant.recipe.family,
            "recipe": variant.recipe.as_json(),
            "seed": seed,
            "encoders": [[name, self.encoders[name].fingerprint] for name in modalities],
            "content": self.encoded.digest,
            "device": self.job.device,
            "split": self.split,
            "versions": versions(),
        }

    def key(self, variant: Variant, seed: int) -> str:
        """Return the hash of a run's plan."""
        return hashlib.sha256(canonical_json(self.plan(variant, seed))).hexdigest()

    def path(self, variant: Variant, seed: int) -> Path:
        """Return where a run's results are, or will be."""
        return self.folder / RUNS_FOLDER / f"{self.key(variant, seed)[:32]}.json"

    def read(self, variant: Variant, seed: int) -> dict[str, Any]:
        """Return what a run gave."""
        record: dict[str, Any] = read_json(self.path(variant, seed))
        return record

    def prepare(
        self, recipe: Recipe, *, seed: int, device: str
    ) -> tuple[Family, Growth, StageObjective]:
        """Build what `align` would train: the same weights from the same seed."""
        family = aligning.new_family(recipe, device=device)
        widths = {name: self.encoders[name].width for name in self.encoded.pairs.modalities}
        growth = family.growth(recipe, widths, anchor=None)
        # What is only counted takes no memory.
        with torch.device("meta") if device == "meta" else nullcontext():
            _, objective = aligning.untrained(family, growth, self.encoded, recipe, seed=seed)
        return family, growth, objective

    def count(self, variant: Variant) -> tuple[int, int]:
        """Return how many parameters a variant trains, and how many directions it has.

        Raises:
            UsageError: It cannot be built; the message names it.
        """
        recipe = variant.recipe.changed({"standardize": False})
        with naming(f"variant {variant.name}"):
            _, growth, objective = self.prepare(recipe, seed=0, device="meta")
        return sum(aligning.counted(objective.parameters).values()), len(growth.directions)

    def train(self, variant: Variant, seed: int) -> None:
        """Train a run, going on where an interrupted one was, and write what it gave.

        Raises:
            DataError: The loss is not finite; the message names the variant.
        """
        key, recipe, job = self.key(variant, seed), variant.recipe, self.job
        work = self.folder / WORK_FOLDER / key[:32]
        work.mkdir(parents=True, exist_ok=True)
        sweep(work)
        label = f"{variant.name}, seed {seed}"
        begin = time.perf_counter()
        chosen = aligning.with_members(
            replace(job, recipe=recipe, seed=seed),
            self.encoded,
            self.encoders,
            work=work / "choose",
        )
        recipe = chosen.recipe
        family, growth, objective = self.prepare(recipe, seed=seed, device=job.device)
        prepared = time.perf_counter() - begin
        with naming(f"variant {label}"):
            result = fit(
                objective,
                recipe,
                folder=work,
                run=key,
                seed=seed,
                progress=lambda _, *rest: job.progress(f"train {label}", *rest),
                checkpoint_seconds=job.checkpoint_seconds,
                limit=chosen.limit,
            )
        family.remember(objective.temperature)
        settled = objective.settle()
        train, held = (
            aligning.paired_splits(self.encoded, growth, split) for split in ("train", "validation")
        )
        scoring = fit_scoring(family, recipe, growth, train=train, validation=held, seed=seed)
        family.scoring |= scoring.by_direction
        record = {
            "plan": self.plan(variant, seed),
            "trainable_parameters": sum(aligning.counted(objective.parameters).values()),
            "steps": result.steps,
            "best_step": result.best_step,
            "resumed_from": result.resumed_from,
            "seconds": round(prepared + result.seconds, 3),
            "measured": self.measure(family, recipe, growth.directions),
            **settled,
            **aligning.choice_record(chosen, result),
        }
        write_json(self.path(variant, seed), record)
        shutil.rmtree(work, ignore_errors=True)

    def measure(
        self, family: Family, recipe: Recipe, directions: Sequence[Direction]
    ) -> list[dict[str, Any]]:
        """Return the rank of every query, by every score the recipe trains."""
        rows = SplitSides(family, self.encoded, self.split)
        found = []
        for score in possible_scores(recipe):
            for source, target in directions:
                sides, positives = rows.compared(source, target, score=score)
                ranks = retrieval_ranks(sides.queries, sides.gallery, positives, bias=sides.bias)
                size = len(sides.gallery)
                entry = {"score": score, "from": source, "to": target, "gallery": size}
                found.append({**entry, "ranks": ranks.tolist()})
        return found


# Equal parameters, equal passes -----------------------------------------------------------


def fitted(comparison: Comparison, runs: Runs) -> tuple[Variant, ...]:
    """Return the variants with the sizes and steps that make them equal where that is asked.

    Raises:
        UsageError: A variant cannot be built: known before the first is trained.
    """
    counts = {variant.name: runs.count(variant) for variant in comparison.variants}
    found = []
    for variant in comparison.variants:
        if comparison.equal_to not in (None, variant.name):
            target = counts[str(comparison.equal_to)][0]
            variant = with_closest_width(variant, target, count=lambda v: runs.count(v)[0])
        if comparison.equal_passes:
            variant = with_equal_passes(variant, counts[variant.name][1])
        found.append(variant)
    return tuple(found)


def with_closest_width(
    variant: Variant, target: int, *, count: Callable[[Variant], int]
) -> Variant:
    """Return a variant with the width whose count of parameters comes closest to a target.

    Widths are multiples of 8, and of the attention heads. Of two as close, the smaller one.

    Args:
        variant: Its own width does not matter.
        target: Parameters to come close to.
        count: Says how many a variant trains; more for a larger width.
    """
    step = math.lcm(WIDTH_STEP, getattr(variant.recipe, "heads", 1))

    def wide(steps: int) -> Variant:
        return variant.changed({"width": steps * step})

    high = 1
    while count(wide(high)) < target:
        high *= 2
    low = max(1, high // 2)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(wide(middle)) < target else (low, middle)
    return wide(min((low, high), key=lambda steps: abs(count(wide(steps)) - target)))


def with_equal_passes(variant: Variant, directions: int) -> Variant:
    """Return a joint variant with as many passes over the pairs as an alternating one."""
    recipe = variant.recipe
    if not isinstance(recipe, AltMoERecipe) or recipe.alternation != "joint":
        return variant
    names = ("min_steps", "validate_steps")
    return variant.changed({n: math.ceil(getattr(recipe, n) / directions) for n in names})
