"""How often forecasts hold: the largest numbers of pairs left out, on four kinds of data.

    python bench/forecast.py --data ../shared/data [--set photos ...] [--pairs 4500]

The sets are those of bench/recall.py. A closed form is fitted to nested parts of the training
rows; each part that is larger than three others is forecast from these. An interval of 80 % should
hold in four cases of five.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

from photo_tables import write_rows
from recall import SETS

from modalign import read_pairs
from modalign.cli.output import bars
from modalign.probing.trials import forecast_pairs
from modalign.space.encoded import encode_pairs
from modalign.storage import write_json


def main() -> None:
    options = arguments()
    options.work.mkdir(parents=True, exist_ok=True)
    shown = {name: forecast(name, options) for name in options.set or SETS}
    write_json(options.out, shown)
    if options.json:
        print(json.dumps(shown, indent=2))
        return
    cases = []
    for name, found in shown.items():
        for way in found["directions"]:
            held = [case["held"] for case in way["left_out"]]
            cases += held
            sizes = ", ".join(f"{e['items']:,}: {e['recall_at_1']:.3f}" for e in way["measured"])
            print(f"{name}, {way['from']} -> {way['to']}: {sizes}")
            print(f"  {sum(held)} of {len(held)} forecasts held")
            for entry in way["forecast"][1:]:
                low, high = entry["interval_80"]
                print(f"  {entry['items']:,}: {entry['recall_at_1']:.3f} ({low:.3f}-{high:.3f})")
    print(f"in all {sum(cases)} of {len(cases)} held: {sum(cases) / len(cases):.0%}")


def forecast(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Forecast one set, from the features of bench/recall.py."""
    read, load = SETS[name]
    rows = read(options.data)
    train = [row for row in rows if row["split"] == "train"]
    random.Random(0).shuffle(train)
    held = [row for row in rows if row["split"] != "train"]
    file = write_rows(options.work / f"{name}-forecast.jsonl", [*train[: options.pairs], *held])
    encoders = load(options.data)
    reads = {modality: encoder.reads for modality, encoder in encoders.items()}
    with bars() as progress:
        encoded = encode_pairs(
            read_pairs(file, list(encoders), reads=reads),
            encoders,
            cache=options.work / "features",
            progress=progress,
        )
        first, second = encoders
        return forecast_pairs(
            encoded.paired(first, second, "train"),
            encoded.paired(first, second, "validation"),
            seeds=range(options.seeds),
            wanted=None,
            progress=progress,
        )


def arguments() -> argparse.Namespace:
    """Read the call."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    data = os.environ.get("MODALIGN_DATA", "../shared/data")
    parser.add_argument("--data", type=Path, default=Path(data))
    parser.add_argument("--set", action="append", choices=SETS, help="all by default")
    parser.add_argument("--pairs", type=int, default=4500, help="of a set, at most")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("bench/output/photos"))
    parser.add_argument("--out", type=Path, default=Path("bench/output/forecast.json"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not (options.data / "flickr8k").is_dir():
        sys.exit(f"{options.data}: no flickr8k there; say where the data is with --data")
    return options


if __name__ == "__main__":
    main()
