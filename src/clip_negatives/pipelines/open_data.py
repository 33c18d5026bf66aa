"""Open the data of `prepare`, and precomputed features."""

from __future__ import annotations

from pathlib import Path

from clip_negatives.advice import argument
from clip_negatives.dataset import ImageTextPairs, TablePairs
from clip_negatives.dataset.given import feature_places
from clip_negatives.errors import DataError, InputError
from clip_negatives.features.given import GivenFeatures, open_features
from clip_negatives.pipelines.recipe import Recipe


def open_data(
    data: ImageTextPairs | str | Path, recipe: Recipe, features: str | Path | None
) -> tuple[ImageTextPairs, dict[str, GivenFeatures]]:
    """Return the pairs, and the precomputed features by "image" and "text".

    Raises:
        DataError: the data or the features cannot be read, or differ in the number of rows.
        InputError: the recipe names an encoder or a dtype for precomputed features.
    """
    if features is None:
        return recipe.open(data, may_lack_tars=True), {}
    option, has_images = argument("features"), feature_places(features).image is not None
    source = recipe.open(data, images=not has_images)
    if not isinstance(source, TablePairs):
        raise DataError(f"{option} needs a table with the text of each row, not tars. Name a table as data.")
    given = open_features(features, source)
    unused = [f"{side}_encoder" for side in given] + ["feature_dtype"] * (len(given) > 1)
    for name in unused:
        if getattr(recipe, name) != getattr(Recipe, name):
            raise InputError(f"{argument(name)} has no effect, because {option} has these features. Omit {argument(name)}.")
    return source.without_images() if has_images else source, given
