"""Encoding can be interrupted anywhere, and a later run gives the features of an uninterrupted run."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from clip_negatives.dataset import TablePairs, TarPairs, open_table, tables, tar_part
from clip_negatives.encoders import Encoder, image_encoder, text_encoder
from clip_negatives.errors import ArtifactError, DataError, InputError
from clip_negatives.features import EncodedFeatures, assembly, encode, encoding, run
from clip_negatives.features.run import EncodingRun
from clip_negatives.storage.atomic import write_tensors
from clip_negatives.storage.clusters_parts import FEATURES
from tests.pairs import listings, png, write_csv, write_tar, write_tars

N = 60


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TablePairs:
    """Return pairs that fill several parts, the last one incompletely."""
    monkeypatch.setattr(tables, "ROWS", 16)
    return open_table(write_csv(tmp_path, N))


def _encode(
    source: TablePairs | TarPairs, folder: Path, images: Encoder | None = None, dtype: str = "float32"
) -> EncodedFeatures:
    encoders = images or image_encoder("pixels:dim=8"), text_encoder("tfidf:dim=8")
    return encode(source, *encoders, folder, dtype=dtype)


def _run(source: TablePairs | TarPairs, folder: Path, images: Encoder | None = None) -> tuple[Tensor, Tensor]:
    encoded = _encode(source, folder, images)
    return encoded.image.clone(), encoded.text.clone()


def test_features_have_unit_norm(source: TablePairs, tmp_path: Path) -> None:
    for encoded in _run(source, tmp_path / "work"):
        assert encoded.shape == (N, 8)
        assert encoded.dtype == torch.float32
        torch.testing.assert_close(encoded.norm(dim=1), torch.ones(N))


def test_features_are_those_of_one_piece(source: TablePairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "CHUNK", 7)
    image, text = _run(source, tmp_path / "work")
    monkeypatch.setattr(tables, "ROWS", 1000)
    whole_image, whole_text = _run(source, tmp_path / "whole")
    torch.testing.assert_close(image, whole_image)
    torch.testing.assert_close(text, whole_text)


def test_projection_is_fitted_on_samples_over_all_data(
    source: TablePairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assembly, "FITTED_ON", 8)  # every 7th sample, across parts of 16
    seen: list[Tensor] = []

    def fit(raw: Tensor) -> Any:
        seen.append(raw)
        return lambda raw: raw

    plain = image_encoder("pixels")
    _run(source, tmp_path / "work", Encoder(plain.encode, fit=fit, name="seeing"))
    assert torch.equal(seen[0], plain.encode(list(source.images(0, N)))[:: N // 8])


def test_texts_that_are_learned_from_are_spread_over_all_data(
    source: TablePairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Sequence[str]] = []
    plain = text_encoder("tfidf:dim=8")

    def learn(texts: Sequence[str]) -> None:
        seen.append(texts)
        plain.learn(texts)

    encoder = Encoder(plain.encode, learn=learn, name="seeing")
    for about in (N, 8):
        monkeypatch.setattr(run, "LEARNED_ON", about)
        encode(source, image_encoder("pixels"), encoder, tmp_path / str(about))
    assert seen == [source.texts, source.texts[:: N // 8]]


class Stopping:
    """An encoder that stops after a number of batches, as after Ctrl-C."""

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
def test_interrupted_run_goes_on_after_the_last_part(source: TablePairs, tmp_path: Path, batches: int) -> None:
    expected = _run(source, tmp_path / "undisturbed")
    with pytest.raises(KeyboardInterrupt):
        _run(source, tmp_path / "work", Stopping(batches).encoder())
    rest = Stopping(-1)
    encoded = _run(source, tmp_path / "work", rest.encoder())
    assert rest.encoded == N - 16 * batches
    assert all(torch.equal(a, b) for a, b in zip(encoded, expected, strict=True))


@pytest.mark.parametrize("file", ["record.json", "vectors.bin", "samples.parquet", "keys.bin"])
def test_damaged_part_is_encoded_again(source: TablePairs, tmp_path: Path, file: str) -> None:
    expected = _run(source, tmp_path / "work")
    part = tmp_path / "work" / "images" / source.parts()[1].digest() / file
    part.write_bytes(part.read_bytes()[:50])
    shutil.rmtree(next((tmp_path / "work").glob("whole-*")))
    again = Stopping(-1)
    encoded = _run(source, tmp_path / "work", again.encoder())
    assert again.encoded == 16
    assert all(torch.equal(a, b) for a, b in zip(encoded, expected, strict=True))


@pytest.mark.parametrize("file", ["record.json", "features.safetensors", "samples.parquet"])
def test_damaged_whole_is_put_together_again(source: TablePairs, tmp_path: Path, file: str) -> None:
    expected = _run(source, tmp_path / "work")
    whole = next((tmp_path / "work").glob("whole-*")) / file
    whole.write_bytes(whole.read_bytes()[:50])
    again = Stopping(-1)
    encoded = _run(source, tmp_path / "work", again.encoder())
    assert again.encoded == 0
    assert all(torch.equal(a, b) for a, b in zip(encoded, expected, strict=True))


def test_parts_of_other_encoders_are_not_used(source: TablePairs, tmp_path: Path) -> None:
    _run(source, tmp_path / "work")
    assert _run(source, tmp_path / "work", image_encoder("pixels:dim=4"))[0].shape == (N, 4)


def test_only_parts_that_changed_are_encoded_again(source: TablePairs, tmp_path: Path) -> None:
    _run(source, tmp_path / "work")
    file = Path(source.path)
    file.write_text(file.read_text() + file.read_text().splitlines()[1] + "\n")
    again, other = Stopping(-1), open_table(source.path)
    encoded = _run(other, tmp_path / "work", again.encoder())
    assert again.encoded == N + 1 - 48
    assert all(torch.equal(a, b) for a, b in zip(encoded, _run(other, tmp_path / "anew"), strict=True))
    assert len(list((tmp_path / "work" / "images").iterdir())) == 4  # parts of other data are removed


def test_zero_vector_stays_zero(source: TablePairs, tmp_path: Path) -> None:
    nothing = Encoder(lambda images: torch.zeros(len(images), 3), name="nothing")
    assert torch.equal(_run(source, tmp_path / "work", nothing)[0], torch.zeros(N, 3))


def test_fewer_samples_than_dimensions(tmp_path: Path) -> None:
    images, texts = _run(open_table(write_csv(tmp_path, 3)), tmp_path / "work")
    assert images.shape[0] == texts.shape[0] == 3
    assert images.shape[1] <= 3


def test_data_that_change_while_they_are_read(source: TablePairs, tmp_path: Path) -> None:
    def encode_and_touch(images: Sequence[Image.Image]) -> Tensor:
        os.utime(source.image_paths[0], (1, 1))
        return torch.ones(len(images), 3)

    with pytest.raises(DataError, match=r"rows 0 .. 15 of .*pairs.csv changed while it was read"):
        _run(source, tmp_path / "work", Encoder(encode_and_touch, name="touching"))


def test_half_precision(source: TablePairs, tmp_path: Path) -> None:
    half, full = _encode(source, tmp_path / "half", dtype="float16"), _encode(source, tmp_path / "full")
    assert half.image.dtype == half.text.dtype == torch.float16
    assert torch.equal(half.image, full.image.half())
    assert torch.equal(half.text, full.text.half())
    with pytest.raises(InputError, match="float32 or float16, got 'bfloat16'"):
        _encode(source, tmp_path / "none", dtype="bfloat16")


def test_file_is_what_safetensors_would_write(source: TablePairs, tmp_path: Path) -> None:
    for dtype in ("float32", "float16"):
        encoded = _encode(source, tmp_path / dtype, dtype=dtype)
        write_tensors({"image": encoded.image, "text": encoded.text}, tmp_path / "expected.safetensors")
        assert encoded.features_file.read_bytes() == (tmp_path / "expected.safetensors").read_bytes()


def test_broken_samples_of_tars_are_left_out_and_listed(tmp_path: Path) -> None:
    members = {}
    for row, (key, text, _, picture) in enumerate(listings(8)):
        fields = {f"{key}.png": png(picture), f"{key}.txt": text.encode(), f"{key}.json": b"{}"}
        if row in (1, 5):
            fields[f"{key}.png"] = fields[f"{key}.png"][:300]
        if row == 2:
            fields[f"{key}.txt"] = b"\xff\xfe"
        if row == 3:
            fields[f"{key}.json"] = b"{"
        members |= fields
    one = write_tar(tmp_path / "one.tar", members)
    torn = Path(write_tars(tmp_path, 40, shards=1).replace("{000000..000000}", "000000"))
    torn.write_bytes(torn.read_bytes()[:20_000])
    unreadable = write_tar(tmp_path / "none.tar", {"a.png": b"no image", "a.txt": b"text"})
    encoded = _encode(TarPairs(f"{unreadable}::{one}"), tmp_path / "work")
    keys = [item[0] for item in listings(8)]
    assert (encoded.n_samples, encoded.n_broken) == (4, 5)
    assert pq.read_table(encoded.folder / "samples.parquet")["key"].to_pylist() == [keys[row] for row in (0, 4, 6, 7)]
    reasons = ["the image cannot be read", "the text is not UTF-8", "the .json cannot be read"]
    assert pq.read_table(encoded.folder / "broken.parquet", columns=["key", "reason"]).to_pydict() == {
        "key": ["a", *(keys[row] for row in (1, 2, 3, 5))],
        "reason": [reasons[0], reasons[0], reasons[1], reasons[2], reasons[0]],
    }
    encoded = _encode(TarPairs(f"{torn}::{unreadable}"), tmp_path / "work")
    assert 0 < encoded.n_samples < 40
    assert pq.read_table(encoded.folder / "broken.parquet")["key"].to_pylist() == ["a", str(torn)]


def test_data_of_broken_samples_alone_are_refused(tmp_path: Path) -> None:
    file = write_tar(tmp_path / "a.tar", {"a.png": b"no image", "a.txt": b"text", "b.txt": b"text"})
    with pytest.raises(
        DataError, match=r"can be read \(2 samples are broken and 0 tars torn, for example a: the image cannot be read\)"
    ):
        _encode(TarPairs(str(file)), tmp_path / "work")
    with pytest.raises(
        DataError, match=r"can be read \(1 samples are broken and 0 tars torn, for example b: no image, only \.txt\)"
    ):
        _encode(TarPairs(str(write_tar(tmp_path / "b.tar", {"b.txt": b"text"}))), tmp_path / "work")


@pytest.mark.parametrize("at_once", [1000, 7])
def test_keys_of_two_tars_may_be_equal_but_no_tar_comes_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(assembly, "KEYS_AT_ONCE", at_once)
    tars = write_tars(tmp_path, 40)
    assert _encode(TarPairs(tars), tmp_path / "work").n_samples == 40
    (tmp_path / "again").mkdir()
    again = write_tars(tmp_path / "again", 3, shards=1)
    assert _encode(TarPairs(f"{tars}::{again}"), tmp_path / "work").n_samples == 43
    with pytest.raises(DataError, match="3 samples repeat, because a tar is named twice"):
        _encode(TarPairs(f"{tars}::{again}::{again}"), tmp_path / "work")


SCRIPT = """
    import signal, sys, time
    from pathlib import Path
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells disable it for background processes
    from clip_negatives import features
    from clip_negatives.dataset import open_table, tables
    from clip_negatives.encoders import Encoder, image_encoder, text_encoder

    tables.ROWS = 16
    plain = image_encoder("pixels:dim=8")

    def slowly(images):
        time.sleep(0.6)
        return plain.encode(images)

    encoder = Encoder(slowly, fit=plain.fit, name=plain.name)
    features.encode(open_table(sys.argv[1]), encoder, text_encoder("tfidf:dim=8"), Path(sys.argv[2]))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_process_loses_at_most_a_part(source: TablePairs, tmp_path: Path, how: signal.Signals) -> None:
    expected = _run(source, tmp_path / "undisturbed")
    work = tmp_path / "work"
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(source.path), str(work)],
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while not (work / "images" / source.parts()[1].digest()).exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(how)
    assert process.wait() != 0
    rest = Stopping(-1)
    encoded = _run(source, work, rest.encoder())
    assert rest.encoded <= N - 32
    assert all(torch.equal(a, b) for a, b in zip(encoded, expected, strict=True))


def _full(*given: object, **named: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_folder_that_can_no_longer_be_written_is_named(
    source: TablePairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leftover of a killed process cannot be removed."""
    _run(source, tmp_path / "work")
    (tmp_path / "work" / "images" / ".left.partial").mkdir()

    def refuse(item: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(item))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(
        ArtifactError, match=r"cannot be written: Read-only file system \(.*\.left\.partial\)\. Name another path"
    ):
        _run(source, tmp_path / "work")


def test_full_disk_is_an_error(source: TablePairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last bytes of a file are written when it is closed."""
    encoder = Encoder(lambda items: torch.ones(len(items), 4), name="ones")
    for dtype in (torch.float32, torch.float16):
        with pytest.raises(OSError, match="No space"), Path("/dev/full").open("wb") as stream:
            encoding._write(torch.ones(4, 4), [], encoder, dtype, stream, {})
    (tmp_path / FEATURES).symlink_to("/dev/full")
    store = mock.Mock(vectors=lambda *given: torch.ones(4, 4))
    blocks = assembly.encoded_blocks(encoder, store, {"part": 4}, torch.float32)
    with pytest.raises(OSError, match="No space"):
        assembly.write_features({"image": blocks, "text": iter([torch.ones(4, 4)])}, 4, tmp_path)
    monkeypatch.setattr(assembly.tempfile, "TemporaryDirectory", _full)
    with pytest.raises(ArtifactError, match=r"work cannot be written: No space left on device"):
        _encode(source, tmp_path / "work")


def test_error_is_reported_if_the_others_cannot_be_stopped(tmp_path: Path) -> None:
    stopped = EncodingRun.__new__(EncodingRun)
    stopped.processes = mock.Mock(world_size=2, together=lambda make: make())
    stopped.halt = tmp_path / "none" / "halt"
    with pytest.raises(OSError, match="No space left"):
        stopped._for_each(_full, ["part"])


def test_large_images_are_encoded_in_smaller_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pixels that are prepared together are limited, because these images are in memory; the features stay the same."""
    source, sizes, plain = open_table(write_csv(tmp_path, 12)), list[int](), image_encoder("pixels:dim=8")
    whole = _run(source, tmp_path / "whole", plain)

    def noted(images: Sequence[Image.Image]) -> Tensor:
        sizes.append(len(images))
        return plain.encode(images)

    monkeypatch.setattr(encoding, "MAX_PIXELS", 3 * 32 * 32)  # an image has 32 x 32
    parts = _run(source, tmp_path / "parts", dataclasses.replace(plain, prepare=noted))
    assert sizes == [3, 3, 3, 3]
    assert all(torch.equal(*pair) for pair in zip(whole, parts, strict=True))


@pytest.mark.parametrize("n_threads", [1, 8])
def test_files_do_not_depend_on_reading_ahead(
    source: TablePairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_threads: int
) -> None:
    """All files are the same bytes as those of a run that reads one batch after another."""

    def files(data: TablePairs | TarPairs, work: Path) -> dict[str, bytes]:
        _encode(data, work)
        return {str(file.relative_to(work)): file.read_bytes() for file in work.rglob("*") if file.is_file()}

    for name, data in (("table", source), ("tars", TarPairs(write_tars(tmp_path, 30)))):
        ahead = files(data, tmp_path / name)
        with monkeypatch.context() as patches:
            patches.setattr(encoding, "read_ahead", lambda items, count: (item for item in items))
            for module in (tables, tar_part):
                patches.setattr(module, "reading_threads", lambda: n_threads)
            assert files(data, tmp_path / f"{name} serially") == ahead


def test_broken_image_of_a_table_is_named_with_its_row(source: TablePairs, tmp_path: Path) -> None:
    """An error of the thread that reads ahead ends the command as before."""
    Path(source.image_paths[20]).write_bytes(b"broken")
    with pytest.raises(DataError, match=r"The image .* \(row 20 of .*\) cannot be decoded\. Repair it"):
        _encode(source, tmp_path / "work")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_image_without_finite_features_is_named(source: TablePairs, tmp_path: Path, value: float) -> None:
    """Parts that were encoded before are kept, and a run with a valid encoder continues."""
    sound = image_encoder("pixels:dim=8")
    place = [0]

    def poisoned(images: Sequence[Any]) -> Tensor:
        encoded = sound.encode(images)
        if 20 in range(place[0], place[0] + len(images)):
            encoded[20 - place[0], 3] = value
        place[0] += len(images)
        return encoded

    broken = dataclasses.replace(sound, prepare=poisoned)
    with pytest.raises(DataError, match=r"pixels.* gives NaN or infinity for the image of sample 20\. Leave the sample out"):
        _encode(source, tmp_path / "work", broken)
    assert len(list((tmp_path / "work" / "images").glob("*/record.json"))) == 1
    assert all(torch.equal(*pair) for pair in zip(_run(source, tmp_path / "work"), _run(source, tmp_path / "new"), strict=True))


def test_text_without_finite_features_is_named(source: TablePairs, tmp_path: Path) -> None:
    sound = text_encoder("tfidf:dim=8")
    broken = dataclasses.replace(sound, prepare=lambda texts: sound.encode(texts) * float("nan"))
    with pytest.raises(DataError, match=r"tfidf.* gives NaN or infinity for the text '"):
        encode(source, image_encoder("pixels:dim=8"), broken, tmp_path / "work")
