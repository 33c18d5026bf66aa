"""The result of ``compare --quick`` in the docs is that of the stored result file."""

from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console

from clip_negatives.compare import Comparison
from clip_negatives.compare.output import WIDTH, results_table, sentences
from clip_negatives.compare.results import Summary
from clip_negatives.metrics.power import Variance
from clip_negatives.metrics.statistics import Gain

ROOT = Path(__file__).resolve().parents[2]
RESULT = Path(__file__).parent / "quick.json"


def stored() -> Comparison:
    """Return the comparison of the result file, as far as the terminal shows it."""
    result = json.loads(RESULT.read_text())
    summaries = {
        name: {figure: Summary(**summary) for figure, summary in figures.items()}
        for name, figures in result["summaries"].items()
    }
    gains = {name: Gain(**{**gain, "variance": Variance(**gain["variance"])}) for name, gain in result["gains"].items()}
    return Comparison(result["setting"], result["runs"], summaries, gains=gains, verdict=result["verdict"])


def shown(comparison: Comparison) -> str:
    console = Console(width=WIDTH, record=True, file=io.StringIO())
    console.print(results_table(comparison))
    lines = [*sentences(comparison), *console.export_text().splitlines()]
    return "\n".join(line.rstrip() for line in lines)


def test_docs_show_the_stored_result() -> None:
    assert f"```text\n{shown(stored())}\n```" in (ROOT / "docs" / "compare.md").read_text()


def test_the_quick_comparison_shows_a_significant_difference() -> None:
    gain = stored().gains["one_cluster+uniform"]
    assert gain.sign == -1
    assert "one_cluster+uniform" in stored().verdict
