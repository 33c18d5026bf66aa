"""Log our figures to open_clip's loggers, TensorBoard and wandb, at the steps that open_clip logs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from clip_negatives.anchor_loss import AnchorLoss
from clip_negatives.integrations.open_clip.hand_over import CurrentSamples
from clip_negatives.interfaces import Clusters, LossTerms
from clip_negatives.training.figures import batch_figures, cluster_figures, logged_figures


@dataclass
class EpochFigures:
    """Logged figures of one epoch, from the batches of rank 0.

    They need no features, so logging waits for a GPU only if the weighting logs figures.
    """

    args: Any
    tb_writer: Any  # open_clip's TensorBoard writer, or None
    wandb: Any  # module with the interface of wandb, or None
    epoch: int
    steps: int  # steps in an epoch; accumulated batches are one step
    clusters: Clusters | None  # None: only figures of the weighting are known
    terms: LossTerms | AnchorLoss  # of the whole data set, on the CPU
    logged: Mapping[str, Tensor]  # figures of the weighting in the last step, see `NegativesClipLoss.logged`
    batches: int = 0  # number of batches so far
    due: int | None = None  # step whose figures of the weighting are not logged yet

    @property
    def _intervals(self) -> list[int]:
        """Return the numbers of steps between two logs: of open_clip 4 also that of figures, apart from the text."""
        names = "log_every_n_steps", "log_metric_every_n_steps"
        return [max(1, getattr(self.args, name)) for name in names if hasattr(self.args, name)]

    def log_clusters(self) -> None:
        """Log the sizes of the clusters at the first step of the epoch."""
        if self.clusters is not None:
            self._log(cluster_figures(self.clusters), 0)

    def count(self, current: CurrentSamples) -> None:
        """Count a batch that is handed out; if open_clip logs this step, log the figures of the batch."""
        self.finish()
        self.batches += 1
        step, rest = divmod(self.batches, self.args.accum_freq)
        if not rest and (step == self.steps or any((step - 1) % interval == 0 for interval in self._intervals)):
            clusters = self.clusters
            self._log({} if clusters is None else batch_figures(current.samples, clusters, self.terms), step - 1)
            self.due = step - 1

    def finish(self) -> None:
        """Log the figures that the weighting has logged in the step that is over."""
        if self.due is not None:
            self._log(logged_figures(self.logged), self.due)
            self.due = None

    def _log(self, figures: dict[str, float], step: int) -> None:
        if not figures:
            return
        step += self.epoch * self.steps
        if self.tb_writer is not None:
            for name, value in figures.items():
                self.tb_writer.add_scalar(name, value, step)
        if self.wandb is not None:
            self.wandb.log(figures, step=step)
