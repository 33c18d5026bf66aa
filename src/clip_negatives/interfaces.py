"""The data that flows between the stages, and the three kinds of plugin.

data set x encoder -> features -> `Clusterer` -> `Clusters` -> `NegativeSampler` and `LossWeighting` -> the loss.

N samples, D feature size, K clusters, B batch size of one process. Two similarities are kept apart everywhere: the *frozen*
one (of the features that were clustered, r_ij) and the *live* one (what the model being trained thinks now, s_ij). All that
this module carries is frozen.
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

    from clip_negatives.anchors import AnchorLoss


@dataclass(frozen=True, slots=True, eq=False)
class Clustering:
    """Hold the clusters of one modality.

    Attributes:
        labels: cluster of each sample, int64, shape (N,), 0 .. K-1, no cluster empty; shape (0,) where they come with the
            samples of a stream and `counts` stands for them.
        centroids: float32, shape (K, D), in the space of the features.
        counts: samples of each cluster, int64, shape (K,), where there are no labels; else None.
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
class Nearest:
    """List the most similar clusters of each cluster, where there are too many for a table of all.

    Attributes:
        clusters: int32 or int64, shape (K, m), each cluster itself first, then by falling similarity.
        cosines: cosine between the centroids, float32, shape (K, m), -1 .. 1; 1 in the first column.
        rest: mean cosine of two clusters of which the first does not list the second.
    """

    clusters: Tensor
    cosines: Tensor
    rest: float


@dataclass(frozen=True, slots=True, eq=False)
class Clusters:
    """Hold the image and the text clustering of one data set and how similar the clusters are.

    Attributes:
        image: clustering of the N images.
        text: clustering of the N texts.
        image_similarity: cosine between image centroids, float32, shape (K_image, K_image), -1 .. 1, diagonal 1.
            Of more clusters than `clip_negatives.similarity.DENSE_UP_TO` there is no table, shape (0, 0), but `image_nearest`.
        text_similarity: cosine between text centroids, float32, shape (K_text, K_text), -1 .. 1, diagonal 1; likewise.
        image_features: frozen unit-norm features, float32 or float16, shape (N, D_image), possibly memory-mapped; None if
            they were not kept.
        text_features: the same of the texts, shape (N, D_text).
        texts: a number for each sample, the same for equal texts, int64, shape (N,); None where the texts are not known.
        groups: a number for each sample, the same for samples that the data say show the same item; None where they do not.
        image_nearest: the most similar clusters of each image cluster, where there are too many for a table; else None.
        text_nearest: the same of the text clusters.
    """

    image: Clustering
    text: Clustering
    image_similarity: Tensor
    text_similarity: Tensor
    image_features: Tensor | None = None
    text_features: Tensor | None = None
    texts: Tensor | None = None
    groups: Tensor | None = None
    image_nearest: Nearest | None = None
    text_nearest: Nearest | None = None

    @property
    def n_samples(self) -> int:
        """Return N."""
        return self.image.n_samples

    @property
    def listed(self) -> tuple[Tensor | None, Tensor | None]:
        """Return the clusters that each image and each text cluster lists, None where there is a table of all."""
        lists = [None if nearest is None else nearest.clusters for nearest in (self.image_nearest, self.text_nearest)]
        return lists[0], lists[1]

    def similarity_of(self, modality: str, who: str) -> Tensor:
        """Return how similar the clusters of the "image" or the "text" are, all to all, shape (K, K).

        Raises:
            InputError: there are too many clusters for a table; `who` asks for it.
        """
        table = self.image_similarity if modality == "image" else self.text_similarity
        if len(table) == 0:
            raise InputError(
                f"Expected fewer {modality} clusters for {who}, comparing every two, got {self.image.n_clusters} image and "
                f"{self.text.n_clusters} text clusters. Prepare with fewer: --clusterer kmeans:n_clusters=4096."
            )
        return table

    def features_of(self, modality: str, who: str) -> Tensor:
        """Return the frozen features of the "image" or the "text", shape (N, D).

        Raises:
            InputError: they were not kept; `who` asks for them.
        """
        features = self.image_features if modality == "image" else self.text_features
        if features is None and self.image.counts is not None:
            raise InputError(
                f"Expected clusters with {modality} features for {who}, got labels that come with a stream, without. "
                "Name the clusters folder."
            )
        if features is None:
            raise InputError(
                f"Expected clusters with {modality} features for {who}, got clusters without. Prepare them with features kept."
            )
        return features


@dataclass(frozen=True, slots=True, eq=False)
class IncorrectPairs:
    """List explicit incorrect pairs: an image, and the text of another sample that is put in its own text's place.

    Attributes:
        image_index: sample whose image it is, int64, shape (M,).
        text_index: sample whose text is put beside it, int64, shape (M,), never equal to `image_index`.
    """

    image_index: Tensor
    text_index: Tensor

    def __len__(self) -> int:
        """Return the number of pairs, M."""
        return int(self.image_index.shape[0])


@dataclass(frozen=True, slots=True, eq=False)
class SamplingContext:
    """Tell a sampler what it samples for.

    Attributes:
        n_samples: N.
        batch_size: samples of one batch of one process, B.
        rank: this process, 0 .. world_size-1.
        world_size: processes that train together; the loss contrasts the batches of one step of all of them.
        seed: seed of the run; the same on all ranks.
        clusters: the clusters of the data; None only for a sampler that declares ``requires_clusters = False``.
        native_batches: the batches that the training loop would have drawn by itself, in its own order; None outside one.
        captions: the text of each sample; None where the texts are not at hand.
    """

    n_samples: int
    batch_size: int
    rank: int = 0
    world_size: int = 1
    seed: int = 0
    clusters: Clusters | None = None
    native_batches: Iterable[list[int]] | None = None
    captions: Sequence[str] | None = None


@runtime_checkable
class Clusterer(Protocol):
    """Group features."""

    def fit(self, features: Tensor, *, generator: torch.Generator) -> Clustering:
        """Cluster `features` (float, shape (N, D), unit norm); all randomness comes from `generator`."""
        ...


@runtime_checkable
class NegativeSampler(Protocol):
    """Decide which incorrect pairs a model sees: which samples share a batch, and which texts are exchanged.

    It is a `torch.utils.data.DataLoader` batch sampler. Iterating yields the B sample indices of each batch of this rank.
    """

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the batches of the current epoch, from where `load_state_dict` left off."""
        ...

    def __len__(self) -> int:
        """Return the exact number of batches of an epoch on this rank."""
        ...

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (0, 1, ...) and start at its first batch."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what resumes the epoch at the next batch not yet yielded: numbers and strings only."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        ...

    def incorrect_pairs(self, per_image: int, generator: torch.Generator) -> IncorrectPairs:
        """Draw up to `per_image` texts of other samples for each image, for explicit incorrect pairs."""
        ...


@runtime_checkable
class PairsOfSome(Protocol):
    """What a `NegativeSampler` may have as well, so that pairs of a data set of any size are drawn a part at a time."""

    def incorrect_pairs_of(self, images: Tensor, per_image: int, generator: torch.Generator) -> IncorrectPairs:
        """Do what `incorrect_pairs` does for some images (int64, shape (M,), each once) alone."""
        ...


@runtime_checkable
class ExtraTexts(Protocol):
    """What a `NegativeSampler` has as well where images are contrasted with texts beyond those of their batch.

    The texts are encoded with those of the batch. Every image of the step has all of them among its incorrect texts, but for
    those that are its own text, and no image is looked for by them. They need not be texts of the data.

    Attributes:
        texts_per_image: E, how many come with each sample, at least 1.
    """

    texts_per_image: int

    def extra_texts(self, batch: Sequence[int]) -> list[str]:
        """Return E texts for each sample of a batch, those of one sample side by side."""
        ...


@runtime_checkable
class LossWeighting(Protocol):
    """Decide how much each incorrect pair counts. Called once for each clustering, never inside a step."""

    def __call__(self, clusters: Clusters) -> LossTerms | AnchorLoss:
        """Return the terms for the samples of `clusters`, or, where no terms say it, a loss of its own for each step.

        Terms are summed by kernels that hold no B x B; an `clip_negatives.anchors.AnchorLoss` is handed all logits.
        """
        ...


ClustererFactory = Callable[..., Clusterer]
"""``factory(**options) -> Clusterer``.

What it builds may have ``check_samples(n_samples)``, which refuses a number of samples with an error of
`clip_negatives.errors` before anything is encoded; and ``fit_parallel(features, *, generator, checkpoint: Path | None)``,
which clusters on all processes of the default process group at once: each calls it with the same features, all of them
(memory-mapped, from a disk that they share), and a generator in the same state, and gets the same `Clustering`. In the folder
`checkpoint`, on that disk too, it may keep what a run that was stopped goes on with: what is there is of the same features,
options and generator, perhaps of another number of processes. On one process it is called without a process group.
"""

NegativeSamplerFactory = Callable[..., NegativeSampler]
"""``factory(context: SamplingContext, **options) -> NegativeSampler``.

Attributes it may have: ``requires_clusters`` (default True); ``keeps_native_order`` (default False), which says that the
batches are ``context.native_batches`` unchanged, so that it serves streams, whose batches nobody can choose.
"""

LossWeightingFactory = Callable[..., LossWeighting]
"""``factory(**options) -> LossWeighting``.

Attributes it may have: ``requires_clusters`` (default True); ``requires_logit_bias`` (default False), which says that it
trains a model with a logit bias, open_clip's ``--siglip``.
"""
