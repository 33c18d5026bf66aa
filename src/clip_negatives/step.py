"""What travels with a batch from the loader to the loss, and what a plugin sees of a training step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from clip_negatives.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from clip_negatives.clusters import Clusters

UNKNOWN_PROGRESS = (
    "The weights change during the training, and the progress of the training is unknown. Use attach(..., epochs=EPOCHS), or "
    "pass loss(..., samples=samples.at(step, total_steps))."
)


@dataclass(frozen=True, slots=True, eq=False)
class Position:
    """Position of a batch in the training.

    Attributes:
        epoch: epoch of the batch, from 0.
        step: number of training steps before this one, over all epochs.
        total_steps: number of steps of the whole training; None if unknown.
        progress: ``step / total_steps``, float32, shape (), 0 .. 1; None if the number of steps is unknown. It is a tensor, so
            that a compiled loss is not compiled again when it changes.
    """

    epoch: int
    step: int
    total_steps: int | None = None
    progress: Tensor | None = None

    @classmethod
    def of(cls, epoch: int, step: int, total_steps: int | None = None) -> Position:
        """Return the position, with its progress."""
        import torch

        share = None if total_steps is None else torch.tensor(min(1.0, step / max(1, total_steps)), dtype=torch.float32)
        return cls(epoch, step, total_steps, share)


class Towers(NamedTuple):
    """Features of both modalities, of the same samples in the same order.

    Attributes:
        image: shape (B, D).
        text: shape (B, D), or another length of the features if the towers are frozen encoders.
    """

    image: Tensor
    text: Tensor

    def of(self, modality: str) -> Tensor:
        """Return the features of the "image" or the "text"; InputError for another modality."""
        if modality not in self._fields:
            raise InputError(f"The modality must be 'image' or 'text', got {modality!r}.")
        return self.image if modality == "image" else self.text

    def map(self, change: Callable[[Tensor], Tensor]) -> Towers:
        """Return the features of both modalities after `change`."""
        return Towers(change(self.image), change(self.text))


@dataclass(frozen=True, slots=True, eq=False)
class BatchSamples:
    """Identity of the samples of one batch: their ids or, in a stream, their clusters.

    Attributes:
        ids: sample of each pair, counted from 0 in the data set that was clustered, int64, shape (B,).
        labels: image cluster and text cluster of each pair, int64, shape (B, 2), -1 if unknown. For streams without ids.
        text_ids: ids of the captions of each sample, int64, shape (B, 1 + E + F): the sample's own caption, the E captions
            that a sampler added, the captions of the F images that it added. Equal captions have equal ids. None without
            additions.
        position: epoch and step of the batch; None if unknown. Schedules of weights need its progress.
        teacher: features of the same pairs by another model, such as a moving average of the trained one, unit norm, each of
            shape (B, D'); None without a teacher.

    Examples:
        >>> import torch
        >>> first, second = BatchSamples(ids=torch.tensor([3, 1])), BatchSamples(ids=torch.tensor([0, 2]))
        >>> BatchSamples.concatenate([first, second]).ids
        tensor([3, 1, 0, 2])
    """

    ids: Tensor | None = None
    labels: Tensor | None = None
    text_ids: Tensor | None = None
    position: Position | None = None
    teacher: Towers | None = None

    @property
    def progress(self) -> Tensor | None:
        """Return the share of the training before this batch, float32, shape (), 0 .. 1; None if unknown."""
        return None if self.position is None else self.position.progress

    def __len__(self) -> int:
        """Return B."""
        return next((len(part) for part in self), 0)

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the tensors that are not None, each with B rows: Lightning reads the batch size from them."""
        return (part for part in (self.ids, self.labels, self.text_ids) if part is not None)

    def to(self, device: torch.device | str) -> BatchSamples:
        """Return the same samples on `device`."""
        return self._map(lambda part: part.to(device, non_blocking=True))

    def pin_memory(self) -> BatchSamples:
        """Return the same samples in pinned memory; `torch.utils.data.DataLoader` calls this."""
        return self._map(lambda part: part.pin_memory())

    @classmethod
    def concatenate(cls, batches: Sequence[BatchSamples]) -> BatchSamples:
        """Return several batches as one, in order; the same attributes must be set in all batches.

        The position is that of the first batch.
        """
        import torch

        columns = zip(*((batch.ids, batch.labels, batch.text_ids) for batch in batches), strict=True)
        present = ([part for part in column if part is not None] for column in columns)
        ids, labels, text_ids = (torch.cat(parts) if parts else None for parts in present)
        position = next((batch.position for batch in batches), None)
        teachers = [batch.teacher for batch in batches if batch.teacher is not None]
        teacher = Towers(*map(torch.cat, zip(*teachers, strict=True))) if teachers else None
        return cls(ids, labels, text_ids, position, teacher)

    def at(self, step: int, total_steps: int | None = None, *, epoch: int = 0) -> BatchSamples:
        """Return the same samples at this step of the training, see `Position`."""
        return dataclasses.replace(self, position=Position.of(epoch, step, total_steps))

    def with_teacher(self, image_features: Tensor, text_features: Tensor) -> BatchSamples:
        """Return the same samples with the features of a teacher, unit norm, each of shape (B, D').

        Raises:
            InputError: the two have different shapes, or not B rows.
        """
        shapes = tuple(image_features.shape), tuple(text_features.shape)
        if shapes[0] != shapes[1] or len(shapes[0]) != 2 or len(self) not in (0, shapes[0][0]):
            raise InputError(
                f"The features of a teacher must both have shape ({len(self)}, D), got {shapes[0]} and {shapes[1]}."
            )
        return dataclasses.replace(self, teacher=Towers(image_features.detach(), text_features.detach()))

    def _map(self, change: Callable[[Tensor], Tensor]) -> BatchSamples:
        ids, labels, text_ids = (None if part is None else change(part) for part in (self.ids, self.labels, self.text_ids))
        position = self.position
        if position is not None and position.progress is not None:
            position = dataclasses.replace(position, progress=change(position.progress))
        return BatchSamples(ids, labels, text_ids, position, None if self.teacher is None else self.teacher.map(change))


def _identity(rows: Tensor) -> Tensor:
    return rows


@dataclass(frozen=True, slots=True, eq=False)
class StepSamples:
    """Samples of the anchors and candidates of one step.

    Attributes:
        index: sample of each anchor, int64, shape (B,).
        candidates: sample of each candidate, int64, shape (G,).
        offset: the positive of anchor i is candidate ``offset + i``.
        gather: returns the rows of all processes in the order of their ranks, without gradients; the identity if every process
            has all anchors.
    """

    index: Tensor
    candidates: Tensor
    offset: int = 0
    gather: Callable[[Tensor], Tensor] = _identity
    _frozen: dict[Any, tuple[Any, Tensor]] = field(default_factory=dict, init=False, repr=False)  # see `frozen_similarity`


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """All that a plugin may see of a training step: the samples of the step, the live features, and the place in the training.

    B anchors are contrasted with G candidates. With one process, or a global loss, the candidates are the anchors. With
    ``local_loss``, the anchors are from this process and the candidates from all processes.

    Attributes:
        samples: samples of anchors and candidates.
        features: live features of the anchors, unit norm, differentiable, each of shape (B, D).
        candidates: live features of the candidates, each of shape (G, D); gradients flow as the loss gathers them.
        scale: factor of the cosines, one element.
        bias: added to every logit, one element; None is 0.
        position: epoch and step; None if unknown.
        clusters: the current clusters, on the CPU; None if they are unknown.
        teacher: the teacher's features of the anchors, see `BatchSamples.teacher`; None without a teacher.
        teacher_candidates: the teacher's features of the candidates; None without a teacher.
        logged: figures of the step by name, see `log`.
        rank: rank of this process.
        world_size: number of processes.
    """

    samples: StepSamples
    features: Towers
    candidates: Towers
    scale: Tensor
    bias: Tensor | None = None
    position: Position | None = None
    clusters: Clusters | None = None
    teacher: Towers | None = None
    teacher_candidates: Towers | None = None
    logged: dict[str, Tensor] = field(default_factory=dict)
    rank: int = 0
    world_size: int = 1

    @property
    def progress(self) -> Tensor:
        """Return the share of the training before this step, float32, shape (), 0 .. 1.

        Raises:
            InputError: it is unknown.
        """
        progress = None if self.position is None else self.position.progress
        if progress is None:
            raise InputError(UNKNOWN_PROGRESS)
        return progress

    def detached(self) -> Step:
        """Return the step without gradients."""
        detach = [part.map(lambda rows: rows.detach()) for part in (self.features, self.candidates)]
        bias = None if self.bias is None else self.bias.detach()
        return dataclasses.replace(self, features=detach[0], candidates=detach[1], scale=self.scale.detach(), bias=bias)

    def frozen(self, modality: str, *, candidates: bool = False) -> Tensor:
        """Return the frozen features of the anchors, or of the candidates, on the device of the live features.

        After re-clustering with the model (``--refresh-every``), they are features of the model, of another length and space.

        Args:
            modality: "image" or "text".
            candidates: return those of the candidates.

        Returns:
            float32, unit norm, shape (B, D') or (G, D').

        Raises:
            InputError: the clusters or their features are missing.
        """
        if self.clusters is None:
            raise InputError("This weighting needs the clusters, which are missing. Use a clusters folder.")
        if modality not in Towers._fields:
            raise InputError(f"The modality must be 'image' or 'text', got {modality!r}.")
        features = self.clusters.features_of(modality, "This weighting")
        rows = self.samples.candidates if candidates else self.samples.index
        return features[rows.to(features.device)].to(self.features.image.device).float()

    def taught(self, modality: str, *, candidates: bool = False) -> Tensor:
        """Return the teacher's features of the anchors, or of the candidates, without gradients.

        Args:
            modality: "image" or "text".
            candidates: return those of the candidates.

        Returns:
            Unit norm, shape (B, D') or (G, D').

        Raises:
            InputError: there is no teacher.
        """
        towers = self.teacher_candidates if candidates else self.teacher
        if towers is None:
            raise InputError(
                "This weighting needs a teacher, and there is none. Use --ema 0.999 or --teacher CHECKPOINT of clip-negatives "
                "train or, in Lightning or your own loop, samples.with_teacher(image_features, text_features)."
            )
        return towers.of(modality)

    def log(self, name: str, value: Tensor | float) -> None:
        """Log a figure of this step, one number; logged as often as the loop logs, under ``clip_negatives/NAME``.

        A step sees images, then texts: give the figures of the two different names.
        """
        import torch

        figure = torch.as_tensor(value).detach()
        if figure.numel() != 1:
            raise InputError(f"The figure {name!r} must be one number, got shape {tuple(figure.shape)}. Log its mean.")
        self.logged[name] = figure.reshape(())
