"""A server from its socket to its end: Ctrl-C and SIGTERM finish what was taken, then stop."""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager

import uvicorn

from modalign.errors import UsageError
from modalign.serve.app import make_app
from modalign.serve.service import Service
from modalign.serve.settings import Settings

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Beyond a request's own time, for what is being sent.
GRACE_S = 5
# Connections that wait to be taken.
BACKLOG = 2048


class Server(uvicorn.Server):
    """uvicorn's, which says when it listens and ends calmly when it is told to."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        if self.started:
            self._started()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Stop at a signal; uvicorn would raise it again when all is done."""
        before = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def bind(settings: Settings) -> socket.socket:
    """Take the address, before anything is loaded.

    Raises:
        UsageError: It is taken, or not this machine's.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # By its protocol asyncio knows that small answers are to be sent at once: without it each waits
    # 40 ms for the other side.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((settings.host, settings.port))
        listening.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        listening.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"--host {settings.host} --port {settings.port}: cannot be listened on ({reason}); "
            "choose another port, 0 for any that is free",
            port=settings.port,
        ) from error
    return listening


def address(settings: Settings, listening: socket.socket) -> str:
    """Return where a browser finds the server."""
    port = listening.getsockname()[1]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def run(
    service: Service,
    listening: socket.socket,
    *,
    started: Callable[[], None],
    log_requests: bool = False,
) -> None:
    """Serve until a signal comes."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    # What is no HTTP or no form is refused; it need not be told each time.
    for name in ("uvicorn.error", "python_multipart"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if log_requests:
        logging.getLogger("uvicorn.access").setLevel(logging.INFO)
    config = uvicorn.Config(
        make_app(service),
        log_config=None,
        access_log=log_requests,
        server_header=False,
        lifespan="on",
        backlog=BACKLOG,
        ws="none",
        timeout_graceful_shutdown=int(service.settings.timeout_s) + GRACE_S,
    )
    Server(config, started).run(sockets=[listening])
