"""Advice on false negatives: a method, and how sure the advice is."""

from __future__ import annotations

from dataclasses import dataclass

from clip_negatives.checking.truth import GroundTruth
from clip_negatives.checking.verdict import Verdict
from clip_negatives.choosing import Choice
from clip_negatives.choosing.menu import is_installed
from clip_negatives.host.method import Method

TO_DO, CERTAINTY = "What to do?", "How sure is that?"
TEMPERATURE = 0.1  # fixed temperature without a choice: the best single one in our study
KNOWN = ("id_mask", "multi_positive")  # weightings that use groups or texts


@dataclass(frozen=True, slots=True)
class Advice:
    """A method to train with.

    Attributes:
        method: the method; `clip_negatives.Method.parse` reads it.
        to_do: sentences about what to do.
        certainty: sentences about how sure that is.
    """

    method: str
    to_do: tuple[str, ...]
    certainty: tuple[str, ...]


def methods_for(truth: GroundTruth, verdict: Verdict) -> str:
    """Return the methods that `clip_negatives.choosing.choose` compares: its menu, and the weightings of `known_methods`."""
    return ",".join(["menu", *(f"{spec}@{TEMPERATURE:g}" for spec in known_methods(truth, verdict))])


def known_methods(truth: GroundTruth, verdict: Verdict) -> list[str]:
    """Return the installed weightings that use groups, or texts if most samples have no group.

    Empty if these explain less than half of the false negatives, or if false negatives are negligible.
    """
    by = "group" if truth.has_groups else "text"
    share = next(rate.share for rate in verdict.rates.kinds if rate.kind == f"same {by}")
    if verdict.rates.is_negligible or share < verdict.rates.all.share / 2:
        return []
    specs = [f"{name}:by={by}" for name in KNOWN]
    return [spec for spec in specs if is_installed(spec)]


def advice_of(truth: GroundTruth, verdict: Verdict, choice: Choice | None) -> Advice:
    """Return what to do.

    Args:
        truth: the ground truth about the data.
        verdict: the verdict on them.
        choice: the choice among methods on folds of the data; None without a choice.
    """
    method, reasons = _method(truth, verdict, choice)
    to_do = [*reasons, _about_clusters(Method.parse(method), verdict)]
    return Advice(method, tuple(filter(None, to_do)), tuple(_certainty(truth, verdict, choice)))


def _method(truth: GroundTruth, verdict: Verdict, choice: Choice | None) -> tuple[str, list[str]]:
    plain = f"in_batch@{TEMPERATURE:g}" if choice is None else choice.reference
    source = "" if choice else " The temperature was the best in our study; it was not chosen on these data."
    if verdict.rates.is_negligible:
        return plain, [f"Change only the temperature: use {plain}. There are too few false negatives to act on.{source}"]
    known = known_methods(truth, verdict)
    if choice is None:
        if known:
            method = f"{known[0]}@{TEMPERATURE:g}"
            return method, [f"Use {method}: it removes the known false negatives from the loss.{source}"]
        return plain, [f"Use {plain}.{source}"]
    if choice.row(choice.method).is_significantly_better:
        return choice.method, [choice.sentence]
    rows = [choice.row(f"{spec}@{TEMPERATURE:g}") for spec in known]
    best = max((row for row in rows if row.gain[2] >= 0), key=lambda row: row.mrr, default=None)
    if best is None:
        return choice.method, [choice.sentence]
    gain, low, high = (100 * value for value in best.gain)
    return best.name, [
        f"Use {best.name}: it uses the known groups or texts. Its MRR is not significantly lower than that of "
        f"{choice.reference}, in-batch negatives at their best temperature: {gain:+.1f} % [{low:+.1f}, {high:+.1f}]."
    ]


def _about_clusters(method: Method, verdict: Verdict) -> str:
    """Return a sentence about the number of clusters."""
    if not method.requires_clusters or method.requires_only_ids:
        return "The number of clusters (K) has no effect on this method."
    match = next(iter(verdict.quality.matches), None)
    if match is None or match.truth != "group":
        return "The number of clusters (K) was not checked: too few pairs of the same group are known."
    ratio = match.cluster_share / match.chance
    if 1 / 3 <= ratio <= 3:
        return "The number of clusters (K) fits: pairs in one image cluster are about as frequent as pairs in one group."
    direction = "more" if ratio > 1 else "fewer"
    return (
        f"The number of clusters (K): pairs in one image cluster are {ratio:.1f} times as frequent as pairs in one group. Try "
        f"{direction} clusters (--clusterer kmeans:n_clusters=K)."
    )


def _certainty(truth: GroundTruth, verdict: Verdict, choice: Choice | None) -> list[str]:
    sentences = []
    if truth.has_groups:
        sentences.append(f"The number of false negatives is counted: {100 * truth.coverage:.0f} % of the samples have a group.")
    elif verdict.rates.all.is_estimate:
        sentences.append(
            "The number of false negatives is an estimate: similar samples need not show the same. It was 45 % and 65 % of the "
            "true number on two parts of our catalogue, and 0.19 on a part without false negatives. Look at the suspect pairs."
        )
    else:
        sentences.append(
            "Only pairs with the same group or text are counted. Without features, near-duplicates cannot be found, so there "
            "may be more."
        )
    if choice is None:
        return [*sentences, "No method was compared on these data."]
    queries, folds = choice.setting["n_queries"], choice.setting["folds"]
    compared = (
        f"{len(choice.rows)} methods and controls were compared on {queries:,} queries in {folds} folds. Held out: "
        f"{choice.held_out}."
    )
    return [*sentences, compared, *choice.warnings]
