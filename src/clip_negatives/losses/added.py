"""Captions and images that a sampler adds to a batch, separated from the features of its samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from clip_negatives.errors import InputError
from clip_negatives.losses.gathering import Gathering
from clip_negatives.losses.kernels.pairs import Extras, Inputs
from clip_negatives.losses.stored_terms import checked_integers, moved
from clip_negatives.step import BatchSamples


@dataclass(frozen=True)
class Added:
    """What a sampler adds to each sample of a batch.

    Attributes:
        texts: number of captions, E.
        images: number of images, F.
        positive_texts: whether the captions are positives of their own image.
        log_weight: log-weight of the captions and images as negatives.
    """

    texts: int = 0
    images: int = 0
    positive_texts: bool = False
    log_weight: float = 0.0

    def __post_init__(self) -> None:
        if not self.log_weight < math.inf:
            wrong = f"extra_log_weight must be a number below inf, got {self.log_weight}"
            raise InputError(f"{wrong}. Correct log_weight of the sampler.")

    @property
    def per_sample(self) -> int:
        """Return the number of captions and images of each sample."""
        return self.texts + self.images

    def __str__(self) -> str:
        return " and ".join(name for name, n in (("captions", self.texts), ("images", self.images)) if n)

    def split(self, inputs: Inputs, samples: BatchSamples | None, gathering: Gathering) -> tuple[Inputs, dict[str, Extras]]:
        """Return the inputs of the own samples, and the added captions and images of all processes, by name."""
        n, per_image, per_text = len(inputs.x) // (1 + self.images), 1 + self.images, 1 + self.texts
        for name, features, added in (("text", inputs.y, self.texts), ("image", inputs.x, self.images)):
            if len(features) != (size := n * (1 + added)):
                needed = f"{n} {name}s with {added} added {name}s each need {size} {name} features"
                raise InputError(f"{needed}, got {len(features)}. Encode all {name}s of the wrapped loader's batch.")
        images, texts = inputs.x.reshape(n, per_image, -1), inputs.y.reshape(n, per_text, -1)
        ids = None if samples is None else samples.text_ids
        if ids is not None:
            ids = moved(checked_integers("text_ids", ids, (n, per_text + self.images)), inputs.y.device)
        extras = {}
        if self.texts:
            extras["extra_texts"] = self._extras(texts, ids, slice(1, per_text), gathering, self.positive_texts)
        if self.images:
            extras["extra_images"] = self._extras(images, ids, slice(per_text, None), gathering, positive=False)
        return inputs._replace(x=images[:, 0], y=texts[:, 0]), extras

    def _extras(self, features: Tensor, ids: Tensor | None, columns: slice, gathering: Gathering, positive: bool) -> Extras:
        """Return the added features of all processes; `columns` are those of their ids."""
        extra = gathering.extra_features(features[:, 1:].flatten(0, 1))
        if ids is None:
            return Extras(extra, None, None, self.log_weight, positive)
        own_ids = ids[:, 0] if gathering.local_loss else gathering.rows(ids[:, 0].contiguous())
        return Extras(extra, own_ids, gathering.rows(ids[:, columns].flatten()), self.log_weight, positive)
