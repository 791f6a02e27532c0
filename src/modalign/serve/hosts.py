"""The names a server goes by.

A page of the web can point its own name at 127.0.0.1 and then read what a server there says
(DNS rebinding): the browser takes both for one place. The Host header still tells them apart.
"""

from __future__ import annotations

from collections.abc import Iterable

LOOPBACK = ("localhost", "127.0.0.1", "::1")


class HostCheck:
    """Checks the Host and Origin headers against a server's names.

    Args:
        names: Without ports; None lets every name pass.
    """

    def __init__(self, names: Iterable[str] | None) -> None:
        self._names = None if names is None else {bare(name) for name in names}

    def passes(self, host: bytes, origin: bytes = b"") -> bool:
        """Return whether a request is meant for this server, and comes from no other's page.

        Args:
            host: The header; a request without one does not pass.
            origin: The page that sends it, as in http://localhost:8000; empty where none does.
        """
        if self._names is None:
            return True
        name, page = host.decode("latin-1"), origin.decode("latin-1")
        if bare(name) not in self._names:
            return False
        return not page or bare(page.partition("://")[2]) in self._names


def bare(host: str) -> str:
    """Return a name without its port and brackets, in small letters."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host if host.count(":") > 1 else host.partition(":")[0]
