"""Do vectors depend on their neighbours? Rows compared bit by bit, alone and in company.

    python bench/bits.py --data ../shared/data

Through the connector a row must keep its bits alone or among 1,000, on one thread or two. Through
an encoder it may drift by 1e-5 with the items it is padded to, and not by one bit if exact.
"""

from __future__ import annotations

import measuring  # isort: skip  # before torch

import argparse
import csv
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from measuring import Figure, note, skipped

from modalign import align, load_encoder, read_pairs
from modalign.encoders import Encoder
from modalign.recipes import named_recipe
from modalign.space import Space
from modalign.worlds import draw_vectors

WIDTHS = {"image": 1280, "text": 384}
TRAINED_ROWS = 200
DRIFT = 1e-5


def main() -> None:
    options = measuring.parser(__doc__)
    measuring.add_data(options)
    options.add_argument("--rows", type=int, default=1000, help="rows embedded together")
    options.add_argument("--items", type=int, default=64, help="items encoded together")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="modalign-bits-") as folder:
        figures = list(connector_bits(Path(folder), chosen))
    figures += encoders_bits(chosen)
    measuring.print_figures("Vectors and their neighbours", figures, chosen)


def connector_bits(folder: Path, options: argparse.Namespace) -> Iterator[Figure]:
    """Yield how many rows keep their bits through the connector, by modality."""
    note("bits: connector")
    features = draw_vectors(options.rows + TRAINED_ROWS, widths=WIDTHS, seed=options.seed)
    space = trained_space(folder, {m: rows[:TRAINED_ROWS] for m, rows in features.items()}, options)
    for modality, rows in features.items():
        rows = rows[TRAINED_ROWS:]
        found = {}
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found[f"together, threads {threads}"] = space.embed_features(modality, rows)
            alone = [space.embed_features(modality, row[None]) for row in rows]
            found[f"alone, threads {threads}"] = np.concatenate(alone)
        first, *others = found.values()
        same = np.all([(first == other).all(1) for other in others], axis=0)
        yield Figure(
            f"embed_features of {modality}: alone or among {len(rows):,}, one thread or two",
            "the same bits",
            f"{same.sum():,} of {len(rows):,} rows",
            bool(same.all()),
            {"same": int(same.sum()), "rows": len(rows)},
        )


def trained_space(
    folder: Path, features: dict[str, np.ndarray], options: argparse.Namespace
) -> Space:
    """Return a space of the default connector, trained for a few steps."""
    encoders = {}
    for modality, rows in features.items():
        np.save(folder / f"{modality}.npy", rows)
        encoders[modality] = load_encoder(f"vectors:{folder / modality}.npy", modality=modality)
    lines = [",".join(features), *(f"{row},{row}" for row in range(TRAINED_ROWS))]
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    pairs = read_pairs(folder / "pairs.csv", list(features), reads=dict.fromkeys(features, "key"))
    recipe = named_recipe("oneencoder").changed({"min_steps": 20, "epochs": 1})
    return align(
        pairs,
        encoders,
        out=folder / "space",
        recipe=recipe,
        cache=folder / "cache",
        seed=options.seed,
    )


def encoders_bits(options: argparse.Namespace) -> Iterator[Figure]:
    """Yield the drift and the exactness of every real encoder that is at hand."""
    weights = options.data / "encoders"
    specs = {
        "MobileNetV2": f"onnx:{weights / 'mobilenetv2_224.onnx'}",
        "YAMNet": f"onnx:{weights / 'yamnet.onnx'}",
        "MiniLM": measuring.minilm_spec(),
    }
    for name, spec in specs.items():
        if spec is None:
            yield skipped(f"{name} alone or together", "", measuring.NO_MINILM)
        elif not weights.is_dir():
            yield skipped(f"{name} alone or together", "", f"no {weights}; see --data")
        else:
            note(f"bits: {name}")
            yield from encoder_bits(name, load_encoder(spec), options)


def encoder_bits(name: str, encoder: Encoder, options: argparse.Namespace) -> Iterator[Figure]:
    """Yield how far items drift with their company, and that exact ones do not."""
    values = items(encoder.modality, options.data)[: options.items]
    for exact in (False, True):
        together = encoder.encode(values, exact=exact).values
        alone = np.concatenate([encoder.encode([v], exact=exact).values for v in values])
        drift = float(np.abs(together - alone).max())
        same = int((together == alone).all(1).sum())
        yield Figure(
            f"{name}, {len(values)} items alone or together, exact={exact}",
            "the same bits" if exact else f"within {DRIFT:.0e}",
            f"{same} of {len(values)} the same bits; largest difference {drift:.1e}, "
            f"largest value {np.abs(together).max():.2g}",
            same == len(values) if exact else drift <= DRIFT,
            {"drift": drift, "same": same, "items": len(values)},
        )


def items(modality: str, data: Path) -> list[str]:
    """Return real items of a modality."""
    if modality == "audio":
        with (data / "esc10" / "manifest.csv").open(encoding="utf-8", newline="") as file:
            return [str(data / "esc10" / row["audio"]) for row in csv.DictReader(file)]
    lines = (data / "flickr8k" / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    if modality == "image":
        return [str(data / "flickr8k" / row["image"]) for row in rows]
    return [text for row in rows for text in row["captions"]]


if __name__ == "__main__":
    main()
