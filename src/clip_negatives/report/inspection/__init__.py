"""Report on a clusters folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from clip_negatives.checking import verdict_of
from clip_negatives.dataset import TablePairs, TarPairs
from clip_negatives.host.method import Method
from clip_negatives.meter import meter, truth_of
from clip_negatives.meter.suspects import modalities
from clip_negatives.meter.treatments import AppliedMethod, apply_method
from clip_negatives.report.album import Album, images_of
from clip_negatives.report.inspection import clusters as clusters_section
from clip_negatives.report.inspection import pairs, sensitivity, similarities
from clip_negatives.report.inspection.setting import QUANTILE, Setting, thresholds_of
from clip_negatives.report.page import render
from clip_negatives.storage.clusters_folder import ClustersFolder
from clip_negatives.storage.manifest import REPORT_FOLDER

INDEX = "index.html"


class Written(NamedTuple):
    """A report on disk: the page, its size in bytes, the number of samples shown, and how many images are unreadable."""

    page: Path
    size: int
    pictures: int
    missing: int


def write_inspection(
    folder: ClustersFolder, output: str | Path, *, source: TablePairs | TarPairs | None = None, **options: Any
) -> Written:
    """Write a report on clusters, atomically: clusters, similarities, pairs, and the effect of other settings.

    Args:
        folder: the clusters.
        output: folder of the report; an older report is replaced.
        source: the clustered data, for the images; without it, images are read from the paths in the clusters folder.
        options: see `clip_negatives.report.inspection.setting.Setting`.

    Raises:
        PluginError: the name or an option of a plugin is unknown.
        InputError: an option is out of range, or a plugin rejects the clusters.
        DataError: the pairs of the source are not the pairs of the folder.
        ArtifactError: `output` is not a report, or cannot be written.
    """
    setting, output = Setting(**options), REPORT_FOLDER.check(output)
    setting.check(folder.clusters.n_samples)
    for modality in ("image", "text"):
        folder.clusters.similarity_of(modality, "a report")
    images = images_of(folder, source)
    method = apply_method(folder, Method(setting.sampler, setting.weighting), setting.batch_size, setting.seed)
    sections = _sections(folder, setting, method)
    members = (index for cards in sections["cards"].values() for card in cards for index in (*card.nearest, *card.farthest))
    shown = {*members, *(index for kind in sections["kinds"] for pair in kind.pairs for index in (pair.image, pair.text))}
    album = Album({index: str(folder.samples["text"][index].as_py()) for index in shown}, images)
    html = render("inspection.html.j2", folder=folder, setting=setting, album=album, method=method, **sections)
    with REPORT_FOLDER.replacing(output) as partial:
        (partial / INDEX).write_text(html, encoding="utf-8")
        about = {"clusters": folder.manifest.get("data"), **asdict(setting), "pictures": len(album), "missing": album.missing}
        REPORT_FOLDER.write_manifest(partial, about)
    return Written(output / INDEX, len(html.encode()), len(album), album.missing)


def _sections(folder: ClustersFolder, setting: Setting, method: AppliedMethod) -> dict[str, Any]:
    """Return the figures, tables and plots of the template."""
    clusters, seed = folder.clusters, setting.seed
    truth, codes = truth_of(folder)
    reading = meter(folder, setting.batch_size, sampler=setting.sampler, weighting=setting.weighting, seed=seed)
    thresholds = thresholds_of(folder, setting)
    sampled = pairs.draw_pairs(method, seed)
    false_weights = pairs.pair_weights(method.terms, *pairs.false_pairs(codes, seed)) / sampled.scale
    cards, typical = {}, {}
    for part in modalities(clusters):
        cosines = clusters_section.centroid_cosines(part.clustering, part.features)
        cards[part.name] = clusters_section.cards(part.clustering, cosines, setting.clusters_shown)
        typical[part.name] = clusters_section.typical(part.clustering, cosines)
    agreement_table, agreement_plot = clusters_section.agreement(clusters)
    gates = sensitivity.gates(clusters, codes, seed)
    granularities, no_granularities = sensitivity.granularities(folder, codes, seed)
    generated = pairs.generated(folder, method, sampled.scale, setting, codes)
    return {
        "verdict": verdict_of(folder),
        "reading": reading,
        "truth": truth,
        "thresholds": thresholds,
        "sampled": sampled,
        "cluster_plots": [clusters_section.sizes_plot(clusters), agreement_plot],
        "agreement_table": agreement_table,
        "cards": cards,
        "heatmaps": similarities.heatmaps(folder, thresholds, typical),
        "distributions": similarities.distributions(clusters, thresholds, seed),
        "weights_plot": similarities.weights(sampled, false_weights, truth),
        "kinds": [generated, pairs.lowest_pairs(folder, sampled, setting, codes)],
        "gates": gates,
        "gates_plot": sensitivity.gates_plot(gates, truth),
        "quantile": QUANTILE,
        "granularities": granularities,
        "granularities_plots": sensitivity.granularities_plots(granularities, clusters.image.n_clusters, setting.batch_size),
        "no_granularities": no_granularities,
        "subsample": min(sensitivity.SUBSAMPLE, clusters.n_samples),
    }
