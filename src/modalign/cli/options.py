"""Options that commands share, and flags made from the recipe's fields."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from modalign.errors import UsageError
from modalign.recipes import CHECKPOINT_SECONDS, OneEncoderRecipe

SEED = click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0, 2**32 - 1),
    metavar="INTEGER",
    help="Of all that is drawn.",
)
Command = TypeVar("Command", bound=Callable[..., Any])


def common(command: Command) -> Command:
    """Add what every command has."""
    for option in reversed(
        [
            click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
            click.option("--debug", is_flag=True, help="Show the traceback of an error."),
        ]
    ):
        command = option(command)
    return command


def computing(command: Command) -> Command:
    """Add what every command that computes has."""
    for option in reversed(
        [
            SEED,
            click.option("--device", default="cpu", show_default=True, help="A torch device."),
            click.option(
                "--threads", type=click.IntRange(1), help="CPU threads.  [default: all cores]"
            ),
            click.option(
                "--cache",
                type=click.Path(path_type=Path, file_okay=False),
                help="Where features are kept.  [default: $MODALIGN_CACHE or the user's cache]",
            ),
            click.option(
                "--on-error",
                type=click.Choice(["raise", "skip"]),
                default="raise",
                show_default=True,
                help="What a broken item does: end the job, or be listed and left out.",
            ),
        ]
    ):
        command = option(command)
    return common(command)


ENCODER = click.option(
    "--encoder",
    "encoders",
    multiple=True,
    metavar="MODALITY=SPEC",
    help="As in image=onnx:mobilenet.onnx; `modalign encoders` lists the adapters.",
)
COLUMN = click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="MODALITY=COLUMN",
    help="Where the pairs name a column otherwise than its modality.",
)
CHECKPOINT = click.option(
    "--checkpoint-seconds",
    type=click.FloatRange(0),
    default=CHECKPOINT_SECONDS,
    show_default=True,
    help="Time between checkpoints of training: what a kill can cost.",
)
SPACE = click.argument("space", type=click.Path(path_type=Path))


def recipe_flags(*, fixed: Sequence[str] = (), default: str = "") -> Callable[[Command], Command]:
    """Add one flag a recipe field; the fields are the only home of the defaults.

    Args:
        fixed: Fields that this command cannot change; help leaves their flags out.
        default: What help says instead of the default recipe's values.
    """

    def add(command: Command) -> Command:
        for item in reversed(dataclasses.fields(OneEncoderRecipe)):
            shown = default or shown_value(item.default)
            command = click.option(
                recipe_flag(item),
                item.name,
                default=None,
                type=type(item.default),
                help=f"{item.metadata['help']}.  [default: {shown}]",
                hidden=item.name in fixed,
            )(command)
        return command

    return add


def recipe_flag(item: dataclasses.Field[Any]) -> str:
    """Return a field's flag as click declares it."""
    name = item.name.replace("_", "-")
    return f"--{name}/--no-{name}" if isinstance(item.default, bool) else f"--{name}"


def shown_value(value: Any) -> str:
    """Return a default as it is typed."""
    return ("on" if value else "off") if isinstance(value, bool) else str(value)


def recipe_changes(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe fields that the call sets."""
    names = {item.name for item in dataclasses.fields(OneEncoderRecipe)}
    return {name: value for name, value in options.items() if name in names and value is not None}


def named_values(values: tuple[str, ...], *, option: str) -> dict[str, str]:
    """Take NAME=VALUE options apart.

    Raises:
        UsageError: There is no '=', or a name comes twice.
    """
    found: dict[str, str] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not (equals and name and value):
            raise UsageError(f"--{option} {text}: expected NAME=VALUE, as in image=photo")
        if name in found:
            raise UsageError(f"--{option} {text}: {name} is given twice")
        found[name] = value
    return found


def named_columns(values: tuple[str, ...]) -> dict[str, str | None]:
    """Return the column of each --column; None for `id=` or `split=`, which are then not read.

    Raises:
        UsageError: As `named_values`.
    """
    unread = {f"{name}=": name for name in ("id", "split")}
    named = named_values(tuple(v for v in values if v not in unread), option="column")
    return {**named, **{unread[value]: None for value in values if value in unread}}


def use_machine(options: Mapping[str, Any]) -> None:
    """Set up what --threads and --device say.

    Raises:
        UsageError: There is no such device.
    """
    use_threads(options["threads"])
    if options["device"] != "cpu":
        check_device(options["device"])


def use_threads(threads: int | None) -> None:
    """Set how many CPU threads libraries start; called before they are loaded."""
    if threads:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ[name] = str(threads)
        import torch

        torch.set_num_threads(threads)


def check_device(name: str) -> None:
    """Raise a UsageError unless torch can compute on a device."""
    import torch

    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(
            f"--device {name}: cannot be used here ({str(error).splitlines()[0]}), expected cpu "
            "or a device that torch finds; `modalign doctor` shows it",
            device=name,
        ) from error
