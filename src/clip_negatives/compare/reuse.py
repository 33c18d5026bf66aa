"""Make the runs of a comparison; a finished run is reused while nothing that its result depends on has changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from clip_negatives.compare.queries import read_queries
from clip_negatives.compare.results import FIGURES, read_run
from clip_negatives.compare.run import RESULT, Job, run, settle
from clip_negatives.errors import InputError
from clip_negatives.progress import stage
from clip_negatives.storage.ownership import replaced_file
from clip_negatives.storage.provenance import Record, differences, in_words

REUSED = "reused"  # state of a run that an earlier call finished
OnRun = Callable[[Job, int, int, str], None]


def finished(
    jobs: Sequence[Job], identities: Callable[[], list[Record]], check: Callable[[], None], on_run: OnRun | None
) -> tuple[list[dict[str, Any]], int]:
    """Return the outcomes of all jobs and the number of reused ones; jobs without a valid result run now.

    Args:
        jobs: the runs.
        identities: returns the current provenance of each job. It is compared before and after each run.
        check: called once before the first run, if there is one.
        on_run: see `clip_negatives.compare.compare`.

    Raises:
        InputError: data, weights or plugins changed while a run was made.
        ClipNegativesError: a run failed.
    """

    def provenance() -> list[Record]:
        outcomes = ({"method": job.name, "figures": list(FIGURES)} for job in jobs)
        return [{**identity, "outcome": outcome} for identity, outcome in zip(identities(), outcomes, strict=True)]

    expected = provenance()
    known = [_known(job, identity) for job, identity in zip(jobs, expected, strict=True)]
    if any(outcome is None for outcome, _ in known):
        check()
    outcomes = []
    with stage("Comparing", sum(outcome is None for outcome, _ in known), "new runs") as running:
        for number, (job, (outcome, state)) in enumerate(zip(jobs, known, strict=True)):
            if on_run is not None:
                on_run(job, number, len(jobs), state)
            if outcome is None:
                outcome = run(job)
                if changes := next(filter(None, map(differences, expected, provenance())), None):
                    fault = f"While the comparison ran, something changed: {in_words(changes)}."
                    raise InputError(f"{fault} Start it again; runs that are still valid are kept.")
                with replaced_file(job.new / RESULT) as partial:
                    partial.write_text(json.dumps({"identity": expected[number], "run": outcome}, indent=2) + "\n")
                settle(job.folder)
                running.advance()
            outcomes.append(outcome)
    return outcomes, sum(state == REUSED for _, state in known)


def _known(job: Job, identity: Record) -> tuple[dict[str, Any] | None, str]:
    """Return the outcome of an earlier run with the same provenance, or None, and the state that `on_run` gets."""
    settle(job.folder)
    stored = read_run(job.folder / RESULT)
    if stored is None:
        return None, "again, because its result is damaged" if (job.folder / RESULT).exists() else "new"
    if changes := differences(stored[0], identity):
        return None, f"again, because {in_words(changes)}"
    answers = read_queries(job.folder)
    if answers is None or len(answers.rank) != stored[1]["queries"]:
        return None, "again, because its ranks are missing or damaged"
    return stored[1], REUSED
