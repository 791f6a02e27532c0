"""What every request passes: the server's names, the token, the headers of safety, the figures."""

from __future__ import annotations

import time
from http import HTTPStatus

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modalign.errors import UsageError
from modalign.serve.hosts import HostCheck
from modalign.serve.metrics import Metrics
from modalign.serve.refusals import Refusals, RefusedError, UnauthorizedError
from modalign.serve.tokens import TokenCheck
from modalign.serve.uploads import drain

# Where a route says what it is counted under.
ROUTE = "modalign.route"
# What says nothing of what is served: a browser asks for it before it has a token.
OPEN = ("/", "/healthz", "/readyz", "/docs", "/favicon.ico")
OPEN_BELOW = ("/page/", "/docs/")
SAFETY = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
        b"object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    ),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"permissions-policy", b"microphone=(self), camera=(), geolocation=()"),
)
CACHE = b"cache-control"


class Guard:
    """Wraps an application.

    Args:
        app: What is guarded.
        hosts: The server's names.
        token: What clients must show.
        refusals: How errors are sent.
        metrics: Where requests are counted.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: HostCheck,
        token: TokenCheck,
        refusals: Refusals,
        metrics: Metrics,
    ) -> None:
        self._app = app
        self._hosts = hosts
        self._token = token
        self._refusals = refusals
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            # There are no web sockets; the application refuses them.
            await self._app(scope, receive, send)
            return
        begin, status = time.perf_counter(), int(HTTPStatus.INTERNAL_SERVER_ERROR)

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *SAFETY, *cached(message)]
            await send(message)

        try:
            refused = self._refused(scope)
            if refused is None:
                await self._app(scope, receive, sending)
            else:
                await drain(Request(scope, receive))
                await self._refusals.response(refused)(scope, receive, sending)
        finally:
            seconds = time.perf_counter() - begin
            self._metrics.answered(scope.get(ROUTE, "other"), method_of(scope), status, seconds)

    def _refused(self, scope: Scope) -> RefusedError | UsageError | None:
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"")
        if not self._hosts.passes(host, headers.get(b"origin", b"")):
            return UsageError(
                f"host {host.decode('latin-1')[:80]!r}: this server goes by another name, or the "
                "request is another page's; name it with --allow-host if it is meant"
            )
        path = scope["path"]
        if path in OPEN or path.startswith(OPEN_BELOW):
            return None
        if not self._token.passes(headers.get(b"authorization", b"")):
            return UnauthorizedError(
                "token: is missing or another, expected the header Authorization: Bearer TOKEN"
            )
        return None


def cached(message: Message) -> list[tuple[bytes, bytes]]:
    """Return what is said of keeping an answer, where the answer does not say it."""
    if any(name.lower() == CACHE for name, _ in message.get("headers", ())):
        return []
    return [(CACHE, b"no-cache")]


def method_of(scope: Scope) -> str:
    """Return a request's method as it is counted: clients may make up any number of others."""
    method = str(scope["method"])
    return method if method in ("GET", "HEAD", "POST", "OPTIONS") else "other"
