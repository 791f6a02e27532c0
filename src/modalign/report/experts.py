"""How rows use the experts: the heat map that the template draws, and what is said of it.

Rows are those of `modalign.space.routing.routing_table`, as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modalign.report.curves import Tick
from modalign.report.figures import share

# Units of the drawing are pixels: a wide one scrolls, so that its letters stay readable.
LEFT = 210
CELL_HEIGHT = 24
GAP = 3
# Between what was counted and the means.
GROUP_GAP = 14
FIRST_LINE = 20
WIDEST, SLIMMEST, WIDTH = 52, 16, 640

ROUTERS = {
    "learned": "A learned gate sends each row to the experts with its highest shares.",
    "grouped": (
        "Experts belong to modalities; a learned gate chooses among those of the row's own."
    ),
    "dense": "Every row passes through all experts; load is the gate's mean weight.",
    "fixed-modality": "Experts belong to modalities by decree: all of the row's own, alike.",
    "fixed-skill": "Experts belong to tasks by decree: all of the row's own, alike.",
    "mlp": "There is one dense network in place of the experts, so nothing is routed.",
}


@dataclass(frozen=True)
class Cell:
    """An expert in a line.

    Attributes:
        x: Its left edge.
        middle: Its middle.
        strength: Opacity, from faint to full; None where the rows cannot choose the expert.
        dead: Whether it is hardly used.
        title: The figures in words.
    """

    x: float
    middle: float
    strength: float | None
    dead: bool
    title: str


@dataclass(frozen=True)
class Line:
    """A direction and task, or a mean: what it is called, its top edge, and its cells."""

    label: str
    y: float
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class ExpertMap:
    """A heat map of load: lines of cells, the columns' numbers, and the drawing's size.

    Attributes:
        lines: Directions and tasks, then means.
        columns: Experts.
        cell: Width of a cell.
        width: Of the drawing.
        height: Of the drawing.
        peak: The load that has the full colour.
        count: Experts.
    """

    lines: tuple[Line, ...]
    columns: tuple[Tick, ...]
    cell: float
    width: float
    height: float
    peak: float
    count: int


def expert_map(rows: Sequence[Mapping[str, Any]]) -> ExpertMap | None:
    """Place rows in a drawing; None where there are none."""
    if not rows:
        return None
    count = max(len(row["load"]) for row in rows)
    pitch = round(min(max((WIDTH - LEFT) / count, SLIMMEST), WIDEST), 1)
    peak = max(max(row["load"]) for row in rows)
    tops = line_tops(rows)
    return ExpertMap(
        lines=tuple(
            Line(row_label(row), top, tuple(cells(row, count, pitch=pitch, peak=peak)))
            for row, top in zip(rows, tops, strict=True)
        ),
        columns=tuple(Tick(middle(e, pitch), str(e)) for e in range(count)),
        cell=round(pitch - GAP, 1),
        width=round(LEFT + count * pitch, 1),
        height=tops[-1] + CELL_HEIGHT + 2,
        peak=peak,
        count=count,
    )


def line_tops(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return the top edge of each line; the first mean stands apart."""
    counted = sum(row["direction"] is not None for row in rows)
    return [
        FIRST_LINE + place * (CELL_HEIGHT + GAP) + (GROUP_GAP if 0 < counted <= place else 0)
        for place in range(len(rows))
    ]


def cells(row: Mapping[str, Any], count: int, *, pitch: float, peak: float) -> list[Cell]:
    """Return the cells of a row, one for each expert of the map."""
    return [
        Cell(
            x=round(LEFT + expert * pitch, 1),
            middle=middle(expert, pitch),
            strength=round(0.04 + 0.96 * row["load"][expert] / peak, 3)
            if expert in row["open"]
            else None,
            dead=expert in row["dead"],
            title=cell_title(row, expert),
        )
        for expert in range(count)
    ]


def middle(expert: int, pitch: float) -> float:
    """Return where the middle of an expert's column lies."""
    return round(LEFT + expert * pitch + (pitch - GAP) / 2, 1)


def cell_title(row: Mapping[str, Any], expert: int) -> str:
    """Say the figures of a cell."""
    where = f"{row_label(row)}, expert {expert}"
    if expert not in row["open"]:
        return f"{where}: cannot be chosen"
    figures = f"load {share(row['load'][expert])}, gate share {share(row['gate'][expert])}"
    return f"{where}: {figures}{', dead' if expert in row['dead'] else ''}"


def row_label(row: Mapping[str, Any]) -> str:
    """Say what a row is of: image → text, contrast; from image; contrast; all."""
    if row["direction"] is not None:
        return f"{row['from']} → {row['to']}, {row['task']}"
    if row["from"] is not None:
        return f"all from {row['from']}"
    return f"all of {row['task']}" if row["task"] is not None else "all"


def told(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say in sentences how rows find experts, and which experts are dead."""
    if not rows:
        return []
    sentences = [ROUTERS[router] for router in dict.fromkeys(row["router"] for row in rows)]
    count = max(len(row["load"]) for row in rows)
    if count == 1:
        return sentences
    if all(row["direction"] is not None for row in rows):
        sentences.append(
            "Each direction has experts of its own: those of one number are not the same."
        )
    return [*sentences, *dead_told(rows)]


def dead_told(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name the dead experts: first those of all rows together, then those of some."""
    everywhere = [e for row in rows if is_all(row) for e in row["dead"]]
    sentences = []
    if everywhere:
        sentences.append(
            "Dead over all, with less than a twentieth of an even load: "
            f"{experts_named(everywhere)}."
        )
    some = [
        f"{label}: {experts_named(rest)}"
        for label, dead in dead_by_direction(rows).items()
        if (rest := [expert for expert in dead if expert not in everywhere])
    ]
    if some:
        sentences.append(f"Dead in some directions: {'; '.join(some)}.")
    return sentences or [
        "No expert is dead: each carries a twentieth of an even load or more, in every direction "
        "and task."
    ]


def dead_by_direction(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """Return the dead experts of each direction, or of its tasks where they are not the same."""
    directions: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["direction"] is not None:
            directions.setdefault(f"{row['from']} → {row['to']}", []).append(row)
    found: dict[str, list[int]] = {}
    for name, tasks in directions.items():
        if all(row["dead"] == tasks[0]["dead"] for row in tasks):
            found[name] = tasks[0]["dead"]
        else:
            found |= {row_label(row): row["dead"] for row in tasks}
    return found


def is_all(row: Mapping[str, Any]) -> bool:
    """Return whether a row is the mean over all others."""
    return row["direction"] is None and row["from"] is None and row["task"] is None


def experts_named(experts: Sequence[int]) -> str:
    """Return "expert 3" or "experts 1, 3 and 5"."""
    if len(experts) == 1:
        return f"expert {experts[0]}"
    *most, last = map(str, experts)
    return f"experts {', '.join(most)} and {last}"


def format_routing(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as a table of plain text: load by expert, a dash where none can be."""
    count = max(len(row["load"]) for row in rows)
    names = [row_label(row) for row in rows]
    width = max(len(name) for name in names)
    head = f"{'load by expert':<{width}}  {'rows':>7}  {'evenness':>8}"
    lines = [head + "".join(f"{expert:>6}" for expert in range(count))]
    for name, row in zip(names, rows, strict=True):
        loads = [share(row["load"][e]) if e in row["open"] else "–" for e in range(count)]
        figures = f"{row['rows']:>7,}  {row['entropy']:>8.3f}" + "".join(f"{x:>6}" for x in loads)
        lines.append(f"{name:<{width}}  {figures}")
    return "\n".join(lines)
