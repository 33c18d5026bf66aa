"""A ring of the newest features, for losses that contrast with earlier steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from clip_negatives.errors import InputError

EMPTY = -1  # id of a row without features


class FeatureQueue(nn.Module):
    """The features of the newest `size` samples, with the ids of the samples, as in MoCo and XBM.

    Make it an attribute of an `AnchorLoss`: its rows are then stored in checkpoints, and gradient accumulation changes them
    once for each batch. Push the features of all processes (`Anchors.candidates`, `Anchors.peers`), so that all processes have
    the same queue. Sources: MoCo (He et al., 2020, arXiv:1911.05722), XBM (Wang et al., 2020, arXiv:1912.06798).

    Args:
        size: number of rows, at least 1.

    Attributes:
        features: float32, shape (size, D), without gradients; shape (0, 0) before the first push.
        ids: sample of each row, int64, shape (size,); -1 where the queue is still empty, or if the id is unknown, as in a
            stream without clusters.

    Examples:
        >>> queue = FeatureQueue(3)
        >>> queue.push(torch.eye(2), torch.tensor([7, 8]))
        >>> queue.ids
        tensor([ 7,  8, -1])
    """

    features: Tensor
    ids: Tensor
    pushed: Tensor  # number of rows pushed so far

    def __init__(self, size: int) -> None:
        super().__init__()
        if size < 1:
            raise InputError(f"A feature queue must have at least 1 row, got {size}.")
        self.size = size
        self.register_buffer("features", torch.zeros(0, 0))
        self.register_buffer("ids", torch.full((size,), EMPTY))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))

    @property
    def filled(self) -> Tensor:
        """Return which rows have features, bool, shape (size,)."""
        return torch.arange(self.size, device=self.pushed.device) < self.pushed

    @torch.no_grad()
    def push(self, features: Tensor, ids: Tensor) -> None:
        """Put rows into the queue, in place of the oldest ones; of more than `size` rows, the last ones.

        `features` becomes a new tensor: a loss can contrast with the queue, and push before its gradient is computed.

        Args:
            features: shape (G, D), with the same D in all pushes.
            ids: samples of the rows, int64, shape (G,).
        """
        if len(self.features) == 0:
            self.features = features.new_zeros(self.size, features.shape[1], dtype=torch.float32)
        features, ids = features[-self.size :], ids[-self.size :]
        rows = (self.pushed + torch.arange(len(ids), device=self.pushed.device)) % self.size
        self.features = self.features.index_copy(0, rows, features.float())
        self.ids[rows] = ids
        self.pushed += len(ids)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take the length of the features from the stored state."""
        stored = state_dict.get(f"{prefix}features")
        if stored is not None and len(stored) in (0, self.size):
            self.features = self.features.new_zeros(stored.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)
