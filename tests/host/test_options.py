from __future__ import annotations

from typing import Optional

import pytest

from clip_negatives.errors import OptionError, PluginLoadError
from clip_negatives.host.options import bind_options, options_of, parse_spec


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
    assert [str(option) for option in options] == [
        "k: int = 3",
        "share: float | none = None",
        "name: str = a",
        "flag: bool = False",
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


def test_options_need_defaults_and_plain_types() -> None:
    def without_default(k: int) -> None: ...
    def of_list(k: list[int] = []) -> None: ...  # noqa: B006

    for broken in (without_default, of_list):
        with pytest.raises(PluginLoadError, match="'k'"):
            options_of(broken)
