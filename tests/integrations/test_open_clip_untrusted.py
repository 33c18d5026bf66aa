"""While open_clip trains, checkpoints and images that are programs run nothing, and tars take no more than they may."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import open_clip_train.data
import open_clip_train.file_utils
import pytest
import torch
import webdataset.tariterators
from open_clip_train.data import log_and_continue
from PIL import Image
from webdataset.handlers import reraise_exception

from clip_negatives.dataset import open_pairs
from clip_negatives.errors import ArtifactError, DataError
from clip_negatives.integrations.open_clip import TrainOptions, stream_tars, train
from clip_negatives.integrations.open_clip.guest import NO_GHOSTSCRIPT, replaced
from clip_negatives.integrations.open_clip.stream_tars import expand_tars
from clip_negatives.integrations.open_clip.untrusted import load_checkpoint
from clip_negatives.pipelines.prepare import prepare
from tests.pairs import write_tar

from .conftest import ROWS


class Program:
    """What pickle runs when it reads a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_a_checkpoint_is_read_as_open_clip_reads_it(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "name": "run", "state_dict": {"w": torch.ones(2)}}, tmp_path / "epoch_3.pt")
    ours, theirs = (load(str(tmp_path / "epoch_3.pt"), "cpu") for load in (load_checkpoint, open_clip_train.file_utils.pt_load))
    assert torch.equal(ours.pop("state_dict")["w"], theirs.pop("state_dict")["w"])
    assert ours == theirs == {"epoch": 3, "name": "run"}


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 half an archive"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "epoch_3.pt").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"epoch_3\.pt cannot be read as tensors.*Resume from a checkpoint"):
        load_checkpoint(str(tmp_path / "epoch_3.pt"))


def test_resuming_from_a_program_runs_nothing(arguments: list[str], tmp_path: Path) -> None:
    bad = tmp_path / "epoch_1.pt"
    torch.save({"epoch": 1, "state_dict": Program(tmp_path / "ran")}, bad)
    options = TrainOptions(sampler="in_batch", weighting="uniform")
    with pytest.raises(ArtifactError, match=r"epoch_1\.pt cannot be read.* more than tensors, numbers and texts"):
        train([*arguments, "--epochs", "2", "--name", "run", "--resume", str(bad)], options)
    assert not (tmp_path / "ran").exists()


def test_no_image_is_handed_to_ghostscript() -> None:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "EPS")
    with (
        replaced(NO_GHOSTSCRIPT),
        Image.open(io.BytesIO(stream.getvalue())) as image,
        pytest.raises(OSError, match="Ghostscript"),
    ):
        image.convert("RGB")


OUR_TARS = stream_tars.replacements(frozenset())


def _read(*tars: str, handler: Any = log_and_continue) -> list[tuple[str, bytes]]:
    """Return what open_clip reads of tars, file by file."""
    files = open_clip_train.data.tar_file_expander(
        open_clip_train.data.url_opener([{"url": tar} for tar in tars], handler=handler), handler=handler
    )
    return [(file["fname"], bytes(file["data"])) for file in files]


def test_sound_tars_are_read_as_open_clip_reads_them(shards: str) -> None:
    tars = [shards.replace("{000000..000001}", place) for place in ("000000", "000001")]
    theirs = _read(*tars)
    assert len(theirs) == 3 * ROWS
    whole = open_clip_train.data.tar_file_expander
    with replaced(*OUR_TARS):
        assert open_clip_train.data.tar_file_expander is expand_tars
        assert _read(*tars) == theirs
        samples = list(open_clip_train.data.tarfile_to_samples_nothrow([{"url": tar} for tar in tars]))
    assert samples == list(open_clip_train.data.tarfile_to_samples_nothrow([{"url": tar} for tar in tars]))
    assert open_clip_train.data.tar_file_expander is whole


def _hostile(file: Path, *, pax: bool) -> str:
    """Write a tar with a sound file, and a header after it that claims an exabyte."""
    write_tar(file, {"a.txt": b"shoe"})
    header = tarfile.TarInfo("b.txt")
    header.size = 2**60
    header.type = tarfile.XHDTYPE if pax else tarfile.REGTYPE
    whole = file.read_bytes()
    file.write_bytes(whole[:1024] + header.tobuf(tarfile.GNU_FORMAT) + bytes(512))
    return str(file)


@pytest.mark.parametrize("pax", [False, True])
def test_headers_that_claim_exabytes_end_their_tar_alone(tmp_path: Path, pax: bool) -> None:
    """webdataset looks for the end of one for ever."""
    sound = str(write_tar(tmp_path / "sound.tar", {"c.txt": b"hat"}))
    with replaced(*OUR_TARS):
        assert _read(_hostile(tmp_path / "hostile.tar", pax=pax), sound) == [("a.txt", b"shoe"), ("c.txt", b"hat")]


@pytest.mark.parametrize("content", [b"\x1f\x8b\x08", b"", b"no tar at all" * 99])
def test_what_is_no_tar_is_left_to_the_handler(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """A gzip whose header is cut makes `tarfile` raise a TypeError."""
    file = tmp_path / "no.tar"
    file.write_bytes(content)
    sound = str(write_tar(tmp_path / "sound.tar", {"c.txt": b"hat"}))
    with replaced(*OUR_TARS):
        assert _read(str(file), sound) == [("c.txt", b"hat")]
    assert "no.tar" in caplog.text
    with pytest.raises(DataError, match=r"no\.tar"):
        prepare(open_pairs(str(file)), tmp_path / "clusters", progress=False)


def test_validation_reads_within_limits_too(tmp_path: Path) -> None:
    hostile = _hostile(tmp_path / "hostile.tar", pax=False)
    with replaced(*OUR_TARS):
        samples = list(webdataset.tariterators.tarfile_samples([{"url": hostile}], handler=log_and_continue))
    assert [sample["txt"] for sample in samples] == [b"shoe"]


def test_files_are_selected_and_renamed_as_webdataset_does(tmp_path: Path) -> None:
    tar = str(write_tar(tmp_path / "some.tar", {"a.png": b"1", "a.txt": b"shoe", "b.txt": b"hat"}))
    how: dict[str, Any] = {"select_files": lambda name: name.startswith("B"), "rename_files": str.upper}
    told = []
    for expand in (webdataset.tariterators.tar_file_expander, expand_tars):
        opened = webdataset.tariterators.url_opener([{"url": tar}])
        told.append([(file["fname"], file["data"], file["__url__"]) for file in expand(opened, **how)])
    assert told[0] == told[1] == [("B.TXT", b"hat", tar)]


def test_a_sample_is_left_out_where_what_it_needs_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIP_NEGATIVES_LIMITS", "member_bytes=4")
    whole = {"a.png": b"1", "a.txt": b"shoe", "a.json": b"12345", "b.png": b"1", "b.txt": b"hat", "b.npy": b"12345"}
    with replaced(*OUR_TARS):
        assert _read(str(write_tar(tmp_path / "large.tar", whole))) == [("b.png", b"1"), ("b.txt", b"hat")]


def test_members_over_the_limit_are_left_out_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CLIP_NEGATIVES_LIMITS", "member_bytes=4")
    tar = str(write_tar(tmp_path / "large.tar", {"a.png": b"12345", "a.txt": b"shoe", "b.txt": b"hat"}))
    with replaced(*OUR_TARS):
        assert _read(tar) == [("b.txt", b"hat")]
        assert "is larger than the limit of 4 bytes" in caplog.text
        with pytest.raises(DataError, match=r"a\.png in .* is larger"):
            _read(tar, handler=reraise_exception)
        assert _read(tar, tar, handler=lambda _: False) == []


def test_tars_that_end_before_their_end_end_the_stream_where_the_handler_says(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "torn.tar", {"a.txt": b"shoe", "b.txt": bytes(2048)})
    tar.write_bytes(tar.read_bytes()[:2500])
    with replaced(*OUR_TARS):
        assert _read(str(tar), str(tar)) == [("a.txt", b"shoe")] * 2
        assert _read(str(tar), str(tar), handler=lambda _: False) == [("a.txt", b"shoe")]
