from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, PathDistribution
from pathlib import Path

import pytest

from clip_negatives.errors import DuplicateNameError, OptionError, PluginLoadError, UnknownNameError
from clip_negatives.host.registry import KINDS, Registry, default_registry

SOUND = """
from clip_negatives import hookimpl

class Mine:
    def __init__(self, beta: float = 1.0) -> None:
        self.beta = beta

@hookimpl
def clip_negatives_register_loss_weightings():
    return {"mine": Mine}
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Make installed distributions of one plugin module each."""
    monkeypatch.syspath_prepend(str(tmp_path))
    made: list[str] = []

    def make(distribution: str, plugin: str, module: str, code: str) -> Distribution:
        (tmp_path / f"{module}.py").write_text(code)
        made.append(module)
        info = tmp_path / f"{distribution}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[clip_negatives]\n{plugin} = {module}\n")
        return PathDistribution(info)

    yield make
    for module in made:
        sys.modules.pop(module, None)


def test_defaults_come_through_entry_points_alone() -> None:
    assert Registry([]).items() == []
    assert {item.distribution for item in default_registry().items()} >= {"clip-negatives"}
    assert {item.kind for item in default_registry().items()} == set(KINDS)


def test_third_party_plugin(fake) -> None:
    registry = Registry([fake("theirs", "mine", "their_module", SOUND)], disabled=())
    (item,) = registry.items()
    assert (item.kind, item.name, item.plugin, item.distribution, item.version) == (
        "loss_weighting",
        "mine",
        "mine",
        "theirs",
        "1.2",
    )
    assert registry.create("loss_weighting", "mine:beta=3").beta == 3.0
    with pytest.raises(OptionError, match="beta"):
        registry.create("loss_weighting", "mine:gamma=3")


def test_distributions_without_metadata(fake) -> None:
    """A broken uninstall leaves such folders; each one is another distribution."""
    found = []
    for name in ("mine", "other"):
        distribution = fake(name, name, f"{name}_module", SOUND.replace('"mine"', f'"{name}"'))
        (distribution._path / "METADATA").unlink()
        found.append(distribution)
    items = Registry(found, disabled=()).items()
    assert [(item.name, Path(item.distribution).name, item.version) for item in items] == [
        (name, f"{name}-1.2.dist-info", "of unknown version") for name in ("mine", "other")
    ]


def test_two_entry_points_of_one_name_name_both_distributions(fake) -> None:
    first = fake("theirs", "mine", "their_module", SOUND)
    second = fake("others", "mine", "other_module", SOUND)
    with pytest.raises(DuplicateNameError, match=r"theirs 1\.2 and others 1\.2"):
        Registry([first, second])


def test_two_factories_of_one_name(fake) -> None:
    found = [fake("theirs", "mine", "their_module", SOUND), fake("others", "other", "other_module", SOUND)]
    with pytest.raises(DuplicateNameError, match=r"'mine'.*theirs.*others|'mine'.*others.*theirs"):
        Registry(found)
    assert [item.distribution for item in Registry(found, disabled=["other"]).items()] == ["theirs"]


def test_failing_import_names_plugin_distribution_and_remedy(fake, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [fake("theirs", "mine", "their_module", "import module_that_is_not_there")]
    with pytest.raises(PluginLoadError, match=r"'mine'.*theirs 1\.2.*CLIP_NEGATIVES_DISABLED_PLUGINS=mine"):
        Registry(found)
    monkeypatch.setenv("CLIP_NEGATIVES_DISABLED_PLUGINS", " x , mine ")
    assert Registry(found).items() == []


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (SOUND.replace("weightings", "weihtings"), "clip_negatives_register_loss_weihtings"),
        (SOUND.replace("loss_weightings():", "loss_weightings(x):"), "has invalid hooks"),
        ("x = 1", "implements no hook"),
        (SOUND.replace("beta: float = 1.0", "beta"), "'beta'"),
    ],
    ids=["misspelt hook", "wrong parameters", "no hook", "option without default"],
)
def test_module_that_does_not_fit(fake, code: str, words: str) -> None:
    with pytest.raises(PluginLoadError, match=words):
        Registry([fake("theirs", "mine", "their_module", code)])


def test_unknown_name_offers_the_nearest() -> None:
    message = r"Unknown negative sampler: 'in_bach'\. Did you mean 'in_batch'\? Known: .*in_batch"
    with pytest.raises(UnknownNameError, match=message):
        default_registry().get("negative_sampler", "in_bach")


EACH_NAME_ALONE = """
import os, torch, clip_negatives
assert clip_negatives.__all__ == sorted(clip_negatives.__all__)
for name in clip_negatives.__all__:
    if (child := os.fork()) == 0:
        try:
            exec(f"from clip_negatives import {name}")
        except BaseException as error:
            print(name, error)
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, name
"""


def test_every_public_name_can_be_imported_first() -> None:
    """Each name in a process of its own: a name that was imported before may have loaded the module that it needs."""
    done = subprocess.run([sys.executable, "-c", EACH_NAME_ALONE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import sys\nsys.exit(3)", r"fails to import: SystemExit: 3\. "),
        (SOUND.replace('return {"mine": Mine}', "import absent"), "ModuleNotFoundError: No module named 'absent'"),
        (SOUND.replace('{"mine": Mine}', '[("mine", Mine)]'), "Expected a mapping from names to factories"),
        (SOUND.replace('{"mine": Mine}', '{"mine": 3}'), "must be callable, got 3"),
        (SOUND.replace("beta: float = 1.0", "beta: list = ()"), "'beta'"),
    ],
)
def test_whatever_a_plugin_does_wrong_is_told_with_its_name_and_the_way_on(fake, code: str, words: str) -> None:
    with pytest.raises(PluginLoadError, match=words) as found:
        Registry([fake("theirs", "mine", "their_module", code)], disabled=())
    assert "plugin 'mine' (their_module) of theirs 1.2" in str(found.value)
    assert str(found.value).endswith("or set CLIP_NEGATIVES_DISABLED_PLUGINS=mine to continue without it.")
    assert "\n" not in str(found.value)
