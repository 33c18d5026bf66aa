"""Loss terms: how much each incorrect pair counts, without a matrix of all pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from clip_negatives.errors import InputError, UnsupportedError
from clip_negatives.schedule import SMALLEST_FACTOR, check_points, interpolated
from clip_negatives.step import UNKNOWN_PROGRESS
from clip_negatives.term_fields import TermField, check_range, check_tensor

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MODALITIES = ("image", "text")

LARGEST = 1e4
"""Largest absolute value of a log-weight, except -inf: larger ones are a mistake, and their sums lose all precision."""

INFINITY = float("inf")
RANGES = {"margin": (-2.0, 2.0), "hardness": (0.0, INFINITY), "positive_weight": (0.0, INFINITY), "target_mass": (0.0, 1.0)}
"""Smallest and largest value of each number; an infinite one is never allowed."""

Terms = TypeVar("Terms", bound="LossTerms")


def tensor_field(kind: Literal["sample", "cluster"], *shapes: str, integer: bool = False) -> Any:
    """Return a dataclass field of `LossTerms` that holds a tensor or None."""
    return dataclasses.field(default=None, metadata={"term": TermField(kind, shapes, integer)})


def with_tensor_fields(cls: type[Terms]) -> type[Terms]:
    """Store the descriptions of the tensor fields on the class: torch.compile cannot trace `dataclasses.fields`."""
    fields = {field.name: field.metadata["term"] for field in dataclasses.fields(cls) if "term" in field.metadata}
    cls._tensor_fields = fields
    return cls


@with_tensor_fields
@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class LossTerms:
    """Log-weight b_ij of every incorrect pair (image i, text j), and how the loss treats the pairs.

    ``b_ij = image_table[image_labels[i], image_labels[j]] + text_table[text_labels[i], text_labels[j]]
    - <factors[i], factors[j]>``; absent parts count 0. In the denominator of InfoNCE, ``exp(logit)`` of the pair is multiplied
    by ``exp(b_ij)``: b = 0 changes nothing, b = -inf removes the pair. The positive pair (i = j) is never weighted.

    `hardness`, `margin` and `positive_rate` use the live similarity (of the model in training); the other fields are fixed.
    `clip_negatives.losses.functional.weighted_info_nce` has the formulas.

    Attributes:
        image_labels: cluster of each image, int64, shape (N,); needed with `image_table`.
        image_table: log-weight between image clusters, float32, shape (K, K), values in [-inf, inf).
        image_neighbours: for very large K: the m clusters that each row of `image_table` lists, int32 or int64, shape
            (K, m). The table then has shape (K, m + 1), and its last column is for all other clusters. See
            `clip_negatives.losses.sparse_tables`.
        text_labels: cluster of each text, int64, shape (N,); needed with `text_table`.
        text_table: log-weight between text clusters, float32, shape (K', K').
        text_neighbours: as `image_neighbours`, for `text_table`.
        factors: vectors whose inner product is subtracted from b_ij, float32, shape (N, R).
        target_factors: vectors f whose inner products give the targets of the loss, float32, shape (N, R); see `target_mass`.
        groups: group of each sample, int64, shape (N,). Samples of one group are not negatives of each other; their pairs
            have no log-weight.
        positive_rate: probability t that an incorrect pair is actually correct, 0 <= t < 1, float32, shape (N,) or ();
            debiases the loss.
        normalize: shift b so that the weights ``exp(b)`` of the kept incorrect pairs of each image, and of each text, have
            mean 1. The weights then change which negatives count, but not how many.
        hardness: beta >= 0; raises the weight of pairs that the model finds similar.
        margin: remove incorrect pairs whose cosine exceeds that of the positive pair by more than this, -2 .. 2.
        attract: True makes samples of one group positives of each other; False leaves their pairs out of the loss.
        positive_weight: alpha >= 0; weight of the positives in the denominator.
        target_mass: m, 0 .. 1. The target of an anchor i is ``1 - m`` for its own pair, and ``m softmax(<f_i, f_j>)`` over all
            other samples j of the step; log-weights and removed pairs do not change it. Not with `groups`.
        schedule: points (share of the training 0 .. 1, factor >= 0) by rising share. All log-weights are multiplied by the
            factor, which is linear between the points; removed pairs stay removed. Empty is a factor of 1.
    """

    _tensor_fields: ClassVar[dict[str, TermField]]

    image_labels: Tensor | None = tensor_field("sample", "N", integer=True)
    image_table: Tensor | None = tensor_field("cluster", "KK")
    image_neighbours: Tensor | None = tensor_field("cluster", "Km", integer=True)
    text_labels: Tensor | None = tensor_field("sample", "N", integer=True)
    text_table: Tensor | None = tensor_field("cluster", "KK")
    text_neighbours: Tensor | None = tensor_field("cluster", "Km", integer=True)
    factors: Tensor | None = tensor_field("sample", "NR")
    target_factors: Tensor | None = tensor_field("sample", "NR")
    groups: Tensor | None = tensor_field("sample", "N", integer=True)
    positive_rate: Tensor | None = tensor_field("sample", "N", "")
    normalize: bool = False
    hardness: float = 0.0
    margin: float | None = None
    attract: bool = True
    positive_weight: float = 1.0
    target_mass: float = 0.0
    schedule: tuple[tuple[float, float], ...] = ()

    def replace(self, **fields: Any) -> LossTerms:
        """Return a copy with new values for `fields`."""
        return dataclasses.replace(self, **fields)

    @classmethod
    def tensor_fields(cls) -> dict[str, TermField]:
        """Return the description of each tensor field, by name."""
        return cls._tensor_fields

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that are present, by name."""
        return {name: value for name in self.tensor_fields() if (value := getattr(self, name)) is not None}

    def options(self) -> dict[str, Any]:
        """Return the fields that are not tensors, by name."""
        return {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name not in self._tensor_fields
        }

    def per_sample(self) -> dict[str, Tensor]:
        """Return the tensors that have an entry for each sample, by name."""
        fields = self.tensor_fields()
        return {name: value for name, value in self.tensors().items() if fields[name].kind == "sample" and value.ndim > 0}

    @property
    def n_samples(self) -> int | None:
        """Return N, or None if no field is per sample, so that the terms fit any number of samples."""
        lengths = [int(value.shape[0]) for value in self.per_sample().values()]
        return lengths[0] if lengths else None

    @property
    def sparse(self) -> bool:
        """Return whether a table has entries for neighbouring clusters only."""
        return self.image_neighbours is not None or self.text_neighbours is not None

    @property
    def weighted(self) -> bool:
        """Return whether any b_ij may differ from 0."""
        return self.image_table is not None or self.text_table is not None or self.factors is not None

    @property
    def scheduled(self) -> bool:
        """Return whether the weights change during the training."""
        return bool(self.schedule) and self.weighted

    @property
    def targeted(self) -> bool:
        """Return whether other samples than the own pair have a target."""
        return self.target_factors is not None and self.target_mass > 0

    @property
    def normalized(self) -> bool:
        """Return whether the weights of an anchor are scaled to mean 1: with `normalize`, and always with hardness."""
        return self.hardness > 0 or (self.weighted and self.normalize)

    @property
    def only_weights(self) -> bool:
        """Return whether the loss is InfoNCE, with or without log-weights, and pairs have no other treatment."""
        plain = self.groups is None and self.positive_rate is None and self.hardness == 0 and self.margin is None
        return plain and not self.targeted and self.positive_weight == 1

    @property
    def neutral(self) -> bool:
        """Return whether the loss is plain InfoNCE."""
        return self.only_weights and not self.weighted

    @property
    def by_label(self) -> bool:
        """Return whether a table lacks labels, because they come with each batch (`for_stream`)."""
        return any(
            getattr(self, f"{name}_table") is not None and getattr(self, f"{name}_labels") is None for name in MODALITIES
        )

    def for_stream(self) -> LossTerms:
        """Return the tables alone, for data whose labels come with each batch.

        Each table gets a last row and column of 0 (a sparse table: a last row without neighbours) for samples without a
        label, whose pairs then keep weight 1.

        Raises:
            UnsupportedError: a field other than the labels is per sample.
        """
        labels = [f"{name}_labels" for name in MODALITIES]
        per_sample = [name for name in self.per_sample() if name not in labels]
        if per_sample:
            raise UnsupportedError(
                f"Labels that come with a stream cannot be used with this weighting: it has {per_sample[0]} for each sample. "
                "Use a clusters folder, or the weighting weighted_infonce."
            )
        from torch.nn.functional import pad

        changed: dict[str, Any] = dict.fromkeys(labels)
        for name in MODALITIES:
            table, neighbours = getattr(self, f"{name}_table"), getattr(self, f"{name}_neighbours")
            if neighbours is not None:
                changed[f"{name}_neighbours"] = pad(neighbours, (0, 0, 0, 1), value=-1)
            if table is not None:
                changed[f"{name}_table"] = pad(table, (0, neighbours is None, 0, 1))
        return self.replace(**changed)

    def with_labels(self, labels: Tensor) -> LossTerms:
        """Return terms of `for_stream` with the labels of a batch.

        Args:
            labels: image and text cluster of each sample, int64, shape (B, 2); -1 for a sample without a label.
        """
        changed: dict[str, Any] = {}
        for column, name in enumerate(MODALITIES):
            table = getattr(self, f"{name}_table")
            if table is not None:  # -1 becomes K, the row of zeros
                changed[f"{name}_labels"] = labels[:, column].to(table.device).remainder(len(table)).contiguous()
        return self.replace(**changed)

    def transposed(self) -> LossTerms:
        """Return the terms of the pairs (text i, image j), with transposed tables."""
        tables = {name: table.T for name in ("image_table", "text_table") if (table := getattr(self, name)) is not None}
        return self.replace(**tables)

    def at(self, progress: Tensor | None) -> LossTerms:
        """Return the terms at this share of the training, without a schedule.

        Args:
            progress: share of the training, floating point, shape (), 0 .. 1. Its value is not read, so there is no wait for a
                GPU, and no recompilation when it changes.

        Raises:
            InputError: the weights have a schedule, and the progress is None.
        """
        if not self.scheduled:
            return self
        if progress is None:
            raise InputError(UNKNOWN_PROGRESS)
        factor = interpolated(self.schedule, progress)
        changed = {
            name: table * factor.to(table).clamp(min=SMALLEST_FACTOR)
            for name in ("image_table", "text_table")
            if (table := getattr(self, name)) is not None
        }
        if self.factors is not None:
            changed["factors"] = self.factors * factor.to(self.factors).sqrt()
        return self.replace(schedule=(), **changed)

    def take(self, index: Tensor) -> LossTerms:
        """Return the terms of the samples `index` (int64, shape (B,)): per-sample fields of length B, the same tables."""
        return self.map_samples(lambda value: value[index])

    def map_samples(self, change: Callable[[Tensor], Tensor]) -> LossTerms:
        """Return a copy with `change` applied to each per-sample tensor; tables are shared."""
        return self.replace(**{name: change(value) for name, value in self.per_sample().items()})

    def to(self, device: torch.device | str) -> LossTerms:
        """Return the terms with every tensor on `device`."""
        return self.replace(**{name: value.to(device, non_blocking=True) for name, value in self.tensors().items()})

    def check(self, n_samples: int | None = None, device: torch.device | None = None, name: str = "terms") -> None:
        """Check shapes, dtypes, devices and options, without reading tensor values (no wait for a GPU).

        Args:
            n_samples: samples of the batch; None checks terms of a whole data set, which may lack labels (stream).
            device: where the features are; None allows every device.
            name: name of the argument in error messages.

        Raises:
            InputError: a field is no tensor, does not fit the batch or is on another device, or an option is out of range.
        """
        tensors = self.tensors()
        for field_name, value in tensors.items():
            if not hasattr(value, "is_floating_point"):
                raise InputError(f"{name}.{field_name} must be a tensor, got {type(value).__name__}.")
        n = self.n_samples if n_samples is None else n_samples
        for field_name, value in tensors.items():
            check_tensor(f"{name}.{field_name}", value, self._tensor_fields[field_name], n, device)
        for modality in MODALITIES:
            self._check_table(modality, name, needs_labels=n_samples is not None)
        if self.groups is not None and self.target_factors is not None:
            raise InputError(f"{name} has groups and target_factors, which both set the targets. Leave one out.")
        for option, (low, high) in RANGES.items():
            number = getattr(self, option)
            if number is None and option == "margin":
                continue
            if not (isinstance(number, int | float) and low <= number <= high and number < INFINITY):
                limits = f"at least {low:g}" if high == INFINITY else f"within {low:g} .. {high:g}"
                raise InputError(f"{name}.{option} must be {limits}, got {number!r}.")
        if self.schedule != ():
            check_points(f"{name}.schedule", self.schedule)

    def check_values(self) -> None:
        """Check the values of the tensors. Call this once for each clustering, not in a step: it waits for a GPU.

        Raises:
            InputError: a log-weight is NaN or above `LARGEST` in size (-inf removes a pair), a label has no cluster, or a
                positive rate is not within 0 .. 1.
        """
        for modality in MODALITIES:
            table, labels = getattr(self, f"{modality}_table"), getattr(self, f"{modality}_labels")
            if table is not None:
                removed = table == -float("inf")
                check_range(
                    f"{modality}_table", table.masked_fill(removed, 0.0), -LARGEST, LARGEST, ", or -inf to remove a pair"
                )
                if labels is not None and len(labels):
                    check_range(f"{modality}_labels", labels, 0, len(table) - 1)
        for field in ("factors", "target_factors"):
            if (vectors := getattr(self, field)) is not None:
                check_range(field, vectors, -(LARGEST**0.5), LARGEST**0.5)
        if self.positive_rate is not None:
            check_range("positive_rate", self.positive_rate, 0.0, 1.0)

    def _check_table(self, modality: str, name: str, *, needs_labels: bool) -> None:
        """Check that a table has labels, and a shape that fits its neighbours."""
        table, neighbours = getattr(self, f"{modality}_table"), getattr(self, f"{modality}_neighbours")
        if table is None:
            return
        if needs_labels and getattr(self, f"{modality}_labels") is None:
            raise InputError(f"{name}.{modality}_table needs {modality}_labels, which are missing. Pass terms.take(index).")
        shape = (len(table), len(table)) if neighbours is None else (len(neighbours), neighbours.shape[1] + 1)
        if tuple(table.shape) != shape:
            raise InputError(f"{name}.{modality}_table must have shape {shape}, got {tuple(table.shape)}.")
