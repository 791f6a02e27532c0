"""Options that commands share, and flags made from the recipe's fields."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from modalign.errors import UsageError
from modalign.recipes import (
    CHECKPOINT_SECONDS,
    RECIPE_CLASSES,
    RECIPES,
    Recipe,
    flag_fields,
    read_value,
)

SEED = click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0, 2**32 - 1),
    metavar="INTEGER",
    help="Number that fixes every random draw; the same number gives the same result.",
)
# Of commands that draw nothing: a script may give it to every command.
UNUSED_SEED = click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), hidden=True, expose_value=False
)
Command = TypeVar("Command", bound=Callable[..., Any])


def common(command: Command) -> Command:
    """Add what every command has."""
    for option in reversed(
        [
            click.option(
                "--json",
                "as_json",
                is_flag=True,
                help="Print the result, or the error, as one JSON object on stdout, for scripts.",
            ),
            click.option("--debug", is_flag=True, help="Show the traceback of an error."),
        ]
    ):
        command = option(command)
    return command


def computing(command: Command) -> Command:
    """Add what every command that computes has, and a --seed."""
    return _computing(command, SEED)


def drawless(command: Command) -> Command:
    """Add what every command that computes has; a --seed is taken, and changes nothing."""
    return _computing(command, UNUSED_SEED)


def _computing(command: Command, seed: Callable[..., Any]) -> Command:
    for option in reversed(
        [
            seed,
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


def encoder_option(default: str) -> Callable[[Command], Command]:
    """Return --encoder; help says what holds where it is left out."""
    return click.option(
        "--encoder",
        "encoders",
        multiple=True,
        metavar="MODALITY=SPEC",
        help="As in image=onnx:mobilenet.onnx; `modalign encoders` lists the adapters.  "
        f"[{default}]",
    )


ENCODER = encoder_option("required")
# Of commands that use a space, which names its encoders.
OWN_ENCODER = encoder_option("default: the space's own")
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
VALIDATION = click.option(
    "--validation",
    default=0.1,
    show_default=True,
    help="Share held out where the pairs have no split column.",
)
SPACE = click.argument("space", type=click.Path(path_type=Path))


@dataclass(frozen=True)
class RecipeFlag:
    """A flag made from the field of that name in one family's recipe or in several.

    Attributes:
        name: Of the field.
        defaults: By family.
        help: What the field says of itself.
        fixed: Whether no family lets a later stage change it.
        choices: The values there are, where they can be listed.
    """

    name: str
    defaults: dict[str, Any]
    help: str
    fixed: bool
    read: Callable[[str], Any]
    choices: tuple[str, ...] = ()

    def declared(self) -> str:
        """Return the flag as click takes it."""
        name = self.name.replace("_", "-")
        return f"--{name}/--no-{name}" if self.kind is bool else f"--{name}"

    @property
    def metavar(self) -> str | None:
        """What help shows for the value, None for the type's name."""
        return f"[{'|'.join(self.choices)}]" if self.choices else None

    @property
    def kind(self) -> type:
        """What click takes the value by; what has a form of its own is read afterwards."""
        return self.read if isinstance(self.read, type) else str

    def shown_default(self) -> str:
        """Return the defaults as they are typed, each family's where they differ."""
        shown = {family: shown_value(value) for family, value in self.defaults.items()}
        if len(set(shown.values())) == 1:
            return next(iter(shown.values()))
        return "; ".join(f"{family} {value}" for family, value in shown.items())


def seeds(text: str) -> Callable[[Command], Command]:
    """Return the option of how many seeds; `text` says of what."""
    return click.option(
        "--seeds", "count", default=3, show_default=True, type=click.IntRange(1), help=text
    )


def every_recipe_flag() -> list[RecipeFlag]:
    """Return a flag for each field of any family's recipe, in the order of the fields."""
    found: dict[str, list[tuple[type[Recipe], Any]]] = {}
    for recipe in RECIPE_CLASSES:
        for item in flag_fields(recipe):
            found.setdefault(item.name, []).append((recipe, item))
    return [
        RecipeFlag(
            name,
            {recipe.family: item.default for recipe, item in entries},
            described(entries),
            all(name in recipe.shared_fields for recipe, _ in entries),
            entries[0][1].metadata["read"],
            entries[0][1].metadata["choices"],
        )
        for name, entries in found.items()
    ]


def described(entries: Sequence[tuple[type[Recipe], Any]]) -> str:
    """Return a field's help, with the recipes behind where only those of one family have it."""
    text, family = str(entries[0][1].metadata["help"]), entries[0][0]
    if len(entries) == len(RECIPE_CLASSES):
        return text
    names = [name for name, (recipe, _) in RECIPES.items() if type(recipe) is family]
    return f"{text} ({', '.join(names)} only)"


def recipe_flags(*, later: bool = False) -> Callable[[Command], Command]:
    """Add one flag a recipe field; the fields are the only home of the defaults.

    Args:
        later: For a later stage: help leaves out what it cannot change, and says whose the
            defaults are.
    """

    def add(command: Command) -> Command:
        for flag in reversed(every_recipe_flag()):
            shown = "the space's" if later else flag.shown_default()
            command = click.option(
                flag.declared(),
                flag.name,
                default=None,
                type=flag.kind,
                metavar=flag.metavar,
                help=f"{flag.help}.  [default: {shown}]",
                hidden=later and flag.fixed,
            )(command)
        return command

    return add


def shown_value(value: Any) -> str:
    """Return a default as it is typed."""
    return ("on" if value else "off") if isinstance(value, bool) else str(value)


def recipe_changes(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe fields that the call sets.

    Raises:
        UsageError: A value cannot be read.
    """
    reads = {flag.name: flag.read for flag in every_recipe_flag()}
    return {
        name: read_value(name, reads[name], value) if isinstance(value, str) else value
        for name, value in options.items()
        if name in reads and value is not None
    }


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


def is_typed(name: str) -> bool:
    """Return whether an option of the running command is on its command line."""
    source = click.get_current_context().get_parameter_source(name)
    return source is click.core.ParameterSource.COMMANDLINE


def check_there(path: Path, *, what: str) -> None:
    """Raise a UsageError where a path that was typed leads to nothing."""
    if not path.exists():
        raise UsageError(
            f"{what} {path}: there is no such file or folder; correct the path", file=str(path)
        )


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
