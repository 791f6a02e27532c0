"""Doctor: what on this machine would make a command fail, and what makes it slow."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import re
import shutil
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import torch

from modalign.features import cache_folder

# Adapters and formats that need an extra: (package, extra, what it is for).
EXTRAS = (
    ("onnxruntime", "onnx", "onnx: encoders"),
    ("pyarrow", "parquet", "Parquet files"),
)
MATRIX_WIDTH = 512
FREE_BYTES = 2**30


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        what: Its name.
        found: What is there.
        ok: False where some command will fail for it.
        advice: What to do, or "".
    """

    what: str
    found: str
    ok: bool = True
    advice: str = ""


def examine() -> list[Finding]:
    """Look at this machine."""
    return [
        Finding("python", platform.python_version()),
        *(_package(name) for name in _core_packages()),
        *(_extra(*entry) for entry in EXTRAS),
        _torchvision(),
        _cache(cache_folder()),
        _speed(torch.float32),
        _speed(torch.bfloat16),
        Finding("threads", f"{torch.get_num_threads()} of {os.cpu_count()} cores"),
        Finding("gpu", torch.cuda.get_device_name() if torch.cuda.is_available() else "none"),
    ]


def _core_packages() -> list[str]:
    """Return the names modalign itself requires, without extras."""
    lines = [line for line in requires("modalign") or [] if "extra ==" not in line]
    return [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in lines]


def _package(name: str) -> Finding:
    try:
        return Finding(name, version(name))
    except PackageNotFoundError:
        return Finding(name, "missing", False, "run: pip install modalign")


def _extra(package: str, extra: str, purpose: str) -> Finding:
    if importlib.util.find_spec(package) is None:
        return Finding(
            package, f"not installed; {purpose} need it: pip install 'modalign[{extra}]'"
        )
    return Finding(package, version(package))


def _torchvision() -> Finding:
    """A torchvision built for another torch breaks every image model of transformers."""
    if importlib.util.find_spec("torchvision") is None:
        return Finding("torchvision", "not installed; not needed")
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError, OSError) as error:
        line = str(error).splitlines()[0]
        advice = "it was built for another torch; run: pip uninstall torchvision"
        return Finding("torchvision", f"does not load ({line})", False, advice)
    return Finding("torchvision", version("torchvision"))


def _cache(folder: Path) -> Finding:
    there = next(path for path in [folder, *folder.parents] if path.exists())
    free = shutil.disk_usage(there).free
    found = f"{folder}, {free / 2**30:.1f} GiB free"
    if not (there.is_dir() and os.access(there, os.W_OK)):
        return Finding("cache", found, False, "it cannot be written; set MODALIGN_CACHE")
    if free < FREE_BYTES:
        return Finding("cache", found, False, "the disk is nearly full; free some space")
    return Finding("cache", found)


def _speed(dtype: torch.dtype) -> Finding:
    """Measure a matrix product for a tenth of a second."""
    left = torch.randn(MATRIX_WIDTH, MATRIX_WIDTH).to(dtype)
    _ = left @ left
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < 0.1:
        _ = left @ left
        count += 1
    rate = 2 * MATRIX_WIDTH**3 * count / (time.perf_counter() - begin) / 1e9
    name = str(dtype).removeprefix("torch.")
    slow = dtype is torch.bfloat16 and rate < 20
    advice = "this processor has no bfloat16 units: leave --precision at float32" if slow else ""
    return Finding(f"matrix product, {name}", f"{rate:.0f} GFLOP/s", True, advice)
