"""What a client is told where a request cannot be answered, and how it is sent.

RefusedError carries what HTTP knows and the core does not. What the core raises is mapped here,
once; messages lose the paths of the server.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from http import HTTPStatus

import orjson
from starlette.responses import Response

from modalign.errors import CorruptError, DataError, ModalignError, OverloadedError, UsageError

RETRY_AFTER_S = 1


class RefusedError(ModalignError):
    """A request that HTTP has a status of its own for.

    Attributes:
        status: Of the response.
        kind: `type` in the body.
        headers: To be sent with it.
    """

    status = HTTPStatus.BAD_REQUEST
    kind = "usage"
    headers: Mapping[str, str] = {}


class UnauthorizedError(RefusedError):
    """The token is missing or another."""

    status = HTTPStatus.UNAUTHORIZED
    kind = "unauthorized"
    headers = {"WWW-Authenticate": "Bearer"}  # noqa: RUF012 - never changed


class NotThereError(RefusedError):
    """There is no such route, index, item or file."""

    status = HTTPStatus.NOT_FOUND
    kind = "not_found"


class TooLargeError(RefusedError):
    """The body, a file or a text is larger than the server takes."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    kind = "too_large"


class UnsupportedError(RefusedError):
    """The body is of a type that is not read."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE


class TimeLimitError(RefusedError):
    """The request has used up its time."""

    status = HTTPStatus.GATEWAY_TIMEOUT
    kind = "timeout"


class Refusals:
    """Turns errors into responses.

    Args:
        names: What is said instead of a path of the server.
    """

    def __init__(self, names: Iterable[tuple[str, str]] = ()) -> None:
        # The longest first: one may lie in another.
        self._names = sorted(names, key=lambda pair: -len(pair[0]))

    def response(self, error: Exception) -> Response:
        """Return what is sent for an error."""
        status, kind, headers = described(error)
        message = "the server failed; its log says how"
        if kind != "internal":
            message = self.without_paths(str(error))
        return error_response(status, kind, message, headers)

    def without_paths(self, message: str) -> str:
        """Return a message that names things as clients know them."""
        for path, name in self._names:
            message = message.replace(path, name)
        return message


def described(error: Exception) -> tuple[int, str, Mapping[str, str]]:
    """Return the status, the type and the headers of an error."""
    if isinstance(error, RefusedError):
        return error.status, error.kind, error.headers
    if isinstance(error, OverloadedError):
        return HTTPStatus.SERVICE_UNAVAILABLE, "overloaded", {"Retry-After": str(RETRY_AFTER_S)}
    # What is stored here is not what was written: no client can mend it.
    if isinstance(error, CorruptError):
        return HTTPStatus.INTERNAL_SERVER_ERROR, "internal", {}
    if isinstance(error, DataError):
        return HTTPStatus.UNPROCESSABLE_ENTITY, "data", {}
    if isinstance(error, UsageError):
        return HTTPStatus.BAD_REQUEST, "usage", {}
    return HTTPStatus.INTERNAL_SERVER_ERROR, "internal", {}


def error_response(
    status: int, kind: str, message: str, headers: Mapping[str, str] | None = None
) -> Response:
    """Return the response that all errors come as."""
    return json_response({"error": {"message": message, "type": kind}}, status, headers)


def json_response(
    value: object, status: int = HTTPStatus.OK, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a response of one JSON value; text that is no valid Unicode comes escaped."""
    try:
        body = orjson.dumps(value)
    except TypeError:
        # Half a surrogate pair, or a whole number of more than 64 bits.
        body = json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")
    return Response(body, status, headers, media_type="application/json")
