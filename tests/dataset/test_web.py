"""A read of a web server that fails for a passing reason is repeated."""

from __future__ import annotations

import http.server
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from clip_negatives.dataset import TarPairs, web
from clip_negatives.dataset.urls import ShardStream, open_url, shard_source
from clip_negatives.errors import DataError, MissingShardError

CONTENT = bytes(range(256)) * 1024
BIG = CONTENT * 24  # more than a block of fsspec
FAILURES = 2  # of each path and method


class Server(http.server.BaseHTTPRequestHandler):
    """A server whose first answers fail as the path says; ``always`` in the path makes every answer fail."""

    protocol_version = "HTTP/1.1"
    requests: Counter[tuple[str, str]]

    def do_GET(self) -> None:
        self.requests[self.command, self.path] += 1
        fails = "always" in self.path or self.requests[self.command, self.path] <= FAILURES
        fault = self.path.split("/")[1] if fails else ""
        if fault.isdigit():
            self.send_error(int(fault))
        elif fault == "closed":
            self.close_connection = True
        else:
            self._send(BIG if "big" in self.path else CONTENT, fault)

    do_HEAD = do_GET  # noqa: N815  (the name of the standard library)

    def _send(self, content: bytes, fault: str) -> None:
        first, _, last = (self.headers.get("Range") or "").removeprefix("bytes=").partition("-")
        is_range = bool(first) and "whole" not in self.path
        part = content[int(first) : int(last) + 1] if is_range else content
        sent = part[: len(part) // 2] if fault in ("cut", "short") else part
        self.send_response(206 if is_range else 200)
        # A cut answer ends before its Content-Length; a short one announces fewer bytes than were asked for.
        length = part if self.command == "HEAD" or fault != "short" else sent
        self.send_header("Content-Length", str(len(length)))
        self.send_header("Last-Modified", "Mon, 30 Nov 2026 12:00:00 GMT")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(sent)
            self.close_connection = fault == "cut"

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Counter[tuple[str, str]]]]:
    """Return the address of a server, and the number of its requests by method and path; pauses are short."""
    monkeypatch.setattr(web, "PAUSES", (0.01, 0.01, 0.01))
    requests = Counter[tuple[str, str]]()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Serving", (Server,), {"requests": requests})) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", requests
        running.shutdown()


@pytest.mark.parametrize("fault", ["500", "503", "429", "closed", "cut", "short"])
def test_a_failure_that_passes_is_repeated(server: tuple[str, Counter[tuple[str, str]]], fault: str) -> None:
    address, _ = server
    with open_url(f"{address}/{fault}/a.tar") as stream:
        assert stream.read() == CONTENT
    source = shard_source(f"{address}/{fault}/b.tar")
    assert (source.size, source.sha256) == (len(CONTENT), shard_source(f"{address}/none/a.tar").sha256)


def test_a_read_goes_on_where_it_failed(server: tuple[str, Counter[tuple[str, str]]]) -> None:
    address, _ = server
    with open_url(f"{address}/cut/big.tar") as stream:
        assert stream.read(1500) == BIG[:1500]
        assert stream.read() == BIG[1500:]
        assert stream.read() == b""


def test_a_server_that_ignores_ranges_is_read_in_order(server: tuple[str, Counter[tuple[str, str]]]) -> None:
    address, _ = server
    with open_url(f"{address}/none/whole/big.tar") as stream:
        blocks = iter(lambda: stream.read(100_000), b"")
        assert b"".join(blocks) == BIG


@pytest.mark.parametrize("fault", ["500", "closed", "cut", "short"])
def test_the_last_attempt_names_the_tar(server: tuple[str, Counter[tuple[str, str]]], fault: str) -> None:
    """A tar that stays cut off is never taken as complete."""
    address, requests = server
    url = f"{address}/{fault}/always.tar"
    with pytest.raises(MissingShardError, match=rf"^The tar {url} cannot be read: "):
        ShardStream(open_url(url), url).read()
    assert max(requests.values()) >= 1 + len(web.PAUSES)


@pytest.mark.parametrize("status", [403, 404])
def test_a_status_that_stays_is_not_repeated(server: tuple[str, Counter[tuple[str, str]]], status: int) -> None:
    address, requests = server
    with pytest.raises(DataError, match="cannot be read"):
        TarPairs(f"{address}/{status}/always.tar")
    assert set(requests.values()) == {1}


def test_nothing_else_is_repeated(tmp_path: Path) -> None:
    calls: list[int] = []

    def fail() -> None:
        calls.append(1)
        raise ConnectionError

    with pytest.raises(ConnectionError):
        web.repeated(str(tmp_path), fail)
    assert len(calls) == 1
