"""What commands print: one JSON object or a table on stdout, progress on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

# Skipped items named on the terminal; --json names all.
SKIPPED_SHOWN = 10


class Bars:
    """Progress bars by task, for a terminal; called as the core reports."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.tasks: dict[str, TaskID] = {}

    def __call__(self, task: str, done: int, total: int, note: str) -> None:
        """Show how far a task is."""
        if task not in self.tasks:
            self.tasks[task] = self.progress.add_task(task, total=total, note="")
        self.progress.update(self.tasks[task], completed=done, total=total, note=note)


@contextmanager
def bars() -> Iterator[Bars]:
    """Show progress bars on stderr while inside; nothing where it is no terminal."""
    console = Console(stderr=True)
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not sys.stderr.isatty(),
        transient=False,
    ) as progress:
        yield Bars(progress)


def print_json(value: Any) -> None:
    """Print one JSON object."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_directions(directions: Sequence[dict[str, Any]]) -> None:
    """Print retrieval figures as a table."""
    from modalign.evaluation import Direction, format_table

    click.echo(format_table([Direction.from_json(values) for values in directions]))


def print_skipped(skipped: Sequence[dict[str, Any]]) -> None:
    """Say on stderr what was left out."""
    if not skipped:
        return
    noun = "item" if len(skipped) == 1 else "items"
    click.echo(f"skipped {len(skipped)} {noun}:", err=True)
    for entry in skipped[:SKIPPED_SHOWN]:
        click.echo(f"  {entry['where']}: {entry['reason']}", err=True)
    if len(skipped) > SKIPPED_SHOWN:
        click.echo(f"  and {len(skipped) - SKIPPED_SHOWN} more; --json lists all", err=True)
