"""Train whole models with open_clip: python benchmarks/rank1/trained.py --study scratch.toml --output FILE.

The learning rate is the best one for the baseline on the validation seller. Every method uses the test once. Finished runs are
kept as `clip-negatives compare` keeps them, so that a second call continues.
"""

from __future__ import annotations

import argparse
import csv
import math
import tempfile
from pathlib import Path
from typing import Any

from folds import Cut, batch_size, cache_of
from studies import BASELINE, parse, read_data, write_data
from torch import Tensor
from towers import write_model

from clip_negatives import Columns, Recipe
from clip_negatives.compare import Comparison, compare
from clip_negatives.storage.ownership import replaced_file

TIMED = 8  # number of timed steps, in two epochs


def write_pairs(cut: Cut, rows: Tensor, folder: Path, name: str) -> Path:
    """Write listings as csv for open_clip, with their item."""
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
    """Train methods on a fold and measure them; with `short`, a folder, only time some steps."""
    cut, size = Cut.of(study, data, fold), batch_size(study, data)
    trained, steps = (cut.trained, study["steps"]) if short is None else (cut.trained[: TIMED // 2 * size], TIMED)
    home = (cache_of(study) if short is None else short) / study["name"] / data
    train, test = (write_pairs(cut, rows, home / fold, name) for name, rows in (("train", trained), ("asked", cut.asked)))
    epochs = max(1, math.ceil(steps / max(1, len(trained) // size)))
    return compare(
        home / fold / f"lr-{lr:g}",
        methods=",".join(methods),
        seeds=seeds,
        temperatures=(),
        test_data=str(test),
        recipe=Recipe(study["image_encoder"], study["text_encoder"], columns=Columns(group="item")),
        arguments=[
            *("--train-data", str(train), "--dataset-type", "csv", "--model", model_of(study)),
            *("--batch-size", str(size), "--epochs", str(epochs), "--lr", f"{lr:g}", *study["arguments"]),
        ],
        on_run=lambda job, number, total, state: print(
            f"{data}, {fold}, lr {lr:g}: run {number + 1} of {total}, {job.name}, seed {job.seed}: {state}", flush=True
        ),
    )


def timed(study: dict[str, Any], data: str, lr: float, methods: list[str]) -> dict[str, float]:
    """Return the median seconds of a step of each method in a short training, on an idle machine."""
    with tempfile.TemporaryDirectory() as folder:
        found = compared(study, data, "test", lr, methods, 1, Path(folder))
    return {run["method"]["name"]: run["seconds_per_step"] for run in found.to_dict()["runs"]}


def model_of(study: dict[str, Any]) -> str:
    """Return the model for open_clip's ``--model``; write it first if it has pretrained towers."""
    if "towers" not in study:
        return study["model"]
    return f"local-dir:{write_model(cache_of(study) / study['name'] / 'model', **study['towers']).absolute()}"


def validated(study: dict[str, Any], data: str) -> dict[float, float]:
    """Return the Rank@1 of the baseline on validation by learning rate."""
    rates = study["data"][data].get("learning_rates", study["learning_rates"])
    runs = {lr: compared(study, data, "validation", lr, [BASELINE], study["validation_seeds"]) for lr in rates}
    return {lr: comparison.summaries[BASELINE]["text_to_image_rank_1"].mean for lr, comparison in runs.items()}


def learning_rate(ranks: dict[float, float]) -> float:
    """Return the best learning rate for the baseline on validation, the first one of equals."""
    return max(ranks, key=ranks.__getitem__)


def told_of(found: Comparison) -> dict[str, Any]:
    """Return the result of a comparison without paths, and without times, which need an idle machine."""
    whole = found.to_dict()
    setting = {
        name: value for name, value in whole["setting"].items() if name not in ("arguments", "clusters", "train", "test")
    }
    dropped = ("clusters", "losses", "seconds_per_step", "train_seconds")
    runs = [{name: value for name, value in run.items() if name not in dropped} for run in whole["runs"]]
    tables = {
        table: {method: {name: one for name, one in row.items() if name not in dropped} for method, row in whole[table].items()}
        for table in ("summaries", "differences")
    }
    return {**whole, **tables, "setting": setting, "runs": runs}


def joined(old: dict[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    """Return the result of a comparison, with the methods it lacks from an older one."""
    if old is None:
        return new
    rows = {name: {**old[name], **new[name]} for name in ("summaries", "differences")}
    others = [run for run in old["runs"] if run["method"]["name"] not in new["summaries"]]
    return {**new, **rows, "runs": [*others, *new["runs"]]}


def with_rates(kept: dict[str, Any] | None, ranks: dict[float, float], data: str) -> dict[str, Any]:
    """Return figures with the validation of the learning rates."""
    lr = learning_rate(ranks)
    if kept is None or kept["lr"] != lr:
        had = "none" if kept is None else f"{kept['lr']:g}"
        raise SystemExit(f"The best learning rate of {data} is {lr:g}, that of its figures {had}. Run without --rates.")
    return {**kept, "validated": {f"{lr:g}": rank for lr, rank in ranks.items()}}


def methods_of(study: dict[str, Any], data: str) -> list[str]:
    """Return the methods of a data set."""
    return study["data"][data].get("methods", study["methods"])


def main() -> None:
    """Run the study or one of its data sets, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="one data set of the study")
    parser.add_argument("--only", nargs="+", metavar="METHOD", help="rows to run anew; the others stay; default: all")
    parser.add_argument("--rates", action="store_true", help="only validate the learning rates; the best must stay the best")
    parser.add_argument("--times", action="store_true", help="only time some steps; leave the machine idle meanwhile")
    options, study = parse(parser, "scratch.toml")
    chosen = [options.data] if options.data else list(study["data"])
    for data in chosen:
        kept = read_data(options.output).get(data)
        if options.times:
            if kept is None:
                raise SystemExit(f"{options.output} has no figures of {data}. Run the study without --times first.")
            times = timed(study, data, kept["lr"], methods_of(study, data))
            write_data(options.output, study, data, {**kept, "seconds_per_step": times})
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
                "validated": {f"{lr:g}": rank for lr, rank in ranks.items()} if ranks else kept.get("validated", {}),
                "samples": len(cut.trained),
                "queries": len(cut.asked),
                "near_duplicates_per_anchor": cut.near_duplicates(batch_size(study, data)),
                **joined(kept, told_of(found)),
                **({"seconds_per_step": kept["seconds_per_step"]} if kept and "seconds_per_step" in kept else {}),
            }
        write_data(options.output, study, data, figures)


if __name__ == "__main__":
    main()
