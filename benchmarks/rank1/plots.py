"""Plots of the study."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from heat_map import heat_map
from matplotlib.figure import Figure
from sections import save_svg
from tables import BASELINE, FIGURES, ordered, relative

LABEL = "gain in text-to-image Rank@1 over in-batch negatives, %"
GOOD, BAD, NEITHER = "#1a7f5a", "#b5442e", "0.55"
N_BEST = N_WORST = 3
Gain = Mapping[str, float]


def plot_answer(heads: Mapping[str, Any], trained: Mapping[str, Mapping[str, Any]], target: Path) -> None:
    """Draw gains of heads and of whole models: the methods of whole models, and the best and worst of the others."""
    cells = _by_method(heads)
    label_of = {row["candidate"]: label for one in heads.values() for label, row in one["methods"].items()}
    whole: dict[str, dict[str, Gain]] = {}
    for title, data in trained.items():
        for name, one in data.items():
            column = title.lower().removesuffix(" of pretrained towers").replace(" with ", ",\n") + f":\n{name}"
            whole[column] = {
                label_of[method]: relative(one, method)[FIGURES[0]] for method in one["summaries"] if method != BASELINE
            }
    both = sorted({label for found in whole.values() for label in found}, key=lambda label: -_mean(cells[label]))
    others = sorted((label for label in cells if label not in both), key=lambda label: -_mean(cells[label]))
    values = {
        label: {**cells[label], **{column: found[label] for column, found in whole.items() if label in found}}
        for label in (*others[:N_BEST], *both, *others[-N_WORST:])
    }
    heat_map(values, [*heads, *whole], target, rules=[len(heads)], heading=("heads on frozen features", "whole models"))


def plot_heads(heads: Mapping[str, Any], target: Path) -> None:
    """Draw the gain of every method on every data set of heads, the best on average first."""
    cells = _by_method(heads)
    heat_map(dict(sorted(cells.items(), key=lambda item: -_mean(item[1]))), list(heads), target)


def plot_temperature(choices: Mapping[str, Any], held: str, target: Path) -> None:
    """Draw the gain in MRR over in-batch negatives at a fixed temperature."""
    names = [name for name in next(iter(choices.values()))["beside"] if name != held]
    cells = {name: {data: one["beside"][name]["over_held"] for data, one in choices.items()} for name in names}
    heat_map(dict(sorted(cells.items(), key=lambda item: -_mean(item[1]))), list(choices), target)


def plot_validation(data: Mapping[str, Any], target: Path) -> None:
    """Draw the gain of every candidate on validation; it has no interval."""
    names = dict.fromkeys(name for one in data.values() for name in one["validation"] if name != BASELINE)
    cells = {
        name: {
            key: {"gain": one["validation"][name], "low": 0, "high": 0}
            for key, one in data.items()
            if name in one["validation"]
        }
        for name in names
    }
    heat_map(dict(sorted(cells.items(), key=lambda item: -_mean(item[1]))), list(data), target)


def plot_regret(choices: Mapping[str, Any], target: Path) -> None:
    """Draw the mean regret of the choice and of fixed methods, with a dot for each data set."""
    rows = {"choose, groups held out": [one["groups"]["regret"] for one in choices.values()]}
    rows["choose, near-duplicates held out"] = [one["near-duplicates"]["regret"] for one in choices.values()]
    fixed = {
        name: [one["groups"]["regret_of"][name] for one in choices.values()]
        for name in next(iter(choices.values()))["groups"]["regret_of"]
    }
    rows |= {f"always {name}": values for name, values in sorted(fixed.items(), key=lambda item: fmean(item[1]))}
    figure = Figure(figsize=(8, 2.4), layout="constrained")
    axes = figure.subplots()
    for place, (name, values) in enumerate(rows.items()):
        axes.barh(place, 100 * fmean(values), color=GOOD if name.startswith("choose") else "0.75")
        axes.plot([100 * value for value in values], [place] * len(values), "o", color="0.25", ms=3)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.set_xlabel("regret in MRR, % (bar: mean; dots: data sets)")
    axes.grid(axis="x", alpha=0.3)
    save_svg(figure, target)


def plot_trained(heads: Mapping[str, Any], trained: Mapping[str, Mapping[str, Any]], target: Path) -> None:
    """Draw the gain of whole models with its interval, beside that of heads."""
    cells = _by_candidate(heads)
    rows = [
        (f"{method}\n{title.lower()}, {name}", relative(one, method)[FIGURES[0]], cells.get(method, {}).get(name))
        for title, data in trained.items()
        for name, one in data.items()
        for method in one["summaries"]
        if method != BASELINE
    ]
    figure = Figure(figsize=(8, 0.36 * len(rows) + 1), layout="constrained")
    axes = figure.subplots()
    for place, (_, model, head) in enumerate(rows):
        _interval(axes, place, model)
        if head is not None:
            axes.plot(100 * head["gain"], place, "x", color="0.25", ms=6)
    axes.axvline(0, color="0.3", lw=1)
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel(f"{LABEL}\n(dot: whole model with its 95 % interval; cross: heads)")
    axes.grid(axis="x", alpha=0.3)
    save_svg(figure, target)


def plot_pairs(data: Mapping[str, Any], target: Path) -> None:
    """Draw how many pairs of an image each method removes, and the share of false negatives among them."""
    names = [name for name, one in next(iter(data.values()))["methods"].items() if one["removed_per_anchor"]]
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for place, method in enumerate(names):
        for shift, (name, one) in enumerate(data.items()):
            at, method_pairs = place + 0.15 * (shift - (len(data) - 1) / 2), one["methods"].get(method)
            if method_pairs is not None:
                color = f"C{shift}"
                left.barh(at, method_pairs["removed_per_anchor"], height=0.14, color=color, label=name if place == 0 else None)
                right.barh(at, 100 * method_pairs["false_share_of_removed"], height=0.14, color=color)
    left.set_yticks(range(len(names)), [name.replace(":", ":\n").replace(",", ",\n") for name in names], fontsize=8)
    left.invert_yaxis()
    left.set_xlabel("removed pairs of an image in a batch")
    right.set_xlabel("false negatives among them, %")
    right.set_xlim(0, 100)
    left.legend(fontsize=8)
    for axes in (left, right):
        axes.grid(axis="x", alpha=0.3)
    save_svg(figure, target)


def plot_gradients(data: Mapping[str, Any], target: Path) -> None:
    """Draw the share of the repulsive gradient on false negatives at the end of a training, where there are any."""
    shown = {name: one["moments"]["end"] for name, one in data.items() if one["moments"]["end"][BASELINE]["false_push"]["mean"]}
    names = list(next(iter(shown.values())))
    figure = Figure(figsize=(8, 0.32 * len(names) + 1.6), layout="constrained")
    axes = figure.subplots()
    for shift, (name, methods) in enumerate(shown.items()):
        axes.plot(
            [100 * methods[method]["false_push"]["mean"] for method in names],
            range(len(names)),
            "o",
            color=f"C{shift}",
            label=name,
        )
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("share of the repulsive gradient on false negatives at the end, %")
    axes.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside right upper")
    save_svg(figure, target)


def plot_gains(data: Mapping[str, Any], target: Path) -> None:
    """Draw the gain in Rank@1 of each method of a data set with its interval; what lies beyond the axis has an arrow."""
    rows = [(name, one[FIGURES[0]]) for name, one in reversed(ordered(data["methods"])) if name != BASELINE]
    figure = Figure(figsize=(7, 0.24 * len(rows) + 1), layout="constrained")
    axes = figure.subplots()
    ends = sorted(100 * one[end] for _, one in rows for end in ("low", "high"))
    low, high = ends[len(ends) // 10] - 10, ends[-1] + 3  # a tenth of the ends may lie beyond
    for place, (_, one) in enumerate(rows):
        _interval(axes, place, one)
        if 100 * one["gain"] < low:
            axes.annotate(
                f"{100 * one['gain']:+.0f} %".replace("-", "\N{MINUS SIGN}"),
                (low, place),
                fontsize=7,
                va="center",
                xytext=(14, 0),
                textcoords="offset points",
            )
            axes.plot(low, place, "<", color=BAD, clip_on=False)
    axes.axvline(0, color="0.3", lw=1)
    axes.set_xlim(low, high)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=8)
    axes.set_xlabel(LABEL)
    axes.grid(axis="x", alpha=0.3)
    save_svg(figure, target)


def plot_densities(data: Mapping[str, Any], target: Path) -> None:
    """Draw the gain in Rank@1 of each method, with its interval, by the false negatives of an image in a batch."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    methods = [name for name in next(iter(data.values()))["methods"] if name != BASELINE]
    for place, name in enumerate(methods):
        rows = [one for one in data.values() if name in one["methods"]]
        gains = [one["methods"][name][FIGURES[0]] for one in rows]
        middle, low, high = ([100 * gain[of] for gain in gains] for of in ("gain", "low", "high"))
        shift = 1.03 ** (place - (len(methods) - 1) / 2)  # so that the intervals stand beside each other
        at = [shift * one["near_duplicates_per_anchor"] for one in rows]
        axes.plot(at, middle, "o-", color=f"C{place}", label=name, ms=4, lw=1.5)
        axes.vlines(at, low, high, color=f"C{place}", lw=1, alpha=0.6)
    axes.axhline(0, color="0.3", lw=1)
    axes.set_xscale("log")
    ticks = [one["near_duplicates_per_anchor"] for one in data.values()]
    axes.set_xticks(ticks, [f"{tick:.2f}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("others of its item in a batch, for each listing")
    axes.set_ylabel(LABEL, fontsize=8)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncols=2, loc="lower right")
    save_svg(figure, target)


def _by_method(heads: Mapping[str, Any]) -> dict[str, dict[str, Gain]]:
    """Return the gains of heads by method, then by data set: of the candidate that validation chose there."""
    methods = dict.fromkeys(method for one in heads.values() for method in one["methods"] if method != BASELINE)
    return {
        method: {name: one["methods"][method][FIGURES[0]] for name, one in heads.items() if method in one["methods"]}
        for method in methods
    }


def _by_candidate(heads: Mapping[str, Any]) -> dict[str, dict[str, Gain]]:
    """Return the gains of heads by the method as it is written on the command line, then by data set."""
    cells: dict[str, dict[str, Gain]] = {}
    for name, one in heads.items():
        for method, row in one["methods"].items():
            if method != BASELINE:
                cells.setdefault(row["candidate"], {})[name] = row[FIGURES[0]]
    return cells


def _mean(cells: Mapping[str, Gain]) -> float:
    return fmean(gain["gain"] for gain in cells.values()) if cells else float("-inf")


def _interval(axes: Any, place: float, one: Gain) -> None:
    color = GOOD if one["low"] > 0 else BAD if one["high"] < 0 else NEITHER
    axes.plot([100 * one["low"], 100 * one["high"]], [place, place], color=color, lw=2)
    axes.plot(100 * one["gain"], place, "o", color=color, ms=4)
