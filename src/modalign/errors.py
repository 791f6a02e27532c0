"""What can go wrong, as a tree.

    ModalignError
    ├── UsageError (ValueError)        the call must change        exit 2
    │   ├── ShapeError                 two arrays do not fit each other
    │   └── MismatchError              two artefacts do not belong together
    ├── DataError                      the data must change        exit 1
    │   └── CorruptError               something stored is not what was written
    ├── MissingExtraError (ImportError) an optional package is not installed, exit 2
    └── OverloadedError                too much at once, try again later

Messages read «where: what is, what was expected; the way out». The values they
name are attributes too: ``DataError("...", file="pairs.csv", row=3).row == 3``.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from types import ModuleType
from typing import Any


class ModalignError(Exception):
    """Base of every error raised on purpose.

    Args:
        message: One line for the user.
        details: Values the message names, kept as attributes.
    """

    exit_code = 1

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.details = details
        for name, value in details.items():
            setattr(self, name, value)


class UsageError(ModalignError, ValueError):
    """The call must change."""

    exit_code = 2


class ShapeError(UsageError):
    """Two arrays do not fit each other."""


class MismatchError(UsageError):
    """Two artefacts do not belong together: another encoder, another space."""


class DataError(ModalignError):
    """The data must change."""


class CorruptError(DataError):
    """Something stored is not what was written."""


class MissingExtraError(ModalignError, ImportError):
    """An optional package is not installed."""

    exit_code = 2


class OverloadedError(ModalignError):
    """Too much at once; the same call may go through later."""


def check_known(name: str, known: Iterable[str], *, what: str) -> None:
    """Raise a UsageError that lists the known names unless `name` is one of them."""
    names = sorted(known)
    if name not in names:
        raise UsageError(
            f"{what} {name!r} is unknown; known: {', '.join(names) or 'none'}",
            name=name,
            known=names,
        )


def import_extra(module: str, *, extra: str) -> ModuleType:
    """Import an optional package, or raise a MissingExtraError with the install line.

    Args:
        module: The module's dotted name.
        extra: The extra of modalign that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] != module.split(".")[0]:
            raise
        package = module.split(".")[0]
        raise MissingExtraError(
            f"{package} is not installed; run: pip install 'modalign[{extra}]'",
            package=package,
            extra=extra,
        ) from error
