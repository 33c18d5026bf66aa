"""Image and text encoders: the towers of an open_clip model. No other encoder imports open_clip."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from clip_negatives.encoders.encoder import (
    Encoder,
    Precision,
    check_model,
    device,
    image_model,
    loading,
    model_encoder,
    restored,
)
from clip_negatives.errors import DataError
from clip_negatives.storage.digests import weights_digest

MAX_CHARACTERS = 10_000  # the rest of a longer text is not tokenized; models read far less
MODELS = Path(__file__).parent.parent / "integrations" / "open_clip" / "models"  # our own model configurations
SCHEMES = ("local-dir:", "hf-hub:")  # prefixes of models with their own configuration and weights

# Characters of a word that are kept. The time of open_clip's tokenizer grows with the square of the length of a word: 20,000
# characters without a space take 20 seconds, so one caption can stop training. Models read only a few hundred characters.
MAX_WORD = 2048
_LONG_WORD = re.compile(rf"(?<!\S)\S{{{MAX_WORD + 1},}}")


def image_tower(model: str, precision: Precision = "fp32") -> Encoder:
    """Return the image tower of ``MODEL/WEIGHTS``, ``local-dir:FOLDER`` or ``hf-hub:NAME``."""
    return towers(*_loaded(model), precision)[0]


def text_tower(model: str, precision: Precision = "fp32") -> Encoder:
    """Return the text tower of a model; see `image_tower`."""
    return towers(*_loaded(model), precision)[1]


def towers(
    model: Any, transform: Callable[[Any], Any], tokenizer: Callable[..., Any], precision: Precision = "fp32"
) -> tuple[Encoder, Encoder]:
    """Return the encoders of images and texts of a model of open_clip in eval mode, with its transform and its tokenizer."""

    def tokens(texts: Sequence[str]) -> Any:
        return tokenizer([text[:MAX_CHARACTERS] for text in texts])

    return (
        image_model(functools.partial(model.encode_image, normalize=True), transform, precision),
        model_encoder(functools.partial(model.encode_text, normalize=True), tokens, precision),
    )


def _loaded(model: str) -> tuple[Any, Callable[[Any], Any], ShortWords]:
    """Return a model, its transform and its tokenizer."""
    from open_clip import factory

    model, weights = (model, "") if model.startswith(SCHEMES) else model.partition("/")[::2]
    with restored(factory, "_MODEL_CONFIG_PATHS", "_MODEL_CONFIGS"):
        factory.add_model_config(MODELS)
        return _load(*_checked(model, weights))


def _checked(model: str, weights: str) -> tuple[str, str, str]:
    """Return model, weights, and the digest of the files of weights, so that a changed file is loaded again."""
    import open_clip

    if model.startswith("local-dir:"):
        folder = Path(model.removeprefix("local-dir:"))
        if not (folder / "open_clip_config.json").is_file():
            raise DataError(f"The folder {folder} has no open_clip_config.json. Name another folder after local-dir:.")
        return model, weights, weights_digest(folder)
    if model.startswith("hf-hub:"):
        return model, weights, ""
    check_model("open_clip", model, open_clip.list_models())
    tags = open_clip.list_pretrained_tags_by_model(model)
    if not Path(weights).is_file() and weights not in tags:
        known = f" or a tag ({', '.join(tags)})" if tags else ""
        raise DataError(
            f"open_clip:{model} has no weights {weights!r}. Use open_clip:{model}/WEIGHTS, a checkpoint file{known}."
        )
    return model, weights, weights_digest(weights)


@functools.lru_cache(maxsize=1)  # the two towers of a model are loaded once
def _load(name: str, weights: str, digest: str) -> tuple[Any, Callable[[Any], Any], ShortWords]:
    import open_clip

    is_file = Path(weights).is_file()
    with loading(f"{name} ({weights})" if weights else name):
        model, _, transform = open_clip.create_model_and_transforms(
            name,
            pretrained=weights or None,
            device=device(),
            require_pretrained=not is_file,  # otherwise a folder without weights gives a random model
            # A checkpoint trained with --siglip has a logit bias, which no encoder uses.
            **({"init_logit_bias": 0.0} if is_file else {}),
        )
        return model.eval(), transform, ShortWords(open_clip.get_tokenizer(name))


def cut_long_words(text: str) -> str:
    """Return a text with every word cut to `MAX_WORD` characters."""
    return text if len(text) <= MAX_WORD else _LONG_WORD.sub(lambda word: word[0][:MAX_WORD], text)


class ShortWords:
    """A tokenizer that cuts long words first, and otherwise behaves like the wrapped `tokenizer`."""

    def __init__(self, tokenizer: Callable[..., Any]) -> None:
        self.tokenizer = tokenizer

    def __call__(self, texts: str | Sequence[str], *rest: Any, **named: Any) -> Any:
        """Return the tokens of the texts."""
        short = cut_long_words(texts) if isinstance(texts, str) else [cut_long_words(text) for text in texts]
        return self.tokenizer(short, *rest, **named)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the tokenizer."""
        if name == "tokenizer":  # not set yet during unpickling
            raise AttributeError(name)
        return getattr(self.tokenizer, name)
