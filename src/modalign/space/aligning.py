"""Making stages: `align` trains the first, `add_modality` every later one."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modalign.connectors.universal_projection import (
    Fusion,
    ModalityEntrance,
    OneEncoder,
    UniversalProjection,
)
from modalign.encoders import Encoder
from modalign.encoders.contract import canonical_json
from modalign.encoders.registry import Spec
from modalign.errors import DataError, MismatchError, UsageError, check_known
from modalign.features import cache_folder
from modalign.features.encoding import Progress, no_progress
from modalign.features.store import differences
from modalign.pairs import Pairs
from modalign.recipes import CHECKPOINT_SECONDS, OneEncoderRecipe
from modalign.space.encoded import EncodedPairs, encode_pairs, pairs_record
from modalign.space.objectives import (
    AddedObjective,
    JointObjective,
    PairedTables,
    fit_standardization,
    measure,
)
from modalign.space.stages import (
    SPACE_FILE,
    STAGES_FOLDER,
    WORK_FOLDER,
    path_sha256,
    read_header,
    read_stage,
    versions,
    write_stage,
)
from modalign.storage import LOCK_FILE, TEMPORARY, locked, sweep
from modalign.training import FitResult, fit
from modalign.training.loop import CHECKPOINT_FILE

FAMILY = "oneencoder"
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
    """

    recipe: OneEncoderRecipe
    recipe_name: str = "oneencoder"
    seed: int = 0
    device: str = "cpu"
    cache: Path | None = None
    skip_errors: bool = False
    progress: Progress = no_progress
    checkpoint_seconds: float = CHECKPOINT_SECONDS

    def encode(self, pairs: Pairs, encoders: Mapping[str, Encoder]) -> EncodedPairs:
        """Encode what the cache lacks."""
        return encode_pairs(
            pairs,
            encoders,
            cache=self.cache or cache_folder(),
            skip_errors=self.skip_errors,
            progress=self.progress,
        )


def build_model(feature_widths: Mapping[str, int], recipe: OneEncoderRecipe) -> OneEncoder:
    """Return an untrained first stage."""
    projection = UniversalProjection(
        recipe.width,
        depth=recipe.depth,
        heads=recipe.heads,
        feedforward=recipe.feedforward,
        dropout=recipe.dropout,
    )
    fusion = Fusion(recipe.width, kind=recipe.fusion)  # type: ignore[arg-type]
    return OneEncoder(projection, fusion, build_entrance(feature_widths, recipe))


def build_entrance(feature_widths: Mapping[str, int], recipe: OneEncoderRecipe) -> ModalityEntrance:
    """Return an untrained entrance for some modalities."""
    return ModalityEntrance(
        feature_widths,
        recipe.width,
        token=recipe.token,
        dropout=recipe.dropout,
        feature_dropout=recipe.feature_dropout,
    )


def align(pairs: Pairs, encoders: Mapping[str, Encoder], *, out: Path, job: Job) -> None:
    """Train the first stage of a new space.

    Interrupted at any point, the same call goes on where it was.

    Args:
        pairs: Of exactly two modalities.
        encoders: One for each.
        out: The space's folder; it must hold no space yet.
        job: How.

    Raises:
        UsageError: `out` is a space or holds other files, or there are not two modalities.
        DataError: Too few rows, a broken item, or a loss that is not finite.
    """
    if len(pairs.modalities) != 2:
        raise UsageError(
            f"align joins two modalities, the call names {len(pairs.modalities)}: "
            f"{', '.join(pairs.modalities)}; align two, then `modalign add` the others"
        )
    check_rows(pairs)
    check_new(out)
    with locked(out):
        # Another process may have made it while this one waited.
        check_new(out)
        encoded = job.encode(pairs, encoders)
        _first_stage(out, encoded, encoders, job)


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


def _first_stage(
    space: Path, encoded: EncodedPairs, encoders: Mapping[str, Encoder], job: Job
) -> None:
    first, second = encoded.pairs.modalities
    train, validation = splits(encoded, first, second)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed)
        model = build_model({m: encoders[m].width for m in (first, second)}, job.recipe)
    entrance = model.entrances[0]
    assert isinstance(entrance, ModalityEntrance)
    if job.recipe.standardize:
        for modality in (first, second):
            fit_standardization(entrance, modality, train.tables[modality])
    objective = JointObjective(
        model.to(job.device),
        train=train,
        validation=validation,
        recipe=job.recipe,
        seed=job.seed,
        device=job.device,
    )
    name = f"0-{first}+{second}"
    plan = stage_plan("universal-projection", encoded, encoders, job, parents={})
    work, result = run(space, name, objective, plan, job)
    record = {
        **plan,
        "temperature": objective.temperature,
        "trainable": counted(objective.parameters),
        "embeddings": embeddings(model, encoders, job.recipe),
    }
    _finish(space, name, work, record, model.state_dict(), model, validation, encoded, result, job)


def add_modality(
    space: Path,
    model: OneEncoder,
    pairs: Pairs,
    encoders: Mapping[str, Encoder],
    *,
    anchor: str,
    temperature: float,
    job: Job,
) -> None:
    """Train a later stage: one more modality against an anchor of the space.

    Args:
        space: The space's folder; only a new stage and space.json are written.
        model: The space's model; it gains an entrance.
        pairs: Of the new modality and the anchor.
        encoders: One for each.
        anchor: A modality of the space.
        temperature: The space's.
        job: How.

    Raises:
        DataError: Too few rows, a broken item, or a loss that is not finite.
    """
    check_rows(pairs)
    (new,) = [modality for modality in pairs.modalities if modality != anchor]
    with locked(space):
        header = read_header(space)
        # Another process may have added it while this one waited.
        there = [m for entry in header["stages"] for m in read_stage(space, entry).modalities]
        check_anchor(anchor, pairs, there)
        encoded = job.encode(pairs, encoders)
        train, validation = splits(encoded, new, anchor)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(job.seed)
            entrance = build_entrance({new: encoders[new].width}, job.recipe)
        if job.recipe.standardize:
            fit_standardization(entrance, new, train.tables[new])
        model.entrances.append(entrance.to(job.device))
        objective = AddedObjective(
            model,
            train=train,
            validation=validation,
            recipe=job.recipe.changed({"temperature": temperature}),
            seed=job.seed,
            device=job.device,
        )
        name = f"{len(header['stages'])}-{new}"
        parents = {entry["name"]: entry["sha256"] for entry in header["stages"]}
        plan = stage_plan("alignment-layer", encoded, {new: encoders[new]}, job, parents=parents)
        plan |= {"anchor": anchor, "anchor_encoder": encoders[anchor].fingerprint}
        work, result = run(space, name, objective, plan, job)
        record = {
            **plan,
            "temperature": temperature,
            "trainable": counted(objective.parameters),
            "embeddings": embeddings(model, {new: encoders[new]}, job.recipe),
        }
        weights = entrance.state_dict()
        _finish(space, name, work, record, weights, model, validation, encoded, result, job)


def stage_plan(
    kind: str,
    encoded: EncodedPairs,
    encoders: Mapping[str, Encoder],
    job: Job,
    *,
    parents: Mapping[str, str],
) -> dict[str, Any]:
    """Return what is known of a stage before it is trained: its run depends on nothing else."""
    return {
        "family": FAMILY,
        "kind": kind,
        "recipe_name": job.recipe_name,
        "recipe": job.recipe.as_json(),
        "seed": job.seed,
        "encoders": {name: encoder_record(encoder) for name, encoder in encoders.items()},
        "pairs": pairs_record(encoded),
        "parents": dict(parents),
        "versions": versions(),
    }


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
    space: Path, name: str, objective: Any, plan: Mapping[str, Any], job: Job
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
    )
    return work, result


def _finish(
    space: Path,
    name: str,
    work: Path,
    record: dict[str, Any],
    weights: Mapping[str, Tensor],
    model: OneEncoder,
    validation: PairedTables,
    encoded: EncodedPairs,
    result: FitResult,
    job: Job,
) -> None:
    begin = time.perf_counter()
    directions = [d.as_json() for d in measure(model, validation, device=job.device)]
    record["validation"] = {"directions": directions}
    record["steps"], record["best_step"] = result.steps, result.best_step
    seconds = {
        **encoded.seconds,
        "train": round(result.seconds, 3),
        "evaluate": round(time.perf_counter() - begin, 3),
    }
    skipped = [vars(item) for item in encoded.pairs.skipped]
    run = {
        "encoded": encoded.encoded,
        "seconds": seconds,
        "resumed_from": result.resumed_from,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "skipped": skipped,
    }
    (work / CHECKPOINT_FILE).unlink(missing_ok=True)
    write_stage(space, name, record=record, run=run, weights=weights, work=work)
    shutil.rmtree(space / WORK_FOLDER, ignore_errors=True)


def splits(encoded: EncodedPairs, first: str, second: str) -> tuple[PairedTables, PairedTables]:
    """Return the train and validation splits."""
    return (
        encoded.paired(first, second, "train"),
        encoded.paired(first, second, "validation"),
    )


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


def embeddings(
    model: OneEncoder, encoders: Mapping[str, Encoder], recipe: OneEncoderRecipe
) -> dict[str, str]:
    """Return the hash of what each modality's vectors pass through."""
    return {
        modality: path_sha256(model.path(modality), path_shape(recipe), encoder.fingerprint)
        for modality, encoder in encoders.items()
    }


def path_shape(recipe: OneEncoderRecipe) -> dict[str, Any]:
    """Return what the tensors of a path do not tell of it."""
    return {"heads": recipe.heads, "fusion": recipe.fusion, "token": recipe.token}


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
