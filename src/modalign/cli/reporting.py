"""The report command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from modalign.cli.options import COLUMN, OWN_ENCODER, SPACE, computing
from modalign.cli.output import bars, print_directions, print_json, print_skipped
from modalign.cli.using import HELD_OUT, SPLIT, open_measured
from modalign.errors import UsageError


@click.command()
@SPACE
@click.argument("pairs", type=click.Path(path_type=Path))
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of report.html and report.json.",
)
@COLUMN
@SPLIT
@HELD_OUT
@click.option(
    "--closed-form/--no-closed-form",
    default=True,
    show_default=True,
    help="Measure beside the space what a formula finds of the same pairs; of features of "
    "thousands of dimensions it takes minutes.",
)
@click.option(
    "--forecast/--no-forecast",
    default=True,
    show_default=True,
    help="Say what more pairs would bring, from closed forms of the first two modalities.",
)
@OWN_ENCODER
@computing
def report(
    space: Path,
    pairs: Path,
    out: Path,
    split: str | None,
    closed_form: bool,
    forecast: bool,
    **options: Any,
) -> None:
    """Write a page about a space: its stages, what finds what, its experts, the proof.

    PAIRS is what evaluate takes. report.html is one file; report.json holds the same figures.
    What is there of an earlier report is replaced. The exit status is 1 where a stage changed.
    """
    check_folder(out)
    loaded, encoded, directions = open_measured(space, pairs, split, options=options)
    from modalign.report import write_report
    from modalign.report.spaces import measure

    with bars() as progress:
        measured = measure(
            loaded,
            encoded,
            split=split,
            directions=directions,
            seed=options["seed"],
            closed_form=closed_form,
            forecast=forecast,
            progress=progress,
        )
    told = measured.report()
    page, figures = write_report(out, told)
    skipped = [vars(item) for item in encoded.pairs.skipped]
    if options["as_json"]:
        print_json(
            {
                "report": str(page),
                "figures": str(figures),
                "split": measured.split or "all",
                "directions": list(told.directions),
                "routing": list(told.routing),
                "verify": told.verify,
                "skipped": skipped,
            }
        )
    else:
        print_directions([direction.as_json() for direction in measured.directions])
        print_routing(told.routing)
        click.echo(f"\nreport: {page}")
        print_skipped(skipped)
    if not measured.verify["ok"]:
        raise click.exceptions.Exit(1)


def check_folder(out: Path) -> None:
    """Raise a UsageError where a report cannot be written, before anything is measured."""
    if out.exists() and not out.is_dir():
        raise UsageError(
            f"--out {out}: is a file, expected a folder; choose another", file=str(out)
        )


def print_routing(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print how rows use the experts, and which experts are dead; nothing where there are none."""
    from modalign.report.experts import format_routing, told

    if rows:
        click.echo()
        click.echo(format_routing(rows))
        for sentence in told(rows):
            click.echo(sentence)
