"""Train with open_clip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from clip_negatives.cli.words import CLUSTERER, SAMPLER, WEIGHTING, examples


@click.command(
    context_settings={"show_default": True},
    epilog=examples(
        "clip-negatives train -- --train-data train.csv --model ViT-B-32 --epochs 5",
        "clip-negatives train --weighting weighted_infonce:beta=2 -- --train-data train.csv --model ViT-B-32",
        "torchrun --nproc-per-node 2 -m clip_negatives train --clusters clusters/ -- --train-data train.csv --model ViT-B-32",
    ),
)
@click.option("--clusters", type=click.Path(path_type=Path), help="Clusters folder; without it one is prepared and cached.")
@click.option("--sampler", default="cluster_similarity", type=SAMPLER, help="Negative sampler, NAME or NAME:key=value,...")
@click.option("--weighting", default="weighted_infonce", type=WEIGHTING, help="Loss weighting, NAME or NAME:key=value,...")
@click.option("--backend", default="auto", help="Backend of the loss: auto, torch, chunked or triton.")
@click.option("--temperature", type=float, help="Hold the temperature at this instead of learning it, 0.01 .. 1.")
@click.option("--refresh-every", type=int, help="Re-cluster with the model being trained before every so many epochs.")
@click.option("--image-encoder", default="pixels", help="Encoder of the images, for clusters prepared here.")
@click.option("--text-encoder", default="tfidf", help="Encoder of the texts, for clusters prepared here.")
@click.option("--clusterer", default="kmeans", type=CLUSTERER, help="Clusterer, NAME or NAME:key=value,...")
@click.option("--text-clusterer", type=CLUSTERER, help="Another clusterer for the texts.")
@click.argument("open_clip_arguments", nargs=-1, type=click.UNPROCESSED)
def train(open_clip_arguments: tuple[str, ...], **options: Any) -> None:
    """Train a CLIP model with open_clip's own training loop and our negatives.

    What stands after -- goes to open_clip_train untouched.
    """
    from clip_negatives.integrations import open_clip

    open_clip.train(open_clip_arguments, open_clip.TrainOptions(**options))
