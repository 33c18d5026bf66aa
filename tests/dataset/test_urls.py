"""Shards from any file system of fsspec are read like local files; errors name the shard."""

from __future__ import annotations

import http.server
import io
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from clip_negatives import Columns
from clip_negatives.dataset import BrokenSample, Sample, TarPairs, open_pairs, open_table, web
from clip_negatives.dataset.archive import raw_samples
from clip_negatives.dataset.pairs import TornTar
from clip_negatives.dataset.urls import open_url
from clip_negatives.errors import DataError, MissingShardError
from clip_negatives.pipelines.prepare import prepare
from clip_negatives.pipelines.recipe import Recipe
from tests.pairs import write_csv, write_tars

N = 24


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Return a folder with two tars."""
    write_tars(tmp_path, N)
    return tmp_path


@pytest.fixture
def memory(tars: Path) -> str:
    """Return the URL of the tars in a file system that is not a disk."""
    system = fsspec.filesystem("memory")
    for file in tars.glob("*.tar"):
        system.pipe(f"/bucket/{file.name}", file.read_bytes())
    yield "memory://bucket/pairs-{000000..000001}.tar"
    system.rm("/bucket", recursive=True)


def _pairs(location: str) -> list[tuple[str, str, bytes]]:
    samples = [sample for part in open_pairs(location).parts() for sample in part.samples()]
    assert not any(isinstance(sample, BrokenSample) for sample in samples)
    return [(sample.key, sample.text, sample.image.tobytes()) for sample in samples]


def test_shards_of_any_kind_hold_the_same_pairs(tars: Path, memory: str) -> None:
    plain = f"{tars}/pairs-{{000000..000001}}.tar"
    expected = _pairs(plain)
    assert len(expected) == N
    pipe = f"pipe:cat {tars}/pairs-000000.tar::pipe:cat {tars}/pairs-000001.tar"
    assert open_pairs(pipe, dataset_type="webdataset").fingerprint() == TarPairs(pipe).fingerprint()
    for location in (memory, f"file://{plain}", f"{tars}/pairs-000000.tar::{memory.replace('{000000..', '{000001..')}", pipe):
        assert _pairs(location) == expected


def test_shards_of_an_object_store_are_prepared(memory: str, tars: Path, tmp_path: Path) -> None:
    recipe = Recipe(clusterer="kmeans:n_clusters=4")
    there = prepare(TarPairs(memory), tmp_path / "there", recipe, progress=False)
    here = prepare(TarPairs(f"{tars}/pairs-{{000000..000001}}.tar"), tmp_path / "here", recipe, progress=False)
    assert there.samples.drop_columns("shard").equals(here.samples.drop_columns("shard"))
    assert there.samples["shard"][0].as_py() == "memory://bucket/pairs-000000.tar"
    assert there.clusters.image.labels.equal(here.clusters.image.labels)


def test_fingerprint_changes_with_a_shard(memory: str) -> None:
    before = TarPairs(memory).fingerprint()
    assert TarPairs(memory).fingerprint() == before
    system = fsspec.filesystem("memory")
    system.pipe("/bucket/pairs-000001.tar", system.cat("/bucket/pairs-000000.tar"))
    assert TarPairs(memory).fingerprint() != before


def test_fingerprint_changes_with_the_output_of_a_pipe(tars: Path) -> None:
    pipe = TarPairs(f"pipe:cat {tars}/pairs-000000.tar")
    before = pipe.fingerprint()
    assert pipe.fingerprint() == before
    shutil.copy(tars / "pairs-000001.tar", tars / "pairs-000000.tar")
    assert pipe.fingerprint() != before


def test_fingerprint_changes_with_a_shard_of_a_file_system_that_tells_its_size_only(
    memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = fsspec.filesystem("memory")
    info = system.info
    monkeypatch.setattr(type(system), "info", lambda self, path, **_: {**info(path), "created": None})
    before = TarPairs(memory).fingerprint()
    assert TarPairs(memory).fingerprint() == before
    content = system.cat("/bucket/pairs-000001.tar")
    system.pipe("/bucket/pairs-000001.tar", content[:-1] + b"1")
    assert TarPairs(memory).fingerprint() != before


def test_csv_of_an_object_store(tmp_path: Path) -> None:
    file = write_csv(tmp_path, 8)
    fsspec.filesystem("memory").pipe("/pairs.csv", file.read_bytes())
    there, here = open_pairs("memory://pairs.csv", Columns(group="item")), open_table(file, Columns(group="item"))
    assert (there.texts, there.groups) == (here.texts, here.groups)
    assert there.fingerprint() == here.fingerprint()
    with pytest.raises(DataError, match=r"The csv file memory://none\.csv does not exist"):
        open_pairs("memory://none.csv")
    with pytest.raises(DataError, match=r"separated by '\\t'\. Use Columns\(separator="):
        open_table("memory://pairs.csv", Columns(separator=","))


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("memory://bucket/pairs-000002.tar", "The tar memory://bucket/pairs-000002.tar does not exist"),
        ("shelf://bucket/a.tar", "The tar shelf://bucket/a.tar cannot be read: Protocol not known: shelf"),
        ("oss://bucket/a.tar", "The tar oss://bucket/a.tar cannot be read: .*nstall"),
        ("a{0..1.tar", "is not a list of shards: "),
    ],
)
def test_errors_come_before_anything_is_read(memory: str, location: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        open_pairs(location)


class NoCredentialsError(Exception):
    """An error of one file system."""


@pytest.mark.parametrize("error", [TimeoutError, NoCredentialsError, ValueError])
def test_shard_that_goes_away_is_an_error_and_not_a_broken_sample(
    memory: str, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    class Gone(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 20_000:
                raise error("no answer")
            return super().read(size)

    whole = fsspec.filesystem("memory").cat("/bucket/pairs-000000.tar")
    monkeypatch.setattr(web, "PAUSES", ())
    monkeypatch.setattr(web.fsspec, "open", lambda url, mode: type("Opened", (), {"open": lambda self: Gone(whole)})())
    with pytest.raises(DataError, match=r"The tar memory://bucket/pairs-000000\.tar cannot be read: no answer"):
        _pairs("memory://bucket/pairs-000000.tar")


@pytest.mark.parametrize(
    ("ending", "cause"),
    [
        ("; exit 3", "its command failed with exit code 3"),
        ("; kill -9 $$", "its command was ended by signal 9"),
        (" || true", "it is torn or damaged"),
    ],
)
def test_tar_of_a_command_that_failed_is_torn(memory: str, tmp_path: Path, ending: str, cause: str) -> None:
    """Half of a tar, and a whole one."""
    whole = fsspec.filesystem("memory").cat("/bucket/pairs-000000.tar")
    (tmp_path / "a.tar").write_bytes(whole)
    for size in (len(whole) // 2, len(whole)):
        pipe = f"pipe:head -c {size} {tmp_path}/a.tar{ending}"
        (part,) = TarPairs(pipe).parts()
        *samples, last = part.samples()
        if size == len(whole) and "true" in ending:
            assert isinstance(last, Sample)
            continue
        assert isinstance(last, TornTar)
        assert (last.key, last.reason, last.share) == (pipe, cause, None)
        assert len(samples) == sum(isinstance(sample, Sample) for sample in samples) > 0
        assert size < len(whole) or len(samples) == N // 2
        assert len(part.digest()) == 64


def test_command_that_fails_before_any_output_is_an_unreachable_tar(tars: Path, tmp_path: Path) -> None:
    pipe = f"pipe:cat {tars}/none.tar"
    (part,) = TarPairs(pipe).parts()
    fault = rf"^The tar {pipe} cannot be read: its command failed with exit code 1\. Run the command after pipe: by itself"
    for read in (part.digest, lambda: list(part.samples())):
        with pytest.raises(MissingShardError, match=fault):
            read()
    recipe, data = Recipe(clusterer="kmeans:n_clusters=2"), TarPairs(f"{pipe}::{tars}/pairs-000001.tar")
    with pytest.raises(MissingShardError, match=r"exit code 1\. .* To leave out this tar, use max_missing_shards=1"):
        prepare(data, tmp_path / "clusters", recipe, progress=False)
    folder = prepare(data, tmp_path / "clusters", recipe, progress=False, max_missing_shards=1)
    assert folder.manifest["missing_shards"] == [pipe]
    assert len(folder.samples) == N // 2


def test_command_whose_output_is_not_needed_any_more_is_ended(tars: Path) -> None:
    with open_url(f"pipe:cat {tars}/pairs-000000.tar; exec sleep 600") as stream:
        assert len(stream.read(512)) == 512


class Server(http.server.BaseHTTPRequestHandler):
    """A server whose paths say how it fails: a code, ``stream`` without size and ranges, ``cut`` in the middle."""

    files: Path

    def do_GET(self) -> None:
        _, fault, name = self.path.split("/")
        if fault.isdigit():
            self.send_error(int(fault))
            return
        data = (self.files / name).read_bytes()
        self.send_response(200)
        if fault == "cut":
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[: len(data) // 2] if fault == "cut" else data)

    do_HEAD = do_GET  # noqa: N815  (the name of the standard library)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def server(tars: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return the address of a server with the tars and a csv file; reads are not repeated."""
    monkeypatch.setattr(web, "PAUSES", ())
    write_csv(tars, 8)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Serving", (Server,), {"files": tars})) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.mark.parametrize(
    ("fault", "words"), [("403", "Forbidden"), ("404", "Not Found"), ("500", "Internal Server Error"), ("cut", "")]
)
@pytest.mark.parametrize("name", ["pairs.csv", "pairs-000000.tar"])
def test_web_server_that_fails(server: str, fault: str, words: str, name: str) -> None:
    url = f"{server}/{fault}/{name}"
    with pytest.raises(DataError, match=rf"^The (tar|csv file) {re.escape(url)} cannot be read: .*{words}") as raised:
        _pairs(url)
    assert "\n" not in str(raised.value)


def test_web_server_without_ranges(server: str) -> None:
    """Its tars are read forward."""
    url = f"{server}/stream/pairs-000000.tar"
    assert len(_pairs(url)) == N // 2
    assert len(list(raw_samples(open_url(url), {}))) == N // 2


@pytest.mark.filterwarnings("ignore:Falling back to the 'python' engine")
def test_csv_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"separated by '\*\*': .*nothing to repeat"):
        open_table(write_csv(tmp_path, 4), Columns(separator="**"))

    def refuse(*given: object, **named: object) -> None:
        raise NoCredentialsError("Unable to locate credentials")

    monkeypatch.setattr("pandas.read_csv", refuse)
    with pytest.raises(DataError, match=r"The csv file memory://pairs\.csv cannot be read: Unable to locate credentials"):
        open_pairs("memory://pairs.csv")
