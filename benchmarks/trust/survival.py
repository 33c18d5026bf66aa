"""Write docs/trust.md from the result files of the campaigns: python benchmarks/trust/survival.py."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"
DOCS = HERE.parents[1] / "docs"

INTRODUCTION = """# What it survives

Written by `python benchmarks/trust/survival.py` from the result files under `benchmarks/results/`: what was tried on the
package, and how it ended. *Survived* is what ended as the last column promises; everything else is *lost*: an error that is no
sentence of ours, a hang, a half-written file, finished work that is gone, a number that is not finite or silently 0. What data
from strangers can and cannot do stands on the page [threat model](threat-model.md), which versions are served under
[compatibility](compatibility.md), what is the same in every run under [determinism](determinism.md). Nothing here was run on a
GPU.
"""

ABOUT = {
    "fuzz": """## Damaged and hostile input

Inputs that are made from valid ones by a seeded generator, through every reader of data. Each is taken, or refused with an
error of `clip_negatives.errors`. What was ever lost is kept in `benchmarks/trust/corpus/` and tried again by the tests.
""",
    "faults": """## Faults

A command is hit at a random moment or at a random write, then run again. What was finished before has to be there, no file may
be half-written under its name, and the second run has to end with what an undisturbed run ends with.
What a killed `compare` had encoded stays in the cache, for when the same command runs again: a comparison with another encoder
neither uses nor removes it, and the one that was killed goes on with it and removes it.
""",
    "numerics": """## Numbers

Every loss weighting that is installed, on each backend and in float32, bfloat16, float16 and under autocast, against the loss
in float64: finite, near the exact one, and not silently 0. A weighting that would leave nothing to learn is refused.
""",
    "samples": """## Strange pictures and captions

Real listings with such a picture or caption in the place of theirs, through `prepare` (csv and tars, encoders with and without
weights) and through an epoch of open_clip's training on each.
""",
    "soak": """## An hour of training

With clusters made anew before every epoch and two workers, looked at every ten seconds. A figure is lost where its mean over
the last quarter is more than 2 % and some MiB, or one file or thread, above that over the second. An hour before this one, on a
machine with less other work, had 133 epochs and ended 2.4 % above its second quarter in resident memory, more than is allowed
here. What malloc holds in use did not grow when it was looked at from inside (250 to 300 MiB over 18 epochs); what it has freed
and keeps comes and goes (60 to 120 MiB).
""",
    "determinism": """## The same in every run

Digests of new processes, with other numbers of threads and other seeds of Python's hashes, of real listings.
""",
    "compatibility": """## Versions

A part of the tests that touches every dependency, in environments of their own.
""",
}
"""What is said above each table, in the order of the page."""


def found(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the result files of a machine."""
    return {name: json.loads(file.read_text()) for name in ABOUT if (file := folder / f"trust-{name}.json").exists()}


def page() -> str:
    """Return the page as Markdown."""
    machines = {folder.name: found(folder) for folder in sorted(RESULTS.iterdir()) if folder.is_dir()}
    machines = {name: results for name, results in machines.items() if results}
    parts = [INTRODUCTION, *_summary(machines)]
    for name, about in ABOUT.items():
        for machine, results in machines.items():
            if name in results:
                parts += [about, *_section(machine, results[name])]
    return "\n".join(parts)


def _summary(machines: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Iterator[str]:
    rows = []
    for results in machines.values():
        for name, result in results.items():
            title = ABOUT[name].partition("\n")[0].removeprefix("## ")
            tried, survived, lost = (sum(row[of] for row in result["rows"]) for of in ("tried", "survived", "lost"))
            rows.append(f"| [{title}](#{title.lower().replace(' ', '-')}) | {tried:,} | {survived:,} | {lost:,} |")
    yield "\n".join(["| campaign | tried | survived | lost |", "| --- | ---: | ---: | ---: |", *rows]) + "\n"


def _section(machine: str, result: Mapping[str, Any]) -> Iterator[str]:
    """Yield the command and the table of a campaign."""
    yield f"```bash\n{result['command']}\n```\n"
    took = f"{_minutes(result['seconds'])} on `{machine}`"
    yield f"{took}, Python {result['python']}, version {result['version']}{_more(result)}.\n"
    lines = ["| what of | tried with | tried | survived | lost | how it ends |", "| --- | --- | ---: | ---: | ---: | --- |"]
    for row in result["rows"]:
        counts = f"{row['tried']:,} | {row['survived']:,} | {row['lost']:,}"
        lines.append(f"| {row['subject']} | {row['what']} | {counts} | {row['outcome']} |")
    yield "\n".join(lines) + "\n"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"


def _more(result: Mapping[str, Any]) -> str:
    """Return what a campaign says beside its rows."""
    if "whole_processes" in result:
        return f"; {result['whole_processes']} in whole processes, the others in forked ones"
    return f", {result['epochs']} epochs of {result['samples']} samples" if "epochs" in result else ""


def main() -> None:
    """Write the page."""
    (DOCS / "trust.md").write_text(page())


if __name__ == "__main__":
    main()
