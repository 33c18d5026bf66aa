"""Batches in which every image has reliable incorrect pairs, and explicit reliable pairs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clip_negatives.errors import InputError
from clip_negatives.interfaces import IncorrectPairs, SamplingContext
from clip_negatives.sampling import PlannedSampler, permutation, require_clusters, shuffle_rows
from clip_negatives.similarity import reliable_tables
from clip_negatives_cluster_similarity.pairs import draw_pairs
from clip_negatives_cluster_similarity.reliable import AT_ONCE, ReliableExchanges

KINDS = 2**26
"""Kinds of samples, image by text clusters, that are counted at once: 512 MiB of numbers."""

SWAPS = 64
"""Exchanges with other steps that are tried for a sample that has no reliable partner in its own."""


class ClusterSimilarity(PlannedSampler):
    """Spread every cluster evenly over the steps of an epoch and see to it that each image has reliable incorrect pairs.

    The exchange of the texts of samples i and j is *reliable* where their image clusters differ and the similarity of those
    clusters is under a threshold, and the same holds for their text clusters.

    From the paper (Tagami et al., WSCG 2024, abstract): images and texts are clustered, each for themselves, and the
    similarity between clusters decides which incorrect pairs are made. Our choice: both tables must allow the pair; the
    thresholds are quantiles by default; batches are stratified, because a sample then meets as few of its own kind as the
    data allow: samples are sorted by cluster and dealt out, so that each step gets its share of each cluster, in random
    order within clusters and anew each epoch. Sign: spreads what is similar, by the frozen similarity.

    Args:
        context: what to sample for; needs clusters.
        image_threshold: cosine at which two image clusters are too similar to exchange texts, -1 .. 1.
        image_quantile: the same as the share of all pairs that stays under the threshold, 0 .. 1; a given threshold goes
            first; none with no threshold asks for different clusters only.
        text_threshold: as `image_threshold`, for text clusters.
        text_quantile: as `image_quantile`, for text clusters.

    Raises:
        InputError: there are no clusters, a value is out of its range, or a sample has no reliable partner in the data.
        DataError: one step needs more samples than there are.
    """

    def __init__(
        self,
        context: SamplingContext,
        image_threshold: float | None = None,
        image_quantile: float | None = 0.95,
        text_threshold: float | None = None,
        text_quantile: float | None = 0.95,
    ) -> None:
        super().__init__(context, self._plan)
        clusters = require_clusters(context, "cluster_similarity")
        tables = reliable_tables(
            clusters,
            image_threshold=image_threshold,
            image_quantile=image_quantile,
            text_threshold=text_threshold,
            text_quantile=text_quantile,
        )
        self.reliable = ReliableExchanges(clusters.image.labels, clusters.text.labels, *tables, *clusters.listed)
        self._refuse(self.reliable.hopeless(), "the whole data set")

    def incorrect_pairs(self, per_image: int, generator: torch.Generator) -> IncorrectPairs:
        """Draw for each image up to `per_image` different texts whose exchange is reliable, uniformly among them.

        Images with fewer reliable texts than `per_image` get all they have.

        Raises:
            InputError: `per_image` is less than 1.
        """
        return self.incorrect_pairs_of(torch.arange(self.context.n_samples), per_image, generator)

    def incorrect_pairs_of(self, images: Tensor, per_image: int, generator: torch.Generator) -> IncorrectPairs:
        """Do the same for some images alone."""
        return draw_pairs(self.reliable, images, per_image, generator)

    def _plan(self, generator: torch.Generator) -> Tensor:
        """Deal the samples, sorted by cluster, out to the steps, then mend the steps in which a sample stands alone."""
        n, steps = self.context.n_samples, len(self)
        shuffled = permutation(n, generator)
        # The samples that fill no step are drawn before sorting: they would else always be of the last clusters.
        used, spare = shuffled[: steps * self.step_size], shuffled[steps * self.step_size :].clone()
        rounds = self._sorted_by_kind(used, spare).view(self.step_size, steps)
        del shuffled, used
        # Each round gives one sample to every step, in an order of its own.
        shuffle_rows(rounds, generator)
        # A rank takes a range of columns: unsorted, every rank gets every cluster.
        plan = rounds.T
        shuffle_rows(plan, generator)
        return self._mend(plan, spare, generator)

    def _sorted_by_kind(self, samples: Tensor, others: Tensor) -> Tensor:
        """Return the samples sorted by their kind (image and text cluster), those of one kind in the order they came in.

        `others` are the rest of the data set: what is counted in its own order needs no look-ups in memory at random.
        """
        image, text = self.reliable.image_labels, self.reliable.text_labels
        n_image, n_text = len(self.reliable.image_table), len(self.reliable.text_table)
        if n_image * n_text <= KINDS:
            return _sorted_by(samples, others, [(image, n_text), (text, 1)], n_image * n_text)
        # Too many kinds to count: first by text, and then, keeping that order, by image.
        by_text = _sorted_by(samples, others, [(text, 1)], n_text)
        return _sorted_by(by_text, others, [(image, 1)], n_image)

    def _mend(self, plan: Tensor, spare: Tensor, generator: torch.Generator) -> Tensor:
        """Exchange samples without a reliable partner in their step for others, from other steps or from the spare ones."""
        places = plan.new_empty(plan.numel() + len(spare))
        places[: plan.numel()].view_as(plan).copy_(plan)
        places[plan.numel() :] = spare
        pending = list(range(len(plan)))
        while pending:
            step = pending.pop()
            while (alone := self._alone(places, step)).numel():
                other = self._exchange(places, step, int(alone[0]), generator)
                if other is None:
                    self._refuse(alone, f"a step of {self.step_size} samples")
                else:
                    pending.append(other)  # it may have taken over a part of the trouble
        return places[: plan.numel()].view_as(plan)

    def _alone(self, places: Tensor, step: int) -> Tensor:
        """Return the samples of a step with no reliable partner there; the spare samples, after the last step, need none."""
        if step >= len(self):
            return places[:0]
        members = places[step * self.step_size : (step + 1) * self.step_size].long()
        return self.reliable.lonely(members, members)

    def _exchange(self, places: Tensor, step: int, sample: int, generator: torch.Generator) -> int | None:
        """Swap `sample` with one of another step such that fewer samples of the two stand alone; return that step, if any."""
        mine = int((places == sample).nonzero())
        for theirs in torch.randint(len(places), (SWAPS,), generator=generator).tolist():
            other: int = min(theirs // self.step_size, len(self))
            if other == step:
                continue
            before = self._alone(places, step).numel() + self._alone(places, other).numel()
            places[[mine, theirs]] = places[[theirs, mine]]
            if self._alone(places, step).numel() + self._alone(places, other).numel() < before:
                return other
            places[[mine, theirs]] = places[[theirs, mine]]
        return None

    def _refuse(self, samples: Tensor, where: str) -> None:
        if samples.numel():
            raise InputError(
                f"Expected every sample to have a reliable incorrect pair within {where}, got {samples.numel()} without "
                f"(first: sample {int(samples[0])}). Raise image_quantile or text_quantile (or the thresholds), use more "
                "clusters, or a larger batch."
            )


def _sorted_by(samples: Tensor, others: Tensor, parts: Sequence[tuple[Tensor, int]], n_keys: int) -> Tensor:
    """Return the samples sorted by a key, the sum of labels times factors, those of one key in the order they came in.

    A counting sort, a part at a time: besides the result it holds nothing that grows with the samples.
    """

    def keys(index: Tensor) -> Tensor:
        return torch.stack([labels[index] * factor for labels, factor in parts]).sum(dim=0)

    counts = torch.zeros(n_keys, dtype=torch.int64)
    for pieces in zip(*(labels.split(AT_ONCE) for labels, _ in parts), strict=True):
        together = torch.stack([piece * factor for piece, (_, factor) in zip(pieces, parts, strict=True)]).sum(dim=0)
        counts += together.bincount(minlength=n_keys)
    counts -= keys(others.long()).bincount(minlength=n_keys)
    free = counts.cumsum(0) - counts  # the next free place of each key
    result = torch.empty_like(samples)
    for part in samples.split(AT_ONCE):
        key, order = keys(part.long()).sort(stable=True)
        present, sizes = key.unique_consecutive(return_counts=True)
        before = sizes.cumsum(0) - sizes
        result[(free[present] - before).repeat_interleave(sizes) + torch.arange(len(part))] = part[order]
        free[present] += sizes
    return result
