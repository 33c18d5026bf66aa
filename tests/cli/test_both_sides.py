"""Options of the command and of open_clip may stand before or after ``--``."""

from __future__ import annotations

from typing import Any

import click
import pytest
from click.testing import CliRunner

from clip_negatives.cli import main, parameters, training
from clip_negatives.integrations.open_clip.arguments import parsed

COLUMN_OPTIONS = {"--csv-separator", "--csv-img-key", "--csv-caption-key"}  # of both, with the same meaning


@pytest.mark.parametrize(
    "line",
    [
        ["--sampler", "in_batch", "--image-key", "img", "--", "--train-data", "a.csv", "--lr", "-1", "--seed", "5"],
        ["--train-data", "a.csv", "--lr", "-1", "--seed", "5", "--sampler", "in_batch", "--csv-img-key", "img"],
        ["--", "--train-data", "a.csv", "--sampler=in_batch", "--lr=-1", "--csv-img-key", "img", "--seed", "5"],
    ],
)
def test_every_order_means_the_same(line: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, Any]] = []
    monkeypatch.setattr(
        "clip_negatives.integrations.open_clip.train", lambda arguments, options: calls.append((arguments, options))
    )
    assert CliRunner().invoke(main, ["train", *line]).exit_code == 0
    ((arguments, options),) = calls
    args = parsed(arguments)
    assert (args.train_data, args.lr, args.seed, args.csv_img_key, args.csv_caption_key) == ("a.csv", -1, 5, "img", "")
    assert options.sampler == "in_batch"


@pytest.mark.parametrize("command", [training.train, training.compare])
def test_no_option_of_a_command_is_one_of_open_clip(command: click.Command) -> None:
    own = {name for parameter in command.params if isinstance(parameter, click.Option) for name in parameter.opts}
    theirs = {f"--{name.replace('_', '-')}" for name in vars(parsed([]))}
    assert own & theirs == COLUMN_OPTIONS
    assert isinstance(command, parameters.OptionsOnBothSides)


def test_help_of_open_clip_is_shown_after_the_dashes() -> None:
    assert "--grad-clip-norm" in CliRunner().invoke(main, ["train", "--", "--help"]).output
    assert "--grad-clip-norm" not in CliRunner().invoke(main, ["train", "--help"]).output


def test_an_unknown_option_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    result = CliRunner().invoke(main, ["train", "--train-data", "a.csv", "--wieghting", "uniform"])
    assert result.exit_code == 2
    assert "--wieghting" in result.output
