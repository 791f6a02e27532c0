"""Commands that tell: encoders, recipes, doctor."""

from __future__ import annotations

import click

from modalign.cli.options import common
from modalign.cli.output import print_json


@click.command()
@common
def encoders(as_json: bool, debug: bool) -> None:
    """List the encoder adapters: what may stand in front of the colon in --encoder."""
    from modalign.encoders import known_encoders

    adapters = known_encoders()
    if as_json:
        print_json({"encoders": [vars(adapter) for adapter in adapters.values()]})
        return
    for adapter in adapters.values():
        click.echo(f"{adapter.name:10s}  {adapter.summary}")


@click.command()
@common
def recipes(as_json: bool, debug: bool) -> None:
    """List the recipes and every default in them."""
    from modalign.recipes import RECIPES

    if as_json:
        shown = [
            {"name": name, "summary": text, "fields": recipe.as_json()}
            for name, (recipe, text) in RECIPES.items()
        ]
        print_json({"recipes": shown})
        return
    for name, (recipe, text) in RECIPES.items():
        click.echo(f"{name}: {text}")
        for key, value in recipe.as_json().items():
            click.echo(f"    {typed(key, value)}")


def typed(name: str, value: object) -> str:
    """Return a recipe's field as it is typed on the command line."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag} {value}"


@click.command()
@common
def doctor(as_json: bool, debug: bool) -> None:
    """Check this machine: packages, versions, cache, speed; exit 1 if something will fail."""
    from modalign.doctor import examine

    findings = examine()
    if as_json:
        print_json({"ok": all(f.ok for f in findings), "findings": [vars(f) for f in findings]})
    else:
        for finding in findings:
            click.echo(f"{'ok ' if finding.ok else 'BAD'}  {finding.what}: {finding.found}")
            if finding.advice:
                click.echo(f"     {finding.advice}")
    if not all(finding.ok for finding in findings):
        raise click.exceptions.Exit(1)
