"""Curves of a training log: the points, ticks and labels that the template draws."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count as count_from
from typing import Any

from modalign.report.figures import THIN_SPACE, arrow, count

# Units of the drawing; about one pixel on a phone, so that its letters stay readable there.
WIDTH, HEIGHT = 360, 234
LEFT, RIGHT, TOP, BOTTOM = 46, 350, 38, 194
INTERVALS = 5

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Tick:
    """A place on an axis and what is written there."""

    position: float
    label: str


@dataclass(frozen=True)
class Curve:
    """One line: its name, its points as "x,y x,y ...", and its point at the best step."""

    name: str
    points: str
    best: tuple[float, float] | None


@dataclass(frozen=True)
class Chart:
    """Curves over the training step.

    Attributes:
        title: What is drawn, for those who cannot see it.
        y_label: What the upward axis measures.
        curves: The lines.
        x_ticks: Steps.
        y_ticks: Values.
        best: Where the step is whose weights were kept.
    """

    title: str
    y_label: str
    curves: tuple[Curve, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    best: Tick

    @property
    def best_anchor(self) -> str:
        """Where the label hangs on its step, so that it stays clear of the axis label."""
        return "end" if self.best.position > (LEFT + RIGHT) / 2 else "start"


def stage_charts(log: Sequence[Mapping[str, Any]], *, best_step: int) -> list[Chart]:
    """Return the charts a log has figures for: validation recall@1, training loss.

    Args:
        log: Lines with a "step"; keys such as "image->text" hold recall@1.
        best_step: Step whose weights were kept.
    """
    names = dict.fromkeys(key for line in log for key in line if "->" in key)
    recall = {arrow(name): logged(log, name) for name in names}
    loss = {"training loss": logged(log, "loss")}
    charts = [
        draw(recall, title="Validation recall@1", y_label="recall@1, share", best_step=best_step),
        draw(
            loss, title="Training loss", y_label="loss, mean since last point", best_step=best_step
        ),
    ]
    return [chart for chart in charts if chart]


def logged(log: Sequence[Mapping[str, Any]], key: str) -> Points:
    """Return (step, value) of the lines that hold a finite value."""
    found = [(line["step"], line.get(key)) for line in log]
    return [(step, value) for step, value in found if value is not None and math.isfinite(value)]


def draw(lines: Mapping[str, Points], *, title: str, y_label: str, best_step: int) -> Chart | None:
    """Place lines in a drawing; None where there is no point after step 0.

    Args:
        lines: (step, value) by name.
        title: The chart's title.
        y_label: What the values are.
        best_step: Step to mark.
    """
    points = [point for line in lines.values() for point in line]
    if not any(step for step, _ in points):
        return None
    last = max(step for step, _ in points) or 1
    values = [0.0, *(value for _, value in points)]
    ticks = round_values(min(values), max(values))
    across = Axis(0, last, LEFT, RIGHT)
    up = Axis(ticks[0], ticks[-1], BOTTOM, TOP)
    return Chart(
        title=title,
        y_label=y_label,
        curves=tuple(
            Curve(name, path(line, across, up), placed(dict(line), best_step, across, up))
            for name, line in lines.items()
            if line
        ),
        x_ticks=tuple(
            Tick(across(step), count(step)) for step in round_values(0, last) if step <= last
        ),
        y_ticks=tuple(Tick(up(value), tick_label(value, ticks)) for value in ticks),
        best=Tick(across(min(best_step, last)), f"best: step{THIN_SPACE}{count(best_step)}"),
    )


@dataclass(frozen=True)
class Axis:
    """A straight map from values to places."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return where a value lies."""
        part = (value - self.low) / (self.high - self.low)
        return round(self.start + part * (self.end - self.start), 1)


def path(line: Points, across: Axis, up: Axis) -> str:
    """Return the points as SVG wants them."""
    return " ".join(f"{across(step):g},{up(value):g}" for step, value in line)


def placed(
    line: Mapping[float, float], step: int, across: Axis, up: Axis
) -> tuple[float, float] | None:
    """Return where a line's point of one step lies, None where it has none."""
    return (across(step), up(line[step])) if step in line else None


def round_values(low: float, high: float) -> list[float]:
    """Return evenly spaced round values that reach from `low` to `high` or just beyond."""
    if low == high:
        high = low + 1
    spacing = next(step for step in round_steps(high - low) if (high - low) / step <= INTERVALS)
    first, last = math.floor(low / spacing + 1e-9), math.ceil(high / spacing - 1e-9)
    return [round(index * spacing, 12) for index in range(first, last + 1)]


def round_steps(span: float) -> Iterator[float]:
    """Yield 1, 2, 5, 10, ... times a power of ten, from far below `span` upwards."""
    for power in count_from(math.floor(math.log10(span)) - 1):
        yield from (10.0**power, 2 * 10.0**power, 5 * 10.0**power)


def tick_label(value: float, ticks: Sequence[float]) -> str:
    """Write a value with as many digits as the spacing of the ticks needs."""
    digits = max(0, -math.floor(math.log10(ticks[1] - ticks[0])))
    return f"{value:.{digits}f}"
