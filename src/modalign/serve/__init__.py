"""A space and its indexes over HTTP, for programs and for the page; no mathematics.

    running     the socket, the signals, the one line that says where it is
    app         the routes, one function each
    guard       what every request passes: host, token, headers, figures
    requests    fields of a request -> what is asked for
    uploads     a request's body, read no further than is allowed, and its files
    service     what is asked for -> the space
    batching    what many requests ask at a time is done together: encoding, searching
    indexes     what is searched: an index, or a gallery

It needs the extra `serve`; `check_extras` says so.
"""

from __future__ import annotations

from modalign.errors import import_extra

PACKAGES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client", "orjson")


def check_extras() -> None:
    """Raise a MissingExtraError unless the packages of the server are installed."""
    for package in PACKAGES:
        import_extra(package, extra="serve")
