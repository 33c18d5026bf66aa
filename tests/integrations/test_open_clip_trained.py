"""The encoders of a trained checkpoint are those that open_clip makes from the arguments of the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from clip_negatives.encoders.open_clip import MODELS
from clip_negatives.integrations.open_clip.trained import trained_towers
from tests.pairs import listings

MODEL = "clip-negatives-tiny"
MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
IMAGES, TEXTS = [image for *_, image in listings(3)], [text for _, text, *_ in listings(3)]


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ([], {}),
        (["--force-image-size", "48"], {"force_image_size": 48}),
        (["--image-mean", *map(str, MEAN), "--image-std", *map(str, STD)], {"image_mean": MEAN, "image_std": STD}),
        (["--image-interpolation", "random"], {"image_interpolation": "random"}),
        (["--image-resize-mode", "longest"], {"image_resize_mode": "longest"}),
        (["--force-quick-gelu"], {"force_quick_gelu": True}),
        (["--force-context-length", "12"], {"force_context_length": 12}),
        (["--siglip"], {"init_logit_bias": -10.0}),
    ],
)
def test_arguments_of_the_model(arguments: list[str], options: dict[str, Any], tmp_path: Path) -> None:
    open_clip.add_model_config(MODELS)
    torch.manual_seed(0)
    model, _, transform = open_clip.create_model_and_transforms(MODEL, **options)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "epoch_1.pt")
    model.eval()
    tokens = open_clip.get_tokenizer(MODEL, context_length=options.get("force_context_length"))(TEXTS)
    with torch.no_grad():
        images = model.encode_image(torch.stack([transform(image) for image in IMAGES]), normalize=True)
        texts = model.encode_text(tokens, normalize=True)

    image_tower, text_tower = trained_towers(["--model", MODEL, *arguments], tmp_path / "epoch_1.pt")
    torch.testing.assert_close(image_tower.encode(IMAGES), images)
    torch.testing.assert_close(text_tower.encode(TEXTS), texts)
