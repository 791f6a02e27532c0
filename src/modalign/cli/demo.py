"""The demo command."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import click

from modalign.cli.options import SEED, common, use_threads
from modalign.cli.output import bars, print_directions, print_json


@click.command()
@click.option(
    "--out",
    default="modalign-demo",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder of all it makes; interrupted, the same call goes on.",
)
@SEED
@click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: all cores]")
@common
def demo(out: Path, seed: int, threads: int | None, as_json: bool, debug: bool) -> None:
    """The whole story on data it draws itself; no download, no account.

    Draws scenes as pictures, captions, sounds and clips; aligns pictures with captions; adds
    sounds, then clips, by captions alone; searches all twelve directions; attaches pictures,
    sounds and clips to a store of caption vectors that is only read; proves that nothing stored
    moved; writes report.html and report.json.
    """
    use_threads(threads)
    from modalign.demo import Demo, commands, run_demo

    with bars() as progress:
        result = run_demo(Demo(out, seed=seed, progress=progress))
    shown = result.as_json()
    if as_json:
        print_json(shown)
        return
    print_directions(shown["directions"])
    unpaired = [d for d in shown["directions"] if not d["paired"]]
    click.echo(f"\n{len(unpaired)} of these directions were never paired in training.")
    state = "unchanged, bit by bit" if result.verify["ok"] else "CHANGED"
    click.echo(f"picture gallery stored before sounds and clips were added: {state}")
    print_stored(result.stored)
    click.echo(f"{sum(result.seconds.values()):.0f} s in all; look at {out / 'report.html'}\n")
    program = program_name()
    for line in commands(str(out / "space"), str(out))[:9]:
        click.echo(line.replace("modalign", program, 1) if line[0] != "#" else line)


def program_name() -> str:
    """Return how this program is typed here: its path where the shell would not find it."""
    running = Path(sys.argv[0]).resolve()
    found = shutil.which("modalign")
    if running.name != "modalign" or (found and Path(found).resolve() == running):
        return "modalign"
    return os.path.relpath(running)


def print_stored(found: dict[str, Any]) -> None:
    """Print what was found in vectors that were stored beforehand."""
    for line in found["directions"]:
        click.echo(
            f"stored captions searched by {line['from']}: R@1 {line['recall_at_1']:.3f}, R@10 "
            f"{line['recall_at_10']:.3f}, {line['queries']} queries in {line['gallery']:,}"
        )
    state = "unchanged, equal checksums" if found["unchanged"] else "CHANGED"
    click.echo(f"the store of caption vectors, only read: {state}")
