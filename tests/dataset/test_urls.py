"""Shards are read from wherever fsspec reaches, as from a disk of this machine; what is wrong is one sentence."""

from __future__ import annotations

import io
from pathlib import Path

import fsspec
import pytest

from clip_negatives.dataset import Broken, CsvPairs, TarPairs, open_pairs, urls
from clip_negatives.errors import DataError
from clip_negatives.prepare import prepare

from ..pairs import write_csv, write_tars

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
    assert not any(isinstance(sample, Broken) for sample in samples)
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
    options = {"clusterer": "kmeans:n_clusters=4", "progress": False}
    there = prepare(TarPairs(memory), tmp_path / "there", **options)
    here = prepare(TarPairs(f"{tars}/pairs-{{000000..000001}}.tar"), tmp_path / "here", **options)
    assert there.samples.drop_columns("shard").equals(here.samples.drop_columns("shard"))
    assert there.samples["shard"][0].as_py() == "memory://bucket/pairs-000000.tar"
    assert there.clusters.image.labels.equal(here.clusters.image.labels)


def test_fingerprint_changes_with_a_shard(memory: str) -> None:
    before = TarPairs(memory).fingerprint()
    assert TarPairs(memory).fingerprint() == before
    system = fsspec.filesystem("memory")
    system.pipe("/bucket/pairs-000001.tar", system.cat("/bucket/pairs-000000.tar"))
    assert TarPairs(memory).fingerprint() != before


def test_csv_of_an_object_store(tmp_path: Path) -> None:
    file = write_csv(tmp_path, 8)
    fsspec.filesystem("memory").pipe("/pairs.csv", file.read_bytes())
    there, here = open_pairs("memory://pairs.csv", group_column="item"), CsvPairs(file, group_column="item")
    assert (there.texts, there.groups) == (here.texts, here.groups)
    assert there.fingerprint() == here.fingerprint()
    with pytest.raises(DataError, match=r"Expected to read the csv file memory://none\.csv"):
        open_pairs("memory://none.csv")
    with pytest.raises(DataError, match="not by ',': say --csv-separator"):
        CsvPairs("memory://pairs.csv", separator=",")


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("memory://bucket/pairs-000002.tar", "Expected a tar file, got memory://bucket/pairs-000002.tar, which is not there"),
        ("shelf://bucket/a.tar", "Expected to read the tar shelf://bucket/a.tar, got: Protocol not known: shelf"),
        ("oss://bucket/a.tar", "Expected to read the tar oss://bucket/a.tar, got: .*nstall"),
        ("a{0..1.tar", "Expected shards such as"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_read(memory: str, location: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        open_pairs(location)


class NoCredentialsError(Exception):
    """What a file system has of its own."""


@pytest.mark.parametrize("error", [TimeoutError, NoCredentialsError])
def test_shard_that_goes_away_is_an_error_and_not_a_broken_sample(
    memory: str, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    class Gone(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 20_000:
                raise error("no answer")
            return super().read(size)

    whole = fsspec.filesystem("memory").cat("/bucket/pairs-000000.tar")
    monkeypatch.setattr(urls.fsspec, "open", lambda url, mode: type("Opened", (), {"open": lambda self: Gone(whole)})())
    with pytest.raises(DataError, match=r"read the tar memory://bucket/pairs-000000\.tar, got: no answer"):
        _pairs("memory://bucket/pairs-000000.tar")
    with pytest.raises(DataError, match="read the tar pipe:exit 3, got: "):
        list(TarPairs("pipe:exit 3").parts()[0].samples())


@pytest.mark.filterwarnings("ignore:Falling back to the 'python' engine")
def test_csv_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"separated by '\*\*', got .*nothing to repeat"):
        CsvPairs(write_csv(tmp_path, 4), separator="**")

    def refuse(*given: object, **named: object) -> None:
        raise NoCredentialsError("Unable to locate credentials")

    monkeypatch.setattr("pandas.read_csv", refuse)
    with pytest.raises(DataError, match=r"read the csv file memory://pairs\.csv, got: Unable to locate credentials"):
        open_pairs("memory://pairs.csv")
