"""How much each incorrect pair counts: the terms of the loss, without a matrix of all pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clip_negatives.errors import UnsupportedError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

TENSORS_OF_TERMS = (
    "image_labels",
    "image_table",
    "image_listed",
    "text_labels",
    "text_table",
    "text_listed",
    "factors",
    "groups",
    "positive_rate",
)
"""The attributes of `LossTerms` that are tensors."""

TABLES = ("image_table", "image_listed", "text_table", "text_listed")
"""Those of them that are looked up by label."""


@dataclass(frozen=True, slots=True, eq=False)
class LossTerms:
    """Hold the log-weight b_ij of every incorrect pair (image i, text j), without an N x N matrix.

    ``b_ij = image_table[image_labels[i], image_labels[j]] + text_table[text_labels[i], text_labels[j]]
    - <factors[i], factors[j]>``; absent parts count 0. ``exp(b_ij)`` multiplies ``exp(logit)`` of the pair in the
    denominator of InfoNCE: 0 leaves the pair as it is, -inf removes it. The positive pair (i = j) is never weighted.

    Attributes:
        image_labels: int64, shape (N,); goes with `image_table`.
        image_table: float32, shape (K, K), values in [-inf, inf).
        text_labels: int64, shape (N,); goes with `text_table`.
        text_table: float32, shape (K', K'), values in [-inf, inf).
        factors: float32, shape (N, R); subtracts an inner product of frozen features.
        normalize: shift b so that the weights ``exp(b)`` of the incorrect pairs that are kept have mean 1, for every image
            over its texts and for every text over its images. Weights then change which negatives count, not how many.
        groups: samples of one group are no negatives of each other, int64, shape (N,); no b applies to them.
        attract: samples of one group are positives of each other; else their pairs are left out of the loss.
        positive_rate: how probably an incorrect pair is correct, 0 <= t < 1, float32, shape (N,) or (); debiases.
        hardness: beta >= 0; weighs up what the model itself finds similar.
        margin: difference of cosines, as the model sees them, over which a pair is no negative.
        positive_weight: alpha >= 0; how much the positives count among the pairs that an anchor is told from.
        image_listed: where K is too large for a table of all: the m clusters of which `image_table` has entries for each
            cluster, int32 or int64, shape (K, m). The table then is (K, m + 1), its last column for all others; see
            `clip_negatives.listed`.
        text_listed: the same for `text_table`.

    From `hardness` to `positive_weight`, and `groups`, they go by the model that is trained, the others by frozen features;
    `clip_negatives.functional.weighted_info_nce` has the formulas.
    """

    image_labels: Tensor | None = None
    image_table: Tensor | None = None
    text_labels: Tensor | None = None
    text_table: Tensor | None = None
    factors: Tensor | None = None
    normalize: bool = False
    groups: Tensor | None = None
    positive_rate: Tensor | None = None
    hardness: float = 0.0
    margin: float | None = None
    attract: bool = True
    positive_weight: float = 1.0
    image_listed: Tensor | None = None
    text_listed: Tensor | None = None

    @property
    def listed(self) -> bool:
        """Return whether a table has entries for listed clusters alone."""
        return self.image_listed is not None or self.text_listed is not None

    @property
    def weighted(self) -> bool:
        """Return whether any b_ij may differ from 0."""
        return self.image_table is not None or self.text_table is not None or self.factors is not None

    @property
    def neutral(self) -> bool:
        """Return whether the loss is plain InfoNCE."""
        live = self.groups is not None or self.positive_rate is not None or self.hardness > 0 or self.margin is not None
        return not self.weighted and not live and self.positive_weight == 1

    @property
    def by_label(self) -> bool:
        """Return whether there are tables, but the labels to look up in them come with each batch (`for_stream`)."""
        return (self.image_table is not None and self.image_labels is None) or (
            self.text_table is not None and self.text_labels is None
        )

    def for_stream(self) -> LossTerms:
        """Return the terms without what belongs to samples, for data whose labels come with each batch.

        Each table gets a last row and column of 0, for samples without a label: their pairs count as they are (in a table of
        listed clusters a row that lists none).

        Raises:
            UnsupportedError: more than labels belongs to samples.
        """
        others = [name for name in self._per_sample() if name not in ("image_labels", "text_labels")]
        if others:
            raise UnsupportedError(
                f"Expected a weighting of tables between clusters for labels that come with a stream, got one with {others[0]} "
                "of single samples. Use a clusters folder, or weighted_infonce."
            )
        from torch.nn.functional import pad

        changed: dict[str, Any] = {"image_labels": None, "text_labels": None}
        for table, listed in (("image_table", "image_listed"), ("text_table", "text_listed")):
            entries, lists = getattr(self, table), getattr(self, listed)
            if lists is not None:
                changed |= {table: pad(entries, (0, 0, 0, 1)), listed: pad(lists, (0, 0, 0, 1), value=-1)}
            elif entries is not None:
                changed[table] = pad(entries, (0, 1, 0, 1))
        return dataclasses.replace(self, **changed)

    def with_labels(self, labels: Tensor) -> LossTerms:
        """Return terms of `for_stream` with the labels of a batch.

        Args:
            labels: image and text cluster of each sample, int64, shape (B, 2); -1 for a sample without.
        """
        columns: list[Tensor | None] = [
            # -1 becomes K, the row of zeros.
            None if table is None else labels[:, column].to(table.device).remainder(len(table)).contiguous()
            for column, table in enumerate((self.image_table, self.text_table))
        ]
        return dataclasses.replace(self, image_labels=columns[0], text_labels=columns[1])

    @property
    def n_samples(self) -> int | None:
        """Return N, or None where nothing belongs to a sample, so that the terms fit any number of them."""
        lengths = [int(value.shape[0]) for value in self._per_sample().values()]
        return lengths[0] if lengths else None

    def _per_sample(self) -> dict[str, Tensor]:
        """Return the tensors that have an entry for each sample."""
        names = ("image_labels", "text_labels", "factors", "groups", "positive_rate")
        return {name: value for name in names if (value := getattr(self, name)) is not None and value.ndim > 0}

    def take(self, index: Tensor) -> LossTerms:
        """Return the terms of the samples `index` (int64, shape (B,)): labels and factors of length B, the same tables."""
        return self.map_samples(lambda per_sample: per_sample[index])

    def map_samples(self, change: Callable[[Tensor], Tensor]) -> LossTerms:
        """Return a copy whose per-sample tensors went through `change`; tables are shared."""
        changed: dict[str, Any] = {name: change(value) for name, value in self._per_sample().items()}
        return dataclasses.replace(self, **changed)

    def to(self, device: torch.device | str) -> LossTerms:
        """Return the terms with every tensor on `device`."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True) for name in TENSORS_OF_TERMS if (value := getattr(self, name)) is not None
        }
        return dataclasses.replace(self, **moved)
