"""From a name or a folder to loaded weights: found, hashed, complete, or refused."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from modalign.encoders.hub.architectures import Tower
from modalign.encoders.hub.options import Options
from modalign.errors import DataError, UsageError

# In the order in which transformers looks for them: (file, index of several files).
WEIGHTS = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "spm.model",
    "tokenizer.model",
)
PROCESSOR_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
# Parameters that only pretraining uses; encoding never reads them.
NEVER_READ = ("masked_spec_embed", "mask_token")
LOADING_ERRORS = (
    OSError,
    ValueError,
    RuntimeError,
    KeyError,
    ImportError,
    EOFError,
    SafetensorError,
    pickle.UnpicklingError,
)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the log and the progress bars of transformers, then put them back."""
    verbosity = transformers_logging.get_verbosity()
    # Not disable_progress_bar: it would silence the hub's downloads too.
    hook = transformers_logging.set_tqdm_hook(_no_bar)
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.set_tqdm_hook(hook)


def _no_bar(make_bar: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> Any:
    return make_bar(*positional, **{**named, "disable": True})


def find_folder(target: str, options: Options, *, spec: str) -> Path:
    """Return the folder of a checkpoint: the one named, or the hub's snapshot of that name.

    Raises:
        UsageError: A revision is given twice, or for a folder.
        DataError: There is no such folder, nor such a name in reach; or it has no config.json.
    """
    folder = Path(target).expanduser()
    if folder.is_dir():
        if options.revision:
            raise UsageError(
                f"encoder {spec}: a folder has no revision, and revision is "
                f"{options.revision!r}; leave it out",
                revision=options.revision,
            )
    elif folder.is_absolute() or target.startswith((".", "~")):
        raise DataError(f"encoder {spec}: there is no folder {target}", folder=target)
    else:
        folder = _snapshot(target, options, spec=spec)
    if not (folder / "config.json").is_file():
        raise DataError(
            f"encoder {spec}: no config.json in the folder, expected what save_pretrained "
            "of transformers writes; name that folder",
            folder=str(folder),
        )
    return folder


def _snapshot(target: str, options: Options, *, spec: str) -> Path:
    name, _, revision = target.partition("@")
    if revision and options.revision:
        raise UsageError(
            f"encoder {spec}: revision is given twice, {revision!r} and {options.revision!r}",
            revision=options.revision,
        )
    wanted = ["config.json", *TOKENIZER_FILES, *PROCESSOR_FILES]
    if options.trust_remote_code:
        wanted.append("*.py")
    common: dict[str, Any] = {
        "revision": revision or options.revision,
        "local_files_only": options.offline,
        "ignore_patterns": ["*/*"],
    }
    try:
        folder = Path(snapshot_download(name, allow_patterns=wanted, **common))
        for pattern in ("model*.safetensors*", "pytorch_model*"):
            # Old checkpoints exist in both forms; one is enough.
            if not options.offline and not _weight_index(folder):
                snapshot_download(name, allow_patterns=[pattern], **common)
    except (OSError, ValueError, EntryNotFoundError) as error:
        tried = "offline, in the local cache only" if options.offline else "on the hub"
        raise DataError(
            f"encoder {spec}: {target!r} is no folder here, and was not found {tried} "
            f"({first_line(error)}); check the name, or download it first and name its folder",
            name=name,
        ) from error
    return folder


def _weight_index(folder: Path) -> Path | None:
    """Return the weight file, or the index of several, that transformers would load."""
    for names in WEIGHTS:
        for name in names:
            if (folder / name).is_file():
                return folder / name
    return None


def read_config(folder: Path, *, spec: str) -> dict[str, Any]:
    """Return config.json.

    Raises:
        DataError: It is no JSON object with a model_type.
    """
    config = _read_json(folder / "config.json", spec=spec)
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise DataError(
            f"encoder {spec}: config.json has no model_type, expected a configuration "
            "of transformers; models of other libraries have adapters of their own",
            folder=str(folder),
        )
    return config


def _read_json(path: Path, *, spec: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(
            f"encoder {spec}: {path.name} is no JSON ({error}); download the model again",
            file=str(path),
        ) from error


def weight_files(folder: Path, *, spec: str) -> list[Path]:
    """Return the weight files that will be loaded.

    Raises:
        DataError: There are none, or the index names one that is missing.
    """
    index = _weight_index(folder)
    if index is None:
        raise DataError(
            f"encoder {spec}: no weights in the folder, expected "
            f"{' or '.join(name for names in WEIGHTS for name in names)}; download the model again",
            folder=str(folder),
        )
    if index.suffix != ".json":
        return [index]
    weight_map = _read_json(index, spec=spec).get("weight_map", {})
    files = [folder / name for name in sorted(set(weight_map.values()))]
    for file in files:
        if not file.is_file():
            raise DataError(
                f"encoder {spec}: {index.name} names {file.name}, which is missing; "
                "download the model again",
                file=str(file),
            )
    return files


def input_files(folder: Path, names: tuple[str, ...], *, spec: str) -> dict[str, str]:
    """Return the sha256 of every file that shapes the network's input.

    Raises:
        DataError: None of them is there, or one is broken.
    """
    found = [name for name in names if (folder / name).is_file()]
    if not found:
        raise DataError(
            f"encoder {spec}: the folder has none of {', '.join(names)}, so how the input is "
            "prepared is unknown; save the tokenizer or processor beside the model",
            folder=str(folder),
        )
    for name in found:
        if name.endswith(".json"):
            _read_json(folder / name, spec=spec)
    return {name: file_sha256(folder / name) for name in found}


def file_sha256(path: Path) -> str:
    """Return a file's sha256, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def load_model(folder: Path, tower: Tower, options: Options, *, spec: str) -> torch.nn.Module:
    """Load a tower for encoding: eval mode, no gradients.

    Raises:
        DataError: The weights are broken, do not fit, or lack a part that encoding reads.
    """
    files = weight_files(folder, spec=spec)
    model_class = getattr(transformers, tower.model_class)
    try:
        with quiet():
            model, report = model_class.from_pretrained(
                folder,
                config=_tower_config(folder, model_class, tower, options),
                dtype=getattr(torch, options.dtype),
                use_safetensors=files[0].suffix == ".safetensors",
                local_files_only=True,
                trust_remote_code=options.trust_remote_code,
                output_loading_info=True,
            )
    except LOADING_ERRORS as error:
        raise DataError(
            f"encoder {spec}: {', '.join(file.name for file in files)} could not be loaded as "
            f"{tower.model_class} ({first_line(error)}); download the model again",
            folder=str(folder),
        ) from error
    _check_complete(report["missing_keys"], tower, options, spec=spec)
    loaded: torch.nn.Module = model.eval().requires_grad_(False)
    return loaded


def _tower_config(folder: Path, model_class: Any, tower: Tower, options: Options) -> Any:
    """Return the configuration that the tower is built from.

    Of a checkpoint with two towers the shared space's width stands at the top, and the class of
    one tower would read its own, which may say something else.
    """
    whole = transformers.AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=options.trust_remote_code
    )
    config_class = getattr(model_class, "config_class", None)
    if config_class is None or isinstance(whole, config_class):
        return whole
    part = config_class.from_pretrained(folder, local_files_only=True)
    if tower.projection:
        part.projection_dim = whole.projection_dim
    return part


def _check_complete(missing: set[str], tower: Tower, options: Options, *, spec: str) -> None:
    """Refuse a model some of whose parts would be random numbers."""
    unread = {*NEVER_READ}
    if options.pooling not in ("pooler", "projection"):
        unread |= {"pooler"}
    if options.pooling != "projection":
        unread |= {tower.projection}
    if tower.model_class == "WhisperModel":
        unread |= {"decoder"}
    random = sorted(name for name in missing if unread.isdisjoint(name.split(".")))
    if random:
        shown = ", ".join(random[:3]) + (", ..." if len(random) > 3 else "")
        raise DataError(
            f"encoder {spec}: the weights lack {len(random)} parts of {tower.model_class} "
            f"({shown}), which would be random; choose another pooling if only a pooler is "
            "missing, else another checkpoint",
            missing=random,
        )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, for a message of one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
