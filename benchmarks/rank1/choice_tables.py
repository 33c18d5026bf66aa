"""Tables about choosing a method on one's own data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from statistics import correlation, fmean
from typing import Any

from sections import table
from studies import BASELINE
from tables import FIGURES, folded, gain, marked, named, relative, signed
from trained_tables import title_of

HELD = f"{BASELINE}@0.1"
LEAST_ROWS = 3  # of a correlation
QUESTIONS = ("near-duplicates", "groups")


def heads_and_towers(heads: Mapping[str, Any], trained: Iterable[Mapping[str, Any]], about: str) -> Iterator[str]:
    """Yield a table of the gains of heads and of trained models, for each method that both were trained with."""
    rows, gains = [], []
    for study in trained:
        for name, data in study["data"].items():
            of_heads = {row["candidate"]: row for row in heads["data"][name]["methods"].values()}
            for method in data["summaries"]:
                if method != BASELINE and method in of_heads:
                    pairs = [(of_heads[method][figure], relative(data, method)[figure]) for figure in FIGURES[:2]]
                    rows.append([named(method), name, title_of(study["study"]), *(gain(it) for pair in pairs for it in pair)])
                    gains.append([(of_head["gain"], of_model["gain"]) for of_head, of_model in pairs])
    if len(rows) < LEAST_ROWS:
        return
    columns = ("heads, Rank@1 [95 %]", "model, Rank@1 [95 %]", "heads, Rank@10 [95 %]", "model, Rank@10 [95 %]")
    first, tenth = (correlation(*zip(*(row[place] for row in gains), strict=True)) for place in range(2))
    yield about.format(rows=len(rows), first=signed(f"{first:+.2f}"), tenth=signed(f"{tenth:+.2f}"))
    yield folded("Heads beside trained models", table(rows, ("method", "data", "trained model", *columns)))


def regret_table(data: Mapping[str, Any]) -> str:
    """Return the choice on each data set, its regret and its gain."""
    rows = [
        [
            *(name, question, f"`{row['chosen']}`", f"`{row['best']}`", f"{100 * row['regret']:.1f}"),
            *(gain(row["over_held"]), signed(f"{100 * row['over_baseline']:+.1f}"), f"{row['order']:.2f}"),
        ]
        for name, one in data.items()
        for question in QUESTIONS
        for row in (one[question],)
    ]
    for question in QUESTIONS:
        chosen = [one[question] for one in data.values()]
        means = [fmean(row[key] for row in chosen) for key in ("regret", "over_baseline", "order")]
        over_held = fmean(row["over_held"]["gain"] for row in chosen)
        cells = (
            f"{100 * means[0]:.1f}",
            signed(f"{100 * over_held:+.1f}"),
            signed(f"{100 * means[1]:+.1f}"),
            f"{means[2]:.2f}",
        )
        rows.append(["**mean**", question, "", "", *cells])
    over = f"MRR over `{HELD}`, % [95 %]"
    return table(rows, ("data", "held out", "chosen", "best on the test", "regret, %", over, f"over `{BASELINE}`, %", "order"))


def fixed_table(data: Mapping[str, Any]) -> str:
    """Return the regret of the chosen method and of methods that are fixed without a look at the data."""
    regrets = {name: {key: one[QUESTIONS[0]]["regret_of"][name] for key, one in data.items()} for name in _fixed_names(data)}
    regrets["chosen"] = {key: one[QUESTIONS[0]]["regret"] for key, one in data.items()}
    rows = [
        [named(name), *(f"{100 * value:.1f}" for value in row.values()), f"{100 * fmean(row.values()):.1f}"]
        for name, row in sorted(regrets.items(), key=lambda item: fmean(item[1].values()))
    ]
    return table(rows, ("method", *data, "mean"))


def _fixed_names(data: Mapping[str, Any]) -> list[str]:
    return list(next(iter(data.values()))[QUESTIONS[0]]["regret_of"])


def gains_table(data: Mapping[str, Any]) -> str:
    """Return the gain of each method over in-batch negatives at a fixed temperature."""
    names = [name for name in next(iter(data.values()))["beside"] if name != HELD]
    gains = {name: {key: one["beside"][name]["over_held"] for key, one in data.items()} for name in names}
    rows = [
        [
            named(name),
            *(marked(f"{100 * figure['gain']:+.1f}", figure) for figure in row.values()),
            signed(f"{100 * fmean(figure['gain'] for figure in row.values()):+.1f}"),
        ]
        for name, row in sorted(gains.items(), key=lambda item: -fmean(figure["gain"] for figure in item[1].values()))
    ]
    return table(rows, ("method", *data, "mean"))
