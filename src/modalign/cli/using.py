"""Commands that use spaces: embed, search, evaluate, verify."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modalign.cli.making import skipped_items
from modalign.cli.options import (
    COLUMN,
    ENCODER,
    SPACE,
    common,
    computing,
    named_columns,
    named_values,
    use_machine,
)
from modalign.cli.output import bars, print_directions, print_json, print_skipped
from modalign.errors import UsageError

if TYPE_CHECKING:
    from modalign.space import Space

# What a query may be given as without --query.
QUERY_FLAGS = ("text", "image", "audio", "video")


@click.command()
@SPACE
@click.argument("items", type=click.Path(path_type=Path))
@click.option("--modality", required=True, help="What the items are.")
@click.option("--column", help="The items' column, where ITEMS is a table.  [default: modality]")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The gallery's folder.")
@ENCODER
@computing
def embed(space: Path, items: Path, modality: str, out: Path, **options: Any) -> None:
    """Embed items into a gallery.

    ITEMS is a folder of files, a text file with one text a line, or a table like PAIRS.
    """
    use_machine(options)
    from modalign.pairs import read_items

    loaded = open_space(space, options)
    encoder = loaded.encoder(modality)
    found = read_items(
        items,
        modality,
        reads=encoder.reads,
        column=options["column"],
        on_error=options["on_error"],
    )
    with bars() as progress:
        gallery, result = loaded.embed_items(
            found,
            out=out,
            cache=options["cache"],
            skip_errors=options["on_error"] == "skip",
            progress=progress,
        )
    report: dict[str, Any] = {
        "gallery": str(out),
        "modality": modality,
        "rows": len(gallery),
        "width": gallery.width,
        "encoded": {modality: result.encoded},
        "skipped": skipped_items(result),
    }
    if options["as_json"]:
        print_json(report)
        return
    click.echo(
        f"gallery {out}: {len(gallery):,} {modality} vectors of width {gallery.width}, "
        f"{result.encoded:,} encoded now"
    )
    print_skipped(report["skipped"])


@click.command()
@SPACE
@click.argument("gallery", type=click.Path(path_type=Path))
@click.option("--text", help="Search by words.")
@click.option("--image", help="Search by a picture.")
@click.option("--audio", help="Search by a sound.")
@click.option("--video", help="Search by a clip.")
@click.option("--query", metavar="MODALITY=VALUE", help="Search by any modality of the space.")
@click.option("-k", default=10, show_default=True, type=click.IntRange(1), help="Answers.")
@ENCODER
@computing
def search(space: Path, gallery: Path, k: int, as_json: bool, **options: Any) -> None:
    """Search a gallery by text, picture, sound or clip.

    GALLERY is a folder that `modalign embed` wrote, of any modality of the space.
    """
    use_machine(options)
    from modalign.gallery import Gallery

    modality, value = the_query(options)
    loaded = open_space(space, options)
    check_gallery_folder(gallery)
    stored = Gallery.load(gallery)
    hits = loaded.search(stored, [value], modality=modality, k=k)
    values = stored.values
    found = [
        {
            "id": hit_id,
            "similarity": round(float(similarity), 6),
            "value": None if values is None else values[int(row)],
        }
        for hit_id, row, similarity in zip(
            hits.ids[0], hits.rows[0], hits.similarity[0], strict=True
        )
    ]
    if as_json:
        print_json({"from": modality, "to": stored.modality, "hits": found})
        return
    for place, hit in enumerate(found, start=1):
        shown = "" if hit["value"] in (None, hit["id"]) else f"  {hit['value']}"
        click.echo(f"{place:3d}  {hit['similarity']:.3f}  {hit['id']}{shown}")


@click.command()
@SPACE
@click.argument("pairs", type=click.Path(path_type=Path))
@COLUMN
@click.option(
    "--split", help="Which rows, or all.  [default: test where there are any, else validation]"
)
@click.option("--validation", default=0.1, show_default=True, help="Share held out; see align.")
@click.option("--from", "source", help="The queries' modality.  [default: all]")
@click.option("--to", "target", help="The gallery's modality.  [default: all]")
@ENCODER
@computing
def evaluate(
    space: Path,
    pairs: Path,
    split: str | None,
    source: str | None,
    target: str | None,
    **options: Any,
) -> None:
    """Measure retrieval on held-out pairs, between all modalities the pairs have columns for."""
    use_machine(options)
    from modalign.pairs import read_columns, read_pairs
    from modalign.space.space import chosen_split

    loaded = open_space(space, options)
    for name in (source, target):
        if name is not None:
            loaded.stage_of(name)
    columns = named_columns(options["columns"])
    header = read_columns(pairs)
    present = {m: columns.get(m, m) for m in loaded.modalities if columns.get(m, m) in header}
    has_splits = columns.get("split", "split") in header
    directions = wanted_directions(list(present), source, target, pairs=pairs, header=header)
    used = {modality for direction in directions for modality in direction}
    table = read_pairs(
        pairs,
        {**columns, **{m: column for m, column in present.items() if m in used}},
        reads={modality: loaded.encoder(modality).reads for modality in used},
        seed=options["seed"],
        validation=0.0 if has_splits or split == "all" else options["validation"],
        on_error=options["on_error"],
    )
    chosen_split(table, split)
    with bars() as progress:
        encoded = loaded.encode_pairs(
            table,
            cache=options["cache"],
            skip_errors=options["on_error"] == "skip",
            progress=progress,
        )
    results = loaded.evaluate_encoded(
        encoded, split=split, directions=directions, seed=options["seed"]
    )
    shown = [direction.as_json() for direction in results]
    skipped = [vars(item) for item in encoded.pairs.skipped]
    if options["as_json"]:
        print_json({"directions": shown, "skipped": skipped})
        return
    print_directions(shown)
    print_skipped(skipped)


@click.command()
@SPACE
@click.option(
    "--gallery",
    "galleries",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A gallery made with this space; as often as needed.",
)
@common
def verify(space: Path, galleries: tuple[Path, ...], as_json: bool, debug: bool) -> None:
    """Prove that no stage and no gallery changed by one bit; exit 1 if one did."""
    from modalign.space.space import verify_space

    for gallery in galleries:
        check_gallery_folder(gallery)
    report = verify_space(space, galleries)
    if as_json:
        print_json(report)
    else:
        for noun, kind in (("stage", "stages"), ("gallery", "galleries")):
            for entry in report[kind]:
                state = "unchanged" if entry["ok"] else "CHANGED"
                click.echo(f"{noun} {entry['name']}: {state}")
                for problem in entry["problems"]:
                    click.echo(f"  {problem}")
    if not report["ok"]:
        raise click.exceptions.Exit(1)


def open_space(folder: Path, options: Mapping[str, Any]) -> Space:
    """Load a space, with the encoders that the call names instead of the recorded specs."""
    from modalign.encoders import load_encoder
    from modalign.space import load_space

    device = options["device"]
    space = load_space(folder, device=device)
    for modality, spec in named_values(options["encoders"], option="encoder").items():
        space.stage_of(modality)
        space.use_encoder(modality, load_encoder(spec, modality=modality, device=device))
    return space


def check_gallery_folder(folder: Path) -> None:
    """Raise a UsageError where a gallery is meant and a space is given."""
    # The name of the file is said again here: the space's module loads torch.
    if (folder / "space.json").exists():
        raise UsageError(
            f"{folder}: is a space, expected a gallery, a folder that `modalign embed` wrote; "
            "check the path",
            folder=folder,
        )


def the_query(options: Mapping[str, Any]) -> tuple[str, str]:
    """Return the query's modality and value.

    Raises:
        UsageError: None or several are given.
    """
    given = {name: options[name] for name in QUERY_FLAGS if options[name] is not None}
    if options["query"] is not None:
        given |= named_values((options["query"],), option="query")
    if len(given) != 1:
        raise UsageError(
            f"{len(given)} queries are given, expected one of --text, --image, --audio, --video "
            "or --query MODALITY=VALUE"
        )
    return next(iter(given.items()))


def wanted_directions(
    present: list[str], source: str | None, target: str | None, *, pairs: Path, header: list[str]
) -> list[tuple[str, str]]:
    """Return the (source, target) pairs to measure.

    Raises:
        UsageError: The pairs have no two columns that are modalities of the space.
    """
    from modalign.evaluation import every_direction

    directions = [
        (a, b) for a, b in every_direction(present) if source in (None, a) and target in (None, b)
    ]
    if not directions:
        raise UsageError(
            f"{pairs}: no direction to measure; of its columns ({', '.join(header)}) these are "
            f"modalities of the space: {', '.join(present) or 'none'}; name others with "
            "--column MODALITY=COLUMN"
        )
    return directions
