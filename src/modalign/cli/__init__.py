"""The command line: `modalign COMMAND`. It reads options, calls the core, and prints."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from types import FrameType
from typing import Any, NoReturn

import click

from modalign.errors import ModalignError

# Command -> the module of this package that holds it and what help says of it. A module is
# imported when its command is called: `modalign --help` loads no torch.
COMMANDS = {
    "demo": ("demo", "The whole story on data it draws itself; no download, no account."),
    "probe": ("probing", "Say how well encoders agree on pairs, before anything is trained."),
    "forecast": ("probing", "Say what more pairs would bring, before anyone collects them."),
    "align": ("making", "Join two encoders into a new space."),
    "add": ("making", "Add a modality to a space; nothing stored moves."),
    "attach": ("attaching", "Search a store that is there by another modality; it is only read."),
    "encode": ("making", "Encode items into the feature cache, and do no more."),
    "embed": ("using", "Embed items into a gallery."),
    "index": ("indexing", "Make a gallery fast to search, add to it, delete from it."),
    "search": ("using", "Search galleries by text, picture, sound or clip."),
    "serve": ("serving", "Serve a space and its indexes over HTTP, with a page to search on."),
    "evaluate": ("using", "Measure retrieval on held-out pairs."),
    "robustness": ("robustness", "Measure what is left of recall when queries are perturbed."),
    "compare": ("comparing", "Compare recipes and options on the same features, side by side."),
    "verify": ("using", "Prove that no stage and no gallery changed by one bit."),
    "report": ("reporting", "Write a page about a space: figures, stages, experts, proof."),
    "encoders": ("facts", "List the encoder adapters."),
    "recipes": ("facts", "List the recipes and every default in them."),
    "doctor": ("facts", "Check this machine: packages, versions, cache, speed."),
}


class Interrupted(Exception):  # noqa: N818 - it is no error
    """The user has pressed Ctrl-C."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order they are used in."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import a command."""
        if name not in COMMANDS:
            return None
        command = getattr(import_module(f"modalign.cli.{COMMANDS[name][0]}"), name)
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; click would write an empty line where it is interrupted."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list without importing what is listed."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


# Each line as it stands, which click does after a \b of its own line.
HELP = """Your encoders. Your pairs. One search.

modalign joins frozen encoders of any modality with a small connector trained on a few
thousand pairs, on a CPU if need be, and adds a modality later without moving a stored bit.

\b
modalign demo                            try it, nothing to prepare
modalign align photos.csv --encoder image=onnx:mobilenet.onnx \\
    --encoder text=hub:sentence-transformers/all-MiniLM-L6-v2 --out space
modalign embed space photos/ --modality image --out gallery
modalign search space gallery --text "two dogs on a beach"
"""


@click.group(cls=LazyGroup, help=HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="modalign", prog_name="modalign")
def cli() -> None:
    """Hold the commands."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return 0, or 1 where the data must change, or 2 where the call must."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug, as_json = "--debug" in given, "--json" in given
    # Threads that wait asleep: spinning ones make a step ten times slower where another process
    # needs a core. It must be said before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    with suppress(ValueError):  # outside of a program's main thread
        signal.signal(signal.SIGTERM, interrupt)
    try:
        status = cli.main(given, prog_name="modalign", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.ClickException as error:
        message = f"{error.format_message().rstrip('.')}; see `{command_of(error)} --help`"
        return fail(message, 2, as_json=as_json)
    except ModalignError as error:
        if debug:
            raise
        return fail(str(error), error.exit_code, as_json=as_json)
    except (Interrupted, KeyboardInterrupt, click.Abort):
        message = "interrupted; finished work is kept, run the same command again to go on"
        return fail(message, 1, as_json=as_json)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if debug:
            raise
        return fail(describe(error), 1, as_json=as_json)


def interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """End a command that is told to as Ctrl-C does, so that nothing half-made is left."""
    raise KeyboardInterrupt


def fail(message: str, status: int, *, as_json: bool) -> int:
    """Say in one line on stderr what is wrong, and as JSON on stdout; return the exit status."""
    line = " ".join(message.split())
    click.echo(f"modalign: {line}", err=True)
    if as_json:
        error = {"message": line, "exit_code": status}
        click.echo(json.dumps({"error": error}, indent=2, ensure_ascii=False))
    return status


def command_of(error: click.ClickException) -> str:
    """Return the command whose call is wrong, as it is typed."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    return context.command_path if context else "modalign"


def describe(error: OSError) -> str:
    """Return what the system refused, and the way out."""
    where = f"{error.filename}: " if error.filename else ""
    if error.errno == errno.ENOSPC:
        return f"{where}the disk is full; free some space and run the same command again"
    return f"{where}{error.strerror or error}; see --debug for where"
