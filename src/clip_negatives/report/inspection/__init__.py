"""The report on a clusters folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from clip_negatives.artifacts import ClustersFolder
from clip_negatives.atomic import refuse_foreign, replaced_folder
from clip_negatives.dataset import CsvPairs, TarPairs
from clip_negatives.meter import Reading, meter, truth_of
from clip_negatives.report.album import Album, images_of
from clip_negatives.report.inspection import clusters as clusters_section
from clip_negatives.report.inspection import pairs as pairs_section
from clip_negatives.report.inspection import sensitivity, similarities, tables
from clip_negatives.report.inspection.sampled import Method, SampledPairs, draw_pairs, false_pairs
from clip_negatives.report.inspection.setting import Setting, Thresholds
from clip_negatives.report.page import render

INDEX, MARKER = "index.html", "report.json"
"""The page, and the file that says that a folder is a report; only such a folder is replaced."""


@dataclass(frozen=True, slots=True)
class Written:
    """Say what was written.

    Attributes:
        page: the file.
        size: its bytes.
        pictures: samples that are shown.
        missing: those of them whose image could not be read.
    """

    page: Path
    size: int
    pictures: int
    missing: int


def write_inspection(
    folder: ClustersFolder, output: str | Path, *, source: CsvPairs | TarPairs | None = None, **options: Any
) -> Written:
    """Write a page about a clusters folder, atomically: its clusters, similarities, pairs, and what other choices would do.

    Args:
        folder: the clusters.
        output: folder to make; an older report there is replaced.
        source: the data, for their images; without it images are looked for where the folder says they are.
        options: see `clip_negatives.report.inspection.setting.Setting`.

    Raises:
        PluginError: a name or an option of a plugin is unknown.
        InputError: a value is out of its range, or a plugin refuses the clusters.
        DataError: the source has other pairs than the folder.
        ArtifactError: `output` is something else, or cannot be written.
    """
    setting, output = Setting(**options), Path(output).absolute()
    refuse_foreign(output, known_by=MARKER)
    setting.check(folder.clusters.n_samples)
    for modality in ("image", "text"):
        folder.clusters.similarity_of(modality, "a report")
    images = images_of(folder, source)
    method = Method.of(folder, setting)
    reading = meter(folder, setting.batch_size, sampler=setting.sampler, weighting=setting.weighting, seed=setting.seed)
    sections = _sections(folder, setting, method, reading)
    album = Album({index: str(folder.samples["text"][index].as_py()) for index in _shown(sections)}, images)
    html = render("inspection.html.j2", folder=folder, setting=setting, album=album, reading=reading, **sections)
    with replaced_folder(output, known_by=MARKER) as partial:
        (partial / INDEX).write_text(html, encoding="utf-8")
        about = {"clusters": folder.manifest.get("data"), **asdict(setting), "pictures": len(album), "missing": album.missing}
        (partial / MARKER).write_text(json.dumps(about, indent=2) + "\n")
    return Written(output / INDEX, len(html.encode()), len(album), album.missing)


def _sections(folder: ClustersFolder, setting: Setting, method: Method, reading: Reading) -> dict[str, Any]:
    """Return all that the page shows, but for pictures and texts."""
    truth, codes = truth_of(folder)
    thresholds = Thresholds.of(folder, setting)
    sampled = draw_pairs(method, setting)
    clusters = folder.clusters
    modalities = ("image", clusters.image, clusters.image_features), ("text", clusters.text, clusters.text_features)
    near = {name: clusters_section.closeness(clustering, features) for name, clustering, features in modalities}
    agreement_table, agreement_plot = clusters_section.agreement(folder)
    return {
        "truth": truth,
        "thresholds": thresholds,
        "method": method,
        "sampled": sampled,
        "tables": tables,
        "sizes_plot": clusters_section.sizes_plot(folder),
        "cards": {
            name: clusters_section.cards(clustering, near[name], setting.clusters_shown) for name, clustering, _ in modalities
        },
        "agreement_table": agreement_table,
        "agreement_plot": agreement_plot,
        "heatmaps": similarities.heatmaps(folder, thresholds, clusters_section.typical(folder, near)),
        "distributions": similarities.distributions(folder, thresholds, setting.seed),
        "weights_plot": similarities.weights(sampled, method.weights(*false_pairs(codes, setting.seed)) / sampled.scale, truth),
        "kinds": _pairs(folder, setting, method, sampled, codes),
        **_what_ifs(folder, setting, codes),
    }


def _pairs(
    folder: ClustersFolder, setting: Setting, method: Method, sampled: SampledPairs, codes: Tensor
) -> list[pairs_section.Shown]:
    """Return the pairs of each kind."""
    return [
        pairs_section.drawn(folder, method, sampled.scale, setting, codes),
        pairs_section.doubtful(folder, sampled, setting, codes),
    ]


def _what_ifs(folder: ClustersFolder, setting: Setting, codes: Tensor) -> dict[str, Any]:
    """Return what other choices would do."""
    found, none_because = sensitivity.granularities(folder, codes, setting.seed)
    return {
        "gates": sensitivity.gates(folder.clusters, codes, setting.seed),
        "granularities": found,
        "no_granularities": none_because,
        "subsample": min(sensitivity.SUBSAMPLE, folder.clusters.n_samples),
    }


def _shown(sections: dict[str, Any]) -> Sequence[int]:
    """Return the samples that the page shows, each once."""
    of_cards = (index for cards in sections["cards"].values() for card in cards for index in (*card.nearest, *card.farthest))
    of_pairs = (index for shown in sections["kinds"] for pair in shown.pairs for index in (pair.image, pair.text))
    return sorted({*of_cards, *of_pairs})
