"""Checkpoints: safetensors files, with the run's state as JSON in the header."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from modalign.storage import writing

_SYSTEM_ERROR = re.compile(r"os error (\d+)")


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file under another name, then rename it; tensors are not copied.

    Raises:
        UsageError: The folder does not exist or may not be written.
        DataError: The disk is full; the old file is as it was.
    """
    owned = {name: tensor.contiguous() for name, tensor in tensors.items()}
    size = sum(tensor.nbytes for tensor in owned.values())
    with writing(path, size=size) as handle:
        try:
            save_file(owned, handle.name, metadata=metadata)
        except SafetensorError as error:
            number = _SYSTEM_ERROR.search(str(error))
            if number is None:
                raise
            # As Python's own writers raise it, so that a full disk is told as one.
            code = int(number[1])
            raise OSError(code, os.strerror(code), handle.name) from error


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], header: dict[str, Any]) -> None:
    """Write a checkpoint under another name, then rename it."""
    write_tensors(path, tensors, {"modalign": json.dumps(header)})


def read_checkpoint(path: Path, *, run: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Read the checkpoint of a run.

    Returns:
        Its tensors and header, or None where there is none, where it is another run's, or
        where it cannot be read: then the run begins anew.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("modalign", "{}"))
            if not isinstance(header, dict) or header.get("run") != run:
                return None
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError):
        return None
