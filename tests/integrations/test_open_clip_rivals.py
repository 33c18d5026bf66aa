"""Losses that are handed the logits of each step, in open_clip's own training: state that is resumed, and SigLIP."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from clip_negatives.compare import compare
from clip_negatives.errors import ArtifactError, InputError, UnsupportedError
from clip_negatives.integrations.open_clip import TrainOptions, train

from .conftest import BATCH, ROWS, logged_losses


def _run(arguments: list[str], name: str) -> Path:
    return Path(arguments[arguments.index("--logs") + 1]) / name


def _losses(arguments: list[str], name: str) -> list[float]:
    return [float(text.split()[0]) for text in logged_losses(_run(arguments, name) / "out.log")]


@pytest.mark.parametrize(
    "weighting",
    [
        *("sogclr", "glofnd", "known_different", "gist:guide=image", "swap", "multi_positive", "blend"),
        *("learned_temperature", "xbm:size=8,start=0.2", "softclip"),
    ],
)
def test_trains_with_accumulation_and_bf16(arguments: list[str], weighting: str) -> None:
    more = ["--accum-freq", "2", "--precision", "amp_bf16", "--name", "run"]
    temperature = 0.1 if weighting == "blend" else None
    train([*arguments, *more], TrainOptions(sampler="in_batch", weighting=weighting, temperature=temperature))
    losses = _losses(arguments, "run")
    assert len(losses) == ROWS // BATCH // 2
    assert all(0 < loss < 100 for loss in losses)


def test_state_moves_on_once_a_step_of_the_optimizer(arguments: list[str]) -> None:
    """open_clip calls the loss once for each micro-batch; a sample is seen once an epoch all the same."""
    more = ["--accum-freq", "2", "--epochs", "2", "--save-frequency", "1", "--name", "run"]
    train([*arguments, *more], TrainOptions(sampler="in_batch", weighting="glofnd"))
    stored = load_file(_run(arguments, "run") / "clip_negatives" / "loss-epoch-2.safetensors")
    assert stored["image_sights"].tolist() == stored["text_sights"].tolist() == [2.0] * ROWS


def test_what_a_loss_remembers_is_stored_and_found_again(arguments: list[str]) -> None:
    """Seen once an epoch, a sample has been seen as often as epochs were trained, also after one is taken back."""
    options = TrainOptions(sampler="in_batch", weighting="glofnd", refresh_every=2)
    arguments = [*arguments, "--epochs", "4", "--save-frequency", "1"]
    train([*arguments, "--name", "run"], options)
    run = _run(arguments, "run")
    stored = run / "clip_negatives"
    assert load_file(stored / "loss-epoch-4.safetensors")["image_sights"].tolist() == [4.0] * ROWS
    for epoch in (3, 4):
        (run / "checkpoints" / f"epoch_{epoch}.pt").unlink()
    train([*arguments, "--name", "run", "--resume", "latest"], options)
    again = load_file(stored / "loss-epoch-4.safetensors")
    assert again["text_sights"].tolist() == [4.0] * ROWS
    (run / "checkpoints" / "epoch_4.pt").unlink()
    (stored / "loss-epoch-3.safetensors").write_bytes(b"x" * 9)
    with pytest.raises(ArtifactError, match=r"state of the method at .*loss-epoch-3"):
        train([*arguments, "--name", "run", "--resume", "latest"], options)


def test_parameters_and_queues_are_stored_and_found_again(arguments: list[str]) -> None:
    """Training that stops after an epoch and resumes ends with the same parameters, moments and queues."""
    for spec in ("learned_temperature", "xbm:size=24,start=0"):
        options, name = TrainOptions(sampler="in_batch", weighting=spec), spec.partition(":")[0]
        train([*arguments, "--epochs", "2", "--save-frequency", "1", "--name", name], options)
        run = _run(arguments, name)
        stored = run / "clip_negatives" / "loss-epoch-2.safetensors"
        whole = load_file(stored)
        (run / "checkpoints" / "epoch_2.pt").unlink()
        train([*arguments, "--epochs", "2", "--save-frequency", "1", "--name", name, "--resume", "latest"], options)
        again = load_file(stored)
        assert sorted(again) == sorted(whole)
        assert any("exp_avg" in key for key in whole) == (name == "learned_temperature")
        for key, part in whole.items():
            torch.testing.assert_close(again[key], part, rtol=0, atol=0, msg=key)


def test_parameters_train_on_after_new_clusters(arguments: list[str]) -> None:
    """The clusters are first those of frozen encoders, later those of the model, with features of another length."""
    options = TrainOptions(sampler="in_batch", weighting="learned_temperature", refresh_every=1)
    train([*arguments, "--epochs", "3", "--save-frequency", "1", "--name", "run"], options)
    stored = _run(arguments, "run") / "clip_negatives"
    first, last = (load_file(stored / f"loss-epoch-{epoch}.safetensors") for epoch in (2, 3))
    assert not torch.equal(first["image.last"], last["image.last"])


def test_old_states_go_where_open_clip_keeps_no_checkpoint(arguments: list[str]) -> None:
    options = TrainOptions(sampler="in_batch", weighting="sogclr")
    train([*arguments, "--epochs", "4", "--save-frequency", "0", "--name", "run"], options)
    found = sorted(file.name for file in (_run(arguments, "run") / "clip_negatives").iterdir())
    states = [f"{kind}-epoch-{epoch}.safetensors" for kind in ("loss", "random") for epoch in (3, 4)]
    assert found == sorted(["provenance.json", *states])


def test_siglip_wants_its_bias_and_its_loss(arguments: list[str]) -> None:
    with pytest.raises(InputError, match="Add --siglip"):
        train([*arguments, "--name", "run"], TrainOptions(weighting="siglip"))
    with pytest.raises(UnsupportedError, match="--siglip with the weighting weighted_infonce"):
        train([*arguments, "--siglip", "--name", "run"], TrainOptions())


def test_compared_with_what_decides_at_each_step(tmp_path: Path, train_csv: Path) -> None:
    found = compare(
        tmp_path / "out",
        methods="llave,siglip",
        seeds=1,
        test_data=str(train_csv),
        arguments=["--train-data", str(train_csv), "--batch-size", str(BATCH), "--epochs", "1", "--workers", "0"],
    )
    assert set(found.summaries) == {"in_batch", "in_batch@0.1", "llave", "siglip", "random_reduction"}
    assert "removed_share" not in found.summaries["llave"]
    assert "removed_share" in found.summaries["in_batch"]
    assert all(torch.isfinite(torch.tensor(one["text_to_image_rank_1"])) for one in found.runs)
