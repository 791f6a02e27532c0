"""The command that makes a store searchable by another modality: attach."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from modalign.cli.making import check_table, load_encoders, report_stage
from modalign.cli.options import (
    CHECKPOINT,
    COLUMN,
    ENCODER,
    VALIDATION,
    computing,
    named_columns,
    named_values,
    recipe_changes,
    recipe_flags,
    use_machine,
)
from modalign.cli.output import bars, print_json
from modalign.errors import UsageError
from modalign.storage import check_free


@click.command()
@click.argument("store")
@click.argument("pairs", type=click.Path(path_type=Path))
@ENCODER
@COLUMN
@click.option(
    "--stored",
    default="text",
    show_default=True,
    help="What the stored vectors stand for; its column in PAIRS holds their ids.",
)
@click.option(
    "--recipe", default="alt-moe", show_default=True, help="One of directed maps; see recipes."
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The space's folder.")
@VALIDATION
@recipe_flags()
@CHECKPOINT
@computing
def attach(store: str, pairs: Path, stored: str, out: Path, **options: Any) -> None:
    """Search a store that is there by another modality; it is only read.

    STORE is KIND:PATH[#COLLECTION], as in lancedb:vectors#captions, qdrant:FOLDER#COLLECTION,
    chroma:FOLDER#COLLECTION, faiss:FILE, parquet:FILE, npy:FILE; ?vector= and ?id= name columns.
    PAIRS has a column of items to encode and one of ids in the store. A map is trained into the
    space of the stored vectors; search with it: `modalign search SPACE STORE --image FILE`.
    """
    use_machine(options)
    from modalign.pairs import read_pairs
    from modalign.recipes import named_recipe
    from modalign.space.attaching import attach as attach_store
    from modalign.space.space import summary

    recipe = named_recipe(options["recipe"]).changed(recipe_changes(options))
    specs = named_values(options["encoders"], option="encoder")
    if len(specs) != 1 or stored in specs:
        raise UsageError(
            f"attach needs one --encoder, of the modality to search by, {len(specs)} are given "
            f"({', '.join(specs)}); the stored side, {stored}, needs none"
        )
    check_table(pairs, [*specs, stored], options)
    check_free(out)
    ((new, encoder),) = load_encoders(options).items()
    table = read_pairs(
        pairs,
        {new: new, stored: stored, **named_columns(options["columns"])},
        reads={new: encoder.reads, stored: "key"},
        seed=options["seed"],
        validation=options["validation"],
        on_error=options["on_error"],
    )
    with bars() as progress:
        space, proof = attach_store(
            store,
            table,
            encoder,
            out=out,
            recipe=recipe,
            seed=options["seed"],
            device=options["device"],
            cache=options["cache"],
            skip_errors=options["on_error"] == "skip",
            progress=progress,
            checkpoint_seconds=options["checkpoint_seconds"],
        )
    stage = summary(space)
    if options["as_json"]:
        print_json({**stage, **proof})
    else:
        report_stage(stage, as_json=False)
        report_proof(proof)
    if not proof["unchanged"]:
        raise click.exceptions.Exit(1)


def report_proof(proof: dict[str, Any]) -> None:
    """Print what was measured through the store's engine, and that the store did not change."""
    found, files = proof["through_store"], len(proof["checksums"]["after"])
    click.echo(
        f"through the store's own engine: recall@1 {found['recall_at_1']:.3f}, @10 "
        f"{found['recall_at_10']:.3f} of {found['queries']:,} queries in {found['gallery']:,} "
        "stored vectors"
    )
    if proof["unchanged"]:
        click.echo(f"store {proof['store']['spec']}: unchanged, {files} files with equal checksums")
        return
    click.echo(f"store {proof['store']['spec']}: CHANGED meanwhile, by us or by somebody else:")
    for name in proof["changed"]:
        click.echo(f"  {name}")
