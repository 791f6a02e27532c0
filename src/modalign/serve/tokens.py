"""The token that clients show: where it comes from, and comparing it."""

from __future__ import annotations

import hmac
import os
from collections.abc import Mapping
from pathlib import Path

from modalign.errors import UsageError

VARIABLE = "MODALIGN_TOKEN"


def read_token(file: Path | None, environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the token of a file, or of the environment; None where there is neither.

    Raises:
        UsageError: The file cannot be read, or the token is empty or no plain ASCII word.
    """
    where, token = f"${VARIABLE}", environment.get(VARIABLE)
    if file is not None:
        where = f"--token-file {file}"
        try:
            token = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "no text"
            raise UsageError(f"{where}: cannot be read ({reason}); check the path") from error
    if token is not None and not (token.isascii() and token.isprintable() and token.split()):
        raise UsageError(f"{where}: holds no token, expected one word of ASCII; write one into it")
    return token


class TokenCheck:
    """Compares what clients show, in a time that does not tell how much of it is right."""

    def __init__(self, token: str | None) -> None:
        self._expected = None if token is None else token.encode()

    def passes(self, authorization: bytes) -> bool:
        """Return whether a header `Authorization: Bearer TOKEN` shows it, or none is asked for."""
        if self._expected is None:
            return True
        scheme, _, shown = authorization.partition(b" ")
        same = hmac.compare_digest(shown.strip(), self._expected)
        return scheme.lower() == b"bearer" and same
