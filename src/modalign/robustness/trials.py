"""Recall of a space before and after its queries are perturbed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from modalign.errors import UsageError, check_known
from modalign.evaluation import bootstrap_interval, retrieval_ranks
from modalign.features import FeatureRows, encode_items
from modalign.features.encoding import Progress, no_progress
from modalign.media import read_image
from modalign.pairs import Items
from modalign.pairs.items import FILE_ENDINGS
from modalign.robustness.perturbing import PICTURE_PERTURBATIONS, TEXT_PERTURBATIONS
from modalign.space import Space
from modalign.space.encoded import EncodedPairs
from modalign.space.families import Sides
from modalign.space.paired import pairs_of_rows
from modalign.space.space import SplitSides

PERTURBATIONS = (*TEXT_PERTURBATIONS, *PICTURE_PERTURBATIONS)


@dataclass(frozen=True)
class Trial:
    """What is perturbed, and how the work is done.

    Attributes:
        names: Of perturbations; each is tried on the modalities it fits.
        queries: Of each modality, at most.
        split: Which rows, or "all"; by default test where there are any, else validation.
        cache: Folder of the feature stores.
        seed: Of the queries, of what is drawn, and of the intervals.
        progress: Told of long work.
    """

    names: Sequence[str] = PERTURBATIONS
    queries: int = 500
    split: str | None = None
    cache: Path = Path()
    seed: int = 0
    progress: Progress = no_progress


def measure_robustness(
    space: Space,
    encoded: EncodedPairs,
    directions: Sequence[tuple[str, str]],
    trial: Trial,
) -> list[dict[str, Any]]:
    """Perturb queries, never a gallery, and measure the recall that is left.

    Args:
        space: With an encoder for each modality that is perturbed.
        encoded: Pairs with their features.
        directions: (source, target) each.
        trial: What and how.

    Returns:
        Of each perturbation and direction: "perturbation", "from", "to", "queries", "gallery",
        "changed" (share of queries that are another thing now), "recall_at_1" as they were,
        "perturbed_recall_at_1", "difference", and "interval_95" of it, over the same queries.

    Raises:
        UsageError: A perturbation is unknown, or none fits a modality that is asked by.
    """
    for name in trial.names:
        check_known(name, PERTURBATIONS, what="perturbation")
    rows = SplitSides(space.family, encoded, trial.split)
    found = []
    for source in dict.fromkeys(source for source, _ in directions):
        targets = [target for asked, target in directions if asked == source]
        items = encoded.pairs.items[source].select(rows.members[source])
        kept = drawn_rows(len(items), trial)
        for name in fitting(items, trial.names):
            with perturbed_items(items.select(kept), name, trial) as (changed, share):
                # A perturbed file that the encoder refuses is no query any more.
                result = encode_items(
                    changed, space.encoder(source), cache=trial.cache, progress=trial.progress
                )
            for target in targets:
                entry = {"perturbation": name, "from": source, "to": target, "changed": share}
                found.append({**entry, **_measured(rows, (source, target), kept, result.table)})
            trial.progress(f"perturb {source}", len(kept), len(kept), name)
    if not found:
        asked = sorted({source for source, _ in directions})
        raise UsageError(
            f"robustness: none of {', '.join(trial.names)} fits queries by {', '.join(asked)}: "
            "texts and pictures can be perturbed; choose a direction --from one of them"
        )
    return found


def drawn_rows(count: int, trial: Trial) -> np.ndarray:
    """Return which queries take part, ascending, int64."""
    order = np.random.default_rng([trial.seed, 23]).permutation(count)
    return np.sort(order[: trial.queries])


def fitting(items: Items, names: Sequence[str]) -> list[str]:
    """Return which perturbations can be done to these items."""
    if items.reads == "text":
        return [name for name in names if name in TEXT_PERTURBATIONS]
    endings = {Path(value).suffix.lower() for value in items.values}
    if items.reads == "file" and endings <= FILE_ENDINGS["image"]:
        return [name for name in names if name in PICTURE_PERTURBATIONS]
    return []


@contextmanager
def perturbed_items(items: Items, name: str, trial: Trial) -> Iterator[tuple[Items, float]]:
    """Yield the items perturbed, and the share that is another thing now.

    Pictures lie in a folder that is gone afterwards. An item's perturbation depends on the seed
    and on its id's place alone, so the cache finds it again.
    """
    if name in TEXT_PERTURBATIONS:
        values = tuple(
            TEXT_PERTURBATIONS[name](value, _drawing(trial, place))
            for place, value in enumerate(items.values)
        )
        changed = [a != b for a, b in zip(values, items.values, strict=True)]
        yield replace(items, values=values), float(np.mean(changed))
        return
    with tempfile.TemporaryDirectory(prefix="modalign-") as folder:
        files = []
        for place, value in enumerate(items.values):
            pixels = PICTURE_PERTURBATIONS[name](read_image(value), _drawing(trial, place))
            files.append(str(Path(folder) / f"{place}.png"))
            Image.fromarray(pixels).save(files[-1], compress_level=1)
            trial.progress(f"perturb {items.modality}", place + 1, len(items), name)
        yield replace(items, values=tuple(files)), 1.0


def _drawing(trial: Trial, place: int) -> np.random.Generator:
    return np.random.default_rng([trial.seed, 31, place])


def _measured(
    rows: SplitSides, direction: tuple[str, str], kept: np.ndarray, table: FeatureRows
) -> Mapping[str, Any]:
    source, target = direction
    compared, positives = rows.compared(source, target)
    before = retrieval_ranks(compared.queries, compared.gallery, positives, bias=compared.bias)[
        kept
    ]
    places = pairs_of_rows(positives, kept)
    changed = Sides(rows.family, {source: table, target: rows.tables[target]})
    sides = changed.compared(source, target)
    after = retrieval_ranks(sides.queries, sides.gallery, places, bias=sides.bias)
    apart = (after == 1).astype(np.float64) - (before == 1)
    low, high = bootstrap_interval(apart, seed=0)
    return {
        "queries": len(kept),
        "gallery": len(sides.gallery),
        "recall_at_1": float(np.mean(before == 1)),
        "perturbed_recall_at_1": float(np.mean(after == 1)),
        "difference": float(apart.mean()),
        "interval_95": [low, high],
    }
