"""Commands that use spaces: embed, search, evaluate, verify."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modalign.cli.making import check_items, check_same_split, skipped_items
from modalign.cli.options import (
    COLUMN,
    OWN_ENCODER,
    SPACE,
    check_there,
    common,
    computing,
    drawless,
    named_columns,
    named_values,
    use_machine,
)
from modalign.cli.output import bars, print_directions, print_json, print_skipped
from modalign.errors import UsageError
from modalign.recipes import SCORES

if TYPE_CHECKING:
    from modalign.gallery import Hits, Searchable
    from modalign.pairs import Pairs
    from modalign.space import Space
    from modalign.space.encoded import EncodedPairs

# What a query may be given as without --query.
QUERY_FLAGS = ("text", "image", "audio", "video")
SPLIT = click.option(
    "--split", help="Which rows, or all.  [default: test where there are any, else validation]"
)
HELD_OUT = click.option(
    "--validation",
    default=0.1,
    show_default=True,
    help="Share held out where the pairs have no split column and the space was not trained on "
    "them; of pairs it was trained on, the rows that were held out then are measured.",
)


@click.command()
@SPACE
@click.argument("items", type=click.Path(path_type=Path))
@click.option("--modality", required=True, help="What the items are.")
@click.option("--column", help="The items' column, where ITEMS is a table.  [default: modality]")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The gallery's folder.")
@OWN_ENCODER
@drawless
def embed(space: Path, items: Path, modality: str, out: Path, **options: Any) -> None:
    """Embed items into a gallery.

    ITEMS is a folder of files, a text file with one text a line, or a table like PAIRS.
    """
    use_machine(options)
    check_there(items, what="ITEMS")
    from modalign.pairs import read_items

    loaded = open_space(space, options)
    loaded.stage_of(modality)
    check_items(items, [options["column"] or modality])
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
@click.argument("galleries", nargs=-1, required=True, metavar="GALLERY...")
@click.option("--text", help="Search by words.")
@click.option("--image", help="Search by a picture.")
@click.option("--audio", help="Search by a sound.")
@click.option("--video", help="Search by a clip.")
@click.option(
    "--query",
    metavar="MODALITY=VALUE",
    multiple=True,
    help="Search by any modality of the space.",
)
@click.option(
    "--filter",
    "where",
    metavar="JSON",
    help='Of indexes: only items whose metadata fit, as in {"label": "dog", "year": {"lt": 2000}}.',
)
@click.option("-k", default=10, show_default=True, type=click.IntRange(1), help="Answers.")
@OWN_ENCODER
@drawless
def search(
    space: Path,
    galleries: tuple[str, ...],
    where: str | None,
    k: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Search galleries by text, picture, sound or clip.

    GALLERY is a folder that `modalign embed` or `modalign index` wrote, of any modality of the
    space, or the store that `modalign attach` made the space for, named as there. Several are
    searched as one: their results are ranked by how probably each is a match, where that is
    known. Queries of several modalities, as a picture and words, are one query.
    """
    use_machine(options)
    query = the_queries(options)
    loaded = open_space(space, options)
    stored = [filtered(open_searchable(loaded, gallery), where) for gallery in galleries]
    parts = [loaded.query_part(modality, value) for modality, value in query.items()]
    results = loaded.search_parts(stored, parts, k=k)
    found = [
        {**shown_hit(results.hits[number], place, stored[number]), "gallery": galleries[number]}
        for number, place in results.order
    ]
    if as_json:
        print_json(
            {
                "from": "+".join(query),
                "to": "+".join(each.modality for each in stored),
                "ranked_by": results.ranked_by,
                "hits": found,
            }
        )
        return
    if results.ranked_by == "rank":
        click.echo("the best of each gallery in turn: no probability is known to rank all by")
    for place, hit in enumerate(found, start=1):
        shown = "" if hit["value"] in (None, hit["id"]) else f"  {hit['value']}"
        likely = "" if hit["probability"] is None else f"  {hit['probability']:4.0%}"
        of = f"  {hit['modality']}" if len(stored) > 1 else ""
        click.echo(f"{place:3d}  {hit['similarity']:.3f}{likely}{of}  {hit['id']}{shown}")


def shown_hit(hits: Hits, place: int, gallery: Searchable) -> dict[str, Any]:
    """Return what is said of a result of the first query."""
    probability = hits.probability
    return {
        "id": hits.ids[0][place],
        "modality": gallery.modality,
        "similarity": round(float(hits.similarity[0, place]), 6),
        "probability": None if probability is None else round(float(probability[0, place]), 4),
        "value": gallery.shown(hits)[0][place],
    }


@click.command()
@SPACE
@click.argument("pairs", type=click.Path(path_type=Path))
@COLUMN
@SPLIT
@HELD_OUT
@click.option(
    "--score",
    type=click.Choice(SCORES),
    help="Of directed maps: which vectors to compare by.  [default: the recipe's]",
)
@click.option("--from", "source", help="The queries' modality.  [default: all]")
@click.option("--to", "target", help="The gallery's modality.  [default: all]")
@OWN_ENCODER
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
    loaded, encoded, directions = open_measured(
        space, pairs, split, (source, target), options=options
    )
    results = loaded.evaluate_encoded(
        encoded, split=split, directions=directions, score=options["score"], seed=options["seed"]
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
    help="A gallery or an index made with this space; as often as needed.",
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
                wrong = "of another space" if entry.get("of_another_space") else "CHANGED"
                state = "unchanged" if entry["ok"] else wrong
                click.echo(f"{noun} {entry['name']}: {state}")
                for problem in entry["problems"]:
                    click.echo(f"  {problem}")
    if not report["ok"]:
        raise click.exceptions.Exit(1)


def open_measured(
    space: Path,
    pairs: Path,
    split: str | None,
    asked: tuple[str | None, str | None] = (None, None),
    *,
    options: Mapping[str, Any],
) -> tuple[Space, EncodedPairs, list[tuple[str, str]]]:
    """Open a space, and read and encode the pairs it is measured on.

    Args:
        space: Its folder.
        pairs: A table.
        split: Which rows, None for the default, or "all".
        asked: The queries' modality and the gallery's, None for all.
        options: What `COLUMN`, `OWN_ENCODER` and `computing` add, and --validation.

    Returns:
        The space, the pairs, split as it was trained, and the directions to measure.

    Raises:
        UsageError: A modality is unknown, no direction can be measured, the split has no rows, or
            the call asks for another than training's.
    """
    use_machine(options)
    check_there(pairs, what="PAIRS")
    from modalign.pairs import read_columns
    from modalign.space.space import chosen_split

    header = read_columns(pairs)
    loaded = open_space(space, options)
    columns = named_columns(options["columns"])
    present = {m: columns.get(m, m) for m in loaded.modalities if columns.get(m, m) in header}
    directions = wanted_directions(loaded, list(present), asked, pairs=pairs, header=header)
    used = {m: c for m, c in present.items() if any(m in direction for direction in directions)}
    has_splits = columns.get("split", "split") in header
    held_out = 0.0 if has_splits or split == "all" else options["validation"]
    table = read_used(loaded, pairs, {**columns, **used}, held_out=held_out, options=options)
    if split != "all":
        drawn, table = table, loaded.as_trained(table)
        check_same_split(drawn, table, {name: options[name] for name in ("seed", "validation")})
    chosen_split(table, split)
    with bars() as progress:
        encoded = loaded.encode_pairs(
            table,
            cache=options["cache"],
            skip_errors=options["on_error"] == "skip",
            progress=progress,
        )
    return loaded, encoded, directions


def read_used(
    space: Space,
    pairs: Path,
    columns: Mapping[str, str | None],
    *,
    held_out: float,
    options: Mapping[str, Any],
) -> Pairs:
    """Read the pairs of some of a space's modalities, each as its encoder reads it."""
    from modalign.pairs import read_pairs

    return read_pairs(
        pairs,
        columns,
        reads={m: space.encoder(m).reads for m in columns if m in space.modalities},
        seed=options["seed"],
        validation=held_out,
        on_error=options["on_error"],
    )


def open_space(folder: Path, options: Mapping[str, Any]) -> Space:
    """Load a space, with the encoders that the call names instead of the recorded specs."""
    from modalign.encoders import load_encoder
    from modalign.space import load_space

    device = options["device"]
    space = load_space(folder, device=device)
    check_query_file(space, options)
    for modality, spec in named_values(options["encoders"], option="encoder").items():
        space.stage_of(modality)
        space.use_encoder(modality, load_encoder(spec, modality=modality, device=device))
    return space


def open_searchable(space: Space, text: str) -> Searchable:
    """Open a gallery's folder, an index's, or a store named KIND:PATH."""
    from modalign.gallery import Gallery
    from modalign.index import is_index, load_index
    from modalign.space.attaching import is_store, open_attached

    if is_store(text):
        return open_attached(space, text)
    check_gallery_folder(Path(text))
    return (
        load_index(Path(text), read_only=True) if is_index(Path(text)) else Gallery.load(Path(text))
    )


def filtered(gallery: Searchable, where: str | None) -> Searchable:
    """Keep of an index the items whose metadata fit a filter.

    Raises:
        UsageError: The filter is no JSON object, or the gallery has no metadata.
    """
    if where is None:
        return gallery
    from modalign.index import Index

    if not isinstance(gallery, Index):
        raise UsageError(
            f"{gallery.where}: has no metadata to filter by, expected an index; make one of it "
            "with `modalign index --metadata`, or leave --filter out"
        )
    try:
        return gallery.filtered(json.loads(where))
    except json.JSONDecodeError as error:
        raise UsageError(
            f"--filter {where}: is no JSON ({error}), expected an object, as in "
            '{"label": "dog"}; put it in single quotes'
        ) from error


def check_query_file(space: Space, options: Mapping[str, Any]) -> None:
    """Raise a UsageError where the file of a query is not there."""
    if not (options.get("query") or any(options.get(n) is not None for n in QUERY_FLAGS)):
        return
    for modality, value in the_queries(options).items():
        reads = space.stage_of(modality).record["encoders"][modality]["reads"]
        if reads == "file":
            check_there(Path(value), what=f"{modality} query")


def check_gallery_folder(folder: Path) -> None:
    """Raise a UsageError where a gallery is meant and a space is given."""
    # The name of the file is said again here: the space's module loads torch.
    if (folder / "space.json").exists():
        raise UsageError(
            f"{folder}: is a space, expected a gallery, a folder that `modalign embed` wrote; "
            "check the path",
            folder=folder,
        )


def the_queries(options: Mapping[str, Any]) -> dict[str, str]:
    """Return the query's value by modality; several are one query.

    Raises:
        UsageError: None is given, or one is empty.
    """
    given = {name: options[name] for name in QUERY_FLAGS if options[name] is not None}
    given |= named_values(options["query"], option="query")
    if not given:
        raise UsageError(
            "no query is given, expected --text, --image, --audio, --video or --query "
            "MODALITY=VALUE; several of them are one query"
        )
    for name, value in given.items():
        if not value.strip():
            raise UsageError(f"--{name} is empty, expected what to search by; give a value")
    return given


def wanted_directions(
    space: Space,
    present: list[str],
    asked: tuple[str | None, str | None],
    *,
    pairs: Path,
    header: list[str],
) -> list[tuple[str, str]]:
    """Return the (source, target) pairs to measure.

    Raises:
        UsageError: A modality is unknown, no maps lead where the call asks, or the pairs have no
            two columns that are modalities of the space.
    """
    source, target = asked
    for name in asked:
        if name is not None:
            space.stage_of(name)
    possible = space.directions(present)
    if source in present and target in present and (source, target) not in possible:
        space.family.query_way(source, target)  # says which maps there are
    directions = [(a, b) for a, b in possible if source in (None, a) and target in (None, b)]
    if not directions:
        known = dict.fromkeys(modality for direction in possible for modality in direction)
        raise UsageError(
            f"{pairs}: no direction to measure; of its columns ({', '.join(header)}) these are "
            f"modalities of the space: {', '.join(known) or 'none'}; name others with "
            "--column MODALITY=COLUMN"
        )
    return directions
