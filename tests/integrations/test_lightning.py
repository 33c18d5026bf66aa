"""Lightning's loop with our callback."""

from __future__ import annotations

import itertools
from pathlib import Path

import lightning
import open_clip
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.data import extract_batch_size
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader

from clip_negatives import attach, hold_temperature, read_clusters
from clip_negatives.errors import ArtifactError, InputError
from clip_negatives.integrations.lightning import NegativesCallback
from clip_negatives.step import BatchSamples
from clip_negatives.training.figures import batch_figures, cluster_figures
from tests.integrations.clustered import BATCH, N, Pictures, rows_of, write_folder

STEPS = N // BATCH
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore"),  # Lightning's advice on workers and cores
    pytest.mark.filterwarnings("error:Trying to infer the `batch_size` from an ambiguous collection"),
]


@pytest.fixture
def clusters(tmp_path: Path):
    return write_folder(tmp_path / "clusters")


class Towers(lightning.LightningModule):
    """Note the index of every batch, and hold it to what the batch shows."""

    def __init__(self, negatives: NegativesCallback, workers: int = 0, batch: int = BATCH) -> None:
        super().__init__()
        self.negatives, self.workers, self.batch = negatives, workers, batch
        torch.manual_seed(0)
        self.image, self.text = nn.Linear(3 * 64, 8), nn.EmbeddingBag(20, 8)
        self.frozen = nn.Dropout().eval()
        self.seen: list[list[int]] = []

    def encode(self, batch):
        images, texts = batch
        return F.normalize(self.image(images.flatten(1) / N), dim=1), F.normalize(self.text(texts), dim=1)

    def train_dataloader(self):
        loader = DataLoader(Pictures(mapping=False), batch_size=self.batch, num_workers=self.workers, shuffle=True)
        return self.negatives.attach(loader)

    def training_step(self, batch, batch_idx):
        batch, samples = batch
        assert samples.ids.tolist() == rows_of(batch[0]).tolist()
        self.seen.append(samples.ids.tolist())
        return self.negatives.loss(*self.encode(batch), 5.0, samples=samples)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(tmp_path: Path, *, workers: int = 0, resume: Path | None = None, callback: dict | None = None, **more):
    negatives = NegativesCallback(tmp_path / "clusters", seed=2, **callback or {})
    module = Towers(negatives, workers)
    how = {"max_epochs": 2, "accelerator": "cpu", "logger": False, "default_root_dir": tmp_path, "log_every_n_steps": 2}
    how |= {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    callbacks = [negatives, *more.pop("callbacks", [])]
    trainer = lightning.Trainer(**how | more, callbacks=callbacks)
    trainer.fit(module, ckpt_path=resume)
    return module, negatives, trainer


def keep(tmp_path: Path, **how) -> dict:
    return {"enable_checkpointing": True, "callbacks": [ModelCheckpoint(tmp_path / "kept", save_top_k=-1, **how)]}


def kept(tmp_path: Path, step: int) -> Path:
    (found,) = (tmp_path / "kept").glob(f"*step={step}.ckpt")
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_each_epoch_are_those_of_a_loop_of_ones_own(tmp_path, clusters, workers):
    module, _, _ = fit(tmp_path, workers=workers, accumulate_grad_batches=2)
    loader, _ = attach(DataLoader(Pictures(mapping=False), batch_size=BATCH), clusters[0], seed=2)
    expected = []
    for epoch in (0, 1):
        loader.set_epoch(epoch)
        expected += [samples.ids.tolist() for _, samples in loader]
    assert module.seen == expected
    assert extract_batch_size(next(iter(loader))) == BATCH


def test_overfitting_repeats_the_same_batches(tmp_path, clusters):
    module, _, _ = fit(tmp_path, max_epochs=3, overfit_batches=2, num_sanity_val_steps=2)
    loader, _ = attach(DataLoader(Pictures(mapping=False), batch_size=BATCH), clusters[0], seed=2)
    assert module.seen == 3 * [samples.ids.tolist() for _, samples in itertools.islice(loader, 2)]


def test_a_loader_without_the_callback_gets_the_epoch_from_lightning(tmp_path, clusters):
    class Alone(Towers):
        def training_step(self, batch, batch_idx):
            self.seen.append(batch[1].ids.tolist())
            return self.encode(batch[0])[0].sum()

    loader, _ = attach(DataLoader(Pictures(mapping=False), batch_size=BATCH), clusters[0], keys=list(map(str, range(N))))
    how = {"max_epochs": 2, "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    module = Alone(NegativesCallback(clusters[0]))
    lightning.Trainer(**how, enable_model_summary=False, default_root_dir=tmp_path).fit(module, train_dataloaders=loader)
    assert (loader.epoch, loader.state_dict()["batches"]) == (1, STEPS)
    expected = []
    for epoch in (0, 1):
        loader.set_epoch(epoch)
        expected += [samples.ids.tolist() for _, samples in loader]
    assert module.seen == expected


def test_refresh_clusters_with_the_module_and_leaves_it_as_it_was(tmp_path, clusters):
    how = {"refresh_every": 2, "encode": Towers.encode, "clusterer": "kmeans:n_clusters=3"}
    module, negatives, _ = fit(tmp_path, callback=how, max_epochs=3)
    folder = tmp_path / "clip_negatives" / "clusters-epoch-2"
    found = read_clusters(folder)
    assert found.clusters.image.n_clusters == 3
    assert found.clusters.image_features.shape == (N, 8)
    assert "group" in found.samples.column_names
    assert negatives.loss.terms.image_table.shape == (3, 3)
    assert negatives.state_dict()["clusters"] == str(folder)
    assert not (tmp_path / "clip_negatives" / "clusters-epoch-1").exists()
    assert module.image.training
    assert not module.frozen.training
    assert torch.tensor(module.seen[2 * STEPS :]).unique().tolist() == list(range(N))


def test_refresh_leaves_the_global_generator_alone(tmp_path, clusters):
    drawn = []
    for callback in ({}, {"refresh_every": 1, "encode": Towers.encode}):
        fit(tmp_path, callback=callback)
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)


def test_resumes_within_an_epoch_with_the_clusters_of_the_refresh(tmp_path, clusters):
    how = {"callback": {"refresh_every": 1, "encode": Towers.encode}, "workers": 2, "max_epochs": 3}
    whole, _, _ = fit(tmp_path, **how, **keep(tmp_path, every_n_train_steps=STEPS + 2))
    resumed, _, _ = fit(tmp_path, **how, resume=kept(tmp_path, STEPS + 2))
    assert resumed.seen == whole.seen[STEPS + 2 :]
    torch.testing.assert_close(resumed.image.weight, whole.image.weight)
    folder = tmp_path / "clip_negatives" / "clusters-epoch-1"
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="clusters-epoch-1"):
        fit(tmp_path, **how, resume=kept(tmp_path, STEPS + 2))


def test_resumes_after_an_epoch_that_was_cut_short(tmp_path, clusters):
    how = {"limit_train_batches": 4}
    whole, _, _ = fit(tmp_path, **how, **keep(tmp_path, every_n_epochs=1))
    resumed, _, _ = fit(tmp_path, **how, resume=kept(tmp_path, 4))
    assert resumed.seen == whole.seen[4:]


def test_what_the_loss_remembers_is_in_the_checkpoint(tmp_path, clusters):
    how = {"callback": {"weighting": "sogclr"}}
    _, whole, _ = fit(tmp_path, **how, **keep(tmp_path, every_n_train_steps=4))
    _, resumed, _ = fit(tmp_path, **how, resume=kept(tmp_path, 4))
    torch.testing.assert_close(resumed.loss.anchor_loss.state_dict(), whole.loss.anchor_loss.state_dict())
    with pytest.raises(ArtifactError, match="the same sampler and weighting"):
        fit(tmp_path, callback={"weighting": "glofnd"}, resume=kept(tmp_path, 4))


def test_figures_are_logged_beside_lightnings(tmp_path, clusters):
    how = {"refresh_every": 1, "encode": Towers.encode, "clusterer": "kmeans:n_clusters=3"}
    module, negatives, trainer = fit(tmp_path, callback=how, logger=TensorBoardLogger(tmp_path))
    events = EventAccumulator(trainer.log_dir).Reload()
    last = batch_figures(BatchSamples(ids=torch.tensor(module.seen[-1])), negatives._clusters, negatives.loss.terms)
    assert set(last) == {f"clip_negatives/{name}" for name in ("removed_share", "mean_weight", "false_negatives_per_anchor")}
    for name, value in last.items():
        assert [event.step for event in events.Scalars(name)] == [1, 3, 5, 7, 9, 11]
        assert events.Scalars(name)[-1].value == pytest.approx(value)
    for name, value in cluster_figures(clusters[1]).items():
        assert [event.step for event in events.Scalars(name)] == [0, STEPS]
        assert events.Scalars(name)[0].value == pytest.approx(value)
    assert events.Scalars("clip_negatives/image_cluster_size_mean")[1].value == N / 3


def test_captions_that_a_sampler_adds(tmp_path, clusters):
    def tokenize(texts):
        return torch.tensor([[3 + len(text) % 16, 3 + sum(map(ord, text)) % 16, 5, 2] for text in texts])

    class Captioned(Towers):
        def train_dataloader(self):
            return self.negatives.attach(DataLoader(Pictures(mapping=False), batch_size=BATCH), tokenize=tokenize)

        def training_step(self, batch, batch_idx):
            assert batch[1].text_ids.shape == (BATCH, 2)
            assert batch[0][1].shape == (2 * BATCH, 4)
            return super().training_step(batch, batch_idx)

    negatives = NegativesCallback(clusters[0], sampler="swapped_words", weighting="uniform")
    how = {"max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    module = Captioned(negatives)
    lightning.Trainer(**how, enable_model_summary=False, default_root_dir=tmp_path, callbacks=[negatives]).fit(module)
    assert len(module.seen) == STEPS


def test_images_that_a_sampler_adds(tmp_path, clusters):
    class Pictured(Towers):
        def train_dataloader(self):
            tokenize = lambda texts: torch.ones(len(texts), 4, dtype=torch.int64)  # noqa: E731
            return self.negatives.attach(DataLoader(Pictures(mapping=False), batch_size=BATCH), tokenize=tokenize)

        def training_step(self, batch, batch_idx):
            (images, texts), samples = batch
            assert len(images) == len(texts) == 2 * BATCH
            assert samples.ids.tolist() == rows_of(images)[::2].tolist()
            self.seen.append(samples.ids.tolist())
            return self.negatives.loss(*self.encode(batch[0]), 5.0, samples=samples)

    negatives = NegativesCallback(clusters[0], sampler="triplets:near_duplicate=1.0", weighting="uniform")
    how = {"max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    module = Pictured(negatives)
    lightning.Trainer(**how, enable_model_summary=False, default_root_dir=tmp_path, callbacks=[negatives]).fit(module)
    assert len(module.seen) == STEPS


@pytest.mark.parametrize("weighting", ["weighted_infonce", "sogclr"])
def test_validation_is_plain_and_runs_before_and_within_training(tmp_path, clusters, weighting):
    class Validated(Towers):
        def val_dataloader(self):
            return DataLoader(Pictures(7, mapping=False), batch_size=7)

        def validation_step(self, batch, batch_idx):
            x, y = self.encode(batch)
            torch.testing.assert_close(self.negatives.loss(x, y, 5.0), open_clip.ClipLoss()(x, y, torch.tensor(5.0)))

    negatives = NegativesCallback(clusters[0], weighting=weighting)
    how = {"max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = lightning.Trainer(**how, default_root_dir=tmp_path, callbacks=[negatives], val_check_interval=2)
    trainer.fit(Validated(negatives))


@pytest.mark.parametrize("sampler", ["cluster_similarity", "in_batch"])
@pytest.mark.parametrize("weighting", ["weighted_infonce", "sogclr", "weighted_infonce:warmup=0.9"])
def test_every_checkpoint_resumes_to_the_same_weights(tmp_path, clusters, sampler, weighting):
    """Within an epoch and at its end; the loop's own shuffle has no seed, so only its epoch is the same."""
    epochs = 1 if sampler == "in_batch" else 2
    how = {"callback": {"sampler": sampler, "weighting": weighting}, "max_epochs": epochs}
    whole, _, _ = fit(tmp_path, **how, **keep(tmp_path, every_n_train_steps=1))
    for step in range(1, epochs * STEPS):
        torch.manual_seed(100 + step)
        resumed, _, _ = fit(tmp_path, resume=kept(tmp_path, step), **how)
        assert resumed.seen == whole.seen[step:]
        assert torch.equal(resumed.image.weight, whole.image.weight)


def test_a_reloaded_loader_knows_the_progress_of_the_training(tmp_path, clusters):
    options = {"callback": {"weighting": "weighted_infonce:warmup=0.9"}}
    whole, _, _ = fit(tmp_path, **options)
    reloaded, _, _ = fit(tmp_path, **options, reload_dataloaders_every_n_epochs=1)
    assert reloaded.seen == whole.seen
    assert torch.equal(reloaded.image.weight, whole.image.weight)


def test_what_is_missing_is_said(tmp_path, clusters):
    loss, sides = NegativesCallback(clusters[0]).loss, [F.normalize(torch.eye(4), dim=1).requires_grad_() for _ in range(2)]
    with pytest.raises(InputError, match="from train_dataloader"):
        loss(*sides, 5.0)
    for how in ({"refresh_every": 1}, {"refresh_every": 0, "encode": Towers.encode}):
        with pytest.raises(InputError, match="needs encode="):
            NegativesCallback(clusters[0], **how)


def test_a_state_of_other_clusters_is_refused(tmp_path, clusters):
    fit(tmp_path, callback={"weighting": "sogclr"}, **keep(tmp_path, every_n_train_steps=2))
    write_folder(tmp_path / "clusters", groups=5)
    with pytest.raises(ArtifactError, match="is of other data or clusters"):
        fit(tmp_path, resume=kept(tmp_path, 2), callback={"weighting": "sogclr"})


@pytest.mark.parametrize("held", [False, True])
def test_a_learned_temperature_is_refused_where_the_weighting_needs_a_fixed_one(tmp_path, clusters, held):
    negatives = NegativesCallback(tmp_path / "clusters", weighting="blend")
    module = Towers(negatives)
    module.logit_scale = nn.Parameter(torch.zeros(()))
    if held:
        hold_temperature(module.logit_scale, 0.1)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = lightning.Trainer(max_steps=2, accelerator="cpu", default_root_dir=tmp_path, callbacks=[negatives], **quiet)
    if held:
        trainer.fit(module)
        assert trainer.global_step == 2
    else:
        with pytest.raises(InputError, match=r"blend needs a fixed temperature.*parameter logit_scale.*hold_temperature"):
            trainer.fit(module)
