"""Commands that say what pairs and encoders promise: probe, forecast."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modalign.cli.making import PAIRS, check_table, read_table
from modalign.cli.options import COLUMN, ENCODER, VALIDATION, computing, seeds, use_machine
from modalign.cli.output import bars, print_json, print_skipped
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
    share of an item's ten nearest training items that both encoders see (fewer than ten of fewer
    than 41 items); CKA compares all distances, from -1 to 1, about 0 for strangers. Of few
    distinct items both say little. What ranks is a ridge regression from the first modality to
    the second, some seconds: its R@1 on the rows held out; of equals, the one that agrees more.
    """
    use_machine(options)
    choices = encoder_choices(options["encoders"])
    first, second = the_two(list(choices))
    check_table(pairs, [first, second], options)
    from modalign.probing.trials import probe_pairs

    found = []
    for ours, theirs in product(choices[first], choices[second]):
        with bars() as progress:
            specs = {first: ours, second: theirs}
            train, validation, skipped = encoded(pairs, specs, options, progress)
            probed = probe_pairs(train, validation, seed=options["seed"])
        found.append({"encoders": specs, **probed, "skipped": skipped})
    found.sort(key=standing, reverse=True)
    if as_json:
        print_json({"ranked": found})
        return
    for entry in found:
        print_probed(entry)


def standing(entry: dict[str, Any]) -> tuple[float, float, float]:
    """Return what ranks: recall, what comes near, and agreement where both find the same."""
    ways = entry["directions"]
    recall, near = (
        sum(way[name] for way in ways) for name in ("recall_at_1", "mean_reciprocal_rank")
    )
    return recall, near, entry["mutual_neighbours"] or 0.0


def print_probed(entry: dict[str, Any]) -> None:
    """Print how well two encoders agree."""
    click.echo("  ".join(f"{name}={spec}" for name, spec in entry["encoders"].items()))
    click.echo(f"  {told_agreement(entry)}")
    for way in entry["directions"]:
        low, high = way["interval_95"]
        click.echo(
            f"  ridge {way['from']} -> {way['to']}: R@1 {way['recall_at_1']:.3f} "
            f"({low:.3f}-{high:.3f}) in {way['gallery']:,}"
        )
    print_skipped(entry["skipped"])


def told_agreement(entry: dict[str, Any]) -> str:
    """Return neighbours and CKA in words, behind the note where there is one."""
    note = entry.get("note")
    if entry["cka"] is None:
        return str(note)
    figures = (
        f"mutual neighbours {entry['mutual_neighbours']:.3f} (by chance "
        f"{entry['chance_neighbours']:.3f}), CKA {entry['cka']:.3f}"
    )
    return f"{note}; {figures}" if note else f"{figures}, {entry['rows']} rows"


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
    times in five; how many held of those that can be checked is said. What counts are items of
    the first modality, or of the second where only that has enough of them. It speaks of recipe
    closed-form, measured on the rows held out.
    """
    use_machine(options)
    choices = encoder_choices(options["encoders"])
    the_two(list(choices))
    specs = only_choices(choices)
    check_table(pairs, list(specs), options)
    from modalign.probing.trials import forecast_pairs

    with bars() as progress:
        train, validation, skipped = encoded(pairs, specs, options, progress)
        shown = forecast_pairs(
            train,
            validation,
            seeds=range(options["seed"], options["seed"] + count),
            wanted=wanted,
            progress=progress,
        )
    if as_json:
        print_json({**shown, "skipped": skipped})
        return
    for way in shown["directions"]:
        print_forecast(way, shown["counted"])
    print_skipped(skipped)


def print_forecast(way: dict[str, Any], counted: str) -> None:
    """Print the recall of a direction at numbers of a modality's items, and at more."""
    click.echo(f"{way['from']} -> {way['to']}, R@1 in {way['gallery']:,}")
    for entry in way["measured"]:
        click.echo(f"  {entry['items']:>9,} {counted} items  {entry['recall_at_1']:.3f}")
    for entry in way["forecast"][1:]:
        low, high = entry["interval_80"]
        click.echo(
            f"  {entry['items']:>9,} {counted} items  {entry['recall_at_1']:.3f} expected, "
            f"{low:.3f} to {high:.3f} in four cases of five"
        )
    click.echo(f"  {told_check(way)}")
    if "wanted" in way:
        click.echo(f"  {told_need(way['wanted'], counted)}")


def told_check(way: dict[str, Any]) -> str:
    """Return in words how many forecasts held of those that were left out to check them."""
    held = [entry["held"] for entry in way["left_out"]]
    if not held:
        return f"not checked: of {len(way['measured'])} sizes none can be left out"
    return f"checked: {sum(held)} of {len(held)} forecasts of larger numbers left out held"


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
        UsageError: There are more, or one.
    """
    if len(modalities) == 1:
        raise UsageError(
            f"1 modality is given ({modalities[0]}), expected two; give an --encoder of another"
        )
    if len(modalities) != 2:
        raise UsageError(
            f"{len(modalities)} modalities are given ({', '.join(modalities)}), expected two; ask "
            "about two at a time"
        )
    return modalities[0], modalities[1]


def only_choices(choices: dict[str, list[str]]) -> dict[str, str]:
    """Return the one spec of each modality.

    Raises:
        UsageError: A modality has several.
    """
    for modality, specs in choices.items():
        if len(specs) > 1:
            raise UsageError(
                f"--encoder {modality} is given {len(specs)} times ({', '.join(specs)}), expected "
                "one encoder of each modality; `modalign probe` ranks several, forecast with one"
            )
    return {modality: spec for modality, (spec,) in choices.items()}


def encoded(
    pairs: Path, specs: dict[str, str], options: dict[str, Any], progress: Any
) -> tuple[PairedTables, PairedTables, list[dict[str, str]]]:
    """Return the features of the training and of the validation rows, and what was left out."""
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
    train, validation = (found.paired(first, second, split) for split in ("train", "validation"))
    return train, validation, [vars(item) for item in found.pairs.skipped]
