"""Quick trials by closed forms: what encoders agree on, and recall at nested numbers of pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from modalign.connectors.blocks import as_tensors
from modalign.connectors.universal_projection import masked_mean
from modalign.errors import DataError
from modalign.evaluation import Direction
from modalign.features import FeatureRows
from modalign.probing.agreement import linear_cka, mutual_nearest_neighbours
from modalign.probing.forecasting import Curves, coverage, fit_curves
from modalign.recipes import CombinedRecipe
from modalign.space.choosing import fitted
from modalign.space.families import measure
from modalign.space.held import rows_of_pairs
from modalign.space.paired import PairedTables

# Rows that encoders are compared on; their number squared is held.
AGREEMENT_ROWS = 1000
NEIGHBOURS = 10
# Shares of the training items that recall is measured at.
SHARES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
LEAST_ITEMS = 16
# Three sizes at least, each twice the one before.
LEAST_TRAINING = 4 * LEAST_ITEMS
# How many times as many pairs are asked about.
TIMES = (1, 2, 10)

Told = Callable[[str, int, int, str], None]


def probe_pairs(train: PairedTables, validation: PairedTables, *, seed: int) -> dict[str, Any]:
    """Measure how well two encoders agree on some pairs.

    Args:
        train: Features of the training rows.
        validation: Features of the rows that recall is measured on.
        seed: Of the rows that are compared.

    Returns:
        "mutual_neighbours" and "cka" in [0, 1], of training rows; "directions" as `evaluate`
        gives them, of a ridge regression measured on validation rows.
    """
    x, y = sampled(train, AGREEMENT_ROWS, seed=seed)
    k = min(NEIGHBOURS, len(x) - 1)
    if len(x) < 4:
        raise DataError(f"probe: {len(x)} training rows, expected 4 or more; give more pairs")
    directions = closed_form(train, validation, "ridge", seed=seed)
    return {
        "rows": len(x),
        "neighbours": k,
        "mutual_neighbours": mutual_nearest_neighbours(x, y, k=k),
        "chance_neighbours": k / (len(x) - 1),
        "cka": linear_cka(x, y),
        "directions": [direction.as_json() for direction in directions],
    }


def sampled(paired: PairedTables, limit: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return features of some items of the first side, each with one partner, no partner twice."""
    rng = np.random.default_rng([seed, 17])
    order = rng.permutation(len(paired.pairs))
    pairs = paired.pairs[order]
    pairs = pairs[np.sort(np.unique(pairs[:, 0], return_index=True)[1])]
    pairs = pairs[np.sort(np.unique(pairs[:, 1], return_index=True)[1])][:limit]
    return (
        pooled(paired.tables[paired.first], pairs[:, 0]),
        pooled(paired.tables[paired.second], pairs[:, 1]),
    )


def pooled(table: FeatureRows, rows: np.ndarray) -> np.ndarray:
    """Return features, or their means over valid positions, float32 [N, D]."""
    values, mask = as_tensors(table.take(rows), "cpu")
    found: np.ndarray = (values if mask is None else masked_mean(values, mask)).numpy()
    return found


def closed_form(
    train: PairedTables,
    validation: PairedTables,
    member: str,
    *,
    seed: int,
    measured: PairedTables | None = None,
) -> list[Direction]:
    """Fit a closed form, its settings chosen on validation rows; return recall.

    Args:
        train: What it is fitted to.
        validation: What its settings are chosen by.
        member: Which closed form.
        seed: Of the intervals.
        measured: The rows that recall is of; those of validation by default.
    """
    recipe = CombinedRecipe(members=member)
    widths = {name: train.tables[name].width for name in (train.first, train.second)}
    family, growth, job = fitted(recipe, widths, train, validation, seed=seed, device="cpu")
    family.remember(job.temperature)
    return measure(family, measured or validation, growth.directions)


def learning_curve(
    train: PairedTables, validation: PairedTables, *, seeds: Sequence[int], progress: Told
) -> tuple[list[int], dict[tuple[str, str], np.ndarray]]:
    """Measure a closed form at nested numbers of training items, each of them drawn from seeds.

    Returns:
        Items of the first modality, rising; and recall@1 by direction, float [sizes, seeds].

    Raises:
        DataError: There are too few items for three sizes.
    """
    count = len(train.tables[train.first])
    sizes = sorted({round(count * share) for share in SHARES if count * share >= LEAST_ITEMS})
    if len(sizes) < 3:
        raise DataError(
            f"forecast: {count} training items, expected {LEAST_TRAINING} or more; give more pairs"
        )
    found: dict[tuple[str, str], np.ndarray] = {}
    for column, seed in enumerate(seeds):
        order = np.random.default_rng([seed, 19]).permutation(count)
        for place, size in enumerate(sizes):
            part = rows_of_pairs(train, np.isin(train.pairs[:, 0], order[:size]))
            for direction in closed_form(part, validation, "cca", seed=seed):
                name = (direction.source, direction.target)
                found.setdefault(name, np.zeros((len(sizes), len(seeds))))
                found[name][place, column] = direction.recall_at_1
            done = column * len(sizes) + place + 1
            progress("forecast", done, len(sizes) * len(seeds), f"{size} items, seed {seed}")
    return sizes, found


def forecast_pairs(
    train: PairedTables,
    validation: PairedTables,
    *,
    seeds: Sequence[int],
    wanted: float | None,
    progress: Told,
) -> dict[str, Any]:
    """Forecast what more pairs would bring; see `modalign.probing.forecasting`.

    Args:
        train: Features of the training rows.
        validation: Of the rows measured.
        seeds: Of what is drawn at each size.
        wanted: A recall to say the pairs for, in (0, 1).
        progress: Told of the trials.
    """
    sizes, recalls = learning_curve(train, validation, seeds=seeds, progress=progress)
    shown = []
    for (source, target), recall in recalls.items():
        queries = len(validation.tables[source])
        curves = fit_curves(sizes, recall, queries=queries, seed=seeds[0])
        entry: dict[str, Any] = {
            "from": source,
            "to": target,
            "gallery": len(validation.tables[target]),
            "measured": [
                {
                    "items": size,
                    "recall_at_1": float(values.mean()),
                    "runs": [round(float(value), 6) for value in values],
                }
                for size, values in zip(sizes, recall, strict=True)
            ],
            "forecast": [told(curves, times) for times in TIMES],
            "left_out": [
                {"measured": found, **shown_forecast(forecast)}
                for _, found, forecast in coverage(sizes, recall, queries=queries, seed=seeds[0])
            ],
        }
        if wanted is not None:
            names = ("items", "at_best", "at_worst")
            needed = dict(zip(names, curves.pairs_for(wanted), strict=True))
            entry["wanted"] = {"recall_at_1": wanted, **needed}
        shown.append(entry)
    return {"model": "closed-form", "seeds": list(seeds), "directions": shown}


def told(curves: Curves, times: int) -> Mapping[str, Any]:
    """Return the forecast at some times the pairs there are."""
    return {"times": times, **shown_forecast(curves.at(curves.largest * times))}


def shown_forecast(forecast: Any) -> dict[str, Any]:
    """Return a forecast as JSON values."""
    return {
        "items": forecast.pairs,
        "recall_at_1": forecast.recall,
        "interval_80": list(forecast.interval_80),
    }
