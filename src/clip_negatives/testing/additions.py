"""Checks of the captions and images that negative samplers add, and of the captions that they replace."""

from __future__ import annotations

import math
from typing import Any

from clip_negatives.batches.extras import Additions
from clip_negatives.testing.samplers import B, N, SamplerChecks, as_lists
from clip_negatives.testing.subject import NotApplicableError, expect

KINDS = {"texts": "captions", "images": "images", "own_texts": "captions of its own"}
SEEDED = "Draw from seed, epoch and sample only."


class AdditionChecks(SamplerChecks):
    """Checks of a negative sampler: batches, incorrect pairs, additions."""

    def extra_texts_fit_the_batch(self) -> None:
        """``extra_texts`` returns `texts_per_image` strings for each sample of the batch."""
        sampler = self._sampler("texts")
        for batch in as_lists(sampler)[:3]:
            texts, n = sampler.extra_texts(batch), sampler.texts_per_image * len(batch)
            fits = isinstance(texts, list) and len(texts) == n and all(isinstance(text, str) for text in texts)
            expect(fits, f"extra_texts returns {len(texts)} items for {len(batch)} samples. Return a list of {n} strings.")

    def extra_texts_follow_the_seed(self) -> None:
        """``extra_texts`` returns the same captions throughout an epoch, also after a resume."""
        first, second = (self._sampler("texts").extra_texts(list(range(B))) for _ in range(2))
        expect(first == second, f"Two samplers with one seed add different captions. {SEEDED}")

    def extra_images_fit_the_batch(self) -> None:
        """``extra_images`` returns `images_per_image` ids of other samples for each sample of the batch."""
        sampler = self._sampler("images")
        per_image = sampler.images_per_image
        for batch in as_lists(sampler)[:3]:
            images, n = sampler.extra_images(batch), per_image * len(batch)
            fits = isinstance(images, list) and len(images) == n and all(isinstance(image, int) for image in images)
            expect(fits, f"extra_images returns {len(images)} items for {len(batch)} samples. Return a list of {n} ints.")
            within = 0 <= min(images) <= max(images) < N
            expect(within, f"extra_images returns other ids than 0 .. {N - 1}. Return ids of samples of the data.")
            own = [index for place, index in enumerate(images) if index == batch[place // per_image]]
            expect(not own, f"extra_images adds the image of a sample to itself: {own[:1]}. Add images of other samples.")

    def extra_images_follow_the_seed(self) -> None:
        """``extra_images`` returns the same samples throughout an epoch, also after a resume."""
        first, second = (self._sampler("images").extra_images(list(range(B))) for _ in range(2))
        expect(first == second, f"Two samplers with one seed add different images. {SEEDED}")

    def own_texts_follow_the_seed(self) -> None:
        """``own_texts`` returns one string for each sample, the same in every batch of an epoch, also after a resume."""
        texts = self._sampler("own_texts").own_texts(list(range(B)))
        fits = isinstance(texts, list) and len(texts) == B and all(isinstance(text, str) for text in texts)
        expect(fits, f"own_texts returns {len(texts)} items for {B} samples. Return a list of {B} strings.")
        alone = [self._sampler("own_texts").own_texts([index])[0] for index in range(B)]
        expect(texts == alone, f"own_texts returns another caption for the same seed, epoch and sample. {SEEDED}")

    def log_weight_is_valid(self) -> None:
        """The log-weight of added captions and images is a number below inf."""
        log_weight = Additions.of(self._instance()).log_weight
        expect(log_weight < math.inf, f"log_weight is {log_weight}. Use a number below inf; -inf removes the additions.")

    def _sampler(self, kind: str) -> Any:
        """Return the sampler; the check does not apply if it does not make additions of this kind."""
        sampler = self._instance()
        if not getattr(Additions.of(sampler), kind):
            raise NotApplicableError(f"the sampler adds no {KINDS[kind]}")
        return sampler
