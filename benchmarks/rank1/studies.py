"""Options, study files and result files of the commands of the study."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import tomllib

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from run import write_json

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / ".benchmarks" / "rank1"  # folder of features, finished runs and the data that do not ship
BASELINE = "in_batch"


def parse(parser: argparse.ArgumentParser, study: str = "heads.toml") -> tuple[argparse.Namespace, dict[str, Any]]:
    """Return the options of a command, with those of the study, and the study."""
    parser.add_argument("--study", type=Path, default=HERE / study)
    parser.add_argument("--output", type=Path, required=True, help="result file; other rows and data sets in it stay")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of features and finished runs")
    options = parser.parse_args()
    return options, tomllib.loads(options.study.read_text()) | {"cache": str(options.cache)}


def read_data(file: Path) -> dict[str, Any]:
    """Return the data sets of a result file, none if there is no file."""
    return json.loads(file.read_text())["data"] if file.exists() else {}


def write_data(file: Path, study: dict[str, Any], name: str, figures: dict[str, Any]) -> None:
    """Write the figures of a data set to a result file; the other data sets stay, in the order of the study."""
    data = {**read_data(file), name: figures}
    data = {name: data[name] for name in study["data"] if name in data}
    write_json(file, {"study": {key: value for key, value in study.items() if key != "cache"}, "data": data})
