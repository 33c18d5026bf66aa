"""The result of `choose`, and its file ``choice.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clip_negatives.errors import ArtifactError
from clip_negatives.host.method import Method
from clip_negatives.storage.ownership import replaced_file
from clip_negatives.storage.provenance import clusters_section, differences, in_words, plugins_section
from clip_negatives.storage.safe_reading import read_json

FILE = "choice.json"
FOLDER = "choice"  # in the clusters folder
FORMAT = 2


@dataclass(frozen=True, slots=True)
class Row:
    """Figures of a candidate: means over folds and seeds.

    Attributes:
        name: method, and dropout of a control.
        mrr: mean reciprocal rank, text to image, 0 .. 1.
        rank_1: Rank@1, 0 .. 1.
        rank_10: Rank@10, 0 .. 1.
        image_mrr: mean reciprocal rank, image to text.
        gain: relative gain in MRR over in-batch negatives at their best temperature, with its interval: gain, low, high.
        gain_over_baseline: the same over in-batch negatives with a learned temperature.
        is_control: whether this is a control.
    """

    name: str
    mrr: float
    rank_1: float
    rank_10: float
    image_mrr: float
    gain: tuple[float, float, float]
    gain_over_baseline: tuple[float, float, float]
    is_control: bool = False

    @property
    def is_significantly_better(self) -> bool:
        """Return whether `gain` is significantly above 0."""
        return self.gain[1] > 0


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen method, and what was compared.

    Attributes:
        method: the chosen method; `clip_negatives.Method.parse` reads it.
        reference: in-batch negatives at their best temperature.
        sentence: the answer in words.
        warnings: sentences about what limits the answer.
        held_out: what the folds hold out, in words.
        rows: figures of each candidate.
        setting: number of samples, queries, folds, seeds, steps, batch size and learning rate.
        clusters: digest and recipe of the clusters.
        plugins: distribution, version and source of the plugins of the chosen method.
    """

    method: str
    reference: str
    sentence: str
    warnings: tuple[str, ...]
    held_out: str
    rows: tuple[Row, ...]
    setting: dict[str, Any]
    clusters: dict[str, Any]
    plugins: dict[str, Any]

    @property
    def has_significant_gain(self) -> bool:
        """Return whether the chosen method is significantly better than in-batch negatives at their best temperature."""
        return self.row(self.method).is_significantly_better

    def to_dict(self) -> dict[str, Any]:
        """Return the choice as JSON data."""
        return {"format": FORMAT, **asdict(self)}

    def row(self, name: str) -> Row:
        """Return the figures of a candidate."""
        return next(row for row in self.rows if row.name == name)


def write_choice(choice: Choice, folder: Path) -> Path:
    """Write ``choice.json`` into a folder, atomically, and return its path."""
    with replaced_file(folder / FILE) as partial:
        partial.write_text(json.dumps(choice.to_dict(), indent=2) + "\n")
    return folder / FILE


def read_choice(file: str | Path) -> Choice:
    """Read a ``choice.json``.

    Raises:
        ArtifactError: the file is missing, damaged, or was written by another version.
    """
    file = Path(file)
    try:
        stored = dict(read_json(file, "json_bytes"))
        if stored.pop("format") != FORMAT:
            raise ValueError("another version of clip-negatives wrote it")
        rows = tuple(
            Row(**{**row, **{name: tuple(row[name]) for name in ("gain", "gain_over_baseline")}}) for row in stored.pop("rows")
        )
        return Choice(rows=rows, warnings=tuple(stored.pop("warnings")), **stored)
    except FileNotFoundError as error:
        raise ArtifactError(f"{file} does not exist. Run clip-negatives choose first.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{file} cannot be read: {error}. Run clip-negatives choose again.") from error


def method_for(file: Path, manifest: Mapping[str, Any]) -> Method:
    """Return the chosen method, after checking that it was chosen for the clusters of this manifest.

    Raises:
        ArtifactError: the file cannot be read, or the method was chosen for other clusters, or with other plugins.
    """
    choice = read_choice(file)
    if changes := differences(choice.clusters, clusters_section(manifest)):
        fault = f"The method in {file} was chosen for other clusters: {in_words(changes)}"
        raise ArtifactError(f"{fault}. Run clip-negatives choose again.")
    method = Method.parse(choice.method)
    if changes := differences({"plugins": choice.plugins}, {"plugins": plugins_of(method)}):
        fault = f"The method in {file} was chosen with other plugin versions: {in_words(changes)}"
        raise ArtifactError(f"{fault}. Run clip-negatives choose again.")
    return method


def plugins_of(method: Method) -> dict[str, dict[str, str | None]]:
    """Return distribution, version and source of the plugins of a method."""
    return plugins_section([("negative_sampler", method.sampler), ("loss_weighting", method.weighting)])
