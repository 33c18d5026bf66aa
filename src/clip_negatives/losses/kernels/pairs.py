"""The pairs of a loss: the input of every backend."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from clip_negatives.terms import MODALITIES, LossTerms


class Inputs(NamedTuple):
    """Inputs of the logits ``scale * x @ y.T + bias``: rows x, shape (B, D), and columns y, shape (G, D)."""

    x: Tensor
    y: Tensor
    scale: Tensor
    bias: Tensor | None

    def precision(self) -> torch.dtype:
        """Return the dtype of products, sums and exponentials: at least float32."""
        return torch.promote_types(torch.promote_types(self.x.dtype, self.y.dtype), torch.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Weights of the pairs of rows and columns, and which sums to compute.

    The log-weight of (i, j) is defined in `LossTerms`; here i is a row and j a column.
    """

    rows: LossTerms  # terms of the rows, with the tables
    columns: LossTerms  # per-sample fields of the columns
    row_limits: Tensor | None = None  # logit above which a pair is not a negative of this row, shape (B,)
    column_limits: Tensor | None = None  # the same for each column, shape (G,)
    offset: int = 0  # the positive of row i is column offset + i
    columns_too: bool = True  # whether columns are anchors too
    importance: bool = False  # compute IMPORTANCE and KEPT
    count: bool = False  # compute KEPT
    mixed_signs: bool = False  # gradients of the anchors' losses may have both signs; read by the triton backend only

    @classmethod
    def of(
        cls, rows: LossTerms, columns: LossTerms, *, offset: int = 0, columns_too: bool = True, mixed_signs: bool = False
    ) -> Pairs:
        """Return the pairs of two batches, without fields that no kernel reads."""
        unread = dict.fromkeys(f"{name}_labels" for name in MODALITIES if getattr(rows, f"{name}_table") is None)
        unread |= {"positive_rate": None} | ({} if rows.targeted else {"target_factors": None})
        shared = dict.fromkeys(name for name, field in columns.tensor_fields().items() if field.kind == "cluster")
        fields = rows.replace(**unread), columns.replace(**unread, **shared)
        return cls(*fields, offset=offset, columns_too=columns_too, mixed_signs=mixed_signs)

    @property
    def hardness(self) -> float:
        """Return beta."""
        return self.rows.hardness

    @property
    def targeted(self) -> bool:
        """Return whether to compute TARGET_LOGITS and TARGET_NORM."""
        return self.rows.target_factors is not None and self.columns.target_factors is not None

    def transposed_tables(self) -> Pairs:
        """Return the pairs with transposed tables, for texts as rows and images as columns."""
        return dataclasses.replace(self, rows=self.rows.transposed())


class Extras(NamedTuple):
    """Texts or images in addition to those of the samples: negatives of every image, or of every text. They are not anchors.

    Attributes:
        features: unit norm, dtype and device of the features of the samples, shape (M, D), at least one.
        own_ids: id of the text of each sample, equal for equal texts, int64, shape (B,); None compares no texts.
        ids: the same for the extra texts, or for the texts of the extra images, int64, shape (M,); None together with
            `own_ids`.
        log_weight: log-weight of the extras as negatives, below inf; -inf removes them.
        positive: the extra texts are further positives of their own image: M / G texts for each of the G samples of all
            processes, in the order of the samples. They are negatives of the other images.
    """

    features: Tensor
    own_ids: Tensor | None = None
    ids: Tensor | None = None
    log_weight: float = 0.0
    positive: bool = False
