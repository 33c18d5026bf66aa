"""The result card of a comparison."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_negatives.compare import Comparison
from clip_negatives.compare.methods import BASELINE
from clip_negatives.compare.output import judgement
from clip_negatives.compare.results import DIRECTIONS, SCORES
from clip_negatives.report.card.document import (
    code,
    command_block,
    data_line,
    dataset_metadata,
    file_name,
    table,
    versions_lines,
    write_card,
)

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

LABELS = {"mrr": "MRR", **{f"rank_{k}": f"Rank@{k}" for k in (1, 5, 10)}}


def write_comparison_card(comparison: Comparison, output: str | Path, command: str) -> Path | None:
    """Write the result card of a comparison into its folder, and return its path.

    Returns None, with a message in the log, if a file that is not ours has its name. Two comparisons with the same results
    have the same card: it has no times.

    Args:
        comparison: the measured figures.
        output: folder of the comparison.
        command: command that makes the comparison again, in one line.

    Raises:
        ArtifactError: the card cannot be written.
    """
    setting = comparison.setting
    train, test = setting["train"], setting["test"]
    count = f"{setting['seeds']} seeds" if setting["seeds"] > 1 else "1 seed"
    data = (
        data_line("Training", train["location"], setting["n_train"], setting["data"]["training"]),
        data_line("Test", test["location"], comparison.runs[0]["queries"], setting["data"]["test"]),
    )
    answer = comparison.verdict or "The test pairs are of one item, so the comparison has no interval."
    sections = {
        "Methods": _methods(comparison),
        "Result": f"Text to image, in %, mean of {count}. The gain is that in MRR over {code(BASELINE)}, with its simultaneous "
        f"95 % confidence interval.\n\n{_results(comparison)}",
        "Data": "\n".join(data),
        "Run it again": command_block(command),
        "Versions": versions_lines(setting["versions"]),
    }
    title = f"Comparison of negatives for {setting['model']}"
    return write_card(
        Path(output),
        title,
        f"{answer} ({count}.)",
        sections,
        list(_metrics(comparison)),
        library_name="open_clip",
        metrics=["mrr", "recall"],
        **dataset_metadata(train["location"]),
    )


def _methods(comparison: Comparison) -> str:
    """Return the table of the methods."""
    methods = {run["method"]["name"]: run["method"] for run in comparison.runs}
    rows = [
        (code(name), code(method["sampler"]), code(method["weighting"]), _temperature(method["temperature"]))
        for name, method in methods.items()
    ]
    return table(("method", "sampler", "weighting", "temperature"), rows)


def _temperature(value: float | None) -> str:
    return "learned" if value is None else f"{value:g}"


def _results(comparison: Comparison) -> str:
    """Return the table of the scores and gains."""
    rows = []
    for name, summaries in comparison.summaries.items():
        scores = [f"{100 * summaries[f'text_to_image_{score}'].mean:.1f}" for score in SCORES]
        gain = comparison.gains.get(name)
        rows.append((code(name), *scores, "" if gain is None else str(gain), judgement(name, gain)))
    return table(("method", *(LABELS[score] for score in SCORES), "gain in MRR", "verdict"), rows)


def _metrics(comparison: Comparison) -> Iterator[EvalResult]:
    """Yield the scores of every method in both directions, as shares."""
    from huggingface_hub import EvalResult

    dataset = file_name(comparison.setting["test"]["location"])
    arguments: dict[str, Any] = {"pairs": comparison.runs[0]["queries"], **comparison.setting["data"]["test"]}
    for direction, label in DIRECTIONS.items():
        for name, summaries in comparison.summaries.items():
            for score in SCORES:
                yield EvalResult(
                    task_type="image-text-retrieval",
                    task_name=f"retrieval, {label}",
                    dataset_type="image-text-pairs",
                    dataset_name=dataset,
                    dataset_config=direction,
                    dataset_args=arguments,
                    metric_type=score,
                    metric_name=f"{LABELS[score]} of {name}, mean over {comparison.setting['seeds']} seeds",
                    metric_value=round(summaries[f"{direction}_{score}"].mean, 6),
                )
