"""The weighting `blend` needs a fixed temperature: every way of training with a learned one stops."""

from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from clip_negatives import Method, hold_temperature
from clip_negatives.cli import main
from clip_negatives.compare import parse_methods
from clip_negatives.errors import InputError
from clip_negatives.integrations.open_clip import TrainOptions
from clip_negatives.interfaces import Clusters
from clip_negatives.training.temperature import check_temperature_of
from clip_negatives_plugins.soft_targets.blend import Blend

LEARNED = "The weighting blend needs a fixed temperature, but the temperature is learned"
ALLOWED = "blend:learned_temperature=true"


def test_all_directions_are_the_same_as_no_rank(clusters: Clusters) -> None:
    full, projected = Blend()(clusters).target_factors, Blend(rank=16)(clusters).target_factors
    assert projected.shape == full.shape == (clusters.n_samples, 16)
    torch.testing.assert_close(projected @ projected.T, full @ full.T, rtol=1e-4, atol=1e-4)
    assert Blend(rank=3)(clusters).target_factors.shape == (clusters.n_samples, 3)


def test_a_train_command_stops(tmp_path) -> None:
    (tmp_path / "train.csv").write_text("filepath\ttitle\n")
    arguments = ["train", "--weighting", "blend", "--", "--train-data", str(tmp_path / "train.csv"), "--model", "RN50"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert f"{LEARNED}. Set --temperature to a number, such as 0.1, or {ALLOWED} to train all the same." in " ".join(
        result.output.split()
    )


@pytest.mark.parametrize("weighting", ["blend", "blend:mass=0.1"])
def test_train_options_are_checked(weighting: str) -> None:
    with pytest.raises(InputError, match=rf"{LEARNED}\. Set temperature= to a number, such as 0\.1, or {ALLOWED}"):
        TrainOptions(weighting=weighting).check()
    TrainOptions(weighting=weighting, temperature=0.1).check()
    TrainOptions(weighting=ALLOWED).check()


def test_a_comparison_stops_before_it_reads_data() -> None:
    with pytest.raises(InputError, match=rf"{LEARNED}\. Write cluster_similarity\+blend:mass=0\.1@0\.1, or {ALLOWED}"):
        parse_methods("cluster_similarity+blend:mass=0.1")
    assert parse_methods("blend@0.1,blend:learned_temperature=true").keys() > {"blend@0.1", "blend:learned_temperature=true"}


def test_a_method_says_what_it_requires() -> None:
    assert Method.parse("blend@0.1").requires_fixed_temperature
    assert not Method.parse(ALLOWED).requires_fixed_temperature
    assert not Method.parse("default").requires_fixed_temperature


def test_a_model_must_hold_its_temperature() -> None:
    model = nn.Module()
    model.clip = nn.Module()
    model.clip.logit_scale = nn.Parameter(torch.zeros(()))
    check_temperature_of(model, "weighted_infonce")
    check_temperature_of(model, ALLOWED)
    with pytest.raises(InputError, match=rf"{LEARNED}\. Fix the parameter clip\.logit_scale of the model first, with clip_n"):
        check_temperature_of(model, "blend")
    hold_temperature(model.clip.logit_scale, 0.1)
    check_temperature_of(model, "blend")
    model.clip.logit_scale = nn.Parameter(torch.zeros(()), requires_grad=False)
    check_temperature_of(model, "blend")
