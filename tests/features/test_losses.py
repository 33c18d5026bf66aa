"""Torn tars are counted apart from broken samples, their loss is estimated, and the next run reads them again."""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clip_negatives.dataset import TarPairs, tar_part
from clip_negatives.encoders import image_encoder, text_encoder
from clip_negatives.errors import DataError, InputError
from clip_negatives.features import EncodedFeatures, encode
from clip_negatives.features.losses import TornPart
from clip_negatives.pipelines.prepare import prepare_folder
from clip_negatives.pipelines.recipe import Recipe
from tests.pairs import png, write_tar, write_tars

N, SHARDS = 60, 3
EACH = N // SHARDS
RECIPE = Recipe(image_encoder="pixels:dim=8", text_encoder="tfidf:dim=8", clusterer="kmeans:n_clusters=4")


def _encode(urls: str, folder: Path, **options: Any) -> EncodedFeatures:
    return encode(TarPairs(urls), image_encoder("pixels:dim=8"), text_encoder("tfidf:dim=8"), folder, **options)


def _cut(tar: Path, samples: int) -> None:
    """Cut a tar in the image after this number of samples of three files."""
    with tarfile.open(tar) as opened:
        place = opened.getmembers()[3 * samples].offset_data + 10
    tar.write_bytes(tar.read_bytes()[:place])


@pytest.fixture
def tars(tmp_path: Path) -> str:
    """Return three tars, the second of which is cut after seven samples."""
    pattern = write_tars(tmp_path, N, shards=SHARDS)
    _cut(tmp_path / "pairs-000001.tar", 7)
    return pattern


@pytest.mark.parametrize(
    ("file", "content", "n_lost", "basis"),
    [
        ("pairs-000001_stats.json", {"successes": 27}, 20, "pairs-000001_stats.json"),
        ("sizes.json", {"pairs-000001.tar": 17}, 10, "sizes.json"),
        ("sizes.json", {"pairs-000000.tar": 17}, EACH - 7, "the mean of the other tars"),
        ("sizes.json", ["no", "numbers"], EACH - 7, "the mean of the other tars"),
        ("sizes.json", {"pairs-000001.tar": 3}, 0, "sizes.json"),
    ],
)
def test_lost_samples_are_estimated(tars: str, tmp_path: Path, file: str, content: Any, n_lost: int, basis: str) -> None:
    (tmp_path / file).write_text(json.dumps(content))
    encoded = _encode(tars, tmp_path / "work")
    name = str(tmp_path / "pairs-000001.tar")
    assert encoded.losses.torn == [TornPart(name, "it is torn or damaged", 7, n_lost, basis)]
    assert (encoded.n_samples, encoded.n_broken, encoded.losses.n_lost) == (2 * EACH + 7, 0, 0)
    assert encoded.losses.share == n_lost / (2 * EACH + 7 + n_lost)
    assert pq.read_table(encoded.folder / "broken.parquet").to_pylist() == [
        {
            "key": name,
            "reason": f"it is torn or damaged after 7 samples; about {n_lost} samples are lost, estimated from {basis}",
            "shard": name,
            "samples": n_lost,
        }
    ]


def test_files_beside_the_tar_of_a_command(tars: str, tmp_path: Path) -> None:
    (tmp_path / "pairs-000001_stats.json").write_text(json.dumps({"successes": 21}))
    (torn,) = _encode(f"pipe:cat '{tmp_path}/pairs-000001.tar' || true", tmp_path / "work").losses.torn
    assert (torn.n_read, torn.n_lost, torn.basis) == (7, 14, "pairs-000001_stats.json")


def test_a_damaged_header_is_estimated_from_its_place(tmp_path: Path) -> None:
    tar = Path(write_tars(tmp_path, N, shards=1).replace("{000000..000000}", "000000"))
    with tarfile.open(tar) as opened:
        place = opened.getmembers()[3 * 40].offset
    content = tar.read_bytes()
    tar.write_bytes(content[:place] + b"?" * 512 + content[place + 512 :])
    (torn,) = _encode(str(tar), tmp_path / "work").losses.torn
    assert (torn.n_read, torn.basis) == (40, "the place of the damage in the file")
    assert torn.n_lost == pytest.approx(N - 40, abs=4)


def test_a_loss_of_unknown_size_is_an_error_below_100_percent(tmp_path: Path) -> None:
    tar = write_tars(tmp_path, N, shards=1).replace("{000000..000000}", "000000")
    _cut(Path(tar), 30)
    with pytest.raises(DataError, match=r"^An unknown share of the samples are lost, more than 99\.00%: 1 torn tar"):
        _encode(tar, tmp_path / "work", max_lost=0.99)
    encoded = _encode(tar, tmp_path / "work", max_lost=1.0)
    assert (encoded.n_samples, encoded.losses.torn[0].n_lost) == (30, None)
    assert pq.read_table(encoded.folder / "broken.parquet")["samples"].to_pylist() == [None]


def test_too_large_a_loss_ends_with_cause_and_names(tars: str, tmp_path: Path) -> None:
    write_tar(tmp_path / "bad.tar", {"x.png": b"no image", "x.txt": b"text", "y.txt": b"text"})
    (tmp_path / "sizes.json").write_text(json.dumps({"pairs-000001.tar": EACH}))
    urls = f"{tars}::{tmp_path}/bad.tar"
    with pytest.raises(DataError) as caught:
        _encode(urls, tmp_path / "work", max_lost=0.01)
    tar = f"{tmp_path}/pairs-000001.tar: it is torn or damaged after 7 samples"
    assert str(caught.value) == (
        f"14 of 62 samples (22.6%) are lost, more than 1.00%: 1 torn tar ({tar}; about 13 samples are lost, estimated from "
        "sizes.json) and 1 broken sample (first: x: the image cannot be read). Repair the data and run the same command again, "
        "which keeps the intact parts, or accept the loss with max_lost=0.23."
    )
    assert _encode(urls, tmp_path / "work", max_lost=0.23).n_samples == 47
    with pytest.raises(InputError, match="Expected a share from 0 to 1 as max_lost=, got 2"):
        _encode(urls, tmp_path / "work", max_lost=2)


def test_samples_without_text_or_image_are_not_lost(tmp_path: Path, tars: str) -> None:
    """open_clip leaves them out of every training; the summary counts them."""
    first = tars.replace("{000000..000002}", "000000")
    picture = png(next(iter(TarPairs(first).images(0, 1))))
    write_tar(tmp_path / "bare.tar", {f"x{number}.png": picture for number in range(30)})
    encoded = _encode(f"{first}::{tmp_path}/bare.tar", tmp_path / "work", max_lost=0)
    assert (encoded.n_samples, encoded.n_broken, encoded.losses.share) == (EACH, 30, 0.0)


def test_notes_of_all_parts_are_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The first tar has no groups, which is a warning; no group at all is an error."""
    pattern = write_tars(tmp_path, N, shards=SHARDS)
    deep = Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16))
    files = {"png": png(deep), "txt": b"a"}
    bare = write_tar(tmp_path / "bare.tar", {f"x{row}.{end}": files[end] for row in range(3) for end in files})
    source = TarPairs(f"{bare}::{pattern}", group_field="item")
    manifest = prepare_folder(source, tmp_path / "out", RECIPE, progress=False)
    assert manifest["n_samples"] == N + 3
    said = [record.getMessage().removeprefix("clip-negatives: ") for record in caplog.records]
    assert said == [
        "The first tar has no groups. If no other tar has the group field, an error follows after the last image.",
        "3 of 63 images have more than 8 bits per channel (first: x0). open_clip makes most of their pixels white or black.",
        "3 of 63 samples have no .json with the group field (first: x0). Their group is unknown.",
    ]
    with pytest.raises(
        DataError, match=r"^No sample has a \.json with the field 'brand' \(the first has \.png, \.txt\)\. Name"
    ):
        prepare_folder(TarPairs(f"{bare}::{pattern}", group_field="brand"), tmp_path / "none", RECIPE, progress=False)


def test_the_next_run_reads_a_torn_tar_again_and_keeps_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that broke leaves size and date of the tar as they are."""
    pattern = write_tars(tmp_path, N, shards=SHARDS)
    half = {"connection": True}
    opened: list[str] = []
    open_url = tar_part.open_url

    @contextlib.contextmanager
    def broken(url: str) -> Iterator[Any]:
        opened.append(url[-5:])
        with open_url(url) as stream:
            content = stream.read()
            is_cut = half["connection"] and url.endswith("1.tar")
            yield io.BytesIO(content[: len(content) // 2] if is_cut else content)

    monkeypatch.setattr(tar_part, "open_url", broken)
    with pytest.raises(DataError, match="torn tar"):
        prepare_folder(pattern, tmp_path / "out", RECIPE, progress=False)
    assert opened == ["0.tar", "1.tar", "2.tar"]
    opened.clear()
    with pytest.raises(DataError, match="torn tar"):
        prepare_folder(pattern, tmp_path / "out", RECIPE, progress=False)
    assert opened == ["1.tar"]
    torn = prepare_folder(pattern, tmp_path / "out", RECIPE, progress=False, max_lost=0.5)
    assert (torn["n_torn"], torn["n_samples"] < N) == (1, True)
    opened.clear()
    half["connection"] = False
    whole = prepare_folder(pattern, tmp_path / "out", RECIPE, progress=False)
    assert (opened, whole["n_torn"], whole["n_samples"]) == (["1.tar"], 0, N)
    expected = prepare_folder(pattern, tmp_path / "expected", RECIPE, progress=False)
    for manifest in (whole, expected):
        del manifest["created"]
    assert whole == expected
    assert sorted(item.name for item in tmp_path.iterdir() if item.name.startswith(".")) == []
