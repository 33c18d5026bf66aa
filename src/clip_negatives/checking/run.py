"""Check a data set: count, judge the features, choose a method, list suspect pairs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from clip_negatives.advice import argument, named
from clip_negatives.checking.advice import CERTAINTY, TO_DO, Advice, advice_of, methods_for
from clip_negatives.checking.suspects import Suspect, samples_of, suspects_of
from clip_negatives.checking.truth import GroundTruth, truth_about, with_groups
from clip_negatives.checking.verdict import Verdict, verdict_of
from clip_negatives.choosing import Choice
from clip_negatives.choosing import choose as choose_method
from clip_negatives.choosing.choice import FOLDER
from clip_negatives.dataset.decided import Decisions, joined_groups, read_decisions
from clip_negatives.errors import InputError
from clip_negatives.storage.clusters_folder import ClustersFolder
from clip_negatives.storage.digests import digest_of

TARS_NOTE = (
    "This answer uses your decisions, but the clusters do not: prepare cannot change the groups of tars. So the train command "
    "trains without your decisions. To train with them, write a group into the .json files of the tars, and use --group-column."
)


@dataclass(frozen=True, slots=True)
class CheckResult:
    """Result of the check of a data set.

    Attributes:
        verdict: false negatives and features.
        advice: what to do, and how sure that is.
        choice: the choice among methods; None without one.
        suspects: the most suspect pairs.
        decisions: decisions of the user that were used.
        folder: the clusters, with the groups after these decisions.
        truth: the ground truth about the data.
        notes: sentences about what was left out, and about decisions that training cannot use.
    """

    verdict: Verdict
    advice: Advice
    choice: Choice | None
    suspects: tuple[Suspect, ...]
    decisions: Decisions
    folder: ClustersFolder = field(repr=False)
    truth: GroundTruth = field(repr=False)
    notes: tuple[str, ...] = ()

    def answers(self) -> dict[str, list[str]]:
        """Return sentences by question."""
        certainty = [*self.advice.certainty, *self.notes]
        return {**self.verdict.answers(), TO_DO: list(self.advice.to_do), CERTAINTY: certainty}

    def to_dict(self) -> dict[str, Any]:
        """Return the answer as JSON data."""
        return {
            **self.verdict.to_dict(),
            "answers": self.answers(),
            "method": self.advice.method,
            "choice": None if self.choice is None else self.choice.to_dict(),
            "suspects": [asdict(suspect) for suspect in self.suspects],
            "decided": {"same": len(self.decisions.same), "different": len(self.decisions.different)},
        }


def check(
    folder: ClustersFolder,
    *,
    decided: str | Path | None = None,
    choose: bool = True,
    suspects: int = 200,
    workers: int = 1,
) -> CheckResult:
    """Check a data set: false negatives, features, what to do, and how sure that is.

    Args:
        folder: clusters of the data, best with features.
        decided: file of suspect pairs with decisions of the user; see `clip_negatives.dataset.decided`.
        choose: whether to compare methods on folds of the data.
        suspects: most suspect pairs to list, at least 1.
        workers: processes that compare methods; see `clip_negatives.choosing.choose`.

    Raises:
        InputError: `suspects` is less than 1.
        DataError: the decisions do not fit the data.
        ArtifactError: the choice cannot be written.
    """
    if suspects < 1:
        raise InputError(f"{argument('suspects')} must be at least 1, got {suspects}.")
    decisions = Decisions()
    if decided is not None:
        samples = samples_of(folder)
        decisions = read_decisions(decided, samples)
        groups = folder.samples["group"].to_pylist() if "group" in folder.samples.column_names else None
        folder = with_groups(folder, joined_groups(decisions, groups, len(samples.keys)))
    truth = truth_about(folder, decisions.different)
    verdict = verdict_of(folder, truth)
    choice, notes = _choice(folder, truth, verdict, decisions, workers) if choose else (None, ())
    if decisions.same and "shard" in folder.samples.column_names:
        notes = (*notes, TARS_NOTE)
    listed = tuple(suspects_of(truth, decisions, suspects))
    return CheckResult(verdict, advice_of(truth, verdict, choice), choice, listed, decisions, folder, truth, notes)


def _choice(
    folder: ClustersFolder, truth: GroundTruth, verdict: Verdict, decisions: Decisions, workers: int
) -> tuple[Choice | None, tuple[str, ...]]:
    """Return the choice; if the data do not allow one, None and the reason."""
    output = folder.path / FOLDER
    if decisions.same:  # other groups than those of the folder
        output = folder.path / f"{FOLDER}-{digest_of({'same': str(decisions.same)})[:8]}"
    try:
        with named(_options_of_choose()):
            return choose_method(folder, output, methods=methods_for(truth, verdict), workers=workers), ()
    except InputError as error:
        return None, (f"No method was chosen: {error}",)


def _options_of_choose() -> dict[str, str]:
    """Return the names of options that `choose` has and `check` lacks, for error messages and advice."""
    is_command = argument("workers").startswith("--")
    if is_command:
        options = {"fold_by": "--fold-by (and --data)", "folds": "--folds", "seeds": "--seeds"}
        return {name: f"{option} of clip-negatives choose" for name, option in options.items()}
    return {name: f"{name}= of clip_negatives.choosing.choose" for name in ("fold_by", "folds", "seeds")}
