"""As much of a Qdrant server as an index needs: collections in memory, searched whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import numpy as np

SETTINGS = {
    "hnsw_config": {"m": 16, "ef_construct": 9, "full_scan_threshold": 9},
    "optimizer_config": {
        "deleted_threshold": 0.2,
        "vacuum_min_vector_number": 9,
        "default_segment_number": 0,
        "flush_interval_sec": 5,
    },
}


class Collections(BaseHTTPRequestHandler):
    """Makes, fills, searches and deletes collections."""

    held: dict[str, dict[str, Any]]
    efforts: list[int]
    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        body = self.body()
        name, rest = self.place()
        if not rest:
            self.held[name] = {"vectors": body["vectors"], "ids": [], "rows": []}
            self.answer(True)
            return
        self.held[name]["ids"] += body["batch"]["ids"]
        self.held[name]["rows"] += body["batch"]["vectors"]
        self.answer({"operation_id": 0, "status": "completed"})

    def do_GET(self) -> None:
        name, _ = self.place()
        if name not in self.held:
            self.answer(None)
            return
        # Told to be at work still the first time, and finished then.
        held = self.held[name]
        status = "green" if held.get("asked") else "yellow"
        held["asked"] = True
        config = {"params": {"vectors": held["vectors"]}, **SETTINGS}
        self.answer(
            {
                "status": status,
                "optimizer_status": "ok",
                "segments_count": 1,
                "config": config,
                "payload_schema": {},
            }
        )

    def do_POST(self) -> None:
        body = self.body()
        name, rest = self.place()
        if name not in self.held:
            self.answer(None)
        elif rest == "points/count":
            self.answer({"count": len(self.held[name]["ids"])})
        else:
            self.answer([{"points": self.nearest(name, search)} for search in body["searches"]])

    def do_DELETE(self) -> None:
        name, _ = self.place()
        self.answer(self.held.pop(name, None) is not None)

    def nearest(self, name: str, search: dict[str, Any]) -> list[dict[str, Any]]:
        self.efforts.append(search["params"]["hnsw_ef"])
        held = self.held[name]
        scores = np.array(held["rows"]) @ np.array(search["query"]["nearest"])
        order = np.argsort(-scores)[: search["limit"]].tolist()
        return [{"id": held["ids"][n], "version": 0, "score": float(scores[n])} for n in order]

    def body(self) -> Any:
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def place(self) -> tuple[str, str]:
        name, _, rest = self.path.partition("?")[0].removeprefix("/collections/").partition("/")
        return name, rest

    def answer(self, result: object) -> None:
        body = json.dumps({"result": result, "status": "ok", "time": 0}).encode()
        self.send_response(404 if result is None else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *values: object) -> None:
        pass


@contextmanager
def qdrant_server() -> Iterator[tuple[str, type[Collections]]]:
    """Give the address of a server, and its class, whose `held` is what it holds."""
    answers = type("Answers", (Collections,), {"held": {}, "efforts": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), answers) as server:
        server.daemon_threads = True
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", answers
        finally:
            server.shutdown()
            thread.join()
