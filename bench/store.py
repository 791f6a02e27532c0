"""Encoding through the feature store, against the bare encoder; and rows read at random from it.

    python bench/store.py --data ../shared/data

Overhead: `encode_items` into a fresh cache (hashing, encoding, float16, fsync) against
`encoder.encode` of the same items in the same exact mode, part by part in turn. Rows: batches of
random rows from a store in one shard and in many.
"""

from __future__ import annotations

import measuring  # isort: skip  # before torch

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from measuring import Figure, alternated, median_ratio, note, skipped, timed

from modalign.encoders import Encoder, Features, load_encoder
from modalign.features import FeatureStore, encode_items
from modalign.features.encoding import SHARD_ROWS
from modalign.pairs import Items

MOST_OVERHEAD = 0.05
LEAST_ROWS_PER_SECOND = 500_000
OVERHEAD_TARGET = f"at most {MOST_OVERHEAD:.0%} more"


def main() -> None:
    options = measuring.parser(__doc__)
    measuring.add_data(options)
    options.add_argument("--limit", type=int, default=2500, help="photos encoded, of 5000")
    options.add_argument("--texts", type=int, default=1000, help="captions encoded")
    options.add_argument(
        "--rounds", type=int, default=5, help="parts encoded by both sides in turn"
    )
    options.add_argument("--rows", type=int, default=200_000, help="rows of the store")
    options.add_argument("--width", type=int, default=768)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="modalign-store-") as folder:
        figures = [*overheads(Path(folder), chosen), *random_rows(Path(folder), chosen)]
    measuring.print_figures("The feature store", figures, chosen)


def overheads(folder: Path, options: argparse.Namespace) -> Iterator[Figure]:
    """Yield what the store costs for photos, captions, and the cheapest encoder there is."""
    flickr = options.data / "flickr8k"
    weights = options.data / "encoders" / "mobilenetv2_224.onnx"
    if not (flickr.is_dir() and weights.is_file()):
        why = f"no Flickr8k photos and MobileNetV2 in {options.data}; see --data"
        yield skipped("store overhead, photos and captions", OVERHEAD_TARGET, why)
        return
    photos, captions = read_flickr(flickr)
    photos, captions = photos[: options.limit], captions[: options.texts]
    mobilenet = load_encoder(f"onnx:{weights}")
    yield overhead("photos, MobileNetV2", items_of(mobilenet, photos), mobilenet, folder, options)
    spec = measuring.minilm_spec()
    if spec is None:
        yield skipped("store overhead, captions, MiniLM", OVERHEAD_TARGET, measuring.NO_MINILM)
    else:
        minilm = load_encoder(spec)
        yield overhead("captions, MiniLM", items_of(minilm, captions), minilm, folder, options)
    ngrams = load_encoder("builtin:ngrams")
    cheapest = overhead("captions, n-grams", items_of(ngrams, captions), ngrams, folder, options)
    # Counting letters is no network: there is little to compare the writing with.
    yield Figure(cheapest.name, "", cheapest.measured, None, cheapest.details)


def read_flickr(folder: Path) -> tuple[list[str], list[str]]:
    """Return the photos' paths and all captions."""
    lines = (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    photos = [str(folder / row["image"]) for row in rows]
    return photos, list(dict.fromkeys(text for row in rows for text in row["captions"]))


def items_of(encoder: Encoder, values: Sequence[str]) -> Items:
    """Return values as items named by their number."""
    numbers = np.arange(1, len(values) + 1)
    ids = tuple(map(str, numbers.tolist()))
    return Items(
        encoder.modality, encoder.reads, ids, tuple(values), Path("bench"), numbers, numbers
    )


def overhead(
    what: str, items: Items, encoder: Encoder, folder: Path, options: argparse.Namespace
) -> Figure:
    """Return how much longer encoding takes through the store: the median of some parts."""
    note(f"store: {what}")
    encoder.encode(items.values[: encoder.batch_size], exact=True)
    wall: dict[str, list[float]] = {"store": [], "bare": []}
    work: dict[str, list[float]] = {"store": [], "bare": []}
    for turn, part in enumerate(np.array_split(np.arange(len(items)), options.rounds)):
        sides = both_sides(items.select(part), encoder, folder / f"{encoder.modality}-{turn}")
        for name in list(sides)[:: 1 if turn % 2 == 0 else -1]:
            begin = time.process_time()
            wall[name].append(timed(sides[name]))
            work[name].append(time.process_time() - begin)
    more, more_work = (median_ratio(side["store"], side["bare"]) - 1 for side in (wall, work))
    return Figure(
        f"store overhead, {len(items):,} {what}",
        OVERHEAD_TARGET,
        f"{more:+.1%}: {sum(wall['store']):.2f} s, bare {sum(wall['bare']):.2f} s "
        f"(processor time {more_work:+.1%})",
        more <= MOST_OVERHEAD,
        {"overhead": more, "processor_overhead": more_work, "seconds": wall, "work": work},
    )


def both_sides(items: Items, encoder: Encoder, cache: Path) -> dict[str, Callable[[], object]]:
    """Return the two ways to encode the same items."""
    return {
        "store": partial(encode_items, items, encoder, cache=cache),
        "bare": partial(encoder.encode, items.values, exact=True),
    }


def random_rows(folder: Path, options: argparse.Namespace) -> Iterator[Figure]:
    """Yield the rates of random reads, by shards and rows a read."""
    path = folder / "one.npy"
    np.save(path, np.zeros((1, options.width), np.float16))
    encoder = load_encoder(f"vectors:{path}", modality="numbers")
    for shard_rows in (options.rows, SHARD_ROWS):
        note(f"store: random rows, {shard_rows} a shard")
        store = write_store(folder / f"shards-{shard_rows}", encoder, shard_rows, options)
        for batch in (256, 4096):
            yield rate_of_reads(store, batch, options)


def write_store(
    folder: Path, encoder: Encoder, shard_rows: int, options: argparse.Namespace
) -> FeatureStore:
    """Return a store of numbers in shards of some size."""
    store = FeatureStore.open(folder, encoder)
    rng = np.random.default_rng(options.seed)
    for start in range(0, options.rows, shard_rows):
        rows = range(start, min(start + shard_rows, options.rows))
        values = rng.standard_normal((len(rows), options.width), np.float32).astype(np.float16)
        keys = [row.to_bytes(16, "little") for row in rows]
        store.append(keys, [Features(values[row : row + 1]) for row in range(len(rows))])
    return store


def rate_of_reads(store: FeatureStore, batch: int, options: argparse.Namespace) -> Figure:
    """Return how many random rows are read a second; the file lies in the system's cache."""
    rng = np.random.default_rng([options.seed, batch])
    reads = [rng.integers(0, len(store), batch) for _ in range(max(1, len(store) // batch))]

    def read_all() -> None:
        for rows in reads:
            store.read(rows)

    read_all()
    seconds = alternated({"read": read_all}, rounds=options.rounds)["read"]
    rate = len(reads) * batch / median(seconds)
    shards = len(store.manifest["shards"])
    return Figure(
        f"random rows, {len(store):,} x {store.width} in {shards} "
        f"{'shard' if shards == 1 else 'shards'}, {batch:,} a read",
        f"at least {LEAST_ROWS_PER_SECOND:,} a second",
        f"{rate:,.0f} a second",
        rate >= LEAST_ROWS_PER_SECOND,
        {"rows_per_second": rate, "seconds": seconds},
    )


if __name__ == "__main__":
    main()
