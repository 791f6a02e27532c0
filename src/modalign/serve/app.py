"""The routes, one function each: read what is asked for, ask the service, say what it found."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import wraps
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.staticfiles import StaticFiles

from modalign import __version__
from modalign.errors import ModalignError
from modalign.serve.guard import ROUTE, Guard
from modalign.serve.hosts import LOOPBACK, HostCheck
from modalign.serve.memory import give_back_regularly
from modalign.serve.refusals import (
    NotThereError,
    Refusals,
    TimeLimitError,
    error_response,
    json_response,
)
from modalign.serve.requests import asked_embeddings, asked_search
from modalign.serve.schema import openapi_schema
from modalign.serve.service import Service, public_names
from modalign.serve.settings import Settings
from modalign.serve.tokens import TokenCheck
from modalign.serve.uploads import UploadFolder, read_fields

T = TypeVar("T")
Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]

HERE = Path(__file__).parent
PAGE = HERE / "page"
DOCS = HERE / "docs"
# A thumbnail is asked for again with its hash when an hour has passed.
THUMBNAIL_CACHE = "private, max-age=3600"


def make_app(service: Service) -> Guard:
    """Return the application that a server runs; when it is shut down, so is the service."""
    settings = service.settings
    uploads = UploadFolder(settings.upload_bytes)
    routes = Routes(service, uploads)
    refusals = Refusals(public_names(service, {"upload": uploads.path}))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        giving_back = asyncio.create_task(give_back_regularly())
        yield
        giving_back.cancel()
        await asyncio.to_thread(service.close)
        uploads.close()

    app = FastAPI(
        title="modalign",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    add_routes(app, routes, settings)
    add_handlers(app, refusals)
    return Guard(
        app,
        hosts=host_check(settings),
        token=TokenCheck(settings.token),
        refusals=refusals,
        metrics=service.metrics,
    )


def host_check(settings: Settings) -> HostCheck:
    """Return the names a server goes by; where a token keeps others out, any will do."""
    if not settings.is_loopback and not settings.allowed_hosts:
        return HostCheck(None)
    return HostCheck([*LOOPBACK, settings.host, *settings.allowed_hosts])


def add_routes(app: FastAPI, routes: Routes, settings: Settings) -> None:
    """Add every route; what computes has a time limit."""
    limited = time_limit(settings.timeout_s)
    # Where there is GET there is HEAD.
    table: list[tuple[str, list[str], Endpoint]] = [
        ("/v1/search", ["POST"], limited(routes.search)),
        ("/v1/embeddings", ["POST"], limited(routes.embeddings)),
        ("/v1/spaces", ["GET"], limited(routes.spaces)),
        ("/v1/items/{id:path}", ["GET"], limited(routes.item)),
        ("/v1/media/{index}/{id:path}", ["GET"], routes.media),
        ("/v1/thumbnails/{index}/{id:path}", ["GET"], limited(routes.thumbnail)),
        ("/healthz", ["GET"], routes.healthz),
        ("/readyz", ["GET"], routes.readyz),
        ("/metrics", ["GET"], routes.metrics),
        ("/openapi.json", ["GET"], routes.openapi),
        ("/docs", ["GET"], routes.docs),
        ("/", ["GET"], routes.page),
    ]
    for path, methods, endpoint in table:
        # Starlette's own: FastAPI's would look for parameters at every request, and there are none.
        app.add_route(path, counted(path, endpoint), methods=methods, include_in_schema=False)
    app.mount("/page", StaticFiles(directory=PAGE, check_dir=False))
    app.mount("/docs", StaticFiles(directory=DOCS, check_dir=False))


def add_handlers(app: FastAPI, refusals: Refusals) -> None:
    """Say how errors are sent."""

    async def refused(request: Request, error: Exception) -> Response:
        return refusals.response(error)

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        kind = "not_found" if error.status_code == HTTPStatus.NOT_FOUND else "usage"
        message = f"{request.method} {request.url.path[:200]}: {error.detail}; see /docs"
        return error_response(error.status_code, kind, message, error.headers)

    async def gone(request: Request, error: Exception) -> Response:
        return error_response(HTTPStatus.BAD_REQUEST, "usage", "the client has gone")

    app.add_exception_handler(ModalignError, refused)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(ClientDisconnect, gone)
    # The unexpected: a 500 without details. It is raised again behind it, and logged.
    app.add_exception_handler(Exception, refused)


def counted(path: str, endpoint: Endpoint) -> Endpoint:
    """Return an endpoint whose requests are counted under its path."""

    @wraps(endpoint)
    async def named(request: Request) -> Response:
        request.scope[ROUTE] = path
        return await endpoint(request)

    return named


def time_limit(seconds: float) -> Callable[[Endpoint], Endpoint]:
    """Return a wrapper of endpoints that gives up after so many seconds."""

    def limited(endpoint: Endpoint) -> Endpoint:
        @wraps(endpoint)
        async def within(request: Request) -> Response:
            limit = asyncio.timeout(seconds)
            try:
                async with limit:
                    return await endpoint(request)
            except TimeoutError as error:
                if not limit.expired():
                    raise
                raise TimeLimitError(
                    f"request: took longer than {seconds:g} s; ask for less, or try again"
                ) from error

        return within

    return limited


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Wait for work, unless the client leaves first: then it is given up.

    Raises:
        ClientDisconnect: The client has left.
    """
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(disconnected(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def disconnected(request: Request) -> None:
    """Return when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Routes:
    """The endpoints.

    Args:
        service: What answers.
        uploads: Where files of requests lie meanwhile.
    """

    def __init__(self, service: Service, uploads: UploadFolder) -> None:
        self._service = service
        self._uploads = uploads
        self._limit = service.settings.body_bytes
        self._schema = openapi_schema(service.served, service.examples, version=__version__)

    async def search(self, request: Request) -> Response:
        """Search by words, files, items, or several of them."""
        with self._uploads.desk() as desk:
            fields = await read_fields(request, desk, limit=self._limit)
            asked = asked_search(fields, self._service.served, desk)
            if asked.is_like:
                # So short that nobody leaves meanwhile.
                return json_response(await self._service.search(asked))
            found = await while_connected(request, self._service.search(asked))
        return json_response(found)

    async def embeddings(self, request: Request) -> Response:
        """Embed items."""
        with self._uploads.desk() as desk:
            fields = await read_fields(request, desk, limit=self._limit)
            asked = asked_embeddings(
                fields, self._service.served, desk, most=self._service.settings.queue
            )
            vectors = await while_connected(request, self._service.embed(asked))
        data = [
            {"object": "embedding", "index": place, "embedding": embedding(row, asked.base64)}
            for place, row in enumerate(vectors)
        ]
        usage = {"prompt_tokens": 0, "total_tokens": 0}
        return json_response({"object": "list", "data": data, "model": asked.model, "usage": usage})

    async def spaces(self, request: Request) -> Response:
        """Say what can be asked for."""
        return json_response(await self._service.spaces())

    async def item(self, request: Request) -> Response:
        """Say what an item is."""
        index = request.query_params.get("index")
        return json_response(await self._service.item(request.path_params["id"], index))

    async def media(self, request: Request) -> Response:
        """Send an item's file, or ranges of it."""
        file = await self._service.media(request.path_params["index"], request.path_params["id"])
        return file_response(request, file.path, file.media_type, etag=file.etag, state=file.state)

    async def thumbnail(self, request: Request) -> Response:
        """Send an item's small picture."""
        names = request.path_params
        path = await self._service.thumbnail(names["index"], names["id"])
        return file_response(
            request, path, "image/webp", etag=f'"{path.stem}"', cache=THUMBNAIL_CACHE
        )

    async def healthz(self, request: Request) -> Response:
        """Say that the server runs."""
        return json_response({"ok": True})

    async def readyz(self, request: Request) -> Response:
        """Say whether it can answer."""
        problems = self._service.problems()
        status = HTTPStatus.SERVICE_UNAVAILABLE if problems else HTTPStatus.OK
        return json_response({"ok": not problems, "problems": problems}, status)

    async def metrics(self, request: Request) -> Response:
        """Send the figures."""
        return Response(self._service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def openapi(self, request: Request) -> Response:
        """Send the schema of all this."""
        return json_response(self._schema)

    async def docs(self, request: Request) -> Response:
        """Send the page that shows the schema."""
        return html_file(DOCS / "index.html")

    async def page(self, request: Request) -> Response:
        """Send the page that searches."""
        return html_file(PAGE / "index.html")


def embedding(row: np.ndarray, as_base64: bool) -> list[float] | str:
    """Return a vector as OpenAI's clients read it."""
    if as_base64:
        return base64.b64encode(row.astype("<f4").tobytes()).decode("ascii")
    # The shortest decimals that are the same float32.
    return [float(str(value)) for value in row.astype(np.float32)]


def html_file(path: Path) -> Response:
    """Send a page of the package."""
    if not path.is_file():
        raise NotThereError(f"{path.parent.name}: this installation has no such page; see /docs")
    return FileResponse(path, media_type="text/html; charset=utf-8")


def file_response(
    request: Request,
    path: Path,
    media_type: str,
    *,
    etag: str,
    cache: str = "private, no-cache",
    state: os.stat_result | None = None,
) -> Response:
    """Send a file, ranges of it, or word that the client has it already."""
    headers = {"etag": etag, "cache-control": cache}
    known = [each.strip() for each in request.headers.get("if-none-match", "").split(",")]
    if etag in known or "*" in known:
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return FileResponse(path, headers=headers, media_type=media_type, stat_result=state)
