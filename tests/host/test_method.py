from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import clip_negatives
from clip_negatives import Method, Recipe, SamplingContext
from clip_negatives.errors import InputError, OptionError, UnknownNameError
from clip_negatives.host.method import split_methods

SOURCE = Path(clip_negatives.__file__).parent

TEXTS = {
    "default": Method(),
    "paper": Method(weighting="weighted_infonce:text_beta=0.0,remove=true"),
    "in_batch": Method("in_batch", "uniform"),
    "cluster_similarity:image_quantile=0.8": Method("cluster_similarity:image_quantile=0.8", "uniform"),
    "weighted_infonce:beta=2": Method("in_batch", "weighted_infonce:beta=2"),
    "one_cluster+gate:image_quantile=0.9": Method("one_cluster", "gate:image_quantile=0.9"),
    "default@0.1": Method(temperature=0.1),
    "weighted_infonce:beta=2,normalize=false@0.05": Method("in_batch", "weighted_infonce:beta=2,normalize=false", 0.05),
}


@pytest.mark.parametrize("text", TEXTS)
def test_a_method_is_read_and_written(text: str) -> None:
    assert Method.parse(text) == TEXTS[text]
    assert str(TEXTS[text]) == text


def test_the_long_form_is_written_short() -> None:
    assert str(Method.parse("cluster_similarity+weighted_infonce")) == "default"
    assert str(Method.parse("in_batch+weighted_infonce:beta=2")) == "weighted_infonce:beta=2"


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("papr", UnknownNameError, "Did you mean 'paper'"),
        ("in_batch+weighted", UnknownNameError, "weighted_infonce"),
        ("in_batch+weighted_infonce:bet=2", OptionError, "beta"),
        ("paper@", InputError, "paper@0.1"),
        ("paper@low", InputError, "paper@0.1"),
        ("paper@5", InputError, "0.01 .. 1"),
    ],
)
def test_bad_methods(text: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Method.parse(text)


def test_plugins_of_a_method() -> None:
    assert [plugin.name for plugin in Method().plugins] == ["cluster_similarity", "weighted_infonce"]
    assert Method().requires_clusters
    assert not Method.parse("in_batch").requires_clusters
    sampler = Method.parse("in_batch").create_sampler(SamplingContext.of(None, 2, n_samples=6))
    assert len(sampler) == 3


def test_a_context_needs_a_number_of_samples() -> None:
    with pytest.raises(InputError, match="n_samples"):
        SamplingContext.of(None, 2)


def test_defaults_are_written_once() -> None:
    """Each name that is a default is written in one line of the package; encoders are also registered by name."""
    fields = [field for kind in (Method, Recipe) for field in dataclasses.fields(kind)]
    defaults = {str(field.default) for field in fields if isinstance(field.default, str)} - {Recipe.feature_dtype}
    assert len(defaults) == 5
    files = [file for file in SOURCE.rglob("*.py") if file.parent != SOURCE / "encoders"]
    lines = [line.strip() for file in files for line in file.read_text().splitlines() if "limit(" not in line]
    for default in defaults:
        assert [line for line in lines if f'= "{default}"' in line or f', "{default}")' in line or f'="{default}"' in line] == [
            f'{field.name}: str = "{default}"' for field in fields if field.default == default
        ]


def test_a_list_of_methods_is_split_between_methods_only() -> None:
    methods = ["paper", "in_batch+weighted_infonce:beta=2,normalize=false", "default@0.1"]
    assert split_methods(",".join(methods)) == methods
