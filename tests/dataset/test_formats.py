"""Tables of every kind give the same pairs; columns are found, and what cannot be read is named."""

from __future__ import annotations

import gzip
import json
import os
import re
from pathlib import Path

import datasets
import pandas as pd
import pytest

from clip_negatives import Columns
from clip_negatives.dataset import dataset_pairs, open_pairs, open_table
from clip_negatives.dataset.columns import found_columns
from clip_negatives.dataset.formats import kind_of
from clip_negatives.errors import ArtifactError, DataError
from clip_negatives.pipelines.prepare import prepare
from clip_negatives.pipelines.recipe import Recipe
from clip_negatives.training.same_files import check_embedded_images
from tests.pairs import write_csv, write_table

N = 40
KINDS = ("csv", "csv.gz", "parquet", "jsonl", "imagefolder", "datasets", "embedded")
RECIPE = Recipe(clusterer="kmeans:n_clusters=4", columns=Columns(group="item"))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_pairs_and_the_clusters_of_the_csv_file(kind: str, tmp_path: Path) -> None:
    first = open_table(write_csv(tmp_path / "csv", N), Columns(group="item"))
    other = open_table(write_table(tmp_path / "other", kind, N), Columns(group="item"))
    assert (other.keys, other.texts, other.groups) == (first.keys, first.texts, first.groups)
    for ours, theirs in zip(other.images(0, N), first.images(0, N), strict=True):
        assert ours.tobytes() == theirs.tobytes()
    one, two = (prepare(pairs, tmp_path / name, RECIPE, progress=False) for pairs, name in ((first, "a"), (other, "b")))
    for modality in ("image", "text"):
        assert getattr(one.clusters, modality).labels.equal(getattr(two.clusters, modality).labels)


def test_a_dataset_in_memory_and_its_selection(tmp_path: Path) -> None:
    whole = datasets.load_from_disk(str(write_table(tmp_path, "datasets", N)))
    pairs = dataset_pairs(whole.select([5, 3, 3]))
    assert list(pairs.texts) == [whole[row]["caption"] for row in (5, 3, 3)]
    assert [image.tobytes() for image in pairs.images(0, 3)] == [
        whole[row]["image"].convert("RGB").tobytes() for row in (5, 3, 3)
    ]
    folder = prepare(whole, tmp_path / "clusters", Recipe(clusterer="kmeans:n_clusters=4"), progress=False)
    assert folder.samples["text"].to_pylist() == whole["caption"][:]
    assert "image" not in folder.samples.column_names


def test_a_class_is_read_by_its_name_and_splits_are_named() -> None:
    features = datasets.Features({"file": datasets.Value("string"), "name": datasets.ClassLabel(names=["cat", "dog"])})
    dataset = datasets.Dataset.from_dict({"file": ["a.png", "b.png"], "name": [1, 0]}, features=features)
    assert list(dataset_pairs(dataset).texts) == ["dog", "cat"]
    with pytest.raises(DataError, match=r"has several splits \(train, test\)\. Name one, such as dataset\['train'\]"):
        dataset_pairs(datasets.DatasetDict({"train": dataset, "test": dataset}))


@pytest.mark.parametrize("separator", ["\t", ",", ";", "|"])
def test_the_separator_is_found(separator: str, tmp_path: Path) -> None:
    assert len(open_table(write_csv(tmp_path, 3, separator=separator))) == 3


@pytest.mark.parametrize(
    ("names", "image", "text"),
    [
        (["image_path", "caption", "sku"], "image_path", "caption"),
        (["Image Path", "Product-Name"], "Image Path", "Product-Name"),
        (["filepath", "title", "url", "description"], "filepath", "title"),
        (["id", "url", "description"], "url", "description"),
    ],
)
def test_columns_are_found_by_common_names(names: list[str], image: str, text: str) -> None:
    assert found_columns(Columns(), names, "a.csv") == {"image": image, "text": text}


@pytest.mark.parametrize(
    ("names", "columns", "fault"),
    [
        (["image", "url", "text"], Columns(), r"several columns that may be the image \(columns: 'image', 'url', 'text'\)"),
        (["image", "a"], Columns(), r"no column with a common name of the text .* Name one with Columns\(text="),
        (["image", "text"], Columns(text="words"), r"no column 'words' \(columns: 'image', 'text'\)\. Correct Columns\(text="),
        (["filepath", "title"], Columns(group="item"), r"no column 'item'.*Correct Columns\(group="),
        (["img/0.png", "a cat"], Columns(), r"Its first line seems to be a pair: .* Add it\."),
        (["img/0.png\ta cat", " sitting"], Columns(), r"Its first line seems to be a pair"),
    ],
)
def test_an_ambiguous_or_missing_column_is_an_error(names: list[str], columns: Columns, fault: str) -> None:
    with pytest.raises(DataError, match=rf"^a\.csv has .*{fault}"):
        found_columns(columns, names, "a.csv")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "datasets"])
def test_missing_texts_and_groups_are_missing_in_every_kind(kind: str, tmp_path: Path) -> None:
    rows = [("a.png", "x", "1"), ("b.png", None, None), ("c.png", "NA", "null"), ("d.png", "", ""), ("e.png", "x", "1")]
    frame = pd.DataFrame(rows, columns=["image", "text", "item"])
    file = tmp_path / f"pairs.{kind}"
    if kind == "csv":
        frame.to_csv(file, index=False)
    elif kind == "jsonl":
        frame.to_json(file, orient="records", lines=True)
    elif kind == "parquet":
        frame.to_parquet(file)
    else:
        datasets.Dataset.from_pandas(frame).save_to_disk(file)
    pairs = open_table(file, Columns(group="item"))
    assert list(pairs.texts) == ["x", "nan", "nan", "nan", "x"]
    assert [bool(group) for group in pairs.groups or ()] == [True, False, False, False, True]


def test_integers_with_missing_values_stay_integers(tmp_path: Path) -> None:
    table = pd.DataFrame({"image": ["a", "b"], "text": ["x", "y"], "item": pd.array([7, None], dtype="Int64")})
    table.to_parquet(tmp_path / "pairs.parquet")
    assert open_table(tmp_path / "pairs.parquet", Columns(group="item")).groups == ["7", ""]


def test_a_file_in_another_encoding_names_its_line(tmp_path: Path) -> None:
    file = tmp_path / "pairs.csv"
    file.write_bytes("image,text\na.png,a\nb.png,caf\u00e9 noir\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"not in UTF-8: line 3 has the byte 0xe9 in 'b\.png,caf\u00e9 noir'.*iconv -f LATIN1"):
        open_table(file)
    file.write_text("image,text\na.png,a\n", encoding="utf-16")
    with pytest.raises(DataError, match=r"not in UTF-8 but in UTF-16\. Convert it with: iconv -f UTF-16"):
        open_table(file)
    with gzip.open(tmp_path / "pairs.csv.gz", "wb") as stream:
        stream.write(b"image,text\na.png,\xe9\n")
    with pytest.raises(DataError, match="line 2 has the byte 0xe9"):
        open_table(tmp_path / "pairs.csv.gz")


def test_several_captions_in_one_row_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"image": "a.png", "captions": ["a", "b"]}) + "\n")
    with pytest.raises(
        DataError, match=r"The column 'captions' of .* has a list in row 0, not a text\. Write one pair per row"
    ):
        open_table(tmp_path / "pairs.jsonl")


def test_a_line_that_is_no_json_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"image": "a.png", "text": "a"}\n{"image":\n')
    with pytest.raises(DataError, match=r"^Line 2 of .*pairs\.jsonl is not a JSON object"):
        open_table(tmp_path / "pairs.jsonl")


def test_damaged_parquet_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "pairs.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"pairs\.parquet is not parquet"):
        open_table(tmp_path / "pairs.parquet")


def test_a_folder_of_parquet_files_is_one_table(tmp_path: Path) -> None:
    frame = pd.read_csv(write_csv(tmp_path, 6), sep="\t")
    (tmp_path / "parts").mkdir()
    for part in range(2):
        frame[part * 3 : part * 3 + 3].to_parquet(tmp_path / "parts" / f"part-{part}.parquet")
    assert list(open_table(tmp_path / "parts").texts) == list(frame["title"])


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        ((), "is a folder without metadata.csv"),
        (("0.tar",), "is a folder of tars. Name the tars"),
        (
            ("dataset_dict.json", "train/state.json", "test/state.json"),
            r"with splits \(test, train\)\. Name one, such as .*/train",
        ),
        (("metadata.csv", "metadata.jsonl"), "has metadata.csv and metadata.jsonl. Keep one"),
    ],
)
def test_a_folder_that_cannot_be_read_says_why(files: tuple[str, ...], fault: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=fault):
        open_table(tmp_path)


@pytest.mark.parametrize(
    ("name", "kind"), [("a.CSV", "csv"), ("a.ndjson.gz", "jsonl"), ("s3://b/a.pq", "parquet"), ("a.tar", "webdataset")]
)
def test_the_ending_gives_the_kind(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_an_unknown_ending_or_kind_is_an_error() -> None:
    for name in ("pairs.txt", "a.tar.gz", "pairs"):
        with pytest.raises(DataError, match=rf"{re.escape(name)} does not end in \.csv"):
            kind_of(name)
    with pytest.raises(DataError, match="dataset_type= must be auto, csv"):
        open_pairs("pairs.csv", dataset_type="excel")


def test_changed_images_in_a_table_are_noticed(tmp_path: Path) -> None:
    whole = datasets.load_from_disk(str(write_table(tmp_path, "datasets", N)))
    pairs = dataset_pairs(whole)
    folder = prepare(pairs, tmp_path / "clusters", Recipe(clusterer="kmeans:n_clusters=4"), progress=False)
    check_embedded_images(folder, pairs.stored)  # type: ignore[arg-type]
    same_size = whole.cast_column("image", datasets.Image(decode=False)).map(_with_other_last_byte)
    longer = whole.cast_column("image", datasets.Image(decode=False)).map(_with_more_bytes)
    for changed, fault in ((same_size, "at the same size"), (longer, r"has \d+ bytes, but had")):
        other = dataset_pairs(changed.cast_column("image", datasets.Image()))
        assert other.fingerprint() != pairs.fingerprint()
        assert other.identity()["images"] != pairs.identity()["images"]
        with pytest.raises(ArtifactError, match=rf"The image of row 0 .*{fault}"):
            check_embedded_images(folder, other.stored)  # type: ignore[arg-type]


def _with_other_last_byte(row: dict[str, dict[str, bytes]]) -> dict[str, dict[str, bytes | None]]:
    return {"image": {"bytes": row["image"]["bytes"][:-1] + b"?", "path": None}}


def _with_more_bytes(row: dict[str, dict[str, bytes]]) -> dict[str, dict[str, bytes | None]]:
    return {"image": {"bytes": row["image"]["bytes"] + b"?", "path": None}}


def test_a_damaged_image_in_a_table_is_named_with_its_row(tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    rows = {"image": [{"bytes": b"no image", "path": None}, None], "text": ["a", "b"]}
    pairs = dataset_pairs(datasets.Dataset.from_dict(rows, features=features))
    with pytest.raises(
        DataError, match=r"The image in column 'image' \(row 0 of the data set, counted from 0\) cannot be decoded"
    ):
        list(pairs.images(0, 1))
    with pytest.raises(DataError, match=r"Row 1 has no image in column 'image'"):
        list(pairs.images(1, 2))


def test_parts_of_a_parquet_folder_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for part in (1, 2, 10):
        frame = pd.DataFrame({"image": [f"{part}.png"], "text": [f"text {part}"]})
        frame.to_parquet(tmp_path / f"part_{part}.parquet")
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "_notes.parquet").write_text("no parquet")
    assert list(open_table(tmp_path).texts) == ["text 1", "text 2", "text 10"]
    (tmp_path / "more").mkdir()
    frame.to_parquet(tmp_path / "more" / "part_3.parquet")
    with pytest.raises(DataError, match=r"has parquet files in folders of its own, such as .*more/part_3\.parquet"):
        open_table(tmp_path)


def test_images_in_parquet_are_those_of_the_named_file_as_it_is(tmp_path: Path) -> None:
    whole = datasets.load_from_disk(str(write_table(tmp_path, "datasets", N)))
    file, other = tmp_path / "x[1].parquet", tmp_path / "x1.parquet"
    whole.select(range(8)).to_parquet(file)
    whole.select([30]).to_parquet(other)
    assert list(open_table(file).texts) == whole["caption"][:8]
    time = file.stat().st_mtime_ns
    whole.select([9, 8, 7]).to_parquet(file)
    os.utime(file, ns=(time, time))
    assert list(open_table(file).texts) == [whole[row]["caption"] for row in (9, 8, 7)]


def test_a_dataset_with_paths_of_images_is_known_by_them(tmp_path: Path) -> None:
    paths = list(open_table(write_csv(tmp_path, 6)).image_paths or ())
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    one, two = (
        dataset_pairs(datasets.Dataset.from_dict({"image": some, "text": list("abcdef")}, features=features))
        for some in (paths, paths[::-1])
    )
    assert one.image_paths == paths
    assert one.fingerprint() != two.fingerprint()
    assert one.identity()["images"] != two.identity()["images"]


@pytest.mark.parametrize("column", ["file_name", "image", "File Name"])
def test_images_of_a_folder_start_there_under_any_name_of_their_column(column: str, tmp_path: Path) -> None:
    images = write_table(tmp_path, "imagefolder", 3)
    frame = pd.read_csv(images / "metadata.csv").rename(columns={"file_name": column})
    frame.loc[2, column] = str(images / frame.loc[2, column])
    frame.to_csv(images / "metadata.csv", index=False)
    paths = open_table(images).image_paths
    assert paths is not None
    assert all(Path(path).parent == images for path in paths)


def test_rows_with_more_fields_than_the_header_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("image,text\n0.png,red, big\n1.png,blue, small\n")
    with pytest.raises(
        DataError, match=r"have more fields than its first line .* Put texts that contain ',' in quotation marks"
    ):
        open_table(tmp_path / "pairs.csv")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_long_numbers_of_groups_stay_different(kind: str, tmp_path: Path) -> None:
    items = [9007199254740992, 9007199254740993, None]
    frame = pd.DataFrame({"image": list("abc"), "text": list("xyz"), "item": pd.array(items, dtype="Int64")})
    file = tmp_path / f"pairs.{kind}"
    writers = {"csv": lambda: frame.to_csv(file, index=False), "parquet": lambda: frame.to_parquet(file)}
    lines = [json.dumps({"image": "a", "text": "x", "item": item}) for item in items]
    writers.get(kind, lambda: file.write_text("\n".join(lines)))()
    assert open_table(file, Columns(group="item")).groups == ["9007199254740992", "9007199254740993", ""]


def test_the_index_of_a_frame_is_a_column(tmp_path: Path) -> None:
    frame = pd.DataFrame({"image": ["a.png", "b.png"], "text": ["x", "y"], "item": ["1", "2"]})
    for column in frame:
        frame.set_index(column).to_parquet(tmp_path / "pairs.parquet")
        pairs = open_table(tmp_path / "pairs.parquet", Columns(group="item"))
        assert (list(pairs.texts), pairs.groups, pairs.image_paths) == (["x", "y"], ["1", "2"], ["a.png", "b.png"])


def test_what_is_no_label_is_a_missing_text_and_a_stream_is_refused() -> None:
    features = datasets.Features({"file": datasets.Value("string"), "name": datasets.ClassLabel(names=["cat", "dog"])})
    dataset = datasets.Dataset.from_dict({"file": ["a.png", "b.png"], "name": [-1, 0]}, features=features)
    assert list(dataset_pairs(dataset).texts) == ["nan", "cat"]
    with pytest.raises(DataError, match="is a stream, which has no rows by number"):
        dataset_pairs(dataset.to_iterable_dataset())


def test_a_file_that_is_not_parquet_says_so(tmp_path: Path) -> None:
    (tmp_path / "pairs.parquet").write_text("image,text\na.png,a\n")
    with pytest.raises(DataError, match=r"pairs\.parquet is not parquet: .* Correct the file\."):
        open_table(tmp_path / "pairs.parquet")


def test_jsonl_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"image": "a.png", "text": "a"}\n', encoding="utf-8-sig")
    assert list(open_table(tmp_path / "pairs.jsonl").texts) == ["a"]


def test_a_url_is_not_taken_for_a_file(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("image_url,text\nhttps://example.org/0.jpg,a\n")
    with pytest.raises(DataError, match=r"The image https://example\.org/0\.jpg .* is a URL, but images are read from files"):
        list(open_table(tmp_path / "pairs.csv").images(0, 1))


def test_a_column_with_another_case_is_suggested() -> None:
    with pytest.raises(DataError, match=r"no column 'SKU' .* Did you mean 'sku'\? Correct Columns\(group=\.\.\.\)\."):
        found_columns(Columns(group="SKU"), ["image", "text", "sku"], "a.csv")
