"""What runs say of variants: pooled intervals, paired differences, one report, one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from modalign.comparing.variants import Comparison, Variant
from modalign.connectors.mixture import Direction
from modalign.evaluation import bootstrap_interval, fraction

# Of the intervals: that of the figures which `align` records.
BOOTSTRAP_SEED = 0


def pooled_interval(hits: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of the mean over seeds and queries.

    Queries are drawn anew, each with its mean over the seeds: seeds see the same queries, so
    their hits are no further evidence of how hard the queries are. With one seed it is the usual
    interval. Seeds are not drawn anew: three say too little of how seeds differ.

    Args:
        hits: A score of each query in each run, [seeds, Q]; or differences of two variants'.

    Source:
        `modalign.evaluation.bootstrap_interval`, Efron 1979.
    """
    return bootstrap_interval(np.asarray(hits, np.float64).mean(axis=0), seed=BOOTSTRAP_SEED)


def paired_difference(hits: np.ndarray, reference: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Return how much better one variant is than another, and the interval of that.

    The same queries are drawn for both, so what is hard for both does not widen the interval.

    Args:
        hits: Of the variant, [seeds, Q].
        reference: Of the other, on the same queries, [its seeds, Q].
    """
    apart = np.mean(hits, axis=0) - np.mean(reference, axis=0)
    return float(apart.mean()), pooled_interval(apart[None])


def report(
    comparison: Comparison, records: Sequence[Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    """Sum up runs.

    Args:
        comparison: With the variants as they were trained.
        records: What the runs gave, [variants][seeds].

    Returns:
        {"variants": a row for each variant and score, "seeds", "split"}; recall and intervals are
        fractions, differences are to the first row of the same direction, null there.
    """
    rows: list[dict[str, Any]] = []
    first: dict[Direction, np.ndarray] | None = None
    for variant, runs in zip(comparison.variants, records, strict=True):
        for score in comparison.scores_of(variant):
            ranks, galleries = stacked_ranks(runs, score)
            directions = [
                direction_json(way, found, galleries[way], (first or {}).get(way))
                for way, found in ranks.items()
            ]
            first = ranks if first is None else first
            rows.append({**variant_json(variant, score, runs), "directions": directions})
    return {"variants": rows, "seeds": list(comparison.seeds), "split": comparison.split}


def stacked_ranks(
    runs: Sequence[Mapping[str, Any]], score: str | None
) -> tuple[dict[Direction, np.ndarray], dict[Direction, int]]:
    """Return the ranks by one score, int64 [seeds, Q], and the gallery's size, by direction."""
    ranks: dict[Direction, list[list[int]]] = {}
    galleries: dict[Direction, int] = {}
    for run in runs:
        for entry in run["measured"]:
            if entry["score"] == score:
                way = entry["from"], entry["to"]
                ranks.setdefault(way, []).append(entry["ranks"])
                galleries[way] = entry["gallery"]
    return {way: np.array(found, np.int64) for way, found in ranks.items()}, galleries


def variant_json(
    variant: Variant, score: str | None, runs: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return what a row says of the training; steps and seconds are means over the seeds."""
    return {
        "name": variant.name,
        "score": score,
        "recipe": variant.recipe_name,
        "changes": dict(variant.changes),
        "trainable_parameters": runs[0]["trainable_parameters"],
        "seconds": round(float(np.mean([run["seconds"] for run in runs])), 3),
        "steps": round(float(np.mean([run["steps"] for run in runs]))),
        "runs": [
            {"seed": run["plan"]["seed"], **{n: run[n] for n in ("steps", "best_step", "seconds")}}
            for run in runs
        ],
    }


def direction_json(
    way: Direction, ranks: np.ndarray, gallery: int, reference: np.ndarray | None
) -> dict[str, Any]:
    """Return one direction of a row.

    Args:
        way: (source, target).
        ranks: int64 [seeds, Q].
        gallery: Items searched.
        reference: Ranks of the first row; None in the first row.
    """
    apart, around = None, None
    if reference is not None:
        apart, around = paired_difference(ranks <= 1, reference <= 1)
    return {
        "from": way[0],
        "to": way[1],
        "queries": ranks.shape[1],
        "gallery": gallery,
        **{f"recall_at_{k}": float(np.mean(ranks <= k)) for k in (1, 5, 10)},
        "interval_95": list(pooled_interval(ranks <= 1)),
        "recall_at_1_by_seed": (ranks <= 1).mean(axis=1).tolist(),
        "difference": apart,
        "difference_95": None if around is None else list(around),
    }


# The table --------------------------------------------------------------------------------

COLUMNS = {
    "variant": str.ljust,
    "score": str.ljust,
    "parameters": str.rjust,
    "steps": str.rjust,
    "seconds": str.rjust,
    "direction": str.ljust,
    "gallery": str.rjust,
    "R@1": str.rjust,
    "95 %": str.rjust,
    "R@10": str.rjust,
    "to first": str.rjust,
    "95 % of that": str.rjust,
}


def format_comparison(shown: Mapping[str, Any]) -> str:
    """Return a report as plain text: a line for each direction of each variant and score."""
    rows = [list(COLUMNS)]
    for row in shown["variants"]:
        head = [
            row["name"],
            row["score"] or "",
            f"{row['trainable_parameters']:,}",
            f"{row['steps']:,}",
            f"{row['seconds']:.1f}",
        ]
        for entry in row["directions"]:
            rows.append([*head, *_direction_cells(entry)])
            head = [""] * len(head)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(_line(row, widths) for row in rows)


def _direction_cells(entry: Mapping[str, Any]) -> list[str]:
    low, high = entry["interval_95"]
    cells = [
        f"{entry['from']} -> {entry['to']}",
        f"{entry['gallery']:,}",
        fraction(entry["recall_at_1"]),
        f"{fraction(low)}-{fraction(high)}",
        fraction(entry["recall_at_10"]),
    ]
    if entry["difference"] is None:
        return [*cells, "", ""]
    low, high = entry["difference_95"]
    return [*cells, signed(entry["difference"]), f"{signed(low)} to {signed(high)}"]


def explained(shown: Mapping[str, Any]) -> str:
    """Return what the table's columns mean."""
    count = len(shown["seeds"])
    return "\n".join(
        [
            f"{count} {'seed' if count == 1 else 'seeds'}, rows: {shown['split']}; figures are "
            "means over the seeds.",
            "parameters: all that is trained; seconds: training with its validations.",
            "95 %: queries drawn anew, each with its mean over the seeds; to first: R@1 less that "
            "of the first row, on the same queries.",
        ]
    )


def signed(value: float) -> str:
    """Return +.012 for 0.012."""
    return f"{value:+.3f}".replace("0.", ".", 1)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = zip(COLUMNS.values(), row, widths, strict=True)
    return "  ".join(adjust(cell, width) for adjust, cell, width in cells).rstrip()
