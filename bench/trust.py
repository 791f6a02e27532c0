"""How far probabilities and thresholds can be trusted, on four kinds of data.

    python bench/trust.py --data ../shared/data [--set photos ...] [--recipe closed-form]

The sets are those of bench/recall.py, with all training rows up to --pairs and hub correction.
The validation queries are halved 20 times at random; a calibration is fitted on one half, and
its probabilities and thresholds are held against what the other half's results are.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from photo_tables import write_rows
from recall import SETS

from modalign import Space, align, load_space, read_pairs
from modalign.cli.output import bars
from modalign.recipes import named_recipe
from modalign.scoring import expected_calibration_error, fit_calibration, result_matches
from modalign.scoring.calibration import HITS, WANTED_PRECISIONS
from modalign.space.families import Sides
from modalign.space.paired import PairedTables
from modalign.storage import write_json

HALVINGS = 20


def main() -> None:
    options = arguments()
    options.work.mkdir(parents=True, exist_ok=True)
    shown = []
    for name in options.set or SETS:
        space, held = made(name, options)
        for source, target in ((held.first, held.second), (held.second, held.first)):
            shown.append({"set": name, **trust(space, held, source, target)})
            if not options.json:
                print_row(shown[-1])
    write_json(options.out, shown)
    if options.json:
        print(json.dumps(shown, indent=2))


def made(name: str, options: argparse.Namespace) -> tuple[Space, PairedTables]:
    """Align a set; return the space and its validation rows."""
    read, load = SETS[name]
    rows = read(options.data)
    train = [row for row in rows if row["split"] == "train"]
    random.Random(0).shuffle(train)
    held = [row for row in rows if row["split"] != "train"]
    file = write_rows(options.work / f"{name}-trust.jsonl", [*train[: options.pairs], *held])
    encoders = load(options.data)
    pairs = read_pairs(file, list(encoders), reads={m: e.reads for m, e in encoders.items()})
    folder, cache = options.work / f"{name}-trust", options.work / "features"
    shutil.rmtree(folder, ignore_errors=True)
    recipe = named_recipe(options.recipe).changed({"scoring": "chosen"})
    with bars() as progress:
        align(pairs, encoders, out=folder, recipe=recipe, cache=cache, progress=progress)
    space = load_space(folder)
    for modality, encoder in encoders.items():
        space.use_encoder(modality, encoder)
    first, second = encoders
    return space, space.encode_pairs(pairs, cache=cache).paired(first, second, "validation")


def trust(space: Space, held: PairedTables, source: str, target: str) -> dict[str, Any]:
    """Fit on halves of the queries and look at the others."""
    sides = Sides(space.family, held.tables).compared(source, target)
    similarity, rows = sides.best_results(HITS)
    matched = result_matches(rows, held.oriented(source), gallery=len(sides.gallery))
    errors: list[float] = []
    kept: dict[float, list[float]] = {wanted: [] for wanted in WANTED_PRECISIONS}
    for seed in range(HALVINGS):
        order = np.random.default_rng(seed).permutation(len(similarity))
        ours, theirs = np.array_split(order, 2)
        fitted = fit_calibration(
            similarity[ours].ravel(), matched[ours].ravel(), gallery=len(sides.gallery)
        )
        seen, right = similarity[theirs].ravel(), matched[theirs].ravel()
        errors.append(expected_calibration_error(fitted.probability(seen), right))
        for wanted, least in zip(WANTED_PRECISIONS, fitted.thresholds.values(), strict=True):
            if least is not None and (seen >= least).any():
                kept[wanted].append(float(right[seen >= least].mean()))
    return {
        "from": source,
        "to": target,
        "queries": len(similarity),
        "gallery": len(sides.gallery),
        "calibration_error": float(np.mean(errors)),
        "kept_precision": {
            f"{wanted:g}": {"mean": float(np.mean(found)), "halvings": len(found)}
            for wanted, found in kept.items()
            if found
        },
    }


def print_row(row: dict[str, Any]) -> None:
    """Print a direction."""
    kept = ", ".join(
        f"{wanted} wanted, {found['mean']:.3f} kept ({found['halvings']} of {HALVINGS})"
        for wanted, found in row["kept_precision"].items()
    )
    print(
        f"{row['set']}, {row['from']} -> {row['to']}: calibration error "
        f"{row['calibration_error']:.3f}; {kept or 'no threshold is suggested'}",
        flush=True,
    )


def arguments() -> argparse.Namespace:
    """Read the call."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    data = os.environ.get("MODALIGN_DATA", "../shared/data")
    parser.add_argument("--data", type=Path, default=Path(data))
    parser.add_argument("--set", action="append", choices=SETS, help="all by default")
    parser.add_argument("--pairs", type=int, default=4500, help="of a set, at most")
    parser.add_argument("--recipe", default="closed-form")
    parser.add_argument("--work", type=Path, default=Path("bench/output/photos"))
    parser.add_argument("--out", type=Path, default=Path("bench/output/trust.json"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not (options.data / "flickr8k").is_dir():
        sys.exit(f"{options.data}: no flickr8k there; say where the data is with --data")
    return options


if __name__ == "__main__":
    main()
