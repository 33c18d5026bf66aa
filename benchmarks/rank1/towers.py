"""Write a CLIP model of pretrained towers for ``--model local-dir:FOLDER``: python benchmarks/rank1/towers.py FOLDER.

The towers are EfficientNet-Lite0 (ImageNet) and MiniLM (sentences), with the weights of the extra ``encoders``. The linear
projections on top are untrained.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import open_clip
import torch

from clip_negatives.encoders import timm, transformers
from clip_negatives.storage.atomic import write_tensors
from clip_negatives.storage.ownership import new_folder

CONFIG = "open_clip_config.json"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "config.json")


def write_model(folder: Path, image_size: int, context_length: int, embed_dim: int, seed: int = 0) -> Path:
    """Write the model to a folder, unless it is there, and return the folder; `image_size` is a multiple of 32."""
    if (folder / CONFIG).exists():
        return folder
    texts = transformers.minilm_folder()
    model_cfg = {
        "embed_dim": embed_dim,
        "vision_cfg": {
            "timm_model_name": "tf_efficientnet_lite0",
            "timm_model_pretrained": False,
            "timm_pool": "",  # the network's own
            "timm_proj": "linear",
            "image_size": image_size,
        },
        "text_cfg": {
            "hf_model_name": str(folder.absolute()),
            "hf_tokenizer_name": str(folder.absolute()),
            "hf_proj_type": "linear",
            "hf_pooler_type": "mean_pooler",
            "context_length": context_length,
        },
    }
    with new_folder(folder) as partial:
        for name in TOKENIZER:
            shutil.copyfile(texts / name, partial / name)
        config = {"model_cfg": model_cfg, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
        drawn = model_cfg | {"text_cfg": model_cfg["text_cfg"] | {"hf_model_name": str(texts)}}
        torch.manual_seed(seed)
        model = open_clip.CustomTextCLIP(**drawn)
        model.visual.trunk.load_state_dict(timm.pretrained().state_dict())
        write_tensors(model.state_dict(), partial / "open_clip_model.safetensors")
        (partial / CONFIG).write_text(json.dumps(config, indent=1) + "\n")
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--context-length", type=int, default=24)
    parser.add_argument("--embed-dim", type=int, default=128)
    given = parser.parse_args()
    write_model(given.folder, given.image_size, given.context_length, given.embed_dim)
