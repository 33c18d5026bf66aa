"""The answer to each question of the study in one to three sentences, from its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from tables import BASELINE, FIGURES, relative, signed, significant

HELD = f"{BASELINE}@0.1"
SELECTION = (
    "Rows: every method that was trained as a whole model, and of all others the three best and the three worst as heads."
)


def _percent(value: float) -> str:
    return signed(f"{100 * value:+.0f} %")


def _count(figures: Sequence[Mapping[str, float]], sign: int) -> int:
    """Return how many gains are significant and of this sign."""
    return sum(significant(figure) and figure["gain"] * sign > 0 for figure in figures)


def choosing(data: Mapping[str, Any]) -> str:
    """Return the mean regret of `choose` and of methods that are fixed in advance."""
    rows = [one["groups"] for one in data.values()]
    chosen = [100 * row["regret"] for row in rows]
    held, learned = (100 * fmean(row["regret_of"][name] for row in rows) for name in (HELD, BASELINE))
    return (
        f"With groups held out, the choice of `choose` was on average {fmean(chosen):.1f} % MRR below the best of "
        f"{max(len(row['test']) for row in rows)} methods, and at most {max(chosen):.1f} %. In-batch negatives were "
        f"{held:.1f} % below the best at a fixed temperature of 0.1, and {learned:.1f} % with a learned one."
    )


def heads(data: Mapping[str, Any]) -> str:
    """Return on how many data sets the default and a fixed temperature differ significantly."""
    own, held = ([one["methods"][name][FIGURES[0]] for one in data.values()] for name in ("default", f"{BASELINE}_held"))
    best = {max(one["methods"].items(), key=lambda row: row[1][FIGURES[0]]["mean"])[0] for one in data.values()}
    return (
        f"With a learned temperature, the default gained significantly at Rank@1 on {_count(own, 1)} of {len(own)} data sets, "
        f"and was significantly worse on {_count(own, -1) or 'none'}. In-batch negatives at a fixed temperature of 0.1 gained "
        f"significantly on {_count(held, 1)}, by up to {max(100 * one['gain'] for one in held):.0f} %. "
        f"The best method differs by data set: there are {len(best)} of them."
    )


def trained(studies: Sequence[Mapping[str, Any]]) -> str:
    """Return how many differences of whole models are significant."""
    figures = [
        (method, relative(data, method)[FIGURES[0]])
        for study in studies
        for data in study["data"].values()
        for method in data["summaries"]
        if method != BASELINE
    ]
    named_gains = [f"`{method}`, {_percent(figure['gain'])}" for method, figure in figures if significant(figure)]
    names = f" ({'; '.join(named_gains)})" if named_gains else ""
    return (
        f"{len(named_gains)} of {len(figures)} differences from in-batch negatives at Rank@1 "
        f"{'is' if len(named_gains) == 1 else 'are'} significant{names}; chance alone makes one in 20 significant. "
        "Gains of heads say little about Rank@1 of a trained model."
    )


def temperature(data: Mapping[str, Any]) -> str:
    """Return how the default, `blend` and the learned temperature compare with a fixed temperature of 0.1."""
    own, blend, learned = (
        [one["beside"][name]["over_held"] for one in data.values()] for name in ("default", "blend@0.1", BASELINE)
    )
    return (
        f"Much. With a learned temperature, in-batch negatives have {abs(100 * fmean(one['gain'] for one in learned)):.0f} % "
        f"less MRR on average than at a fixed temperature of 0.1. They have significantly less on {_count(learned, -1)} of "
        f"{len(learned)} data sets, and so has the default on {_count(own, -1)}. `blend` at temperature 0.1 has significantly "
        f"more on {_count(blend, 1)}."
    )


def pairs(data: Mapping[str, Any]) -> str:
    """Return how many pairs the paper's reading removes on the category, and how many of these are false."""
    one = data["category"]
    paper = one["methods"]["paper"]
    return (
        f"On the category, `paper` removes {paper['removed_per_anchor']:.0f} pairs of each image in a batch of "
        f"{one['batch_size']}. "
        f"Only {100 * paper['false_share_of_removed']:.1f} % of these are false negatives. The default removes "
        f"none: a false negative "
        f"counts {one['methods']['default']['false_weight']:.2f} of another pair."
    )


def gradients(data: Mapping[str, Any], of_pairs: Mapping[str, Any]) -> str:
    """Return the share of the repulsive gradient on false negatives, on the category."""
    end = data["category"]["moments"]["end"]
    share = {name: 100 * end[name]["false_push"]["mean"] for name in (BASELINE, "default", "paper")}
    one = of_pairs["category"]
    false = 100 * one["methods"][BASELINE]["per_anchor"] / (one["batch_size"] - 1)
    return (
        f"On the category, false negatives are {false:.1f} % of the incorrect pairs. At the end of a training with "
        f"in-batch negatives, "
        f"they get {share[BASELINE]:.0f} % of the repulsive gradient. The default lowers that to {share['default']:.0f} %, and "
        f"removal (`paper`) to {share['paper']:.1f} %."
    )


def parts(data: Mapping[str, Any]) -> str:
    """Return the gains of the default and of its two parts on the category."""
    methods = data["category"]["methods"]
    alone = {
        name: methods[name][FIGURES[0]]["gain"] for name in ("weights_alone", "batches_alone", "texts_alone", "images_alone")
    }
    return (
        f"The weights. On the category, they alone gain {_percent(alone['weights_alone'])} Rank@1, the batches alone "
        f"{_percent(alone['batches_alone'])}, and the default {_percent(methods['default'][FIGURES[0]]['gain'])}. "
        f"Weights by texts "
        f"({_percent(alone['texts_alone'])}) give more than weights by images ({_percent(alone['images_alone'])})."
    )


def density(data: Mapping[str, Any]) -> str:
    """Return the gain of the default by the false negatives of an image."""
    rows = [(one["near_duplicates_per_anchor"], one["methods"]["default"][FIGURES[0]]) for one in data.values()]
    gains = ", ".join(
        f"{_percent(figure['gain'])} with {count:.1f}" + (" (significant)" if significant(figure) else "")
        for count, figure in rows
    )
    return f"Not steadily. By the number of others of its item that a listing meets in a batch, the default gains: {gains}."


def default(data: Mapping[str, Any]) -> str:
    """Return the mean gain on validation of the default and of the best candidate with a learned temperature."""
    shared = set.intersection(*(set(one["validation"]) for one in data.values()))
    means = {name: 100 * fmean(one["validation"][name] for one in data.values()) for name in shared if "@" not in name}
    best = max(means, key=means.__getitem__)
    return (
        f"On validation, the default is on average {means['default']:.1f} % above in-batch negatives at Rank@1. "
        f"The best candidate with "
        f"a learned temperature (`{best}`) is {means[best]:.1f} % above: three seeds cannot tell them apart. So "
        f"the default stays."
    )
