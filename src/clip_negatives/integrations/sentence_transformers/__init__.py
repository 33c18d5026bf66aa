"""sentence-transformers: a loss in the place of `MultipleNegativesRankingLoss`, and the batches of a negative sampler.

The first column of the data set stands where CLIP has its images, the second where it has its texts. The index of each sample
is a third column, which the trainer's own collator puts into the batch as the label and its own loop hands to the loss, so that
neither workers nor batches that are fetched ahead can put it out of step.
"""

from clip_negatives.errors import MissingPackageError

try:
    from clip_negatives.integrations.sentence_transformers.batches import NegativesBatches, with_index
    from clip_negatives.integrations.sentence_transformers.loss import NegativesRankingLoss
except ImportError as error:
    raise MissingPackageError.of("sentence-transformers", error) from error

__all__ = ["NegativesBatches", "NegativesRankingLoss", "with_index"]
