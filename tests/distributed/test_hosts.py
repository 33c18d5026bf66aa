"""Several hosts: each is a network namespace of this machine, with an address and a host name of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from clip_negatives import read_clusters
from clip_negatives.pipelines.prepare import prepare
from clip_negatives.pipelines.recipe import Recipe
from tests.pairs import write_tars

N, SHARDS = 48, 4
RECIPE = Recipe(image_encoder="pixels:dim=8", text_encoder="tfidf:dim=8", clusterer="kmeans:n_clusters=4")
LINE = ["--image-encoder", RECIPE.image_encoder, "--text-encoder", RECIPE.text_encoder, "--clusterer", str(RECIPE.clusterer)]
ADDRESS = "10.207.61.{}"


@pytest.fixture
def hosts() -> Iterator[list[list[str]]]:
    """Return for each of two hosts the beginning of its commands."""
    names = [f"clip-negatives-{os.getpid()}-{number}" for number in (1, 2)]
    links = [f"cn{os.getpid() % 10**6}{letter}" for letter in "ab"]
    made = []
    try:
        for name in names:
            if (done := subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)).returncode:
                pytest.skip(f"network namespaces cannot be made here: {done.stderr.strip()}")
            made.append(name)
        _ip("link", "add", links[0], "netns", names[0], "type", "veth", "peer", "name", links[1], "netns", names[1])
        for number, (name, link) in enumerate(zip(names, links, strict=True), 1):
            _ip("-n", name, "address", "add", f"{ADDRESS.format(number)}/24", "dev", link)
            for device in (link, "lo"):
                _ip("-n", name, "link", "set", device, "up")
        yield [
            [
                *f"ip netns exec {name} unshare --uts sh -c".split(),
                f'hostname host-{number}; GLOO_SOCKET_IFNAME={link} exec "$@"',
                "",
            ]
            for number, (name, link) in enumerate(zip(names, links, strict=True), 1)
        ]
    except FileNotFoundError as error:
        pytest.skip(f"network namespaces need {error.filename}")
    finally:
        for name in made:
            _ip("netns", "delete", name)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def _all_end_well(commands: Sequence[Sequence[str]]) -> None:
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for command in commands]
    outputs = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0] * len(running), "\n".join(outputs)


def test_two_hosts_prepare_what_one_process_prepares(hosts: list[list[str]], tmp_path: Path) -> None:
    data = write_tars(tmp_path, N, shards=SHARDS)
    prepare(data, tmp_path / "expected", RECIPE, progress=False)
    meeting = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", ADDRESS.format(1), "--master-port", "29517"]
    command = ["-m", "clip_negatives", "prepare", data, str(tmp_path / "clusters"), *LINE]
    _all_end_well(
        [
            [*host, sys.executable, "-m", "torch.distributed.run", *meeting, "--node-rank", str(rank), *command]
            for rank, host in enumerate(hosts)
        ]
    )
    found, expected = (read_clusters(tmp_path / name) for name in ("clusters", "expected"))
    assert found.samples.equals(expected.samples)
    for name in ("image", "text"):
        assert getattr(found.clusters, name).labels.equal(getattr(expected.clusters, name).labels)


def test_tasks_of_two_hosts_share_the_work(hosts: list[list[str]], tmp_path: Path) -> None:
    data = write_tars(tmp_path, N, shards=SHARDS)
    encoders = ["--image-encoder", "pixels:dim=0", "--text-encoder", "hashing:dim=32"]
    command = ["-m", "clip_negatives", "encode", data, str(tmp_path / "parts"), *encoders, "--task"]
    _all_end_well([[*host, sys.executable, *command, f"{number}/2"] for number, host in enumerate(hosts, 1)])
    assert len(list(tmp_path.glob("parts/*/part.json"))) == SHARDS
    assert not list(tmp_path.glob("parts/claims/*"))
