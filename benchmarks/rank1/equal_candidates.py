"""Count how often `choose` claims a gain where there is none: python benchmarks/rank1/equal_candidates.py --output FILE.

In each of many studies, every candidate of the menu gets runs of the same method, in-batch negatives at temperature 0.1,
with different seeds. So no candidate differs from another. The runs are drawn from a pool for each fold.
"""

from __future__ import annotations

import argparse
import random
from typing import Any

import torch
from folds import Fold, batch_size
from run import write_json
from studies import parse

from clip_negatives import Method
from clip_negatives.choosing import menu_of
from clip_negatives.choosing.answer import answer
from clip_negatives.choosing.fold_rule import fold_rule
from clip_negatives.choosing.menu import DROPOUT_METHOD
from clip_negatives.choosing.query_ranks import QueryRanks
from clip_negatives.heads import HeadSettings, folds_of, part_of, train_heads
from clip_negatives.heads.folds import batch_size_for
from clip_negatives.metrics import first_correct

STUDIES, POOL, FOLDS = 40, 60, 3


def pool_of(study: dict[str, Any], fold: Fold, data: str, size: int) -> tuple[list[list[QueryRanks]], list[torch.Tensor]]:
    """Return the ranks of `size` runs on each fold, and the items of its queries."""
    rule = fold_rule(fold.clusters, None, None)
    pool, items = [], []
    for part in folds_of(rule.components, FOLDS):
        clusters, held_out = part_of(fold.clusters, part.train), part_of(fold.clusters, part.held_out)
        largest = batch_size_for(clusters.n_samples, batch_size(study, data))
        settings = HeadSettings(study["data"][data]["lr"], study["steps"], largest, study["dim"])
        items.append(rule.items[part.held_out])
        runs = []
        for seed in range(size):
            heads = train_heads(clusters, Method.parse(DROPOUT_METHOD), settings, seed=seed)
            images, texts = heads.embed(held_out.image_features, held_out.text_features)
            pairs = (texts, images), (images, texts)
            runs.append(QueryRanks(*(first_correct(*pair, items[-1], items[-1])[0] for pair in pairs)))
        pool.append(runs)
    return pool, items


def claims(pool: list[list[QueryRanks]], items: list[torch.Tensor], studies: int) -> list[str]:
    """Return the chosen method of each study that claims a significant gain."""
    menu, generator = menu_of(), random.Random(0)
    claimed = []
    for _ in range(studies):
        drawn = [generator.sample(runs, len(menu.candidates)) for runs in pool]
        ranks = {candidate: [[runs[place]] for runs in drawn] for place, candidate in enumerate(menu.candidates)}
        choice = answer(menu, ranks, {}, "groups", items, {})
        if choice.has_significant_gain:
            claimed.append(choice.method)
    return claimed


def main() -> None:
    """Measure, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", help="data sets of the study; default: all")
    parser.add_argument("--pool", type=int, default=POOL)
    options, study = parse(parser, "choices.toml")
    data = {}
    for name in options.data or list(study["data"]):
        fold = Fold.of(study, name, "test")
        pool, items = pool_of(study, fold, name, options.pool)
        claimed = claims(pool, items, STUDIES)
        data[name] = {"studies": STUDIES, "pool": options.pool, "claims": len(claimed), "claimed": claimed}
        print(name, data[name], flush=True)
    write_json(options.output, {"data": data})


if __name__ == "__main__":
    main()
