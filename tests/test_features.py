"""Encoding survives being stopped anywhere and gives the features that an undisturbed run gives."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from clip_negatives import features
from clip_negatives.dataset import CsvPairs
from clip_negatives.encoders import Encoder, image_encoder, text_encoder
from clip_negatives.errors import DataError
from clip_negatives.features import encode

from .pairs import write_csv

N = 60


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CsvPairs:
    """Return pairs that fill several chunks, the last one in part."""
    monkeypatch.setattr(features, "CHUNK", 16)
    return CsvPairs(write_csv(tmp_path, N))


def _run(source: CsvPairs, folder: Path, images: Encoder | None = None) -> tuple[Tensor, Tensor]:
    return encode(source, images or image_encoder("pixels:dim=8"), text_encoder("tfidf:dim=8"), folder, progress=False)


def test_features_have_unit_norm(source: CsvPairs, tmp_path: Path) -> None:
    for found in _run(source, tmp_path / "work"):
        assert found.shape == (N, 8)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.norm(dim=1), torch.ones(N))


def test_features_are_those_of_one_piece(source: CsvPairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, text = _run(source, tmp_path / "work")
    monkeypatch.setattr(features, "CHUNK", 1000)
    whole_image, whole_text = _run(source, tmp_path / "whole")
    torch.testing.assert_close(image, whole_image)
    torch.testing.assert_close(text, whole_text)


def test_projection_is_fitted_on_samples_over_all_data(
    source: CsvPairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "FITTED_ON", 8)  # every 7th sample, across chunks of 16
    seen: list[Tensor] = []

    def fit(raw: Tensor) -> Any:
        seen.append(raw)
        return lambda some: some

    plain = image_encoder("pixels")
    _run(source, tmp_path / "work", Encoder(plain.encode, fit=fit, name="seeing"))
    assert torch.equal(seen[0], plain.encode(list(source.images(0, N)))[:: N // 8])


class Stopping:
    """Encode a number of batches, then stop as Ctrl-C would."""

    def __init__(self, batches: int) -> None:
        self.plain = image_encoder("pixels:dim=8")
        self.left = batches
        self.encoded = 0

    def encoder(self) -> Encoder:
        """Return the encoder, under the name of the plain one."""
        return Encoder(self.encode, fit=self.plain.fit, name=self.plain.name)

    def encode(self, images: Sequence[Image.Image]) -> Tensor:
        """Encode, or stop."""
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        self.encoded += len(images)
        return self.plain.encode(images)


@pytest.mark.parametrize("batches", [0, 1, 3])
def test_interrupted_run_goes_on_after_the_last_chunk(source: CsvPairs, tmp_path: Path, batches: int) -> None:
    expected = _run(source, tmp_path / "undisturbed")
    with pytest.raises(KeyboardInterrupt):
        _run(source, tmp_path / "work", Stopping(batches).encoder())
    rest = Stopping(-1)
    found = _run(source, tmp_path / "work", rest.encoder())
    assert rest.encoded == N - 16 * batches
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_damaged_chunk_is_encoded_again(source: CsvPairs, tmp_path: Path) -> None:
    expected = _run(source, tmp_path / "work")
    expected = expected[0].clone(), expected[1].clone()
    chunk = tmp_path / "work" / "image" / "000001.safetensors"
    chunk.write_bytes(chunk.read_bytes()[:100])
    again = Stopping(-1)
    found = _run(source, tmp_path / "work", again.encoder())
    assert 16 <= again.encoded < N
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_chunks_of_other_data_or_encoders_are_not_used(source: CsvPairs, tmp_path: Path) -> None:
    _run(source, tmp_path / "work")
    other = image_encoder("pixels:dim=4")
    assert _run(source, tmp_path / "work", other)[0].shape == (N, 4)
    source.path.write_text(
        source.path.read_text().replace("title", "title", 1) + source.path.read_text().splitlines()[1] + "\n"
    )
    assert _run(CsvPairs(source.path), tmp_path / "work", other)[0].shape == (N + 1, 4)


def test_zero_vector_stays_zero(source: CsvPairs, tmp_path: Path) -> None:
    nothing = Encoder(lambda images: torch.zeros(len(images), 3), name="nothing")
    assert torch.equal(_run(source, tmp_path / "work", nothing)[0], torch.zeros(N, 3))


def test_fewer_samples_than_dimensions(tmp_path: Path) -> None:
    images, texts = _run(CsvPairs(write_csv(tmp_path, 3)), tmp_path / "work")
    assert images.shape[0] == texts.shape[0] == 3
    assert images.shape[1] <= 3


def test_data_that_shrink_while_they_are_read(source: CsvPairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def images(start: int, stop: int) -> Iterator[Image.Image]:
        return CsvPairs.images(source, start, min(stop, 40))

    monkeypatch.setattr(source, "images", images)
    with pytest.raises(DataError, match="Expected 60 samples, got 40"):
        _run(source, tmp_path / "work")


SCRIPT = """
    import signal, sys, time
    from pathlib import Path
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what runs in the background without it
    from clip_negatives import features
    from clip_negatives.dataset import CsvPairs
    from clip_negatives.encoders import Encoder, image_encoder, text_encoder

    features.CHUNK = 16
    plain = image_encoder("pixels:dim=8")

    def slowly(images):
        time.sleep(0.6)
        return plain.encode(images)

    encoder = Encoder(slowly, fit=plain.fit, name=plain.name)
    features.encode(CsvPairs(sys.argv[1]), encoder, text_encoder("tfidf:dim=8"), Path(sys.argv[2]), progress=False)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_process_loses_at_most_a_chunk(source: CsvPairs, tmp_path: Path, how: signal.Signals) -> None:
    expected = _run(source, tmp_path / "undisturbed")
    work = tmp_path / "work"
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(source.path), str(work)],
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not (work / "image" / "000001.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(how)
    assert process.wait() != 0
    rest = Stopping(-1)
    found = _run(source, work, rest.encoder())
    assert rest.encoded <= N - 32
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
