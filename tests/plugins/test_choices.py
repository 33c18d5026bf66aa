"""Options with fixed values: the annotation and the check of the constructor allow the same values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from clip_negatives.errors import InputError, OptionError
from clip_negatives.host import registry
from clip_negatives.host.options import Option
from clip_negatives.interfaces import Clusters, SamplingContext

CHOICES = [(item, option) for item in registry.default_registry().items() for option in item.options if option.choices]


def test_there_are_some() -> None:
    assert len(CHOICES) >= 15


@pytest.mark.parametrize(("item", "option"), CHOICES, ids=lambda value: value.name)
def test_every_allowed_value_is_accepted_and_no_other(item: registry.Registration, option: Option, clusters: Clusters) -> None:
    clusters = replace(clusters, groups=clusters.image.labels)
    context = [SamplingContext.of(clusters, 16)] if item.kind == "negative_sampler" else []
    with pytest.raises(OptionError, match=rf"Expected {option.choices[0]}.* or {option.choices[-1]}".replace("|", r"\|")):
        item.factory(*context, **registry.default_registry().resolve(item.kind, f"{item.name}:{option.name}=7")[1])
    with pytest.raises(InputError, match=option.name):
        item.factory(*context, **{option.name: wrong(option)})
    for value in option.choices:
        item.factory(*context, **registry.default_registry().resolve(item.kind, f"{item.name}:{option.name}={value}")[1])


def wrong(option: Option) -> Any:
    return "colour" if option.type is str else 7
