"""Result files of the campaigns, and docs/trust.md from them: python benchmarks/trust/survival.py.

tox gives it the name of an environment and the file of ``pytest --junitxml``: it then records the tests of that environment.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from run import result_file, write_json

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results"
COLUMNS = {"subject": "subject", "what": "input", "outcome": "promised outcome"}
NAMED = ("torch", "open_clip_torch", "numpy", "pyarrow", "faiss-cpu", "scikit-learn")  # packages in the row of an environment

Row = dict[str, Any]


def counts(subject: str, what: str, tried: int, lost: int, promise: str) -> Row:
    """Return the row of one class of inputs to a reader or command: how many did not end as promised."""
    return {"subject": subject, "what": what, "tried": tried, "survived": tried - lost, "lost": lost, "outcome": promise}


def read(campaign: str, *, small: bool) -> dict[str, Any]:
    """Return the result of a campaign on this machine, an empty one if there is none."""
    file = result_file(f"trust-{campaign}.json", small=small)
    return json.loads(file.read_text()) if file.exists() else {}


def write(campaign: str, rows: list[Row], seconds: float, *, small: bool, **figures: Any) -> Path:
    """Write the result of a campaign, with further figures such as another command that repeats it, and return its file."""
    versions = {"version": version("clip-negatives"), "python": platform.python_version()}
    result = {"command": f"python benchmarks/trust/{campaign}.py", **versions, "seconds": round(seconds, 1), **figures}
    return write_json(result_file(f"trust-{campaign}.json", small=small), {**result, "rows": rows})


def run_campaign(campaign: str, rows: Callable[..., Iterable[Row]]) -> None:
    """Run the campaign of this script, at small size if ``--small`` is given, and write its result file."""
    small, start = "--small" in sys.argv, time.perf_counter()
    results = list(rows(small=small))
    print(*results, write(campaign, results, time.perf_counter() - start, small=small), sep="\n")


def conflicts() -> list[str]:
    """Return the conflicts that `uv pip check` reports."""
    done = subprocess.run(["uv", "pip", "check", "--python", sys.executable], capture_output=True, text=True, check=False)
    lines = [line for line in done.stderr.splitlines() if line.startswith("The package")] or [done.stderr.strip()]
    return lines if done.returncode else []


def record(environment: str, junit: str, *, small: bool = False) -> int:
    """Replace the row of an environment from the file of pytest --junitxml; return 1 if a test failed or versions conflict."""
    (suite,) = ET.parse(junit).getroot().iter("testsuite")
    total, failures, errors, skipped = (int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped"))
    tried, lost, problems = total - skipped, failures + errors, conflicts()
    subject, what = f"{environment}, Python {platform.python_version()}", (f"{name} {version(name)}" for name in NAMED)
    promise = f"pip check: {'; '.join(problems)}" if problems else "tests pass, pip check clean"
    direct = sorted({re.split(r"[^\w.-]", text)[0] for text in requires("clip-negatives") or () if "extra ==" not in text})
    versions = {name: version(name) for name in direct}
    figures = {"versions": versions, "skipped": skipped, "seconds": round(float(suite.get("time", 0)), 1)}
    old = read("compatibility", small=small) or {"rows": [], "environments": {}}
    rows = [row for row in old["rows"] if row["subject"].split(",")[0] != environment]
    rows = sorted([*rows, counts(subject, ", ".join(what), tried, lost, promise)], key=lambda row: row["subject"])
    environments = dict(sorted({**old["environments"], environment: figures}.items()))
    command, seconds = f"tox -e {','.join(environments)}", sum(one["seconds"] for one in environments.values())
    write("compatibility", rows, seconds, command=command, small=small, environments=environments)
    return 0 if tried and not lost and not problems else 1


def page() -> str:
    """Return docs/trust.md: page.md with the tables of the result files."""
    text = (HERE / "page.md").read_text()
    parts, summary = dict[str, str](), []
    for title, name in re.findall(r"## ([^\n]+)\n[^#]*\{(\w+)\}", text):
        results = {file.parent.name: json.loads(file.read_text()) for file in sorted(RESULTS.glob(f"*/trust-{name}.json"))}
        parts[name] = "\n\n".join(_section(machine, result) for machine, result in results.items())
        for result in results.values():
            sums = pd.DataFrame(result["rows"])[["tried", "survived", "lost"]].sum()
            summary.append({"campaign": f"[{title}](#{title.lower().replace(' ', '-')})", **sums})
    return text.format(summary=_table(pd.DataFrame(summary)), **parts).rstrip() + "\n"


def _section(machine: str, result: dict[str, Any]) -> str:
    seconds = result["seconds"]
    duration = f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"
    epochs = f", {result['epochs']} epochs of {result['samples']} samples" if "epochs" in result else ""
    about = f"{duration} on `{machine}`, Python {result['python']}, version {result['version']}{epochs}."
    return f"{about}\n\n{_table(pd.DataFrame(result['rows']).rename(columns=COLUMNS))}"


def _table(rows: pd.DataFrame) -> str:
    rule = ["---:" if pd.api.types.is_numeric_dtype(kind) else "---" for kind in rows.dtypes]
    cells = ([f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows.itertuples(index=False))
    return "".join(f"| {' | '.join(line)} |\n" for line in (list(rows.columns), rule, *cells))


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit(record(*sys.argv[1:]))
    (HERE.parents[1] / "docs" / "trust.md").write_text(page())
