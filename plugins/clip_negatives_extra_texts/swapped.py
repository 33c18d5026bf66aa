"""Texts with swapped words, as NegCLIP makes them."""

from __future__ import annotations

import random

from clip_negatives.interfaces import SamplingContext
from clip_negatives_extra_texts.adding import Adding


class SwappedWords(Adding):
    """Add the sample's own text with two of its words swapped.

    The model must then look at the order of words. Source: NegCLIP (Yuksekgonul et al., 2023, arXiv:2210.01936), which swaps
    words of one kind (nouns, adjectives, adverbs, verbs or noun phrases, found by a parser) once for all training, and also
    adds similar images with their texts, which `hard_pairs` does. Here any two different words are swapped, anew each epoch:
    our choice, it needs no parser. A text without two different words gives way to that of a random other sample. A swap that
    the model cannot see, beyond the length that it reads, is left out by the loss. Where the
    order of words says nothing, as in lists of tags, the added texts are *correct* ones: do not use it there.
    Sign: raises texts that are similar in words; looks at no similarity.

    Args:
        context: what to sample for; needs captions.
        of: name of a sampler without options, whose batches are taken.
        per_image: texts that are added for each sample.

    Raises:
        UnknownNameError: there is no such sampler.
        InputError: `per_image` is less than 1, or there are no captions.
    """

    def __init__(self, context: SamplingContext, of: str = "in_batch", per_image: int = 1) -> None:
        super().__init__(context, of, per_image)

    def texts_of(self, index: int) -> list[str]:
        """Return the text of a sample with swapped words."""
        draw = random.Random(f"{self.context.seed} {self.epoch} {index}")  # noqa: S311  # no secret
        return [swapped(self.captions[index], draw) or self._other(index, draw) for _ in range(self.texts_per_image)]

    def _other(self, index: int, draw: random.Random) -> str:
        # One that is equal is left out by the loss.
        return self.captions[(index + draw.randrange(1, max(2, len(self.captions)))) % len(self.captions)]


def swapped(text: str, draw: random.Random) -> str | None:
    """Return a text with two words swapped that differ in more than case, None where there are no two.

    Examples:
        >>> swapped("black cat", random.Random(0))
        'cat black'
    """
    words = text.split()
    same = [word.casefold() for word in words]
    if len(set(same)) < 2:
        return None
    one = draw.randrange(len(words))
    other = draw.choice([place for place, word in enumerate(same) if word != same[one]])
    words[one], words[other] = words[other], words[one]
    return " ".join(words)
