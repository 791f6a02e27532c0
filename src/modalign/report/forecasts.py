"""What more pairs would bring, as the page draws it: recall over the number of pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modalign.report.baselines import direction_name
from modalign.report.curves import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    Axis,
    Tick,
    path,
    round_values,
    tick_label,
)
from modalign.report.figures import arrow, count


@dataclass(frozen=True)
class Expected:
    """A forecast in the drawing: its point, and the interval above and below."""

    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True)
class ForecastChart:
    """Recall@1 of one direction over the number of items, on a logarithmic axis.

    Attributes:
        title: The direction.
        measured: Points as SVG wants them.
        expected: What was forecast.
        x_ticks: Numbers of items.
        y_ticks: Recall@1.
    """

    title: str
    measured: str
    expected: tuple[Expected, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


def forecast_charts(forecast: Mapping[str, Any]) -> list[ForecastChart]:
    """Return a drawing for each direction of `modalign.probing.trials.forecast_pairs`."""
    return [_chart(way) for way in forecast.get("directions", [])]


def _chart(way: Mapping[str, Any]) -> ForecastChart:
    measured = [(entry["items"], entry["recall_at_1"]) for entry in way["measured"]]
    ahead = [entry for entry in way["forecast"] if entry["times"] > 1]
    sizes = [size for size, _ in measured] + [entry["items"] for entry in ahead]
    highest = [recall for _, recall in measured] + [entry["interval_80"][1] for entry in ahead]
    ticks = round_values(0.0, max(highest))
    across = Axis(math.log2(min(sizes)), math.log2(max(sizes)), LEFT, RIGHT - 14)
    up = Axis(ticks[0], ticks[-1], BOTTOM, TOP)
    return ForecastChart(
        title=arrow(direction_name(way)),
        measured=path([(math.log2(size), recall) for size, recall in measured], across, up),
        expected=tuple(
            Expected(
                across(math.log2(entry["items"])),
                up(entry["recall_at_1"]),
                up(entry["interval_80"][0]),
                up(entry["interval_80"][1]),
            )
            for entry in ahead
        ),
        x_ticks=tuple(
            Tick(across(math.log2(size)), count(size)) for size in _told(sizes, len(measured))
        ),
        y_ticks=tuple(Tick(up(value), tick_label(value, ticks)) for value in ticks),
    )


def _told(sizes: Sequence[int], measured: int) -> list[int]:
    """Return the sizes that are written on the axis: the first, today's and the last."""
    return [sizes[0], sizes[measured - 1], sizes[-1]]
