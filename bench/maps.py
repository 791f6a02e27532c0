"""Alt-MoE's maps: what a query costs, and the memory of training at the paper's size.

    python bench/maps.py

A query is one row of width 1280 mapped into 384, alone, as a space does it, on one core; the
first call is left out. Training is the training loop itself, some steps in both directions at
batch 512, float32 weights and AdamW, with its validations and checkpoints, in a process of its
own; the peak is of the whole process, with Python and torch in it.
"""

from __future__ import annotations

import measuring  # isort: skip  # before torch

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from measuring import Figure, note
from step import WIDTHS, sized, training_job

from modalign.encoders import Features
from modalign.space.aligning import new_family
from modalign.training import fit

# Recipe, milliseconds to stay under.
MAPS = (("alt-moe", 5.0), ("alt-moe-paper", 40.0))
MOST_MEMORY = 2 * 2**30


def main() -> None:
    options = measuring.parser(__doc__)
    options.add_argument("--queries", type=int, default=50)
    options.add_argument("--batch", type=int, default=512, help="pairs a training step")
    options.add_argument("--steps", type=int, default=6, help="training steps")
    options.add_argument("--width", type=int, help="by default the recipe's")
    options.add_argument("--training", action="store_true", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    torch.set_num_threads(1)
    if chosen.training:
        print(json.dumps(trained(chosen)))
        return
    figures = [query_time(name, limit, chosen) for name, limit in MAPS]
    measuring.print_figures("Alt-MoE's maps", [*figures, training_memory(chosen)], chosen)


def query_time(name: str, limit: float, options: argparse.Namespace) -> Figure:
    """Return how long one query's map takes."""
    note(f"map: {name}")
    recipe = sized(name, options)
    family = new_family(recipe, device="cpu")
    family.grow(recipe, family.growth(recipe, WIDTHS, anchor=None))
    way = family.query_way("image", "text")
    rng = np.random.default_rng(options.seed)
    queries = rng.standard_normal((options.queries + 1, WIDTHS["image"]), np.float32)
    taken = []
    for query in queries:
        begin = time.perf_counter()
        family.send(way, Features(query[None]))
        taken.append((time.perf_counter() - begin) * 1e3)
    found = median(taken[1:])
    return Figure(
        f"a query's map, {name}, width {recipe.width}, {recipe.experts} experts, one thread",
        f"under {limit:.0f} ms",
        f"{found:.1f} ms; nine of ten under {np.quantile(taken[1:], 0.9):.1f} ms",
        found < limit,
        {"milliseconds": taken[1:]},
    )


def training_memory(options: argparse.Namespace) -> Figure:
    """Return the peak memory of a process that trains at the paper's size."""
    note("training: alt-moe-paper")
    call = [sys.executable, __file__, "--training", "--batch", str(options.batch)]
    call += ["--steps", str(options.steps)]
    call += [] if options.width is None else ["--width", str(options.width)]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    return Figure(
        f"training alt-moe-paper at batch {options.batch}, peak of the process",
        f"under {MOST_MEMORY / 2**30:.0f} GiB",
        f"{found['peak'] / 2**30:.2f} GiB, {found['parameters']:,} parameters, "
        f"{found['before'] / 2**30:.2f} GiB before the model is built",
        found["peak"] < MOST_MEMORY,
        found,
    )


def trained(options: argparse.Namespace) -> dict[str, int]:
    """Train for some steps; return the parameters and the peak memory in bytes."""
    before = peak_bytes()
    recipe = sized("alt-moe-paper", options)
    objective, directions = training_job(recipe)
    epochs = max(1, options.steps // directions)
    shorter = recipe.changed({"min_steps": 1, "epochs": epochs, "validate_steps": 2})
    with tempfile.TemporaryDirectory() as folder:
        fit(
            objective,
            shorter,
            folder=Path(folder),
            run="bench",
            seed=options.seed,
            progress=lambda *told: note(f"{told[0]} {told[1]} of {told[2]}"),
        )
    count = sum(parameter.numel() for parameter in objective.parameters.values())
    return {"peak": peak_bytes(), "before": before, "parameters": count}


def peak_bytes() -> int:
    """Return the largest resident size of this process so far."""
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


if __name__ == "__main__":
    main()
