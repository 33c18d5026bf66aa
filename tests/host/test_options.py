from __future__ import annotations

import dataclasses
from typing import Literal, Optional

import pytest

from clip_negatives.errors import OptionError, PluginLoadError
from clip_negatives.host.options import bind_options, options_of, parse_spec
from clip_negatives_plugins.kmeans.clusterer import KMeans


def factory(context: object, k: int = 3, share: float | None = None, name: str = "a", flag: bool = False) -> None: ...


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("kmeans", ("kmeans", {})),
        ("kmeans:", ("kmeans", {})),
        (" kmeans : k = 3 , a=b=c ", ("kmeans", {"k": "3", "a": "b=c"})),
    ],
)
def test_parse_spec(spec: str, expected: tuple[str, dict[str, str]]) -> None:
    assert parse_spec(spec) == expected


@pytest.mark.parametrize("spec", ["kmeans:k", "kmeans:=3", "kmeans:k=1,k=2"])
def test_parse_spec_refuses(spec: str) -> None:
    with pytest.raises(OptionError, match="key=value"):
        parse_spec(spec)


def test_options_are_read_from_the_signature() -> None:
    options = options_of(factory, skip=1)
    assert [(option.name, option.allowed, option.default) for option in options] == [
        ("k", ["int"], 3),
        ("share", ["float", "none"], None),
        ("name", ["str"], "a"),
        ("flag", ["bool"], False),
    ]


def test_values_are_typed() -> None:
    options = options_of(factory, skip=1)
    given = {"k": "4", "share": "0.5", "name": "b", "flag": "yes"}
    assert bind_options("plugin", options, given) == {"k": 4, "share": 0.5, "name": "b", "flag": True}
    assert bind_options("plugin", options, {"share": "none"}) == {"share": None}
    assert bind_options("plugin", options, {"share": 1, "k": 2, "flag": False}) == {"share": 1.0, "k": 2, "flag": False}


@pytest.mark.parametrize(
    ("key", "value"), [("k", "x"), ("k", "1.5"), ("k", "none"), ("k", True), ("flag", "maybe"), ("share", "x"), ("name", 3)]
)
def test_wrong_types_name_plugin_key_and_value(key: str, value: object) -> None:
    with pytest.raises(OptionError, match=rf"option '{key}' of 'plugin'"):
        bind_options("plugin", options_of(factory, skip=1), {key: value})


def test_unknown_key_lists_the_keys() -> None:
    message = r"Unknown option of 'plugin': 'shar'\. Did you mean 'share'\? Known: flag, k, name, share"
    with pytest.raises(OptionError, match=message):
        bind_options("plugin", options_of(factory, skip=1), {"shar": "1"})


def test_old_spelling_of_optional() -> None:
    def old(k: Optional[int] = None) -> None: ...  # noqa: UP045

    assert options_of(old)[0].optional


def test_allowed_values_come_from_the_annotation() -> None:
    def of_choices(by: Literal["image", "text"] = "text", levels: Literal[1, 2] | None = None) -> None: ...

    options = options_of(of_choices)
    assert [option.allowed for option in options] == [["image", "text"], ["1", "2", "none"]]
    assert bind_options("plugin", options, {"by": "image", "levels": "2"}) == {"by": "image", "levels": 2}
    assert bind_options("plugin", options, {"levels": "none"}) == {"levels": None}
    with pytest.raises(OptionError, match="Expected image or text for option 'by' of 'plugin', got 'colour'"):
        bind_options("plugin", options, {"by": "colour"})
    with pytest.raises(OptionError, match="Expected 1, 2 or none for option 'levels' of 'plugin', got '3'"):
        bind_options("plugin", options, {"levels": "3"})


def test_annotations_of_a_base_class_use_the_names_of_its_module() -> None:
    """`Precision` is a name of the module of `KMeans`."""
    subclass = dataclasses.make_dataclass("Subclass", [], bases=(KMeans,))
    assert options_of(subclass) == options_of(KMeans)


def test_options_need_defaults_and_plain_types() -> None:
    def without_default(k: int) -> None: ...
    def of_list(k: list[int] = []) -> None: ...  # noqa: B006
    def of_two_types(k: int | str = 1) -> None: ...
    def of_mixed_values(k: Literal[1, "a"] = 1) -> None: ...

    for broken in (without_default, of_list, of_two_types, of_mixed_values):
        with pytest.raises(PluginLoadError, match="'k'"):
            options_of(broken)
