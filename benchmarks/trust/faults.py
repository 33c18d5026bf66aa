"""Disturb `prepare`, `generate`, `train` and `compare` at random, and see whether anything finished is lost.

    python benchmarks/trust/faults.py                                      # 200 injections
    python benchmarks/trust/faults.py --small                              # a few, which proves that it runs
    python benchmarks/trust/faults.py --command train --only "full disk" --injections 5 --seed 3

Each injection runs a command on some listings of the catalogue, disturbs it, looks at what it left, runs it again
and compares the result with that of an undisturbed run, byte by byte but for dates and times. About three of four are forked
from a process that has imported everything, with smaller parts, so that there are several; the others are whole processes.
Moments are random in time, or right before one of the changes on the disk. Root can mount a small disk and a read-only one;
elsewhere files are limited in size, and permissions say that a folder is read-only.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))


def main() -> None:
    """Run the campaign and write its result."""
    from campaign import HOW_MANY, plan, run  # here, as every forked process imports this file

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one fault")
    parser.add_argument("--command", choices=HOW_MANY)
    parser.add_argument("--injections", type=int, help="how many of each command")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no injection after so many")
    parser.add_argument("--small", action="store_true")
    asked = parser.parse_args()
    planned = plan(asked.seed, asked.only, asked.command, asked.injections, small=asked.small)
    run(planned, seed=asked.seed, minutes=asked.minutes, small=asked.small, kept=not (asked.only or asked.command))


if __name__ == "__main__":
    main()
