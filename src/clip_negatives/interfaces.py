"""The data that flows between the stages, and the three kinds of plugin.

data set x encoder -> features -> `Clusterer` -> `Clusters` -> `NegativeSampler` and `LossWeighting` -> the loss.

N samples, D feature size, K clusters, B batch size of one process. The *frozen* similarity r_ij comes from the features that
were clustered, the *live* similarity s_ij from the model in training; do not confuse them. All dataclasses here are immutable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from clip_negatives.errors import InputError
from clip_negatives.terms import LossTerms as LossTerms

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from clip_negatives.anchor_loss import AnchorLoss


@dataclass(frozen=True, slots=True, eq=False)
class Clustering:
    """Clusters of one modality.

    Attributes:
        labels: cluster of each sample, int64, shape (N,), 0 .. K-1, no cluster empty; shape (0,) if the labels come with the
            samples of a stream.
        centroids: float32, shape (K, D), in the space of the features.
        counts: size of each cluster, int64, shape (K,), if there are no labels; else None.
    """

    labels: Tensor
    centroids: Tensor
    counts: Tensor | None = None

    @property
    def n_samples(self) -> int:
        """Return N."""
        return int(self.labels.shape[0]) if self.counts is None else int(self.counts.sum())

    @property
    def n_clusters(self) -> int:
        """Return K."""
        return int(self.centroids.shape[0])

    def sizes(self) -> Tensor:
        """Return the number of samples of each cluster, int64, shape (K,)."""
        return self.labels.bincount(minlength=self.n_clusters) if self.counts is None else self.counts


@dataclass(frozen=True, slots=True, eq=False)
class NearestClusters:
    """The most similar clusters of each cluster, used if a K x K table would be too large.

    Attributes:
        clusters: int32 or int64, shape (K, m): the cluster itself, then the others by falling similarity.
        cosines: cosine between the centroids, float32, shape (K, m), -1 .. 1; 1 in the first column.
        rest: mean cosine of all unlisted pairs of clusters.
    """

    clusters: Tensor
    cosines: Tensor
    rest: float


@dataclass(frozen=True, slots=True, eq=False)
class Clusters:
    """Image and text clustering of one data set, and the similarity between clusters.

    Attributes:
        image: clustering of the N images.
        text: clustering of the N texts.
        image_similarity: cosine between image centroids, float32, shape (K_image, K_image), -1 .. 1, diagonal 1. Shape (0, 0)
            above `clip_negatives.clustering.similarity.DENSE_UP_TO` clusters, where `image_nearest` replaces it.
        text_similarity: the same between text centroids, shape (K_text, K_text).
        image_features: frozen unit-norm features, float32 or float16, shape (N, D_image), possibly memory-mapped; None if
            they were not kept.
        text_features: the same for the texts, shape (N, D_text).
        texts: id of the text of each sample, equal for equal texts, int64, shape (N,); None if the texts are unknown.
        groups: id of the item that each sample shows, int64, shape (N,); None if the data do not name items.
        image_nearest: nearest clusters of each image cluster, if there are too many for a table; else None.
        text_nearest: the same for the text clusters.
    """

    image: Clustering
    text: Clustering
    image_similarity: Tensor
    text_similarity: Tensor
    image_features: Tensor | None = None
    text_features: Tensor | None = None
    texts: Tensor | None = None
    groups: Tensor | None = None
    image_nearest: NearestClusters | None = None
    text_nearest: NearestClusters | None = None

    @property
    def n_samples(self) -> int:
        """Return N."""
        return self.image.n_samples

    @property
    def neighbours(self) -> tuple[Tensor | None, Tensor | None]:
        """Return the nearest image clusters and the nearest text clusters, shape (K, m); None where there is a table."""
        image, text = (None if nearest is None else nearest.clusters for nearest in (self.image_nearest, self.text_nearest))
        return image, text

    def similarity_of(self, modality: str, needed_by: str) -> Tensor:
        """Return the similarity between all "image" or all "text" clusters, shape (K, K).

        Raises:
            InputError: there are too many clusters for a table. The message begins with `needed_by`.
        """
        table = self.image_similarity if modality == "image" else self.text_similarity
        if len(table) == 0:
            raise InputError(
                f"{needed_by} needs a table of all pairs of {modality} clusters, too large for {self.image.n_clusters} image "
                f"and {self.text.n_clusters} text clusters. Make fewer, for example with: "
                "clip-negatives prepare --clusterer kmeans:n_clusters=4096."
            )
        return table

    def features_of(self, modality: str, needed_by: str) -> Tensor:
        """Return the frozen features of the "image" or the "text", shape (N, D).

        Raises:
            InputError: the features were not kept. The message begins with `needed_by`.
        """
        features = self.image_features if modality == "image" else self.text_features
        if features is None and self.image.counts is not None:
            raise InputError(f"{needed_by} needs {modality} features, which a labels folder lacks. Use the clusters folder.")
        if features is None:
            raise InputError(
                f"{needed_by} needs {modality} features, which were not kept. Run clip-negatives prepare --keep-features."
            )
        return features


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
    """

    n_samples: int
    batch_size: int
    rank: int = 0
    world_size: int = 1
    seed: int = 0
    clusters: Clusters | None = None
    native_batches: Iterable[list[int]] | None = None
    captions: Sequence[str] | None = None

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

Optional methods of the clusterer:

* ``check_samples(n_samples)`` raises an error of `clip_negatives.errors` if it cannot cluster this number of samples. It
  is called before any sample is encoded.
* ``fit_parallel(features, *, generator, checkpoint: Path | None)`` clusters on all processes of the default process group.
  Every process calls it with the same features (memory-mapped, on a shared disk) and a generator in the same state, and gets
  the same `Clustering`. It may store files for resuming in the folder `checkpoint`, on the shared disk. Files that are already
  there come from the same features, options and generator state, but maybe from another number of processes. With one process
  there is no process group.
"""

NegativeSamplerFactory = Callable[..., NegativeSampler]
"""``factory(context: SamplingContext, **options) -> NegativeSampler``.

Optional attributes: ``requires_clusters`` (default True); ``keeps_native_order`` (default False): the sampler yields
``context.native_batches`` unchanged, so it also works with streams, whose batches cannot be chosen.
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
