"""Commands that say what pairs and encoders promise: probe, forecast."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modalign.cli.making import PAIRS, check_several, check_table, read_table
from modalign.cli.options import COLUMN, ENCODER, VALIDATION, computing, seeds, use_machine
from modalign.cli.output import bars, print_json
from modalign.errors import UsageError

if TYPE_CHECKING:
    from modalign.encoders import Encoder
    from modalign.space.paired import PairedTables


@click.command()
@PAIRS
@ENCODER
@COLUMN
@VALIDATION
@computing
def probe(pairs: Path, as_json: bool, **options: Any) -> None:
    """Say how well encoders agree on pairs, before anything is trained.

    PAIRS is what align takes, of two modalities. Several encoders of one modality (or several
    layers of one) are ranked: give --encoder image=... more than once. Mutual neighbours is the
    share of an item's ten nearest training items that both encoders see; CKA compares all
    distances; a ridge regression, some seconds, says what can be found on the rows held out.
    """
    use_machine(options)
    choices = encoder_choices(options["encoders"])
    check_several({name: specs[0] for name, specs in choices.items()})
    first, second = the_two(list(choices))
    check_table(pairs, [first, second], options)
    from modalign.probing.trials import probe_pairs

    found = []
    for ours, theirs in product(choices[first], choices[second]):
        with bars() as progress:
            tables = encoded(pairs, {first: ours, second: theirs}, options, progress)
            probed = probe_pairs(*tables, seed=options["seed"])
        found.append({"encoders": {first: ours, second: theirs}, **probed})
    found.sort(key=lambda entry: -sum(d["recall_at_1"] for d in entry["directions"]))
    if as_json:
        print_json({"ranked": found})
        return
    for entry in found:
        click.echo("  ".join(f"{name}={spec}" for name, spec in entry["encoders"].items()))
        click.echo(
            f"  mutual neighbours {entry['mutual_neighbours']:.3f} (by chance "
            f"{entry['chance_neighbours']:.3f}), CKA {entry['cka']:.3f}, {entry['rows']} rows"
        )
        for way in entry["directions"]:
            low, high = way["interval_95"]
            click.echo(
                f"  ridge {way['from']} -> {way['to']}: R@1 {way['recall_at_1']:.3f} "
                f"({low:.3f}-{high:.3f}) in {way['gallery']:,}"
            )


@click.command()
@PAIRS
@ENCODER
@COLUMN
@VALIDATION
@click.option("--wanted", type=click.FloatRange(0, 1, True, True), help="R@1 to say the pairs for.")
@seeds("Draws of the smaller numbers of pairs.")
@computing
def forecast(pairs: Path, wanted: float | None, count: int, as_json: bool, **options: Any) -> None:
    """Say what more pairs would bring, before anyone collects them.

    Recall now, at twice and at ten times the pairs, and what a wanted recall would take.
    PAIRS is what align takes, of two modalities. A closed form is fitted to nested parts of the
    training rows; curves through its recall are drawn on, with an interval that should hold four
    times in five. It speaks of recipe closed-form, measured on the rows held out.
    """
    use_machine(options)
    choices = encoder_choices(options["encoders"])
    check_several({name: specs[0] for name, specs in choices.items()})
    first, second = the_two(list(choices))
    check_table(pairs, [first, second], options)
    from modalign.probing.trials import forecast_pairs

    chosen = {name: specs[-1] for name, specs in choices.items()}
    with bars() as progress:
        shown = forecast_pairs(
            *encoded(pairs, chosen, options, progress),
            seeds=range(options["seed"], options["seed"] + count),
            wanted=wanted,
            progress=progress,
        )
    if as_json:
        print_json(shown)
        return
    for way in shown["directions"]:
        click.echo(f"{way['from']} -> {way['to']}, R@1 in {way['gallery']:,}")
        for entry in way["measured"]:
            click.echo(f"  {entry['items']:>9,} {first} items  {entry['recall_at_1']:.3f}")
        for entry in way["forecast"][1:]:
            low, high = entry["interval_80"]
            click.echo(
                f"  {entry['items']:>9,} {first} items  {entry['recall_at_1']:.3f} expected, "
                f"{low:.3f} to {high:.3f} in four cases of five"
            )
        if wanted is not None:
            click.echo(f"  {told_need(way['wanted'], first)}")


def told_need(wanted: dict[str, Any], modality: str) -> str:
    """Return what a wanted recall needs, in words."""
    shown = [
        "more than a million times as many" if wanted[name] is None else f"{wanted[name]:,}"
        for name in ("items", "at_best", "at_worst")
    ]
    return (
        f"{wanted['recall_at_1']:.2f} needs about {shown[0]} {modality} items; at best "
        f"{shown[1]}, at worst {shown[2]}"
    )


def encoder_choices(given: tuple[str, ...]) -> dict[str, list[str]]:
    """Return the specs of each modality, in the order they were given.

    Raises:
        UsageError: One is not MODALITY=SPEC, or there is none.
    """
    found: dict[str, list[str]] = {}
    for text in given:
        modality, equals, spec = text.partition("=")
        if not (modality and equals and spec):
            raise UsageError(f"--encoder {text}: expected MODALITY=SPEC")
        found.setdefault(modality, []).append(spec)
    if not found:
        raise UsageError("no --encoder is given, expected --encoder MODALITY=SPEC")
    return found


def the_two(modalities: list[str]) -> tuple[str, str]:
    """Return the two modalities.

    Raises:
        UsageError: There are more.
    """
    if len(modalities) != 2:
        raise UsageError(
            f"{len(modalities)} modalities are given ({', '.join(modalities)}), expected two; ask "
            "about two at a time"
        )
    return modalities[0], modalities[1]


def encoded(
    pairs: Path, specs: dict[str, str], options: dict[str, Any], progress: Any
) -> tuple[PairedTables, PairedTables]:
    """Return the features of the training and of the validation rows."""
    from modalign.encoders import load_encoder
    from modalign.features import cache_folder
    from modalign.space.aligning import check_rows
    from modalign.space.encoded import encode_pairs

    encoders: dict[str, Encoder] = {
        name: load_encoder(spec, modality=name, device=options["device"])
        for name, spec in specs.items()
    }
    table = read_table(pairs, encoders, options, validation=options["validation"])
    check_rows(table)
    found = encode_pairs(
        table,
        encoders,
        cache=options["cache"] or cache_folder(),
        skip_errors=options["on_error"] == "skip",
        progress=progress,
    )
    first, second = specs
    return found.paired(first, second, "train"), found.paired(first, second, "validation")
