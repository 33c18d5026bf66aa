"""Write docs/benchmarks.md and its plots from the result files: python benchmarks/report.py."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sections import save_svg, sections, table

HERE = Path(__file__).parent
ABOUT = sections(HERE / "sections.md")
RESULTS = HERE / "results"
DOCS = HERE.parent / "docs"
KINDS = ("kmeans", "launcher", "loss", "profile", "sampler", "tiles", "training_step")


def page() -> str:
    """Return the page as Markdown."""
    machines = {
        folder: {kind: json.loads(file.read_text()) for kind in KINDS if (file := folder / f"{kind}.json").exists()}
        for folder in sorted(RESULTS.iterdir())
    }
    gpu = any(run["machine_info"].get("gpus") for runs in machines.values() for run in runs.values())
    parts = [ABOUT["head"].format(gpu=ABOUT["gpu" if gpu else "no_gpu"])]
    for folder, runs in machines.items():
        if not runs:  # this machine measured other things
            continue
        information = next(iter(runs.values()))["machine_info"]
        versions = ", ".join(f"{name} {version}" for name, version in information["versions"].items() if version)
        parts.append(f"## {_title(information)}\n\n{versions}, Python {information['python_version']}.\n")
        for run in runs.values():
            parts += _tables(run["benchmarks"])
        if "loss" in runs:
            parts.append(f"![time and memory of the losses](images/benchmarks/{folder.name}.svg)\n")
    return "\n".join(parts)


def plot(folder: Path, target: Path) -> None:
    """Draw time and memory of the losses of one machine over the number of pairs."""
    from matplotlib.figure import Figure

    rows = [one["extra_info"] for one in json.loads((folder / "loss.json").read_text())["benchmarks"]]
    rows = [row for row in rows if "seconds" in row]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, figure_name, label in zip(
        figure.subplots(1, 2), ("seconds_over_open_clip", "peak_mib_over_open_clip"), ("time", "peak memory"), strict=True
    ):
        for name in dict.fromkeys(row["name"] for row in rows):
            mine = sorted((row["n"], row[figure_name]) for row in rows if row["name"] == name and figure_name in row)
            axes.plot(*zip(*mine, strict=True), marker="o", label=name, lw=2 if name == "open_clip" else 1.3)
        axes.set(xlabel="pairs", ylabel=f"{label} over open_clip's", xscale="log", ylim=(0, None))
        axes.set_xticks(sorted({row["n"] for row in rows}), labels=[str(n) for n in sorted({row["n"] for row in rows})])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.axes[1].legend(fontsize="small")
    save_svg(figure, target)


def _title(information: dict[str, Any]) -> str:
    gpus = ", ".join(information.get("gpus") or [])
    return gpus or f"{information['node']}, {information.get('cores') or information['cpu']['count']} cores"


def _tables(benchmarks: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a table for each group of benchmarks."""
    for group in dict.fromkeys(one["group"] for one in benchmarks):
        rows = [one for one in benchmarks if one["group"] == group]
        columns = _COLUMNS[next(kind for kind in _COLUMNS if (group or "").startswith(kind))]
        cells = ([show(row) for show in columns.values()] for row in _with_ratios(rows))
        yield f"### {group[0].upper()}{group[1:]}\n\n{table(cells, list(columns))}"


def _with_ratios(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield rows with their time over that of the first row, where both have a time."""
    first = rows[0].get("stats", {}).get("min")
    for row in rows:
        seconds = row.get("stats", {}).get("min")
        yield row if first is None or seconds is None else row | {"over_first": seconds / first}


def _time(name: str, form: str) -> Any:
    def show(row: dict[str, Any]) -> str:
        value = row.get("stats", {}).get("min") if name == "seconds" else row.get(name)
        return str(row["extra_info"].get("cannot", "–")) if value is None else form.format(value)

    return show


def _figure(name: str, form: str = "{:.3g}") -> Any:
    def show(row: dict[str, Any]) -> str:
        figures = row["extra_info"]
        return form.format(figures[name]) if name in figures else figures.get("cannot", "–")

    return show


def _peak(row: dict[str, Any]) -> str:
    """Return the peak memory of a loss, not measurable below a MiB."""
    peak = row["extra_info"].get("peak_mib")
    return _figure("peak_mib", "{:.0f}")(row) if peak is None or peak >= 1 else "< 1"


def _launcher_seconds(row: dict[str, Any]) -> str:
    seconds = row["extra_info"]["seconds_per_step"][row["extra_info"]["method"]]
    return f"{statistics.median(seconds):.3f}"


_COLUMNS: dict[str, dict[str, Any]] = {
    "loss": {
        "loss": _figure("name", "{}"),
        "seconds": _figure("seconds"),
        "forward": _figure("forward_seconds"),
        "backward": _figure("backward_seconds"),
        "over open_clip": _figure("seconds_over_open_clip", "{:.2f}"),
        "peak MiB": _peak,
        "over open_clip ": _figure("peak_mib_over_open_clip", "{:.2f}"),
        "floor": _figure("floor_over_achieved", "{:.2f}"),
    },
    "training step": {
        "loss": _figure("name", "{}"),
        "seconds a step": _time("seconds", "{:.4g}"),
        "over open_clip": _time("over_first", "{:.3f}"),
    },
    "k-means": {
        "device": _figure("device", "{}"),
        "precision": _figure("precision", "{}"),
        "seconds": _time("seconds", "{:.3g}"),
        "mean similarity to the centroid": _figure("mean_similarity", "{:.4f}"),
    },
    "tile options": {
        "options": _figure("name", "{}"),
        "seconds": _figure("seconds"),
        "forward": _figure("forward_seconds"),
        "backward": _figure("backward_seconds"),
        "over default": _time("over_first", "{:.3f}"),
    },
    "kernels of a step": {
        "kernel": _figure("kernel", "`{}`"),
        "launches": _figure("launches", "{}"),
        "microseconds": _figure("microseconds", "{:.0f}"),
    },
    "sampler": {
        "sampler": _figure("sampler", "{}"),
        "indices a second": _figure("indices_per_second", "{:.3g}"),
        "bytes a label": _figure("bytes_per_label", "{:.1f}"),
    },
    "first batch": {
        "sampler": _figure("sampler", "{}"),
        "CPU seconds to the first batch": _figure("first_batch_seconds", "{:.2f}"),
        "share of the epoch's CPU time": _figure("first_batch_over_epoch", "{:.3f}"),
    },
    "launcher": {
        "negatives": _figure("method", "{}"),
        "seconds a step over open_clip_train's": _figure("over_open_clip", "{:.3f}"),
        "rounds": lambda row: ", ".join(f"{ratio:.3f}" for ratio in row["extra_info"]["rounds"]),
        "seconds a step": _launcher_seconds,
    },
}


if __name__ == "__main__":
    for machine in RESULTS.iterdir():
        if (machine / "loss.json").exists():
            plot(machine, DOCS / "images" / "benchmarks" / f"{machine.name}.svg")
    (DOCS / "benchmarks.md").write_text(page())
