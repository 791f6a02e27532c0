"""Peak resident memory of aligning a million vectors by another million, as one command.

    python bench/memory.py

Vectors are drawn into two .npy files, and `modalign align` is run on them in a process of its own:
read, hashed, stored as float16, standardised, trained on, measured. Memory does not depend on the
number of steps, so a learning rate that changes nothing and a patience of 1 end it early. Mapped
pages of files count as resident here.
"""

from __future__ import annotations

import measuring  # isort: skip  # before torch

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from measuring import Figure, note, timed

TARGET_GIB = 3.0
BLOCK = 50_000
UNIT = 2**20 if sys.platform != "darwin" else 2**30  # ru_maxrss a GiB: it is in KiB, or in bytes


def main() -> None:
    options = measuring.parser(__doc__)
    options.add_argument("--rows", type=int, default=1_000_000)
    options.add_argument("--width", type=int, default=384)
    options.add_argument("--validation", type=float, default=0.02, help="share held out")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="modalign-memory-") as folder:
        figure = peak_of_align(Path(folder), chosen)
    measuring.print_figures("Memory of `modalign align`", [figure], chosen)


def peak_of_align(folder: Path, options: argparse.Namespace) -> Figure:
    """Return the peak resident memory of one `modalign align`."""
    note("memory: drawing vectors")
    draw(folder, options)
    note("memory: aligning")
    seconds = timed(lambda: run_align(folder, options))
    # Of the largest child: there is one.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / UNIT
    return Figure(
        f"peak memory of aligning {options.rows:,} x {options.width}",
        f"under {TARGET_GIB:.0f} GiB",
        f"{peak:.2f} GiB, {seconds:.0f} s",
        peak < TARGET_GIB,
        {"peak_gib": peak, "seconds": seconds},
    )


def draw(folder: Path, options: argparse.Namespace) -> None:
    """Write vectors of two modalities and the pairs between them, a block at a time."""
    rng = np.random.default_rng(options.seed)
    shape = (options.rows, options.width)
    for name in ("a", "b"):
        path = folder / f"{name}.npy"
        vectors = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        for start in range(0, options.rows, BLOCK):
            part = vectors[start : start + BLOCK]
            part[:] = rng.standard_normal(part.shape, np.float32)
    with (folder / "pairs.csv").open("w", encoding="utf-8") as file:
        file.write("a,b\n")
        file.writelines(f"{row},{row}\n" for row in range(options.rows))


def run_align(folder: Path, options: argparse.Namespace) -> None:
    """Run the command as a user would; the first validations are the last."""
    command = f"""align pairs.csv --encoder a=vectors:a.npy --encoder b=vectors:b.npy --out space
        --cache cache --validation {options.validation} --seed {options.seed}
        --learning-rate 1e-12 --patience 1 --json"""
    paths = [str(measuring.REPOSITORY / "src"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    subprocess.run(
        [sys.executable, "-m", "modalign", *command.split()],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        check=True,
    )


if __name__ == "__main__":
    main()
