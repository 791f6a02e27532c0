"""Stages on disk: immutable folders of trained weights, each naming its parents by hash.

    space.json                    format, and each stage's name and sha256 of its stage.json
    stages/0-image+text/          weights.safetensors, stage.json, log.jsonl, run.json
    stages/1-audio/               the same

Adding a stage writes one new folder and a new space.json, both by rename; no earlier file is
opened for writing. `run.json` holds what making the stage took, the only file that two equal
runs may write differently; no hash covers it.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from modalign.encoders.contract import canonical_json
from modalign.errors import CorruptError, DataError, UsageError
from modalign.storage import publish_folder, read_json, sha256_file, write_bytes, write_json

FORMAT = 1
SPACE_FILE = "space.json"
STAGE_FILE = "stage.json"
WEIGHTS_FILE = "weights.safetensors"
RUN_FILE = "run.json"


@dataclass(frozen=True)
class Stage:
    """One immutable step of a space's training.

    Attributes:
        name: Its folder below `stages`.
        record: What stage.json holds.
        run: What making it took; not part of what is proved.
    """

    name: str
    record: dict[str, Any]
    run: dict[str, Any]

    @property
    def modalities(self) -> list[str]:
        """The modalities this stage brought."""
        return list(self.record["encoders"])

    @property
    def trainable_parameters(self) -> int:
        """Numbers trained in this stage."""
        return sum(self.record["trainable"].values())


def write_stage(
    space: Path, name: str, *, record: dict[str, Any], weights: Mapping[str, Tensor], work: Path
) -> None:
    """Finish a stage in `work`, move it into the space, and name it in space.json.

    Args:
        space: The space's folder.
        name: The stage's name.
        record: What stage.json shall hold; the weights' hash is added.
        weights: Trained tensors and figures features are standardised with.
        work: A folder inside the space that holds the stage's log and run.json.
    """
    owned = {key: tensor.detach().cpu().contiguous() for key, tensor in weights.items()}
    data = save(owned)
    write_bytes(work / WEIGHTS_FILE, data)
    write_json(work / STAGE_FILE, {**record, "weights_sha256": hashlib.sha256(data).hexdigest()})
    (space / "stages").mkdir(exist_ok=True)
    # A folder of that name which no header names is what a killed run left.
    publish_folder(work, space / "stages" / name, replace=True)
    entry = {"name": name, "sha256": sha256_file(space / "stages" / name / STAGE_FILE)}
    write_json(
        space / SPACE_FILE,
        {"format": FORMAT, "stages": [*read_header(space, missing_ok=True)["stages"], entry]},
    )


def read_header(space: Path, *, missing_ok: bool = False) -> dict[str, Any]:
    """Read space.json.

    Raises:
        UsageError: The folder is no space.
        DataError: The space is of a newer format, or the file is broken.
    """
    path = space / SPACE_FILE
    if not path.exists():
        if missing_ok:
            return {"format": FORMAT, "stages": []}
        raise UsageError(
            f"{space}: no space here (there is no {SPACE_FILE}), expected a folder that "
            "`modalign align` wrote; check the path, or run the align that was interrupted again",
            folder=space,
        )
    header = read_json(path)
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        found = header.get("format") if isinstance(header, dict) else None
        raise DataError(
            f"{path}: format {found}, this modalign reads {FORMAT}; upgrade modalign to read it",
            file=path,
            found=found,
        )
    return dict(header)


def read_stage(space: Path, name: str) -> Stage:
    """Read a stage's records.

    Raises:
        CorruptError: A file is missing or not JSON.
    """
    folder = space / "stages" / name
    return Stage(name, dict(read_json(folder / STAGE_FILE)), dict(read_json(folder / RUN_FILE)))


def read_weights(space: Path, stage: Stage) -> dict[str, Tensor]:
    """Read a stage's tensors.

    Raises:
        CorruptError: The file is missing, broken, or not what was written.
    """
    path = space / "stages" / stage.name / WEIGHTS_FILE
    data = path.read_bytes() if path.exists() else b""
    if hashlib.sha256(data).hexdigest() != stage.record["weights_sha256"]:
        raise CorruptError(
            f"{path}: stage {stage.name} is not what was written (sha256 differs from "
            f"{STAGE_FILE}); restore the file from a copy, or align again",
            file=path,
            stage=stage.name,
        )
    try:
        return load(data)
    except SafetensorError as error:
        raise CorruptError(f"{path}: stage {stage.name}: {error}", file=path) from error


def stage_problems(space: Path, header: Mapping[str, Any]) -> dict[str, list[str]]:
    """Re-hash every stage; return what is wrong with each, nothing where all is well."""
    entries = {entry["name"]: entry["sha256"] for entry in header["stages"]}
    return {name: _problems(space, name, sha256, entries) for name, sha256 in entries.items()}


def _problems(space: Path, name: str, sha256: str, entries: Mapping[str, str]) -> list[str]:
    folder = space / "stages" / name
    missing = [f for f in (STAGE_FILE, WEIGHTS_FILE, RUN_FILE) if not (folder / f).is_file()]
    if missing:
        return [f"{folder / file}: missing" for file in missing]
    problems = []
    if sha256_file(folder / STAGE_FILE) != sha256:
        problems.append(f"{folder / STAGE_FILE}: changed since it was written")
    try:
        record = dict(read_json(folder / STAGE_FILE))
    except DataError as error:
        return [*problems, str(error)]
    if sha256_file(folder / WEIGHTS_FILE) != record.get("weights_sha256"):
        problems.append(f"{folder / WEIGHTS_FILE}: changed since it was written")
    for parent, expected in record.get("parents", {}).items():
        if entries.get(parent) != expected:
            problems.append(f"{folder / STAGE_FILE}: parent {parent} is not the one it grew from")
    return problems


def path_sha256(tensors: Mapping[str, Tensor], shape: Mapping[str, Any], encoder: str) -> str:
    """Return the hash of all that a modality's vectors pass through.

    Args:
        tensors: The weights on its way, by name.
        shape: What the weights do not tell: heads, fusion.
        encoder: Its encoder's fingerprint.
    """
    digest = hashlib.sha256(canonical_json({"shape": dict(shape), "encoder": encoder}))
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.view(torch.uint8).numpy().tobytes() if tensor.ndim else b"")
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Return what computed a stage."""
    names = ("modalign", "torch", "transformers", "numpy")
    return {name: version(name) for name in names} | {"python": platform.python_version()}
