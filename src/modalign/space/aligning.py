"""Making stages: `align` trains the first, `add_modality` every later one."""

from __future__ import annotations

import hashlib
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modalign.encoders import Encoder
from modalign.encoders.contract import canonical_json
from modalign.encoders.registry import Spec
from modalign.errors import DataError, MismatchError, UsageError, check_known
from modalign.features import cache_folder
from modalign.features.encoding import Progress, no_progress
from modalign.features.store import differences
from modalign.pairs import Pairs
from modalign.recipes import CHECKPOINT_SECONDS, CombinedRecipe, Recipe
from modalign.space.choosing import choose, with_steps
from modalign.space.combined import CombinedSpace
from modalign.space.directed import DirectedMaps
from modalign.space.encoded import EncodedPairs, encode_pairs, pairs_record
from modalign.space.families import Family, Growth, StageObjective, measure_all
from modalign.space.paired import PairedTables
from modalign.space.scored import fit_scoring
from modalign.space.shared import SharedSpace
from modalign.space.stages import (
    SPACE_FILE,
    STAGES_FOLDER,
    WORK_FOLDER,
    read_header,
    read_stage,
    versions,
    write_stage,
)
from modalign.storage import LOCK_FILE, TEMPORARY, locked, sweep
from modalign.training import FitResult, Objective, fit
from modalign.training.loop import clear

# What a family's first stage trains, and its later ones.
KINDS = {
    "oneencoder": ("universal-projection", "alignment-layer"),
    "alt-moe": ("mixture", "directed-maps"),
    "combined": ("members", "added-members"),
}
# Where a way over maps names its source, after its kind and score.
SOURCE = 2
# Fewer rows than this cannot be trained on and measured.
LEAST_ROWS = 2


@dataclass(frozen=True)
class Job:
    """What a stage is trained with, beside the pairs.

    Attributes:
        recipe: Sizes, loss, optimisation.
        recipe_name: What the user called it.
        seed: Of initial weights, batches and dropout.
        device: A torch device name.
        cache: Folder of the feature stores.
        skip_errors: Leave broken items out.
        progress: Told of long work.
        checkpoint_seconds: Time between the checkpoints of training.
        chosen: What was tried where members were chosen; goes into the stage's record.
        spent: Seconds that went before the stage's training, by part.
        limit: Seconds that the stage's training may take.
    """

    recipe: Recipe
    recipe_name: str = "oneencoder"
    seed: int = 0
    device: str = "cpu"
    cache: Path | None = None
    skip_errors: bool = False
    progress: Progress = no_progress
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    chosen: Mapping[str, Any] = field(default_factory=dict)
    spent: Mapping[str, float] = field(default_factory=dict)
    limit: float = math.inf

    def encode(self, pairs: Pairs, encoders: Mapping[str, Encoder]) -> EncodedPairs:
        """Encode what the cache lacks."""
        return encode_pairs(
            pairs,
            encoders,
            cache=self.cache or cache_folder(),
            skip_errors=self.skip_errors,
            progress=self.progress,
        )


# What a stage's record may name.
FAMILIES: dict[str, type[Family]] = {
    family.name: family for family in (SharedSpace, DirectedMaps, CombinedSpace)
}


def new_family(recipe: Recipe, *, device: str) -> Family:
    """Return a recipe's family, without a stage yet."""
    return FAMILIES[recipe.family](recipe, device=device)


def align(pairs: Pairs, encoders: Mapping[str, Encoder], *, out: Path, job: Job) -> EncodedPairs:
    """Train the first stage of a new space.

    Interrupted at any point, the same call goes on where it was.

    Args:
        pairs: Of two modalities; of two or more where the recipe is of directed maps.
        encoders: One for each.
        out: The space's folder; it must hold no space yet.
        job: How.

    Returns:
        What it was trained on and measured by.

    Raises:
        UsageError: `out` is a space or holds other files, or the modalities are too few or many.
        DataError: Too few rows, a broken item, or a loss that is not finite.
    """
    check_count(pairs.modalities, job.recipe)
    check_rows(pairs)
    check_new(out)
    with locked(out):
        # Another process may have made it while this one waited.
        check_new(out)
        encoded = job.encode(pairs, encoders)
        brought = {name: encoders[name] for name in encoded.pairs.modalities}
        job = with_members(job, encoded, brought, work=out / WORK_FOLDER / "choose")
        family = new_family(job.recipe, device=job.device)
        make_stage(out, family, encoded, brought, job=job)
    return encoded


def with_members(
    job: Job, encoded: EncodedPairs, encoders: Mapping[str, Encoder], *, work: Path
) -> Job:
    """Choose the members where the recipe asks for it; return what to train, and how it came."""
    recipe = job.recipe
    if not (isinstance(recipe, CombinedRecipe) and recipe.choose):
        return job
    begin = time.perf_counter()
    first, second = encoders
    chosen = choose(
        recipe,
        {name: encoder.width for name, encoder in encoders.items()},
        encoded.paired(first, second, "train"),
        work=work,
        seed=job.seed,
        device=job.device,
        progress=job.progress,
        checkpoint_seconds=job.checkpoint_seconds,
    )
    spent = {"choose": round(time.perf_counter() - begin, 3)}
    return replace(
        job,
        recipe=chosen.recipe,
        chosen=chosen.notes,
        spent=spent,
        limit=chosen.limit,
    )


def choice_record(job: Job, result: FitResult) -> dict[str, Any]:
    """Return what a record tells of a choice: nothing where the recipe left none open."""
    return {"chosen": with_steps(job.chosen, result.best_step)} if job.chosen else {}


def check_count(modalities: Sequence[str], recipe: Recipe) -> None:
    """Raise a UsageError unless a first stage can join these modalities."""
    wanted = FAMILIES[recipe.family].first_count(recipe)
    if len(modalities) < 2 or (wanted is not None and len(modalities) != wanted):
        raise UsageError(
            f"align joins {'two' if wanted else 'two or more'} modalities, the call names "
            f"{len(modalities)}: {', '.join(modalities)}; align two, then `modalign add` the others"
        )


def check_new(out: Path) -> None:
    """Raise unless a folder is free, or holds nothing but an align that was interrupted."""
    if (out / SPACE_FILE).exists():
        raise UsageError(
            f"{out}: a space is there already; choose another --out, or delete the folder",
            folder=out,
        )
    names = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    ours = (WORK_FOLDER, STAGES_FOLDER, LOCK_FILE)
    foreign = [name for name in names if name not in ours and not name.endswith(TEMPORARY)]
    if foreign:
        raise UsageError(
            f"{out}: holds other files ({foreign[0]}), expected a new or empty folder; choose "
            "another --out",
            folder=out,
        )


def add_modality(
    space: Path,
    family: Family,
    pairs: Pairs,
    encoders: Mapping[str, Encoder],
    *,
    anchor: str,
    job: Job,
) -> None:
    """Train a later stage: one more modality against an anchor of the space.

    Args:
        space: The space's folder; only a new stage and space.json are written.
        family: The space's connectors; they grow.
        pairs: Of the new modality and the anchor.
        encoders: One for each.
        anchor: A modality of the space.
        job: How.

    Raises:
        DataError: Too few rows, a broken item, or a loss that is not finite.
    """
    check_rows(pairs)
    with locked(space):
        header = read_header(space)
        # Another process may have added it while this one waited.
        there = [m for entry in header["stages"] for m in read_stage(space, entry).modalities]
        check_anchor(anchor, pairs, there)
        encoded = job.encode(pairs, encoders)
        make_stage(
            space, family, encoded, encoders, job=job, anchor=anchor, parents=header["stages"]
        )


def make_stage(
    space: Path,
    family: Family,
    encoded: EncodedPairs,
    encoders: Mapping[str, Encoder],
    *,
    job: Job,
    anchor: str | None = None,
    parents: Sequence[Mapping[str, str]] = (),
) -> None:
    """Grow a family by a stage, train it, and write it."""
    brought = {name: encoder for name, encoder in encoders.items() if name != anchor}
    widths = {name: encoder.width for name, encoder in brought.items()}
    growth = family.growth(job.recipe, widths, anchor=anchor)
    part, objective = untrained(family, growth, encoded, job.recipe, seed=job.seed)
    plan = stage_plan(growth, encoded, encoders, job=job, parents=parents)
    work, result = run(space, f"{len(parents)}-{'+'.join(brought)}", objective, plan, job=job)
    temperature = objective.temperature
    family.remember(temperature)
    begin = time.perf_counter()
    settled = objective.settle()
    validation = paired_splits(encoded, growth, "validation")
    scoring = fit_scoring(
        family,
        job.recipe,
        growth,
        train=paired_splits(encoded, growth, "train"),
        validation=validation,
        seed=job.seed,
    )
    family.scoring |= scoring.by_direction
    measured = measure_all(family, validation, growth.directions)
    record = {
        **plan,
        "temperature": temperature,
        "trainable": counted(objective.parameters),
        **ways_record(family, growth, {n: e.fingerprint for n, e in encoders.items()}),
        "validation": {"directions": [d.as_json() for d in measured]},
        "steps": result.steps,
        "best_step": result.best_step,
        **({"out_of_time": True} if result.out_of_time else {}),
        **settled,
        "scoring": scoring.record,
        **choice_record(job, result),
    }
    spent = {**job.spent, "evaluate": round(time.perf_counter() - begin, 3)}
    notes = run_notes(encoded, result, spent)
    clear(work)
    write_stage(
        space,
        work.name,
        record=record,
        run=notes,
        weights={**part.state_dict(), **scoring.tensors},
        work=work,
    )
    shutil.rmtree(space / WORK_FOLDER, ignore_errors=True)


def untrained(
    family: Family, growth: Growth, encoded: EncodedPairs, recipe: Recipe, *, seed: int
) -> tuple[nn.Module, StageObjective]:
    """Grow a family by what a seed draws; return what grew, and the job of training it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        part = family.grow(recipe, growth)
    train, validation = (paired_splits(encoded, growth, split) for split in ("train", "validation"))
    joined = [*growth.widths] if growth.anchor is None else [*growth.widths, growth.anchor]
    job = family.objective(
        recipe,
        growth,
        train=train,
        validation=validation,
        seed=seed,
        rows=lambda split: encoded.joined(joined, split),
    )
    return part, job


def paired_splits(encoded: EncodedPairs, growth: Growth, split: str) -> list[PairedTables]:
    """Return the features and pairs of a split for every two modalities a direction joins."""
    joined: dict[frozenset[str], tuple[str, str]] = {}
    for direction in growth.directions:
        joined.setdefault(frozenset(direction), direction)
    return [encoded.paired(first, second, split) for first, second in joined.values()]


def stage_plan(
    growth: Growth,
    encoded: EncodedPairs,
    encoders: Mapping[str, Encoder],
    *,
    job: Job,
    parents: Sequence[Mapping[str, str]],
) -> dict[str, Any]:
    """Return what is known of a stage before it is trained: its run depends on nothing else."""
    added = growth.anchor is not None
    first, later = KINDS[job.recipe.family]
    plan = {
        "family": job.recipe.family,
        "kind": later if added else first,
        "recipe_name": job.recipe_name,
        "recipe": job.recipe.as_json(),
        "seed": job.seed,
        "encoders": {name: encoder_record(encoders[name]) for name in growth.widths},
        "directions": [list(direction) for direction in growth.directions],
        "pairs": pairs_record(encoded),
        "parents": {entry["name"]: entry["sha256"] for entry in parents},
        "versions": versions(),
    }
    if growth.anchor is not None:
        anchor = {"anchor": growth.anchor, "anchor_encoder": encoders[growth.anchor].fingerprint}
        plan |= anchor
    return plan


def encoder_record(encoder: Encoder) -> dict[str, Any]:
    """Return what a stage keeps of an encoder: enough to load it again and to refuse another."""
    return {
        "spec": lasting_spec(encoder.spec),
        "fingerprint": encoder.fingerprint,
        "description": encoder.describe(),
        "reads": encoder.reads,
        "output": encoder.output,
        "width": encoder.width,
    }


def lasting_spec(spec: str) -> str:
    """Return a spec whose file is named by its whole path: a space is used from anywhere."""
    parsed = Spec.parse(spec)
    path = Path(parsed.target)
    return str(replace(parsed, target=str(path.resolve()))) if path.exists() else spec


def run(
    space: Path, name: str, objective: Objective, plan: Mapping[str, Any], *, job: Job
) -> tuple[Path, FitResult]:
    """Train in a work folder of the space, going on where an interrupted run was."""
    work = space / WORK_FOLDER / name
    work.mkdir(parents=True, exist_ok=True)
    # What a killed writer left would be published with the stage.
    sweep(work)
    result = fit(
        objective,
        job.recipe,
        folder=work,
        run=hashlib.sha256(canonical_json(dict(plan))).hexdigest(),
        seed=job.seed,
        progress=job.progress,
        checkpoint_seconds=job.checkpoint_seconds,
        limit=job.limit,
    )
    return work, result


def run_notes(
    encoded: EncodedPairs, result: FitResult, evaluated: Mapping[str, float]
) -> dict[str, Any]:
    """Return what making a stage took; no part of what is proved."""
    return {
        "encoded": encoded.encoded,
        "seconds": {**encoded.seconds, "train": round(result.seconds, 3), **evaluated},
        "resumed_from": result.resumed_from,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "skipped": [vars(item) for item in encoded.pairs.skipped],
    }


def check_rows(pairs: Pairs) -> None:
    """Raise unless there is enough to train on and to measure."""
    sizes = pairs.split_sizes()
    for split in ("train", "validation"):
        if sizes.get(split, 0) < LEAST_ROWS:
            raise DataError(
                f"{pairs.source.name}: split {split} has {sizes.get(split, 0)} rows, expected "
                f"{LEAST_ROWS} or more; add rows, or leave the split column out to have one made",
                split=split,
                rows=sizes.get(split, 0),
            )


def check_same_encoder(encoder: Encoder, stage: Mapping[str, Any], *, modality: str) -> None:
    """Raise a MismatchError that names what differs unless it is the stage's encoder."""
    known = stage["encoders"][modality]
    if encoder.fingerprint != known["fingerprint"]:
        names = differences(known["description"], encoder.describe())
        raise MismatchError(
            f"encoder {modality}={encoder.spec}: not the one this space was made with, "
            f"{known['spec']}; differs: {', '.join(names)}; give that encoder, or align again",
            modality=modality,
            given=encoder.fingerprint,
            expected=known["fingerprint"],
        )


def ways_record(
    family: Family, growth: Growth, fingerprints: Mapping[str, str]
) -> dict[str, dict[str, str]]:
    """Return the hashes of what a stage's vectors pass through: galleries, then queries."""
    return {
        "embeddings": {
            name: family.way_sha256(family.gallery_way(name), fingerprints[name])
            for name in growth.widths
        },
        "maps": {
            name: family.way_sha256(way, fingerprints[way[SOURCE]])
            for name, way in family.ways_of(growth).items()
        },
    }


def counted(parameters: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the size of every trained tensor by name."""
    return {name: parameter.numel() for name, parameter in parameters.items()}


def check_anchor(anchor: str, pairs: Pairs, modalities: list[str]) -> None:
    """Raise unless a pair file joins one new modality to an anchor of the space."""
    check_known(anchor, modalities, what="anchor")
    new = [modality for modality in pairs.modalities if modality != anchor]
    if len(new) != 1 or anchor not in pairs.modalities:
        raise UsageError(
            f"add joins one new modality to the anchor {anchor}, the call names "
            f"{', '.join(pairs.modalities)}"
        )
    if new[0] in modalities:
        raise UsageError(
            f"modality {new[0]!r} is in this space already ({', '.join(modalities)}); give the "
            "new one another name, or align a new space",
            modality=new[0],
        )
