"""Extremely long words are cut; other texts stay as they are."""

from __future__ import annotations

import pickle
import random
import string

import open_clip
import pytest
import torch

from clip_negatives.encoders.open_clip import MAX_WORD, ShortWords, cut_long_words

WORD = "".join(random.Random(0).choices(string.ascii_lowercase, k=MAX_WORD))


@pytest.mark.parametrize("text", ["", "a red shoe", WORD, f"{WORD} {WORD}\n{WORD}", " " * 10**4, "shoe, " * 10**4])
def test_shorter_words_are_kept(text: str) -> None:
    assert cut_long_words(text) == text


def test_long_word_is_cut_and_the_rest_is_kept() -> None:
    assert cut_long_words(f"one {WORD * 50} two {WORD}") == f"one {WORD} two {WORD}"


def test_a_tokenizer_reads_the_same_tokens() -> None:
    theirs = open_clip.get_tokenizer("ViT-B-32")
    ours = pickle.loads(pickle.dumps(ShortWords(theirs)))  # as in a worker process
    texts = ["", "a red shoe", "shoe, " * 100, f"{WORD[:900]} shoe"]
    assert torch.equal(ours(texts), theirs(texts))
    assert torch.equal(ours(texts[1]), theirs(texts[1]))
    assert torch.equal(ours(texts, context_length=20), theirs(texts, context_length=20))
    assert ours.context_length == theirs.context_length == 77
    assert torch.equal(ours([WORD * 10**4]), ours([WORD]))  # 2e7 letters, which would take the plain tokenizer months
