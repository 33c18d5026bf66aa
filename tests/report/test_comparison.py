"""The report on a comparison, from synthetic figures."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from bs4 import BeautifulSoup

from clip_negatives.compare import Comparison
from clip_negatives.compare.queries import NAME, Queries, read_queries, write_queries
from clip_negatives.compare.queries import NAMES as NAMES_OF_TENSORS
from clip_negatives.compare.results import FIGURES, summarised
from clip_negatives.compare.study import run_folder
from clip_negatives.printing import printable
from clip_negatives.report import write_comparison
from clip_negatives.report.comparison.examples import changes
from clip_negatives.storage.atomic import write_tensors
from tests.pairs import listings, write_csv

HOSTILE = "in_batch+<script>$alert(1)$\u202e\x07"
NAMES = ("in_batch", HOSTILE, "random_reduction")
SEEDS, QUERIES = 3, 12


def answers(*tops_of_seeds: list[int], truth: list[int]) -> list[Queries]:
    """Return the answers of several seeds: rank 1 for a correct top answer, else 2."""
    runs = []
    for tops in tops_of_seeds:
        rank = [1 if truth[top] == truth[query] else 2 for query, top in enumerate(tops)]
        runs.append(queries(rank, tops))
    return runs


def queries(rank: list[int], tops: list[int]) -> Queries:
    """Return answers to queries that are all of different items, with the same ranks in both directions."""
    return Queries(torch.tensor(rank), torch.tensor(rank), torch.tensor(tops), torch.arange(len(rank)))


def made_up(n_seeds: int = SEEDS, *, test: Path | None = None, **more: object) -> Comparison:
    runs = []
    for seed in range(n_seeds):
        for place, name in enumerate(NAMES):
            figures = dict.fromkeys(FIGURES, 0.1 + 0.01 * place + 0.001 * seed)
            spec = {"name": name, "sampler": "in_batch", "weighting": "uniform", "temperature": None}
            run = {"method": spec, "seed": seed, "steps": 300, "queries": QUERIES, "train_seconds": 3.0, **figures}
            run |= {"losses": [5.0 - 0.01 * step for step in range(300)], "peak_gpu_memory_mib": None}
            run |= {"false_negatives_truth": "group", **{f"chance_rank_{k}": 0.01 * k for k in (1, 5, 10)}, **more}
            runs.append(run)
    setting = {"model": "tiny", "batch_size": 8, "epochs": 1, "seeds": n_seeds, "n_train": 9}
    setting |= {"arguments": ["--model", "tiny"], "clusters": {}, "versions": {}, "machine": "m \udcff"}
    setting |= {"settings": [{"option": "--lr", "value": "0.1", "source": "yours"}], "tuning": [], "runs_reused": 1}
    if test is not None:
        setting["test"] = {"location": str(test / "test" / "pairs.csv"), "group_column": "item"}
    shift = {name: 1 + place for place, name in enumerate(NAMES)}
    answers = {
        name: [
            queries([1 + (7 * query + seed) % (3 + shift[name]) for query in range(QUERIES)], [0] * QUERIES)
            for seed in range(n_seeds)
        ]
        for name in NAMES
    }
    return summarised(setting, runs, NAMES, answers)


def write_answers(output: Path) -> None:
    for name in NAMES:
        for seed in range(SEEDS):
            top = torch.arange(QUERIES) if name == HOSTILE else torch.arange(QUERIES).roll(1)
            rank = torch.where(top == torch.arange(QUERIES), 1, 3)
            write_queries(queries(rank.tolist(), top.tolist()), run_folder(output, name, seed))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    write_csv(tmp_path / "test", QUERIES)
    write_answers(tmp_path)
    return tmp_path


def read(page: Path) -> BeautifulSoup:
    return BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")


def test_the_page_shows_methods_and_examples(output: Path) -> None:
    page = write_comparison(made_up(test=output), output)
    assert page == output / "report.html"
    html = read(page)
    assert len(html.select("figure.plot")) == 7
    first = html.select_one("#summary strong").get_text()
    assert first == made_up(test=output).verdict
    assert first.startswith("No method")
    captions = [caption.get_text() for caption in html.select("caption")]
    assert "Gain in MRR over in_batch, text to image" in captions
    assert "Settings of all runs" in captions
    assert len(html.find_all("script")) == 1
    heads = [heading.get_text() for heading in html.select("#examples h3")]
    assert heads == [printable(HOSTILE), "random_reduction"]
    assert [part.bdi.get_text() for part in html.select("#examples h3")] == heads
    assert all(char.isprintable() or char in "\n\N{NO-BREAK SPACE}" for char in page.read_text(encoding="utf-8"))
    assert len(html.select(".example")) == 6
    first = html.select_one(".example")
    assert first.h5.get_text() in {text for _, text, _, _ in listings(QUERIES)}
    assert len(first.select("svg.thumb")) == 3
    assert "correct in 0 of 3" in first.get_text()
    assert "correct in 3 of 3" in first.get_text()
    counts = [[cell.get_text() for cell in row.find_all("td")] for row in html.select("#examples tbody tr")]
    assert counts == [["12", "0"], ["0", "0"]]
    text = page.read_text(encoding="utf-8")
    assert "<script>$" not in text
    ids = re.findall(r'\sid="([^"]+)"', text)
    assert len(set(ids)) == len(ids)


def test_fixed_is_by_the_majority_of_seeds() -> None:
    truth = [0, 1, 2, 3]
    base = answers([1, 1, 0, 3], [1, 1, 2, 3], [0, 1, 0, 3], truth=truth)
    method = answers([0, 2, 2, 3], [0, 2, 2, 3], [1, 1, 0, 3], truth=truth)
    (changed,) = changes({"in_batch": base, "other": method})
    assert [example.query for example in changed.fixed] == [0, 2]
    assert [example.query for example in changed.broken] == [1]
    fixed = changed.fixed[0]
    assert (fixed.baseline, fixed.method, fixed.baseline_right, fixed.method_right) == (1, 0, 1, 2)


def test_runs_with_other_numbers_of_queries_are_left_out(output: Path) -> None:
    comparison = made_up(test=output)
    for run in comparison.runs:
        if run["method"]["name"] == HOSTILE and run["seed"] == 1:
            run["queries"] = QUERIES - 1
            write_queries(queries([1] * (QUERIES - 1), [0] * (QUERIES - 1)), run_folder(output, HOSTILE, 1))
    html = read(write_comparison(comparison, output))
    assert HOSTILE not in [heading.get_text() for heading in html.select("#examples h3")]


def test_half_of_the_seeds_is_no_majority() -> None:
    truth = [0, 1]
    base, method = answers([1, 1], [0, 1], truth=truth), answers([0, 1], [0, 1], truth=truth)
    (changed,) = changes({"in_batch": base, "other": method})
    assert (changed.n_fixed, changed.n_broken) == (0, 0)


def test_answers_are_read_as_they_were_written(tmp_path: Path) -> None:
    answers = Queries(*(torch.tensor(values) for values in ([1, 2, 3], [2, 1, 3], [0, 1, 2], [4, 4, 5])))
    write_queries(answers, tmp_path)
    stored = read_queries(tmp_path)
    assert stored is not None
    for name in NAMES_OF_TENSORS:
        assert getattr(stored, name).tolist() == getattr(answers, name).tolist()
    (tmp_path / NAME).write_bytes(b"damaged")
    assert read_queries(tmp_path) is None
    assert read_queries(tmp_path / "absent") is None


@pytest.mark.parametrize(
    ("rank", "top"),
    [([1], [5]), ([2], [0]), ([1], [-1]), ([0], [0]), ([], []), ([1, 1], [0]), ([[1]], [[0]]), ([1.0], [0.0])],
)
def test_answers_that_no_run_gives_are_left_aside(tmp_path: Path, rank: list[object], top: list[object]) -> None:
    tensors = [torch.tensor(values) for values in (rank, top)]
    typed = [part if part.is_floating_point() and len(part) else part.to(torch.int32) for part in tensors]
    write_tensors({"rank": typed[0], "image_rank": typed[0], "top": typed[1], "item": typed[1]}, tmp_path / NAME)
    assert read_queries(tmp_path) is None


def test_a_folder_of_answers_names_no_data(output: Path) -> None:
    """The location of the test pairs never comes from a file in the folder: ``pipe:`` would run a command."""
    file = run_folder(output, "in_batch", 0) / NAME
    rank, top = torch.ones(QUERIES, dtype=torch.int32), torch.arange(QUERIES, dtype=torch.int32)
    tensors = {"rank": rank, "image_rank": rank, "top": top, "item": top}
    location = json.dumps({"location": f"pipe:touch {output / 'ran'}", "dataset_type": "webdataset"})
    write_tensors(tensors, file, {"test": location})
    text = read(write_comparison(made_up(), output)).get_text()
    assert "no saved answers" in text
    assert "Changed answers" in read(write_comparison(made_up(test=output), output)).get_text()
    assert not (output / "ran").exists()


def test_runs_without_answers_and_one_seed(tmp_path: Path) -> None:
    unknown = {"losses": [], "false_negatives_kept_per_anchor": None, "false_weight": None, "removed_share": None}
    html = read(write_comparison(made_up(1, **unknown, seconds_per_step=None), tmp_path))
    text = " ".join(html.get_text(" ").split())
    assert "no saved answers" in text
    assert "No losses were logged" in text
    assert "by step" in text
    assert not html.select(".example")


def test_test_data_that_are_gone(output: Path) -> None:
    (output / "test" / "pairs.csv").unlink()
    assert "moved or changed" in read(write_comparison(made_up(test=output), output)).get_text()


def test_images_that_are_gone_have_a_placeholder(output: Path) -> None:
    for image in (output / "test" / "images").iterdir():
        image.unlink()
    html = read(write_comparison(made_up(test=output), output))
    assert len(html.select(".example .thumb.none")) == 18
    assert "could not be read" in html.get_text()
