"""Real servers of files on this machine: S3 (moto), and a web server whose first answers fail."""

from __future__ import annotations

import http.server
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

Requests = Counter[tuple[str, str]]
"""Number of requests by method and path."""


class FaultyServer(http.server.BaseHTTPRequestHandler):
    """A server of ``/FAULT/NAME``, whose first answers to each path and method fail.

    FAULT is a status code, ``closed`` (no answer), ``cut`` (an answer that ends before its Content-Length), ``short`` (an
    answer with fewer bytes than were asked for), or anything else for no fault. With ``always`` in the path, every answer
    fails; with ``whole``, ranges are ignored.
    """

    protocol_version = "HTTP/1.1"
    contents: Mapping[str, bytes]
    requests: Requests
    n_failures = 2

    def do_GET(self) -> None:
        self.requests[self.command, self.path] += 1
        fails = "always" in self.path or self.requests[self.command, self.path] <= self.n_failures
        fault = self.path.split("/")[1] if fails else ""
        content = self.contents.get(self.path.rpartition("/")[2])
        if fault.isdigit():
            self.send_error(int(fault))
        elif fault == "closed":
            self.close_connection = True
        elif content is None:
            self.send_error(404)
        else:
            self._send(content, fault)

    do_HEAD = do_GET  # noqa: N815  (the name of the standard library)

    def _send(self, content: bytes, fault: str) -> None:
        first, _, last = (self.headers.get("Range") or "").removeprefix("bytes=").partition("-")
        is_range = bool(first) and "whole" not in self.path
        part = content[int(first) : int(last) + 1] if is_range else content
        sent = part[: len(part) // 2] if fault in ("cut", "short") else part
        self.send_response(206 if is_range else 200)
        length = part if self.command == "HEAD" or fault != "short" else sent
        self.send_header("Content-Length", str(len(length)))
        self.send_header("Last-Modified", "Mon, 30 Nov 2026 12:00:00 GMT")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(sent)
            self.close_connection = fault == "cut"

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@contextmanager
def faulty_server(contents: Mapping[str, bytes]) -> Iterator[tuple[str, Requests]]:
    """Serve contents by name; yield the address of the server and the number of its requests."""
    requests = Requests()
    handler = type("Serving", (FaultyServer,), {"requests": requests, "contents": contents})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", requests
        running.shutdown()


def use_s3(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let s3fs reach S3 at this address."""
    s3fs = pytest.importorskip("s3fs", reason="s3:// needs the package s3fs")
    named = {"ENDPOINT_URL": endpoint, "ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "DEFAULT_REGION": "us-east-1"}
    for name, value in named.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    s3fs.S3FileSystem.clear_instance_cache()


@contextmanager
def s3_server() -> Iterator[str]:
    """Run a server of S3; yield its address."""
    server = pytest.importorskip("moto.server", reason="a server of S3 needs the package moto[server]")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    yield "http://{}:{}".format(*running.get_host_and_port())
    running.stop()


def upload(folder: Path, bucket: str) -> None:
    """Copy the files of a folder to a new bucket."""
    import s3fs

    system = s3fs.S3FileSystem()
    system.mkdir(bucket)
    for file in folder.iterdir():
        if file.is_file():
            system.pipe(f"{bucket}/{file.name}", file.read_bytes())
