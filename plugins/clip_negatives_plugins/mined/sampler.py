"""The sampler `mined`: neighbours by the model's own features meet in the next epoch."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from clip_negatives import LearningSampler, SamplingContext, Step
from clip_negatives.host.option_checks import check_choice, check_number
from clip_negatives.sampling import permutation, shuffle_rows
from clip_negatives_plugins.mined.neighbours import known, live_neighbours, runs
from clip_negatives_plugins.mined.projection import Projection

Similarity = Literal["pairs", "image", "text"]


class Mined(LearningSampler):
    """Batches of hard negatives, mined in each epoch with the features of the model in training.

    The memory has the features of each sample, from the last step with this sample. In each epoch, random samples are the
    seeds of runs. A seed draws the others of its run from its nearest neighbours. Runs and single samples are shuffled and
    fill the batches. Samples without features stay alone, so epoch 0 is a uniform shuffle.

    * Source: ANCE (Xiong et al., 2021, arXiv:2007.00808; code: microsoft/ANCE). ANCE encodes all documents repeatedly with a
      recent checkpoint. It draws the negatives of a query from its nearest documents. We read this in its code.
    * Our choice: features from the training steps, mostly one epoch old; mined samples are ordinary samples of the batch;
      near-duplicates are left out; all default values. It was not compared with other samplers.
    * Sign: collects similar samples, by the live similarity.

    Memory of each process for "pairs" and 1e6 samples: 2 GB, 2 GB more during the search, 2 GB in a checkpoint. Longer features
    are projected to `length` random directions. Time of an epoch: N^2 x 2 x length x share / run operations.

    Args:
        run: largest number of samples of a run, at least 2.
        share: share of the samples in runs if all runs are full, 0 .. 1.
        window: number of nearest neighbours to draw from, at least 1.
        limit: samples with at least this cosine to the seed are near-duplicates and do not join its run. With "pairs", it is
            the mean of the image cosine and the text cosine.
        by: similarity of the "pairs" (image to text, as in the loss), of the "image", or of the "text".
        length: length of the kept features, at least 1.

    Raises:
        InputError: an option is out of range.
        DataError: the data have fewer samples than one step.
    """

    requires_clusters = False

    def __init__(
        self, context: SamplingContext, run: int = 4, share: float = 0.5, window: int = 32, limit: float = 0.95,
        by: Similarity = "pairs", length: int = 256,
    ) -> None:  # fmt: skip
        for option, value, lowest in (("run", run, 2), ("window", window, 1), ("length", length, 1)):
            check_number(option, value, at_least=lowest)
        check_number("share", share, at_least=0, at_most=1)
        check_number("limit", limit, above=0)
        check_choice("by", by, get_args(Similarity))
        self.run, self.share, self.window, self.limit = run, share, window, limit
        self.modalities = ("image", "text") if by == "pairs" else (by,)
        self.projected = Projection(length, context.seed)
        features = torch.zeros(context.n_samples, len(self.modalities), length, dtype=torch.half)
        super().__init__(context, self._plan, features=features)

    def observe(self, step: Step, losses: Tensor) -> None:
        """Keep the features of the samples of the step."""
        rows = torch.stack([self.projected(step.candidates.of(name)) for name in self.modalities], dim=1)
        self.new["features"][step.samples.candidates.cpu()] = rows.half()

    def _plan(self, generator: torch.Generator) -> Tensor:
        n, features = self.context.n_samples, self.memory["features"]
        order = permutation(n, generator).long()
        with_features = order[known(features)[order]]
        seeds = with_features[: int(self.share * len(with_features)) // self.run]
        neighbours = live_neighbours(features, seeds, self.window, self.limit)
        shuffle_rows(neighbours, generator)
        order = permutation(n, generator)[runs(seeds, neighbours, self.run, n)].argsort(stable=True)
        return order[: len(self) * self.step_size].view(len(self), self.step_size)
