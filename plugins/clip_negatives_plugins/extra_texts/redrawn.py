"""Captions that are drawn anew each epoch, as in LaCLIP, and further correct captions, as in DreamLIP."""

from __future__ import annotations

import random
from collections.abc import Sequence

from clip_negatives.errors import InputError
from clip_negatives.host.option_checks import check_number
from clip_negatives.interfaces import SamplingContext
from clip_negatives_plugins.extra_texts.adding import Adding
from clip_negatives_plugins.extra_texts.rewrites import captions_of


class RedrawnCaptions(Adding):
    """Replace the caption of each sample by one of its own and its further captions, drawn anew each epoch.

    A file has the further captions: a jsonl, parquet or csv file with one row per sample, in the order of the data. Each row
    has the own caption and a list of further captions; in a csv file, the list is JSON. With ``positives=K``, K more captions
    are drawn. With z the logit, y_i0 the drawn caption of image x_i, and y_ik the K more:

        image_i = log(sum over j and k of exp z(x_i, y_jk)) - mean over k of z(x_i, y_ik)
        text_i  = log(sum over j of exp z(x_j, y_i0)) - z(x_i, y_i0)

    The loss is the mean of both. A caption y_jk, k > 0, that equals y_i0 is left out of image_i.

    * Source: LaCLIP (Fan et al., 2023, arXiv:2305.20088): uniform draws from the caption and its rewrites by a language model.
      DreamLIP (Zheng et al., 2024, arXiv:2403.17007): K short captions by a vision-language model as positives of their image.
    * Our choice: draws without replacement, which repeat if there are fewer than 1 + K captions. All positives share one
      denominator. The K captions are not anchors, while DreamLIP also contrasts each of them with all images.
    * Sign: uses no similarity.

    Args:
        file: file of captions.
        own: column of the own captions, which are compared with the data.
        column: column of the lists of further captions.
        positives: K, further correct captions added to each sample, at least 0.
        of: name of the sampler that makes the batches, without options.

    Raises:
        UnknownNameError: there is no such sampler.
        InputError: there are no captions or no file.
        DataError: the file cannot be read, or has captions of other data.
    """

    requires_clusters, texts_are_positive = False, True

    def __init__(
        self,
        context: SamplingContext,
        file: str = "",
        own: str = "text",
        column: str = "captions",
        positives: int = 0,
        of: str = "in_batch",
    ) -> None:
        check_number("positives", positives, at_least=0)
        if not file:
            raise InputError("redrawn_captions needs a file of captions: redrawn_captions:file=rewrites.jsonl.")
        super().__init__(context, of, positives)
        self.lists = captions_of(file, own, column, self.captions)

    def own_texts(self, batch: Sequence[int]) -> list[str]:
        """Return the drawn caption of each sample."""
        return [self._drawn(index)[0] for index in batch]

    def texts_of(self, index: int) -> list[str]:
        """Return the K further captions of a sample."""
        return self._drawn(index)[1:]

    def _drawn(self, index: int) -> list[str]:
        texts, n = [self.captions[index], *self.lists[index]], 1 + self.texts_per_image
        draw = random.Random(f"{self.context.seed} {self.epoch} {index}")  # noqa: S311  # no secret
        order = draw.sample(texts, len(texts))
        return [order[place % len(order)] for place in range(n)]
