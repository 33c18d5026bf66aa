"""Write docs/scale-plan.md and its plot from the measured rates: python benchmarks/scale/plan.py."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import stage_plan
from sections import save_svg, sections, table
from stage_plan import SHARDS, D, K, N

from clip_negatives.storage.source_files import DIGESTED_FILES
from clip_negatives.training.same_data import CHECKED_FILES

HERE = Path(__file__).parent
ABOUT = sections(HERE / "sections.md")
RESULTS = HERE.parent / "results"
DOCS = HERE.parents[1] / "docs"
KINDS = ("kmeans", "prepare", "rates", "tasks")

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
    parts += [_same_files(file) for file in sorted(RESULTS.glob("*/scale-same-files.json"))]
    parts += [_reading(file) for file in sorted(RESULTS.glob("*/scale-reading.json"))]
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
    yield from _tasks(result["tasks"])
    yield "### Labels, pairs, new shards, plans\n"
    yield "Of the memory, tables between many clusters take most: 8 K² bytes, and as much for their weights.\n"
    columns = ["step", "samples", "clusters", "a core's second", "MiB beyond what was there"]
    yield table([_step(row) for row in result["rates"]["rows"]], columns)


def _tasks(tasks: Mapping[str, Any]) -> Iterator[str]:
    """Return what each command of independent tasks took, and by which power of the number of pairs it grows."""
    yield "### Independent tasks\n"
    yield ABOUT["tasks"].format(**tasks)
    rows, previous = [], dict[str, Mapping[str, Any]]()
    for row in tasks["rows"]:
        before = previous.get(row["step"])
        powers = [_power(before, row, name) if before else "" for name in ("cpu_seconds", "mib")]
        traffic = [f"{row.get(name, 0) / row['n']:,.0f}" for name in ("bytes_read", "bytes_written")]
        told = [f"{row['cpu_seconds']:.1f}", powers[0], f"{row['mib']:.0f}", powers[1], *traffic, f"{row.get('requests', 0):,}"]
        rows.append([row["step"], f"{row['n']:,}", *told])
        previous[row["step"]] = row
    time, memory = "core seconds", "MiB beyond what was there"
    yield table(rows, ["step", "pairs", time, "power", memory, "power", "bytes read a pair", "written a pair", "requests"])


def _power(before: Mapping[str, Any], row: Mapping[str, Any], name: str) -> str:
    """Return p, where the figure grows like the number of pairs to the power of p."""
    return f"{math.log(row[name] / before[name]) / math.log(row['n'] / before['n']):.2f}"


def _same_files(file: Path) -> str:
    """Return the cost of the comparison of image files with the clustered ones."""
    result = json.loads(file.read_text())
    rows = [[row["step"], f"{row['wall']['added']:.2f}", f"{row['wall']['ratio']:.3f}"] for row in result["rows"]]
    limits = {"checked": CHECKED_FILES, "digested": DIGESTED_FILES}
    about = ABOUT["same_files"].format(n=result["n_samples"], machine=file.parent.name, **limits)
    return about + table(rows, ["step", "seconds of the comparison", "time with comparison / without"])


def _reading(file: Path) -> str:
    """Return the rates of reading each format."""
    result = json.loads(file.read_text())
    names = "format", "ours_per_second", "plain_per_second", "ratio", "lowest_ratio", "ratio_of_fastest"
    rows = [[str(row[name]) for name in names] for row in result["rows"]]
    about = ABOUT["reading"].format(n=result["n_samples"], side=result["side"], machine=file.parent.name)
    return about + table(
        rows, ["format", "samples a second", "of a plain loop", "median ratio", "lowest ratio", "ratio of the fastest runs"]
    )


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
