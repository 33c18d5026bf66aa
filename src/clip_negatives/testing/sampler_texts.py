"""What every negative sampler must do with explicit incorrect pairs, and with texts that it adds."""

from __future__ import annotations

from typing import Any

import torch

from clip_negatives.extra_texts import texts_per_image
from clip_negatives.interfaces import PairsOfSome
from clip_negatives.sampling import epoch_generator
from clip_negatives.testing.epochs import B, N, epoch_of, make_sampler
from clip_negatives.testing.subject import Check, NotApplicableError, Subject, expect


def incorrect_pairs_are_of_two_samples(plugin: Subject) -> None:
    """``incorrect_pairs`` returns int64 indices within 0 .. N-1, image and text never of one sample."""
    pairs = make_sampler(plugin).incorrect_pairs(2, epoch_generator(0, 0))
    for name, index in (("image_index", pairs.image_index), ("text_index", pairs.text_index)):
        fits = index.dtype == torch.int64 and index.ndim == 1 and len(index) == len(pairs) > 0
        expect(fits, f"Expected {name} as int64 of shape (M,), got {index.dtype} of shape {tuple(index.shape)}.")
        expect(0 <= int(index.min()) <= int(index.max()) < N, f"Expected {name} within 0 .. {N - 1}.")
    own = int((pairs.image_index == pairs.text_index).sum())
    expect(own == 0, f"Expected texts of other samples, got {own} pairs of an image with its own text.")


def incorrect_pairs_come_once(plugin: Subject) -> None:
    """``incorrect_pairs(per_image)`` gives no image a text twice, nor more than `per_image` of them."""
    for per_image in (1, 3):
        pairs = make_sampler(plugin).incorrect_pairs(per_image, epoch_generator(0, 0))
        most = int(pairs.image_index.bincount().max())
        expect(most <= per_image, f"Expected at most {per_image} pairs for an image, got {most}.")
        distinct = torch.stack([pairs.image_index, pairs.text_index]).unique(dim=1).shape[1]
        expect(distinct == len(pairs), f"Expected pairs that differ, got {len(pairs) - distinct} twice.")


def incorrect_pairs_follow_the_generator(plugin: Subject) -> None:
    """The same generator draws the same incorrect pairs."""
    one, other = (make_sampler(plugin).incorrect_pairs(2, epoch_generator(0, 0)) for _ in range(2))
    same = torch.equal(one.image_index, other.image_index) and torch.equal(one.text_index, other.text_index)
    expect(same, "Expected the same pairs from the same generator, got others.")


def pairs_of_some_images_are_theirs(plugin: Subject) -> None:
    """A sampler that draws pairs of some images draws none of other images, and the same from the same generator."""
    sampler = make_sampler(plugin)
    if not isinstance(sampler, PairsOfSome):
        raise NotApplicableError("it draws the pairs of all images at once")
    images = torch.arange(3, N, 5)
    one, other = (sampler.incorrect_pairs_of(images, 2, epoch_generator(0, 0)) for _ in range(2))
    others = int((~torch.isin(one.image_index, images)).sum())
    expect(others == 0, f"Expected pairs of the images that were asked for, got {others} of other images.")
    own = int((one.image_index == one.text_index).sum())
    expect(own == 0, f"Expected texts of other samples, got {own} pairs of an image with its own text.")
    same = torch.equal(one.image_index, other.image_index) and torch.equal(one.text_index, other.text_index)
    expect(same, "Expected the same pairs from the same generator, got others.")


def extra_texts_fit_the_batch(plugin: Subject) -> None:
    """A sampler that adds texts adds as many strings to each sample as it says."""
    sampler, each = _adding(plugin)
    for batch in epoch_of(sampler)[:3]:
        texts = sampler.extra_texts(batch)
        fit = isinstance(texts, list) and len(texts) == each * len(batch) and all(isinstance(text, str) for text in texts)
        expect(fit, f"Expected a list of {each * len(batch)} texts for {len(batch)} samples, got {len(texts)} of them.")


def extra_texts_follow_the_seed(plugin: Subject) -> None:
    """A sampler that adds texts adds the same ones in the same epoch, wherever it is resumed."""
    (one, _), (other, _) = _adding(plugin), _adding(plugin)
    batch = list(range(B))
    expect(one.extra_texts(batch) == other.extra_texts(batch), "Expected the same texts in the same epoch, got others.")


def _adding(plugin: Subject) -> tuple[Any, int]:
    """Return the sampler and how many texts it adds to each sample."""
    sampler = make_sampler(plugin)
    each = texts_per_image(sampler)
    if not each:
        raise NotApplicableError("it adds no texts")
    return sampler, each


CHECKS: tuple[Check, ...] = (
    incorrect_pairs_are_of_two_samples,
    incorrect_pairs_come_once,
    incorrect_pairs_follow_the_generator,
    pairs_of_some_images_are_theirs,
    extra_texts_fit_the_batch,
    extra_texts_follow_the_seed,
)
