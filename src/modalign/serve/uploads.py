"""A request's body: read no further than is allowed, its files in a private folder.

A body is never held whole where it is a form: each file goes to the disk as it comes, under a
name of our own. Whatever happens, the files are removed when the request ends.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import errno
import json
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from modalign.errors import OverloadedError, UsageError
from modalign.serve.refusals import TooLargeError, UnsupportedError

# What is no file in a form: words, numbers, a filter.
FIELD_BYTES = 2**20
FIELDS = 32
# A large body is parsed in a thread, others go on meanwhile.
PARSED_AT_ONCE = 64 * 2**10
# So long what is too large is read on and dropped: who is still sending would not see the answer.
DRAINED_S = 1.0
JSON = b"application/json"
FORM = b"multipart/form-data"
REMOTE = ("http:", "https:", "ftp:", "file:", "//")


@dataclass(frozen=True)
class Upload:
    """A file that came with a request."""

    path: Path


@dataclass
class Desk:
    """Where the files of one request lie.

    Attributes:
        folder: Private to the server.
        limit: Bytes of all files of the request together.
    """

    folder: Path
    limit: int
    used: int = 0
    paths: list[Path] = field(default_factory=list)

    def new_file(self) -> tuple[Path, BinaryIO]:
        """Open a new file, under a name that says nothing."""
        path = self.folder / secrets.token_hex(16)
        self.paths.append(path)
        return path, path.open("xb")

    def write(self, file: BinaryIO, data: bytes | memoryview) -> None:
        """Append to a file.

        Raises:
            TooLargeError: The files of the request are larger than they may be.
            OverloadedError: The disk is full.
        """
        self.used += len(data)
        if self.used > self.limit:
            refuse_size(self.limit)
        try:
            file.write(data)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise OverloadedError("upload: there is no room for it now; try again") from error

    def keep(self, data: bytes) -> Upload:
        """Write a whole file."""
        path, file = self.new_file()
        with file:
            self.write(file, data)
        return Upload(path)


class UploadFolder:
    """A folder that only this user may look into, there as long as the server runs."""

    def __init__(self, limit: int) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="modalign-serve-"))
        self._limit = limit

    @contextmanager
    def desk(self) -> Iterator[Desk]:
        """Give a place for the files of one request; they are removed in the end."""
        desk = Desk(self.path, self._limit)
        try:
            yield desk
        finally:
            for path in desk.paths:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path, ignore_errors=True)


async def read_fields(request: Request, desk: Desk, *, limit: int) -> dict[str, Any]:
    """Read the fields of a body, a JSON object or a form.

    Args:
        request: Whose body has not been read.
        desk: Where its files go.
        limit: Bytes of the body.

    Returns:
        JSON values by name; of a form, text and `Upload`s.

    Raises:
        UsageError: The body is malformed.
        TooLargeError: It is larger than `limit`.
        UnsupportedError: It is of another type.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind not in (JSON, FORM):
        await drain(request)
        raise UnsupportedError(
            f"body: is of type {kind.decode('latin-1') or 'none'}, expected {JSON.decode()} or "
            f"{FORM.decode()}"
        )
    try:
        if kind == JSON:
            return await read_json_object(request, limit=limit)
        return await _read_form(request, desk, options.get(b"boundary", b""), limit=limit)
    except TooLargeError:
        await drain(request)
        raise


async def drain(request: Request) -> None:
    """Read on for a moment and drop what comes, so that the answer is seen."""
    with suppress(TimeoutError, ClientDisconnect, RuntimeError):
        async with asyncio.timeout(DRAINED_S):
            while (await request.receive()).get("more_body"):
                pass


async def body_chunks(request: Request, *, limit: int) -> AsyncIterator[bytes]:
    """Yield a body as it comes.

    Raises:
        TooLargeError: It says it is, or turns out to be, larger than `limit`.
    """
    stated = request.headers.get("content-length", "0")
    if stated.isdigit() and int(stated) > limit:
        refuse_size(limit)
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            refuse_size(limit)
        yield chunk


def refuse_size(limit: int) -> NoReturn:
    """Raise a TooLargeError."""
    raise TooLargeError(
        f"body: is larger than {limit} bytes, the most this server takes; shrink it"
    )


# JSON -------------------------------------------------------------------------------------


async def read_json_object(request: Request, *, limit: int) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        UsageError: The body is no JSON object.
        TooLargeError: It is larger than `limit`.
    """
    body = b"".join([chunk async for chunk in body_chunks(request, limit=limit)])
    if len(body) > PARSED_AT_ONCE:
        value = await asyncio.to_thread(parsed, body, "body")
    else:
        value = parsed(body, "body")
    if not isinstance(value, dict):
        raise UsageError(f"body: is a JSON {type(value).__name__}, expected an object")
    return value


def parsed(data: bytes | str, where: str) -> Any:
    """Return the value of some JSON.

    Raises:
        UsageError: It is none, or holds what is no number or no text.
    """
    try:
        value = json.loads(data, parse_constant=_refuse_constant)
        # Half of a surrogate pair is no text: no encoder and no database takes it.
        marked = b"\\u" in data if isinstance(data, bytes) else "\\u" in data
        if marked:
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        reason = str(error) if not isinstance(error, UnicodeError) else "it is no valid Unicode"
        raise UsageError(f"{where}: is no JSON that can be read ({reason})") from error
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


# Forms ------------------------------------------------------------------------------------


async def _read_form(
    request: Request, desk: Desk, boundary: bytes, *, limit: int
) -> dict[str, Any]:
    if not boundary:
        raise UsageError("body: multipart/form-data without a boundary; say it in Content-Type")
    with FormReader(desk) as form:
        try:
            parser = MultipartParser(boundary, form.callbacks())  # type: ignore[arg-type]
            async for chunk in body_chunks(request, limit=limit):
                parser.write(chunk)
            parser.finalize()
        except FormParserError as error:
            raise UsageError(f"body: is no form that can be read ({error})") from error
        if not form.ended:
            raise UsageError("body: the form is cut short, expected its closing boundary")
    return form.fields


class FormReader:
    """Takes what the parser finds: files to the desk, words to memory."""

    def __init__(self, desk: Desk) -> None:
        self.fields: dict[str, Any] = {}
        self.ended = False
        self._desk = desk
        self._headers: dict[bytes, bytes] = {}
        self._header = (b"", b"")
        self._name = ""
        self._words = bytearray()
        self._memory = 0
        self._file: BinaryIO | None = None
        self._path = Path()

    def __enter__(self) -> FormReader:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def callbacks(self) -> Mapping[str, Any]:
        """Return what the parser calls."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_end,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        self._headers, self._header = {}, (b"", b"")

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._header = (self._header[0] + data[start:end], self._header[1])

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._header = (self._header[0], self._header[1] + data[start:end])

    def _header_end(self) -> None:
        self._headers[self._header[0].lower()] = self._header[1]
        self._header = (b"", b"")

    def _headers_end(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if not name:
            raise UsageError("body: a part of the form has no name; name each field")
        if name in self.fields:
            raise UsageError(f"body: field {name!r} comes twice; send it once")
        if len(self.fields) == FIELDS:
            raise UsageError(f"body: has more than {FIELDS} fields; leave some out")
        self._name = name
        self._words = bytearray()
        if b"filename" in options or b"filename*" in options:
            self._path, self._file = self._desk.new_file()

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            self._desk.write(self._file, memoryview(data)[start:end])
            return
        self._memory += end - start
        if self._memory > FIELD_BYTES:
            raise TooLargeError(
                f"body: its fields that are no files are larger than {FIELD_BYTES} bytes; shrink "
                "them, or send what is a file with its name"
            )
        self._words += data[start:end]

    def _end(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
            self.fields[self._name] = Upload(self._path)
            return
        try:
            self.fields[self._name] = self._words.decode()
        except UnicodeDecodeError as error:
            raise UsageError(f"body: field {self._name!r} is no UTF-8 text") from error

    def _finish(self) -> None:
        self.ended = True


# Data URIs --------------------------------------------------------------------------------


def read_data_uri(text: str, desk: Desk, *, what: str) -> Upload:
    """Write what a data URI holds to a file.

    Raises:
        UsageError: It is none; an address of the net is never fetched.
        TooLargeError: It holds more than the desk takes.
    """
    if text.lstrip()[:8].lower().startswith(REMOTE):
        raise UsageError(f"{what}: is an address, and none is ever fetched; send the file itself")
    head, comma, data = text.partition(",")
    if not (head[:5].lower() == "data:" and head.lower().endswith(";base64") and comma):
        raise UsageError(
            f"{what}: is no file and no data URI, expected data:TYPE;base64,... ; send the file "
            "itself"
        )
    # Said before it is decoded: three bytes for four signs.
    if len(data) > 4 * (desk.limit // 3 + 2):
        refuse_size(desk.limit)
    try:
        return desk.keep(base64.b64decode(data, validate=True))
    except (binascii.Error, ValueError) as error:
        raise UsageError(f"{what}: its base64 is broken ({error}); encode it again") from error
