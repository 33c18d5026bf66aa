"""Clusters of precomputed features are the same as of encoded features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray

from clip_negatives import ClustersFolder, Columns, Recipe
from clip_negatives.cli import main
from clip_negatives.dataset import open_table
from clip_negatives.errors import ClipNegativesError, DataError, InputError
from clip_negatives.pipelines.prepare import prepare
from clip_negatives.storage.labels_folder import write_labels
from clip_negatives.storage.shards import ShardRows
from tests.pairs import listings, write_clip_retrieval, write_csv

N = 64
RECIPE = Recipe(clusterer="kmeans:n_clusters=6")
SIDES = ("image", "text")


@pytest.fixture(scope="module")
def csv_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a csv file of N listings."""
    return write_csv(tmp_path_factory.mktemp("data"), N)


@pytest.fixture(scope="module")
def encoded(csv_file: Path, tmp_path_factory: pytest.TempPathFactory) -> ClustersFolder:
    """Return a clusters folder with encoded features."""
    return prepare(csv_file, tmp_path_factory.mktemp("encoded") / "clusters", RECIPE, progress=False)


@pytest.fixture
def features(encoded: ClustersFolder) -> dict[str, NDArray[Any]]:
    """Return the encoded features."""
    return {side: getattr(encoded.clusters, f"{side}_features").numpy().copy() for side in SIDES}


def save(folder: Path, features: dict[str, NDArray[Any]]) -> str:
    """Write the features as two npy files, and return the value of --features."""
    folder.mkdir(exist_ok=True)
    for side, rows in features.items():
        np.save(folder / f"{side}.npy", rows)
    return ",".join(str(folder / f"{side}.npy") for side in SIDES)


def save_as_clip_retrieval(folder: Path, features: dict[str, NDArray[Any]], parts: int) -> Path:
    """Write the layout of clip-retrieval, with keys as img2dataset makes them: 16 samples per tar."""
    columns = {
        "image_path": [f"{row // 16:05d}{row % 16:04d}" for row in range(N)],
        "caption": [listing[1] for listing in listings(N)],
        "url": ["https://example.org/a.jpg"] * N,
    }
    return write_clip_retrieval(folder, features, columns, parts=parts)


def assert_same_labels(folder: ClustersFolder, encoded: ClustersFolder) -> None:
    """Assert that both folders have the same labels and texts."""
    for side in SIDES:
        assert torch.equal(getattr(folder.clusters, side).labels, getattr(encoded.clusters, side).labels)
    assert folder.samples["text"] == encoded.samples["text"]


def test_npy_files_give_the_labels_of_encoding(
    csv_file: Path, encoded: ClustersFolder, features: dict[str, NDArray[Any]], tmp_path: Path
) -> None:
    spec = save(tmp_path / "npy", features)
    folder = prepare(csv_file, tmp_path / "clusters", RECIPE, features=spec, progress=False)
    assert_same_labels(folder, encoded)
    assert folder.clusters.image_features is None
    assert folder.samples["image"] == encoded.samples["image"]
    manifest = folder.manifest
    assert (manifest["image_encoder"], manifest["text_encoder"], manifest["feature_dtype"]) == ("given", "given", "float32")
    [entry] = manifest["features"]["image"]
    assert entry["file"] == spec.split(",")[0]
    assert entry["bytes"] == Path(entry["file"]).stat().st_size
    assert sorted(item.name for item in tmp_path.iterdir()) == ["clusters", "npy"]


def test_scaled_features_and_parts_are_joined_once(
    csv_file: Path, encoded: ClustersFolder, features: dict[str, NDArray[Any]], tmp_path: Path
) -> None:
    scaled = {side: rows * np.linspace(1, 3, N, dtype=np.float32)[:, None] for side, rows in features.items()}
    spec = save(tmp_path / "npy", {**scaled, "text": features["text"]})
    folder = prepare(csv_file, tmp_path / "a", RECIPE, features=spec, keep_features=True, progress=False)
    for side in SIDES:
        stored = getattr(folder.clusters, f"{side}_features")
        torch.testing.assert_close(stored, torch.from_numpy(features[side]))
    assert torch.equal(folder.clusters.text_features, torch.from_numpy(features["text"]))  # type: ignore[arg-type]
    assert_same_labels(folder, encoded)


def test_folder_of_clip_retrieval(encoded: ClustersFolder, features: dict[str, NDArray[Any]], tmp_path: Path) -> None:
    """Eleven parts: the tenth stands after the second."""
    folder = save_as_clip_retrieval(tmp_path / "embeddings", features, parts=11)
    recipe = Recipe(clusterer=RECIPE.clusterer, columns=Columns(key="image_path", shard_pattern="tars/{key:.5}.tar"))
    made = prepare(folder, tmp_path / "clusters", recipe, features=folder, progress=False)
    assert_same_labels(made, encoded)
    assert made.samples.column_names == ["key", "text", "shard"]
    assert made.samples["shard"].to_pylist() == [f"tars/{row // 16:05d}.tar" for row in range(N)]
    assert made.samples["key"][17].as_py() == "000010001"
    assert [(source.file, source.size) for source in made.sources] == [(f"tars/{tar:05d}.tar", None) for tar in range(4)]
    rows = ShardRows.of(made)
    assert rows.row("elsewhere/00003.tar", "000030002") == 50
    assert [entry["file"] for entry in made.manifest["features"]["text"]][2].endswith("text_emb_2.npy")


def test_float16_stays_float16(csv_file: Path, features: dict[str, NDArray[Any]], tmp_path: Path) -> None:
    half = {side: rows.astype(np.float16) for side, rows in features.items()}
    made = prepare(csv_file, tmp_path / "clusters", RECIPE, features=save(tmp_path / "npy", half), keep_features=True)
    assert made.manifest["feature_dtype"] == "float16"
    assert torch.equal(made.clusters.image_features, torch.from_numpy(half["image"]))  # type: ignore[arg-type]


def test_other_layouts_of_npy_files(csv_file: Path, features: dict[str, NDArray[Any]], tmp_path: Path) -> None:
    """float64, big-endian, and columns first: none can be mapped as a tensor, all give the same features."""
    expected = torch.from_numpy(features["image"])
    layouts = (features["image"].astype(np.float64), features["image"].astype(">f4"), np.asfortranarray(features["image"]))
    for number, rows in enumerate(layouts):
        spec = save(tmp_path / "npy", {**features, "image": rows})
        options: dict[str, Any] = {"features": spec, "keep_features": True, "progress": False}
        made = prepare(csv_file, tmp_path / str(number), RECIPE, **options)
        assert made.clusters.image_features is not None
        torch.testing.assert_close(made.clusters.image_features, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("kind", ["list", "fixed", "datasets", "saved"])
def test_columns(encoded: ClustersFolder, features: dict[str, NDArray[Any]], tmp_path: Path, kind: str) -> None:
    datasets = pytest.importorskip("datasets")
    columns: dict[str, Any] = {"caption": [listing[1] for listing in listings(N)]}
    for side, rows in features.items():
        flat = pa.array(rows.ravel())
        lists = pa.FixedSizeListArray.from_arrays(flat, rows.shape[1]) if kind == "fixed" else pa.array(list(rows))
        columns[f"{side}_embedding"] = lists
    table = pa.table(columns)
    pq.write_table(table, tmp_path / "pairs.parquet", row_group_size=20)
    data = datasets.Dataset.from_parquet(str(tmp_path / "pairs.parquet"), cache_dir=str(tmp_path / "cache"))
    spec = "columns:image_embedding,text_embedding"
    data.save_to_disk(tmp_path / "saved")
    sources = {"datasets": data, "saved": tmp_path / "saved"}
    source = sources.get(kind, tmp_path / "pairs.parquet")
    made = prepare(source, tmp_path / "clusters", RECIPE, features=spec, progress=False)
    assert_same_labels(made, encoded)
    assert made.samples.column_names == ["key", "text"]
    assert all(Path(entry["file"]).stat().st_size == entry["bytes"] for entry in made.manifest["features"]["image"])
    assert made.manifest["features"]["image"] != []


def test_the_other_side_is_encoded(
    csv_file: Path, encoded: ClustersFolder, features: dict[str, NDArray[Any]], tmp_path: Path
) -> None:
    image, text = save(tmp_path / "npy", features).split(",")
    for spec, names in ((image, ("given", "tfidf:dim=64")), (f",{text}", ("pixels:size=16,dim=64", "given"))):
        made = prepare(csv_file, tmp_path / "clusters", RECIPE, features=spec, progress=False)
        assert_same_labels(made, encoded)
        assert (made.manifest["image_encoder"], made.manifest["text_encoder"]) == names


def test_images_are_not_opened(features: dict[str, NDArray[Any]], tmp_path: Path) -> None:
    pairs = pd.DataFrame({"url": ["https://example.org/0.jpg"] * N, "caption": [f"a text {row}" for row in range(N)]})
    pairs.to_csv(tmp_path / "pairs.csv", index=False)
    made = prepare(tmp_path / "pairs.csv", tmp_path / "a", RECIPE, features=save(tmp_path / "npy", features), progress=False)
    assert made.samples["image"][0].as_py() == "https://example.org/0.jpg"
    pairs[["caption"]].to_csv(tmp_path / "texts.csv", index=False)
    made = prepare(tmp_path / "texts.csv", tmp_path / "b", RECIPE, features=save(tmp_path / "npy", features), progress=False)
    assert made.samples.column_names == ["key", "text"]


def test_fingerprint_changes_with_the_files(csv_file: Path, features: dict[str, NDArray[Any]], tmp_path: Path) -> None:
    prints = set()
    for scale in (1, 1, 2):
        spec = save(tmp_path / "npy", {side: rows * np.float32(scale) for side, rows in features.items()})
        prints.add(prepare(csv_file, tmp_path / "clusters", RECIPE, features=spec, progress=False).manifest["data"])
    assert len(prints) == 3  # also a file that was written again counts as changed, as a tar does
    prints.add(prepare(csv_file, tmp_path / "clusters", RECIPE, features=spec, progress=False).manifest["data"])
    assert len(prints) == 3


def test_interrupted_run_continues(
    csv_file: Path, features: dict[str, NDArray[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = save(tmp_path / "npy", {side: rows * 2 for side, rows in features.items()})
    with monkeypatch.context() as patch:
        patch.setattr("clip_negatives.pipelines.prepare.cluster_together", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(csv_file, tmp_path / "clusters", RECIPE, features=spec, progress=False)
    with monkeypatch.context() as patch:
        patch.setattr("clip_negatives.features.given._checked", lambda *_: 1 / 0)  # all features have been copied
        folder = prepare(csv_file, tmp_path / "clusters", RECIPE, features=spec, progress=False)
    assert folder.clusters.n_samples == N


def test_wrong_features_are_named(csv_file: Path, features: dict[str, NDArray[Any]], tmp_path: Path) -> None:
    def with_row(row: int, value: float) -> NDArray[Any]:
        rows = features["image"].copy()
        rows[row] = value
        return rows

    cases: list[tuple[Any, str]] = [
        (features["image"][:-1], rf"image.npy has {N - 1} rows, but .*text.npy has {N}. Row i of both"),
        (with_row(7, float("nan")), r"^Row 7 of .*image.npy has NaN or infinity"),
        (with_row(8, float("inf")), r"^Row 8 of .*image.npy has NaN or infinity"),
        (with_row(9, 0.0), r"^Row 9 of .*image.npy is zero"),
        (features["image"].astype(np.int64), r"image.npy has values of type int64 .*not float16, float32 or float64"),
        (features["image"].ravel(), r"image.npy has values of type float32 and the shape \(\d+,\)"),
        (features["image"].astype(object), "image.npy cannot be mapped as an npy file"),
    ]
    for rows, message in cases:
        spec = save(tmp_path / "npy", {**features, "image": rows})
        with pytest.raises(DataError, match=message):
            prepare(csv_file, tmp_path / "clusters", RECIPE, features=spec, progress=False)
    short = {side: rows[:-1] for side, rows in features.items()}
    with pytest.raises(DataError, match=rf"image.npy has {N - 1} rows, but .*pairs.csv has {N}"):
        prepare(csv_file, tmp_path / "clusters", RECIPE, features=save(tmp_path / "npy", short), progress=False)
    assert not (tmp_path / "clusters").exists()


def test_damaged_files_and_wrong_specs_are_named(csv_file: Path, features: dict[str, NDArray[Any]], tmp_path: Path) -> None:
    image, text = save(tmp_path / "npy", features).split(",")
    (tmp_path / "cut.npy").write_bytes(Path(image).read_bytes()[:1000])
    np.save(tmp_path / "other.npy", features["image"][:, :-1])
    (tmp_path / "two").mkdir()
    for part, rows in enumerate((features["image"][:32], features["image"][32:, :-1])):
        np.save(tmp_path / "two" / f"{part}.npy", rows)
    cases: list[tuple[str, str]] = [
        (f"{tmp_path}/cut.npy,{text}", "cut.npy cannot be mapped as an npy file"),
        (f"{tmp_path}/absent.npy,{text}", "The npy file .*absent.npy does not exist"),
        (f"{tmp_path}/absent*.npy,{text}", r"No file matches .*absent\*.npy. Correct features="),
        (f"{tmp_path}/two/*.npy,{text}", r"two/1.npy has features of \d+ dimensions, but .*two/0.npy of \d+"),
        (f"{tmp_path}/absent", "absent does not exist. features= must be a folder of clip-retrieval"),
        (str(csv_file), "pairs.csv is neither a folder nor an .npy file"),
        (f"memory://absent/a.npy,{text}", "The npy file memory://absent/a.npy does not exist"),
        (str(tmp_path), "has neither img_emb/"),
        (",", "must be a folder of clip-retrieval, IMAGES.npy,TEXTS.npy or columns:IMAGE,TEXT, got ','"),
        ("columns:title,title", "pairs.csv cannot hold features in a column. Save it as parquet"),
    ]
    for spec, message in cases:
        with pytest.raises(DataError, match=message):
            prepare(csv_file, tmp_path / "clusters", RECIPE, features=spec, progress=False)


def test_wrong_columns_are_named(features: dict[str, NDArray[Any]], tmp_path: Path) -> None:
    ragged = [[1.0, 0.0]] * (N - 1) + [[1.0]]
    hole = [[1.0, 0.0], [1.0, None], *[[1.0, 0.0]] * (N - 2)]
    columns = {"caption": ["a"] * N, "emb": list(features["image"]), "ids": [[1, 2]] * N, "ragged": ragged, "hole": hole}
    pd.DataFrame(columns).to_parquet(tmp_path / "pairs.parquet")
    cases = [
        (
            "columns:embedding,emb",
            "has no column 'embedding' .columns: 'caption', 'emb', 'ids', 'ragged', 'hole'.. Correct features=",
        ),
        ("columns:ids,emb", "^The column 'ids' of .* has values of type list<.*int64>, not lists of floats"),
        ("columns:caption,emb", "^The column 'caption' of .* has values of type .*string"),
        ("columns:ragged,emb", f"^Row {N - 1} of the column 'ragged' of .* has 1 numbers, but other rows have 2"),
        ("columns:hole,emb", "^Row 1 of the column 'hole' of .* has a missing number"),
    ]
    for spec, message in cases:
        with pytest.raises(DataError, match=message):
            prepare(tmp_path / "pairs.parquet", tmp_path / "clusters", RECIPE, features=spec, progress=False)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (Columns(key="title"), "samples repeat, because keys of the table repeat"),
        (Columns(key="absent"), r"no column 'absent' .*Correct Columns\(key=...\)"),
        (Columns(shard="item"), r"Columns\(shard=...\) needs the keys of the samples"),
        (Columns(key="filepath", shard_pattern="{key:5}.tar"), "must contain {key} or {key:.5}"),
        (Columns(key="filepath", shard_pattern="{key}", shard="item"), "both name the tars"),
    ],
)
def test_wrong_keys_are_named(
    csv_file: Path, features: dict[str, NDArray[Any]], tmp_path: Path, columns: Columns, message: str
) -> None:
    frame = pd.read_csv(csv_file, sep="\t")
    frame.loc[1, "title"] = frame.loc[0, "title"]
    frame.to_csv(tmp_path / "pairs.csv", sep="\t", index=False)
    spec = save(tmp_path / "npy", features)
    with pytest.raises(ClipNegativesError, match=message):
        prepare(tmp_path / "pairs.csv", tmp_path / "a", Recipe(columns=columns), features=spec, progress=False)


def test_missing_texts_of_keyed_samples_are_no_text_in_common(features: dict[str, NDArray[Any]], tmp_path: Path) -> None:
    keys = [f"{row:09d}" for row in range(N)]
    frame = pd.DataFrame({"key": keys, "caption": [None, "NA", *(f"text {row}" for row in range(N - 2))]})
    frame.to_parquet(tmp_path / "pairs.parquet")
    recipe = Recipe(clusterer="kmeans:n_clusters=4", columns=Columns(key="key", shard_pattern="{key:.5}.tar"))
    spec = save(tmp_path / "npy", features)
    folder = prepare(tmp_path / "pairs.parquet", tmp_path / "clusters", recipe, features=spec, progress=False)
    assert folder.clusters.texts is not None
    assert len(folder.clusters.texts.unique()) == N


def test_keys_of_a_csv_keep_their_zeros(csv_file: Path, tmp_path: Path) -> None:
    frame = pd.read_csv(csv_file, sep="\t").assign(key=[f"{row:09d}" for row in range(N)])
    frame.to_csv(tmp_path / "pairs.csv", index=False)
    pairs = open_table(tmp_path / "pairs.csv", Columns(key="key"), images=False)
    assert pairs.keys[:2] == ["000000000", "000000001"]


def test_encoders_of_given_features_have_no_effect(csv_file: Path, features: dict[str, NDArray[Any]], tmp_path: Path) -> None:
    spec = save(tmp_path / "npy", features)
    for recipe in (Recipe(text_encoder="minilm"), Recipe(feature_dtype="float16")):
        with pytest.raises(InputError, match="has no effect, because features= has these features"):
            prepare(csv_file, tmp_path / "a", recipe, features=spec, progress=False)


def test_command_line(features: dict[str, NDArray[Any]], tmp_path: Path) -> None:
    folder = save_as_clip_retrieval(tmp_path / "embeddings", features, parts=2)
    command = ["prepare", str(folder), str(tmp_path / "clusters"), "--features", str(folder), "--clusterer", RECIPE.clusterer]
    result = CliRunner().invoke(main, [*command, "--key-column", "image_path", "--shard-pattern", "{key:.5}.tar"])
    assert result.exit_code == 0, result.output
    assert f"{N} pairs, 6 image clusters, 6 text clusters" in result.output
    files = json.loads((tmp_path / "clusters" / "manifest.json").read_text())["files"]
    assert sorted(files) == ["clusters.safetensors", "samples.parquet", "sources.parquet"]
    labels = write_labels(tmp_path / "clusters", tmp_path / "labels")
    assert len(labels.shards.files) == 4
    result = CliRunner().invoke(main, [*command[:4], f"{tmp_path}/absent.npy"])
    assert result.exit_code == 2
    assert "absent.npy does not exist" in result.output
