"""Hugging Face's `Trainer`: batches of a negative sampler, and the weighted loss, for `CLIPModel` and models like it.

The Trainer fetches the batches of an accumulated step before it takes the first, and accelerate one more ahead of that: the
index of the samples therefore stands in the batch itself, from the worker that reads them to the loss.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from clip_negatives import registry
from clip_negatives.artifacts import read_clusters
from clip_negatives.errors import DataError, InputError, MissingPackageError, UnsupportedError
from clip_negatives.extra_texts import Captions, refuse_texts
from clip_negatives.indexing import IndexedDataset, KeyedCollate, rebuilt
from clip_negatives.integrations.figures import batch_figures
from clip_negatives.integrations.loss_state import read_state, write_state
from clip_negatives.integrations.weighting import loss_terms
from clip_negatives.interfaces import SamplingContext
from clip_negatives.loss import NegativesClipLoss

try:
    from accelerate.data_loader import prepare_data_loader
    from transformers import Trainer, TrainerCallback
    from transformers.trainer_utils import get_last_checkpoint
except ImportError as error:
    raise MissingPackageError.of("transformers", error) from error

INDEX = "sample_index"
"""Under which the index of the samples stands in a batch."""

STATE = "clip_negatives.safetensors"
"""File in a checkpoint with what a loss remembers of the samples."""


class NegativesTrainer(Trainer):
    """Train a CLIP model of transformers with our negatives; all else is as in `transformers.Trainer`.

    With ``sampler="in_batch"`` and ``weighting="uniform"`` batches and losses are those that ``return_loss=True`` trains with.
    Several processes contrast the samples of all of them. Evaluation is the Trainer's own.

    Args:
        *args: as in `transformers.Trainer`.
        clusters: clusters folder of the training data; sample i of the data is sample i there.
        sampler: ``name`` or ``name:key=value,...``.
        weighting: the same.
        backend: see `clip_negatives.functional.weighted_info_nce`.
        **named: as in `transformers.Trainer`.

    Raises:
        ClipNegativesError: the folder cannot be read, or a name is unknown.
        InputError: a loss function is given as well.
    """

    loss_is_scaled_for_ga = False  # The mean of a batch: the Trainer divides by the batches that it accumulates.

    def __init__(
        self,
        *args: Any,
        clusters: str | Path,
        sampler: str = "cluster_similarity",
        weighting: str = "weighted_infonce",
        backend: str = "auto",
        **named: Any,
    ) -> None:
        if named.get("compute_loss_func") is not None:
            raise InputError("Expected no compute_loss_func, whose place our loss takes, got one. Leave it out.")
        super().__init__(*args, **named)
        self.folder = read_clusters(clusters)
        self.sampler = sampler
        self.negatives = NegativesClipLoss(
            local_loss=True,
            gather_with_grad=True,
            rank=self.args.process_index,
            world_size=self.args.world_size,
            terms=loss_terms(weighting, self.folder.clusters),
            backend=backend,
        ).to(self.args.device)
        self._index: Tensor | None = None
        self.add_callback(_StoreState(self.negatives))

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the Trainer's own loader with our batches, in which each sample has its index.

        Raises:
            DataError: the data are a stream, whose batches no sampler can choose.
            InputError: the clusters are of other data.
        """
        native = super().get_train_dataloader()
        data: Any = native.dataset
        batches: Any = native.batch_sampler
        if isinstance(data, IterableDataset):
            raise DataError("Expected training data that can be asked for by index, got a stream. Give a map-style data set.")
        n, known = len(data), self.folder.clusters.n_samples
        if n != known:
            raise InputError(f"Expected clusters of the {n} training samples, got clusters of {known}. Prepare them again.")
        item, _ = registry.default_registry().resolve("negative_sampler", self.sampler)
        if not item.keeps_native_order:
            context = SamplingContext(
                n_samples=n,
                batch_size=getattr(batches, "batch_size", self.args.train_batch_size),
                rank=self.args.process_index,
                world_size=self.args.world_size,
                seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
                clusters=self.folder.clusters,
                captions=Captions(self.folder.samples),
            )
            batches = registry.create("negative_sampler", self.sampler, context)
            refuse_texts(batches, "the Trainer")
        loader = rebuilt(native, IndexedDataset(data), batches, KeyedCollate(native.collate_fn, INDEX))
        # The batches are this process's own: accelerate is told of one process, or it would deal them out once more.
        prepared: DataLoader[Any] = prepare_data_loader(
            loader,
            self.accelerator.device,
            num_processes=1,
            process_index=0,
            put_on_device=True,
            non_blocking=self.accelerator.non_blocking,
        )
        return prepared

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the weighted loss of a training batch, or what the Trainer makes of any other.

        Raises:
            UnsupportedError: the model is not like `CLIPModel`.
        """
        if INDEX not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        rest = {name: value for name, value in inputs.items() if name != INDEX}
        outputs = model(**rest | {"return_loss": False})
        inner = self.accelerator.unwrap_model(model)
        if not {"image_embeds", "text_embeds"} <= set(outputs) or hasattr(inner, "logit_bias"):
            raise UnsupportedError(
                "Expected a model with a logit_scale and no logit_bias whose outputs have image_embeds and text_embeds, as "
                f"CLIPModel, got {type(inner).__name__}. Train it in a loop of your own, with attach."
            )
        self._index = inputs[INDEX]
        scale = inner.logit_scale.exp()
        loss = self.negatives(outputs.image_embeds, outputs.text_embeds, scale, index=self._index)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log what the Trainer does and, beside a training loss, the figures of the last batch."""
        if "loss" in logs and self._index is not None:
            logs = logs | batch_figures(self._index, self.folder.clusters, self.negatives.anchor_loss or self.negatives.terms)
        super().log(logs, start_time)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **named: Any) -> Any:
        """Train, from a checkpoint with what the loss remembers of the samples.

        Raises:
            ArtifactError: the checkpoint does not have it.
        """
        last = resume_from_checkpoint is True
        found: Any = get_last_checkpoint(self.args.output_dir) if last else resume_from_checkpoint  # type: ignore[no-untyped-call]
        if found:
            read_state(self.negatives.anchor_loss, Path(found) / STATE)
        return super().train(resume_from_checkpoint, *args, **named)


class _StoreState(TrainerCallback):
    """Write what a loss remembers of the samples into each checkpoint."""

    def __init__(self, loss: NegativesClipLoss) -> None:
        self.loss = loss

    def on_save(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        if state.is_world_process_zero:
            write_state(self.loss.anchor_loss, Path(args.output_dir) / f"checkpoint-{state.global_step}" / STATE)
