"""The compare command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from modalign.cli.making import PAIRS, check_table, load_encoders, read_table
from modalign.cli.options import (
    CHECKPOINT,
    COLUMN,
    ENCODER,
    VALIDATION,
    computing,
    named_values,
    seeds,
    use_machine,
)
from modalign.cli.output import bars, print_json, print_skipped
from modalign.errors import UsageError

REPORT_FILE = "comparison.json"


@click.command()
@PAIRS
@ENCODER
@COLUMN
@click.option(
    "--variant",
    "variants",
    multiple=True,
    metavar="NAME=RECIPE[,FIELD=VALUE,...]",
    help="As in wide=oneencoder,width=1024; as often as needed. The first is the reference.",
)
@click.option("--study", metavar="NAME", help="A comparison by name; see above.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="FIELD=VALUE",
    help="A recipe field of all variants that have it and do not say it themselves.",
)
@seeds("Runs of each variant, from --seed on.")
@click.option(
    "--score",
    "scores",
    multiple=True,
    metavar="SCORE",
    help="contrast, prediction or fused: what directed maps are compared by, a row each.  "
    "[default: the recipe's, or the study's]",
)
@click.option(
    "--equal-parameters",
    "equal_to",
    metavar="NAME",
    help="Choose the width of all other variants so that they train as many parameters as this.",
)
@click.option("--split", default="validation", show_default=True, help="Rows measured, or all.")
@VALIDATION
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of the results; runs that are there already are not trained again.",
)
@CHECKPOINT
@computing
def compare(pairs: Path, out: Path, study: str | None, as_json: bool, **options: Any) -> None:
    """Compare recipes and options on the same features, side by side.

    PAIRS is what align takes. Every variant is trained from every seed on features encoded
    once; a table says recall, its interval over queries of the mean over seeds, and how far
    each variant is from the first on the same queries. Interrupted, the same command goes on.

    \b
    Studies:
      moe-or-mlp    experts, or one dense network of as many parameters
      alternation   one direction a step (in turn, drawn, adaptive), or all in every step
      losses        prediction, contrast, or both, and what to search by
      families      one shared space, or directed maps with as many parameters
      routers       how rows find their experts
      balance       what the loss that balances the experts' load changes
      objectives    what else networks may be trained by, and from a closed form on
      closed-forms  which formula finds most
    """  # noqa: D301 - click reads the \b
    use_machine(options)
    from modalign import comparing
    from modalign.storage import write_json

    if study is None and not options["variants"]:
        raise UsageError(
            "no variant is given, expected --variant NAME=RECIPE[,FIELD=VALUE,...] or --study "
            f"NAME, one of {', '.join(comparing.STUDIES)}"
        )
    comparison = comparing.planned(
        study,
        options["variants"],
        settings=named_values(options["settings"], option="set"),
        seeds=tuple(range(options["seed"], options["seed"] + options["count"])),
        scores=options["scores"],
        split=options["split"],
        equal_to=options["equal_to"],
    )
    check_table(pairs, list(named_values(options["encoders"], option="encoder")), options)
    encoders = load_encoders(options)
    table = read_table(pairs, encoders, options, validation=options["validation"])
    with bars() as progress:
        shown = comparing.compare(
            table,
            encoders,
            comparison,
            out=out,
            device=options["device"],
            cache=options["cache"],
            skip_errors=options["on_error"] == "skip",
            progress=progress,
            checkpoint_seconds=options["checkpoint_seconds"],
        )
    shown = {"study": study, **shown}
    write_json(out / REPORT_FILE, shown)
    if as_json:
        print_json(shown)
        return
    click.echo(comparing.format_comparison(shown))
    click.echo(comparing.explained(shown))
    print_skipped(shown["skipped"])
