"""A server under load, on this machine: how many a second, how long they wait, what it costs.

    python bench/serve.py --data ../shared/data --minutes 1
    python bench/serve.py --minutes 10 --fuzz /path/to/schemathesis

The space joins photos and captions over MobileNetV2 and MiniLM; it is made once, in --work. The
index holds its photos and, to reach --items, copies of them with noise (a fifth of their length),
each with the photo's own file. Clients and server share the cores. Texts of one run all differ.
"""

from __future__ import annotations

import measuring  # isort: skip  # before torch

import argparse
import asyncio
import itertools
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any
from urllib.parse import quote

import numpy as np
from measuring import Figure, note, print_figures, skipped
from photo_tables import photo_row, read_photos, write_rows

from modalign import align, load_encoder, load_space, read_items, read_pairs
from modalign.cli.output import bars
from modalign.gallery import Gallery
from modalign.index import build_index, is_index
from modalign.space import Space

NOISE = 0.2
TUNED_BY = 500
PAGE = 20
BROKEN_SHARE = 0.01
# Of a stretch of load, its end in which memory is looked at, once a second.
WATCHED_S = 60.0
FUZZ_CASES = 2000
FUZZ_EXAMPLES = 400


def main() -> None:
    options = measuring.parser(__doc__)
    measuring.add_data(options)
    options.add_argument("--work", type=Path, default=Path("bench/output/serve"))
    options.add_argument("--items", type=int, default=100_000)
    options.add_argument("--engine", default="auto", help="of the index; see modalign index")
    options.add_argument("--clients", type=int, default=16)
    options.add_argument("--seconds", type=float, default=10.0, help="of each kind of query")
    options.add_argument("--minutes", type=float, default=1.0, help="of mixed load")
    options.add_argument("--fuzz", help="schemathesis, to be run against the server in the end")
    chosen = options.parse_args()
    if measuring.minilm_spec() is None:
        figures = [skipped("a server under load", "", measuring.NO_MINILM)]
    else:
        figures = measured(chosen)
    print_figures("A server under load", figures, chosen)


def measured(options: argparse.Namespace) -> list[Figure]:
    """Make what is served, serve it, and put it under load."""
    options.work.mkdir(parents=True, exist_ok=True)
    photos = read_photos(options.data)
    space = open_space(options, photos)
    index = open_index(options, space, photos)
    captions = [text for photo in photos for text in photo["captions"]]
    with serving(options.work / "space", index) as server:
        load = Load(server, captions, [photo["image"] for photo in photos], options)
        figures = [
            asyncio.run(load.texts()),
            asyncio.run(load.likes()),
            *asyncio.run(load.mixed()),
        ]
        if options.fuzz:
            figures.append(fuzzed(server, options.fuzz))
    figures.append(Figure("stopping", "exit status 0", f"exit status {server.status}",
                          server.status == 0))  # fmt: skip
    return figures


# What is served ---------------------------------------------------------------------------


def open_space(options: argparse.Namespace, photos: list[dict[str, Any]]) -> Space:
    """Return the space of photos and captions, made where it is not there yet."""
    folder = options.work / "space"
    if (folder / "space.json").exists():
        return load_space(folder)
    note("serve: making the space, minutes where nothing is encoded yet")
    table = write_rows(options.work / "photos.jsonl", [photo_row(photo) for photo in photos])
    onnx = f"onnx:{options.data.resolve() / 'encoders/mobilenetv2_224.onnx'}"
    encoders = {
        "image": load_encoder(onnx, modality="image"),
        "text": load_encoder(str(measuring.minilm_spec()), modality="text"),
    }
    with bars() as progress:
        return align(
            read_pairs(table, ["image", "text"]),
            encoders,
            out=folder,
            cache=options.work / "features",
            seed=options.seed,
            progress=progress,
        )


def open_index(options: argparse.Namespace, space: Space, photos: list[dict[str, Any]]) -> Path:
    """Return the index's folder, made where it is not there yet."""
    folder: Path = options.work / f"index-{options.items}-{options.engine}"
    if is_index(folder):
        return folder
    note(f"serve: making an index of {options.items:,} vectors")
    gallery = options.work / "gallery"
    if not gallery.exists():
        rows = [{"id": f"{row:05d}", "image": each["image"]} for row, each in enumerate(photos)]
        items = read_items(write_rows(options.work / "items.jsonl", rows), "image")
        space.embed_items(items, out=gallery, cache=options.work / "features")
    texts = [photo["captions"][0] for photo in photos[:TUNED_BY]]
    made = tiled(Gallery.load(gallery), space, options)
    build_index(
        made,
        folder,
        engine=options.engine,
        queries={
            "text": space.query(space.encoder("text").encode(texts), source="text", target="image"),
            "image": np.asarray(made.vectors[-TUNED_BY:], np.float32),
        },
        metadata={
            f"{row:06d}": {"split": photos[row % len(photos)]["split"], "copy": row}
            for row in range(options.items)
        },
    )
    return folder


def tiled(gallery: Gallery, space: Space, options: argparse.Namespace) -> Gallery:
    """Return a gallery in memory of all photos, then of noisy copies of them."""
    rng = np.random.default_rng(options.seed)
    rows = np.arange(options.items) % len(gallery)
    vectors = np.asarray(gallery.vectors, np.float32)[rows]
    noise = rng.standard_normal(vectors.shape, np.float32)
    noise *= NOISE / np.linalg.norm(noise, axis=1, keepdims=True)
    noise[: len(gallery)] = 0
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    values = gallery.values
    assert values is not None
    return Gallery.from_arrays(
        [f"{row:06d}" for row in range(options.items)],
        (vectors + noise).astype(np.float16),
        modality="image",
        embedding=gallery.embedding,
        encoder=gallery.encoder,
        values=[values[row] for row in rows],
    )


@dataclass
class Server:
    """A server that runs in a process of its own."""

    process: subprocess.Popen[str]
    url: str
    index: str
    status: int | None = None

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.url.rstrip("/").rpartition(":")[2])

    def private_mib(self) -> float:
        """Return the memory that it holds, without files it has mapped: the system's to give."""
        text = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return next(int(line.split()[1]) for line in text.splitlines() if "RssAnon" in line) / 1024


@contextmanager
def serving(space: Path, index: Path) -> Iterator[Server]:
    """Run a server meanwhile; it is stopped as Ctrl-C would."""
    command = [sys.executable, "-m", "modalign", "serve", str(space), "--index", str(index)]
    environment = {**os.environ, "MODALIGN_CACHE": str(space.parent / "cache")}
    process = subprocess.Popen(
        [*command, "--port", "0", "--json"], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    said = process.stdout.readline()
    if not said:
        sys.exit("serve: the server did not start")
    server = Server(process, json.loads(said)["url"], index.name)
    try:
        yield server
    finally:
        process.send_signal(2)
        server.status = process.wait(60)


# Load -------------------------------------------------------------------------------------


@dataclass
class Answers:
    """What came back: statuses, and seconds of each request."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    elapsed: float = 0.0

    @property
    def per_second(self) -> float:
        """Requests a second."""
        return len(self.seconds) / self.elapsed

    def percentile_ms(self, percent: int) -> float:
        """Return the time that so many of a hundred requests stay below."""
        return quantiles(self.seconds, n=100)[percent - 1] * 1e3

    def unexpected(self) -> int:
        """Return how many failed in the server, but for those that were told to come back."""
        return sum(n for status, n in self.statuses.items() if status >= 500 and status != 503)

    def words(self) -> str:
        """Return it in words."""
        found = ", ".join(f"{n} x {status}" for status, n in sorted(self.statuses.items()))
        return (
            f"{self.per_second:.0f} a second, p50 {self.percentile_ms(50):.0f} ms, p99 "
            f"{self.percentile_ms(99):.0f} ms ({found})"
        )


Request = tuple[str, str, str, bytes]  # method, path, type, body


class Load:
    """Clients of one server, each on a connection of its own."""

    def __init__(
        self, server: Server, captions: list[str], images: list[str], options: argparse.Namespace
    ) -> None:
        self.server = server
        self.options = options
        self.draw = random.Random(options.seed)
        self.images = images
        self.captions = captions
        self.numbers = itertools.count()

    async def texts(self) -> Figure:
        """Put text queries to it, none twice."""
        note(f"serve: text queries for {self.options.seconds:g} s")
        answers = await self.run(self.text, self.options.seconds)
        reached = answers.per_second >= 50 and answers.percentile_ms(99) < 1000
        return self.figure("text queries", "50 a second, p99 under 1 s", answers, reached)

    async def likes(self) -> Figure:
        """Ask for more like stored items."""
        note(f"serve: vector queries for {self.options.seconds:g} s")
        answers = await self.run(self.like, self.options.seconds)
        return self.figure("vector queries (like)", "1,000 a second", answers,
                           answers.per_second >= 1000)  # fmt: skip

    async def mixed(self) -> list[Figure]:
        """Do all that clients do, with broken uploads among it."""
        note(f"serve: mixed load for {self.options.minutes:g} minutes")
        seconds = 60 * self.options.minutes
        # Caches fill first: growth is counted from there. The most of a while is what a machine has
        # to have; any one moment lies somewhere between that and what was just given back.
        (_, before), (answers, after) = [
            await asyncio.gather(self.run(self.any_request, part), self.watched(part))
            for part in (seconds / 5, seconds * 4 / 5)
        ]
        growth = after / before - 1
        return [
            self.figure("mixed, 1 % broken uploads", "no 5xx but 503", answers,
                        answers.unexpected() == 0),
            Figure("its memory, most of a minute", "grows by at most 5 %",
                   f"{before:.0f} -> {after:.0f} MiB, {growth:+.1%}", growth <= 0.05),
        ]  # fmt: skip

    async def watched(self, seconds: float) -> float:
        """Return the most memory the server holds in the last part of so many seconds, MiB."""
        last = min(seconds, WATCHED_S)
        await asyncio.sleep(seconds - last)
        held = [self.server.private_mib()]
        for _ in range(int(last)):
            await asyncio.sleep(1)
            held.append(self.server.private_mib())
        return max(held)

    def figure(self, name: str, target: str, answers: Answers, reached: bool) -> Figure:
        """Return one line of the table."""
        name = f"{name}, {self.options.clients} clients, {self.options.items:,} vectors"
        details = {"statuses": dict(answers.statuses), "seconds": answers.elapsed}
        return Figure(name, target, answers.words(), reached, details)

    # Requests

    def text(self) -> Request:
        """Return a search by words that were not asked before."""
        words = f"{self.draw.choice(self.captions)} {next(self.numbers)}"
        return self.json_request("/v1/search", {"text": words, "k": PAGE})

    def like(self) -> Request:
        """Return a search by an item."""
        row = self.draw.randrange(self.options.items)
        return self.json_request(
            "/v1/search", {"like": f"{self.server.index}/{row:06d}", "k": PAGE}
        )

    def image(self) -> Request:
        """Return a search by a picture."""
        return form_request(Path(self.draw.choice(self.images)).read_bytes())

    def broken(self) -> Request:
        """Return an upload that is cut short, or noise."""
        data = Path(self.draw.choice(self.images)).read_bytes()
        return form_request(self.draw.choice([data[: len(data) // 3], self.draw.randbytes(5000)]))

    def thumbnail(self) -> Request:
        """Return a small picture's request."""
        row = self.draw.randrange(len(self.images))
        return ("GET", f"/v1/thumbnails/{quote(self.server.index)}/{row:06d}", "", b"")

    def filtered(self) -> Request:
        """Return a search among some items."""
        fields = {"text": self.draw.choice(self.captions), "filter": {"split": "val"}}
        return self.json_request("/v1/search", fields)

    def embeddings(self) -> Request:
        """Return a request for vectors."""
        texts = self.draw.sample(self.captions, 4)
        return self.json_request("/v1/embeddings", {"model": "text", "input": texts})

    def any_request(self) -> Request:
        """Return what some client would ask."""
        if self.draw.random() < BROKEN_SHARE:
            return self.broken()
        kinds = [self.text, self.like, self.image, self.thumbnail, self.filtered, self.embeddings]
        (kind,) = self.draw.choices(kinds, [40, 25, 10, 15, 5, 5])
        return kind()

    def json_request(self, path: str, fields: dict[str, Any]) -> Request:
        """Return a request with a JSON body."""
        return ("POST", path, "application/json", json.dumps(fields).encode())

    # Running

    async def run(self, make: Callable[[], Request], seconds: float) -> Answers:
        """Have every client ask, one request after the other."""
        answers = Answers()
        begin = time.perf_counter()
        clients = (self.client(make, begin + seconds, answers) for _ in range(self.options.clients))
        await asyncio.gather(*clients)
        answers.elapsed = time.perf_counter() - begin
        return answers

    async def client(self, make: Callable[[], Request], end: float, answers: Answers) -> None:
        """Ask until the time is over."""
        while time.perf_counter() < end:
            async with connected(self.server.port) as (reader, writer):
                while time.perf_counter() < end:
                    request = make()
                    begin = time.perf_counter()
                    status, stays = await exchange(reader, writer, request)
                    answers.seconds.append(time.perf_counter() - begin)
                    answers.statuses[status] += 1
                    if status == 503:
                        await asyncio.sleep(0.1)
                    if not stays:
                        break


@asynccontextmanager
async def connected(
    port: int,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    try:
        yield reader, writer
    finally:
        writer.close()


async def exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: Request
) -> tuple[int, bool]:
    """Send a request and read its answer; return the status, and whether the connection stays."""
    method, path, kind, body = request
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode("ascii") + body)
    answer = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(answer.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
    await reader.readexactly(length)
    return int(answer[9:12]), b"connection: close" not in answer


def form_request(data: bytes) -> Request:
    """Return a search by a picture, as a browser sends it."""
    boundary = "modalign-bench-boundary"
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="photo.jpg"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    )
    body = head.encode("ascii") + data + f"\r\n--{boundary}--\r\n".encode("ascii")
    return ("POST", "/v1/search", f"multipart/form-data; boundary={boundary}", body)


def fuzzed(server: Server, program: str) -> Figure:
    """Run schemathesis against the server's own schema."""
    note(f"serve: schemathesis, {FUZZ_CASES} cases or so")
    command = [
        program, "run", f"{server.url}openapi.json", "--checks",
        "not_a_server_error,status_code_conformance,content_type_conformance,"
        "response_schema_conformance", "--max-examples", str(FUZZ_EXAMPLES),
        "--phases", "examples,coverage,fuzzing", "--generation-deterministic", "--workers", "1",
        "--no-color",
    ]  # fmt: skip
    ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    cases = [line.strip() for line in ran.stdout.splitlines() if " generated" in line]
    if ran.returncode:
        note(ran.stdout[-6000:])
    return Figure(
        "schemathesis", "nothing found", "; ".join(cases) or "no summary", ran.returncode == 0
    )


if __name__ == "__main__":
    main()
