"""The shipped catalogue: splits without leaks, pictures that decode, exports that open_clip reads as they are."""

from __future__ import annotations

import csv
import hashlib
import json
import tarfile
from argparse import Namespace
from collections import Counter
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from open_clip_train.data import CsvDataset, get_wds_dataset
from torchvision.transforms.functional import pil_to_tensor

from clip_negatives import catalogue
from clip_negatives.errors import ArtifactError, InputError

DATA = files("clip_negatives.catalogue") / "data"


def test_data_are_those_whose_sum_is_recorded() -> None:
    expected, name = (DATA / "catalogue.parquet.sha256").read_text().split()
    assert hashlib.sha256((DATA / name).read_bytes()).hexdigest() == expected


def test_splits() -> None:
    parts = {split: catalogue.load(split) for split in catalogue.SPLITS}
    assert len(parts["all"]) == sum(len(parts[split]) for split in ("train", "test", "unseen"))
    items = {split: set(part.column("item")) for split, part in parts.items()}
    styles = {split: set(part.column("style")) for split, part in parts.items()}
    assert styles["test"] == styles["unseen"] == {"twemoji"}
    assert "twemoji" not in styles["train"]
    assert items["test"] <= items["train"]
    assert not items["unseen"] & items["train"]
    assert Counter(parts["test"].column("item")).most_common(1)[0][1] == 1
    keys = parts["all"].column("key")
    assert len(set(keys)) == len(keys)


def test_no_picture_and_next_to_no_text_leaks() -> None:
    train, test = catalogue.load("train"), catalogue.load("test")
    assert not set(train.table["image"].to_pylist()) & set(test.table["image"].to_pylist())
    # Items whose one tag leaves no other text; the page of the catalogue says how many there are.
    leaked = set(train.column("text")) & set(test.column("text"))
    assert len(leaked) <= 0.01 * len(test)


def test_pictures_are_small_colourful_and_on_white() -> None:
    train = catalogue.load("train")
    for row in range(0, len(train), 500):
        pixels = np.asarray(train.image(row))
        assert pixels.shape == (32, 32, 3)
        assert pixels.std() > 5
    corners = np.stack([np.asarray(train.image(row))[0, 0] for row in range(0, len(train), 100)])
    assert np.median(corners) > 240


def test_texts_hold_the_label_but_not_the_tone() -> None:
    whole = catalogue.load("all")
    assert not any(
        "skin tone" in text for text, tone in zip(whole.column("text"), whole.column("tone"), strict=True) if tone != "0"
    )
    per_item: dict[str, set[str]] = {}
    for item, text in zip(whole.column("item"), whole.column("text"), strict=True):
        per_item.setdefault(item, set()).add(text)
    differing = sum(len(texts) > 1 for texts in per_item.values()) / len(per_item)
    assert differing > 0.8


def test_size_and_licences() -> None:
    assert sum(len(file.read_bytes()) for file in DATA.iterdir()) < 6_000_000
    attribution = (DATA / "ATTRIBUTION.md").read_text()
    for style in set(catalogue.load("all").column("style")):
        assert f"| {style} |" in attribution
    for licence in ("Apache-2.0", "MIT", "CC-BY-4.0"):
        assert f"LICENSE.{licence}.txt" in attribution
        assert len((DATA / f"LICENSE.{licence}.txt").read_text()) > 1000


def test_unknown_split() -> None:
    with pytest.raises(InputError, match="train, test, unseen, all"):
        catalogue.load("val")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return catalogue.export(tmp_path_factory.mktemp("out") / "unseen", split="unseen", format="both", shard_size=100)


def test_csv_is_read_by_open_clip(exported: Path) -> None:
    source = catalogue.load("unseen")
    dataset = CsvDataset(
        str(exported / "unseen.csv"), pil_to_tensor, img_key="filepath", caption_key="title", tokenizer=lambda texts: texts
    )
    assert len(dataset) == len(source)
    picture, text = dataset[7]
    assert text == source.column("text")[7]
    assert np.array_equal(picture.permute(1, 2, 0).numpy()[..., :3], np.asarray(source.image(7)))
    with (exported / "unseen.csv").open() as stream:
        row = list(csv.DictReader(stream, delimiter="\t"))[7]
    assert {name: row[name] for name in ("key", "item", "group", "style")} == {
        name: source.column(name)[7] for name in ("key", "item", "group", "style")
    }


def test_tars_are_read_by_open_clip(exported: Path) -> None:
    source = catalogue.load("unseen")
    sizes = json.loads((exported / "sizes.json").read_text())
    assert list(sizes.values()) == [100, 100, 62]
    args = Namespace(
        train_data=str(exported / "unseen-{000000..000002}.tar"),
        train_num_samples=None,
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        seed=0,
        batch_size=10,
        workers=0,
        world_size=1,
    )
    info = get_wds_dataset(args, pil_to_tensor, is_train=True, tokenizer=lambda text: [text])
    images, texts = next(iter(info.dataloader))
    assert images.shape == (10, 3, 32, 32)
    assert set(texts) <= set(source.column("text"))
    assert info.dataloader.num_samples >= len(source)


def test_same_bytes_twice(exported: Path, tmp_path: Path) -> None:
    again = catalogue.export(tmp_path / "again", split="unseen", format="webdataset", shard_size=100)
    with tarfile.open(exported / "unseen-000000.tar") as first, tarfile.open(again / "unseen-000000.tar") as second:
        assert first.getnames() == second.getnames()
        for name in first.getnames()[:9]:
            assert first.extractfile(name).read() == second.extractfile(name).read()


def test_export_spares_what_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(ArtifactError, match="Name another path"):
        catalogue.export(tmp_path, split="unseen")
    assert (tmp_path / "mine").read_text() == "precious"
    for more in ({"format": "zip"}, {"shard_size": 0}, {"split": "x"}):
        with pytest.raises(InputError, match="Expected"):
            catalogue.export(tmp_path / "new", **more)
    assert not (tmp_path / "new").exists()
