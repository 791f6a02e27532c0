"""Checkpoints: one safetensors file, with the run's state as JSON in its header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from modalign.storage import write_bytes


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], header: dict[str, Any]) -> None:
    """Write a checkpoint under another name, then rename it."""
    owned = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(owned, metadata={"modalign": json.dumps(header)}))


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
