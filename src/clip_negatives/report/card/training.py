"""The result card of a training run."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_negatives.integrations.open_clip.run_record import record_file
from clip_negatives.printing import log
from clip_negatives.report.card.document import (
    code,
    command_block,
    data_line,
    dataset_metadata,
    file_name,
    versions_lines,
    write_card,
)
from clip_negatives.storage.provenance import Record, read_record

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

RESULTS = Path("checkpoints", "results.jsonl")  # open_clip's file of evaluations, in the folder of a run
METRIC = re.compile(r"(image_to_text|text_to_image)_(.+)")


def write_training_card(run: Path, command: str, *, train_data: str | None, n_train: int, val_data: str | None) -> Path | None:
    """Write the result card of a training run into its folder, and return its path.

    Returns None, with a message in the log, if the record of the run cannot be read, or if a file that is not ours has the
    name of the card. Figures are those of open_clip's last evaluation of the run; without one, the card has none.

    Args:
        run: folder of the run.
        command: command that trains again, in one line.
        train_data: training data, as open_clip gets them; None for synthetic data.
        n_train: number of training pairs.
        val_data: evaluation data, as open_clip gets them.

    Raises:
        ArtifactError: the card cannot be written.
    """
    record = read_record(record_file(run))
    if record is None:
        log(f"No result card was written: the record {record_file(run)} cannot be read.")
        return None
    processes, trainer = record["processes"]["number"], record["open_clip"]
    evaluation = _last_evaluation(run) if val_data else {}
    digests = {name: value for name, value in record["data"].items() if name != "kind"}
    start = "" if processes == 1 else f"Start it on {processes} processes.\n\n"
    sections = {
        "Method": "\n".join(f"* {name}: {code('none' if value is None else value)}" for name, value in _method(record).items()),
        "Data": data_line("Training", train_data, n_train, digests),
        "Run it again": start + command_block(command),
        "Versions": versions_lines(record["versions"]),
    }
    return write_card(
        run,
        f"{trainer['model']} trained with clip-negatives",
        _answer(evaluation, trainer["seed"]),
        sections,
        list(_metrics(evaluation, val_data or "")),
        library_name="open_clip",
        **dataset_metadata(train_data),
    )


def _method(record: Record) -> dict[str, Any]:
    """Return the method of a record, with the clusters' digest and recipe."""
    method = {name: value for name, value in record["method"].items() if value is not None}
    method["temperature"] = record["method"]["temperature"] or "learned"
    clusters = {f"clusters, {name}": value for name, value in record.get("clusters", {}).items() if value is not None}
    return method | clusters


def _answer(evaluation: Mapping[str, Any], seed: int) -> str:
    figures = (
        f"Measured after epoch {evaluation['epoch']}: see the metadata."
        if evaluation
        else "This run measured nothing on held-out pairs."
    )
    return f"One run, with seed {seed}. {figures} One run cannot show whether the method helps: clip-negatives compare does."


def _last_evaluation(run: Path) -> dict[str, Any]:
    """Return open_clip's last evaluation; empty if there is none."""
    file = run / RESULTS
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return dict(json.loads(lines[-1])) if lines else {}


def _metrics(evaluation: Mapping[str, Any], val_data: str) -> Iterator[EvalResult]:
    """Yield the retrieval figures of an evaluation."""
    from huggingface_hub import EvalResult

    for name, value in evaluation.items():
        metric = METRIC.fullmatch(name)
        if metric and isinstance(value, int | float) and math.isfinite(value):
            yield EvalResult(
                task_type="image-text-retrieval",
                task_name=f"retrieval, {metric[1].replace('_', ' ')}",
                dataset_type="image-text-pairs",
                dataset_name=file_name(val_data),
                dataset_config=metric[1],
                dataset_args={"pairs": evaluation.get("num_samples")},
                metric_type=metric[2],
                metric_value=round(value, 6),
            )
