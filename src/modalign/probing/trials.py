"""Quick trials by closed forms: what encoders agree on, and recall at nested numbers of pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from modalign.connectors.blocks import as_tensors
from modalign.connectors.universal_projection import masked_mean
from modalign.errors import DataError
from modalign.evaluation import Direction
from modalign.features import FeatureRows
from modalign.probing.agreement import linear_cka, mutual_nearest_neighbours
from modalign.probing.forecasting import Curves, Forecast, coverage, fit_curves, holds
from modalign.recipes import CombinedRecipe
from modalign.space.choosing import fitted
from modalign.space.families import measure
from modalign.space.held import rows_of_pairs
from modalign.space.paired import PairedTables

# Rows that encoders are compared on; their number squared is held.
AGREEMENT_ROWS = 1000
NEIGHBOURS = 10
# Of how many other rows one is a neighbour at most: were all, any two encoders would agree.
ROWS_A_NEIGHBOUR = 4
# The unbiased CKA needs four; of fewer than twenty, chance alone moves it by .08 and more.
LEAST_ROWS, ENOUGH_ROWS = 4, 20
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
        See `agreement`, of training rows; "directions" as `evaluate` gives them, of a ridge
        regression from the first side to the second, its strength chosen on the validation rows
        that it is measured on.
    """
    found = agreement(train, seed=seed)
    directions = closed_form(train, validation, "ridge", seed=seed)
    return {**found, "directions": [direction.as_json() for direction in directions]}


def agreement(paired: PairedTables, *, seed: int) -> dict[str, Any]:
    """Measure how alike two encoders see items, each of which has one partner.

    Returns:
        "rows" compared, "neighbours" looked at, "mutual_neighbours" in [0, 1] and what chance
        gives, "cka" in [-1, 1]; the last four None of fewer than `LEAST_ROWS` rows. "note" says
        so, or that the rows are too few to say much; it is not there otherwise.
    """
    x, y = sampled(paired, AGREEMENT_ROWS, seed=seed)
    rows = f"{len(x)} training pairs of distinct items on both sides"
    if len(x) < LEAST_ROWS:
        names = ("neighbours", "mutual_neighbours", "chance_neighbours", "cka")
        note = f"{rows}, expected {LEAST_ROWS} or more: neighbours and CKA are left out"
        return {"rows": len(x), **dict.fromkeys(names), "note": note}
    k = neighbours_of(len(x))
    found = {
        "rows": len(x),
        "neighbours": k,
        "mutual_neighbours": mutual_nearest_neighbours(x, y, k=k),
        "chance_neighbours": k / (len(x) - 1),
        "cka": linear_cka(x, y),
    }
    if len(x) < ENOUGH_ROWS:
        few = f"neighbours and CKA of fewer than {ENOUGH_ROWS} say little"
        return {**found, "note": f"{rows}: {few}"}
    return found


def neighbours_of(rows: int) -> int:
    """Return how many neighbours are looked at: ten, fewer where ten would be most of the rows."""
    return min(NEIGHBOURS, max(1, (rows - 1) // ROWS_A_NEIGHBOUR))


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


def counted_modality(train: PairedTables) -> str:
    """Return the modality by whose items a forecast counts.

    It is the first, or the second where only that has enough items for three sizes: of two
    hundred sounds of ten classes, sounds are what there can be more of.

    Raises:
        DataError: Neither has enough.
    """
    counts = {name: len(train.tables[name]) for name in (train.first, train.second)}
    enough = [name for name, count in counts.items() if count >= LEAST_TRAINING]
    if not enough:
        raise DataError(
            f"forecast: {counts[train.first]} training items of {train.first} and "
            f"{counts[train.second]} of {train.second}, expected {LEAST_TRAINING} or more of one "
            "of them; give more pairs"
        )
    return enough[0]


def nested_parts(
    train: PairedTables, sizes: Sequence[int], *, counted: str, seed: int
) -> Iterator[PairedTables]:
    """Yield the pairs of so many items of a modality; every part lies inside the larger ones.

    Args:
        train: What is drawn from.
        sizes: Items of each part, each as many as there are at most.
        counted: The modality whose items are drawn.
        seed: Of the draw.
    """
    order = np.random.default_rng([seed, 19]).permutation(len(train.tables[counted]))
    items = train.oriented(counted)[:, 0]
    for size in sizes:
        yield rows_of_pairs(train, np.isin(items, order[:size]))


def learning_curve(
    train: PairedTables,
    validation: PairedTables,
    *,
    counted: str,
    seeds: Sequence[int],
    progress: Told,
) -> tuple[list[int], dict[tuple[str, str], np.ndarray]]:
    """Measure a closed form at nested numbers of training items, each of them drawn from seeds.

    Args:
        train: Features of the training rows.
        validation: Of the rows measured.
        counted: The modality whose items are drawn, see `counted_modality`.
        seeds: Of what is drawn.
        progress: Told of the trials.

    Returns:
        Items of the counted modality, rising; and recall@1 by direction, float [sizes, seeds].
    """
    count = len(train.tables[counted])
    sizes = sorted({round(count * share) for share in SHARES if count * share >= LEAST_ITEMS})
    found: dict[tuple[str, str], np.ndarray] = {}
    for column, seed in enumerate(seeds):
        parts = nested_parts(train, sizes, counted=counted, seed=seed)
        for place, (size, part) in enumerate(zip(sizes, parts, strict=True)):
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

    Returns:
        "counted", the modality that "items" are of; and of each of the "directions" recall as
        "measured", its "forecast", and in "left_out" forecasts of sizes that were measured, with
        whether they "held".

    Raises:
        DataError: There are too few items for three sizes.
    """
    counted = counted_modality(train)
    sizes, recalls = learning_curve(
        train, validation, counted=counted, seeds=seeds, progress=progress
    )
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
                {
                    "measured": found,
                    "held": holds(forecast, found, hits=queries * len(seeds)),
                    **shown_forecast(forecast),
                }
                for _, found, forecast in coverage(sizes, recall, queries=queries, seed=seeds[0])
            ],
        }
        if wanted is not None:
            names = ("items", "at_best", "at_worst")
            needed = dict(zip(names, curves.pairs_for(wanted), strict=True))
            entry["wanted"] = {"recall_at_1": wanted, **needed}
        shown.append(entry)
    return {"model": "closed-form", "seeds": list(seeds), "counted": counted, "directions": shown}


def told(curves: Curves, times: int) -> Mapping[str, Any]:
    """Return the forecast at some times the pairs there are."""
    return {"times": times, **shown_forecast(curves.at(curves.largest * times))}


def shown_forecast(forecast: Forecast) -> dict[str, Any]:
    """Return a forecast as JSON values."""
    return {
        "items": forecast.pairs,
        "recall_at_1": forecast.recall,
        "interval_80": list(forecast.interval_80),
    }
