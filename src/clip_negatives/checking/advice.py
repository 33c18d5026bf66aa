"""What to do about false negatives, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass

from clip_negatives.checking.truth import Truth
from clip_negatives.checking.verdict import Verdict
from clip_negatives.choosing import Choice
from clip_negatives.choosing.menu import is_installed
from clip_negatives.host.method import Method

TO_DO, CERTAINTY = "What to do?", "How sure is that?"
TEMPERATURE = 0.1  # held temperature without a choice: the best single one in our study
KNOWN = ("id_mask", "multi_positive")  # weightings that use what is known


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


def methods_for(truth: Truth, verdict: Verdict) -> str:
    """Return the methods that `clip_negatives.choosing.choose` compares: its menu, and those that use what is known."""
    return ",".join(["menu", *(f"{spec}@{TEMPERATURE:g}" for spec in known_methods(truth, verdict))])


def known_methods(truth: Truth, verdict: Verdict) -> list[str]:
    """Return the methods that use groups or, if most false negatives have the same text, texts; empty if little is known."""
    by = "group" if truth.has_groups else "text"
    known = next(rate.share for rate in verdict.rates.kinds if rate.kind == f"same {by}")
    if verdict.rates.is_negligible or known < verdict.rates.all.share / 2:
        return []
    specs = [f"{name}:by={by}" for name in KNOWN]
    return [spec for spec in specs if is_installed(spec)]


def advice_of(truth: Truth, verdict: Verdict, choice: Choice | None) -> Advice:
    """Return what to do.

    Args:
        truth: what is known about the data.
        verdict: the verdict on them.
        choice: the choice among methods on folds of the data; None without a choice.
    """
    method, reasons = _method(truth, verdict, choice)
    to_do = [*reasons, _about_clusters(Method.parse(method), verdict)]
    return Advice(method, tuple(filter(None, to_do)), tuple(_certainty(truth, verdict, choice)))


def _method(truth: Truth, verdict: Verdict, choice: Choice | None) -> tuple[str, list[str]]:
    plain = f"in_batch@{TEMPERATURE:g}" if choice is None else choice.reference
    held = "" if choice else " The temperature was the best in our study; it was not chosen on these data."
    if verdict.rates.is_negligible:
        return plain, [f"Nothing but the temperature: use {plain}. There are too few false negatives to act on.{held}"]
    known = known_methods(truth, verdict)
    if choice is None:
        if known:
            method = f"{known[0]}@{TEMPERATURE:g}"
            return method, [f"Use {method}: it removes the known false negatives from the loss.{held}"]
        return plain, [f"Use {plain}.{held}"]
    if choice.row(choice.method).is_significant:
        return choice.method, [choice.sentence]
    rows = [choice.row(f"{spec}@{TEMPERATURE:g}") for spec in known]
    best = max((row for row in rows if row.gain[2] >= 0), key=lambda row: row.mrr, default=None)
    if best is None:
        return choice.method, [choice.sentence]
    gain, low, high = (100 * value for value in best.gain)
    return best.name, [
        f"Use {best.name}: it uses the known groups or texts. Its MRR is not significantly below that of {choice.reference}, "
        f"the best temperature: {gain:+.1f} % [{low:+.1f}, {high:+.1f}]."
    ]


def _about_clusters(method: Method, verdict: Verdict) -> str:
    """Return a sentence about the number of clusters."""
    if not method.requires_clusters or method.requires_only_ids:
        return "The number of clusters (K) has no effect on this method."
    match = next(iter(verdict.quality.matches), None)
    if match is None or match.truth != "group":
        return "K: nothing shows a better number of clusters, because the data have no groups."
    ratio = match.cluster_share / match.chance
    if 1 / 3 <= ratio <= 3:
        return "K fits: pairs of one image cluster are about as frequent as pairs of one group."
    direction = "more" if ratio > 1 else "fewer"
    return (
        f"K: pairs of one image cluster are {ratio:.1f} times as frequent as pairs of one group. Try {direction} clusters "
        "(--clusterer kmeans:n_clusters=K)."
    )


def _certainty(truth: Truth, verdict: Verdict, choice: Choice | None) -> list[str]:
    sentences = []
    if truth.has_groups:
        sentences.append(f"The number of false negatives is counted: {100 * truth.coverage:.0f} % of the samples have a group.")
    elif verdict.rates.all.is_estimate:
        sentences.append(
            "The number of false negatives is an estimate: similar samples need not show the same. It was 0.19 on a part of "
            "our catalogue that has none, and a sixth to two thirds of the true number elsewhere. Look at the suspect pairs."
        )
    else:
        sentences.append("Only equal texts are known to be false negatives; there may be more.")
    if choice is None:
        return [*sentences, "No method was compared on these data."]
    queries, folds = choice.setting["n_queries"], choice.setting["folds"]
    compared = (
        f"{len(choice.rows)} candidates were compared on {queries:,} queries in {folds} folds. Held out: {choice.question}."
    )
    return [*sentences, compared, *choice.warnings]
