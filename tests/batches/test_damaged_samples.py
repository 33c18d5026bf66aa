"""A sample that cannot be read is named, also among samples that are read together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from clip_negatives.batches.loader import IndexedLoader
from clip_negatives.errors import DataError
from clip_negatives.interfaces import SamplingContext
from clip_negatives_plugins.in_batch.sampler import InBatch
from tests.batches.squares import Squares, planned, rows, wrapped


class Damaged(Squares):
    def __getitem__(self, row: int) -> dict[str, int]:
        if row == 6:
            raise FileNotFoundError(2, "No such file", "6.png")
        return super().__getitem__(row)


@pytest.mark.parametrize("workers", [0, 2])
def test_sample_that_cannot_be_read_is_named(workers: int) -> None:
    iterator = iter(wrapped(DataLoader(Damaged(), batch_size=4, num_workers=workers)))
    next(iterator)
    with pytest.raises(DataError, match=r"^Sample 6 .* cannot be read: .*'6.png'. Repair or remove it\.$"):
        next(iterator)


class ManyAtOnce(Squares):
    def __getitems__(self, rows: list[int]) -> list[dict[str, int]]:
        return [{"row": row, "square": row * row} for row in rows]

    def __getitem__(self, row: int) -> dict[str, int]:
        raise NotImplementedError


class OneLost(ManyAtOnce):
    def __getitems__(self, rows: list[int]) -> list[dict[str, int]]:
        raise FileNotFoundError(2, "No such file", "6.png")

    def __getitem__(self, row: int) -> dict[str, int]:
        return Damaged()[row]


def test_a_sample_lost_among_those_read_together_is_named() -> None:
    with pytest.raises(DataError, match=r"^Sample 6 .* cannot be read"):
        list(planned_of(OneLost()))


def planned_of(data: Dataset) -> IndexedLoader:
    return IndexedLoader(DataLoader(data, batch_size=4), InBatch(SamplingContext(20, 4)))


def test_samples_that_are_read_together_are() -> None:
    assert len(rows(wrapped(DataLoader(ManyAtOnce(), batch_size=4)))) == 5


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Return 20 image files; number 6 is cut off in the middle."""
    names = [str(tmp_path / f"{row:05d}.png") for row in range(20)]
    for row, name in enumerate(names):
        pixels = np.random.default_rng(row).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(name)
    content = Path(names[6]).read_bytes()
    Path(names[6]).write_bytes(content[: len(content) // 2])
    return names


class Files(Squares):
    """Pictures of files that are listed as open_clip's csv data list them."""

    def __init__(self, files: list[str]) -> None:
        self.images = files

    def __getitem__(self, row: int) -> Any:
        return {"row": row, "pixels": pixels_of(Image.open(self.images[row]))}


class Unlisted(Files):
    def __init__(self, files: list[str]) -> None:
        self.hidden = files

    @property
    def images(self) -> Any:
        return iter(self.hidden)

    def __getitem__(self, row: int) -> Any:
        return {"row": row, "pixels": pixels_of(Image.open(self.hidden[row]))}


def pixels_of(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).float()


def table(files: list[str]) -> Any:
    rows = {"image": files, "row": list(range(20))}
    read = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    return read.with_transform(lambda rows: {"row": rows["row"], "pixels": [pixels_of(one) for one in rows["image"]]})


DATA: dict[str, tuple[Callable[[list[str]], Any], int]] = {
    "plain": (Files, 6),
    "Subset": (lambda files: Subset(Files(files), range(19, -1, -1)), 13),
    "Subset of a Subset": (lambda files: Subset(Subset(Files(files), range(19, -1, -1)), range(19, -1, -1)), 6),
    "ConcatDataset": (
        lambda files: ConcatDataset([Subset(Files(files), range(10, 20)), Subset(Files(files), range(10))]),
        16,
    ),
    "datasets.Dataset": (table, 6),
    "Subset of a datasets.Dataset": (lambda files: Subset(table(files), range(19, -1, -1)), 13),
}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("name", DATA)
def test_damaged_picture_is_named_by_row_and_file(files: list[str], name: str, workers: int) -> None:
    make, row = DATA[name]
    loader = IndexedLoader(DataLoader(make(files), batch_size=4, num_workers=workers), InBatch(SamplingContext(20, 4)))
    words = rf"^Sample {row} \(counted from 0, {files[6]}\) cannot be read: .*truncated.*\. Repair or remove it\.$"
    with pytest.raises(DataError, match=words):
        list(loader)


def test_damaged_picture_of_a_file_that_is_not_listed_is_named_by_row(files: list[str]) -> None:
    with pytest.raises(DataError, match=r"^Sample 6 \(counted from 0\) cannot be read: .*truncated"):
        list(planned_of(Unlisted(files)))


class Paths(Files):
    def __getitem__(self, row: int) -> Any:
        return {"row": row, "path": self.images[row]}


def opened(samples: list[Any]) -> dict[str, torch.Tensor]:
    """Read the pictures in the collate function."""
    rows = torch.tensor([sample["row"] for sample in samples])
    return {"row": rows, "pixels": torch.stack([pixels_of(Image.open(sample.pop("path"))) for sample in samples])}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("order", [range(20), range(19, -1, -1)])
def test_picture_that_the_collate_function_cannot_read_is_named(files: list[str], order: range, workers: int) -> None:
    data = Subset(Paths(files), order)
    native = DataLoader(data, batch_size=4, collate_fn=opened, num_workers=workers)
    place = rf"{order.index(6)} \(counted from 0, {files[6]}\)"
    with pytest.raises(DataError, match=rf"^Sample {place} cannot be read: .*truncated"):
        list(IndexedLoader(native, InBatch(SamplingContext(20, 4))))


class Bomb(Squares):
    """A picture that Pillow refuses with an error that is no OSError."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __getitem__(self, row: int) -> Any:
        return {"row": row, "pixels": pixels_of(Image.open(self.file))} if row == 6 else {"row": row}


def test_any_error_of_pillow_names_the_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (50, 50)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match=r"^Sample 6 \(counted from 0\) cannot be read: Image size \(2500 pixels\) exceeds"):
        list(planned_of(Bomb(tmp_path / "large.png")))


class Resized(Squares):
    def __getitem__(self, row: int) -> Any:
        return {"row": row, "pixels": pixels_of(Image.new("RGB", (4, 4)).resize((0, "wide")))}


class Mistaken(Squares):
    def __getitem__(self, row: int) -> Any:
        return {}["caption"]


def test_mistakes_of_the_data_set_keep_their_own_error() -> None:
    for options in ({"num_workers": 0}, {"num_workers": 1}):
        with pytest.raises(KeyError, match="caption"):
            list(IndexedLoader(DataLoader(Mistaken(), batch_size=4, **options), InBatch(SamplingContext(20, 4))))
    with pytest.raises(TypeError):
        list(planned_of(Resized()))
    with pytest.raises(KeyError, match="text"):
        list(planned(collate_fn=lambda samples: [sample["text"] for sample in samples]))
