"""A server of S3 (moto) behind a proxy that fails a share of the requests: python faulty_store.py SHARE.

It prints its address, and answers ``/counts`` with what it has seen. A failing request is, in turn, answered with the status
503, not answered at all, or answered with half of the body.
"""

from __future__ import annotations

import http.client
import http.server
import itertools
import json
import random
import sys
import threading
from collections import Counter
from typing import Any

from moto.server import ThreadedMotoServer

HOP = {"connection", "transfer-encoding", "content-length", "keep-alive", "host", "date", "server"}
SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"


class Proxy(http.server.BaseHTTPRequestHandler):
    """Forward each request, or fail."""

    protocol_version = "HTTP/1.1"
    server_at: tuple[str, int]
    share: float
    counts: Counter[str]
    draws: random.Random
    faults = itertools.cycle(("status", "closed", "half"))
    lock = threading.Lock()

    def do_GET(self) -> None:
        """Forward a request of any method."""
        if self.path == "/counts":
            self._answer(200, {}, json.dumps(self.counts).encode())
            return
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size) if "chunked" not in self.headers.get("Transfer-Encoding", "") else self._chunks()
        with self.lock:
            fault = next(self.faults) if self.draws.random() < self.share else ""
            self.counts.update({"requests": 1, "failed": int(bool(fault)), "bytes_written": len(body)})
            self.counts["writes"] += int(self.command in ("PUT", "POST") or "list-type" in self.path)
        if fault == "status":
            self._answer(503, {"Content-Type": "application/xml"}, SLOW_DOWN)
        elif fault == "closed":
            self.close_connection = True
        else:
            self._forward(body, is_half=fault == "half")

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815  (names of the standard library)

    def _forward(self, body: bytes, is_half: bool) -> None:
        connection = http.client.HTTPConnection(*self.server_at, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP}
        connection.request(self.command, self.path, body, {**headers, "Host": self.headers["Host"]})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        self.counts["bytes_read"] += len(content)
        kept = {name: value for name, value in answer.getheaders() if name.lower() not in HOP}
        length = answer.getheader("Content-Length") if self.command == "HEAD" else None
        self._answer(answer.status, kept, content, length, is_half=is_half and len(content) > 1)

    def _answer(
        self, status: int, headers: dict[str, str], content: bytes, length: str | None = None, *, is_half: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if is_half else content)
        self.close_connection = self.close_connection or is_half

    def _chunks(self) -> bytes:
        content = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


def main() -> None:
    """Serve until the process is ended."""
    store = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    store.start()
    about = {"server_at": store.get_host_and_port(), "share": float(sys.argv[1])}
    handler = type("Serving", (Proxy,), {**about, "counts": Counter(), "draws": random.Random(0)})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as proxy:
        print(f"http://127.0.0.1:{proxy.server_port}", flush=True)
        proxy.serve_forever()


if __name__ == "__main__":
    main()
