"""Hugging Face's Trainer with our batches and loss, beside the Trainer without."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch.utils.data import IterableDataset, WeightedRandomSampler
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel, Trainer, TrainingArguments
from transformers.data import default_data_collator

from clip_negatives import hold_temperature
from clip_negatives.errors import ArtifactError, DataError, InputError, UnsupportedError
from clip_negatives.host import registry
from clip_negatives.integrations.transformers import IDS, STATE, NegativesTrainer
from clip_negatives.interfaces import SamplingContext
from clip_negatives.step import BatchSamples
from clip_negatives.training.figures import batch_figures
from tests.integrations.clustered import BATCH, N, Pictures, rows_of, write_folder

STEPS = N // BATCH
pytestmark = pytest.mark.usefixtures("one_thread")


def collate(samples):
    return {**default_data_collator(samples), "return_loss": True}


def tiny_clip(seed: int = 0) -> CLIPModel:
    layers = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    text = {**layers, "vocab_size": 20, "max_position_embeddings": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    vision = {**layers, "image_size": 8, "patch_size": 4}
    torch.manual_seed(seed)
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))


def tiny_siglip(seed: int = 0) -> SiglipModel:
    layers = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    text = {**layers, "vocab_size": 20, "max_position_embeddings": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(seed)
    model = SiglipModel(SiglipConfig(text_config=text, vision_config={**layers, "image_size": 8, "patch_size": 4}))
    model.logit_scale.data.fill_(1.0)
    model.logit_bias.data.fill_(-2.0)
    return model


def arguments(folder: Path, **more) -> TrainingArguments:
    how = {"num_train_epochs": 1, "per_device_train_batch_size": BATCH, "learning_rate": 1e-2, "logging_steps": 1}
    how |= {"report_to": "none", "use_cpu": True, "save_strategy": "no", "disable_tqdm": True, "seed": 3}
    return TrainingArguments(str(folder), **how | more)


class Watched(NegativesTrainer):
    """Note the index of every batch, and hold it to what the batch shows."""

    def __init__(self, *args, **named):
        super().__init__(*args, **named)
        self.seen: list[list[int]] = []

    def compute_loss(self, model, inputs, *rest, **named):
        if IDS in inputs:
            assert inputs[IDS].tolist() == rows_of(inputs["pixel_values"]).tolist()
            self.seen.append(inputs[IDS].tolist())
        return super().compute_loss(model, inputs, *rest, **named)


@pytest.fixture
def clusters(tmp_path: Path):
    return write_folder(tmp_path / "clusters")


def trainer(tmp_path: Path, model: CLIPModel | None = None, kind=Watched, n: int = N, **more) -> Trainer:
    ours = {
        name: more.pop(name) for name in ("sampler", "weighting", "eval_dataset", "compute_loss_func", "keys") if name in more
    }
    ours |= {"clusters": tmp_path / "clusters"} if kind is not Trainer else {}
    run = arguments(tmp_path / "run", **more)
    return kind(model or tiny_clip(), run, train_dataset=Pictures(n), data_collator=collate, **ours)


def losses(done: Trainer) -> list[float]:
    return [entry["loss"] for entry in done.state.log_history if "loss" in entry]


@pytest.mark.parametrize("more", [{}, {"gradient_accumulation_steps": 2, "dataloader_num_workers": 2, "num_train_epochs": 2}])
def test_in_batch_and_uniform_train_as_the_models_own_loss_does(tmp_path, clusters, more):
    expected = trainer(tmp_path, kind=Trainer, **more)
    expected.train()
    found = trainer(tmp_path, sampler="in_batch", weighting="uniform", **more)
    found.train()
    assert losses(found) == pytest.approx(losses(expected), rel=1e-5)
    assert len(losses(found)) == STEPS * more.get("num_train_epochs", 1) // more.get("gradient_accumulation_steps", 1)


def test_uniform_loss_of_a_batch_is_the_models_own(tmp_path, clusters):
    found = trainer(tmp_path, sampler="in_batch", weighting="uniform")
    batch = collate([Pictures()[row] for row in range(BATCH)])
    expected = found.model(**batch).loss
    torch.testing.assert_close(found.compute_loss(found.model, {**batch, IDS: torch.arange(BATCH)}), expected)


@pytest.mark.parametrize("more", [{}, {"gradient_accumulation_steps": 2, "num_train_epochs": 2}])
def test_siglip_trains_as_the_models_own_loss_does(tmp_path, clusters, more):
    more = more | {"optim": "sgd", "learning_rate": 0.1}  # Adam amplifies the rounding of gradients that are zero
    expected = trainer(tmp_path, tiny_siglip(), kind=Trainer, **more)
    expected.train()
    found = trainer(tmp_path, tiny_siglip(), sampler="in_batch", weighting="siglip", **more)
    found.train()
    assert losses(found) == pytest.approx(losses(expected), rel=1e-5)
    for name, weight in expected.model.state_dict().items():
        torch.testing.assert_close(found.model.state_dict()[name], weight, rtol=1e-4, atol=1e-4)
    assert found.model.logit_bias != -2


def test_weights_reach_the_loss_of_siglip(tmp_path, clusters):
    """The batches are the same, so only the weights of the incorrect pairs change the loss."""
    found, plain = (
        trainer(tmp_path, tiny_siglip(), weighting=name, max_steps=1) for name in ("siglip:of=weighted_infonce", "siglip")
    )
    found.train()
    plain.train()
    assert found.seen == plain.seen
    assert abs(losses(found)[0] - losses(plain)[0]) > 0.01 * losses(plain)[0]


def test_a_logit_bias_and_the_weighting_must_fit(tmp_path, clusters):
    with pytest.raises(InputError, match=r"SiglipModel has a logit bias, which the weighting weighted_infonce.*'siglip'"):
        trainer(tmp_path, tiny_siglip())
    with pytest.raises(InputError, match=r"siglip needs a model with a logit bias, such as SiglipModel, and CLIPModel has"):
        trainer(tmp_path, weighting="siglip")


def test_a_model_may_return_a_plain_dict(tmp_path, clusters):
    class Mapped(CLIPModel):
        def forward(self, *args, **named):
            return dict(super().forward(*args, **named))

    mapped = trainer(tmp_path, Mapped(tiny_clip().config), remove_unused_columns=False)
    mapped.train()
    assert len(losses(mapped)) == STEPS


def test_batches_are_the_samplers_and_each_epoch_has_its_own(tmp_path, clusters):
    found = trainer(tmp_path, num_train_epochs=2, gradient_accumulation_steps=3, dataloader_num_workers=2)
    found.train()
    sampler = registry.create("negative_sampler", "cluster_similarity", SamplingContext(N, BATCH, seed=3, clusters=clusters[1]))
    expected = []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        expected += list(sampler)
    assert found.seen == expected
    assert expected[:STEPS] != expected[STEPS:]


@pytest.mark.parametrize("sampler", ["cluster_similarity", "in_batch"])
def test_resumes_within_an_epoch_as_if_never_stopped(tmp_path, clusters, sampler):
    how = {"sampler": sampler, "num_train_epochs": 3, "save_strategy": "steps", "save_steps": STEPS + 2}
    whole = trainer(tmp_path, **how)
    whole.train()
    resumed = trainer(tmp_path, tiny_clip(seed=9), **how)
    resumed.train(str(tmp_path / "run" / f"checkpoint-{STEPS + 2}"))
    assert resumed.seen == whole.seen[STEPS + 2 :]
    assert losses(resumed)[-1] == pytest.approx(losses(whole)[-1], rel=1e-4)


def test_what_the_loss_remembers_is_in_the_checkpoint(tmp_path, clusters):
    how = {"weighting": "sogclr", "num_train_epochs": 2, "save_strategy": "epoch"}
    whole = trainer(tmp_path, **how)
    whole.train()
    (tmp_path / "run" / f"checkpoint-{2 * STEPS}").rename(tmp_path / "later")
    resumed = trainer(tmp_path, **how)
    resumed.train(True)
    state = whole.negatives.anchor_loss.state_dict()
    torch.testing.assert_close(resumed.negatives.anchor_loss.state_dict(), state, rtol=1e-4, atol=1e-4)
    (tmp_path / "run" / f"checkpoint-{STEPS}" / STATE).unlink()
    with pytest.raises(ArtifactError, match="state of the method"):
        trainer(tmp_path, **how).train(str(tmp_path / "run" / f"checkpoint-{STEPS}"))


def test_weights_reach_the_loss(tmp_path, clusters):
    """A weighting that removes nine of ten incorrect pairs leaves much less of a loss; the figures say so."""
    whole, found = (trainer(tmp_path, sampler="in_batch", weighting=name) for name in ("uniform", "random_reduction:share=0.9"))
    whole.train()
    found.train()
    assert all(few < 0.6 * full for few, full in zip(losses(found), losses(whole), strict=True))
    logged = [entry for entry in found.state.log_history if "loss" in entry][-1]
    assert logged["clip_negatives/removed_share"] == pytest.approx(0.9, abs=0.1)
    expected = batch_figures(BatchSamples(ids=torch.tensor(found.seen[-1])), found.folder.clusters, found.negatives.terms)
    assert {name: logged[name] for name in expected} == expected


def test_batches_know_the_progress_of_the_training(tmp_path, clusters):
    class Shares(NegativesTrainer):
        def compute_loss(self, *args, **named):
            loss = super().compute_loss(*args, **named)
            shares.append(float(self._samples.progress))
            return loss

    shares = []
    trainer(tmp_path, kind=Shares, weighting="weighted_infonce:warmup=1", num_train_epochs=2).train()
    assert shares == pytest.approx([step / (2 * STEPS) for step in range(2 * STEPS)])


def test_evaluation_is_the_trainers_own(tmp_path, clusters):
    model = tiny_clip()
    how = {"eval_dataset": Pictures(2 * BATCH), "per_device_eval_batch_size": BATCH}
    found = trainer(tmp_path, model, **how).evaluate()
    expected = trainer(tmp_path, copy.deepcopy(model), Trainer, **how).evaluate()
    assert found["eval_loss"] == pytest.approx(expected["eval_loss"])


class Stream(IterableDataset):
    def __iter__(self):
        return iter(Pictures())


def test_what_cannot_be_served_is_refused(tmp_path, clusters):
    with pytest.raises(InputError, match="compute_loss_func"):
        trainer(tmp_path, compute_loss_func=print)
    with pytest.raises(InputError, match="training data has 40"):
        trainer(tmp_path, n=40).train()
    with pytest.raises(UnsupportedError, match="adds captions, which the Trainer"):
        trainer(tmp_path, sampler="swapped_words").train()
    with pytest.raises(UnsupportedError, match="adds captions and images, which the Trainer"):
        trainer(tmp_path, sampler="triplets").train()
    found = trainer(tmp_path, max_steps=2)
    found.train_dataset = Stream()
    with pytest.raises(DataError, match="reads a stream"):
        found.train()
    batch = {"input_ids": torch.ones(1, 4, dtype=torch.int64), IDS: torch.zeros(1)}
    with pytest.raises(UnsupportedError, match="cannot train CLIPTextModel"):
        NegativesTrainer.compute_loss(found, found.model.text_model, batch)


class Damaged(Pictures):
    def __getitem__(self, row: int):
        if row == 7:
            raise OSError("image file is truncated")
        return super().__getitem__(row)


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_picture_is_named_in_one_sentence(tmp_path, clusters, workers):
    run = arguments(tmp_path / "run", dataloader_num_workers=workers)
    done = NegativesTrainer(tiny_clip(), run, train_dataset=Damaged(), data_collator=collate, clusters=clusters[0])
    with pytest.raises(DataError, match=r"^Sample 7 \(counted from 0\) cannot be read: image file is truncated\. Repair"):
        done.train()


def test_another_order_of_the_data_is_refused(tmp_path, clusters):
    texts = [f"positive{row}" for row in range(N)]
    with pytest.raises(ArtifactError, match="another order: keys differs at sample 0"):
        trainer(tmp_path, keys=texts[::-1]).train()
    assert trainer(tmp_path, keys=texts).get_train_dataloader() is not None


def test_a_state_of_other_clusters_is_refused(tmp_path, clusters):
    trainer(tmp_path, weighting="sogclr", save_strategy="steps", save_steps=2).train()
    write_folder(tmp_path / "clusters", groups=5)
    with pytest.raises(ArtifactError, match="is of other data or clusters: its values belong to other samples"):
        trainer(tmp_path, weighting="sogclr").train(str(tmp_path / "run" / "checkpoint-2"))


def test_a_sampler_of_the_trainer_is_kept_or_refused(tmp_path, clusters):
    class Weighted(Watched):
        def _get_train_sampler(self, train_dataset=None):
            return WeightedRandomSampler([1.0] * 8 + [0.0] * (N - 8), N)

    with pytest.raises(InputError, match=r"Trainer's WeightedRandomSampler chooses its samples.* sampler='in_batch'"):
        trainer(tmp_path, kind=Weighted).train()
    kept = trainer(tmp_path, kind=Weighted, sampler="in_batch", weighting="uniform")
    kept.train()
    assert {row for batch in kept.seen for row in batch} <= set(range(8))

    class Own(Watched):
        def get_train_dataloader(self):
            return Trainer.get_train_dataloader(self)

    with pytest.raises(InputError, match="has no sample ids"):
        trainer(tmp_path, kind=Own).train()


def test_a_learned_temperature_is_refused_where_the_weighting_needs_a_fixed_one(tmp_path, clusters):
    with pytest.raises(InputError, match=r"blend needs a fixed temperature.*parameter logit_scale.*hold_temperature"):
        trainer(tmp_path, weighting="blend")
    model = tiny_clip()
    hold_temperature(model.logit_scale, 0.1)
    before = model.logit_scale.clone()
    done = trainer(tmp_path, model, weighting="blend", max_steps=2)
    done.train()
    assert torch.equal(done.model.logit_scale, before)
