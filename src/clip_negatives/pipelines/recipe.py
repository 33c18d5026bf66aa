"""The recipe of clusters: encoders, clusterers, seed and columns."""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING

from clip_negatives.dataset.columns import Columns
from clip_negatives.errors import InputError

if TYPE_CHECKING:
    from clip_negatives.dataset import ImageTextPairs

POINTS_PER_CLUSTER = 256  # samples that train each centroid, as in faiss: more hardly change it


@dataclass(frozen=True)  # without slots: `Recipe.clusterer` is the default, for signatures and the command line
class Recipe:
    """Settings that determine the clusters of a data set.

    Attributes:
        image_encoder: encoder of the images, see `clip_negatives.encoders`.
        text_encoder: encoder of the texts.
        clusterer: ``name`` or ``name:key=value,...`` of the clusterer.
        text_clusterer: clusterer of the texts; None uses `clusterer`.
        seed: seed of the clustering, at least 0.
        feature_dtype: type of the features that are clustered, "float32" or "float16".
        columns: the columns of a csv file, and the group field of tars. `train` and `compare` use only the group from here; the
            other columns come from open_clip's arguments.
    """

    image_encoder: str = "pixels"
    text_encoder: str = "tfidf"
    clusterer: str = "kmeans"
    text_clusterer: str | None = None
    seed: int = 0
    feature_dtype: str = "float32"
    columns: Columns = field(default_factory=Columns)

    @property
    def clusterers(self) -> dict[str, str]:
        """Return the clusterers of images and texts by their keys in a manifest."""
        return {"clusterer": self.clusterer, "text_clusterer": self.text_clusterer or self.clusterer}

    @property
    def encoders(self) -> tuple[str, str]:
        """Return the full names of both encoders, with options and digests of weights (PluginError if unknown)."""
        from clip_negatives.encoders import encoder_name

        return encoder_name("image", self.image_encoder), encoder_name("text", self.text_encoder)

    def open(self, data: ImageTextPairs | str | Path, *, images: bool = True, may_lack_tars: bool = False) -> ImageTextPairs:
        """Open a path, a URL (see `clip_negatives.dataset.open_pairs`) or a ``datasets.Dataset`` with the recipe's columns.

        Without `images`, a table may lack them, and none is opened. With `may_lack_tars`, `encode` checks that tars exist.
        """
        from clip_negatives.dataset import dataset_pairs, open_pairs
        from clip_negatives.dataset.hugging_face import is_dataset

        if isinstance(data, str | Path):
            return open_pairs(data, self.columns, images=images, may_lack_tars=may_lack_tars)
        if is_dataset(data):
            return dataset_pairs(data, self.columns, images=images)
        if not hasattr(data, "parts"):
            raise InputError(
                f"Expected a path, a URL or image-text pairs as data, got an object of type {type(data).__name__}."
            )
        return data

    def check(self, n_samples: int | None = None) -> None:
        """Check the settings, before the data are encoded.

        Args:
            n_samples: number of samples; None if it is not known.

        Raises:
            PluginError: an encoder, a clusterer or an option is unknown, or a value has the wrong type.
            InputError: the seed is negative, a value is out of its range, or there are more clusters than samples.
        """
        from clip_negatives.clustering.fit import check_clusterers

        if not isinstance(self.seed, Integral) or self.seed < 0:
            raise InputError(f"Expected a whole number >= 0 as seed, got {self.seed!r}.")
        check_clusterers(n_samples, **self.clusterers)
        _ = self.encoders
