"""Record how the chosen tests went with the versions of one environment: tox -e lowest (torch211, open-clip-floor, newest).

    python benchmarks/trust/compatibility.py lowest junit.xml

Run by tox at the end of each of these environments, inside it. The row of that environment is written anew, those of the others
are kept. What is installed has to fit together too: `uv pip check`.
"""

from __future__ import annotations

import argparse
import platform
import re
import subprocess
import sys
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from record import Row, read, write

NAMED = ("torch", "open_clip_torch", "numpy", "pyarrow", "faiss-cpu", "scikit-learn")
"""Packages that the row names; the versions of all others stand beside it in the file."""


def main(arguments: list[str] | None = None) -> int:
    """Write the row of one environment; return 1 where a test failed or versions do not fit together."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environment", help="name of the tox environment")
    parser.add_argument("junit", type=Path, help="what pytest --junitxml wrote")
    parser.add_argument("--small", action="store_true", help="keep the result under .benchmarks, as of a part of the tests")
    parsed = parser.parse_args(arguments)
    counts = counted(parsed.junit)
    found = conflicts()
    row = Row(
        subject=f"{parsed.environment}, Python {platform.python_version()}",
        what=", ".join(f"{name} {version(name)}" for name in NAMED),
        tried=counts["tried"],
        survived=counts["tried"] - counts["lost"],
        lost=counts["lost"],
        outcome=f"pip check: {'; '.join(found)}" if found else "tests pass, pip check clean",
    )
    environment = {
        "versions": {name: version(name) for name in direct()},
        "skipped": counts["skipped"],
        "seconds": counts["seconds"],
    }
    update(row, parsed.environment, environment, small=parsed.small)
    return 0 if row.tried and not row.lost and not found else 1


def conflicts() -> list[str]:
    """Return in what the installed packages do not fit together, as `uv pip check` says it."""
    command = ["uv", "pip", "check", "--python", sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return []
    return [line for line in done.stderr.splitlines() if line.startswith("The package")] or [done.stderr.strip()]


def counted(junit: Path) -> dict[str, Any]:
    """Return how many tests were run, lost and skipped, and the seconds that it took."""
    suites = ET.parse(junit).getroot().findall("testsuite")
    total = {name: sum(int(suite.get(name, 0)) for suite in suites) for name in ("tests", "failures", "errors", "skipped")}
    return {
        "tried": total["tests"] - total["skipped"],
        "lost": total["failures"] + total["errors"],
        "skipped": total["skipped"],
        "seconds": round(sum(float(suite.get("time", 0)) for suite in suites), 1),
    }


def direct() -> list[str]:
    """Return the names of what pyproject.toml asks for, without extras."""
    named = [re.match(r"[\w.-]+", text) for text in requires("clip-negatives") or [] if "extra ==" not in text]
    return sorted(found.group() for found in named if found)


def update(row: Row, name: str, environment: dict[str, Any], *, small: bool) -> None:
    """Write the row of one environment into the result file, among those of the others."""
    old = read("compatibility", small=small) or {"rows": [], "environments": {}}
    rows = [Row(**other) for other in old["rows"] if other["subject"].split(",")[0] != name] + [row]
    environments = old["environments"] | {name: environment}
    write(
        "compatibility",
        sorted(rows, key=lambda row: row.subject),
        command=f"tox -e {','.join(sorted(environments))}",
        seconds=sum(one["seconds"] for one in environments.values()),
        small=small,
        environments=dict(sorted(environments.items())),
    )


if __name__ == "__main__":
    sys.exit(main())
