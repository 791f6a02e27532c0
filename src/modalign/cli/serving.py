"""The command that puts a space and its indexes on HTTP: serve."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modalign.cli.options import OWN_ENCODER, SPACE, common, use_machine
from modalign.errors import UsageError

if TYPE_CHECKING:
    from modalign.serve.service import Service

SWITCH_S = 0.0005


@click.command()
@SPACE
@click.option(
    "--index",
    "indexes",
    multiple=True,
    required=True,
    metavar="[NAME=]INDEX",
    help="An index or a gallery to search in, or a folder of them, as often as needed.  [default "
    "name: the folder's]",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    default=8000,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port to listen on; 0 takes a free one.",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File with the word that clients must show.  [default: $MODALIGN_TOKEN, else none]",
)
@click.option(
    "--allow-host",
    "allowed_hosts",
    multiple=True,
    metavar="NAME",
    help="A further name the server goes by, as behind a proxy.",
)
@click.option(
    "--media-root",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="The folder that media may be sent from.  [default: each index's own]",
)
@click.option(
    "--upload-mb",
    default=32,
    show_default=True,
    type=click.IntRange(1, 4096),
    help="Size of a request's files together, MiB.",
)
@click.option(
    "--queue",
    default=64,
    show_default=True,
    type=click.IntRange(1),
    help="Items that wait for one encoder; beyond them clients are told to come back.",
)
@click.option(
    "--batch",
    default=16,
    show_default=True,
    type=click.IntRange(1),
    help="Items that one encoder takes together.",
)
@click.option(
    "--timeout-s",
    default=30.0,
    show_default=True,
    type=click.FloatRange(0.1),
    help="Time limit of a request.",
)
@click.option(
    "--workers", type=click.IntRange(1), help="Searches at a time.  [default: as many as cores]"
)
@click.option("--access-log", is_flag=True, help="One line on stderr for each request.")
@OWN_ENCODER
@click.option("--device", default="cpu", show_default=True, help="A torch device.")
@click.option(
    "--threads",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="CPU threads of one encoder or one search; several of them run at a time.",
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where thumbnails are kept.  [default: $MODALIGN_CACHE or the user's cache]",
)
@common
def serve(space: Path, indexes: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Serve a space and its indexes over HTTP, with a page to search on.

    It listens on this machine alone unless --host says otherwise, and then asks for a token.
    Ctrl-C finishes what was taken and stops.
    """
    from modalign.serve import check_extras

    check_extras()
    # Prepared products of matrices that are kept, by their shapes: a server meets hundreds of
    # shapes, and torch would keep a thousand. It must be said before torch is loaded.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
    # The thread that answers waits that long for one that computes, at every answer: 5 ms are
    # Python's own.
    sys.setswitchinterval(SWITCH_S)
    use_machine(options)
    from modalign.serve.memory import keep_loaded
    from modalign.serve.running import address, bind, run
    from modalign.serve.settings import MEBIBYTE, Settings
    from modalign.serve.tokens import read_token

    chosen = {name: options[name] for name in ("host", "port", "queue", "batch", "timeout_s")}
    if options["workers"]:
        chosen["workers"] = options["workers"]
    settings = Settings(
        **chosen,
        token=read_token(options["token_file"]),
        upload_bytes=options["upload_mb"] * MEBIBYTE,
        media_root=options["media_root"],
        allowed_hosts=options["allowed_hosts"],
    )
    with bind(settings) as listening:
        service = open_service(space, indexes, settings, options)
        where = address(settings, listening)
        keep_loaded()
        run(
            service,
            listening,
            started=lambda: announce(service, where, as_json=as_json),
            log_requests=options["access_log"],
        )


def open_service(
    space: Path, indexes: tuple[str, ...], settings: Any, options: dict[str, Any]
) -> Service:
    """Load all that is served."""
    from modalign.cli.using import open_space
    from modalign.features import cache_folder
    from modalign.serve.indexes import each_of, open_served
    from modalign.serve.service import Service

    loaded = open_space(space, options)
    named = [each for text in indexes for each in each_of(text)]
    served = [open_served(text, media_root=settings.media_root) for text in named]
    if not served:
        raise UsageError("serve: there is no index; give --index INDEX")
    cache = options["cache"] or cache_folder()
    return Service(loaded, served, settings, cache / "thumbnails")


def announce(service: Service, where: str, *, as_json: bool) -> None:
    """Say what is served, and where to open it."""
    import json

    indexes = service.served.indexes
    if as_json:
        listed = [
            {"name": name, "modality": each.modality, "items": len(each.catalogue)}
            for name, each in indexes.items()
        ]
        said = {"url": where, "space": service.served.space, "indexes": listed}
        click.echo(json.dumps(said, ensure_ascii=False))
        return
    listed_indexes = ", ".join(
        f"{name} ({len(each.catalogue):,} {each.modality})" for name, each in indexes.items()
    )
    click.echo(f"space {service.served.space}, {listed_indexes}: open {where}  (Ctrl-C stops)")
