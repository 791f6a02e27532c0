"""Stages on disk: immutable folders of trained weights, each naming its parents by hash.

    space.json                    format, and each stage's name and sha256 of its stage.json
    stages/0-image+text/          weights.safetensors, stage.json, log.jsonl, run.json
    stages/1-audio/               the same

Adding a stage writes one new folder and a new space.json, both by rename; no earlier file is
opened for writing. `stage.json` holds the hashes of the weights and the log; `run.json` holds
what making the stage took, the only file that two equal runs may write differently, and its own
hash.
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
from safetensors.torch import load
from torch import Tensor

from modalign.encoders.contract import canonical_json
from modalign.errors import CorruptError, DataError, UsageError
from modalign.gallery import HEADER_FILE as GALLERY_FILE
from modalign.storage import publish_folder, read_json, sha256_file, write_json
from modalign.training.checkpoints import write_tensors
from modalign.training.loop import LOG_FILE

FORMAT = 1
SPACE_FILE = "space.json"
STAGES_FOLDER = "stages"
WORK_FOLDER = "work"
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
    space: Path,
    name: str,
    *,
    record: Mapping[str, Any],
    run: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    work: Path,
) -> None:
    """Finish a stage in `work`, move it into the space, and name it in space.json.

    Args:
        space: The space's folder.
        name: The stage's name.
        record: What stage.json shall hold; the hashes of the weights and the log are added.
        run: What run.json shall hold; its own hash is added.
        weights: Trained tensors and figures features are standardised with.
        work: A folder inside the space that holds the stage's log.
    """
    owned = {key: tensor.detach() for key, tensor in weights.items()}
    write_tensors(work / WEIGHTS_FILE, owned)
    hashes = {
        "weights_sha256": sha256_file(work / WEIGHTS_FILE),
        "log_sha256": sha256_file(work / LOG_FILE),
    }
    write_json(work / STAGE_FILE, {**record, **hashes})
    write_json(work / RUN_FILE, {**run, "run_sha256": json_sha256(run)})
    (space / STAGES_FOLDER).mkdir(exist_ok=True)
    # A folder of that name which no header names is what a killed run left.
    publish_folder(work, space / STAGES_FOLDER / name, replace=True)
    entry = {"name": name, "sha256": sha256_file(space / STAGES_FOLDER / name / STAGE_FILE)}
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
        raise UsageError(f"{space}: {_no_space(space)}", folder=space)
    header = read_json(path)
    found = header.get("format") if isinstance(header, dict) else None
    if isinstance(found, int) and found > FORMAT:
        raise DataError(
            f"{path}: format {found}, this modalign reads {FORMAT}; upgrade modalign to read it",
            file=path,
            found=found,
        )
    if found != FORMAT or not _lists_stages(header):
        raise CorruptError(
            f"{path}: is not what was written, expected the names and hashes of stages; restore "
            "the file from a copy, or align again",
            file=path,
        )
    return dict(header)


def _no_space(folder: Path) -> str:
    """Return what is there instead of a space, and the way out."""
    if not folder.exists():
        return "there is no such folder, expected one that `modalign align` wrote; check the path"
    if (folder / GALLERY_FILE).exists():
        return "is a gallery, expected the space it was made with; the space is named first"
    return (
        f"no space here (there is no {SPACE_FILE}), expected a folder that `modalign align` "
        "wrote; check the path, or run the align that was interrupted again"
    )


def _lists_stages(header: Mapping[str, Any]) -> bool:
    stages = header.get("stages")
    return isinstance(stages, list) and all(
        isinstance(entry, dict) and {type(entry.get(key)) for key in ("name", "sha256")} == {str}
        for entry in stages
    )


def read_stage(space: Path, entry: Mapping[str, str]) -> Stage:
    """Read a stage's records.

    Args:
        space: The space's folder.
        entry: What space.json says of the stage: its name, and the hash of its stage.json.

    Raises:
        CorruptError: A file is missing or not what was written.
    """
    folder = space / STAGES_FOLDER / entry["name"]
    for name in (STAGE_FILE, RUN_FILE):
        if not (folder / name).is_file():
            raise _not_as_written(folder / name, "is missing", entry["name"])
    if sha256_file(folder / STAGE_FILE) != entry["sha256"]:
        raise _not_as_written(folder / STAGE_FILE, "changed since it was written", entry["name"])
    run = read_json(folder / RUN_FILE)
    if _run_changed(run):
        raise _not_as_written(folder / RUN_FILE, "changed since it was written", entry["name"])
    return Stage(entry["name"], dict(read_json(folder / STAGE_FILE)), dict(run))


def _not_as_written(path: Path, what: str, stage: str) -> CorruptError:
    return CorruptError(
        f"{path}: {what}, stage {stage} cannot be used; restore the file from a copy, or align "
        "again",
        file=path,
        stage=stage,
    )


def _run_changed(run: Any) -> bool:
    if not isinstance(run, dict):
        return True
    rest = {key: value for key, value in run.items() if key != "run_sha256"}
    return bool(run.get("run_sha256") != json_sha256(rest))


def json_sha256(value: Mapping[str, Any]) -> str:
    """Return the hash of a JSON object, however it is laid out."""
    return hashlib.sha256(canonical_json(dict(value))).hexdigest()


def read_weights(space: Path, stage: Stage) -> dict[str, Tensor]:
    """Read a stage's tensors.

    Raises:
        CorruptError: The file is missing, broken, or not what was written.
    """
    path = space / STAGES_FOLDER / stage.name / WEIGHTS_FILE
    if not path.is_file():
        raise _not_as_written(path, "is missing", stage.name)
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != stage.record["weights_sha256"]:
        raise _not_as_written(path, "changed since it was written", stage.name)
    try:
        return load(data)
    except SafetensorError as error:
        raise CorruptError(f"{path}: stage {stage.name}: {error}", file=path) from error


def stage_problems(space: Path, header: Mapping[str, Any]) -> dict[str, list[str]]:
    """Re-hash every stage; return what is wrong with each, nothing where all is well."""
    entries = {entry["name"]: entry["sha256"] for entry in header["stages"]}
    return {name: _problems(space, name, sha256, entries) for name, sha256 in entries.items()}


def _problems(space: Path, name: str, sha256: str, entries: Mapping[str, str]) -> list[str]:
    folder = space / STAGES_FOLDER / name
    files = (STAGE_FILE, WEIGHTS_FILE, LOG_FILE, RUN_FILE)
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        return [f"{folder / file}: missing" for file in missing]
    if sha256_file(folder / STAGE_FILE) != sha256:
        # It names the hashes of the others: without it nothing can be said of them.
        return [f"{folder / STAGE_FILE}: changed since it was written"]
    record = dict(read_json(folder / STAGE_FILE))
    changed = [
        file
        for file, key in ((WEIGHTS_FILE, "weights_sha256"), (LOG_FILE, "log_sha256"))
        if sha256_file(folder / file) != record[key]
    ]
    try:
        changed += [RUN_FILE] if _run_changed(read_json(folder / RUN_FILE)) else []
    except CorruptError:
        changed.append(RUN_FILE)
    problems = [f"{folder / file}: changed since it was written" for file in changed]
    for parent, expected in record["parents"].items():
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
