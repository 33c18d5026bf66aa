"""`choose` on clusters of real listings with made-up features, where one method is clearly better."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path

import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F

from clip_negatives import Method, read_clusters, write_clusters
from clip_negatives.checking.truth import with_groups
from clip_negatives.choosing import choose, fold_runs, read_choice, run
from clip_negatives.choosing.choice import FILE, FOLDER, method_for
from clip_negatives.choosing.menu import BASELINE, TEMPERATURES, Candidate, menu_of
from clip_negatives.clustering.fit import cluster_features
from clip_negatives.errors import ArtifactError, ClipNegativesError, InputError, UnknownNameError
from clip_negatives.storage.clusters_folder import ClustersFolder

N, ITEMS = 240, 60
ROTATION = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(1)))[0]  # of images to texts
QUICK = {"steps": 4, "methods": "gist@0.1", "batch_size": 32}


def write_folder(path: Path, *, groups: bool = True, noise: float = 0.4, n: int = N) -> ClustersFolder:
    """Write clusters of features around a point for each item."""
    generator = torch.Generator().manual_seed(0)
    items = torch.randint(ITEMS, (n,), generator=generator)
    points = torch.randn(ITEMS, 16, generator=generator)
    images, texts = (
        F.normalize(side[items] + noise * torch.randn(n, 16, generator=generator), dim=1)
        for side in (points, points @ ROTATION)
    )
    clusters = cluster_features(images, texts, clusterer="kmeans:n_clusters=12", seed=0)
    samples = {"key": [str(row) for row in range(n)], "text": [f"text {row}" for row in range(n)]}
    if groups:
        samples["group"] = [str(item) for item in items.tolist()]
    write_clusters(path, clusters, pa.table(samples), {"clusterer": "kmeans:n_clusters=12"})
    return read_clusters(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ClustersFolder:
    return write_folder(tmp_path_factory.mktemp("choose") / "clusters")


def test_a_choice_has_all_candidates_and_is_stored(folder: ClustersFolder, tmp_path: Path) -> None:
    choice = choose(folder, tmp_path, **QUICK)
    assert {row.name for row in choice.rows} == {str(candidate) for candidate in menu_of("gist@0.1").candidates}
    assert {BASELINE, *TEMPERATURES} <= {row.name for row in choice.rows}
    assert [row.mrr for row in choice.rows] == sorted((row.mrr for row in choice.rows), reverse=True)
    assert all(0 < row.rank_1 <= row.mrr <= row.rank_10 <= 1 for row in choice.rows)
    assert choice.setting["n_queries"] == N
    assert choice.held_out == "groups"
    assert read_choice(tmp_path / FILE) == choice
    assert choice.row(choice.reference).gain == (0.0, 0.0, 0.0)


def test_the_reference_is_the_best_temperature(folder: ClustersFolder, tmp_path: Path) -> None:
    choice = choose(folder, tmp_path, **QUICK)
    in_batch = [choice.row(name) for name in (BASELINE, *TEMPERATURES)]
    assert choice.reference == max(in_batch, key=lambda row: row.mrr).name


def test_a_second_call_trains_nothing(folder: ClustersFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = choose(folder, tmp_path, **QUICK)
    monkeypatch.setattr(fold_runs, "train_heads", None)
    assert choose(folder, tmp_path, **QUICK) == first
    with pytest.raises(TypeError):  # another number of steps
        choose(folder, tmp_path, **{**QUICK, "steps": 5})


def test_the_number_of_processes_changes_nothing(folder: ClustersFolder, tmp_path: Path) -> None:
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    alone = choose(folder, tmp_path / "alone", **QUICK)
    together = choose(folder, tmp_path / "together", workers=2, **QUICK)
    assert together == alone
    assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (threads, precision)


def test_a_killed_process_is_an_error(folder: ClustersFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fold_runs, "_ranks", _killed)
    with pytest.raises(ClipNegativesError, match="ended unexpectedly"):
        choose(folder, tmp_path, workers=2, **QUICK)


def _killed(job: fold_runs.Job) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_damaged_run_is_made_again(folder: ClustersFolder, tmp_path: Path) -> None:
    first = choose(folder, tmp_path, **QUICK)
    runs = sorted((tmp_path / run.RUNS).iterdir())
    runs[0].write_text("{")
    runs[1].write_text(json.dumps({"text_to_image": [1], "image_to_text": [1]}))
    assert choose(folder, tmp_path, **QUICK) == first


def test_a_significantly_better_method_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads of one candidate are replaced by heads that know the answer."""
    folder = write_folder(tmp_path / "clusters", noise=0.6)
    train_heads = fold_runs.train_heads

    def informed(clusters, method, settings, **options):  # type: ignore[no-untyped-def]
        heads = train_heads(clusters, method, settings, **options)
        if method.weighting.startswith("gist"):
            heads.image.data, heads.text.data = torch.eye(16), ROTATION.T
        return heads

    monkeypatch.setattr(fold_runs, "train_heads", informed)
    choice = choose(folder, tmp_path / "choice", **QUICK)
    assert choice.method == "gist@0.1"
    assert choice.sentence.startswith("Use gist@0.1: MRR +")
    assert choice.has_significant_gain
    assert choice.row("gist@0.1").gain[1] > 0
    monkeypatch.setattr(fold_runs, "train_heads", train_heads)
    no_gain = choose(folder, tmp_path / "other", **{**QUICK, "steps": 1})
    best = max((row for row in no_gain.rows if not row.is_control), key=lambda row: row.mrr).name
    assert no_gain.method == best
    assert not no_gain.has_significant_gain
    assert no_gain.sentence.startswith(f"Nothing beats {no_gain.reference}, in-batch negatives at their best temperature, ")
    assert f"Use {best}" in no_gain.sentence
    assert "would have been significant for every method. More seeds and more data" in no_gain.warnings[0]


def test_folds_by_near_duplicates_without_groups(tmp_path: Path) -> None:
    choice = choose(write_folder(tmp_path / "clusters", groups=False, noise=0.05), tmp_path / "choice", **QUICK)
    assert choice.held_out == "near-duplicates, detected without labels"


@pytest.mark.parametrize(("n_grouped", "held_out"), [(N // 2, "groups"), (N // 2 - 1, "near-duplicates")])
def test_groups_are_held_out_if_half_of_the_samples_have_one(tmp_path: Path, n_grouped: int, held_out: str) -> None:
    folder = write_folder(tmp_path / "clusters", noise=0.05)
    names = [name if row < n_grouped else "" for row, name in enumerate(folder.samples["group"].to_pylist())]
    choice = choose(with_groups(folder, names), tmp_path / "choice", **QUICK)
    assert choice.held_out.startswith(held_out)


def test_a_column_is_held_out(folder: ClustersFolder, tmp_path: Path) -> None:
    sellers = [f"seller {row % 4}" for row in range(N)]
    choice = choose(folder, tmp_path, fold_by="seller", fold_values=sellers, folds=4, **QUICK)
    assert choice.held_out == "values of seller"
    assert choice.setting["folds"] == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 1}, "folds= must be at least 2"),
        ({"seeds": 0}, "seeds= must be at least 1"),
        ({"steps": 0}, "steps= must be at least 1"),
        ({"workers": 0}, "workers= must be at least 1"),
        ({"fold_by": "seller"}, "not in the clusters folder"),
        ({"methods": ""}, "is empty"),
        ({"methods": "gist,gist"}, "gist is named twice in 'gist,gist'. Remove one."),
        (
            {"methods": "menu,gist@0.1"},
            "gist@0.1 is named twice in .* \\(menu contains default, .*, gist@0.1, .*\\). Remove one",
        ),
        ({"fold_by": "seller", "fold_values": ["a"] * N}, "in one group .* Use fold_by= with a column"),
    ],
)
def test_wrong_values_are_errors(folder: ClustersFolder, tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose(folder, tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_unknown_methods_and_missing_groups_are_errors(folder: ClustersFolder, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="gits"):
        choose(folder, tmp_path, methods="gits")
    with pytest.raises(InputError, match="have no groups"):
        choose(write_folder(tmp_path / "clusters", groups=False), fold_by="group")
    with pytest.raises(InputError, match=r"at least 64 samples, but the clusters have 63. Use more data"):
        choose(write_folder(tmp_path / "few", n=63))


def test_features_are_needed(folder: ClustersFolder, tmp_path: Path) -> None:
    clusters = dataclasses.replace(folder.clusters, image_features=None, text_features=None)
    with pytest.raises(InputError, match="--keep-features"):
        choose(dataclasses.replace(folder, clusters=clusters), tmp_path)


def test_a_foreign_folder_is_refused(folder: ClustersFolder, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ArtifactError):
        choose(folder, tmp_path, **QUICK)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_choice_belongs_to_its_clusters(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "clusters")
    choice = choose(folder, **QUICK)
    file = folder.path / FOLDER / FILE
    assert method_for(file, folder.manifest) == Method.parse(choice.method)
    other = write_folder(tmp_path / "other", noise=0.3)
    with pytest.raises(ArtifactError, match=r"The method in .* was chosen for other clusters"):
        method_for(file, other.manifest)
    stored = json.loads(file.read_text())
    stored["plugins"] = {name: {**plugin, "version": "0"} for name, plugin in stored["plugins"].items()}
    file.write_text(json.dumps(stored))
    with pytest.raises(ArtifactError, match="other plugin versions"):
        method_for(file, folder.manifest)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 1}', '{"format": 2, "rows": 3}'])
def test_a_damaged_choice_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(ArtifactError, match=r"cannot be read: .* Run clip-negatives choose again"):
        read_choice(tmp_path / FILE)
    with pytest.raises(ArtifactError, match="does not exist"):
        read_choice(tmp_path / "missing.json")


def test_the_menu_leaves_out_plugins_that_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    from clip_negatives.choosing import menu

    monkeypatch.setattr(menu, "METHODS", ("default", "no_such_weighting@0.1"))
    assert menu_of().left_out == ("no_such_weighting@0.1",)
    names = [str(candidate) for candidate in menu_of("menu,id_mask@0.1").candidates]
    assert names == [BASELINE, *TEMPERATURES, "default", "id_mask@0.1", "in_batch@0.1 dropout 0.1", "in_batch@0.1 dropout 0.2"]
    assert [Candidate(Method.parse("in_batch@0.1"), 0.1).is_control, Candidate(Method.parse("gist")).is_in_batch] == [
        True,
        False,
    ]
