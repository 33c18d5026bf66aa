"""Webdataset tars give the pairs that open_clip keeps, in order; errors name the tar."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest
from open_clip_train.data import group_by_keys_nothrow

from clip_negatives import Columns
from clip_negatives.dataset import BrokenSample, Sample, TarPairs, open_pairs, open_table
from clip_negatives.dataset.archive import raw_samples
from clip_negatives.errors import DataError
from clip_negatives.storage.limits import DEFAULTS, VARIABLE
from tests.pairs import listings, png, write_csv, write_tar, write_tars


def test_pairs_are_those_of_the_csv(tmp_path: Path) -> None:
    tars, table = (
        open_pairs(write_tars(tmp_path, 30), Columns(group="item")),
        open_table(write_csv(tmp_path, 30), Columns(group="item")),
    )
    assert isinstance(tars, TarPairs)
    assert list(tars.keys) == [item[0] for item in listings(30)]
    assert (list(tars.texts), list(tars.groups or ())) == (list(table.texts), list(table.groups or ()))
    assert tars.image_paths is None
    for start in (0, 17):
        images = zip(tars.images(start, 30), table.images(start, 30), strict=True)
        assert all(a.tobytes() == b.tobytes() for a, b in images)


def test_shards_are_joined_as_in_open_clip(tmp_path: Path) -> None:
    write_tars(tmp_path, 8)
    joined = f"{tmp_path}/pairs-000001.tar::{tmp_path}/pairs-{{000000..000000}}.tar"
    assert list(TarPairs(joined).keys) == [item[0] for item in (*listings(8)[4:], *listings(8)[:4])]


def _pair(key: str, row: int = 0) -> dict[str, bytes]:
    return {f"{key}.png": png(listings(8)[row][3]), f"{key}.txt": b"text"}


def test_samples_without_text_or_image_are_left_out_as_in_open_clip(tmp_path: Path) -> None:
    picture = png(listings(8)[0][3])
    file = write_tar(tmp_path / "a.tar", {**_pair("one"), "two.png": picture, "three.txt": b"text", **_pair("four", 1)})
    source = TarPairs(str(file))
    assert list(source.keys) == ["one", "four"]
    assert [image.tobytes() for image in source.images(0, 2)] == [listings(8)[row][3].tobytes() for row in (0, 1)]


def test_keys_of_two_tars_may_be_equal(tmp_path: Path) -> None:
    """Also where the same key ends one tar and begins the next."""
    for name, keys in (("a", ("one", "two")), ("b", ("two", "one"))):
        write_tar(tmp_path / f"{name}.tar", {file: data for key in keys for file, data in _pair(key).items()})
    source = TarPairs(f"{tmp_path}/a.tar::{tmp_path}/b.tar")
    assert list(source.keys) == ["one", "two", "two", "one"]
    assert [Path(shard).name for shard in source.shard_of] == ["a.tar", "a.tar", "b.tar", "b.tar"]


def test_a_name_that_comes_twice_begins_another_sample_as_in_open_clip(tmp_path: Path) -> None:
    pairs = [*_pair("one", 0).items(), *_pair("one", 1).items(), *_pair("two", 2).items(), *_pair("one", 3).items()]
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in pairs:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    samples = list(TarPairs(str(tmp_path / "a.tar")).parts()[0].samples())
    theirs = group_by_keys_nothrow({"fname": name, "data": data, "__url__": ""} for name, data in pairs)
    assert [sample.key for sample in samples] == [sample["__key__"] for sample in theirs] == ["one", "one", "two", "one"]
    broken = [isinstance(sample, BrokenSample) and sample.reason for sample in samples]
    assert broken == [
        False,
        "an earlier sample of the tar has the same key",
        False,
        "an earlier sample of the tar has the same key",
    ]
    content = (tmp_path / "a.tar").read_bytes()
    raw = list(raw_samples(io.BytesIO(content), {"one", "two"}))
    assert [key for key, _ in raw] == ["one", "one", "two", "one"]
    joined = b"".join(sample for _, sample in raw)
    assert content == joined.ljust(len(content), b"\0")
    assert dict(raw_samples(io.BytesIO(content), {"two"})) == {"one": b"", "two": raw[2][1]}


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("compression", ["", "gz", "xz"])
def test_raw_samples_have_all_their_headers(tmp_path: Path, form: int, compression: str) -> None:
    """A name of more than 100 characters takes further headers, which belong to the file after them."""
    members = {f"{'folder/' * 30}{name}": data for key in ("a", "b") for name, data in _pair(key).items()}
    alone = {}
    for key in ("a", "b"):
        with tarfile.open(tmp_path / f"{key}.tar", "w", format=form) as tar:
            _add(tar, {name: data for name, data in members.items() if name.rpartition("/")[2].startswith(f"{key}.")})
            alone[f"{'folder/' * 30}{key}"] = tar.offset
    with tarfile.open(tmp_path / "both.tar", f"w:{compression}", format=form) as tar:
        _add(tar, members)
    expected = {key: (tmp_path / f"{key[-1]}.tar").read_bytes()[:size] for key, size in alone.items()}
    with (tmp_path / "both.tar").open("rb") as stream:
        assert dict(raw_samples(stream, expected)) == expected


def test_raw_samples_before_the_damage_are_whole(tmp_path: Path) -> None:
    content = write_tar(tmp_path / "a.tar", {**_pair("one"), **_pair("two")}).read_bytes()
    whole = dict(raw_samples(io.BytesIO(content), {"one", "two"}))
    size = len(whole["one"])
    for length in (size + 100, size + 600, size + len(whole["two"]) - 600):
        samples = raw_samples(io.BytesIO(content[:length]), whole)
        assert next(samples) == ("one", whole["one"])
        with pytest.raises(tarfile.ReadError):
            assert all(len(sample) < len(whole["two"]) for _, sample in samples)
    without_padding = io.BytesIO(content[: size + len(whole["two"]) - 1])
    samples = raw_samples(without_padding, whole)
    assert [next(samples), next(samples)] == list(whole.items())


def _add(tar: tarfile.TarFile, members: dict[str, bytes]) -> None:
    for name, data in members.items():
        member = tarfile.TarInfo(name)
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))


def test_missing_tar(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"pairs-000002.tar does not exist"):
        TarPairs(write_tars(tmp_path, 8).replace("000001", "000002"))


def _cut(folder: Path, length: int) -> tuple[TarPairs, list[Sample | BrokenSample]]:
    """Return pairs of a complete tar and a truncated one, and their samples."""
    pattern = write_tars(folder, 12)
    file = folder / "pairs-000001.tar"
    file.write_bytes(file.read_bytes()[:length])
    source = TarPairs(pattern, group_field="item")
    return source, [sample for part in source.parts() for sample in part.samples()]


def _header_offsets(folder: Path) -> list[int]:
    """Return the offsets of the headers of the second tar, and the end of its last file."""
    write_tars(folder, 12)
    with tarfile.open(folder / "pairs-000001.tar") as tar:
        members = tar.getmembers()
    return [*(member.offset for member in members), members[-1].offset_data + -(-members[-1].size // 512) * 512]


@pytest.mark.parametrize("more", [0, 100, 512, 520])
def test_tar_that_is_cut_anywhere_is_broken(tmp_path: Path, more: int) -> None:
    """Truncated before a header, in a header, in a file (image, text, json), and before the end of the tar."""
    places = _header_offsets(tmp_path)
    for member in (9, 10, 11, *([len(places) - 1] if more < 512 else [])):
        source, read = _cut(tmp_path, places[member] + more)
        whole, lost = member // 3, member % 3 == 2
        broken = [sample for sample in read if isinstance(sample, BrokenSample)]
        assert [sample.key for sample in broken] == [*([listings(12)[6 + whole][0]] if lost else []), source.shards[1]]
        assert len(read) - len(broken) == 6 + whole
        keys = [sample.key for sample in read if isinstance(sample, Sample)]
        assert (list(source.keys), len(source.groups or ())) == (keys, len(keys))
        assert len(list(source.images(0, len(keys)))) == len(keys)


def test_header_that_is_damaged(tmp_path: Path) -> None:
    place = _header_offsets(tmp_path)[9]
    whole = (tmp_path / "pairs-000001.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[:place] + b"?" * 512 + whole[place + 512 :])
    *read, broken = TarPairs(str(tmp_path / "a.tar")).parts()[0].samples()
    assert len(read) == 3
    assert isinstance(broken, BrokenSample)


def test_compressed_tar(tmp_path: Path) -> None:
    expected = list(TarPairs(write_tars(tmp_path, 8, shards=1)).keys)
    packed = gzip.compress((tmp_path / "pairs-000000.tar").read_bytes())
    (tmp_path / "a.tar").write_bytes(packed)
    assert list(TarPairs(str(tmp_path / "a.tar")).keys) == expected
    (tmp_path / "a.tar").write_bytes(packed[: len(packed) // 2])
    *_, broken = TarPairs(str(tmp_path / "a.tar")).parts()[0].samples()
    assert isinstance(broken, BrokenSample)


def test_file_that_is_no_tar(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"hello" * 1000)
    with pytest.raises(DataError, match="has no sample with an image"):
        len(TarPairs(str(tmp_path / "a.tar")))


def test_tar_without_pairs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no sample with"):
        len(TarPairs(str(write_tar(tmp_path / "a.tar", {"one.txt": b"text"}))))


@pytest.mark.parametrize(
    ("json", "fault"),
    [
        ({}, r"has \.png, \.txt"),
        (b'{"name": 1}', r"has \.png, \.txt, \.json \(fields: name\)"),
        (b"[1]", r"has \.png, \.txt, \.json"),
    ],
)
def test_group_field_that_is_not_there(tmp_path: Path, json: bytes, fault: str) -> None:
    file = write_tar(tmp_path / "a.tar", {**_pair("one"), **({"one.json": json} if json else {})})
    with pytest.raises(DataError, match=rf"No sample has a \.json with the field 'item' \(the first {fault}\)\. Name another"):
        len(TarPairs(str(file), group_field="item"))


def test_unknown_groups(tmp_path: Path) -> None:
    """A field that is null, NaN or NA, and a sample without .json, give no group."""
    values = {"a": b'{"item": null}', "b": b'{"item": NaN}', "c": b'{"item": ""}', "d": b'{"item": 0}', "e": b'{"item": "x"}'}
    values["g"] = b'{"item": "NA"}'
    files: dict[str, bytes] = {}
    for key in "abcdefg":
        files |= _pair(key) | ({f"{key}.json": values[key]} if key in values else {})
    file = write_tar(tmp_path / "a.tar", files)
    source = TarPairs(str(file), group_field="item")
    assert dict(zip(source.keys, source.groups or (), strict=True)) == dict(
        zip("abcdefg", ("", "", "", "0", "x", "", ""), strict=True)
    )


def test_samples_that_are_left_out_are_listed(tmp_path: Path) -> None:
    """A dot in a name begins the ending, as in webdataset."""
    picture = png(listings(8)[0][3])
    files = {
        **_pair("one"),
        "v1.0.png": picture,
        "v1.0.txt": b"text",
        "two.txt": b"text",
        "three.png": picture,
        "three.cls": b"1",
    }
    samples = TarPairs(str(write_tar(tmp_path / "a.tar", files))).parts()[0].samples()
    assert {sample.key: sample.reason for sample in samples if isinstance(sample, BrokenSample)} == {
        "v1": "no .txt and no image, only .0.png, .0.txt",
        "two": "no image, only .txt",
        "three": "no .txt, only .png, .cls",
    }


def test_what_prepare_leaves_out_is_left_out(tmp_path: Path) -> None:
    """Reports read the same samples as prepare; if none is left, the error names the first broken one."""
    broken = {**_pair("one"), "one.txt": b"\xff\xfe\xff", **_pair("two"), "two.json": b"{"}
    sound = {**_pair("three"), "three.json": b'{"item": "a"}'}
    for name, members in (("a", broken), ("b", {**broken, **sound})):
        write_tar(tmp_path / f"{name}.tar", members)
    source = TarPairs(str(tmp_path / "b.tar"), group_field="item")
    assert (source.keys, source.groups, len(list(source.small_images([0], 8)))) == (["three"], ["a"], 1)
    with pytest.raises(DataError, match=r"a.tar has no sample .*\(one: the text is not UTF-8\)"):
        len(TarPairs(str(tmp_path / "a.tar")))


def test_bad_image_is_named_by_its_key(tmp_path: Path) -> None:
    file = write_tar(tmp_path / "a.tar", {**_pair("one"), "two.png": b"no image", "two.txt": b"text"})
    images = TarPairs(str(file)).images(0, 2)
    assert next(images).size == (32, 32)
    with pytest.raises(DataError, match="image of sample two cannot be decoded"):
        next(images)


def test_fingerprint_changes_with_a_tar(tmp_path: Path) -> None:
    pattern = write_tars(tmp_path, 8)
    first = TarPairs(pattern).fingerprint()
    assert TarPairs(pattern).fingerprint() == first
    write_tar(tmp_path / "pairs-000001.tar", _pair("other"))
    assert TarPairs(pattern).fingerprint() != first


@pytest.mark.parametrize("name", ["pixels", "characters", "member_bytes", "header_bytes"])
def test_fingerprint_changes_with_the_limits_that_leave_samples_out(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pattern = write_tars(tmp_path, 8)
    first = TarPairs(pattern).fingerprint()
    monkeypatch.setenv(VARIABLE, f"manifest_bytes=9, {name} = {DEFAULTS[name]}")
    assert TarPairs(pattern).fingerprint() == first
    monkeypatch.setenv(VARIABLE, f"{name}={DEFAULTS[name] - 1}")
    assert TarPairs(pattern).fingerprint() != first
