"""The command that makes galleries fast to search, and lets them grow: index."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modalign.cli.options import COLUMN, OWN_ENCODER, check_there, computing, is_typed, use_machine
from modalign.cli.output import bars, print_json
from modalign.cli.using import HELD_OUT, SPLIT, check_gallery_folder
from modalign.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from modalign.gallery import Gallery
    from modalign.index import Index
    from modalign.space import Space
    from modalign.space.encoded import EncodedPairs

# Queries of each modality that are embedded to tune by, and to measure.
QUERIES = 2000
FOLDER = click.Path(path_type=Path)


@click.command()
@click.argument("gallery", type=FOLDER, required=False)
@click.option("--out", type=FOLDER, help="The index's folder.  [required but for --report]")
@click.option(
    "--backend",
    default="auto",
    show_default=True,
    help="exact, faiss, lancedb, qdrant, or a plugin's; auto takes faiss from 20,000 items on.",
)
@click.option(
    "--kind",
    help="Of faiss: flat, ivf, hnsw, int8, binary, truncated; of lancedb: flat, ivf, hnsw.  "
    "[default: auto]",
)
@click.option("--uri", help="Of lancedb: object storage, as in s3://bucket/vectors.")
@click.option("--url", help="Of qdrant: a server, as in http://localhost:6333.")
@click.option(
    "--recall",
    default=0.99,
    show_default=True,
    help="Share of the 10 nearest that searches must find; the engine is tuned for it.",
)
@click.option("--space", type=FOLDER, help="The space, to embed real queries with.")
@click.option("--queries", type=FOLDER, metavar="PAIRS", help="A table of real queries to tune by.")
@COLUMN
@SPLIT
@HELD_OUT
@click.option("--metadata", type=FOLDER, help="A table with a column id; the others can be asked.")
@click.option("--media-root", type=FOLDER, help="Folder of the items' files.  [default: of all]")
@click.option("--add", "adding", is_flag=True, help="Add GALLERY to the index that is there.")
@click.option("--replace", is_flag=True, help="With --add: items whose ids are there are replaced.")
@click.option("--delete", "deleted", multiple=True, metavar="ID", help="Delete an item.")
@click.option(
    "--rebuild",
    is_flag=True,
    help="Make the engine of the index anew; leave nothing on the disk of what was deleted.",
)
@click.option("--report", "reported", is_flag=True, help="Measure what each kind costs and keeps.")
@OWN_ENCODER
@computing
def index(gallery: Path | None, out: Path | None, as_json: bool, **options: Any) -> None:
    """Make a gallery fast to search, add to it, delete from it.

    GALLERY is a folder that `modalign embed` wrote. Queries of another modality are harder to
    find neighbours for than the gallery's own vectors: give --space and --queries, so that the
    engine is tuned by real ones. An index that is there is changed by --add, --delete, --rebuild,
    or tuned anew by --space and --queries alone.
    """
    use_machine(options)
    check_call(gallery, out, options)
    from modalign.gallery import Gallery
    from modalign.index.metadata import read_metadata
    from modalign.index.tuning import check_recall

    check_recall(options["recall"])
    if gallery is not None:
        check_gallery_folder(gallery)
    items = None if gallery is None else Gallery.load(gallery)
    metadata = None if options["metadata"] is None else read_metadata(options["metadata"])
    report: dict[str, Any] = {}
    if out is not None and not changes(gallery, options):
        assert items is not None
        report |= made(items, out, metadata, options)
    elif out is not None:
        report |= changed(items, out, metadata, options)
    if options["reported"]:
        assert items is not None
        report["report"] = compared(items, options)
    if as_json:
        print_json(report)
    else:
        print_report(report)


def changes(gallery: Path | None, options: Mapping[str, Any]) -> bool:
    """Return whether the call is about an index that is there."""
    return gallery is None or any(options[name] for name in ("adding", "deleted", "rebuild"))


def check_call(gallery: Path | None, out: Path | None, options: Mapping[str, Any]) -> None:
    """Raise a UsageError where options do not go together, or a path leads nowhere."""
    if (options["space"] is None) != (options["queries"] is None):
        raise UsageError(
            "--space and --queries are given together or not at all: the space embeds the queries"
        )
    if options["queries"] is not None:
        check_there(options["queries"], what="--queries")
        check_there(options["space"], what="--space")
    if options["metadata"] is not None:
        check_there(options["metadata"], what="--metadata")
    if gallery is None and (options["adding"] or options["reported"] or options["metadata"]):
        raise UsageError("index: GALLERY is missing, expected the gallery that this is about")
    if options["replace"] and not options["adding"]:
        raise UsageError("--replace goes with --add; to make an index anew, delete its folder")
    if out is None and not options["reported"]:
        raise UsageError("--out is missing, expected the index's folder; see `modalign index -h`")
    asked = ("deleted", "rebuild", "queries")
    if gallery is None and not any(options[name] for name in asked):
        raise UsageError(
            "index: nothing to do, expected GALLERY, or --delete, --rebuild or --queries for the "
            "index that is there"
        )
    if gallery is not None and not options["adding"] and (options["deleted"] or options["rebuild"]):
        raise UsageError(
            "index: GALLERY is given with --delete or --rebuild, expected --add too; leave it out "
            "otherwise"
        )


def settings_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the engine's settings that the call names."""
    names = ("kind", "uri", "url")
    return {name: options[name] for name in names if options[name] is not None}


def backend_of(options: Mapping[str, Any]) -> str:
    """Return the backend: the one whose settings are given, where none is named."""
    if options["backend"] != "auto":
        return str(options["backend"])
    owners = {"uri": "lancedb", "url": "qdrant", "kind": "faiss"}
    return next((owners[name] for name in owners if options[name] is not None), "auto")


def made(
    gallery: Gallery,
    out: Path,
    metadata: Mapping[str, Mapping[str, Any]] | None,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Make a new index, and return what is printed of it."""
    from modalign.index import build_index
    from modalign.storage import check_free

    check_free(out)
    queries = asked_queries(gallery, options)
    with bars() as progress:
        index = build_index(
            gallery,
            out,
            engine=backend_of(options),
            settings=settings_of(options),
            queries=queries,
            recall=options["recall"],
            metadata=metadata,
            media_root=options["media_root"],
            seed=options["seed"],
            progress=progress,
        )
    with index:
        return {**described(index), "added": len(index)}


def changed(
    gallery: Gallery | None,
    out: Path,
    metadata: Mapping[str, Mapping[str, Any]] | None,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Change an index that is there, and return what is printed of it."""
    from modalign.index import load_index
    from modalign.index.index import STALE_SHARE

    report: dict[str, Any] = {"added": 0, "deleted": 0, "rebuilt": False}
    with load_index(out) as index, bars() as progress:
        queries = asked_queries(index, options)
        if gallery is not None:
            report["added"] = index.add_gallery(
                gallery, metadata=metadata, replace=options["replace"], progress=progress
            )
        if options["deleted"]:
            report["deleted"] = index.delete(options["deleted"])
        report["rebuilt"] = bool(options["rebuild"] or index.stale_share > STALE_SHARE)
        if report["rebuilt"]:
            index.rebuild(
                backend_of(options) if is_typed("backend") or settings_of(options) else None,
                settings=settings_of(options),
                queries=queries,
                recall=options["recall"],
                seed=options["seed"],
                progress=progress,
            )
        elif queries:
            index.tune(queries, recall=options["recall"], seed=options["seed"])
        return {**described(index), **report}


def asked_queries(
    stored: Gallery | Index, options: Mapping[str, Any]
) -> dict[str, np.ndarray] | None:
    """Return real queries of every modality with a way to what is stored; None of none."""
    if options["queries"] is None:
        return None
    from modalign.cli.using import open_measured

    space, encoded, directions = open_measured(
        options["space"],
        options["queries"],
        options["split"],
        (None, stored.modality),
        options=options,
    )
    space.check_gallery(stored)
    sources = dict.fromkeys([source for source, _ in directions] + [stored.modality])
    return {
        source: embedded(space, encoded, source, stored.modality, options) for source in sources
    }


def embedded(
    space: Space, encoded: EncodedPairs, source: str, target: str, options: Mapping[str, Any]
) -> np.ndarray:
    """Return what is asked of a target's gallery by some of the items of a split."""
    import numpy as np

    from modalign.space.space import chosen_split

    members = encoded.pairs.members(source, split=chosen_split(encoded.pairs, options["split"]))
    drawn = np.random.default_rng(options["seed"]).permutation(len(members))[:QUERIES]
    rows = np.sort(members[drawn])
    features = encoded.tables[source].subset(rows).take(np.arange(len(rows)))
    return space.query(features, source=source, target=target)


def compared(gallery: Gallery, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what each kind costs and keeps."""
    from modalign.index.comparing import compare_kinds

    queries = asked_queries(gallery, options)
    with bars() as progress, tempfile.TemporaryDirectory(prefix="modalign-report-") as folder:
        figures = compare_kinds(
            gallery,
            Path(folder) / "index",
            queries=queries,
            recall=options["recall"],
            seed=options["seed"],
            progress=progress,
        )
    return [each.as_json() for each in figures]


def described(index: Index) -> dict[str, Any]:
    """Return what is printed of any index."""
    figures = index.figures()
    return {
        "index": str(index.folder),
        "modality": index.modality,
        "items": figures["items"],
        "width": index.width,
        "engine": figures["engine"],
        "engine_bytes": figures["engine_disk_bytes"],
        "vector_bytes": figures["vector_bytes"],
        "build_seconds": figures["build_seconds"],
        "stale_share": round(index.stale_share, 4),
        "tuning": index.calibrations(),
        "fields": sorted(index.metadata_fields()),
    }


def print_report(report: Mapping[str, Any]) -> None:
    """Print what was done, and what a user must know."""
    if "index" in report:
        click.echo(
            f"index {report['index']}: {report['items']:,} {report['modality']} vectors of width "
            f"{report['width']}, engine {report['engine']}"
        )
        for verb in ("added", "deleted"):
            if report.get(verb):
                click.echo(f"  {report[verb]:,} {verb}")
        for entry in report["tuning"].values():
            click.echo(f"  {tuned(entry)}")
            if entry["note"]:
                click.echo(f"  NOTE: {entry['note']}")
    if "report" in report:
        from modalign.index.comparing import KindFigures, format_figures

        click.echo(format_figures([KindFigures(**each) for each in report["report"]]))


def tuned(entry: Mapping[str, Any]) -> str:
    """Return what was found for one modality of queries, in words."""
    who = f"{entry['source']} queries" if entry["source"] else "the gallery's own vectors"
    if not entry["reached"]:
        return f"{who}: searched exactly"
    effort = ", ".join(f"{name} {value}" for name, value in entry["effort"].items())
    return (
        f"{who}: recall@{entry['k']} {entry['kept']:.4f} on those not tuned by, wanted "
        f"{entry['wanted']}; {effort}; {entry['milliseconds']:.2f} ms a query"
    )
