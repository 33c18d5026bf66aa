"""Words without end in captions, for which a tokenizer of byte pairs takes minutes.

open_clip's tokenizer takes time that grows with the square of the length of a word: 20,000 letters without a space take it 20
seconds, and a data set that holds such a caption by accident or by malice stops training. No model reads that far: a context
of 77 tokens ends within some hundred letters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

LONGEST = 2048
"""Letters that are left of a word, more than a context takes; open_clip's tokenizer needs half a second for them."""

_ENDLESS = re.compile(rf"(?<!\S)\S{{{LONGEST + 1},}}")


def cut_endless_words(text: str) -> str:
    """Return a text whose words have `LONGEST` characters at most.

    Examples:
        >>> cut_endless_words("a red shoe")
        'a red shoe'
        >>> len(cut_endless_words("x" * 10**6))
        2048
    """
    return text if len(text) <= LONGEST else _ENDLESS.sub(lambda found: found[0][:LONGEST], text)


class ShortWords:
    """Call a tokenizer with texts whose words end; else it is the tokenizer that it was.

    Args:
        tokenizer: called with a text or with several.
    """

    def __init__(self, tokenizer: Callable[..., Any]) -> None:
        self.tokenizer = tokenizer

    def __call__(self, texts: str | Sequence[str], *rest: Any, **named: Any) -> Any:
        """Return what the tokenizer makes of the texts."""
        short = cut_endless_words(texts) if isinstance(texts, str) else [cut_endless_words(text) for text in texts]
        return self.tokenizer(short, *rest, **named)

    def __getattr__(self, name: str) -> Any:
        """Return what the tokenizer has under a name."""
        if name == "tokenizer":  # not there yet while it is unpickled
            raise AttributeError(name)
        return getattr(self.tokenizer, name)
