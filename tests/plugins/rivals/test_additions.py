"""Samplers that add images with their captions, or draw captions anew: batches, loss, resume."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clip_negatives import attach
from clip_negatives.batches.extras import Additions
from clip_negatives.errors import DataError, InputError, UnsupportedError
from clip_negatives.host import registry
from clip_negatives.interfaces import SamplingContext
from clip_negatives.storage.clusters_folder import write_clusters
from clip_negatives.testing import check_negative_sampler
from clip_negatives_plugins.extra_texts.redrawn import RedrawnCaptions
from tests.conftest import make_clusters

N, B, SCALE = 60, 8, torch.tensor(10.0, dtype=torch.float64)
CAPTIONS = [f"red thing number {row // 2}" for row in range(N)]  # two samples share a caption
LISTS = [[f"thing {row} seen {kind}" for kind in ("from above", "at night", "by you")] for row in range(N)]


class Listings(Dataset[Any]):
    """Pairs of a noise image and a caption, as in open_clip's csv data."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return image(row), tokenize([CAPTIONS[row]])[0]


def image(row: int) -> Tensor:
    return torch.randn(3, generator=torch.Generator().manual_seed(row), dtype=torch.float64)


def tokenize(texts: list[str]) -> Tensor:
    return torch.tensor([[float(ord(letter)) for letter in text.ljust(30)] for text in texts], dtype=torch.float64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("additions") / "clusters"
    samples = pa.table({"key": [str(row) for row in range(N)], "text": CAPTIONS})
    write_clusters(target, make_clusters(N), samples, {})
    return target


@pytest.fixture(scope="module")
def rewrites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("rewrites") / "rewrites.jsonl")


def write(file: Path, captions: list[str] = CAPTIONS, lists: list[Any] = LISTS) -> Path:
    frame = pd.DataFrame({"text": captions, "captions": lists})
    if file.suffix == ".jsonl":
        lines = [json.dumps(row) for row in frame.to_dict("records")]
        file.write_text("\n".join(lines))
    elif file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pandas(frame), file)
    else:
        frame.assign(captions=[json.dumps(texts) for texts in frame["captions"]]).to_csv(file, index=False, sep="\t")
    return file


def attached(folder: Path, sampler: str, workers: int = 0) -> tuple[Any, Any]:
    data = DataLoader(Listings(), batch_size=B, num_workers=workers, drop_last=True, shuffle=True)
    spec, keys = f"{sampler},of=cluster_similarity", [str(row) for row in range(N)]
    return attach(data, folder, sampler=spec, weighting="uniform", tokenize=tokenize, keys=keys, seed=3)


def towers() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, 5, generator=generator, dtype=torch.float64).requires_grad_() for size in (3, 30)]


def encode(batch: Any, weights: list[Tensor]) -> list[Tensor]:
    return [F.normalize(side @ weight, dim=1) for side, weight in zip(batch, weights, strict=True)]


@pytest.mark.parametrize("workers", [0, 2])
def test_triplets_add_images_with_their_captions(folder: Path, workers: int) -> None:
    loader, loss = attached(folder, "triplets:per_image=2,near_duplicate=0.999", workers)
    assert (loss.added.texts, loss.added.images) == (2, 2)
    for (images, texts), samples in loader:
        ids = samples.ids.tolist()
        added = loader.negatives.extra_images(ids)
        rows = [row for place, own in enumerate(ids) for row in (own, *added[2 * place : 2 * place + 2])]
        assert torch.equal(images, torch.stack([image(row) for row in rows]))
        assert torch.equal(texts, tokenize([CAPTIONS[row] for row in rows]))
        assert samples.text_ids.shape == (B, 5)
        assert torch.equal(samples.text_ids[:, 1:3], samples.text_ids[:, 3:])


def test_loss_of_triplets_is_that_of_the_formula(folder: Path) -> None:
    loader, loss = attached(folder, "triplets:near_duplicate=0.999,log_weight=-0.5")
    for batch, samples in loader:
        x, y = encode(batch, towers())
        ids = samples.ids.tolist()
        added = loader.negatives.extra_images(ids)
        sides = []
        for own, others in ((x[::2], y), (y[::2], x)):
            z, z_added = SCALE * own @ others[::2].T, SCALE * own @ others[1::2].T - 0.5
            equal = torch.tensor([[CAPTIONS[i] == CAPTIONS[j] for j in added] for i in ids])
            both = torch.cat([z, z_added.masked_fill(equal, -torch.inf)], dim=1)
            sides.append((both.logsumexp(1) - z.diagonal()).mean())
        torch.testing.assert_close(loss(x, y, SCALE, samples=samples), sum(sides) / 2)


def test_triplets_are_hard(folder: Path) -> None:
    loader, _ = attached(folder, "triplets:top=5,near_duplicate=0.999")
    clusters = make_clusters(N)
    s, t = (side @ side.T for side in (clusters.image_features, clusters.text_features))
    hardness = (s.clamp(min=0) * t.clamp(min=0)).fill_diagonal_(-1.0).masked_fill((s > 0.999) | (t > 0.999), -1.0)
    for own, other in enumerate(loader.negatives.extra_images(range(N))):
        assert other in hardness[own].topk(5).indices


@pytest.mark.parametrize("positives", [0, 2])
@pytest.mark.parametrize("ending", ["jsonl", "parquet", "csv"])
def test_captions_are_redrawn_each_epoch(folder: Path, tmp_path: Path, positives: int, ending: str) -> None:
    loader, loss = attached(folder, f"redrawn_captions:file={write(tmp_path / f'a.{ending}')},positives={positives}")
    assert (loss.added.texts, loss.added.positive_texts) == (positives, True)
    drawn: list[dict[int, list[str]]] = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        seen: dict[int, list[str]] = {}
        for (images, texts), samples in loader:
            rows = ["".join(chr(int(letter)) for letter in line).strip() for line in texts.tolist()]
            for place, own in enumerate(samples.ids.tolist()):
                seen[own] = rows[place * (1 + positives) : (place + 1) * (1 + positives)]
            assert images.shape == (B, 3)
        assert all(set(texts) <= {CAPTIONS[own], *LISTS[own]} for own, texts in seen.items())
        assert all(len(set(texts)) == 1 + positives for texts in seen.values())
        drawn.append(seen)
    common = drawn[0].keys() & drawn[1].keys()
    assert 0.1 < sum(drawn[0][own][0] == drawn[1][own][0] for own in common) / len(common) < 0.45  # 1/4 by chance


def test_loss_of_positive_captions_is_that_of_the_formula(folder: Path, rewrites: Path) -> None:
    loader, loss = attached(folder, f"redrawn_captions:file={rewrites},positives=2")
    for batch, samples in loader:
        x, y = encode(batch, towers())
        own, z = y[::3], SCALE * x @ y.T
        mine = torch.arange(B)[:, None] == torch.arange(B).repeat_interleave(3)
        lines = ["".join(chr(int(letter)) for letter in line).strip() for line in batch[1].tolist()]
        extra = torch.arange(3 * B) % 3 > 0
        equal = torch.tensor([[lines[3 * i] == line for line in lines] for i in range(B)]) & extra & ~mine
        by_image = z.masked_fill(equal, -torch.inf).logsumexp(1) - (z * mine).sum(1) / 3
        by_text = F.cross_entropy(SCALE * own @ x.T, torch.arange(B))
        torch.testing.assert_close(loss(x, y, SCALE, samples=samples), (by_image.mean() + by_text) / 2)


def run(loader: Any, loss: Any, weights: list[Tensor], seen: list[Any]) -> Iterator[None]:
    """Train two epochs from where the loader is, one step at a time."""
    for epoch in range(loader.epoch, 2):
        loader.set_epoch(epoch)
        for batch, samples in loader:
            value = loss(*encode(batch, weights), SCALE, samples=samples)
            for weight, slope in zip(weights, torch.autograd.grad(value, weights), strict=True):
                weight.data -= 1e-4 * slope
            seen.append((samples.ids.tolist(), samples.text_ids.tolist(), value.item()))
            yield


@pytest.mark.parametrize(
    "sampler", ["triplets:near_duplicate=0.999", "redrawn_captions:file={file}", "redrawn_captions:file={file},positives=2"]
)
def test_a_resume_within_an_epoch_is_bit_equal(folder: Path, rewrites: Path, sampler: str) -> None:
    def start() -> tuple[Any, ...]:
        return *attached(folder, sampler.format(file=rewrites)), towers(), []

    whole, stopped, resumed = start(), start(), start()
    list(run(*whole))
    steps = N // B
    for _ in itertools.islice(run(*stopped), steps + 3):
        pass
    state = copy.deepcopy((stopped[0].state_dict(), [weight.detach() for weight in stopped[2]]))
    resumed[0].load_state_dict(state[0])
    for weight, stored in zip(resumed[2], state[1], strict=True):
        weight.data.copy_(stored)
    list(run(*resumed))
    assert len(whole[3]) == 2 * steps
    assert resumed[3] == whole[3][steps + 3 :]


def test_redrawn_captions_pass_the_kit(tmp_path: Path) -> None:
    number = itertools.count()

    def factory(context: SamplingContext) -> RedrawnCaptions:
        lists = [[f"{text} {kind}" for kind in range(4)] for text in context.captions]
        file = write(tmp_path / f"{next(number)}.jsonl", list(context.captions), lists)
        return RedrawnCaptions(context, str(file), positives=2)

    check_negative_sampler(factory)


@pytest.mark.parametrize(
    ("captions", "lists", "words"),
    [
        (CAPTIONS[::-1], LISTS, "is not of these data: row 0 has another own caption"),
        (CAPTIONS[:-1], LISTS[:-1], "59 rows for 60 samples"),
        (CAPTIONS, [3, *LISTS[1:]], "Row 0 of .* needs a list of texts in the column 'captions', got '3'"),
        (CAPTIONS, [[3], *LISTS[1:]], "Row 0 of .* needs a list of texts"),
        (CAPTIONS, ["one text", *LISTS[1:]], "Row 0 of .* needs a list of texts"),
    ],
)
def test_captions_of_other_data_are_one_sentence(tmp_path: Path, captions: Any, lists: Any, words: str) -> None:
    file = write(tmp_path / "a.jsonl", captions, lists)
    with pytest.raises(DataError, match=words) as error:
        registry.create("negative_sampler", f"redrawn_captions:file={file}", SamplingContext(N, B, captions=CAPTIONS))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ("redrawn_captions", InputError, r"needs a file of captions: redrawn_captions:file=rewrites\.jsonl"),
        ("redrawn_captions:file=missing.jsonl", DataError, "missing.jsonl"),
        ("redrawn_captions:file={file},column=words", DataError, r"has no column 'words' \(columns: text, captions\)"),
        ("redrawn_captions:file={file},positives=-1", InputError, "positives must be at least 0"),
        ("swapped_words:of=triplets", InputError, "of=triplets adds captions itself"),
    ],
)
def test_bad_options(spec: str, error: type[Exception], words: str, rewrites: Path) -> None:
    context = SamplingContext(N, B, captions=CAPTIONS, clusters=make_clusters(N))
    with pytest.raises(error, match=words):
        registry.create("negative_sampler", spec.format(file=rewrites), context)


class Jagged(Listings):
    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return torch.zeros(3 + row), tokenize([CAPTIONS[row]])[0]


def test_what_cannot_do_with_additions_says_so(folder: Path, rewrites: Path) -> None:
    loader, keys = DataLoader(Listings(), batch_size=B), [str(row) for row in range(N)]
    with pytest.raises(InputError, match="RedrawnCaptions replaces captions and needs a tokenizer"):
        attach(loader, folder, sampler=f"redrawn_captions:file={rewrites}", keys=keys)
    with pytest.raises(UnsupportedError, match="needs all logits"):
        attach(loader, folder, sampler="triplets", weighting="cwcl", tokenize=tokenize, keys=keys)
    jagged, _ = attach(DataLoader(Jagged(), batch_size=B), folder, sampler="triplets", tokenize=tokenize, keys=keys)
    with pytest.raises(DataError, match="images that are tensors of one shape"):
        next(iter(jagged))
    attached_loader, _ = attach(loader, folder, sampler="triplets", tokenize=tokenize, keys=keys)
    other = registry.create("negative_sampler", "swapped_words", attached_loader.negatives.context)
    with pytest.raises(InputError, match=r"Attach the loader again"):
        attached_loader.use(other)


def test_additions_in_words() -> None:
    assert str(Additions(texts=1, images=2)) == "adds captions and images"
    assert str(Additions(images=2)) == "adds images"
    assert str(Additions(own_texts=True)) == "replaces captions"
    assert not Additions(log_weight=1.0)
