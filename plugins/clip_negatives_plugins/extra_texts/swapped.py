"""Captions with swapped words, as in NegCLIP."""

from __future__ import annotations

import random

from clip_negatives.host.option_checks import check_number
from clip_negatives.interfaces import SamplingContext
from clip_negatives_plugins.extra_texts.adding import Adding


class SwappedWords(Adding):
    """Add the sample's own caption with two words swapped, so that the model must learn word order.

    Do not use it if word order has no meaning, as in lists of tags: the added captions are then *correct*. The loss ignores
    an added caption if the swapped words lie beyond the text length of the model.

    * Source: NegCLIP (Yuksekgonul et al., 2023, arXiv:2210.01936). A parser finds words of one kind (nouns, adjectives,
      adverbs, verbs or noun phrases), which are swapped once for the whole training. NegCLIP also adds similar images with
      their captions; `hard_pairs` does so here.
    * Our choice: any two different words are swapped, anew each epoch, without a parser. A caption without two different
      words is replaced by the caption of a random other sample.
    * Sign: raises captions with the same words; uses no similarity.

    Args:
        of: name of the sampler that makes the batches, without options.
        per_image: captions added for each sample, at least 1.
        log_weight: log-weight of the added captions as negatives, below inf.

    Raises:
        UnknownNameError: there is no such sampler.
        InputError: there are no captions.
    """

    def __init__(self, context: SamplingContext, of: str = "in_batch", per_image: int = 1, log_weight: float = 0.0) -> None:
        check_number("per_image", per_image, at_least=1)
        super().__init__(context, of, per_image, log_weight)

    def texts_of(self, index: int) -> list[str]:
        """Return `per_image` captions: the own caption of the sample, each time with two words swapped."""
        draw = random.Random(f"{self.context.seed} {self.epoch} {index}")  # noqa: S311  # no secret
        return [swapped(self.captions[index], draw) or self._random_caption(index, draw) for _ in range(self.texts_per_image)]

    def _random_caption(self, index: int, draw: random.Random) -> str:
        # If this caption equals the sample's own caption, the loss ignores it.
        return self.captions[(index + draw.randrange(1, max(2, len(self.captions)))) % len(self.captions)]


def swapped(text: str, draw: random.Random) -> str | None:
    """Return a text with two different words swapped, or None if all words are the same, ignoring case.

    Examples:
        >>> swapped("black cat", random.Random(0))
        'cat black'
    """
    words = text.split()
    folded = [word.casefold() for word in words]
    if len(set(folded)) < 2:
        return None
    left = draw.randrange(len(words))
    right = draw.choice([place for place, word in enumerate(folded) if word != folded[left]])
    words[left], words[right] = words[right], words[left]
    return " ".join(words)
