"""A labels folder from clusters of another program equals that of our own clusters, whatever the order of the rows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner, Result

from clip_negatives import read_clusters
from clip_negatives.cli import main
from clip_negatives.dataset import open_pairs
from clip_negatives.dataset.assignment_columns import AssignmentColumns
from clip_negatives.pipelines.given_labels import write_given_labels
from clip_negatives.pipelines.prepare import prepare
from clip_negatives.pipelines.recipe import Recipe
from clip_negatives.storage import shard_buckets
from clip_negatives.storage.labels_folder import LabelsFolder, read_labels, write_labels
from clip_negatives.storage.provenance import clusters_section
from tests.pairs import write_tars

N, SHARDS, K = 64, 4, 4


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with four tars, their clusters and labels, and the clusters as a table with centroids."""
    folder = tmp_path_factory.mktemp("given")
    recipe = Recipe(clusterer=f"kmeans:n_clusters={K}")
    prepare(open_pairs(write_tars(folder, N, shards=SHARDS)), folder / "clusters", recipe, progress=False)
    write_labels(folder / "clusters", folder / "labels")
    pq.write_table(_table(folder), folder / "table.parquet")
    clusters = read_clusters(folder / "clusters").clusters
    np.save(folder / "image.npy", clusters.image.centroids.numpy())
    np.save(folder / "text.npy", clusters.text.centroids.numpy())
    return folder


def _table(folder: Path) -> pa.Table:
    """Return the clusters as a table whose rows have a random order."""
    stored = read_clusters(folder / "clusters")
    sides = {"image_label": stored.clusters.image, "text_label": stored.clusters.text}
    columns = {name: stored.samples[name] for name in ("shard", "key", "text")}
    table = pa.table(columns | {name: pa.array(side.labels.numpy()) for name, side in sides.items()})
    return table.take(pa.array(np.random.default_rng(0).permutation(N)))


def _centroids(home: Path) -> str:
    return f"{home / 'image.npy'},{home / 'text.npy'}"


def _tars(home: Path) -> str:
    return str(home / f"pairs-{{000000..{SHARDS - 1:06d}}}.tar")


def _assert_equal(new: LabelsFolder, old: LabelsFolder, *, texts: bool) -> None:
    assert new.shards.files.keys() == old.shards.files.keys()
    for shard in old.shards.files:
        expected = {key: (*pair, digest if texts else "") for key, (*pair, digest) in old.shards.of(shard).items()}
        assert {key: (*pair, digest or "") for key, (*pair, digest) in new.shards.of(shard).items()} == expected
    for name in ("image", "text"):
        assert torch.equal(getattr(new, name).counts, getattr(old, name).counts)
        assert torch.equal(getattr(new.clusters, f"{name}_similarity"), getattr(old.clusters, f"{name}_similarity"))


def _write(table: pa.Table, path: Path) -> Path:
    if path.suffix == ".csv":
        pa.csv.write_csv(table, path)
    else:
        pq.write_table(table, path)
    return path


@pytest.mark.parametrize("texts", [True, False])
@pytest.mark.parametrize("name", ["table.parquet", "table.csv", "parts"])
def test_own_clusters_as_a_table_give_the_labels_that_we_write(home: Path, tmp_path: Path, name: str, texts: bool) -> None:
    table = _table(home)
    if name == "parts":
        (tmp_path / name).mkdir()
        for part in range(5):  # files that Spark leaves beside the parts
            _write(table.slice(part * 13, 13), tmp_path / name / f"part-{part:05d}.snappy.parquet")
        (tmp_path / name / "_SUCCESS").touch()
        (tmp_path / name / ".part-00000.crc").write_text("x")
    else:
        _write(table, tmp_path / name)
    columns = AssignmentColumns(text="text" if texts else None)
    new = write_given_labels(str(tmp_path / name), _centroids(home), tmp_path / "new", columns, data=_tars(home))
    old = read_labels(home / "labels")
    _assert_equal(new, old, texts=texts)
    assert {ending: (tar.size, tar.sha256) for ending, tar in new.shards.sources.items()} == {
        ending: (tar.size, tar.sha256) for ending, tar in old.shards.sources.items()
    }
    assert not list(tmp_path.glob(".new*.rows"))


def test_the_order_of_the_rows_and_the_blocks_do_not_matter(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_buckets, "ROWS_PER_BUCKET", 10)
    monkeypatch.setattr("clip_negatives.dataset.assignments.ROWS_AT_ONCE", 7)
    table, folders = _table(home), []
    for number, rows in enumerate((table, table.sort_by("key"))):
        path = _write(rows, tmp_path / f"{number}.parquet")
        folders.append(write_given_labels(str(path), _centroids(home), tmp_path / f"labels-{number}"))
    first, second = ({file.name: file.read_bytes() for file in folder.path.rglob("*.parquet")} for folder in folders)
    assert first == second
    assert clusters_section(folders[0].manifest) == clusters_section(folders[1].manifest)
    _assert_equal(folders[0], read_labels(home / "labels"), texts=False)


def test_other_labels_are_other_clusters(home: Path, tmp_path: Path) -> None:
    """Two labels are exchanged, so that the numbers of samples stay."""
    table = _table(home)
    labels = table["image_label"].to_numpy().copy()
    other = int(np.flatnonzero(labels != labels[0])[0])
    labels[[0, other]] = labels[[other, 0]]
    changed = table.set_column(table.column_names.index("image_label"), "image_label", pa.array(labels))
    sections = []
    for number, rows in enumerate((table, changed)):
        path = _write(rows, tmp_path / f"{number}.parquet")
        sections.append(clusters_section(write_given_labels(str(path), _centroids(home), tmp_path / f"l{number}").manifest))
    assert sections[0]["content"] == sections[1]["content"]
    assert sections[0]["assignments"] != sections[1]["assignments"]


@pytest.mark.parametrize(
    ("change", "columns"),
    [
        (lambda table: table.rename_columns(["url", "name", "text", "i", "t"]),
         AssignmentColumns(key="name", shard="url", image_label="i", text_label="t")),
        (lambda table: table.append_column("uid", pa.compute.binary_join_element_wise(table["shard"], table["key"], "/")),
         AssignmentColumns(id="uid")),
        (lambda table: table.set_column(3, "image_label", table["image_label"].cast(pa.uint8())), AssignmentColumns()),
        (lambda table: table.set_column(0, "shard", table["shard"].dictionary_encode()), AssignmentColumns()),
    ],
    ids=["named", "id", "uint8", "categories"],
)  # fmt: skip
def test_forms_of_columns(home: Path, tmp_path: Path, change: Any, columns: AssignmentColumns) -> None:
    path = _write(change(_table(home)), tmp_path / "table.parquet")
    _assert_equal(
        write_given_labels(str(path), _centroids(home), tmp_path / "new", columns), read_labels(home / "labels"), texts=False
    )


def test_partitioned_by_cluster(home: Path, tmp_path: Path) -> None:
    """A folder such as image_label=3 names the cluster of all samples in it."""
    table = _table(home)
    for label in range(K):
        folder = tmp_path / "table" / f"image_label={label}"
        folder.mkdir(parents=True)
        rows = table.filter(pa.compute.equal(table["image_label"], label)).drop_columns("image_label")
        _write(rows, folder / "part.parquet")
    new = write_given_labels(str(tmp_path / "table"), _centroids(home), tmp_path / "new")
    _assert_equal(new, read_labels(home / "labels"), texts=False)


def test_key_that_tells_the_tar(tmp_path: Path) -> None:
    keys = ["000010001", "000020001", "000010002"]
    path = _write(pa.table({"key": keys, "image_label": [0, 1, 1], "text_label": [1, 0, 0]}), tmp_path / "table.csv")
    np.save(tmp_path / "c.npy", np.eye(2))
    columns = AssignmentColumns(shard_pattern="{key:.5}.tar")
    new = write_given_labels(str(path), f"{tmp_path / 'c.npy'},{tmp_path / 'c.npy'}", tmp_path / "new", columns)
    assert new.shards.of("00001.tar") == {"000010001": (0, 1, ""), "000010002": (1, 0, "")}
    assert new.shards.of("s3://bucket/00002.tar") == {"000020001": (1, 0, "")}


def test_clusters_without_samples_are_left_out(home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Centroid 0 is new and has no sample; lengths of centroids do not matter for the similarities."""
    table = _table(home)
    path = _write(table.set_column(3, "image_label", pa.compute.add(table["image_label"], 1)), tmp_path / "table.parquet")
    image = np.load(home / "image.npy")
    np.save(tmp_path / "image.npy", np.concatenate([np.zeros_like(image[:1]), image]))
    new = write_given_labels(str(path), f"{tmp_path / 'image.npy'},{home / 'text.npy'}", tmp_path / "new")
    _assert_equal(new, read_labels(home / "labels"), texts=False)
    assert f"1 of {K + 1} image clusters have no sample" in caplog.text


def test_centroids_of_any_length(home: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", np.load(home / "image.npy").astype(np.float64) * 8)
    new = write_given_labels(str(home / "table.parquet"), f"{tmp_path / 'image.npy'},{home / 'text.npy'}", tmp_path / "new")
    torch.testing.assert_close(new.clusters.image_similarity, read_labels(home / "labels").clusters.image_similarity)


def _run(home: Path, tmp_path: Path, *arguments: str, table: Path | None = None, centroids: str = "") -> Result:
    given = ["--from", str(table or home / "table.parquet"), "--centroids", centroids or _centroids(home)]
    return CliRunner().invoke(main, ["labels", str(tmp_path / "out" / "new"), *given, *arguments])


def test_no_similarities_are_computed(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They take minutes for 100,000 clusters, and a labels folder does not store them."""

    def fail(*_: object) -> None:
        raise AssertionError

    for module in ("clusters_parts", "labels_folder"):
        monkeypatch.setattr(f"clip_negatives.storage.{module}.similarities", fail)
    assert _run(home, tmp_path).exit_code == 0
    labels = write_labels(home / "clusters", tmp_path / "labels")
    with pytest.raises(AssertionError):
        _ = labels.clusters


def test_command(home: Path, tmp_path: Path) -> None:
    done = _run(home, tmp_path, "--data", _tars(home), "--caption-key", "text")
    assert done.exit_code == 0, done.output
    assert f"labels of {N} samples in {SHARDS} shards" in done.stdout
    assert "Next: clip-negatives train --clusters" in done.stderr
    _assert_equal(read_labels(tmp_path / "out" / "new"), read_labels(home / "labels"), texts=True)


def _with(name: str, values: Any) -> Any:
    return lambda table: table.set_column(table.column_names.index(name), name, values(table[name]))


def _float(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(pa.float64())


def _first(value: Any) -> Any:
    return lambda column: pa.array([value, *column.to_pylist()[1:]], column.type)


@pytest.mark.parametrize(
    ("change", "arguments", "words"),
    [
        (lambda t: t.drop_columns("key"), [], r"no column '__key__' \(columns: shard, text, .*--key-column.*--id-column"),
        (lambda t: t.drop_columns("shard"), [], r"no column 'shard' .*--shard-column, --shard-pattern"),
        (lambda t: t.drop_columns("text_label"), [], r"no column 'text_label' \(columns: .*--text-label-column"),
        (None, ["--image-label-column", "cluster"], r"no column 'cluster' \(columns: .*--image-label-column"),
        (None, ["--id-column", "key", "--key-column", "key"], "--id-column and --key-column both name"),
        (None, ["--shard-column", "shard", "--shard-pattern", "{key}.tar"], "--shard-pattern and --shard-column both"),
        (None, ["--id-column", "text"], "does not name a tar and a key"),
        (None, ["--shard-pattern", "x.tar"], r"--shard-pattern must contain \{key\}"),
        (_with("image_label", _first(K)), [], rf"the image cluster {K} \(column image_label\), but .*image.npy has {K} rows"),
        (_with("text_label", _first(-1)), [], "has the text cluster -1 .*Leave out the rows"),
        (_with("text_label", _first(None)), [], "'text_label' of .* has missing values"),
        (_with("text_label", _float), [], "'text_label' of .* has the type double"),
        (_with("key", lambda column: pa.array(range(N))), [], "'key' of .* has the type int64.*leading zeros"),
        (_with("key", _first("")), [], "'key' of .* has missing values"),
        (_with("shard", lambda column: pa.array(["00000"] * N)), [], "names the tar '00000', but names of tars end in .tar"),
        (_with("shard", lambda column: pa.array([f"http://a/0.tar?{row % 2}" for row in range(N)])), [], "two names"),
        (lambda t: pa.concat_tables([t, t.slice(0, 1)]), [], "several rows for the key"),
        (lambda t: t.slice(0, 0), [], "has no rows"),
        (lambda t: t.append_column("key", t["key"]), [], "duplicate field names"),
        (lambda t: t.filter(pa.compute.not_equal(t["shard"], t["shard"][0])), ["data"], "has no sample of the tar"),
    ],
)  # fmt: skip
def test_tables_that_cannot_be_used(home: Path, tmp_path: Path, change: Any, arguments: list[str], words: str) -> None:
    table = home / "table.parquet" if change is None else _write(change(_table(home)), tmp_path / "table.parquet")
    extra = ["--data", _tars(home)] if arguments == ["data"] else arguments
    _assert_refused(_run(home, tmp_path, *extra, table=table), words, tmp_path)


def _assert_refused(done: Result, words: str, tmp_path: Path) -> None:
    assert (done.exit_code, done.stdout) == (2, ""), done.output
    assert re.search(words, done.stderr), done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.output
    assert not [path for path in (tmp_path / "out").glob("*") if not path.name.endswith(".lock")]


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.full((K, 3), np.nan), "Row 0 of .*c.npy has NaN or infinity"),
        (np.full((K, 3), 1e300), "Row 0 of .*c.npy has NaN or infinity"),
        (np.zeros((K, 3)), "The centroid of image cluster 0 is zero"),
        (np.ones((K - 1, 3)), f"but .*c.npy has {K - 1} rows"),
        (np.ones(K), "c.npy has values of type float64 and the shape"),
        (np.ones((K, 3), np.int64), "c.npy has values of type int64"),
    ],
)
def test_centroids_that_cannot_be_used(home: Path, tmp_path: Path, array: Any, words: str) -> None:
    np.save(tmp_path / "c.npy", array)
    _assert_refused(_run(home, tmp_path, centroids=f"{tmp_path / 'c.npy'},{home / 'text.npy'}"), words, tmp_path)


def test_an_older_labels_folder_stays_after_an_error(home: Path, tmp_path: Path) -> None:
    assert _run(home, tmp_path).exit_code == 0
    table = _table(home)
    path = _write(pa.concat_tables([table, table.slice(0, 1)]), tmp_path / "table.parquet")
    assert _run(home, tmp_path, table=path).exit_code == 2
    _assert_equal(read_labels(tmp_path / "out" / "new"), read_labels(home / "labels"), texts=False)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["new"]


def test_tars_that_the_data_lack(home: Path, tmp_path: Path) -> None:
    first = str(home / "pairs-000000.tar")
    _assert_refused(_run(home, tmp_path, "--data", first), r"--data lacks the tar \S+ and 2 more of the table", tmp_path)
    _assert_refused(_run(home, tmp_path, "--data", f"{first}::{first}"), "--data names two tars pairs-000000.tar", tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("table.parquet", b"PAR1 and no more", "The table .* cannot be read"),
        ("table.csv", b"", "is not a csv file"),
        ("table.csv", b"shard,key,image_label,text_label\n0.tar,0001,x,0\n", "The table .* cannot be read: .*int64"),
        ("table.csv", b"shard,key,image_label,text_label\n0.tar,\xff,1,0\n", "The table .* cannot be read: .*UTF8"),
        ("table.txt", b"x", r"does not end in \.parquet, "),
        ("missing.parquet", None, r"missing\.parquet does not exist"),
    ],
)
def test_files_that_cannot_be_read(home: Path, tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    _assert_refused(_run(home, tmp_path, table=tmp_path / name), words, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["clusters", "new", "--from", "t.parquet", "--centroids", "a.npy,b.npy"], "--from takes the place of CLUSTERS"),
        (["new", "--from", "t.parquet"], "--from needs --centroids"),
        (["clusters", "new", "--caption-key", "text"], "--caption-key needs --from"),
        (["clusters"], "Missing argument 'OUTPUT'"),
        (["clusters", "new", "more"], "unexpected extra argument"),
        ([], "Missing argument"),
    ],
)
def test_usage(arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(main, ["labels", *arguments])
    assert done.exit_code == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
