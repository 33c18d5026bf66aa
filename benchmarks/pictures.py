"""Draw the figure of the idea for the docs, from real listings: python benchmarks/pictures.py."""

from __future__ import annotations

import tempfile
import textwrap
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from sections import save_svg

from clip_negatives import Clusters, Columns, catalogue
from clip_negatives.dataset import open_pairs
from clip_negatives.host import registry
from clip_negatives.losses.functional import pair_log_weights
from clip_negatives.pipelines.prepare import prepare

TARGET = Path(__file__).parents[1] / "docs" / "images" / "idea.svg"
ITEMS = ("2764", "1f34e", "1f34f")  # a red heart, a red apple and a green apple
STYLES = ("noto", "fluent")
PANELS = {
    "in-batch negatives: each counts 1": ("in_batch", "uniform"),
    "the same item is known: taken out": ("in_batch", "id_mask:by=group"),
    "weighted by clusters, beta = 2": ("in_batch", "weighted_infonce:beta=2,text_beta=2"),
}


def chosen(listings: catalogue.Catalogue) -> list[int]:
    """Return the row of each item of each seller, in the order of the items."""
    items, styles = listings.column("item"), listings.column("style")
    tones = listings.column("tone")
    return [
        next(row for row, item in enumerate(items) if item == wanted and styles[row] == style and tones[row] == "0")
        for wanted in ITEMS
        for style in STYLES
    ]


def weights(clusters: Clusters, weighting: str, rows: list[int]) -> np.ndarray:
    """Return the weight of each pair of these samples; incorrect pairs have mean 1 in a row, correct ones are NaN."""
    terms = registry.create("loss_weighting", weighting)(clusters)
    index = torch.tensor(rows)
    i, j = index.repeat_interleave(len(rows)), index.repeat(len(rows))
    log_weights = torch.zeros(len(i)) if not terms.weighted else pair_log_weights(terms, i, j)
    if terms.groups is not None:
        log_weights = log_weights.masked_fill(terms.groups[i] == terms.groups[j], -torch.inf)
    found = log_weights.exp().view(len(rows), -1).double()
    found.fill_diagonal_(torch.nan)
    if terms.normalize:
        found = found / found.nanmean(1, keepdim=True)
    return found.numpy()


def panel(axes: Axes, title: str, counted: np.ndarray, pictures: list[np.ndarray], texts: list[str], *, first: bool) -> None:
    """Draw the weights of the incorrect pairs as a matrix, a row for each image and a column for each text."""
    n = len(pictures)
    shown = axes.imshow(np.nan_to_num(counted, nan=-1), cmap=colours(), vmin=0, vmax=2)
    shown.cmap.set_under("#2e7d5b")
    for i in range(n):
        for j in range(n):
            own = i == j
            mark = "✓" if own else "–" if counted[i, j] == 0 else f"{counted[i, j]:.1f}"
            axes.text(j, i, mark, ha="center", va="center", fontsize=9, color="white" if own or counted[i, j] > 1.2 else "#333")
    axes.set_title(title, fontsize=11, pad=44)
    axes.set_xticks(range(n), [textwrap.fill(text, 14) for text in texts], rotation=60, ha="left", fontsize=7)
    axes.xaxis.tick_top()
    axes.set_yticks([])
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    if first:
        for row, picture in enumerate(pictures):
            axes.add_artist(AnnotationBbox(OffsetImage(picture, zoom=0.8), (-1.0, row), frameon=False, annotation_clip=False))


def colours() -> mpl.colors.Colormap:
    """Return a colour map from white (weight 0) to red."""
    return mpl.colors.LinearSegmentedColormap.from_list("counted", ["#ffffff", "#f3b9a8", "#b3342a"])


def main() -> None:
    """Cluster the catalogue and draw the figure."""
    listings = catalogue.load("train")
    with tempfile.TemporaryDirectory() as folder:
        data = catalogue.export(Path(folder) / "data", split="train", format="csv") / "train.csv"
        clusters = prepare(open_pairs(str(data), Columns(group="item")), Path(folder) / "clusters").clusters
        rows = chosen(listings)
        figure = Figure(figsize=(13, 5.4), facecolor="white")
        figure.subplots_adjust(left=0.05, right=0.95, bottom=0.02, top=0.74, wspace=0.12)
        pictures = [np.asarray(listings.image(row)) for row in rows]
        texts = [listings.column("text")[row] for row in rows]
        for place, (axes, (title, (_, weighting))) in enumerate(zip(figure.subplots(1, 3), PANELS.items(), strict=True)):
            panel(axes, title, weights(clusters, weighting, rows), pictures, texts, first=place == 0)
        save_svg(figure, TARGET)


if __name__ == "__main__":
    main()
