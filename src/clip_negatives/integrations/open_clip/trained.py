"""The encoders of a trained checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import open_clip

from clip_negatives.encoders.encoder import Encoder, device
from clip_negatives.encoders.open_clip import ShortWords, towers
from clip_negatives.integrations.open_clip.arguments import parsed


def trained_towers(arguments: Sequence[str], checkpoint: Path) -> tuple[Encoder, Encoder]:
    """Return the image tower and the text tower of a checkpoint that was trained with these arguments of open_clip.

    Model, image preprocessing and tokenizer are the same as in an evaluation by open_clip_train. The features are computed in
    float32.
    """
    args = parsed(arguments)
    # As in `open_clip_train.main`; --pretrained can set the preprocessing of the images.
    size = args.force_image_size
    model, _, transform = open_clip.create_model_and_transforms(
        args.model,
        args.pretrained,
        load_weights=False,
        device=device(),
        force_quick_gelu=args.force_quick_gelu,
        force_custom_text=args.force_custom_text,
        force_patch_dropout=args.force_patch_dropout,
        force_image_size=size[0] if isinstance(size, tuple | list) and len(size) == 1 else size,
        force_context_length=args.force_context_length,
        image_mean=args.image_mean,
        image_std=args.image_std,
        image_interpolation=args.image_interpolation,
        image_resize_mode=args.image_resize_mode,
        cache_dir=args.cache_dir,
        **({"init_logit_bias": 0.0} if args.siglip else {}),
    )
    open_clip.load_checkpoint(model, str(checkpoint), device=device())
    tokenizer = open_clip.get_tokenizer(args.model, cache_dir=args.cache_dir, context_length=args.force_context_length)
    return towers(model.eval(), transform, ShortWords(tokenizer))
