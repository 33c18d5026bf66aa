"""Every command and every block of Python in the docs runs, on a small part of the catalogue.

What a reader brings (a csv, a loader, a model) stands ready under the names that the pages use. Trainings get a small model and
one epoch appended, as open_clip takes the last of two values; a comparison has one of its methods, one seed and two candidates
of the temperature; and what the catalogue exports is cut. Comparisons share their output, so that they reuse runs. All else is
run as it is written. Left out: what builds the project itself (pip, tox, scripts under benchmarks), which CI and other tests
run.
"""

from __future__ import annotations

import csv
import itertools
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from click.testing import CliRunner
from torch.utils.data import DataLoader, TensorDataset

import clip_negatives
from clip_negatives import ClustersFolder, read_clusters
from clip_negatives.cli import main
from clip_negatives.dataset import open_pairs
from clip_negatives.host import registry
from clip_negatives.host.method import split_methods
from clip_negatives.pipelines.prepare import prepare
from tests.pairs import export, write_clip_retrieval

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md"]
ROWS = 300
SMALL = [
    *("--dataset-type", "csv", "--model", "clip-negatives-tiny", "--batch-size", "64", "--epochs", "1", "--warmup", "1"),
    *("--workers", "0", "--precision", "fp32", "--device", "cpu", "--log-every-n-steps", "1"),
]
NUMBERS = itertools.count()

SIGNATURES = "hooks.md"
"""Its blocks are signatures, compared with the code elsewhere."""


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[str]:
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("clip-negatives ")]


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with train.csv, test.csv (each with a column product), and clusters and embeddings of the first."""
    folder = tmp_path_factory.mktemp("docs")
    exported = export(folder / "exported", "test", range(2 * ROWS), format="csv")
    rows = list(csv.reader((exported / "test.csv").open(), delimiter="\t"))
    rows[0] = ["product" if name == "item" else name for name in rows[0]]
    for name, some in (("train.csv", rows[1 : 1 + ROWS]), ("test.csv", rows[1 + ROWS : 1 + 2 * ROWS])):
        with (folder / name).open("w", newline="") as stream:
            csv.writer(stream, delimiter="\t", lineterminator="\n").writerows([rows[0], *some])
    prepared = prepare(open_pairs(str(folder / "train.csv")), folder / "clusters")
    write_embeddings(folder, prepared)
    write_assignments(folder, prepared)
    return folder


def write_embeddings(folder: Path, prepared: ClustersFolder) -> None:
    """Write the features of train.csv in each form that ``--features`` reads."""
    features = {side: getattr(prepared.clusters, f"{side}_features").numpy() for side in ("image", "text")}
    for side, rows in features.items():
        np.save(folder / f"{side}s.npy", rows)
    texts = prepared.samples["text"].to_pylist()
    embeddings = {f"{side}_embedding": list(rows) for side, rows in features.items()}
    pd.DataFrame({"caption": texts, **embeddings}).to_parquet(folder / "train.parquet")
    keys = [f"{row // 100:05d}{row % 100:04d}" for row in range(len(texts))]
    write_clip_retrieval(folder / "embeddings", features, {"image_path": keys, "caption": texts})


def write_assignments(folder: Path, prepared: ClustersFolder) -> None:
    """Write the clusters as other programs do: parts of Spark, and a table of cuML with one id per sample."""
    sides = {"image": prepared.clusters.image, "text": prepared.clusters.text}
    for side, clustering in sides.items():
        np.save(folder / f"{side}_centroids.npy", clustering.centroids.numpy())
    labels = {side: clustering.labels.numpy().astype("int32") for side, clustering in sides.items()}
    keys = [f"{row // 100:05d}{row % 100:04d}" for row in range(prepared.samples.num_rows)]
    tars = [f"s3://bucket/{key[:5]}.tar" for key in keys]
    spark = pd.DataFrame({"shard": tars, "key": keys, **{f"{side}_prediction": rows for side, rows in labels.items()}})
    (folder / "assignments.parquet").mkdir()
    for number in range(2):
        spark[number::2].to_parquet(folder / "assignments.parquet" / f"part-{number:05d}.snappy.parquet")
    ids = [f"{key[:5]}.tar/{key}" for key in keys]
    pd.DataFrame({"uid": ids, **{f"{side}_cluster": rows for side, rows in labels.items()}}).to_parquet(
        folder / "clusters.parquet"
    )


@pytest.fixture
def there(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Be in a copy of the workspace."""
    tables = ("train.csv", "test.csv", "train.parquet", "clusters.parquet")
    for name in (*tables, "images.npy", "texts.npy", "image_centroids.npy", "text_centroids.npy"):
        shutil.copy(workspace / name, tmp_path)
    for name in ("clusters", "embeddings", "assignments.parquet"):
        shutil.copytree(workspace / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLIP_NEGATIVES_CACHE", str(workspace / "cache"))
    return tmp_path


def run(line: str, workspace: Path) -> None:
    """Run a command as it is written, but for what makes it small."""
    words = shlex.split(line)[1:]
    ours, theirs = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    if ours[0] == "compare":
        if "--methods" in ours:  # one will do; the README's first is a name of every installation
            place = ours.index("--methods") + 1
            ours[place] = split_methods(ours[place].replace("neighbours,", ""))[0]
        if "--temperatures" in ours:
            place = ours.index("--temperatures") + 1
            ours[place] = ",".join(ours[place].split(",")[:2])
        items = "groups" if "--group-column" in ours else "texts"  # all runs change with them
        ours += ["--seeds", "1", "--output", str(workspace / f"compared-by-{items}")]
        if "--train-data" not in theirs:
            ours, theirs = [*ours, "--test-data", "test.csv"], [*theirs, "--train-data", "train.csv"]
    if ours[0] in ("train", "compare"):
        named = ["--name", f"run-{next(NUMBERS)}"] if ours[0] == "train" else []  # open_clip names runs by the second
        ours = [*ours, "--", *theirs, *SMALL, *named]
    if ours[0] == "choose":
        ours += ["--steps", "2"]
    if ours[0] == "check":
        ours.append("--no-choose")  # the comparison takes minutes
    if ours[0] in ("meter", "inspect"):
        ours += ["--batch-size", "32"]
    shown = CliRunner().invoke(main, ours, catch_exceptions=False)
    for exported in Path.cwd().glob("*/*.csv") if ours[0] == "catalogue" else ():
        exported.write_text("".join(exported.read_text().splitlines(keepends=True)[: ROWS + 1]))
    assert shown.exit_code == 0, (line, shown.output, shown.stderr)


class Model(torch.nn.Module):
    """What an own loop trains: it takes the numbers of samples for their pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = torch.nn.Embedding(ROWS, 8), torch.nn.Embedding(ROWS, 8)

    def forward(self, images: torch.Tensor, texts: torch.Tensor) -> dict[str, torch.Tensor]:
        features = [torch.nn.functional.normalize(tower(x), dim=1) for tower, x in ((self.image, images), (self.text, texts))]
        return {"image_features": features[0], "text_features": features[1], "logit_scale": torch.tensor(10.0)}


def what_a_reader_has() -> dict[str, Any]:
    """Return what the pages take for granted: a loop's loader and model, and a batch of features."""
    x = torch.nn.functional.normalize(torch.randn(16, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    everyone = torch.arange(ROWS)
    return {
        "loader": DataLoader(TensorDataset(everyone, everyone), batch_size=16),
        "model": Model(),
        "epochs": 1,
        "images": x,
        "texts": x.flip(0),
        "scale": torch.tensor(10.0),
        "index": torch.arange(16),
        "product_id": torch.arange(16) // 2,
        "terms": registry.create("loss_weighting", "weighted_infonce")(read_clusters("clusters").clusters),
        "weighted_info_nce": clip_negatives.weighted_info_nce,
    }


def python(page: Path) -> list[str]:
    return [] if page.name == SIGNATURES else blocks(page, "python")


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page) or python(page)], ids=lambda page: page.stem)
def test_page(
    page: Path, workspace: Path, there: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run the commands of a page, then its Python, which reads what they have written."""
    for state in (AcceleratorState, PartialState, GradientState):
        monkeypatch.setattr(state, "_shared_state", {})  # of the processes, which other tests configure in another way
    for line in commands(page):
        run(line, workspace)
    names = what_a_reader_has() if python(page) else {}
    for block in python(page):
        if block.startswith('--8<-- "docs/examples/'):
            continue  # whole trainings, which are run beside the tests of the trainers they are for
        if block.startswith("--8<--"):
            exec((ROOT / block.split('"')[1]).read_text(), {"__name__": "included"})
        elif "def test_" in block:
            pytester = request.getfixturevalue("pytester")  # not before: it forgets what is imported after it
            result = pytester.inline_run(pytester.makepyfile(block), "-q", "-p", "no:cacheprovider", "-k", "not loader")
            monkeypatch.chdir(there)
            passed, _, failed = result.listoutcomes()
            assert (bool(passed), failed) == (True, [])
        else:
            exec(block, names)
