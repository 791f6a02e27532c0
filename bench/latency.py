"""A text query end to end: MiniLM, the connector, exact search of a gallery; everything loaded.

    python bench/latency.py

Each number of threads is measured in a process of its own, because libraries ask for it once.
"""

from __future__ import annotations

import measuring  # isort: skip  # before torch

import argparse
import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median, quantiles

import numpy as np
import torch
from measuring import Figure, note, skipped, timed

from modalign import align, load_encoder, read_pairs
from modalign.gallery import Gallery
from modalign.recipes import named_recipe
from modalign.space import Space

TARGET_MS = 40.0
WARM_QUERIES = 5
TRAINED_ROWS = 64
WIDTH = 1280
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def main() -> None:
    options = measuring.parser(__doc__)
    options.add_argument("--gallery", type=int, default=25_000, help="rows searched")
    options.add_argument("--queries", type=int, default=100)
    options.add_argument("--threads", type=int, default=0, help="0: one, then two")
    chosen = options.parse_args()
    target = f"under {TARGET_MS:.0f} ms at the median"
    if measuring.minilm_spec() is None:
        figures = [skipped("a text query end to end", target, measuring.NO_MINILM)]
    elif chosen.threads:
        figures = [query_latency(chosen, target)]
    else:
        figures = [in_own_process(threads) for threads in (1, 2)]
    measuring.print_figures("Latency of a query", figures, chosen)


def in_own_process(threads: int) -> Figure:
    """Run this script with the same options and so many threads."""
    note(f"latency: threads {threads}")
    command = [sys.executable, *sys.argv, "--json", "--threads", str(threads)]
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads))}
    ran = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return Figure(**json.loads(ran.stdout)["figures"][0])


def query_latency(options: argparse.Namespace, target: str) -> Figure:
    """Return the latency of `Space.search` by one text at a time."""
    texts = queries(options.queries + WARM_QUERIES)
    with tempfile.TemporaryDirectory(prefix="modalign-latency-") as folder:
        space = trained_space(Path(folder), texts[:TRAINED_ROWS], options)
        gallery = drawn_gallery(Path(folder) / "gallery", space, options)
        search = partial(space.search, gallery, modality="text")
        seconds = [timed(partial(search, [text])) for text in texts][WARM_QUERIES:]
    middle, slow = median(seconds) * 1e3, quantiles(seconds, n=10)[-1] * 1e3
    return Figure(
        f"a text query end to end, {options.gallery:,} rows, threads {options.threads}",
        target,
        f"{middle:.1f} ms; nine of ten under {slow:.1f} ms",
        middle < TARGET_MS,
        {"median_ms": middle, "percentile_90_ms": slow, "queries": len(seconds)},
    )


def queries(count: int) -> list[str]:
    """Return so many short captions."""
    texts = (
        f"two {what} on a {where}, seen from {number} metres away"
        for number in range(count)
        for what in ("dogs", "children", "red cars", "men in blue coats")
        for where in ("beach", "street", "green meadow", "mountain")
    )
    return list(islice(texts, count))


def drawn_gallery(folder: Path, space: Space, options: argparse.Namespace) -> Gallery:
    """Return a gallery of random vectors that the space takes for its own."""
    rng = np.random.default_rng(options.seed)
    return Gallery.write(
        folder,
        modality="image",
        width=space.gallery_width("image"),
        embedding=space.embedding_sha256("image"),
        encoder=space.encoder("image").fingerprint,
        ids=[str(row) for row in range(options.gallery)],
        vectors=[rng.standard_normal((options.gallery, space.gallery_width("image")), np.float32)],
    )


def trained_space(folder: Path, texts: list[str], options: argparse.Namespace) -> Space:
    """Return a space of MiniLM and of drawn vectors, trained for a few steps."""
    torch.set_num_threads(options.threads)
    rng = np.random.default_rng([options.seed, 1])
    np.save(folder / "image.npy", rng.standard_normal((len(texts), WIDTH), np.float32))
    lines = [json.dumps({"image": str(row), "text": text}) for row, text in enumerate(texts)]
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    encoders = {
        "image": load_encoder(f"vectors:{folder / 'image.npy'}", modality="image"),
        "text": load_encoder(str(measuring.minilm_spec())),
    }
    return align(
        read_pairs(folder / "pairs.jsonl", ["image", "text"], reads={"image": "key"}),
        encoders,
        out=folder / "space",
        recipe=named_recipe("oneencoder").changed({"min_steps": 5, "epochs": 1}),
        cache=folder / "cache",
        seed=options.seed,
    )


if __name__ == "__main__":
    main()
