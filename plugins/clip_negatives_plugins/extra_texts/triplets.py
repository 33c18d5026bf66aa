"""A hard negative image and a hard negative caption for each sample, as in TripletCLIP."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from clip_negatives.interfaces import SamplingContext
from clip_negatives_plugins.extra_texts.hard import HardTexts


class Triplets(HardTexts):
    """Add the image and the caption of a hard negative sample to each sample.

    With x_i and y_i the features of image and text i, x'_j and y'_j those of the added image and caption j, and z the logit:

        image_i = log(sum over j of exp z(x_i, y_j) + sum over j of exp z(x_i, y'_j)) - z(x_i, y_i)
        text_i  = log(sum over j of exp z(x_j, y_i) + sum over j of exp z(x'_j, y_i)) - z(x_i, y_i)

    The loss is the mean of both. An added caption that equals y_i is left out of image_i; an added image whose caption equals
    y_i is left out of text_i. The hardness of a sample is ``cos_image * cos_text`` of the frozen features, as in `hard_texts`.

    * Source: TripletCLIP (Patel et al., 2024, arXiv:2411.02545). A language model writes the hard negative caption of each
      pair, and a diffusion model makes its image. The added pairs are also anchors there, with the own pairs as negatives.
    * Our choice: the hard negative is another sample of the data, drawn anew each epoch from the `top` hardest. It is a
      negative of all samples of the step, and not an anchor.
    * Sign: raises similar pairs, by the frozen similarity.

    Args:
        of: name of the sampler that makes the batches, without options.
        per_image: samples added for each sample, at least 1.
        top: number of hardest samples to draw from, at least 1.
        near_duplicate: two images, or two texts, with a higher cosine are near-duplicates, -1 .. 1; these are not added.
        base: number of random samples that are searched, at least `top`; costs N x base x D operations once.
        log_weight: log-weight of the added images and captions as negatives, below inf.

    Raises:
        UnknownNameError: there is no such sampler.
        InputError: there are no features or captions, or a sample has no hard negative.
    """

    def __init__(
        self,
        context: SamplingContext,
        of: str = "in_batch",
        per_image: int = 1,
        top: int = 10,
        near_duplicate: float = 0.98,
        base: int = 100_000,
        log_weight: float = 0.0,
    ) -> None:
        super().__init__(context, of, per_image, top, near_duplicate, base, log_weight)
        self.images_per_image = per_image

    def extra_images(self, batch: Sequence[int]) -> list[int]:
        """Return the hard negative samples of each sample of a batch; `extra_texts` returns their captions."""
        partners: Tensor = self.chosen()[list(batch)]
        return partners.flatten().tolist()
