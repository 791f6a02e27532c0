"""The demo command."""

from __future__ import annotations

from pathlib import Path

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
    sounds, then clips, by captions alone; searches all twelve directions; proves that nothing
    stored moved; writes report.html and report.json.
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
    click.echo(f"{sum(result.seconds.values()):.0f} s in all; look at {out / 'report.html'}\n")
    for line in commands(str(out / "space"), str(out))[:5]:
        click.echo(line)
