"""A read of a web server that fails for a passing reason is repeated."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from clip_negatives.dataset import TarPairs, web
from clip_negatives.dataset.urls import ShardStream, open_url, shard_source
from clip_negatives.errors import DataError, MissingShardError
from tests.servers import Requests, faulty_server, use_s3

CONTENT = bytes(range(256)) * 1024
BIG = CONTENT * 24  # more than a block of fsspec
CONTENTS = {"a.tar": CONTENT, "b.tar": CONTENT, "always.tar": CONTENT, "big.tar": BIG}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Requests]]:
    """Return the address of a server, and the number of its requests by method and path; pauses are short."""
    monkeypatch.setattr(web, "PAUSES", (0.01, 0.01, 0.01))
    with faulty_server(CONTENTS) as running:
        yield running


@pytest.mark.parametrize("fault", ["500", "503", "429", "closed", "cut", "short"])
def test_a_failure_that_passes_is_repeated(server: tuple[str, Requests], fault: str) -> None:
    address, _ = server
    with open_url(f"{address}/{fault}/a.tar") as stream:
        assert stream.read() == CONTENT
    source = shard_source(f"{address}/{fault}/b.tar")
    assert (source.size, source.sha256) == (len(CONTENT), shard_source(f"{address}/none/a.tar").sha256)


def test_a_read_goes_on_where_it_failed(server: tuple[str, Requests]) -> None:
    address, _ = server
    with open_url(f"{address}/cut/big.tar") as stream:
        assert stream.read(1500) == BIG[:1500]
        assert stream.read() == BIG[1500:]
        assert stream.read() == b""


def test_a_server_that_ignores_ranges_is_read_in_order(server: tuple[str, Requests]) -> None:
    address, _ = server
    with open_url(f"{address}/none/whole/big.tar") as stream:
        blocks = iter(lambda: stream.read(100_000), b"")
        assert b"".join(blocks) == BIG


@pytest.mark.parametrize("fault", ["500", "closed", "cut", "short"])
def test_the_last_attempt_names_the_tar(server: tuple[str, Requests], fault: str) -> None:
    """A tar that stays cut off is never taken as complete."""
    address, requests = server
    url = f"{address}/{fault}/always.tar"
    with pytest.raises(MissingShardError, match=rf"^The tar {url} cannot be read: "):
        ShardStream(open_url(url), url).read()
    assert max(requests.values()) >= 1 + len(web.PAUSES)


@pytest.mark.parametrize("status", [403, 404])
def test_a_status_that_stays_is_not_repeated(server: tuple[str, Requests], status: int) -> None:
    address, requests = server
    with pytest.raises(DataError, match="cannot be read"):
        TarPairs(f"{address}/{status}/always.tar")
    assert set(requests.values()) == {1}


@pytest.mark.parametrize("fault", ["cut", "short"])
def test_a_transfer_from_s3_that_ends_early_is_repeated(
    server: tuple[str, Requests], fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short answer passes s3fs unnoticed."""
    use_s3(server[0], monkeypatch)
    with open_url(f"s3://{fault}/big.tar") as stream:
        assert stream.read() == BIG
    url = "s3://short/always.tar"
    with pytest.raises(MissingShardError, match=rf"^The tar {url} cannot be read: "):
        ShardStream(open_url(url), url).read()


def test_nothing_else_is_repeated(tmp_path: Path) -> None:
    calls: list[int] = []

    def fail() -> None:
        calls.append(1)
        raise ConnectionError

    with pytest.raises(ConnectionError):
        web.repeated(str(tmp_path), fail)
    assert len(calls) == 1
