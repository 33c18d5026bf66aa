"""Loops of one's own: the samples of each batch, and data that are not those that were clustered."""

from __future__ import annotations

import copy
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset as Table
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from clip_negatives import BatchSamples, attach, write_clusters
from clip_negatives.clustering.fit import cluster_features
from clip_negatives.errors import ArtifactError, ClipNegativesError, DataError, InputError, PluginError, ProcessError
from clip_negatives.host import registry
from clip_negatives.losses.module import NegativesClipLoss
from clip_negatives.training.weighting import loss_terms
from tests.conftest import make_clusters
from tests.integrations.clustered import BATCH, N, Pictures, rows_of, write_folder

TEXTS = [f"a thing of kind {row % 7}" for row in range(N - 1)] + ["another thing"]
ROWS = [str(row) for row in range(N)]  # the keys of `folder`
SCALE = torch.tensor(5.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "clusters")[0]


@pytest.fixture
def keyed(tmp_path: Path) -> Path:
    """Return a clusters folder whose samples have keys."""
    samples = {"key": [f"key-{row}" for row in range(N)], "text": TEXTS, "image": [f"{row}.png" for row in range(N)]}
    write_clusters(tmp_path / "keyed", make_clusters(N, 5, 4), pa.table(samples), {})
    return tmp_path / "keyed"


class Listings(Pictures):
    """Pictures with lists of their captions and files, as open_clip's csv data have them."""

    def __init__(self, texts: list[str] = TEXTS) -> None:
        super().__init__(mapping=False)
        self.captions, self.images = texts, [f"{row}.png" for row in range(N)]


def side(rows: torch.Tensor) -> torch.Tensor:
    """Return features that tell which rows they are of."""
    table = torch.randn(N, 6, generator=torch.Generator().manual_seed(5))
    return F.normalize(table[rows], dim=1).requires_grad_()


@pytest.mark.parametrize("workers", [0, 2])
def test_kept_permuted_and_repeated_batches_get_their_own_weights(folder: Path, workers: int) -> None:
    loader, loss = attach(DataLoader(Pictures(mapping=False), batch_size=BATCH, num_workers=workers), folder)
    other, _ = attach(DataLoader(Pictures(mapping=False), batch_size=BATCH), folder, seed=9)
    kept = list(loader)
    for (images, _), samples in [*reversed(kept), *kept[:2], *kept[:2], *other]:
        rows = rows_of(images)
        assert torch.equal(rows, samples.ids)
        expected = NegativesClipLoss(terms=loss.terms)(side(rows), side(rows), SCALE, samples=BatchSamples(ids=rows))
        assert torch.equal(loss(side(rows), side(rows), SCALE, samples=samples), expected)


def test_weights_that_warm_up(folder: Path) -> None:
    """In the middle of the warm-up, all log-weights have half their size."""
    data, weighting = Pictures(mapping=False), "weighted_infonce:warmup=1"
    loader, loss = attach(DataLoader(data, batch_size=BATCH), folder, weighting=weighting, epochs=2)
    loader.set_epoch(1)
    _, samples = next(iter(loader))
    terms = loss.terms.replace(schedule=())
    half = terms.replace(image_table=terms.image_table / 2, text_table=terms.text_table / 2)
    rows = samples.ids
    expected = NegativesClipLoss(terms=half)(side(rows), side(rows), SCALE, samples=samples)
    torch.testing.assert_close(loss(side(rows), side(rows), SCALE, samples=samples), expected)
    loader, loss = attach(DataLoader(data, batch_size=BATCH), folder, weighting=weighting)
    with pytest.raises(InputError, match=r"epochs=EPOCHS"):
        loss(side(rows), side(rows), SCALE, samples=next(iter(loader))[1])
    with pytest.raises(InputError, match="epochs must be at least 1"):
        attach(DataLoader(data, batch_size=BATCH), folder, epochs=0)


def test_a_loss_that_is_not_given_the_samples_says_so(folder: Path) -> None:
    loader, loss = attach(DataLoader(Pictures(mapping=False), batch_size=BATCH), folder)
    rows = next(iter(loader))[1].ids
    with pytest.raises(InputError, match=r"Give loss\(\.\.\., samples="):
        loss(side(rows), side(rows), SCALE)


@pytest.mark.parametrize("weighting", ["weighted_infonce", "sogclr", "cwcl", "siglip", "dcl"])
def test_evaluation_is_plain_and_moves_nothing(folder: Path, weighting: str) -> None:
    _, loss = attach(DataLoader(Pictures(mapping=False), batch_size=BATCH), folder, weighting=weighting)
    rows, few = torch.arange(BATCH), torch.arange(3)
    loss(side(rows), side(rows), SCALE, samples=BatchSamples(ids=rows))
    before = {name: value.clone() for name, value in loss.state_dict().items() if isinstance(value, torch.Tensor)}
    plain = open_clip.ClipLoss()
    for chosen in (rows, few, few[:1]):
        with torch.no_grad():
            torch.testing.assert_close(loss(side(chosen), side(chosen), SCALE), plain(side(chosen), side(chosen), SCALE))
        loss.eval()
        for samples in (None, BatchSamples(ids=chosen)):
            found = loss(side(chosen), side(chosen), SCALE, samples=samples)
            torch.testing.assert_close(found, plain(side(chosen), side(chosen), SCALE))
        loss.train()
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items() if name in before)


def test_a_single_pair_teaches_nothing(folder: Path) -> None:
    loader, loss = attach(DataLoader(Pictures(mapping=False), batch_size=1), folder, sampler="in_batch")
    _, samples = next(iter(loader))
    with pytest.raises(InputError, match="single pair, which has no incorrect pair"):
        loss(side(samples.ids), side(samples.ids), SCALE, samples=samples)


@pytest.mark.parametrize(
    "own", [WeightedRandomSampler([1.0] * N, N), SubsetRandomSampler(range(BATCH))], ids=lambda own: type(own).__name__
)
def test_the_loops_own_sampler_is_kept_or_refused(folder: Path, own: Any) -> None:
    loader = DataLoader(Pictures(mapping=False), batch_size=BATCH, sampler=own)
    with pytest.raises(InputError, match=f"{type(own).__name__} chooses its samples.* Use sampler='in_batch'"):
        attach(loader, folder)
    kept, _ = attach(loader, folder, sampler="in_batch")
    torch.manual_seed(0)
    expected = [rows_of(images).tolist() for images, _ in loader]
    torch.manual_seed(0)
    assert [rows_of(images).tolist() for (images, _), _ in kept] == expected


def test_samples_that_an_epoch_leaves_out_are_said(folder: Path) -> None:
    with pytest.warns(UserWarning, match="drop_last=False, but cluster_similarity fills whole steps: each epoch leaves out 3"):
        attach(DataLoader(Pictures(mapping=False), batch_size=9), folder)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(lambda: Subset(Listings(), torch.randperm(N).tolist()), id="a permuted subset"),
        pytest.param(lambda: Listings([*TEXTS[1:], TEXTS[0]]), id="other data of the same length"),
        pytest.param(lambda: ConcatDataset([Subset(Listings(), range(9, N)), Subset(Listings(), range(9))]), id="parts"),
        pytest.param(lambda: Table.from_dict({"title": TEXTS[::-1]}), id="a shuffled table"),
    ],
)
def test_other_data_and_another_order_are_refused(keyed: Path, data: Any) -> None:
    with pytest.raises(
        ArtifactError, match=r"other data or another order: (captions|images|title) differs at sample \d+\. Prepare"
    ):
        attach(DataLoader(data(), batch_size=BATCH, drop_last=True), keyed)


@pytest.mark.parametrize("column", ["key", "text", "image"])
def test_keys_are_compared(keyed: Path, column: str, recwarn: pytest.WarningsRecorder) -> None:
    loader = DataLoader(Pictures(mapping=False), batch_size=BATCH)
    values = {"key": [f"key-{row}" for row in range(N)], "text": TEXTS, "image": [f"{row}.png" for row in range(N)]}[column]
    attach(loader, keyed, keys=values)
    attach(DataLoader(Listings(), batch_size=BATCH), keyed)
    attach(DataLoader(Subset(Listings(), range(N)), batch_size=BATCH), keyed)
    assert not recwarn.list
    with pytest.raises(ArtifactError, match="keys differs at sample"):
        attach(loader, keyed, keys=[values[-1], *values[:-1]])
    with pytest.raises(ArtifactError, match="keys differs at sample"):
        attach(loader, keyed, keys=values[:-1])


def test_nothing_to_compare_is_said(keyed: Path) -> None:
    others = Table.from_dict({"language": ["en"] * N, "number": list(range(N))})
    for data in (Pictures(mapping=False), others):
        with pytest.warns(UserWarning, match=r"Only the number of samples was compared with .*keyed.* Pass keys="):
            attach(DataLoader(data, batch_size=BATCH), keyed)


def offering(**attributes: Any) -> Pictures:
    data = Pictures(mapping=False)
    data.__dict__ |= attributes
    return data


LARGE = Table(pa.table({"caption": pa.array(TEXTS, pa.large_string()), "language": ["en"] * N}))


@pytest.mark.parametrize(
    ("data", "shuffle"),
    [
        (LARGE, lambda data: data.shuffle(seed=1)),
        (LARGE.with_transform(lambda rows: {"x": rows["caption"]}), lambda data: data.shuffle(seed=1)),
        (LARGE.with_format("torch", columns=["language"]), lambda data: data.select(range(N - 1, -1, -1))),
        (offering(captions=pa.array(TEXTS)), lambda data: offering(captions=pa.array(TEXTS[::-1]))),
        (offering(captions=[None, *TEXTS[1:]]), lambda data: offering(captions=[None, *TEXTS[:-1]])),
        (offering(captions=TEXTS, features={}), lambda data: offering(captions=TEXTS[::-1], features={})),
        (
            offering(captions=TEXTS, images=[f"/data/{row}.png" for row in range(N)]),
            lambda data: offering(captions=TEXTS[::-1]),
        ),
        (
            offering(image_paths=[Path(f"{row}.png") for row in range(N)]),
            lambda data: offering(images=[f"{row}" for row in range(N)]),
        ),
    ],
)
def test_columns_of_all_kinds_are_compared(keyed: Path, data: Any, shuffle: Any, recwarn: pytest.WarningsRecorder) -> None:
    attach(DataLoader(data, batch_size=BATCH), keyed)
    assert not recwarn.list
    with pytest.raises(ArtifactError, match="other data or another order"):
        attach(DataLoader(shuffle(data), batch_size=BATCH), keyed)


class Lazy(Pictures):
    """Images that must not be read to compare them."""

    class Images:
        def __len__(self) -> int:
            return N

        def __iter__(self) -> Any:
            pytest.fail("all images were read")

    images = Images()


def test_images_are_not_read_to_be_compared(keyed: Path) -> None:
    with pytest.warns(UserWarning, match="Only the number of samples"):
        attach(DataLoader(Lazy(mapping=False), batch_size=BATCH), keyed)


def test_a_state_of_other_clusters_or_another_weighting_is_refused(keyed: Path, folder: Path) -> None:
    def loss(path: Path, weighting: str) -> NegativesClipLoss:
        return attach(
            DataLoader(Listings(), batch_size=BATCH), path, weighting=weighting, keys=None if path == keyed else ROWS
        )[1]

    for weighting in ("weighted_infonce", "sogclr"):
        loss(keyed, weighting).load_state_dict(loss(keyed, weighting).state_dict())
        with pytest.raises(InputError, match="state of the loss is of other clusters or of another weighting"):
            loss(keyed, weighting).load_state_dict(loss(folder, weighting).state_dict())
    with pytest.raises(InputError, match="other clusters or of another weighting"):
        loss(keyed, "weighted_infonce").load_state_dict(loss(keyed, "uniform").state_dict())


def test_calls_that_cannot_be_right_are_refused(folder: Path) -> None:
    loader, loss = attach(DataLoader(Pictures(mapping=False), batch_size=BATCH), folder, weighting="sogclr", keys=ROWS)
    rows, others = torch.arange(BATCH), torch.arange(BATCH, 2 * BATCH)
    loss(side(rows), side(rows), SCALE, samples=BatchSamples(ids=rows))
    with pytest.raises(InputError, match="again=True, but the samples are not those of the previous call"):
        loss(side(others), side(others), SCALE, samples=BatchSamples(ids=others), again=True)
    state = {name: value.clone() for name, value in loss.state_dict().items() if isinstance(value, torch.Tensor)}
    loss.load_state_dict(loss.state_dict())
    loss(side(others), side(others), SCALE, samples=BatchSamples(ids=others), again=True)  # nothing is restored after a load
    assert all(torch.equal(loss.state_dict()[name][rows], value[rows]) for name, value in state.items() if len(value) == N)
    with pytest.raises(InputError, match=r"samples must be BatchSamples, got Tensor"):
        loss(side(rows), side(rows), SCALE, samples=rows)
    with pytest.warns(UserWarning, match="evaluation mode, so it is plain InfoNCE"):
        loss.eval()(side(rows), side(rows), SCALE, samples=BatchSamples(ids=rows))
    with pytest.raises(InputError, match="has a sampler already"):
        attach(loader, folder, keys=ROWS)
    shared = DistributedSampler(Pictures(), num_replicas=4, rank=1)
    with pytest.raises(InputError, match="among 4 processes, but 1 train together"):
        attach(DataLoader(Pictures(mapping=False), batch_size=BATCH, sampler=shared), folder)


class NextOne(Dataset):
    """Gives the next sample in place of a broken one, as many data sets do."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"key": f"key-{row + (row == 7)}", "number": row}


@pytest.mark.parametrize("workers", [0, 1])
def test_another_sample_in_place_of_a_broken_one_is_an_error(keyed: Path, workers: int) -> None:
    loader, _ = attach(
        DataLoader(NextOne(), batch_size=BATCH, num_workers=workers), keyed, keys=TEXTS, key_of=lambda sample: sample["key"]
    )
    with pytest.raises(DataError, match="Sample 7 of the data set is 'key-8', but sample 7 of the clusters is 'key-7'"):
        list(loader)


def test_processes_without_a_group_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"WORLD_SIZE is 2, but there is no process group.*init_process_group before attach"):
        attach(DataLoader(Pictures(mapping=False), batch_size=BATCH), folder)


@pytest.mark.parametrize("number", ["abc", "0", "2.5"])
def test_number_of_processes_that_is_none(folder: Path, monkeypatch: pytest.MonkeyPatch, number: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", number)
    with pytest.raises(ProcessError, match=f"WORLD_SIZE must be a whole number of at least 1, not '{number}'"):
        attach(DataLoader(Pictures(mapping=False), batch_size=BATCH), folder)


@pytest.mark.parametrize("loader", [[1, 2], None, iter(()), Pictures(mapping=False)])
def test_attach_takes_a_loader(folder: Path, loader: Any) -> None:
    with pytest.raises(
        InputError, match=f"Expected the DataLoader of your loop, got an object of type {type(loader).__name__}"
    ):
        attach(loader, folder)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"clusters": None}, "Expected the path of a clusters folder, got an object of type NoneType"),
        ({"sampler": object}, "Expected the text NAME or NAME:key=value,... of a plugin, got <class 'object'>"),
        ({"weighting": None}, "Expected the text NAME"),
        ({"seed": "one"}, "seed must be a whole number of at least 0, got 'one'"),
        ({"seed": 0.5}, "seed must be a whole number of at least 0, got 0.5"),
    ],
)
def test_options_of_a_wrong_type(folder: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ClipNegativesError, match=re.escape(words)):
        attach(DataLoader(Pictures(mapping=False), batch_size=BATCH), **{"clusters": folder, "keys": ROWS, **options})


def test_listed_file_that_is_a_pipe_is_not_opened(folder: Path, tmp_path: Path) -> None:
    class Pipes(Listings):
        def __getitem__(self, index: int) -> Any:
            if index == 3:
                pytest.fail("the pipe was opened")
            return super().__getitem__(index)

    data = Pipes()
    data.images[3] = str(tmp_path / "pipe.png")
    os.mkfifo(data.images[3])
    loader, _ = attach(DataLoader(data, batch_size=BATCH), folder, keys=ROWS)
    with pytest.raises(DataError, match=rf"Sample 3 \(counted from 0, {data.images[3]}\) cannot be read: not a regular file\."):
        list(loader)


def test_a_plugin_cannot_end_the_program_as_if_it_had_succeeded(monkeypatch: pytest.MonkeyPatch) -> None:
    def exits(clusters: object) -> None:
        raise SystemExit(0)

    monkeypatch.setattr(registry, "create", lambda kind, spec: exits)
    with pytest.raises(PluginError, match=r"test_loop\.py, line \d+, ended the program with exit code 0"):
        loss_terms("some", make_clusters(N))


# These samplers add or replace captions. Stateful weightings support no added captions.
ADDING = {"hard_texts", "redrawn_captions", "reliable_texts", "swapped_words", "triplets"}
SAMPLERS = [item.name for item in registry.default_registry().items("negative_sampler") if item.name not in ADDING]
STATEFUL = ("sogclr", "glofnd", "xbm:size=24,start=0")


def run(loader: Any, loss: NegativesClipLoss, weights: list[torch.Tensor], seen: list[Any]) -> Iterator[None]:
    """Train two epochs from where the loader is, one step at a time."""
    for epoch in range(loader.epoch, 2):
        loader.set_epoch(epoch)
        for (images, texts), samples in loader:
            sides = F.linear(images.flatten(1) / N, weights[0]), F.embedding_bag(texts, weights[1])
            value = loss(*(F.normalize(side, dim=1) for side in sides), SCALE, samples=samples)
            for weight, slope in zip(weights, torch.autograd.grad(value, weights), strict=True):
                weight.data -= 0.1 * slope
            seen.append((samples.ids.tolist(), value.item()))
            yield


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("weighting", STATEFUL)
def test_a_resume_within_an_epoch_is_bit_equal(keyed: Path, sampler: str, weighting: str) -> None:
    def start() -> tuple[Any, ...]:
        native = DataLoader(Pictures(mapping=False), batch_size=BATCH, shuffle=True, drop_last=True)
        loader, loss = attach(native, keyed, sampler=sampler, weighting=weighting, keys=TEXTS, seed=4)
        generator = torch.Generator().manual_seed(0)
        return loader, loss, [torch.randn(shape, generator=generator).requires_grad_() for shape in ((8, 192), (20, 8))], []

    whole, stopped = start(), start()
    torch.manual_seed(1)
    list(run(*whole))
    torch.manual_seed(1)
    for _ in itertools.islice(run(*stopped), 4):
        pass
    state = copy.deepcopy((stopped[0].state_dict(), stopped[1].state_dict(), [weight.detach() for weight in stopped[2]]))
    torch.manual_seed(99)
    resumed = start()
    resumed[0].load_state_dict(state[0])
    resumed[1].load_state_dict(state[1])
    for weight, stored in zip(resumed[2], state[2], strict=True):
        weight.data.copy_(stored)
    steps = len(whole[0]) if sampler == "in_batch" else 2 * len(whole[0])  # the loop's own shuffle of epoch 1 has no seed
    list(itertools.islice(run(*resumed), steps - 4))
    assert resumed[3] == whole[3][4:steps]


def test_a_clusterer_cannot_end_the_program_as_if_it_had_succeeded(monkeypatch: pytest.MonkeyPatch) -> None:
    class Exits:
        def fit(self, features: torch.Tensor, *, generator: torch.Generator) -> None:
            raise SystemExit(0)

    monkeypatch.setattr(registry, "create", lambda kind, spec: Exits())
    with pytest.raises(PluginError, match="ended the program with exit code 0"):
        cluster_features(torch.eye(4), torch.eye(4), clusterer="some", seed=0)
