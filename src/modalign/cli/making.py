"""Commands that make spaces: align, add, encode."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modalign.cli.options import (
    CHECKPOINT,
    COLUMN,
    ENCODER,
    SPACE,
    VALIDATION,
    check_there,
    computing,
    drawless,
    is_typed,
    named_columns,
    named_values,
    recipe_changes,
    recipe_flags,
    use_machine,
)
from modalign.cli.output import bars, print_directions, print_json, print_skipped
from modalign.errors import UsageError, check_known

if TYPE_CHECKING:
    from modalign.encoders import Encoder
    from modalign.features import EncodedItems
    from modalign.pairs import Pairs

PAIRS = click.argument("pairs", type=click.Path(path_type=Path))


@click.command()
@PAIRS
@ENCODER
@COLUMN
@click.option("--recipe", default="oneencoder", show_default=True, help="See `modalign recipes`.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The space's folder.")
@click.option(
    "--allow-empty",
    is_flag=True,
    help="Of three modalities and more: a row may lack some, so long as two are there.",
)
@VALIDATION
@recipe_flags()
@CHECKPOINT
@computing
def align(pairs: Path, out: Path, recipe: str, as_json: bool, **options: Any) -> None:
    """Join two encoders into a new space.

    PAIRS is CSV, TSV, JSONL or Parquet: one column a modality, each cell a path relative to
    the file or the text itself; a list where an item has several partners; optional id and
    split. Interrupted, the same command goes on. Some recipes join three encoders and more.
    The defaults below are a family's; a recipe may have others: see `modalign recipes`.
    """
    use_machine(options)
    from modalign.recipes import named_recipe

    chosen = named_recipe(recipe).changed(recipe_changes(options))
    specs = named_encoders(options)
    check_several(specs)
    check_table(pairs, list(specs), options)
    from modalign.space import Job, aligning, load_space
    from modalign.space.space import summary

    check_unfinished(out)
    aligning.check_new(out)
    aligning.check_count(list(specs), chosen)
    encoders = load_encoders(options)
    table = read_table(pairs, encoders, options, validation=options["validation"])
    with bars() as progress:
        job = Job(
            chosen,
            recipe,
            seed=options["seed"],
            device=options["device"],
            cache=options["cache"],
            skip_errors=options["on_error"] == "skip",
            progress=progress,
            checkpoint_seconds=options["checkpoint_seconds"],
        )
        aligning.align(table, encoders, out=out, job=job)
    report_stage(summary(load_space(out)), as_json=as_json)


@click.command()
@SPACE
@PAIRS
@ENCODER
@COLUMN
@click.option("--anchor", help="The space's modality it is paired with.  [default: the pairs' one]")
@VALIDATION
@recipe_flags(later=True)
@CHECKPOINT
@computing
def add(space: Path, pairs: Path, anchor: str | None, as_json: bool, **options: Any) -> None:
    """Add a modality to a space; nothing stored moves.

    PAIRS joins the new modality to one that is there. Only its alignment layer is trained;
    earlier stages and all vectors made with them stay as they are, bit by bit.
    """
    use_machine(options)
    check_there(pairs, what="PAIRS")
    from modalign.pairs import read_columns
    from modalign.space import load_space
    from modalign.space.space import summary

    grown = load_space(space, device=options["device"])
    new = the_new(list(named_encoders(options)), grown.modalities, space=space)
    columns = named_columns(options["columns"])
    anchor = anchor or the_anchor(grown.modalities, columns, read_columns(pairs))
    check_known(anchor, grown.modalities, what=f"space {space}: anchor")
    check_table(pairs, [new, anchor], options)
    encoders = load_encoders(options)
    for name in grown.modalities:
        if name in encoders:
            grown.use_encoder(name, encoders[name])
    joined = {new: encoders[new], anchor: grown.encoder(anchor)}
    table = read_table(pairs, joined, options, validation=options["validation"])
    check_same_split(table, grown.as_trained(table), {"validation": options["validation"]})
    with bars() as progress:
        grown.add(
            table,
            encoders[new],
            anchor=anchor,
            changes=recipe_changes(options),
            seed=options["seed"],
            cache=options["cache"],
            skip_errors=options["on_error"] == "skip",
            progress=progress,
            checkpoint_seconds=options["checkpoint_seconds"],
        )
    report_stage(summary(grown), as_json=as_json)


@click.command()
@click.argument("items", type=click.Path(path_type=Path))
@ENCODER
@COLUMN
@drawless
def encode(items: Path, as_json: bool, **options: Any) -> None:
    """Encode items into the feature cache, and do no more.

    ITEMS is a folder of files, a text file with one text a line, or a table like PAIRS.
    """
    use_machine(options)
    from modalign.features import cache_folder, encode_items
    from modalign.pairs import read_items

    columns = named_values(options["columns"], option="column")
    check_items(items, [columns.get(name, name) for name in named_encoders(options)])
    encoders = load_encoders(options)
    skip = options["on_error"]
    results: dict[str, EncodedItems] = {}
    with bars() as progress:
        for modality, encoder in encoders.items():
            found = read_items(
                items,
                modality,
                reads=encoder.reads,
                column=columns.get(modality),
                on_error=skip,
            )
            results[modality] = encode_items(
                found,
                encoder,
                cache=options["cache"] or cache_folder(),
                skip_errors=skip == "skip",
                progress=progress,
            )
    report: dict[str, dict[str, Any]] = {
        modality: {
            "items": len(result.items),
            "encoded": result.encoded,
            "skipped": skipped_items(result),
            "store": None if result.folder is None else str(result.folder),
            "seconds": round(result.seconds, 3),
        }
        for modality, result in results.items()
    }
    if as_json:
        print_json({"features": report})
        return
    for modality, entry in report.items():
        click.echo(
            f"{modality}: {entry['items']} items, {entry['encoded']} encoded now, "
            f"{entry['seconds']} s, in {entry['store']}"
        )
        print_skipped(entry["skipped"])


def skipped_items(result: EncodedItems) -> list[dict[str, str]]:
    """Return what was left out of some items, on reading them and on encoding them."""
    items = result.items
    return [
        *(vars(item) for item in items.skipped),
        *(
            {"where": items.where(f.index), "value": items.values[f.index], "reason": str(f.error)}
            for f in result.failures
        ),
    ]


def load_encoders(options: Mapping[str, Any]) -> dict[str, Encoder]:
    """Load what --encoder names."""
    from modalign.encoders import load_encoder

    return {
        modality: load_encoder(spec, modality=modality, device=options["device"])
        for modality, spec in named_encoders(options).items()
    }


def named_encoders(options: Mapping[str, Any]) -> dict[str, str]:
    """Return the spec of each modality that --encoder names.

    Raises:
        UsageError: There is none.
    """
    specs = named_values(options["encoders"], option="encoder")
    if not specs:
        raise UsageError("no --encoder is given, expected --encoder MODALITY=SPEC")
    return specs


def check_several(specs: Mapping[str, str]) -> None:
    """Raise a UsageError where only one modality is to be aligned."""
    if len(specs) == 1:
        (only,) = specs
        raise UsageError(
            f"one --encoder is given ({only}), expected one for each of two modalities; give "
            "another --encoder MODALITY=SPEC"
        )


def check_unfinished(out: Path) -> None:
    """Raise a UsageError where `align` has finished already."""
    from modalign.space.stages import SPACE_FILE

    if (out / SPACE_FILE).exists():
        raise UsageError(
            f"{out}: a space is there already, finished and ready for use; to add a modality to it "
            "use `modalign add`, to align anew choose another --out, or delete the folder",
            folder=out,
        )


def check_table(pairs: Path, modalities: Sequence[str], options: Mapping[str, Any]) -> None:
    """Check of pairs what needs no encoder, before one is loaded: the file and its columns.

    Raises:
        UsageError: There is no such file, or no rows would be held out.
        DataError: It is no table, or a column is not there.
    """
    from modalign.pairs import check_columns

    check_there(pairs, what="PAIRS")
    columns = named_columns(options["columns"])
    check_named(columns, modalities)
    named = [column for column in columns.values() if column]
    header = check_columns(pairs, [*(columns.get(m) or m for m in modalities), *named])
    if options["validation"] == 0 and columns.get("split", "split") not in header:
        raise UsageError(
            "--validation 0 holds no rows out to validate with, and no split column is read, "
            f"expected a share above 0; leave --validation out, or name rows in {pairs.name} "
            "with a column 'split'"
        )


def check_items(items: Path, columns: Sequence[str]) -> None:
    """Check of items what needs no encoder, before one is loaded.

    Raises:
        UsageError: There is no such file or folder.
        DataError: It is a broken table, or a column is not there.
    """
    from modalign.pairs import check_columns

    check_there(items, what="ITEMS")
    if items.is_file() and items.suffix.lower() != ".txt":
        check_columns(items, columns)


def check_named(columns: Mapping[str, str | None], modalities: Iterable[str]) -> None:
    """Raise a UsageError where --column names a modality that has no encoder."""
    unknown = [name for name in columns if name not in (*modalities, "id", "split")]
    if unknown:
        raise UsageError(
            f"--column {unknown[0]}={columns[unknown[0]]}: no encoder is given for "
            f"{unknown[0]!r}, expected one of {', '.join(modalities)}"
        )


def check_same_split(drawn: Pairs, trained: Pairs, typed: Mapping[str, Any]) -> None:
    """Raise a UsageError where the call asks for another split than a file was trained with.

    Args:
        drawn: The pairs as they were read.
        trained: The same, split as the space was trained; `drawn` itself for another file.
        typed: What --seed and --validation are, those that decide the split.
    """
    used = {"seed": trained.split_seed, "validation": trained.validation_share}
    for name, value in typed.items():
        if trained is not drawn and is_typed(name) and value != used[name]:
            raise UsageError(
                f"--{name} {value}: the space was trained on {drawn.source.name} with --{name} "
                f"{used[name]}; with another, rows that it was trained on would be measured; leave "
                f"--{name} out, or measure all rows knowingly with `modalign evaluate --split all`",
                found=value,
                expected=used[name],
            )


def read_table(
    pairs: Path, encoders: Mapping[str, Encoder], options: Mapping[str, Any], *, validation: float
) -> Pairs:
    """Read and check the pairs of the encoders' modalities."""
    from modalign.pairs import read_pairs

    columns = named_columns(options["columns"])
    check_named(columns, encoders)
    table = read_pairs(
        pairs,
        {**{modality: modality for modality in encoders}, **columns},
        reads={modality: encoder.reads for modality, encoder in encoders.items()},
        seed=options["seed"],
        validation=validation,
        on_error=options["on_error"],
        may_be_empty=options.get("allow_empty", False),
    )
    for split in table.split_sizes():
        if split != "train" and (count := table.repeated(split)):
            click.echo(
                f"modalign: {pairs.name}: {count:,} pairs of the {split} rows are pairs of the "
                "training rows too, so recall is flattered; give rows that say the same one split",
                err=True,
            )
    return table


def the_new(given: list[str], known: list[str], *, space: Path) -> str:
    """Return the one modality that the space lacks; the others given are of those it has."""
    new = [name for name in given if name not in known]
    if len(new) > 1:
        raise UsageError(
            f"--encoder is given for {len(new)} new modalities ({', '.join(new)}), expected one; "
            "call add once for each"
        )
    if not new:
        raise UsageError(
            f"{space} has {' and '.join(given)} already (its modalities: {', '.join(known)}), "
            "expected an --encoder for a new one; give the new modality another name"
        )
    return new[0]


def the_anchor(known: list[str], columns: Mapping[str, str | None], header: list[str]) -> str:
    """Return the one modality of the space that the pairs have a column for."""
    found = [name for name in known if columns.get(name, name) in header]
    if len(found) != 1:
        these = f"{', '.join(found)} are modalities" if found else "none is a modality"
        raise UsageError(
            f"the pairs have columns {', '.join(header)}: {these} of the space "
            f"({', '.join(known)}), expected one to anchor the new one; say which with --anchor, "
            "and its column with --column"
        )
    return found[0]


def report_stage(stage: dict[str, Any], *, as_json: bool) -> None:
    """Print what a new stage is."""
    if as_json:
        print_json(stage)
        return
    spent = ", ".join(f"{name} {value:.1f} s" for name, value in stage["seconds"].items())
    click.echo(
        f"stage {stage['stage']} of {stage['space']}: {stage['trainable_parameters']:,} "
        f"trained parameters, {stage['steps']} steps ({spent})"
    )
    if stage["chosen"]:
        click.echo(told_choice(stage["chosen"]))
    print_directions(stage["validation"]["directions"])
    print_skipped(stage["skipped"])


def told_choice(chosen: Mapping[str, Any]) -> str:
    """Return what recipe auto kept, in a line."""
    shares = zip(chosen["kept"], chosen["shares"], strict=True)
    kept = " + ".join(f"{name} ({share:.0%})" for name, share in shares)
    held = f"by {chosen['held_out']['pairs']:,} pairs held out of training"
    why = chosen.get("budget_note") or f"of {', '.join(chosen['candidates'])}, {held}"
    corrected = sorted({c["name"] for c in chosen["corrections"].values()} - {"none"})
    hubs = f"; similarity corrected for hubs by {', '.join(corrected)}" if corrected else ""
    noted = "".join(f"; {chosen[note]}" for note in ("rows_note", "steps_note") if note in chosen)
    return f"kept {kept}: {why}{hubs}{noted}"
