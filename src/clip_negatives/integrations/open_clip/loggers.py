"""Our figures in the loggers of open_clip, TensorBoard and wandb, beside its own and when it logs them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from clip_negatives.anchors import AnchorLoss
from clip_negatives.integrations.figures import batch_figures, cluster_figures
from clip_negatives.interfaces import Clusters, LossTerms
from clip_negatives.loader import BatchIndex


def is_logged(args: Any) -> bool:
    """Return whether ``--report-to`` names a logger and this process is the one that logs."""
    return bool(args.rank == 0 and (args.wandb or args.tensorboard))


class EpochFigures:
    """Log the figures of one epoch, by the indices of its batches alone: nothing waits for a GPU.

    Several processes: the figures are of what the first one contrasts among its own samples.

    Args:
        args: open_clip's arguments.
        tb_writer: its writer for TensorBoard; None where there is none.
        epoch: which epoch.
        num_batches: batches of an epoch, before they are accumulated.
        clusters: clusters of the data.
        terms: what the loss makes of them, on the CPU.
    """

    def __init__(
        self, args: Any, tb_writer: Any, epoch: int, num_batches: int, clusters: Clusters, terms: LossTerms | AnchorLoss
    ) -> None:
        self._args, self._tb_writer = args, tb_writer
        self._clusters, self._terms = clusters, terms
        self._steps = num_batches // args.accum_freq
        self._first = self._steps * epoch
        self._batches = 0

    def log_clusters(self) -> None:
        """Log the sizes of the clusters that the epoch begins with."""
        self._log(cluster_figures(self._clusters), self._first)

    def take(self, batch_index: BatchIndex) -> None:
        """Note that a batch is handed out, and log the figures of its step if open_clip will log that one."""
        self._batches += 1
        step, rest = divmod(self._batches, self._args.accum_freq)
        if not rest and ((step - 1) % self._args.log_every_n_steps == 0 or step == self._steps):
            index: Tensor = batch_index()
            self._log(batch_figures(index, self._clusters, self._terms), self._first + step - 1)

    def _log(self, figures: dict[str, float], step: int) -> None:
        if self._tb_writer is not None:
            for name, value in figures.items():
                self._tb_writer.add_scalar(name, value, step)
        if self._args.wandb:
            from open_clip_train import train  # where open_clip itself finds it

            train.wandb.log(figures, step=step)
