"""Hugging Face's `Trainer` with the batches of a negative sampler and the weighted loss, for CLIP and SigLIP.

Each batch holds the ids of its samples: the loss cannot use the last fetched batch, because the Trainer and accelerate fetch
later batches before a forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from clip_negatives.batches.batch_sampler import NegativeBatches
from clip_negatives.batches.collate import IndexedCollate
from clip_negatives.batches.extras import refuse_additions
from clip_negatives.batches.loader import rebuilt
from clip_negatives.batches.samples import FailedBatch, IndexedDataset
from clip_negatives.errors import InputError, MissingPackageError, UnsupportedError
from clip_negatives.host import registry
from clip_negatives.host.method import Method
from clip_negatives.integrations.loop import ORDERS, sampling_context
from clip_negatives.interfaces import NegativeSampler
from clip_negatives.learning_sampler import observer_of
from clip_negatives.losses.module import NegativesClipLoss
from clip_negatives.step import BatchSamples
from clip_negatives.storage.clusters_folder import read_clusters
from clip_negatives.training.figures import batch_figures, logged_figures
from clip_negatives.training.loss_parameters import LossParameters
from clip_negatives.training.method_state import MethodState
from clip_negatives.training.same_data import check_same_samples
from clip_negatives.training.temperature import check_temperature_of
from clip_negatives.training.weighting import loss_terms

try:
    from accelerate.data_loader import prepare_data_loader
    from transformers import Trainer, TrainerCallback
    from transformers.trainer_utils import get_last_checkpoint
except ImportError as error:
    raise MissingPackageError.of("transformers", error) from error

IDS = "sample_ids"  # key of the sample ids in a batch; a tensor, because accelerate moves and splits only tensors
STATE = "clip_negatives.safetensors"  # file in a checkpoint with the state of the method


class NegativesTrainer(Trainer):
    """`transformers.Trainer` for CLIP and SigLIP models, with the batches of a negative sampler and the weighted loss.

    With ``sampler="in_batch"`` and ``weighting="uniform"``, batches and losses equal the Trainer's with ``return_loss=True``.
    With several processes, negatives come from all processes. Evaluation does not change.

    Args:
        *args: as in `transformers.Trainer`.
        clusters: clusters folder of the training data; sample i of the data is sample i there.
        sampler: ``name`` or ``name:key=value,...`` of the negative sampler.
        weighting: ``name`` or ``name:key=value,...`` of the loss weighting.
        backend: see `clip_negatives.losses.functional.weighted_info_nce`.
        keys: key, caption or image path of each sample, see `clip_negatives.attach`.
        **named: as in `transformers.Trainer`.

    Raises:
        ClipNegativesError: the folder cannot be read or belongs to other data, or a name is unknown.
        InputError: `compute_loss_func` is given; or only one of model and weighting has a logit bias.
    """

    loss_is_scaled_for_ga = False  # the loss is a mean over the batch: the Trainer divides by the number of accumulated batches

    def __init__(
        self,
        *args: Any,
        clusters: str | Path,
        sampler: str = Method.sampler,
        weighting: str = Method.weighting,
        backend: str = "auto",
        keys: Sequence[str] | None = None,
        **named: Any,
    ) -> None:
        if named.get("compute_loss_func") is not None:
            raise InputError("NegativesTrainer computes the loss itself. Remove compute_loss_func.")
        super().__init__(*args, **named)
        self.folder, self.sampler, self._keys = read_clusters(clusters), sampler, keys
        check_temperature_of(self.model, weighting)
        self._check_bias(weighting)
        terms = loss_terms(weighting, self.folder.clusters, teacher=False)
        options: dict[str, Any] = {"rank": self.args.process_index, "world_size": self.args.world_size, "backend": backend}
        self.negatives = NegativesClipLoss(local_loss=True, gather_with_grad=True, terms=terms, **options).to(self.args.device)
        self._samples: BatchSamples | None = None
        self._negative_sampler: NegativeSampler | None = None
        self._parameters: LossParameters | None = None
        self._resumed: Path | None = None  # checkpoint
        self.add_callback(_StoreState(self))

    def _check_bias(self, weighting: str) -> None:
        """Check that the model has a logit bias if, and only if, the weighting trains one."""
        item, _ = registry.default_registry().resolve("loss_weighting", weighting)
        has_bias, name = hasattr(self.model, "logit_bias"), type(self.model).__name__
        if has_bias and not item.requires_logit_bias:
            raise InputError(
                f"{name} has a logit bias, which the weighting {item.name} does not train. Use weighting='siglip', or "
                "weighting='siglip:of=weighted_infonce'."
            )
        if item.requires_logit_bias and not has_bias:
            raise InputError(
                f"The weighting {item.name} needs a model with a logit bias, such as SiglipModel, and {name} has none. Use "
                "another weighting."
            )

    def create_optimizer(self, *args: Any, **named: Any) -> Any:
        """Create the Trainer's optimizer, with the parameters of the loss."""
        optimizer = super().create_optimizer(*args, **named)
        self._parameters = self._parameters or LossParameters(self.negatives.anchor_loss, optimizer)
        return optimizer

    def method_state(self) -> MethodState:
        """Return what the method has learned."""
        return MethodState(self.negatives.anchor_loss, self._parameters, self._negative_sampler)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the Trainer's loader with the batches of the sampler and the ids of their samples."""
        native = super().get_train_dataloader()
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        context = sampling_context(native, self.folder, seed, self.args.train_batch_size)
        check_same_samples(self.folder, self.train_dataset, self._keys)  # before the Trainer removes columns
        batches: Any = native.batch_sampler
        item, _ = registry.default_registry().resolve("negative_sampler", self.sampler)
        if not item.keeps_native_order:
            own = self._get_train_sampler(self.train_dataset)
            if type(own) not in ORDERS:
                raise InputError(
                    f"The Trainer's {type(own).__name__} chooses its samples, and {self.sampler} would replace it. Use "
                    "sampler='in_batch' to keep it."
                )
            sampler = registry.create("negative_sampler", self.sampler, context)
            refuse_additions(sampler, "the Trainer")
            self._negative_sampler, self.negatives.observer = sampler, observer_of(sampler)
            batches = NegativeBatches(sampler, context.n_samples)
        dataset = IndexedDataset(native.dataset)
        loader = rebuilt(native, dataset, batches, _CollateWithIds(native.collate_fn, dataset.unreadable))
        # The batches are already those of this process: with the true number of processes, accelerate would split them.
        prepared: DataLoader[Any] = prepare_data_loader(
            loader, self.accelerator.device, 1, 0, put_on_device=True, non_blocking=self.accelerator.non_blocking
        )
        return prepared

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, *rest: Any, **named: Any) -> Any:
        """Return the weighted loss of a training batch, or the Trainer's own loss of an evaluation batch."""
        if IDS not in inputs:
            if model.training:
                raise InputError("The batch has no sample ids. Do not override get_train_dataloader of NegativesTrainer.")
            return super().compute_loss(model, inputs, return_outputs, *rest, **named)
        outputs = model(**{name: value for name, value in inputs.items() if name != IDS} | {"return_loss": False})
        inner = self.accelerator.unwrap_model(model)
        if not {"image_embeds", "text_embeds"} <= set(outputs):
            raise UnsupportedError(
                f"NegativesTrainer cannot train {type(inner).__name__}: the model must have a logit_scale, and outputs "
                "image_embeds and text_embeds, as CLIPModel and SiglipModel have. Train in your own loop, with attach."
            )
        self._samples = BatchSamples(ids=inputs[IDS]).at(
            self.state.global_step, self.state.max_steps, epoch=int(self.state.epoch or 0)
        )
        scale, bias = inner.logit_scale.exp(), getattr(inner, "logit_bias", None)
        loss = self.negatives(outputs["image_embeds"], outputs["text_embeds"], scale, bias, samples=self._samples)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as the Trainer does, and add the figures of the last batch to a training loss."""
        if "loss" in logs and self._samples is not None:
            terms = self.negatives.anchor_loss or self.negatives.terms
            figures = batch_figures(self._samples, self.folder.clusters, terms)
            logs = logs | figures | logged_figures(self.negatives.logged)
        super().log(logs, start_time)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **named: Any) -> Any:
        """Train as the Trainer does; a resume also restores the state of the method from the checkpoint."""
        checkpoint: Any = resume_from_checkpoint
        if checkpoint is True:
            checkpoint = get_last_checkpoint(self.args.output_dir)  # type: ignore[no-untyped-call]
        if checkpoint:
            self._resumed = Path(checkpoint)
        return super().train(resume_from_checkpoint, *args, **named)


@dataclass
class _StoreState(TrainerCallback):
    """A callback that writes the state of the method into each checkpoint, and restores it in a resumed training."""

    trainer: NegativesTrainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        if (checkpoint := self.trainer._resumed) is not None:
            self.trainer.method_state().read(checkpoint / STATE, self.trainer.folder.digest)

    def on_step_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        self.trainer.negatives.zero_grad()  # the Trainer forgets the gradients of its model only

    def on_save(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        if state.is_world_process_zero:
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            self.trainer.method_state().write(checkpoint / STATE, self.trainer.folder.digest)


class _CollateWithIds(IndexedCollate):
    """Collation to a batch that also holds the ids of its samples, int64, shape (B,)."""

    def __call__(self, items: list[tuple[Any, ...]]) -> Any:
        batch, samples = super().__call__(items)
        return batch if isinstance(batch, FailedBatch) else {**batch, IDS: samples.ids}
