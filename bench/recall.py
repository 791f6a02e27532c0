"""Recall for every recipe, at every number of pairs, on four kinds of data.

    python bench/recall.py --data ../shared/data [--set photos ...] [--pairs 500 ...] [--seeds 3]
        [--draw 1]

In the end one table, R@1 of every recipe; * where it is better than that of auto by more than
chance: where the 95 % interval of the difference, on the same queries, is above 0.

photos: Flickr8k over MobileNetV2 and MiniLM, five captions each; emoji: drawings over MobileNetV2,
English names over MiniLM; molecules: SMILES by character n-grams, descriptions over MiniLM;
german: captions by character n-grams, English ones over MiniLM. Every recipe is given the same
pairs and no more: as `modalign align` does, a tenth of them validate (there training stops, closed
forms and corrections are chosen) and the others train. Measured on the validation rows of each set,
which had no say in anything. The rows of a smaller number are among those of a larger one; all
seeds see the same ones, --draw takes others: the interval knows of queries alone, and what few
pairs teach is a matter of which. Every run is kept in the folder of --out, so an interrupted call
goes on.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line does

import argparse
import csv
import gzip
import json
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from photo_tables import photo_row, read_photos, write_rows
from photos import load_encoders

from modalign import load_encoder, read_pairs
from modalign.cli.output import bars
from modalign.comparing import compare, format_comparison
from modalign.comparing.variants import Comparison, Variant, with_settings
from modalign.encoders import Encoder
from modalign.evaluation import fraction
from modalign.storage import write_json

Row = dict[str, Any]
PAIRS = (250, 500, 1000, 2000, 4500)
# What the others are held against comes first.
RECIPES = ("auto", "mlp", "closed-form", "oneencoder", "alt-moe", "combined")


def main() -> None:
    options = arguments()
    options.work.mkdir(parents=True, exist_ok=True)
    shown = []
    for name in options.set or SETS:
        read, encoders = SETS[name]
        rows = read(options.data)
        given = [row for row in rows if row["split"] == "train"]
        random.Random(options.draw).shuffle(given)
        held = [{**row, "split": "test"} for row in rows if row["split"] != "train"]
        loaded = encoders(options.data)
        for count in sizes(options.pairs or PAIRS, len(given)):
            used = [*with_validation(given[:count]), *held]
            called = f"{name}-{count}" + (f"-draw-{options.draw}" if options.draw else "")
            file = write_rows(options.work / f"{called}.jsonl", used)
            report = measured(file, loaded, options, out=options.out / called)
            shown.append({**report, "set": name, "pairs": count, "measured": len(held)})
            if not options.json:
                print_rows(shown[-1])
    write_json(options.out / "recall.json", shown)
    print(json.dumps(shown, indent=2) if options.json else table(shown))


def sizes(wanted: Sequence[int], there: int) -> list[int]:
    """Return the numbers of pairs, each at most what there is."""
    return sorted({min(count, there) for count in wanted})


def with_validation(rows: Sequence[Row]) -> list[Row]:
    """Return rows to train on, of which every tenth one validates."""
    return [{**row, "split": "train" if i % 10 else "validation"} for i, row in enumerate(rows)]


def measured(
    file: Path, encoders: dict[str, Encoder], options: argparse.Namespace, *, out: Path
) -> dict[str, Any]:
    """Train what was not trained yet."""
    reads = {name: encoder.reads for name, encoder in encoders.items()}
    pairs = read_pairs(file, list(encoders), reads=reads)
    variants = tuple(Variant(name, name) for name in options.recipe or RECIPES)
    if options.budget is not None:
        variants = with_settings(variants, {"budget": str(options.budget)})
    comparison = Comparison(variants, seeds=tuple(range(options.seeds)), split="test")
    with bars() as progress:
        return compare(
            pairs,
            encoders,
            comparison,
            out=out,
            cache=options.work / "features",
            progress=progress,
        )


def print_rows(report: dict[str, Any]) -> None:
    """Print a line a recipe, against the first one."""
    print(f"\n{report['set']}, {report['pairs']} pairs, measured on {report['measured']} others")
    print(format_comparison(report), flush=True)


def table(shown: list[dict[str, Any]]) -> str:
    """Return a line for each set, number of pairs and direction, as Markdown has tables."""
    names = [variant["name"] for variant in shown[0]["variants"]]
    heads = ["set", "pairs", "direction", *names, f"{names[0]} over mlp"]
    rows = [line for report in shown for line in table_lines(report)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [heads, ["---"] * len(heads), *rows])


def table_lines(report: dict[str, Any]) -> list[list[str]]:
    """Return the cells of one set's directions, and of the seconds a run took."""
    variants, start = report["variants"], [report["set"], f"{report['pairs']:,}"]
    lines = []
    for entries in zip(*(variant["directions"] for variant in variants), strict=True):
        found = {v["name"]: e["recall_at_1"] for v, e in zip(variants, entries, strict=True)}
        ratio = f"{entries[0]['recall_at_1'] / found['mlp']:.2f}" if "mlp" in found else ""
        way = f"{entries[0]['from']} → {entries[0]['to']}"
        lines.append([*start, way, *map(recall_cell, entries), ratio])
        start = ["", ""]
    return [*lines, ["", "", "seconds", *(f"{v['seconds']:.0f}" for v in variants), ""]]


def recall_cell(entry: dict[str, Any]) -> str:
    """Return R@1, marked where it is better than the first recipe's by more than chance."""
    better = entry["difference_95"] is not None and entry["difference_95"][0] > 0
    return f"{fraction(entry['recall_at_1'])}{'*' if better else ''}"


def photos(data: Path) -> list[Row]:
    """Photos with their captions."""
    return [photo_row(photo) for photo in read_photos(data)]


def emoji(data: Path) -> list[Row]:
    """Drawings with their English names."""
    with open(data / "emoji/manifest.csv", encoding="utf-8", newline="") as file:
        return [
            {
                "image": str((data / "emoji" / row["image"]).resolve()),
                "text": row["en"],
                "split": row["split"],
            }
            for row in csv.DictReader(file)
        ]


def molecules(data: Path) -> list[Row]:
    """SMILES strings with their descriptions."""
    with open(data / "molecules/pairs.tsv", encoding="utf-8", newline="") as file:
        return [
            {"smiles": row["SMILES"], "text": row["description"], "split": row["split"]}
            for row in csv.DictReader(file, delimiter="\t")
        ]


def german(data: Path) -> list[Row]:
    """German sentences with their English ones."""
    with gzip.open(data / "multi30k_text/pairs.tsv.gz", "rt", encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [{"german": r["de"], "text": r["en"], "split": r["split"]} for r in rows]


def pictures_and_text(data: Path) -> dict[str, Encoder]:
    """MobileNetV2 and MiniLM."""
    loaded = load_encoders(data)
    return {name: loaded[name] for name in ("image", "text")}


def strings_and_text(name: str) -> Callable[[Path], dict[str, Encoder]]:
    """Return a function that loads character n-grams for a modality, and MiniLM."""

    def load(data: Path) -> dict[str, Encoder]:
        grams = load_encoder("builtin:ngrams", modality=name)
        return {name: grams, "text": load_encoders(data)["text"]}

    return load


SETS: dict[str, tuple[Callable[[Path], list[Row]], Callable[[Path], dict[str, Encoder]]]] = {
    "photos": (photos, pictures_and_text),
    "emoji": (emoji, pictures_and_text),
    "molecules": (molecules, strings_and_text("smiles")),
    "german": (german, strings_and_text("german")),
}


def arguments() -> argparse.Namespace:
    """Read the call."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    data = os.environ.get("MODALIGN_DATA", "../shared/data")
    parser.add_argument("--data", type=Path, default=Path(data))
    parser.add_argument("--set", action="append", choices=SETS, help="all by default")
    parser.add_argument("--pairs", action="append", type=int, help=f"by default {PAIRS}")
    parser.add_argument("--recipe", action="append", help=f"by default {', '.join(RECIPES)}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--draw", type=int, default=0, help="seed of the pairs; 0 by default")
    parser.add_argument("--budget", type=float, help="seconds of auto, its default by default")
    parser.add_argument(
        "--work", type=Path, default=Path("bench/output/photos"), help="tables and features"
    )
    parser.add_argument("--out", type=Path, default=Path("bench/output/recall"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not (options.data / "flickr8k").is_dir():
        sys.exit(f"{options.data}: no flickr8k there; say where the data is with --data")
    return options


if __name__ == "__main__":
    main()
