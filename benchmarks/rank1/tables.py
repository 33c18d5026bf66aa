"""Figures of the study as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sections import table
from studies import BASELINE

FIGURES = ("text_to_image_rank_1", "text_to_image_rank_10", "image_to_text_rank_1")
COLUMNS = ("method", "Rank@1", "gain [95 %]", "gain at 10 [95 %]", "image to text [95 %]")


def named(method: str) -> str:
    """Return the name of a method as code; the baseline is bold."""
    return f"**{method}**" if method == BASELINE else f"`{method}`"


def signed(text: str) -> str:
    """Return text with minus signs and without line breaks."""
    return text.replace(" ", "\N{NO-BREAK SPACE}").replace("-", "\N{MINUS SIGN}")


def significant(figure: Mapping[str, float]) -> bool:
    """Return whether the interval of a gain excludes 0."""
    return figure["low"] > 0 or figure["high"] < 0


def marked(text: str, figure: Mapping[str, float]) -> str:
    """Return a gain, in bold if it is significant."""
    return f"**{signed(text)}**" if significant(figure) else signed(text)


def folded(title: str, content: str) -> str:
    """Return Markdown that the reader opens by a click on its title."""
    return f'<details markdown="1"><summary>{title}</summary>\n\n{content}\n</details>\n'


def gain(figure: Mapping[str, float]) -> str:
    """Return a gain with its interval, in percent."""
    return marked(f"{100 * figure['gain']:+.1f} [{100 * figure['low']:+.1f}, {100 * figure['high']:+.1f}]", figure)


def ordered(methods: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return the methods, the best first."""
    return sorted(methods.items(), key=lambda item: -item[1][FIGURES[0]]["mean"])


def rows_of(methods: Mapping[str, Any], more: Mapping[str, Mapping[str, str]]) -> str:
    """Return the table of a data set: figures of each method, and further columns with gaps."""
    rows = []
    for name, one in ordered(methods):
        first = one[FIGURES[0]]
        gains = ["" if name == BASELINE else gain(one[figure]) for figure in FIGURES]
        mean = f"{100 * first['mean']:.1f} ± {100 * first['spread']:.1f}"
        rows.append([named(name), mean, *gains, *(column.get(name, "") for column in more.values())])
    kept = [title for title, column in more.items() if column]
    columns = [*COLUMNS, *kept]
    indices = [i for i, title in enumerate([*COLUMNS, *more]) if title in columns]
    return table([[row[i] for i in indices] for row in rows], columns)


def overview(data: Mapping[str, Any], figure: str = FIGURES[0]) -> str:
    """Return the gain of every method on every data set, the best on average first."""
    gains = {
        method: {name: one["methods"][method][figure] for name, one in data.items() if method in one["methods"]}
        for method in dict.fromkeys(method for one in data.values() for method in one["methods"])
    }
    mean = {method: sum(one["gain"] for one in found.values()) / len(found) for method, found in gains.items()}
    rows = [
        [named(method), *(marked(f"{100 * found[name]['gain']:+.0f}", found[name]) if name in found else "" for name in data)]
        for method, found in sorted(gains.items(), key=lambda item: -mean[item[0]])
    ]
    return table(rows, ("method", *data))


def validation(data: Mapping[str, Any], *, mean: bool = False) -> str:
    """Return the gain of every candidate on the validation of every data set, the best on average first."""
    gains = {
        spec: {name: one["validation"][spec] for name, one in data.items() if spec in one["validation"]}
        for spec in dict.fromkeys(spec for one in data.values() for spec in one["validation"])
    }
    means = {spec: sum(found.values()) / len(found) for spec, found in gains.items()}
    rows = []
    for spec, found in sorted(gains.items(), key=lambda item: (-len(item[1]), -means[item[0]])):
        cells = [signed(f"{100 * found[name]:+.{int(mean)}f}") if name in found else "" for name in data]
        overall = signed(f"{100 * means[spec]:+.1f}") if len(found) == len(data) else ""
        rows.append([named(spec), *cells, *([overall] if mean else [])])
    return table(rows, ("candidate", *data, *(["mean"] if mean else [])))


def relative(data: Mapping[str, Any], method: str) -> dict[str, Any]:
    """Return the figures of a method of a comparison, with differences relative to the baseline's mean."""
    figures = {}
    for name in FIGURES:
        one, base = data["summaries"][method][name], data["summaries"][BASELINE][name]["mean"]
        found = {"mean": one["mean"], "spread": one["spread"]}
        if method != BASELINE:
            difference = data["differences"][method][name]
            found |= {key: difference[of] / base for key, of in (("gain", "mean"), ("low", "low"), ("high", "high"))}
        figures[name] = found
    return figures


def head(name: str, data: Mapping[str, Any], rates: Sequence[float], *, steps: int | None = None) -> str:
    """Return the heading of a data set, its size, and the learning rates that were tried."""
    more = f" {steps} steps;" if steps is not None else ""
    clustering = f"; clustering {data['clustering_seconds']:.1f} s of CPU time" if "clustering_seconds" in data else ""
    edge = {max(rates): "the highest ", min(rates): "the lowest "}.get(data["lr"], "")
    found = data.get("validated", {})
    each = (f"{rate:g}" + (f" ({100 * found[f'{rate:g}']:.1f} %)" if found else "") for rate in rates)
    tried = f", {edge}of {', '.join(each)}" if len(rates) > 1 else ""
    tried += ", by the baseline's Rank@1 on validation" if found and tried else ""
    return (
        f"### {name.capitalize()}\n\n{data['samples']} listings, {data['near_duplicates_per_anchor']:.2f} others of the same "
        f"item for each in a batch; {data['queries']} queries;{more} learning rate {data['lr']:g}{tried}{clustering}.\n"
    )


def pairs_table(data: Mapping[str, Any]) -> str:
    """Return the table of the pairs of every data set."""
    rows = []
    for name, one in data.items():
        for method, found in one["methods"].items():
            removed = found["removed_per_anchor"]
            told = f"{removed:.1f}, {100 * found['false_share_of_removed']:.1f} % of them false" if removed else "none"
            weight = f"{found['false_weight']:.2f}" if found["per_anchor"] else ""
            before, after = found["per_anchor"], found["per_anchor_kept"]
            false = f"{before:.2f}" if before == after else f"{before:.2f}, {after:.2f} left"
            rows.append([name, str(one["batch_size"]), named(method), false, told, weight])
    told = [f"{one['spread']['image']:.2f} and {one['spread']['text']:.2f} on *{name}*" for name, one in data.items()]
    return (
        table(rows, ("data", "batch", "method", "false", "removed", "weight of a false one"))
        + "\nThe similarities of the clusters of two images, and of two texts, have a similar standard deviation "
        + f"everywhere ({', '.join(told)}), so a strength that follows it would be one strength for all.\n"
    )


def gradients_table(data: Mapping[str, Any]) -> str:
    """Return the table of the gradients of every method during a training with in-batch negatives."""
    rows = []
    for name, one in data.items():
        moments = one["moments"]
        base = moments["end"][BASELINE]["push"]["mean"]
        for method in moments["end"]:
            figures = {moment: moments[moment][method] for moment in moments}
            shares = [f"{100 * figures[moment]['false_push']['mean']:.1f}" for moment in ("start", "middle", "end")]
            push = f"{figures['end']['push']['mean'] / base:.2f}"
            cosines = [
                f"{figures[moment]['agreement']['mean']:.2f} ± {figures[moment]['agreement']['spread']:.2f}"
                for moment in ("middle", "end")
            ]
            rows.append([name, named(method), *shares, push, *cosines])
    columns = ("data", "method", "misled at the start, %", "midway", "at the end", "push at the end")
    return table(rows, (*columns, "agreement midway", "at the end"))
