"""The attached loader under accelerate: end of the epoch, device placement, skipped batches, and several processes."""

from __future__ import annotations

import itertools
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator, skip_first_batches
from accelerate.data_loader import DataLoaderShard
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DataLoaderConfiguration
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

from clip_negatives import attach
from clip_negatives.errors import DataError, InputError
from clip_negatives.integrations.accelerate import AcceleratedLoader
from tests import ranks
from tests.integrations.clustered import Pictures, rows_of, write_folder

ROWS, SIZE = 22, 6  # 3 whole batches, and 4 samples that fill none
KEYS = [str(row) for row in range(ROWS)]
pytestmark = [
    pytest.mark.usefixtures("one_thread", "own_state"),
    pytest.mark.filterwarnings("ignore:The loader has drop_last=False"),
]


@pytest.fixture
def own_state(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Reset the state of accelerate before and after each test."""
    before = dict(os.environ)
    for state in (AcceleratorState, PartialState, GradientState):
        monkeypatch.setattr(state, "_shared_state", {})
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "clusters", ROWS)[0]


def attached(folder: Path, size: int = SIZE, sampler: str = "cluster_similarity", **options: Any) -> tuple[Any, Any]:
    return attach(DataLoader(Pictures(ROWS, mapping=False), batch_size=size, **options), folder, keys=KEYS, sampler=sampler)


def ids_of(batches: Any) -> list[list[int]]:
    """Return the ids of the batches, which must be those of their pictures."""
    pairs = [(rows_of(images).tolist(), samples.ids.tolist()) for (images, _), samples in batches]
    assert all(rows == ids for rows, ids in pairs)
    return [ids for _, ids in pairs]


def epoch_of(loader: Any, epoch: int) -> list[list[int]]:
    loader.set_epoch(epoch)
    return ids_of(loader)


def test_accumulation_ends_with_the_epoch(folder: Path) -> None:
    """Three batches of an epoch, two for each step: two steps in each epoch."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    loader, loss = attached(folder)
    model = nn.Linear(3 * 64, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    steps, weights = 0, [model.weight.detach().clone()]
    for epoch in range(3):
        loader.set_epoch(epoch)
        for (images, _), samples in loader:
            with accelerator.accumulate(model):
                features = F.normalize(model(images.flatten(1)), dim=1)
                accelerator.backward(loss(features, features, 5.0, samples=samples))
                optimizer.step()
                optimizer.zero_grad()
            steps += accelerator.sync_gradients
            if not torch.equal(weights[-1], model.weight):
                weights.append(model.weight.detach().clone())
            assert accelerator.gather_for_metrics(samples.ids).tolist() == samples.ids.tolist()
    assert (steps, len(weights) - 1) == (6, 6)


def test_attributes_are_those_of_a_loader(folder: Path) -> None:
    accelerator = Accelerator(cpu=True)
    loader, _ = attached(folder, num_workers=1, pin_memory=False, persistent_workers=True)
    prepared = accelerator.prepare(loader)
    assert isinstance(prepared, DataLoaderShard)
    for one in (loader, prepared):
        assert isinstance(one, DataLoader)
        assert (one.num_workers, one.pin_memory, one.persistent_workers, len(one)) == (1, False, True, 3)
    assert (loader.batch_size, loader.drop_last, prepared.total_batch_size) == (SIZE, True, SIZE)
    native, _ = attached(folder, sampler="in_batch")
    assert (native.batch_size, native.drop_last, len(native)) == (SIZE, False, 4)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("sampler", ["cluster_similarity", "in_batch"])
def test_batches_are_those_of_the_loader_alone(folder: Path, sampler: str, workers: int) -> None:
    loader, _ = attached(folder, sampler=sampler, num_workers=workers)
    prepared = Accelerator(cpu=True).prepare(loader)
    for epoch in (0, 1):
        expected = epoch_of(loader, epoch)
        assert epoch_of(prepared, epoch) == expected
        for whole in (loader, prepared):
            whole.set_epoch(epoch)
            assert ids_of(skip_first_batches(whole, 1)) == expected[1:]
    if sampler == "cluster_similarity":
        epoch_of(prepared, 1)
        assert ids_of(prepared) == epoch_of(loader, 2)  # accelerate counts the epochs
    loader.load_state_dict({"epoch": 5, "batches": 2, "of": loader.state_dict()["of"]})
    rest = epoch_of(prepared, 5)
    assert rest == epoch_of(loader, 5)[2:]


def test_a_resume_without_the_epoch_is_a_warning(folder: Path) -> None:
    """accelerate counts epochs from 0."""
    loader, _ = attached(folder)
    loader.load_state_dict({"epoch": 5, "batches": 2, "of": loader.state_dict()["of"]})
    with pytest.warns(UserWarning, match=r"the position in epoch 5 is lost\. Call set_epoch\(5\)"):
        assert len(ids_of(Accelerator(cpu=True).prepare(loader))) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_know_the_progress_of_the_training(folder: Path, workers: int) -> None:
    native = DataLoader(Pictures(ROWS, mapping=False), batch_size=SIZE, num_workers=workers)
    loader, _ = attach(native, folder, keys=KEYS, epochs=2)
    prepared, progress = Accelerator(cpu=True).prepare(loader), []
    for epoch in (0, 1):
        prepared.set_epoch(epoch)
        progress += [float(samples.progress) for _, samples in prepared]
    assert progress == pytest.approx([step / 6 for step in range(6)])
    prepared.set_epoch(1)
    ((_, last),) = skip_first_batches(prepared, 2)
    assert (last.position.epoch, last.position.step, last.position.total_steps) == (1, 5, 6)


def test_the_loops_own_order_is_resumed(folder: Path) -> None:
    """The state of the attached loader has the order of the epoch; the prepared loader skips the batches."""
    loaders = [attached(folder, sampler="in_batch", shuffle=True)[0] for _ in range(2)]
    whole, resumed = map(Accelerator(cpu=True).prepare, loaders)
    epoch_of(whole, 0)
    expected = epoch_of(whole, 1)
    loaders[1].load_state_dict(loaders[0].state_dict())
    resumed.set_epoch(1)
    assert ids_of(skip_first_batches(resumed, 2)) == expected[2:]


def test_batches_and_samples_are_moved_to_the_device(folder: Path) -> None:
    accelerator = Accelerator(cpu=True)
    accelerator.state.device = torch.device("meta")
    loader, _ = attached(folder)
    (images, texts), samples = next(iter(accelerator.prepare(loader)))
    assert {part.device.type for part in (images, texts, *samples)} == {"meta"}


class Damaged(Pictures):
    def __getitem__(self, row: int) -> Any:
        if row == 7:
            raise OSError("image file is truncated")
        return super().__getitem__(row)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("places_batches", [True, False])
def test_damaged_picture_is_named_in_one_sentence(folder: Path, workers: int, places_batches: bool) -> None:
    native = DataLoader(Damaged(ROWS, mapping=False), batch_size=SIZE, num_workers=workers)
    loader, _ = attach(native, folder, keys=KEYS)
    prepared = Accelerator(cpu=True, device_placement=places_batches).prepare(loader)
    with pytest.raises(DataError, match=r"^Sample 7 \(counted from 0\) cannot be read: image file is truncated\. Repair"):
        ids_of(itertools.chain.from_iterable(prepared for _ in range(4)))  # an epoch may leave out the sample


def test_a_prepared_loader_cannot_be_attached_again(folder: Path) -> None:
    loader, _ = attached(folder)
    for again in (loader, Accelerator(cpu=True).prepare(loader)):
        with pytest.raises(InputError, match="has a sampler already"):
            attach(again, folder, keys=KEYS)


def train(folder: Path, checkpoint: Path, *, stop: bool = False, size: int = SIZE, epochs: int = 3, **options: Any) -> Any:
    """Train with accelerate, from the checkpoint if there is one. With `stop`, save in the middle of epoch 1 and return.

    Returns the ids of each batch, the weights, and the buffers of the loss. Two batches are accumulated for each step.
    """
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    method = {"weighting": "sogclr", "sampler": options.pop("sampler", "cluster_similarity")}
    native = DataLoader(Pictures(ROWS, mapping=False), batch_size=size, **options)
    attached_loader, loss = attach(native, folder, keys=KEYS, epochs=epochs, **method)
    torch.manual_seed(1 if checkpoint.exists() else 0)  # the weights of a resumed run come from the checkpoint
    model = nn.Linear(3 * 64, 8)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model, optimizer = accelerator.prepare(model, optimizer)
    loader, seen = AcceleratedLoader(accelerator, attached_loader, loss), []
    if checkpoint.exists():
        accelerator.load_state(checkpoint)
    for epoch in range(loader.epoch, epochs):
        loader.set_epoch(epoch)
        for batch, ((images, _), samples) in enumerate(loader, 1):
            with accelerator.accumulate(model):
                features = F.normalize(model(images.flatten(1)), dim=1)
                accelerator.backward(loss(features, features.roll(1, 1), 5.0, samples=samples))
                optimizer.step()
                optimizer.zero_grad()
            assert rows_of(images).tolist() == samples.ids.tolist()
            seen.append(samples.ids.tolist())
            if stop and (epoch, batch) == (1, 2):
                assert accelerator.sync_gradients
                accelerator.save_state(checkpoint)
                return seen, None, None
    return seen, accelerator.unwrap_model(model).weight.detach(), dict(loss.named_buffers())


def assert_resumed(whole: Any, stopped: Any, resumed: Any) -> None:
    assert stopped[0] + resumed[0] == whole[0]
    assert torch.equal(resumed[1], whole[1])
    assert whole[2].keys() == resumed[2].keys()
    assert all(torch.equal(resumed[2][name], value) for name, value in whole[2].items())


@pytest.mark.parametrize("options", [{}, {"num_workers": 2}, {"sampler": "in_batch", "shuffle": True, "epochs": 2}])
def test_a_run_resumed_within_an_epoch_equals_one_that_never_stopped(folder: Path, tmp_path: Path, options: Any) -> None:
    runs = []
    for checkpoint, stop in ((tmp_path / "none", False), (tmp_path / "state", True), (tmp_path / "state", False)):
        torch.manual_seed(3)  # of the loop's own shuffle
        runs.append(train(folder, checkpoint, stop=stop, **options))
    assert_resumed(*runs)


def test_a_state_at_the_end_of_an_epoch_begins_with_the_next(folder: Path, tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)
    loader = AcceleratedLoader(accelerator, *attached(folder))
    assert len(loader) == len(ids_of(loader)) == 3
    accelerator.save_state(tmp_path / "state")
    again = Accelerator(cpu=True)
    resumed = AcceleratedLoader(again, *attached(folder))
    again.load_state(tmp_path / "state")
    assert (resumed.epoch, ids_of(resumed)) == (0, [])
    assert epoch_of(resumed, 1) == epoch_of(loader, 1)


def test_a_state_of_another_loader_is_an_error(folder: Path, tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)
    AcceleratedLoader(accelerator, *attached(folder))
    accelerator.save_state(tmp_path / "state")
    other = Accelerator(cpu=True)
    AcceleratedLoader(other, *attached(folder, sampler="in_batch"))
    with pytest.raises(InputError, match=r"The state is not of this loader \(in_batch"):
        other.load_state(tmp_path / "state")


def test_only_the_loader_of_attach_is_accelerated(folder: Path) -> None:
    accelerator = Accelerator(cpu=True)
    loader, loss = attached(folder)
    with pytest.raises(InputError, match=r"Expected the loader of clip_negatives.attach.* Do not prepare the loader yourself"):
        AcceleratedLoader(accelerator, accelerator.prepare(loader), loss)


def _process(folder: Path) -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    results: dict[str, Any] = {}
    for name, sampler, is_shared, shuffle in (
        ("chosen", "cluster_similarity", False, True),
        ("shared", "in_batch", True, False),
        ("added", "swapped_words", True, False),
        ("native", "in_batch", False, True),
    ):
        data = Pictures(ROWS, mapping=False)
        order = DistributedSampler(data) if is_shared else None
        native = DataLoader(data, batch_size=4, shuffle=shuffle, sampler=order)
        options = {"weighting": "uniform", "tokenize": lambda texts: torch.ones(len(texts), 4, dtype=torch.int64)}
        loader, _ = attach(native, folder, keys=KEYS, sampler=sampler, **options)
        prepared = accelerator.prepare(loader)
        whole = epoch_of(prepared, 1)
        gathered = [accelerator.gather_for_metrics(samples.ids).tolist() for _, samples in prepared]
        with warnings.catch_warnings(record=True) as record:
            warnings.simplefilter("always")
            alone = epoch_of(loader, 1)
        assert any("Each process trains on all samples" in str(one.message) for one in record) == (name == "native")
        prepared.set_epoch(1)
        rest = ids_of(skip_first_batches(prepared, 1))
        results[name] = {"ids": whole, "alone": alone, "rest": rest, "gathered": gathered, "length": len(prepared)}
    torch.save(results, folder / f"{accelerator.process_index}.pt")
    checkpoint = folder / "state"
    runs = [train(folder, folder / "none", size=4), train(folder, checkpoint, size=4, stop=True)]
    torch.save([*runs, train(folder, checkpoint, size=4)], folder / f"runs-{accelerator.process_index}.pt")
    split = Accelerator(dataloader_config=DataLoaderConfiguration(split_batches=True))
    loader, _ = attached(folder, 4)
    with pytest.raises(InputError, match="without split_batches"):
        ids_of(split.prepare(loader))
    again = DataLoader(loader.dataset, batch_sampler=loader.batch_sampler, collate_fn=loader.collate_fn)
    with pytest.raises(DataError, match="was split among the processes again"):
        ids_of(again)


def test_two_processes_get_their_own_batches_once(folder: Path, tmp_path: Path) -> None:
    ranks.run(2, _process, folder, log=tmp_path / "log")
    first, second = (torch.load(folder / f"{rank}.pt") for rank in range(2))
    for runs in (own_runs := [torch.load(folder / f"runs-{rank}.pt") for rank in range(2)]):
        assert_resumed(*runs)
    assert torch.equal(own_runs[0][0][1], own_runs[1][0][1])
    assert own_runs[0][0][0] != own_runs[1][0][0]
    for name in ("chosen", "shared", "added"):
        for own in (first[name], second[name]):
            assert own["ids"] == own["alone"]
            assert own["rest"] == own["ids"][1:]
            assert own["length"] == len(own["ids"]) == (ROWS // 8 if name == "chosen" else 3)
    for name, seen in (("chosen", 16), ("shared", ROWS), ("added", ROWS), ("native", ROWS)):
        steps = [first_ids + second_ids for first_ids, second_ids in zip(first[name]["ids"], second[name]["ids"], strict=True)]
        assert len(set(itertools.chain.from_iterable(steps))) == seen
        assert first[name]["gathered"] == second[name]["gathered"]
        assert [len(step) for step in first[name]["gathered"]] == ([8, 8] if seen == 16 else [8, 8, 6])
