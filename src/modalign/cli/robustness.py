"""The command that perturbs queries: robustness."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from modalign.cli.options import COLUMN, OWN_ENCODER, SPACE, computing
from modalign.cli.output import bars, print_json
from modalign.cli.using import HELD_OUT, SPLIT, open_measured


@click.command()
@SPACE
@click.argument("pairs", type=click.Path(path_type=Path))
@COLUMN
@SPLIT
@HELD_OUT
@click.option("--from", "source", help="The queries' modality.  [default: all]")
@click.option("--to", "target", help="The gallery's modality.  [default: all]")
@click.option(
    "--perturb",
    "names",
    multiple=True,
    help="attributes, swapped or typos for texts; crop, blur, noise or greyscale for pictures; as "
    "often as needed.  [default: all]",
)
@click.option(
    "--queries",
    default=500,
    show_default=True,
    type=click.IntRange(1),
    help="Queries of each modality, at most.",
)
@OWN_ENCODER
@computing
def robustness(
    space: Path,
    pairs: Path,
    split: str | None,
    source: str | None,
    target: str | None,
    names: tuple[str, ...],
    queries: int,
    **options: Any,
) -> None:
    """Measure what is left of recall when queries are perturbed.

    Texts get attributes that nobody said, words that changed places, typos; pictures are
    cropped, blurred, noisy or grey. The gallery stays as it is. Perturbed items are encoded
    anew; their features are cached like all others.
    """
    loaded, encoded, directions = open_measured(
        space, pairs, split, (source, target), options=options
    )
    from modalign.features import cache_folder
    from modalign.robustness.trials import PERTURBATIONS, Trial, measure_robustness

    with bars() as progress:
        found = measure_robustness(
            loaded,
            encoded,
            directions,
            Trial(
                names or PERTURBATIONS,
                queries,
                split,
                options["cache"] or cache_folder(),
                options["seed"],
                progress,
            ),
        )
    if options["as_json"]:
        print_json({"perturbations": found})
        return
    for entry in found:
        low, high = entry["interval_95"]
        click.echo(
            f"{entry['from']} -> {entry['to']}  {entry['perturbation']:<10}  R@1 "
            f"{entry['recall_at_1']:.3f} -> {entry['perturbed_recall_at_1']:.3f}  "
            f"({entry['difference']:+.3f}, {low:+.3f} to {high:+.3f})  {entry['queries']:,} in "
            f"{entry['gallery']:,}"
        )
