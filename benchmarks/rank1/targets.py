"""Targets of the study, and whether they were met."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tables import BASELINE, FIGURES, gain, relative

DEFAULT = "default"
WANTED = 0.21  # gain in Rank@1 that the paper reports
DENSE, SPARSE = "category", ("few", "stamps")  # the data set with the most near-duplicates, and those with few
OF_OURS = (BASELINE, DEFAULT, "default_held", "in_batch_held", "random_reduction")
"""Methods that are no rivals: the baseline, the default, other temperatures, the control."""


def targets(heads: Mapping[str, Any], trained: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the section, given the data sets of heads, and those of each study of trained models by its title."""
    if DENSE not in heads or DEFAULT not in heads[DENSE]["methods"]:
        return ""
    lines = [
        "## Targets\n",
        f"Set before the study: where near-duplicates are as dense as in a catalogue, at least {100 * WANTED:.0f} % more "
        "Rank@1 than in-batch negatives with an interval above 0, and more than every rival; where they are few, nothing lost. "
        "Gains of the default, in percent:\n",
        *_dense(heads, trained),
        *_rivals(heads),
        *_sparse(heads),
    ]
    return "\n".join(lines) + "\n"


def _dense(heads: Mapping[str, Any], trained: Mapping[str, Mapping[str, Any]]) -> list[str]:
    figures = {"heads": heads[DENSE]["methods"][DEFAULT][FIGURES[0]]}
    figures |= {
        title.lower(): relative(data[DENSE], DEFAULT)[FIGURES[0]]
        for title, data in trained.items()
        if DENSE in data and DEFAULT in data[DENSE]["summaries"]
    }
    met = any(figure["gain"] >= WANTED and figure["low"] > 0 for figure in figures.values())
    told = ", ".join(f"{gain(figure)} ({title})" for title, figure in figures.items())
    return [f"* At least {100 * WANTED:.0f} % on *{DENSE}*: **{_verdict(met)}**. {told}."]


def _rivals(heads: Mapping[str, Any]) -> list[str]:
    above = {}
    for name, data in heads.items():
        own = data["methods"][DEFAULT][FIGURES[0]]["gain"]
        rivals = {
            method: row[FIGURES[0]]["gain"]
            for method, row in data["methods"].items()
            if method not in OF_OURS and row[FIGURES[0]]["gain"] > own
        }
        above[name] = sorted(rivals.items(), key=lambda item: -item[1])
    lines = [f"* Above every rival: **{_verdict(not any(above.values()))}**. Above the default, among heads:"]
    for name, rivals in above.items():
        told = ", ".join(f"`{method}` {100 * value:+.1f}".replace("-", "\N{MINUS SIGN}") for method, value in rivals)
        own = gain(heads[name]["methods"][DEFAULT][FIGURES[0]])
        lines.append(f"    * on *{name}* (default {own}): {told or 'none'}.")
    return lines


def _sparse(heads: Mapping[str, Any]) -> list[str]:
    figures = {name: heads[name]["methods"][DEFAULT][FIGURES[0]] for name in SPARSE if name in heads}
    met = all(figure["high"] > 0 for figure in figures.values())
    told = ", ".join(f"{gain(figure)} on *{name}*" for name, figure in figures.items())
    return [f"* Not below in-batch negatives where near-duplicates are few: **{_verdict(met)}**. {told}."]


def _verdict(met: bool) -> str:
    return "met" if met else "not met"
