"""Every reader is given inputs that were changed at random: each is read, or refused by an error of the package that says why.

Run ``python benchmarks/trust/fuzz.py`` (1e5 inputs for each reader), ``--small`` for a proof that it runs, ``--reader NAME`` to
run one anew, ``--replay`` for what earlier campaigns have found. Lost is an input that ends otherwise: another error, a result
that does not hold what is promised of it, more than 10 seconds, over 1 GiB of memory, a crash, a file left behind. It is added
to ``corpus/READER/``, which a test replays.

Inputs are valid files, changed by their structure (`mutations`, `formats`) and by bytes; those of folders mostly have the
digests of the manifest made right again, or none would get past it. Neither hypothesis, which needs a millisecond and more to
draw an input and shrinks what is already small, nor atheris, which is guided by the coverage of Python while the parsers are C,
does more here in the same time. Input number i of a reader depends on the seed and i alone. A process for each reader reads
them one after another; another one watches it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from campaigns import Tally, campaign, replay
from readers import READERS
from record import ROOT, Row, machine, write


def main() -> None:
    """Run the campaign."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=100_000, help="for each reader")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="for each reader, at most")
    parser.add_argument("--reader", choices=list(READERS), action="append")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--replay", action="store_true", help="the corpus, in this process")
    arguments = parser.parse_args()
    names = arguments.reader or list(READERS)
    if arguments.replay:
        sys.exit("\n".join(line for name in names for line in replay(name)) or None)  # "" would be a failure
    inputs, seconds = (
        (min(arguments.inputs, 400), min(arguments.seconds, 0.8)) if arguments.small else (arguments.inputs, arguments.seconds)
    )
    command = f"python benchmarks/trust/fuzz.py --inputs {inputs} --seed {arguments.seed}" + " --small" * arguments.small
    rows, figures = _before(command) if arguments.reader and not arguments.small else ({}, {})
    lost = False
    for name in names:
        tally = campaign(name, inputs, seconds, arguments.seed)
        print(f"{name}: {dict(tally.outcomes)}, {tally.seconds:.0f} s", flush=True)
        print("".join(f"  lost: {line}\n" for line in tally.lost), end="", flush=True)
        rows[name], lost = _row(name, tally), lost or bool(tally.lost)
        figures[name] = {"seconds": round(tally.seconds, 1), **tally.outcomes}
        taken = sum(figure["seconds"] for figure in figures.values())
        ordered = [
            rows[one] for one in READERS if one in rows
        ]  # written each time: a campaign that is stopped keeps what it has
        write("fuzz", ordered, command=command, seconds=taken, small=arguments.small, outcomes=figures)
    sys.exit(lost)


def _before(command: str) -> tuple[dict[str, Row], dict[str, Any]]:
    """Return rows and figures of the result file, where they are of the same command."""
    file = ROOT / "benchmarks" / "results" / machine() / "trust-fuzz.json"
    before = json.loads(file.read_text()) if file.is_file() else {}
    if before.get("command") != command:
        return {}, {}
    return {row["subject"]: Row(**row) for row in before["rows"]}, before["outcomes"]


def _row(name: str, tally: Tally) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        reader = READERS[name](Path(folder))
    tried = sum(tally.outcomes.values())
    return Row(name, reader.what, tried, tried - len(tally.lost), len(tally.lost), reader.promise)


if __name__ == "__main__":
    main()
