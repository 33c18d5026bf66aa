"""`parallel_kmeans` on 2 and 4 processes is as on one, whatever they are asked for, refuse, or lose."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing as mp

from clip_negatives.distributed.processes import ALONE
from clip_negatives.errors import ArtifactError, ClipNegativesError, InputError
from clip_negatives.interfaces import Clustering
from clip_negatives_plugins.parallel_kmeans import checkpoint, empties, iterations, rows
from clip_negatives_plugins.parallel_kmeans.clusterer import ParallelKMeans
from tests.plugins.parallel_kmeans.data import generator, titles
from tests.ranks import PRELOADED

pytestmark = pytest.mark.keeps_global_rng

N_RANDOM, DIM = 3000, 24
# Scikit-learn, which k-means++ calls, takes each process seconds to import: where it is not looked at, start at random.
COMMON: dict[str, Any] = {"block_size": 100, "n_iter": 8, "init": "random"}
WAYS: dict[str, dict[str, Any]] = {
    "plain": {"n_clusters": 40},
    "plus_plus": {"n_clusters": 40, "init": "kmeans++"},
    "scalable": {"n_clusters": 40, "init": "kmeans||"},
    "euclidean": {"n_clusters": 40, "spherical": False},
    "batches": {"n_clusters": 40, "batch_size": 700, "n_iter": 12},
    "balanced": {"n_clusters": 40, "max_share": 0.03},
    "two": {"n_clusters": 60, "levels": 2},
    "two_balanced": {"n_clusters": 60, "levels": 2, "max_share": 0.02},
    "empties": {"n_clusters": 150},
    "filled": {"n_clusters": 190, "n_iter": 1},
    "few_blocks": {"n_clusters": 10, "block_size": 1000},
}
DATA = {way: ("copies",) if way in ("empties", "filled") else ("titles", "random") for way in WAYS}
RESTARTED = ("plain", "batches", "balanced", "two")
"""Ways that are interrupted and go on."""


def features(folder: str, name: str) -> torch.Tensor:
    """Return the features, mapped from a file."""
    dim = DIM if name == "random" else 32
    dtype = np.float16 if name == "random" else np.float32
    return torch.from_numpy(np.memmap(f"{folder}/{name}.bin", dtype=dtype, mode="r+").reshape(-1, dim))


def clusterer(way: str) -> ParallelKMeans:
    return ParallelKMeans(**{**COMMON, **WAYS[way]})


class StoppedError(Exception):
    """What a run is interrupted with."""


def _stopping_after(patch: pytest.MonkeyPatch, saves: int, stop: Any) -> None:
    """Let `stop` be called once so many checkpoints were kept by this process."""
    real, kept = checkpoint.Checkpoint._write, []

    def write(self: Any, *given: Any) -> None:
        real(self, *given)
        kept.append(1)
        if len(kept) == saves:
            stop()

    patch.setattr(checkpoint.Checkpoint, "_write", write)


def _stop() -> None:
    raise StoppedError


def _join(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{world}", rank=rank, world_size=world)


def _process(rank: int, world: int, folder: str) -> None:
    _join(rank, world, folder)
    found: dict[Any, Any] = {}
    for way in WAYS:
        for name in DATA[way]:
            made = clusterer(way).fit_parallel(features(folder, name), generator=generator())
            found[name, way] = made.labels, made.centroids
    for way in RESTARTED:  # what another number of processes began
        kept = Path(folder) / f"for-{world}-{way}"
        made = clusterer(way).fit_parallel(features(folder, "titles"), generator=generator(), checkpoint=kept)
        found["restarted", way] = made.labels, made.centroids
    alone = clusterer("plain").fit(features(folder, "titles"), generator=generator())
    found["alone", "plain"] = alone.labels, alone.centroids
    found["errors"] = [_error(case, rank, folder) for case in CASES]
    torch.save(found, f"{folder}/{world}-{rank}.pt")
    dist.destroy_process_group()


CASES = ("nan", "shapes", "unread", "few", "foreign", "alike")


def _error(case: str, rank: int, folder: str) -> str:
    """Return what goes wrong in one process and how this one says it."""
    points, kept = features(folder, "titles").clone(), None
    with pytest.MonkeyPatch.context() as patch:
        if case == "nan":
            points[1500, 3] = torch.nan  # in the share of the last process
        elif case == "shapes" and rank == 1:
            points = points[:-1]
        elif case == "unread" and rank == 1:
            patch.setattr(rows.Rows, "read", _unreadable)
        elif case == "few":
            points = points[:20]
        elif case == "foreign":
            kept = Path(folder) / "for-1-plain"
            points = points.flip(0)
        elif case == "alike":
            points = points[:1].repeat(400, 1)
        try:
            clusterer("plain").fit_parallel(points, generator=generator(), checkpoint=kept)
        except (ClipNegativesError, OSError) as error:
            return f"{type(error).__name__}: {error} rank={getattr(error, 'rank', None)}"
    return "no error"


def _unreadable(*given: object) -> None:
    raise OSError("a bad disk")


def _killed(rank: int, folder: str) -> None:
    """Cluster until a process is killed, without a word, once three iterations are kept."""
    _join(rank, 2, f"{folder}/killed")
    with pytest.MonkeyPatch.context() as patch:
        _stopping_after(patch, 3, lambda: os.kill(os.getpid(), signal.SIGKILL))
        clusterer("plain").fit_parallel(features(folder, "titles"), generator=generator(), checkpoint=Path(folder) / "killed")


def _start(process: Any, n: int, *given: object) -> None:
    """Run n processes; they are forked from one that has what they need, so that not each imports it for itself."""
    multiprocessing.set_forkserver_preload([*PRELOADED, "sklearn.cluster", "clip_negatives_plugins.parallel_kmeans.clusterer"])
    mp.start_processes(process, args=given, nprocs=n, start_method="forkserver")


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    """Return what one process finds, with the features and the checkpoints of runs that were interrupted beside it."""
    folder = tmp_path_factory.mktemp("processes")
    titles().numpy().tofile(folder / "titles.bin")
    titles()[:200].repeat_interleave(7, dim=0).numpy().tofile(folder / "copies.bin")
    torch.randn(N_RANDOM, DIM, generator=generator()).half().numpy().tofile(folder / "random.bin")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found: dict[Any, Any] = {"folder": str(folder)}
    for way in WAYS:
        for name in DATA[way]:
            found[name, way] = clusterer(way).fit_parallel(features(str(folder), name), generator=generator())
    for way in RESTARTED:
        for world in (1, 2, 4):
            made, points, kept = clusterer(way), features(str(folder), "titles"), folder / f"for-{world}-{way}"
            with pytest.MonkeyPatch.context() as patch:
                _stopping_after(patch, 4, _stop)
                with pytest.raises(StoppedError):
                    made.fit_parallel(points, generator=generator(), checkpoint=kept)
    torch.set_num_threads(threads)
    return found


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request: pytest.FixtureRequest, expected: dict[Any, Any]) -> list[dict[Any, Any]]:
    """Return what each process of a group found."""
    _start(_process, request.param, request.param, expected["folder"])
    return [torch.load(f"{expected['folder']}/{request.param}-{rank}.pt") for rank in range(request.param)]


def same(one: tuple[torch.Tensor, torch.Tensor], other: Clustering) -> bool:
    return torch.equal(one[0], other.labels) and torch.equal(one[1], other.centroids)


@pytest.mark.parametrize(("way", "name"), [(way, name) for way in WAYS for name in DATA[way]])
def test_every_process_finds_what_one_finds(ranks: Any, expected: Any, way: str, name: str) -> None:
    assert all(same(found[name, way], expected[name, way]) for found in ranks)
    assert expected[name, way].sizes().min() >= 1
    if share := WAYS[way].get("max_share"):
        assert expected[name, way].sizes().max() <= share * len(expected[name, way].labels)


def test_something_moved_for_balance_and_clusters_were_empty(expected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the comparison above would say nothing of it."""
    assert expected["titles", "plain"].sizes().max() > 0.03 * len(expected["titles", "plain"].labels)
    reseeded, filled = [], []
    real, real_movable = iterations.reseed, empties._movable
    monkeypatch.setattr(iterations, "reseed", lambda *given: reseeded.append(1) or real(*given))
    monkeypatch.setattr(empties, "_movable", lambda *given: filled.append(1) or real_movable(*given))
    clusterer("empties").fit(features(expected["folder"], "copies"), generator=generator())
    assert reseeded
    clusterer("filled").fit(features(expected["folder"], "copies"), generator=generator())
    assert filled


@pytest.mark.parametrize("way", RESTARTED)
def test_a_restart_on_any_number_of_processes_ends_as_if_nothing_had_happened(ranks: Any, expected: Any, way: str) -> None:
    assert all(same(found["restarted", way], expected["titles", way]) for found in ranks)


@pytest.mark.parametrize("way", RESTARTED)
def test_a_restart_of_one_process(expected: Any, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Path(expected["folder"]) / f"for-1-{way}"
    written: list[str] = []
    real = checkpoint.Checkpoint._write
    note = lambda self, file, *rest: written.append(file.name) or real(self, file, *rest)  # noqa: E731
    monkeypatch.setattr(checkpoint.Checkpoint, "_write", note)
    again = clusterer(way).fit_parallel(features(expected["folder"], "titles"), generator=generator(), checkpoint=kept)
    assert same((again.labels, again.centroids), expected["titles", way])
    first, written[:] = len(written), []
    whole = Path(expected["folder"]) / f"whole-{way}"
    clusterer(way).fit_parallel(features(expected["folder"], "titles"), generator=generator(), checkpoint=whole)
    assert len(written) == first + 4
    written.clear()
    clusterer(way).fit_parallel(features(expected["folder"], "titles"), generator=generator(), checkpoint=whole)
    assert written == []


def test_one_of_a_group_can_cluster_alone(ranks: Any, expected: Any) -> None:
    assert all(same(found["alone", "plain"], expected["titles", "plain"]) for found in ranks)


def test_what_is_refused_is_refused_by_all_and_nobody_waits(ranks: Any) -> None:
    told = [dict(zip(CASES, found["errors"], strict=True)) for found in ranks]
    for case, rank, words in (
        ("nan", len(told) - 1, "InputError: Features contain NaN or infinity, first in row 1500."),
        ("few", 0, "InputError: n_clusters=40 is more than the number of samples (20)."),
        ("foreign", 0, "ArtifactError: The checkpoint in "),
        ("alike", 0, "InputError: All samples have the same features, so they cannot be clustered."),
        ("shapes", 1, "InputError: Process 1 has other features or options"),
    ):
        assert {each[case].startswith(words) for each in told} == {True}, told
        assert {each[case].endswith(f"rank={rank}") for each in told} == {True}, told
    assert told[1]["unread"] == "OSError: a bad disk rank=None"
    others = {each["unread"] for rank, each in enumerate(told) if rank != 1}
    assert others == {"ProcessError: Process 1 failed with OSError('a bad disk'). See its traceback. rank=1"}


def test_a_process_that_is_killed_costs_no_iteration_that_was_kept(expected: Any) -> None:
    folder = Path(expected["folder"])
    (folder / "killed").mkdir()
    with pytest.raises(mp.ProcessExitedException, match="SIGKILL"):
        _start(_killed, 2, str(folder))
    state = checkpoint.Checkpoint(None, {}, ALONE)
    with pytest.raises(ArtifactError, match=r"format|features"):
        state._read(folder / "killed" / "iteration.safetensors", checkpoint.STATE)
    again = clusterer("plain").fit_parallel(
        features(str(folder), "titles"), generator=generator(), checkpoint=folder / "killed"
    )
    assert same((again.labels, again.centroids), expected["titles", "plain"])


def test_damaged_checkpoints(expected: Any, tmp_path: Path) -> None:
    points = features(expected["folder"], "titles")
    (tmp_path / "iteration.safetensors").write_bytes(b"?")
    with pytest.raises(ArtifactError, match=r"iteration.safetensors is not a checkpoint .* Delete it"):
        clusterer("plain").fit_parallel(points, generator=generator(), checkpoint=tmp_path)
    (tmp_path / "iteration.safetensors").unlink()
    clusterer("plain").fit_parallel(points, generator=generator(), checkpoint=tmp_path)
    for changed, words in (({"n_clusters": 41}, "n_clusters, options"), ({"max_share": 0.5}, "differs in options")):
        other = ParallelKMeans(**{**COMMON, **WAYS["plain"], **changed})
        with pytest.raises(ArtifactError, match=words):
            other.fit_parallel(points, generator=generator(), checkpoint=tmp_path)
    with pytest.raises(ArtifactError, match="differs in seed"):
        clusterer("plain").fit_parallel(points, generator=generator(1), checkpoint=tmp_path)
    with pytest.raises(InputError, match="row 2"):
        clusterer("plain").fit_parallel(points.clone().index_fill_(0, torch.tensor([2]), torch.nan), generator=generator())
