"""The studies of `modalign compare` on the photos: Alt-MoE's ablations, and both families.

    python bench/ablations.py --data ../shared/data [--study moe-or-mlp ...] [--seeds 3]

Photos and captions (Flickr8k, 4,500 + 500) over MobileNetV2 and MiniLM, measured on validation
rows: training stops by them, and the recipes' defaults were chosen on them. Each run is kept in
the folder of --out, so an interrupted call goes on and studies share what they have in common.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line does

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from photo_tables import photo_row, read_photos, write_rows
from photos import load_encoders

from modalign import read_pairs
from modalign.cli.output import bars
from modalign.comparing import STUDIES, compare, explained, format_comparison, planned
from modalign.encoders import Encoder
from modalign.pairs import Pairs
from modalign.storage import write_json


def main() -> None:
    options = arguments()
    options.work.mkdir(parents=True, exist_ok=True)
    photos = [photo_row(photo) for photo in read_photos(options.data)]
    pairs = read_pairs(write_rows(options.work / "photos.jsonl", photos), ["image", "text"])
    loaded = load_encoders(options.data)
    encoders = {name: loaded[name] for name in pairs.modalities}
    shown = {}
    for name in options.study or STUDIES:
        shown[name] = run_study(name, pairs, encoders, options)
        if not options.json:
            print(f"{name}: {STUDIES[name][1]}")
            print(f"{format_comparison(shown[name])}\n", flush=True)
    print(json.dumps(shown, indent=2) if options.json else explained(next(iter(shown.values()))))


def run_study(
    name: str, pairs: Pairs, encoders: dict[str, Encoder], options: argparse.Namespace
) -> dict[str, Any]:
    """Run one study and keep its report."""
    settings = dict(text.split("=", 1) for text in options.set)
    comparison = planned(name, [], settings=settings, seeds=tuple(range(options.seeds)))
    with bars() as progress:
        shown = compare(
            pairs,
            encoders,
            comparison,
            out=options.out,
            cache=options.work / "features",
            progress=progress,
        )
    shown = {"study": name, **shown}
    write_json(options.out / f"{name}.json", shown)
    return shown


def arguments() -> argparse.Namespace:
    """Read the call."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    data = os.environ.get("MODALIGN_DATA", "../shared/data")
    parser.add_argument("--data", type=Path, default=Path(data))
    parser.add_argument(
        "--study", action="append", choices=STUDIES, help="as often as needed; all by default"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--work", type=Path, default=Path("bench/output/photos"), help="the table and features"
    )
    parser.add_argument("--out", type=Path, default=Path("bench/output/ablations"))
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="in all variants"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not (options.data / "flickr8k").is_dir():
        sys.exit(f"{options.data}: no flickr8k there; say where the data is with --data")
    return options


if __name__ == "__main__":
    main()
