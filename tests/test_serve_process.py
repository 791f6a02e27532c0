"""A server as it is started and stopped: its line, its signals, its sockets, its command line."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed: pip install 'modalign[serve]'")

from modalign.cli import main
from modalign.gallery import Gallery
from modalign.serve.running import bind
from modalign.serve.settings import Settings
from served_spaces import Kept, kept_below

WAIT_S = 60


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    return kept_below(tmp_path_factory.getbasetemp())


@contextmanager
def started(
    kept: Kept, *arguments: str, **environment: str
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start a server; give its process and the first line that it prints."""
    command = [
        sys.executable, "-m", "modalign", "serve", str(kept.folder / "space"),
        "--index", str(kept.folder / "photos"), "--port", "0", *arguments,
    ]  # fmt: skip
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "MODALIGN_CACHE": str(kept.folder / "cache"), **environment},
    )
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline()
    finally:
        process.kill()
        process.communicate()


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def answer(connection: socket.socket, request: bytes) -> tuple[int, Any]:
    """Send bytes; return the status and the body of what comes back."""
    connection.sendall(request)
    return received(connection)


def received(connection: socket.socket) -> tuple[int, Any]:
    with connection.makefile("rb") as file:
        status = int(file.readline().split()[1])
        headers = dict(
            line.decode().lower().rstrip().split(": ", 1) for line in iter(file.readline, b"\r\n")
        )
        return status, json.loads(file.read(int(headers["content-length"])))


def head(method: str, path: str, *lines: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *lines, "", ""]).encode()


def search_request(fields: dict[str, Any]) -> bytes:
    body = json.dumps(fields).encode()
    lines = ("Content-Type: application/json", f"Content-Length: {len(body)}")
    return head("POST", "/v1/search", *lines) + body


def test_a_server_says_where_it_is_answers_and_ends_at_ctrl_c(kept: Kept):
    with started(kept) as (process, line):
        where = line.partition("open http://127.0.0.1:")[2].partition("/")[0]
        assert line == (
            f"space space, photos (40 image): open http://127.0.0.1:{where}/  (Ctrl-C stops)\n"
        )
        with connect(int(where)) as connection:
            assert answer(connection, head("GET", "/healthz")) == (200, {"ok": True})
            status, found = answer(connection, search_request({"text": "a red circle", "k": 2}))
            assert (status, len(found["hits"])) == (200, 2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=WAIT_S)
    assert (process.returncode, out, err) == (0, "", "")


def test_a_stop_finishes_what_was_taken(kept: Kept):
    with started(kept, "--json") as (process, line):
        said = json.loads(line)
        assert said["space"] == "space"
        assert said["indexes"] == [{"name": "photos", "modality": "image", "items": 40}]
        port = int(said["url"].rstrip("/").rpartition(":")[2])
        with connect(port) as connection:
            request = search_request({"text": "a red circle"})
            connection.sendall(request[:-5])
            # It has been taken: the server reads on.
            time.sleep(0.3)
            process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            assert process.poll() is None
            status, found = answer(connection, request[-5:])
            assert (status, len(found["hits"])) == (200, 20)
        out, err = process.communicate(timeout=WAIT_S)
        assert (process.returncode, out, err) == (0, "", "")
        with pytest.raises(ConnectionRefusedError):
            connect(port)


def test_an_endless_upload_is_answered_and_not_kept(kept: Kept, tmp_path: Path):
    (tmp_path / "token").write_text("open sesame\n", encoding="utf-8")
    with started(
        kept, "--json", "--upload-mb", "1", "--token-file", str(tmp_path / "token"),
        TMPDIR=str(tmp_path),
    ) as (process, line):  # fmt: skip
        port = int(json.loads(line)["url"].rstrip("/").rpartition(":")[2])
        with connect(port) as connection:
            assert answer(connection, head("GET", "/v1/spaces"))[0] == 401
            connection.sendall(
                head(
                    "POST", "/v1/search", "Authorization: Bearer open sesame",
                    "Content-Type: multipart/form-data; boundary=b", "Content-Length: 9999999999",
                )
            )  # fmt: skip
            connection.sendall(b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"')
            status, body = received(connection)
            assert (status, body["error"]["type"]) == (413, "too_large")
        with connect(port) as connection:
            connection.sendall(
                head(
                    "POST", "/v1/search", "Authorization: Bearer open sesame",
                    "Content-Type: multipart/form-data; boundary=b", "Transfer-Encoding: chunked",
                )
            )  # fmt: skip
            first = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
            chunks = [first, *[b"x" * 2**18] * 6]
            connection.sendall(b"".join(b"%x\r\n%s\r\n" % (len(c), c) for c in chunks))
            status, body = received(connection)
            assert (status, body["error"]["type"]) == (413, "too_large")
        (folder,) = tmp_path.glob("modalign-serve-*")
        assert list(folder.iterdir()) == []
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0
        assert not list(tmp_path.glob("modalign-serve-*"))


# The command line -------------------------------------------------------------------------


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: object) -> tuple[int, str]:
        status = main(["serve", *map(str, arguments)])
        return status, capsys.readouterr().err

    return call


def test_a_call_that_cannot_be_served_is_refused(run: Any, kept: Kept, tmp_path: Path):
    space, index = kept.folder / "space", kept.folder / "photos"
    status, err = run(space)
    assert status == 2
    assert "Missing option '--index'" in err
    status, err = run(space, "--index", index, "--host", "0.0.0.0")
    assert status == 2
    assert "--host 0.0.0.0: other machines can reach it, and no token is asked for" in err
    status, err = run(space, "--index", index, "--host", "no.such.host.invalid")
    assert (status, "is no address of this machine" in err) == (2, True)
    status, err = run(space, "--index", tmp_path, "--port", "0")
    assert (status, "no gallery here" in err) == (2, True)
    status, err = run(tmp_path, "--index", index, "--port", "0")
    assert status == 2


def test_a_port_that_is_taken_is_refused(run: Any, kept: Kept):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, err = run(kept.folder / "space", "--index", kept.folder / "photos", "--port", port)
    assert status == 2
    assert f"--host 127.0.0.1 --port {port}: cannot be listened on (" in err


@pytest.mark.parametrize("text", ["", " \n", "schlüssel", "a\x00b"])
def test_a_token_that_is_no_word_is_refused(run: Any, kept: Kept, tmp_path: Path, text: str):
    (tmp_path / "token").write_text(text, encoding="utf-8")
    options = ("--index", kept.folder / "photos", "--token-file", tmp_path / "token")
    status, err = run(kept.folder / "space", *options)
    assert (status, "holds no token, expected one word of ASCII" in err) == (2, True)


def test_an_index_of_another_space_is_refused(run: Any, kept: Kept, tmp_path: Path):
    made = Gallery.load(kept.folder / "captions")
    Gallery.write(
        tmp_path / "elsewhere",
        modality="text",
        width=made.width,
        embedding="0" * 64,
        encoder="",
        ids=made.ids,
        vectors=[made.vectors],
    )
    status, err = run(kept.folder / "space", "--index", tmp_path / "elsewhere", "--port", "0")
    assert status == 2
    assert "its text vectors were made with other weights" in err


def test_small_answers_are_sent_at_once():
    # asyncio switches the delay off for what it knows to be TCP.
    with bind(Settings(port=0)) as listening:
        assert listening.proto == socket.IPPROTO_TCP
