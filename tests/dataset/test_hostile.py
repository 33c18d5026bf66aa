"""Malicious data are skipped or rejected quickly, and no code in them is run."""

from __future__ import annotations

import gzip
import io
import os
import struct
import tarfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import EpsImagePlugin, Image

from clip_negatives.dataset import BrokenSample, Sample, TarPairs, open_pairs, open_table
from clip_negatives.dataset.archive import DAMAGED, raw_samples
from clip_negatives.dataset.images import count_pixels, limited_batches, pillow_limit, read_image, read_small_image
from clip_negatives.dataset.urls import ShardStream, open_url
from clip_negatives.errors import DataError
from clip_negatives.storage.limits import VARIABLE, limit
from tests.pairs import png, write_csv, write_tar

PICTURE = png(Image.new("RGB", (2, 2)))


def read(file: Path, *, group: str | None = None) -> dict[str, str | None]:
    """Return the reason of each broken sample of a tar, and None for each other sample, by key."""
    with file.open("rb") as stream, suppress(*DAMAGED):
        list(raw_samples(ShardStream(stream, str(file)), ("one", "two")))
    samples: list[Sample | BrokenSample] = [
        sample for part in TarPairs(str(file), group_field=group).parts() for sample in part.samples()
    ]
    return {sample.key: sample.reason if isinstance(sample, BrokenSample) else None for sample in samples}


def bomb(width: int, height: int) -> bytes:
    """Return a PNG without pixels that claims a size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b""))
    chunks = [struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(9460, 9460), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_decompression_bombs_are_refused_by_their_header(tmp_path: Path, size: tuple[int, int]) -> None:
    with pytest.raises(DataError, match=r"The image a picture has more than 89478485 pixels.*raise the limit"):
        read_image(io.BytesIO(bomb(*size)), "a picture")
    assert read_small_image(io.BytesIO(bomb(*size)), 8) is None
    assert count_pixels(io.BytesIO(bomb(*size))) == 0
    file = write_tar(tmp_path / "a.tar", {"one.png": bomb(*size), "one.txt": b"a", "two.png": PICTURE, "two.txt": b"b"})
    assert read(file) == {"one": "the image has too many pixels", "two": None}


def test_the_limit_of_pixels_can_be_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "pixels=3")
    with pytest.raises(DataError, match="more than 3 pixels"):
        read_image(io.BytesIO(PICTURE), "a picture")
    monkeypatch.setenv(VARIABLE, "pixels=4")
    assert read_image(io.BytesIO(PICTURE), "a picture").size == (2, 2)


@pytest.mark.parametrize("users_limit", [1, 3, None])
def test_pillows_own_limit_is_raised_and_restored(monkeypatch: pytest.MonkeyPatch, users_limit: int | None) -> None:
    """Pillow refuses an image above twice its own limit."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", users_limit)
    assert count_pixels(io.BytesIO(PICTURE)) == 4
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: read_image(io.BytesIO(PICTURE), "a picture").size, range(50))) == {(2, 2)}
    assert users_limit == Image.MAX_IMAGE_PIXELS
    with pillow_limit():  # reading an image within the block does not end it
        assert count_pixels(io.BytesIO(PICTURE)) == 4
        assert Image.MAX_IMAGE_PIXELS in (None, limit("pixels"))
    assert users_limit == Image.MAX_IMAGE_PIXELS


def test_postscript_is_no_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow reads EPS, whatever the file name, and lets Ghostscript run it."""
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "EPS")
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("a program in the data was run"))
    with pytest.raises(DataError, match="cannot be decoded"):
        read_image(io.BytesIO(stream.getvalue()), "a picture")
    assert read_small_image(io.BytesIO(stream.getvalue()), 8) is None


def test_sizes_that_are_no_whole_numbers() -> None:
    """Pillow does not check the types of TIFF tags, and seeks a fractional offset."""
    stream = io.BytesIO()
    Image.new("RGB", (9, 7)).save(stream, "TIFF")
    data = bytearray(stream.getvalue())
    (directory,) = struct.unpack("<I", data[4:8])
    (entries,) = struct.unpack("<H", data[directory : directory + 2])
    for entry in range(directory + 2, directory + 2 + 12 * entries, 12):
        if struct.unpack("<H", data[entry : entry + 2]) == (273,):  # offset of the pixels
            data[entry + 2 : entry + 4] = struct.pack("<H", 11)  # a float
    assert read_small_image(io.BytesIO(data), 8) is None
    with pytest.raises(DataError, match="cannot be decoded"):
        read_image(io.BytesIO(data), "a picture")


def test_few_large_images_are_held_at_once() -> None:
    sizes = [2**20] * 100 + [2**26] * 5
    groups = list(limited_batches(sizes, 64, lambda pixels: pixels))
    assert [size for group in groups for size in group] == sizes
    assert all(len(group) == 1 or (len(group) <= 64 and sum(group) <= 2**27) for group in groups)
    assert [len(group) for group in groups] == [64, 37, 2, 2]
    assert list(limited_batches([], 3)) == []
    assert list(limited_batches([1, 9, 2, 2, 2], 3, lambda pixels: pixels, 6)) == [[1], [9], [2, 2, 2]]


def test_pipes_and_names_with_zero_bytes_in_a_csv(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for name in (tmp_path / "pipe.png", "a\0b.png", tmp_path, "x" * 5000):
        (tmp_path / "a.csv").write_text(f"filepath\ttitle\n{name}\ttext\n")
        (part,) = open_table(tmp_path / "a.csv").parts()
        part.digest()
        with pytest.raises(DataError, match=r"row 0 of .*a\.csv"):
            list(part.samples())


@pytest.mark.parametrize("kind", ["pipe", "device", "link to a pipe", "folder"])
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_data_that_are_not_regular_files(tmp_path: Path, kind: str, scheme: str) -> None:
    """Nothing is read of them: a pipe would block, and /dev/zero has no end."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    paths = {"pipe": tmp_path / "pipe", "device": Path("/dev/zero"), "link to a pipe": tmp_path / "link", "folder": tmp_path}
    location = f"{scheme}{paths[kind]}"
    for dataset_type, name in (("csv", "csv file"), ("webdataset", "tar")):
        with pytest.raises(DataError, match=f"^The {name} {location} is not a regular file. Check its path.$"):
            open_pairs(location, dataset_type=dataset_type)
    with pytest.raises(DataError, match="is not a regular file"):
        open_url(location)


def test_links_to_regular_files(tmp_path: Path) -> None:
    (tmp_path / "a.csv").symlink_to(write_csv(tmp_path, 2))
    (tmp_path / "a.tar").symlink_to(write_tar(tmp_path / "b.tar", {"one.png": PICTURE, "one.txt": b"text"}))
    assert len(open_pairs(tmp_path / "a.csv")) == 2
    assert read(tmp_path / "a.tar") == {"one": None}


def test_a_quote_that_is_not_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "characters=20")
    (tmp_path / "a.csv").write_text('filepath\ttitle\na.png\tfine\nb.png\t"open\n' + "c.png\tmore\n" * 9 + '"\n')
    with pytest.raises(
        DataError, match=r"text of row 1 of .*a\.csv has \d+ characters, more than the limit of 20\. Close its quotation mark"
    ):
        open_table(tmp_path / "a.csv")


def test_long_texts_and_large_members_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "characters=20,member_bytes=200")
    members = {f"{key}.{ending}": data for key in "abcd" for ending, data in (("png", PICTURE), ("txt", b"text"))}
    members |= {"b.txt": b"x" * 21, "c.png": bytes(201), "d.mp4": bytes(10**6), "d.json": b"{}" + b" " * 300}
    assert read(write_tar(tmp_path / "a.tar", members)) == {
        "a": None,
        "b": "the text has more than 20 characters",
        "c": "the .png has more than 200 bytes",
        "d": "the .json has more than 200 bytes",
    }


def test_sparse_members_are_not_filled_up(tmp_path: Path) -> None:
    """A header of 512 bytes can claim a terabyte of zeros."""
    info = tarfile.TarInfo("one.png")
    info.pax_headers = {"GNU.sparse.size": str(2**40), "GNU.sparse.map": "0,0", "GNU.sparse.name": "one.png"}
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info)
        text = tarfile.TarInfo("one.txt")
        text.size = 1
        tar.addfile(text, io.BytesIO(b"a"))
    assert read(tmp_path / "a.tar") == {"one": f"the .png has more than {2**28} bytes"}


def _tar_with(header: bytes) -> bytes:
    """Return a tar of a complete sample, followed by a header."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in (("one.png", PICTURE), ("one.txt", b"a")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        end = tar.offset
    return stream.getvalue()[:end] + header + bytes(1024)


def _header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    "header",
    [
        _header("two.mp4", 2**61),  # tarfile would search for its end for ever
        _header("two.mp4", 2**80),
        _header("two", 2**40, tarfile.XHDTYPE),  # tarfile would allocate this at once
        _header("two", 2**31, tarfile.GNUTYPE_LONGNAME),
        _header("two", 11, tarfile.XHDTYPE) + b"11 size=-1\n".ljust(512, b"\0") + _header("two.mp4", 0),
        (_header("two", 12, tarfile.XHDTYPE) + b"12 mtime=12\n".ljust(512, b"\0")) * 3000,  # nested headers
        _header("two", 28, tarfile.XHDTYPE) + b"28 GNU.sparse.map=1,2,BINAR\n".ljust(512, b"\0") + _header("two.mp4", 0),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_headers_that_claim_too_much(tmp_path: Path, header: bytes, packed: bool) -> None:
    data = _tar_with(header)
    (tmp_path / "a.tar").write_bytes(gzip.compress(data) if packed else data)
    reasons = read(tmp_path / "a.tar")
    assert reasons.pop("one") is None
    assert reasons.pop("two", "no .txt and no image, only .mp4") == "no .txt and no image, only .mp4"
    assert set(reasons) <= {str(tmp_path / "a.tar")}


def test_names_and_groups_that_are_no_text(tmp_path: Path) -> None:
    nested = b'{"item": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    pairs = {
        "one\udcff": b'{"item": "a"}',
        "two": b'{"item": "\\ud800"}',
        "deep": nested,
        "number": b'{"item": ' + b"1" * 5000 + b"}",
    }
    with tarfile.open(tmp_path / "a.tar", "w", errors="surrogateescape") as tar:
        for key, group in pairs.items():
            for ending, data in (("png", PICTURE), ("txt", b"a"), ("json", group)):
                info = tarfile.TarInfo(f"{key}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    assert read(tmp_path / "a.tar", group="item") == {
        "one\\xff": "the key is not UTF-8",
        "two": None,
        "deep": "the .json cannot be read",
        "number": "the .json cannot be read",
    }
    (part,) = TarPairs(str(tmp_path / "a.tar"), group_field="item").parts()
    assert [sample.group for sample in part.samples() if isinstance(sample, Sample)] == ["\\ud800"]


def test_members_stay_in_the_tar(tmp_path: Path) -> None:
    """Names with .. are only names, and links are skipped."""
    (tmp_path / "home").mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    with tarfile.open(tmp_path / "home" / "a.tar", "w") as tar:
        for name, data in (("../escaped.png", PICTURE), ("../escaped.txt", b"a"), ("/abs.png", PICTURE), ("/abs.txt", b"b")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            info = tarfile.TarInfo("link.txt")
            info.type, info.linkname = kind, str(tmp_path / "secret.txt")
            tar.addfile(info)
        info = tarfile.TarInfo("link.png")
        info.size = len(PICTURE)
        tar.addfile(info, io.BytesIO(PICTURE))
    reasons = read(tmp_path / "home" / "a.tar")
    assert reasons.pop("link") == "no .txt, only .png"
    assert [reason for reason in reasons.values() if reason is not None] == []
    assert sorted(item.name for item in tmp_path.rglob("*")) == ["a.tar", "home", "secret.txt"]
