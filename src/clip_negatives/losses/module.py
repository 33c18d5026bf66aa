"""The loss as a module with the constructor and the call of `open_clip.ClipLoss`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from clip_negatives.anchor_loss import AnchorLoss, StepTerms
from clip_negatives.anchors import anchors
from clip_negatives.distributed.gather import average_gradients, copy_from_first
from clip_negatives.errors import InputError, UnsupportedError
from clip_negatives.losses.added import Added
from clip_negatives.losses.functional import Candidates, weighted_info_nce
from clip_negatives.losses.gathering import Gathering
from clip_negatives.losses.kernels.pairs import Inputs
from clip_negatives.losses.plugin_losses import FiniteLosses, losses_of, terms_of
from clip_negatives.losses.stored_terms import StoredTerms, checked_ids, moved
from clip_negatives.printing import warn
from clip_negatives.step import BatchSamples, Step, StepSamples, Towers
from clip_negatives.terms import LossTerms


class NegativesClipLoss(StoredTerms):
    """`open_clip.ClipLoss` with log-weights on the incorrect pairs.

    Constructor and call are those of `open_clip.ClipLoss`; new arguments are keyword-only. Without terms, or with neutral ones,
    the result is identical to `open_clip.ClipLoss`. The tensors of the terms are buffers: they move with the module and are in
    its ``state_dict``, which can be loaded into a module that was built without terms.

    Args:
        local_loss: compute the loss of this process's samples against all samples, not of all against all.
        gather_with_grad: let gradients flow through the gathering of features.
        cache_labels: accepted for compatibility; nothing is cached.
        rank: rank of this process.
        world_size: number of processes; above 1, features and sample ids are gathered.
        use_horovod: not supported.
        terms: loss terms of the data set, or an anchor loss, from a loss weighting; None is plain InfoNCE.
        batch_samples: returns the samples of the current batch; called once per forward pass if ``samples`` is not given
            and the terms are not neutral. Keep the ids on the CPU: fields are looked up on their own device, and a copy from a
            GPU to the CPU waits.
        text_anchors: see `clip_negatives.losses.functional.weighted_info_nce`.
        extra_texts: number E of captions added to each sample, see `clip_negatives.interfaces.ExtraTextSampler`. With
            ``BatchSamples.text_ids``, an added caption that equals the caption of an image is not a negative of that image.
        extra_images: number F of images added to each sample, see `clip_negatives.interfaces.ExtraImageSampler`. With
            ``BatchSamples.text_ids``, an added image whose caption equals a text is not a negative of that text.
        positive_texts: the added captions are further positives of their own image.
        extra_log_weight: log-weight of the added captions and images as negatives; -inf removes them.
        ring: with several processes, pass texts from process to process instead of gathering all samples. Loss and
            gradients are those of ``local_loss`` with ``gather_with_grad``; memory is that of two processes' samples.
        backend: see `clip_negatives.losses.functional.weighted_info_nce`.
        chunk_size: rows that the chunked and triton backends compute at a time.

    Attributes:
        observer: called with each training step and the loss of each of its G samples, shape (G,), float32: the mean of its
            image's and its text's loss. Step and losses are without gradients, and equal on all processes. A sampler's
            ``observe``.
        logged: figures of the last step, by name, as a weighting logged them with `Step.log`.

    Raises:
        UnsupportedError: horovod; added captions or images, or an observer, with `ring`; an anchor loss with added captions or
            images, with `ring`, or with a backend that never holds all logits.

    Examples:
        >>> features = torch.nn.functional.normalize(torch.eye(3), dim=1)
        >>> NegativesClipLoss()(features, features, torch.tensor(3.0), output_dict=True)
        {'contrastive_loss': tensor(0.0949)}
    """

    anchor_loss: AnchorLoss | None
    observer: Callable[[Step, Tensor], None] | None = None

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
        *,
        terms: LossTerms | AnchorLoss | None = None,
        batch_samples: Callable[[], BatchSamples] | None = None,
        text_anchors: bool = True,
        extra_texts: int = 0,
        extra_images: int = 0,
        positive_texts: bool = False,
        extra_log_weight: float = 0.0,
        ring: bool = False,
        backend: str = "auto",
        chunk_size: int | None = None,
    ) -> None:
        super().__init__()
        if use_horovod:
            raise UnsupportedError("Horovod is not supported. Start the training with torchrun, without --horovod.")
        if ring and (extra_texts or extra_images):
            raise UnsupportedError("ring=True does not work with a sampler that adds captions or images. Leave ring out.")
        self.local_loss, self.gather_with_grad, self.cache_labels = local_loss, gather_with_grad, cache_labels
        self.rank, self.world_size = rank, world_size
        self.batch_samples, self.text_anchors = batch_samples, text_anchors
        self.added = Added(extra_texts, extra_images, positive_texts, extra_log_weight)
        self.ring, self.backend, self.chunk_size = ring, backend, chunk_size
        self.anchor_loss = None
        self.logged: dict[str, Tensor] = {}
        self._handed_out: int | None = None
        self._begins = False  # whether the anchor loss may differ between processes, as with random parameters
        self.set_terms(LossTerms() if terms is None else terms)

    def set_terms(self, terms: LossTerms | AnchorLoss) -> None:
        """Replace the terms, or the anchor loss, after re-clustering; an anchor loss of the same class keeps its state."""
        previous, self.anchor_loss = self.anchor_loss, terms if isinstance(terms, AnchorLoss) else None
        self._finite = FiniteLosses()
        if self.anchor_loss is not None:
            if not isinstance(self.anchor_loss, StepTerms):
                self._check_all_logits()
            if previous is not None and type(previous) is type(self.anchor_loss):
                self.anchor_loss.take_state(previous)
            if self.world_size > 1:
                average_gradients(self.anchor_loss.parameters())
                self._begins = True
        loss_terms = terms if isinstance(terms, LossTerms) else LossTerms()
        loss_terms.check()
        loss_terms.check_values()
        self.store(loss_terms)

    @property
    def _gathering(self) -> Gathering:
        return Gathering(self.rank, self.world_size, self.local_loss, self.gather_with_grad)

    def _check_all_logits(self) -> None:
        """Check that this loss holds all logits of a batch."""
        needs = "This weighting needs all logits of a batch"
        if self.ring or self.backend not in ("auto", "torch"):
            option, remedy = (
                ("ring=True", "Leave ring out") if self.ring else (f"backend {self.backend!r}", "Use backend 'auto'")
            )
            raise UnsupportedError(f"{needs}, which {option} never holds. {remedy}.")
        if self.added.per_sample:
            remedy = "Use the weighting uniform or weighted_infonce."
            raise UnsupportedError(f"{needs} and does not work with a sampler that adds {self.added}. {remedy}")

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor,
        logit_bias: Tensor | None = None,
        output_dict: bool = False,
        *,
        samples: BatchSamples | None = None,
        again: bool | None = None,
    ) -> Tensor | dict[str, Tensor]:
        """Return the loss of a batch.

        In evaluation mode, and without gradients, this is plain InfoNCE of the given features: no weights, no samples of other
        processes, no change of state.

        Args:
            image_features: unit norm, shape (B, D); with F added images shape ((1 + F) B, D), each image followed by the
                images added to it.
            text_features: unit norm, shape (B, D); with E added captions shape ((1 + E) B, D), each caption followed by
                the captions added to it, as the wrapped loader yields them.
            logit_scale: factor of the cosines, exp already applied.
            logit_bias: added to every logit.
            output_dict: return ``{"contrastive_loss": loss}``.
            samples: the samples of the batch: ids, or labels if the terms are tables for a stream (`LossTerms.for_stream`);
                None calls `batch_samples`.
            again: whether the batch is the same as in the previous call, as in gradient accumulation. An anchor loss then does
                not update its state a second time. None asks `batch_samples`, if it counts the batches.

        Raises:
            InputError: samples are needed but missing, or do not fit the batch or the data set; or the batch is a single pair,
                which has no incorrect pair.
        """
        if samples is not None and not isinstance(samples, BatchSamples):
            raise InputError(f"samples must be BatchSamples, got {type(samples).__name__}. Pass BatchSamples(ids=ids).")
        inputs = Inputs(image_features, text_features, logit_scale, logit_bias)
        if self.training and torch.is_grad_enabled():
            loss = self._training_loss(inputs, samples, again)
        else:
            if samples is not None and torch.is_grad_enabled() and image_features.requires_grad:
                warn(
                    "The loss is in evaluation mode, so it is plain InfoNCE without weights. Call loss.train() to train.",
                    stacklevel=2,
                )
            loss = self._evaluation_loss(inputs, samples)
        return {"contrastive_loss": loss} if output_dict else loss

    def _evaluation_loss(self, inputs: Inputs, samples: BatchSamples | None) -> Tensor:
        options: dict[str, Any] = {"backend": self.backend, "chunk_size": self.chunk_size, "text_anchors": self.text_anchors}
        # With as many added images as captions, only the samples tell a wrapped batch from a plain one.
        n = len(samples) if samples and self.added.images else len(inputs.x)
        if not len(inputs.x) == len(inputs.y) == n:
            inputs, extras = self.added.split(inputs, samples, Gathering())
            options |= extras
        return weighted_info_nce(*inputs, **options)

    def _training_loss(self, inputs: Inputs, samples: BatchSamples | None, again: bool | None) -> Tensor:
        if len(inputs.x) * self.world_size == 1 and not self.added.per_sample:
            raise InputError(
                "The batch is a single pair, which has no incorrect pair and teaches nothing. Use a larger batch size, or "
                "drop_last=True if this is the last batch."
            )
        n = len(inputs.x) // (1 + self.added.images)
        if samples is not None and len(samples) not in (0, n):
            raise InputError(f"The features are of {n} samples, samples= are {len(samples)}. Pass those of the same batch.")
        again = self._comes_again(samples) if again is None else again
        terms, anchor_loss = self.terms, self.anchor_loss
        needed = anchor_loss is not None or self.observer is not None or self.added.per_sample > 0
        needed = needed or terms.by_label or len(terms.per_sample()) > 0 or terms.scheduled
        if samples is None and self.batch_samples is not None and needed:
            samples = self.batch_samples()
        self.logged.clear()
        if self._begins and anchor_loss is not None:
            copy_from_first([*anchor_loss.parameters(), *anchor_loss.buffers()])
            self._begins = False
        if anchor_loss is None or isinstance(anchor_loss, StepTerms):
            return self._loss_from_terms(inputs, samples, again, plain=anchor_loss is None and terms.neutral)
        return self._loss_from_anchors(anchor_loss, inputs, samples, again)

    def _loss_from_terms(self, inputs: Inputs, samples: BatchSamples | None, again: bool, *, plain: bool) -> Tensor:
        observed = self.observer is not None and not again
        options: dict[str, Any] = {"backend": self.backend, "chunk_size": self.chunk_size, "text_anchors": self.text_anchors}
        options["reduction"] = "none" if observed else "mean"
        if self.added.per_sample:
            inputs, extras = self.added.split(inputs, samples, self._gathering)
            options |= extras
        x, y, scale, bias = inputs
        terms = None if plain else self._step_terms(inputs, samples, again)
        if self.world_size == 1 or self.ring:
            losses = weighted_info_nce(x, y, scale, bias, terms=terms, ring=self.world_size > 1, **options)
            everyone = Towers(x, y)
        else:
            everyone = Towers(x, y).map(self._gathering.features)
            # Every process has the same tables, so only per-sample fields are gathered.
            all_terms = None if terms is None else terms.map_samples(self._gathering.rows)
            if self.local_loss:
                candidates = Candidates(*everyone, all_terms, self.rank * len(x))
                losses = weighted_info_nce(x, y, scale, bias, terms=terms, candidates=candidates, **options)
            else:
                losses = weighted_info_nce(*everyone, scale, bias, terms=all_terms, gathered=True, **options)
        if self.anchor_loss is not None:
            self._finite.check(self.anchor_loss, losses, everyone, torch.as_tensor(scale))
        if not observed:
            return losses
        self._observe(self._step(inputs, samples, everyone), losses)
        return losses.mean()

    def _step_terms(self, inputs: Inputs, samples: BatchSamples | None, again: bool) -> LossTerms:
        """Return the terms of the samples of this process."""
        if not isinstance(self.anchor_loss, StepTerms):
            return self.batch_terms(samples, inputs.x)
        own = Towers(inputs.x, inputs.y)
        step = self._step(inputs, samples, own, alone=True)
        self.anchor_loss.begin(step.samples.index, again=again)
        terms = terms_of(self.anchor_loss, step)
        return terms if samples is None else terms.at(samples.progress)

    def _loss_from_anchors(self, loss: AnchorLoss, inputs: Inputs, samples: BatchSamples | None, again: bool) -> Tensor:
        """Return the mean loss of all anchors: the images and, with `text_anchors`, the texts."""
        own = Towers(inputs.x, inputs.y)
        step = self._step(inputs, samples, own if self.world_size == 1 else own.map(self._gathering.features))
        loss.begin(step.samples.candidates, again=again)
        sides = [side for side in anchors(step) if self.text_anchors or side.modality == "image"]
        losses = losses_of(loss, sides)
        self._finite.check(loss, losses, step.candidates, step.scale)
        if self.observer is not None and not again:
            self._observe(step, losses)
        return losses.mean()

    def _step(self, inputs: Inputs, samples: BatchSamples | None, everyone: Towers, *, alone: bool = False) -> Step:
        """Return the step of a batch; `everyone` are the features of all processes, or of this one if it is `alone`."""
        x, y, scale, bias = inputs
        n_samples = self.terms.n_samples if self.anchor_loss is None else self.anchor_loss.n_samples
        ids = moved(checked_ids(samples, len(x), n_samples), x.device).long()
        position, teacher = (None, None) if samples is None else (samples.position, samples.teacher)
        teacher = all_teacher = None if teacher is None else teacher.map(lambda rows: moved(rows, x.device))
        features, step_samples = everyone, StepSamples(ids, ids)
        if not alone and self.world_size > 1:
            all_ids = self._gathering.rows(ids)
            all_teacher = None if teacher is None else teacher.map(self._gathering.rows)
            if self.local_loss:
                features, step_samples = Towers(x, y), StepSamples(ids, all_ids, self.rank * len(x), self._gathering.rows)
            else:
                teacher, step_samples = all_teacher, StepSamples(all_ids, all_ids)
        clusters = None if self.anchor_loss is None else self.anchor_loss.clusters
        bias = None if bias is None else torch.as_tensor(bias, device=x.device)
        towers = features, everyone, torch.as_tensor(scale, device=x.device), bias
        of_run = position, clusters, teacher, all_teacher
        return Step(step_samples, *towers, *of_run, logged=self.logged, rank=self.rank, world_size=self.world_size)

    def _observe(self, step: Step, losses: Tensor) -> None:
        """Call the observer with the loss of each sample of all processes."""
        if self.ring:
            raise UnsupportedError("ring=True does not work with a sampler that observes the training. Leave ring out.")
        observer: Any = self.observer
        per_sample = losses.detach().float().view(-1, len(step.samples.index)).mean(0)
        observer(step.detached(), step.samples.gather(per_sample))

    def _comes_again(self, samples: BatchSamples | None) -> bool:
        """Return whether the loader has yielded no new batch since the previous call."""
        count = getattr(self.batch_samples, "handed_out", None) if samples is None else None
        previous, self._handed_out = self._handed_out, count
        return count is not None and count == previous
