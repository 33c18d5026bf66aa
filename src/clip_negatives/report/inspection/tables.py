"""Readings of the meter and of what-ifs as tables and plots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clip_negatives.artifacts import ClustersFolder
from clip_negatives.meter import Reading
from clip_negatives.report.charts.lines import Line, lines
from clip_negatives.report.formats import count, decimal, percent
from clip_negatives.report.inspection.sensitivity import Gate, Granularity
from clip_negatives.report.inspection.setting import QUANTILE
from clip_negatives.report.page import Plot, Table

MODALITIES = ("image clusters", "text clusters")

ORIGIN = {
    "image_encoder": "encoder of the images",
    "text_encoder": "encoder of the texts",
    "clusterer": "clusterer of the images",
    "text_clusterer": "clusterer of the texts",
    "seed": "seed of the clustering",
    "created": "made",
    "package_version": "by clip-negatives",
    "data": "digest of the data",
}
"""Entries of the manifest that are shown, and what they are."""


def origin(folder: ClustersFolder) -> Table:
    """Return what the clusters were made from."""
    rows = [(what, str(folder.manifest[name])) for name, what in ORIGIN.items() if name in folder.manifest]
    rows.append(("features", "kept" if folder.clusters.image_features is not None else "not kept"))
    known = "known" if folder.clusters.groups is not None else "not known: equal texts stand for them"
    rows.append(("groups of what shows the same", known))
    return Table("What the clusters were made from", ("", ""), tuple(rows))


def suspects(reading: Reading) -> Table:
    """Return how common suspect pairs are."""
    rows = tuple(
        (row.kind, percent(row.share, 3), decimal(row.per_anchor), "all pairs" if row.exact else "a sample")
        for row in reading.suspects
    )
    caption = f"Incorrect pairs of a uniform batch of {count(reading.batch_size)}"
    return Table(caption, ("incorrect pairs with", "share of pairs", "for each image", "counted on"), rows)


def treatments(reading: Reading) -> Table:
    """Return what the method makes of false negatives, beside in-batch negatives."""
    rows = tuple(
        (
            f"{item.sampler} with {item.weighting}",
            f"same {item.truth}",
            decimal(item.per_anchor),
            decimal(item.per_anchor_kept),
            decimal(item.false_weight),
            percent(item.removed_share),
        )
        for item in reading.treatments
    )
    columns = "sampler and weighting", "false negative is", "for each image", "kept", "their weight", "pairs removed"
    return Table(f"What becomes of false negatives, in batches of {count(reading.batch_size)}", columns, rows)


def gates_table(found: Sequence[Gate]) -> Table:
    """Return what each threshold would do."""
    columns = (
        "pairs under the threshold",
        "image threshold",
        "text threshold",
        "pairs removed",
        "false negatives caught",
        "other pairs lost",
    )
    rows = tuple(
        (
            percent(gate.quantile, 0) if gate.quantile < 1 else f"{percent(1.0, 0)} (one cluster only)",
            decimal(gate.image),
            decimal(gate.text),
            *(percent(share) for share in (gate.removed, gate.caught, gate.lost)),
        )
        for gate in found
    )
    return Table("What thresholds would remove", columns, rows)


def gates_plot(found: Sequence[Gate], truth: str) -> Plot:
    """Draw what the thresholds would remove of false negatives and of all other pairs."""
    x = [100 * gate.quantile for gate in found]
    series = {"all pairs": Line(x, [100 * gate.removed for gate in found])}
    note = "The share of pairs that a gate removes, by the share of all pairs that lies under each of its thresholds."
    if found[0].caught is not None:
        series = {f"false negatives (same {truth}), caught": Line(x, [100 * (gate.caught or 0.0) for gate in found]), **series}
        note += " The further the first line is above the second, the better clusters tell false negatives."
    return lines(
        "What thresholds would remove",
        series,
        note=note,
        xlabel="% of pairs under the threshold",
        ylabel="% removed",
        points=True,
    )


def granularities_table(found: Sequence[Granularity], current: tuple[int, int]) -> Table:
    """Return what other numbers of clusters would do."""
    columns = (
        "clusters, image / text",
        "median size",
        "largest",
        "silhouette",
        "pairs of one cluster",
        f"removed at {percent(QUANTILE, 0)}",
        "false negatives caught",
        "other pairs lost",
    )
    rows = tuple(
        (
            f"{_both(item.n_clusters)}{' (as now)' if item.n_clusters == current else ''}",
            _both(item.median_size),
            _both(item.largest),
            " / ".join(decimal(score) for score in item.silhouette),
            " / ".join(percent(share, 2) for share in item.same_cluster),
            *(percent(share) for share in (item.gate.removed, item.gate.caught, item.gate.lost)),
        )
        for item in found
    )
    return Table("What other numbers of clusters would do", columns, rows)


def granularities_plots(found: Sequence[Granularity], current: int, batch_size: int) -> list[Plot]:
    """Draw silhouettes and pairs of one cluster by the number of clusters."""
    axes: dict[str, Any] = {"xlabel": "number of clusters", "marked": current, "points": True}
    silhouettes = {
        name: Line([item.n_clusters[place] for item in found], [item.silhouette[place] or 0.0 for item in found])
        for place, name in enumerate(MODALITIES)
    }
    suspects = {
        name: Line([item.n_clusters[place] for item in found], [item.same_cluster[place] * (batch_size - 1) for item in found])
        for place, name in enumerate(MODALITIES)
    }
    how = (
        "How much nearer samples are to their own cluster than to the next one: 1 far apart, 0 on the border. Where the line "
        "is flat, the number matters little."
    )
    many = (
        f"Samples of its own cluster that a sample meets in a uniform batch of {count(batch_size)}: the pairs that a method by "
        "clusters takes for most alike."
    )
    return [
        lines("Silhouette by number of clusters", silhouettes, note=how, ylabel="mean silhouette", log=("x",), **axes),
        lines("Suspect pairs by number of clusters", suspects, note=many, ylabel="for each sample", log=("x", "y"), **axes),
    ]


def _both(values: tuple[float, float]) -> str:
    return " / ".join(count(value) for value in values)
