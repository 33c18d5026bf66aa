"""The data that flows between the stages, and the three kinds of plugin.

data set x encoder -> features -> `Clusterer` -> `Clusters` -> `NegativeSampler` and `LossWeighting` -> the loss.

N samples, D feature size, K clusters, B batch size of one process. The *frozen* similarity r_ij comes from the features that
were clustered, the *live* similarity s_ij from the model in training; do not confuse them. All dataclasses here are immutable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from clip_negatives.clusters import Clustering as Clustering
from clip_negatives.clusters import Clusters as Clusters
from clip_negatives.clusters import NearestClusters as NearestClusters
from clip_negatives.errors import InputError
from clip_negatives.terms import LossTerms as LossTerms

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from clip_negatives.anchor_loss import AnchorLoss
    from clip_negatives.step import Step


@dataclass(frozen=True, slots=True, eq=False)
class IncorrectPairs:
    """Explicit incorrect pairs: an image with the text of another sample.

    Attributes:
        image_index: sample of the image, int64, shape (M,).
        text_index: sample of the text, int64, shape (M,), never equal to `image_index`.
    """

    image_index: Tensor
    text_index: Tensor

    def __len__(self) -> int:
        """Return the number of pairs, M."""
        return int(self.image_index.shape[0])


@dataclass(frozen=True, slots=True, eq=False)
class SamplingContext:
    """Data, batch size, processes and seed of the training run that a sampler draws batches for.

    Attributes:
        n_samples: N.
        batch_size: samples of one batch of one process, B.
        rank: rank of this process, 0 .. world_size-1.
        world_size: number of processes that train together; the loss contrasts all samples of a step, over all processes.
        seed: seed of the run, equal on all ranks.
        clusters: the clusters of the data; None only for a sampler with ``requires_clusters = False``.
        native_batches: batches that the training loop would draw without a sampler, in its order; None outside a loop.
        captions: text of each sample; None if the texts are unknown.
        epochs: number of epochs of the training; None if unknown.
    """

    n_samples: int
    batch_size: int
    rank: int = 0
    world_size: int = 1
    seed: int = 0
    clusters: Clusters | None = None
    native_batches: Iterable[list[int]] | None = None
    captions: Sequence[str] | None = None
    epochs: int | None = None

    @property
    def step_size(self) -> int:
        """Return the number of samples of one step over all processes, world_size * B."""
        return self.batch_size * self.world_size

    @property
    def steps(self) -> int:
        """Return the number of whole steps of an epoch of all samples."""
        return self.n_samples // self.step_size

    @classmethod
    def of(cls, clusters: Clusters | None, batch_size: int, *, n_samples: int | None = None, **rest: Any) -> SamplingContext:
        """Return the context for the samples of `clusters`.

        Args:
            clusters: the clusters of the data.
            batch_size: samples of one batch of one process.
            n_samples: number of samples; needed only without clusters.
            **rest: the remaining attributes.

        Raises:
            InputError: neither clusters nor a number of samples are given.
        """
        if n_samples is None:
            if clusters is None:
                raise InputError("A sampling context needs clusters or n_samples and has neither. Pass one of the two.")
            n_samples = clusters.n_samples
        return cls(n_samples, batch_size, clusters=clusters, **rest)


@runtime_checkable
class Clusterer(Protocol):
    """Groups features into clusters."""

    def fit(self, features: Tensor, *, generator: torch.Generator) -> Clustering:
        """Cluster `features` (float, shape (N, D), unit norm); all randomness comes from `generator`."""
        ...


@runtime_checkable
class NegativeSampler(Protocol):
    """Chooses the incorrect pairs that a model sees: which samples share a batch, and which texts are exchanged.

    A batch sampler of `torch.utils.data.DataLoader`: iterating yields the B sample ids of each batch of this rank.
    """

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the batches of the current epoch, starting at the position that `load_state_dict` restored."""
        ...

    def __len__(self) -> int:
        """Return the exact number of batches of an epoch on this rank."""
        ...

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (0, 1, ...) and start at its first batch."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the state for resuming at the next batch: numbers and strings only."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a `state_dict`."""
        ...

    def incorrect_pairs(self, per_image: int, generator: torch.Generator) -> IncorrectPairs:
        """Draw up to `per_image` texts of other samples for each image, for explicit incorrect pairs."""
        ...


@runtime_checkable
class PairsForImages(Protocol):
    """Optional method of a `NegativeSampler`: draws pairs for a subset of the images, which limits the memory."""

    def incorrect_pairs_of(self, images: Tensor, per_image: int, generator: torch.Generator) -> IncorrectPairs:
        """Draw pairs as `incorrect_pairs` does, for the given images only (int64, shape (M,), all different)."""
        ...


@runtime_checkable
class ExtraTextSampler(Protocol):
    """Optional methods of a `NegativeSampler`: adds texts to each batch, as further negatives of its images.

    The added texts are encoded with the texts of the batch. An added text is a negative of every image of the step, unless it
    equals the text of that image. Added texts are never anchors themselves, and need not come from the data set.

    A sampler that adds texts or images may have two more attributes:

    * ``log_weight`` (default 0.0): log-weight of the added texts and images as negatives; -inf removes them.
    * ``texts_are_positive`` (default False): the added texts are further correct texts of their image. They are positives of
      this image, and negatives of the other images.

    Attributes:
        texts_per_image: E, texts added for each sample; 0 adds none.
    """

    texts_per_image: int

    def extra_texts(self, batch: Sequence[int]) -> list[str]:
        """Return E texts for each sample of a batch, grouped by sample."""
        ...


@runtime_checkable
class ObservingSampler(Protocol):
    """Optional methods of a `NegativeSampler`: learns from the steps of the training, as in mining or curricula by loss.

    `clip_negatives.learning_sampler.LearningSampler` has all but `observe`. What a sampler learns in an epoch must not change
    the batches of this epoch: a loader reads ahead, and a stopped epoch must continue with the same batches.
    """

    def observe(self, step: Step, losses: Tensor) -> None:
        """Learn from a step without gradients, and from the loss of each of its G samples, float32, shape (G,).

        ``losses[i]`` is that of the sample ``step.samples.candidates[i]``. All processes get the same values.
        Called once for each batch, after its loss; in gradient accumulation at the first of the repeated calls.
        """
        ...

    def learned(self) -> dict[str, Tensor]:
        """Return what was learned, for checkpoints: tensors by name."""
        ...

    def load_learned(self, learned: Mapping[str, Tensor]) -> None:
        """Continue with what `learned` returned."""
        ...


@runtime_checkable
class ExtraImageSampler(Protocol):
    """Optional methods of a `NegativeSampler`: adds images to each batch, as further negatives of its texts.

    The workers of the loader read the added images like any sample. An added image is a negative of every text of the step,
    unless its own text equals that text. Added images are never anchors themselves. To add their texts as well, the sampler
    is also an `ExtraTextSampler`.

    Attributes:
        images_per_image: F, images added for each sample; 0 adds none.
    """

    images_per_image: int

    def extra_images(self, batch: Sequence[int]) -> list[int]:
        """Return the sample ids of F images for each sample of a batch, grouped by sample."""
        ...


@runtime_checkable
class OwnTextSampler(Protocol):
    """Optional method of a `NegativeSampler`: replaces the texts of the samples, for example by a new one in each epoch."""

    def own_texts(self, batch: Sequence[int]) -> list[str]:
        """Return the text of each sample; it depends only on seed, epoch and sample."""
        ...


@runtime_checkable
class LossWeighting(Protocol):
    """Weights the incorrect pairs. Called once for each clustering, never inside a step."""

    def __call__(self, clusters: Clusters) -> LossTerms | AnchorLoss:
        """Return loss terms for the samples of `clusters`, or an anchor loss if terms cannot express the idea.

        The kernels sum `LossTerms` without a B x B matrix; a `clip_negatives.anchor_loss.AnchorLoss` gets all logits.
        """
        ...


ClustererFactory = Callable[..., Clusterer]
"""``factory(**options) -> Clusterer``.

Optional method of the clusterer: ``check_samples(n_samples)`` raises an error of `clip_negatives.errors` if it cannot cluster
this number of samples. It is called before any sample is encoded.
"""

NegativeSamplerFactory = Callable[..., NegativeSampler]
"""``factory(context: SamplingContext, **options) -> NegativeSampler``.

Optional attributes: ``requires_clusters`` (default True); ``keeps_native_order`` (default False): the sampler yields
``context.native_batches`` unchanged, so it also works with streams, whose batches cannot be chosen. Optional attribute of the
sampler: ``repeats`` (default False): a sample may occur in several steps of an epoch, but never twice in one step.
"""

LossWeightingFactory = Callable[..., LossWeighting]
"""``factory(**options) -> LossWeighting``.

Optional attributes: ``requires_clusters`` (default True); ``requires_logit_bias`` (default False): the weighting trains a model
with a logit bias, open_clip's ``--siglip``.

Optional attributes of the returned weighting:

* ``requires_only_ids`` (default False): it uses ``Clusters.texts`` or ``Clusters.groups`` alone. If the sampler needs no
  clusters either, a training on a table encodes and clusters nothing.
* ``requires_fixed_temperature`` (default False): training with a learned temperature is an error. The error names the option
  ``learned_temperature`` of the weighting, if there is one, as the way to allow this training.
"""
