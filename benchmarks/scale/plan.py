"""Write docs/scale-plan.md and its plot from the measured rates: python benchmarks/scale/plan.py."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import stage_plan
from page_parts import ABOUT, PARTS
from sections import save_svg, table
from stage_plan import SHARDS, D, K, N

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"
DOCS = HERE.parents[1] / "docs"
KINDS = ("kmeans", "memory", "prepare", "rates", "tasks")

MOMENTS = {"encoded": "once encoded", "end": "at the end, mapped features among it"}


def found(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the result files of a machine."""
    return {kind: json.loads(file.read_text()) for kind in KINDS if (file := folder / f"scale-{kind}.json").exists()}


def page() -> str:
    """Return the page as Markdown."""
    folders = [folder for folder in sorted(RESULTS.iterdir()) if set(found(folder)) == set(KINDS)]
    results = {folder.name: found(folder) for folder in folders}
    parts = []
    for name, result in results.items():
        load = f"a machine of {result['kmeans']['machine']['cores']} cores that did other work meanwhile"
        parts.append(ABOUT["introduction"].format(n=N, shards=SHARDS, d=D, k=K, load=load))
        parts.append(stage_plan.section(result))
        parts += _measured(name, result)
    parts += [part(file) for name, part in PARTS.items() for file in sorted(RESULTS.glob(f"*/scale-{name}.json"))]
    return "\n".join(parts)


def _measured(name: str, result: Mapping[str, Any]) -> Iterator[str]:
    yield "## What was measured\n\n### prepare, two processes\n"
    yield (
        "Peak resident memory of each process. *bounded*: encoders learn from some 1,000 samples instead of up to 100,000, "
        "which is what *default* still grows by. What is mapped from files counts here: at the end the first process maps the "
        "features, 512 bytes a pair, and faiss clusters them.\n"
    )
    columns = ["series", "pairs", "MiB, once encoded", "MiB at the end", "encoded a second (wall clock)"]
    yield table([_prepared(row) for row in result["prepare"]["rows"]], columns)
    yield f"![memory against the number of samples](images/scale/{name}.svg)\n"
    yield from _kmeans(result["kmeans"])
    yield "### Labels, pairs, new shards, plans\n"
    yield "Of the memory, tables between many clusters take most: 8 K² bytes, and as much for their weights.\n"
    columns = ["step", "samples", "clusters", "a core's second", "MiB beyond what was there"]
    yield table([_step(row) for row in result["rates"]["rows"]], columns)


def _prepared(row: Mapping[str, Any]) -> list[str]:
    memory = [" and ".join(f"{value:.0f}" for value in row[name]) for name in ("peak_mib_encoded", "peak_mib_end")]
    return [row["series"], f"{row['n_samples']:,}", *memory, f"{row['samples_per_second']:,}"]


def _step(row: Mapping[str, Any]) -> list[str]:
    clusters = f"{row['clusters']:,}" if "clusters" in row else ""
    return [row["step"], f"{row['n']:,}", clusters, f"{row['per_second']:,.0f}", f"{row['mib']:.0f}"]


def _kmeans(kmeans: Mapping[str, Any]) -> Iterator[str]:
    rows = kmeans["rows"]
    yield f"### kmeans, {kmeans['size']['d']} numbers\n"
    yield (
        "The mean cosine of a row with the mean of its cluster says how good the clusters are. The made-up features are blobs "
        "around 64 themes, which suits two levels.\n"
    )
    columns = ["by", "rows", "clusters", "core seconds", "MiB, mapped features left out", "mean cosine"]
    yield table([_clustered(row) for row in rows], columns)


def _clustered(row: Mapping[str, Any]) -> list[str]:
    options = ", ".join(f"{name}={value}" for name, value in row.get("options", {}).items())
    by = f"{row['by']}, {options}" if options else str(row["by"])
    told = [f"{row['processor_seconds']:.1f}", f"{row['mib']:.0f}", f"{row['mean_cosine']:.4f}"]
    return [by, f"{row['n']:,}", f"{row['k']:,}", *told]


def plot(result: Mapping[str, Any], target: Path) -> None:
    """Draw peak memory against the number of samples."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    rows = result["prepare"]["rows"]
    for series in dict.fromkeys(row["series"] for row in rows):
        some = [row for row in rows if row["series"] == series]
        for moment, style in (("encoded", "o-"), ("end", "o:")):
            peaks = [max(row[f"peak_mib_{moment}"]) for row in some]
            axes.plot([row["n_samples"] for row in some], peaks, style, label=f"prepare, {series}, {MOMENTS[moment]}")
    rows = [row for row in result["kmeans"]["rows"] if row["by"] == "kmeans" and "options" not in row]
    rows = [row for row in rows if row["k"] == result["kmeans"]["size"]["k"]]
    axes.plot([row["n"] for row in rows], [row["mib"] for row in rows], "s-", label="kmeans, mapped features left out")
    axes.set(xscale="log", xlabel="samples", ylabel="peak memory of a process, MiB", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save_svg(figure, target)


if __name__ == "__main__":
    for folder in sorted(RESULTS.iterdir()):
        if set(result := found(folder)) == set(KINDS):
            plot(result, DOCS / "images" / "scale" / f"{folder.name}.svg")
    (DOCS / "scale-plan.md").write_text(page())
