"""Write docs/benchmarks.md and its plots from the result files: python benchmarks/report.py."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results"
DOCS = HERE.parent / "docs"
KINDS = ("kmeans", "launcher", "loss", "sampler", "training_step")

HEAD = """# Benchmarks

Written by `python benchmarks/report.py` from the result files under `benchmarks/results/`, one folder a machine. Times
are the best of ten rounds; ratios are medians over rounds, in each of which open_clip's unweighted `ClipLoss` takes the
step before. Losses are forward and backward, with gradients to both feature matrices and the scale. *Weighted* has two
tables of log-weights over image and text clusters, *normalized* scales them to mean 1. *Floor* is the time that
`8 B² D` operations take at the measured rate of a large product, or the bytes of features and gradients at that of a
copy if they take longer, over the time achieved: 1 is the limit of the hardware. A dash was not measured.

Run them on your machine, small or at full size:

```bash
tox -e bench
BENCHMARK_FULL=1 tox -e bench
BENCHMARK_FULL=1 tox -e gpu
```

{gpu}
"""

NO_GPU = """**Nothing here was run on a GPU yet.** The fused kernels were tested in Triton's interpreter and compiled for sm_80
and sm_90. Tests hold that the types and options that `tests/kernels/machine_code.py` lists spill no register and run their
products on tensor cores; how fast they are is not known.
"""


def page() -> str:
    """Return the page as Markdown."""
    machines = sorted(folder for folder in RESULTS.iterdir() if folder.is_dir())
    gpu = any(
        json.loads(file.read_text())["machine_info"].get("gpus")
        for folder in machines
        for file in folder.glob("*.json")
        if file.stem in KINDS
    )
    parts = [HEAD.format(gpu="" if gpu else NO_GPU)]
    for folder in machines:
        runs = {file.stem: json.loads(file.read_text()) for file in sorted(folder.glob("*.json")) if file.stem in KINDS}
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
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "clip-negatives"  # the same file every time
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
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, metadata={"Date": None})


def _title(information: dict[str, Any]) -> str:
    gpus = ", ".join(information.get("gpus") or [])
    return gpus or f"{information['node']}, {information.get('cores') or information['cpu']['count']} cores"


def _tables(benchmarks: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a table for each group of benchmarks."""
    for group in dict.fromkeys(one["group"] for one in benchmarks):
        rows = _with_ratios([one for one in benchmarks if one["group"] == group])
        columns = _COLUMNS[next(kind for kind in _COLUMNS if (group or "").startswith(kind))]
        head, rule = "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)
        lines = ["| " + " | ".join(show(row) for show in columns.values()) + " |" for row in rows]
        yield "\n".join([f"### {group[0].upper()}{group[1:]}\n", head, rule, *lines, ""])


def _with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the benchmarks of a group, each with its best time over that of the first, the baseline where there is one."""
    first = rows[0]["stats"]["min"]
    return [row | {"over_first": row["stats"]["min"] / first} for row in rows]


def _figure(name: str, form: str = "{:.3g}") -> Any:
    return lambda row: (
        form.format(row["extra_info"][name]) if name in row["extra_info"] else row["extra_info"].get("cannot", "–")
    )


def _launcher_rounds(row: dict[str, Any]) -> str:
    return ", ".join(f"{ratio:.3f}" for ratio in row["extra_info"]["rounds"])


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
        "peak MiB": _figure("peak_mib", "{:.0f}"),
        "over open_clip ": _figure("peak_mib_over_open_clip", "{:.2f}"),
        "floor": _figure("floor_over_achieved", "{:.2f}"),
    },
    "training step": {
        "loss": _figure("name", "{}"),
        "seconds a step": lambda row: f"{row['stats']['min']:.4g}",
        "over open_clip": lambda row: f"{row['over_first']:.3f}",
    },
    "k-means": {
        "device": _figure("device", "{}"),
        "precision": _figure("precision", "{}"),
        "seconds": lambda row: f"{row['stats']['min']:.3g}",
        "mean similarity to the centroid": _figure("mean_similarity", "{:.4f}"),
    },
    "sampler": {
        "sampler": _figure("sampler", "{}"),
        "indices a second": _figure("indices_per_second", "{:.3g}"),
        "bytes a label": _figure("bytes_per_label", "{:.1f}"),
    },
    "launcher": {
        "negatives": _figure("method", "{}"),
        "seconds a step over open_clip_train's": _figure("over_open_clip", "{:.3f}"),
        "rounds": _launcher_rounds,
        "seconds a step": _launcher_seconds,
    },
}


if __name__ == "__main__":
    for machine in RESULTS.iterdir():
        if (machine / "loss.json").exists():
            plot(machine, DOCS / "images" / "benchmarks" / f"{machine.name}.svg")
    (DOCS / "benchmarks.md").write_text(page())
