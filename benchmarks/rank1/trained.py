"""Train whole models by open_clip's own training: python benchmarks/rank1/trained.py --study scratch.toml --output FILE.

The learning rate is the one that serves the baseline best on the validation seller; the test is looked at once, by every
method of the study. Finished runs are kept, as `clip-negatives compare` keeps them; a second call goes on after them.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import tomllib
from folds import CACHE, Cut, batch_size, cache_of
from torch import Tensor
from towers import write_model

from clip_negatives.atomic import replaced_file
from clip_negatives.compare import Comparison, compare

HERE = Path(__file__).parent
BASELINE = "in_batch"
TIMED = 8
"""Steps that are timed, in two epochs."""


def write_pairs(cut: Cut, rows: Tensor, folder: Path, name: str) -> Path:
    """Write listings as open_clip reads them, with their item."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.csv"
    columns = [cut.column(column, rows) for column in ("key", "text", "item")]
    with replaced_file(file) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
        writer.writerow(["filepath", "title", "item"])
        for row, key, text, item in zip(rows.tolist(), *columns, strict=True):
            image = images / f"{key.replace('/', '-')}.png"
            if not image.exists():
                cut.listings.image(row).save(image)
            writer.writerow([image, text, item])
    return file


def compared(
    study: dict[str, Any], data: str, fold: str, lr: float, methods: list[str], seeds: int, short: Path | None = None
) -> Comparison:
    """Train methods on a fold and measure them; `short` is a folder in which they only do some steps, to be timed."""
    cut, size = Cut.of(study, data, fold), batch_size(study, data)
    trained, steps = (cut.trained, study["steps"]) if short is None else (cut.trained[: TIMED // 2 * size], TIMED)
    home = (cache_of(study) if short is None else short) / study["name"] / data
    train, test = (write_pairs(cut, rows, home / fold, name) for name, rows in (("train", trained), ("asked", cut.asked)))
    epochs = max(1, math.ceil(steps / max(1, len(trained) // size)))
    return compare(
        home / fold / f"lr-{lr:g}",
        methods=",".join(methods),
        seeds=seeds,
        test_data=str(test),
        group_column="item",
        image_encoder=study["image_encoder"],
        text_encoder=study["text_encoder"],
        arguments=[
            *("--train-data", str(train), "--dataset-type", "csv", "--model", model_of(study)),
            *("--batch-size", str(size), "--epochs", str(epochs), "--lr", f"{lr:g}", *study["arguments"]),
        ],
        on_run=lambda job, number, total: print(
            f"{data}, {fold}, lr {lr:g}: run {number + 1} of {total}, {job.method.name}, seed {job.seed}", flush=True
        ),
    )


def timed(study: dict[str, Any], data: str, lr: float, methods: list[str]) -> dict[str, float]:
    """Return the seconds of a step of each method: the median of a short training, while the machine does nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        found = compared(study, data, "test", lr, methods, 1, Path(folder))
    return {run["method"]["name"]: run["seconds_per_step"] for run in found.to_dict()["runs"]}


def model_of(study: dict[str, Any]) -> str:
    """Return the model as open_clip is told it; one of pretrained towers is written first."""
    if "towers" not in study:
        return study["model"]
    return f"local-dir:{write_model(cache_of(study) / study['name'] / 'model', **study['towers']).absolute()}"


def validated(study: dict[str, Any], data: str) -> dict[float, float]:
    """Return the Rank@1 of the baseline on validation by learning rate; the first of the best is taken."""

    def rank(lr: float) -> float:
        found = compared(study, data, "validation", lr, [BASELINE], study["validation_seeds"])
        return found.summaries[BASELINE]["text_to_image_rank_1"].mean

    return {lr: rank(lr) for lr in rates_of(study, data)}


def learning_rate(ranks: dict[float, float]) -> float:
    """Return the learning rate that serves the baseline best on validation."""
    return max(ranks, key=ranks.__getitem__)


def rates_of(study: dict[str, Any], data: str) -> list[float]:
    """Return the learning rates to choose from."""
    rates: list[float] = study["data"][data].get("learning_rates", study["learning_rates"])
    return rates


def told_of(found: Comparison) -> dict[str, Any]:
    """Return what a comparison found, without the paths of this machine, and without times, which hold where it is idle."""
    whole = found.to_dict()
    setting = {name: value for name, value in whole["setting"].items() if name not in ("arguments", "clusters", "test")}
    dropped = ("clusters", "losses", "seconds_per_step", "train_seconds")
    runs = [{name: value for name, value in run.items() if name not in dropped} for run in whole["runs"]]
    tables = {
        table: {method: {name: one for name, one in row.items() if name not in dropped} for method, row in whole[table].items()}
        for table in ("summaries", "differences")
    }
    return {**whole, **tables, "setting": setting, "runs": runs}


def joined(old: dict[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    """Return what a comparison found with the rows that it did not make from an older one."""
    if old is None:
        return new
    rows = {name: {**old[name], **new[name]} for name in ("summaries", "differences")}
    others = [run for run in old["runs"] if run["method"]["name"] not in new["summaries"]]
    return {**new, **rows, "runs": [*others, *new["runs"]]}


def as_told(ranks: dict[float, float]) -> dict[str, float]:
    """Return what validation found with keys as JSON has them."""
    return {f"{lr:g}": rank for lr, rank in ranks.items()}


def with_times(kept: dict[str, Any] | None, times: dict[str, float], data: str) -> dict[str, Any]:
    """Return figures with the seconds of a step of each method."""
    if kept is None:
        raise SystemExit(f"Expected figures of {data}, got none. Run the study without --times first.")
    return {**kept, "seconds_per_step": times}


def with_rates(kept: dict[str, Any] | None, ranks: dict[float, float], data: str) -> dict[str, Any]:
    """Return figures with what validation found of the learning rates."""
    lr = learning_rate(ranks)
    if kept is None or kept["lr"] != lr:
        had = "no figures" if kept is None else f"those of {kept['lr']:g}"
        raise SystemExit(f"Expected figures of {data} at the learning rate {lr:g}, got {had}. Run the study without --rates.")
    return {**kept, "validated": as_told(ranks)}


def methods_of(study: dict[str, Any], data: str) -> list[str]:
    """Return the methods of a data set."""
    methods: list[str] = study["data"][data].get("methods", study["methods"])
    return methods


def main() -> None:
    """Run the study, or one data set of it, and write its result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", type=Path, default=HERE / "scratch.toml")
    parser.add_argument("--output", type=Path, required=True, help="result file; the data sets that it has already stay in it")
    parser.add_argument("--data", help="one data set of the study")
    parser.add_argument("--only", nargs="+", metavar="METHOD", help="rows to run anew; the others stay; default: all")
    parser.add_argument("--rates", action="store_true", help="only validate the learning rates, of which the same must be best")
    parser.add_argument("--times", action="store_true", help="only time some steps; the machine does nothing else meanwhile")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of data and finished runs")
    options = parser.parse_args()
    study = tomllib.loads(options.study.read_text()) | {"cache": str(options.cache)}
    chosen = [options.data] if options.data else list(study["data"])
    for data in chosen:
        before = json.loads(options.output.read_text())["data"] if options.output.exists() else {}
        kept = before.get(data)
        if options.times:
            figures = with_times(kept, timed(study, data, kept["lr"], methods_of(study, data)) if kept else {}, data)
            write(options.output, study, before, data, figures)
            continue
        if not (options.only or options.rates):
            kept = None
        ranks = {} if options.only else validated(study, data)
        lr = learning_rate(ranks) if ranks else kept["lr"]
        if options.rates:
            figures = with_rates(kept, ranks, data)
        else:
            methods = [BASELINE, *(one for one in options.only if one != BASELINE)] if options.only else methods_of(study, data)
            found = compared(study, data, "test", lr, methods, study["test_seeds"])
            cut = Cut.of(study, data, "test")
            figures = {
                "lr": lr,
                "validated": as_told(ranks) if ranks else kept.get("validated", {}),
                "samples": len(cut.trained),
                "queries": len(cut.asked),
                "near_duplicates_per_anchor": cut.near_duplicates(batch_size(study, data)),
                **joined(kept, told_of(found)),
                **({"seconds_per_step": kept["seconds_per_step"]} if kept and "seconds_per_step" in kept else {}),
            }
        write(options.output, study, before, data, figures)


def write(file: Path, study: dict[str, Any], before: dict[str, Any], data: str, figures: dict[str, Any]) -> None:
    """Put the figures of a data set into a result file, beside what it had before."""
    told = {name: value for name, value in study.items() if name != "cache"}
    file.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(file) as partial:
        partial.write_text(json.dumps({"study": told, "data": {**before, data: figures}}, indent=1) + "\n")


if __name__ == "__main__":
    main()
