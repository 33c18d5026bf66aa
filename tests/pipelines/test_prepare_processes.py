"""Processes that share the work make the folder that one makes, and a run that is killed goes on to that very folder."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clip_negatives import catalogue
from clip_negatives.features.store import PartStore
from clip_negatives.storage.clusters_folder import read_clusters
from tests.pairs import write_csv, write_tar, write_tars
from tests.ranks import command, commands, run, start

KILLS = int(os.environ.get("CLIP_NEGATIVES_KILLS", "3"))
"""How often a run is killed; more of them say more, and take longer."""

OPTIONS = ("--image-encoder", "pixels:dim=16", "--text-encoder", "tfidf:dim=16", "--clusterer", "kmeans:n_clusters=8")


def _content(folder: Path) -> dict[str, Any]:
    """Return the files of a folder, the manifest without its date."""
    files: dict[str, Any] = {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
    manifest = json.loads(files["manifest.json"])
    del manifest["created"]
    return {**files, "manifest.json": manifest}


def _written(folder: Path) -> dict[str, bytes]:
    """Return the new shards and their labels, and the pairs."""
    files = [*sorted((folder / "new").glob("*.tar")), *sorted((folder / "new" / "labels" / "shards").iterdir())]
    return {file.name: file.read_bytes() for file in [*files, folder / "new" / "sizes.json", folder / "pairs.parquet"]}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with pairs as csv, as five tars, and a tar with a broken one."""
    folder = tmp_path_factory.mktemp("data")
    write_csv(folder, 90)
    write_tars(folder, 90, shards=5)
    write_tar(folder / "broken.tar", {"bad.png": b"no image", "bad.txt": b"text"})
    return folder


def _commands(data: Path, output: Path) -> list[list[object]]:
    tars = f"{data}/broken.tar::{data}/pairs-{{000000..000004}}.tar"
    return [
        ["prepare", data / "pairs.csv", output / "csv", *OPTIONS, "--group-column", "item"],
        ["prepare", tars, output / "tars", "--max-lost", "2%", *OPTIONS],
        ["prepare", tars, output / "half", "--max-lost", "2%", *OPTIONS, "--feature-dtype", "float16", "--drop-features"],
        ["reshard", tars, output / "tars", output / "new", "--samples-per-shard", 20],
        ["generate", output / "tars", "--output", output / "pairs.parquet", "--per-image", 2],
        ["prepare", f"{data}/broken.tar", output / "none", *OPTIONS],
        ["prepare", tars.replace("4}", "5}"), output / "none", *OPTIONS],
        ["prepare", tars, output / "none", "--max-lost", "2%", *OPTIONS, "--group-column", "brand"],
        ["prepare", tars, output / "none", "--max-lost", "2%", *OPTIONS[:-1], "kmeans:n_clusters=91"],
        ["prepare", tars, output / "none", *OPTIONS],
    ]


def test_folder_is_the_same_for_any_number_of_processes(data: Path, tmp_path: Path) -> None:
    said = {}
    for world in (1, 2, 4):
        (tmp_path / "out").mkdir()
        said[world] = run(world, commands, *_commands(data, tmp_path / "out"), log=tmp_path / f"log-{world}")
        (tmp_path / "out").rename(tmp_path / str(world))
    for name in ("csv", "tars", "half"):
        one, two, four = (_content(tmp_path / str(world) / name) for world in (1, 2, 4))
        assert one == two == four
    one, two, four = (_written(tmp_path / str(world)) for world in (1, 2, 4))
    assert one == two == four
    assert [name for name in one if name.endswith(".tar")] == [f"00000{shard}.tar" for shard in range(4)]
    folder = read_clusters(tmp_path / "4" / "tars")
    assert (folder.clusters.n_samples, folder.manifest["n_broken"]) == (90, 1)
    assert said[2][0] == said[4][0] == said[1][0]
    lines = [line for line in said[1][0].splitlines() if not line.startswith(("Reading ", "Next: "))]
    out = tmp_path / "out"
    assert lines[:6] == [
        f"{out}/csv: 90 pairs, 8 image clusters, 8 text clusters",
        "exit code 0",
        f"{out}/tars: 90 pairs, 8 image clusters, 8 text clusters",
        f"Left out: 1 sample, listed in {out}/tars/broken.parquet",
        "  1: the image cannot be read (first: bad)",
        "exit code 0",
    ]
    errors = [
        "no sample that can be read",
        "000005.tar does not exist",
        "No sample has a .json with the field 'brand' (the first has .png, .txt, .json (fields: item)).",
        "number of samples (90)",
        "1 of 91 samples (1.1%) are lost, more than 1.00%: 1 broken sample (first: bad: the image cannot be read).",
    ]
    assert lines[10:14:2] == [f"{out}/new: 90 samples in 4 shards", f"{out}/pairs.parquet: 180 incorrect pairs"]
    assert len(lines) == 14 + 2 * len(errors)
    for place, words in enumerate(errors):
        assert words in lines[14 + 2 * place]
        assert lines[15 + 2 * place] == "exit code 2"
    for world in (2, 4):
        for rank in range(1, world):  # one sentence is enough
            assert set(said[world][rank].splitlines()) == {"exit code 0", "exit code 2"}


def test_rank_that_is_alone_with_its_error_says_it(data: Path, tmp_path: Path) -> None:
    """One process reads the broken image, of which the others hear."""
    (tmp_path / "images").mkdir()
    table = (data / "pairs.csv").read_text().splitlines()
    (tmp_path / "bad.png").write_text("no image")
    table[20] = f"{tmp_path}/bad.png\ttext\titem"
    (tmp_path / "pairs.csv").write_text("\n".join(table) + "\n")
    line = ["prepare", tmp_path / "pairs.csv", tmp_path / "clusters", *OPTIONS]
    said = run(3, commands, line, log=tmp_path / "log")
    errors = [line for text in said for line in text.splitlines() if not line.startswith(("Reading ", "Next: "))]
    assert sorted(errors)[1:] == ["exit code 2"] * 3
    assert "row 19 of" in min(errors)
    assert min(errors).endswith("Repair it or leave it out.")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return shards of the catalogue."""
    folder = catalogue.export(tmp_path_factory.mktemp("shards") / "export", split="test", format="webdataset", shard_size=40)
    files = sorted(folder.glob("*.tar"))
    return f"{folder}/test-{{000000..{len(files) - 1:06d}}}.tar"


def _parts(work: Path) -> dict[str, int]:
    """Return when each part that is done was written."""
    files = [
        file
        for file in work.glob("*/[!.]*/record.json")
        if PartStore(file.parents[1], work).record(file.parent.name) is not None
    ]
    return {str(file): file.stat().st_mtime_ns for file in files}


def test_killed_runs_go_on_to_what_an_undisturbed_run_makes(shards: str, tmp_path: Path) -> None:
    """Kill one process or all of them at random moments, and go on with another number of them."""
    chance = random.Random(KILLS)
    line = ["prepare", shards, tmp_path / "clusters", *OPTIONS]
    work = tmp_path / ".clusters.features"
    run(1, command, ["--version"], log=tmp_path / "log")  # the first processes wait for imports
    began = time.monotonic()
    run(2, command, line, log=tmp_path / "log")
    undisturbed = time.monotonic() - began
    (tmp_path / "clusters").rename(tmp_path / "expected")
    expected = _content(tmp_path / "expected")
    kills, last, done = 0, 0, dict[str, int]()
    while not (tmp_path / "clusters").exists() or kills < KILLS:
        world = chance.choice([size for size in (1, 2, 3) if size != last])
        last = world
        ranks = start(world, command, line, log=tmp_path / "log")
        if kills < KILLS:
            time.sleep(chance.uniform(0.1, 0.9) * undisturbed)
            lost = [chance.choice(ranks)] if chance.random() < 0.5 else ranks
            kills += any(process.is_alive() for process in lost)
            for process in lost:
                process.kill()
        deadline = time.monotonic() + 10 + undisturbed
        for process in ranks:
            process.join(max(0, deadline - time.monotonic()))  # those that are left end by themselves,
        for process in ranks:
            process.kill()  # but for one that waits for a process that was killed before they met, which torchrun ends
            process.join()
        now = _parts(work)
        if not (tmp_path / "clusters").exists():
            assert done.items() <= now.items()  # what was done was not done again
            done = now
        else:  # at the end, or before a kill came: once more then
            assert _content(tmp_path / "clusters") == expected
            done = {}  # a kill may have come while the work folder was removed
            if kills < KILLS:
                shutil.rmtree(tmp_path / "clusters")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["clusters", "expected", "log"]


def test_given_features_on_two_processes(data: Path, tmp_path: Path) -> None:
    """One image file is mapped by both processes, two text files are joined, and texts are encoded by both."""
    generator = np.random.default_rng(0)
    images, texts = (generator.standard_normal((90, dim), dtype=np.float32) for dim in (8, 4))
    np.save(tmp_path / "images.npy", images / np.linalg.norm(images, axis=1, keepdims=True))
    for part in range(2):
        np.save(tmp_path / f"texts-{part}.npy", texts[part * 45 : (part + 1) * 45])
    clusterer = ("--clusterer", "kmeans:n_clusters=8")
    pairs, both, image = data / "pairs.csv", f"{tmp_path}/images.npy,{tmp_path}/texts-*.npy", f"{tmp_path}/images.npy"
    contents = []
    for world_size in (1, 2):
        output = tmp_path / str(world_size)
        output.mkdir()
        lines = [
            ["prepare", pairs, output / "both", "--features", both, *clusterer],
            ["prepare", pairs, output / "image", "--features", image, *clusterer, "--text-encoder", "tfidf:dim=8"],
            ["prepare", pairs, output / "short", "--features", f"{image},{tmp_path}/texts-0.npy", *clusterer],
        ]
        said = run(world_size, commands, *lines, log=_folder(output / "log"))
        assert [line for line in said[0].splitlines() if line.startswith("exit code")] == [
            f"exit code {code}" for code in (0, 0, 2)
        ]
        contents.append([_content(output / name) for name in ("both", "image")])
    assert contents[0] == contents[1]


def _folder(path: Path) -> Path:
    path.mkdir()
    return path
