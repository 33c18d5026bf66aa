"""The report on a clusters folder, read as HTML."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from bs4 import BeautifulSoup, Tag

from clip_negatives import ClustersFolder, write_clusters
from clip_negatives.dataset import open_pairs
from clip_negatives.errors import ArtifactError, ClipNegativesError, DataError, InputError, UnknownNameError
from clip_negatives.pipelines.prepare import prepare
from clip_negatives.pipelines.recipe import Recipe
from clip_negatives.printing import printable
from clip_negatives.report import write_inspection
from clip_negatives.storage.clusters_folder import read_clusters
from tests.pairs import write_csv, write_tar, write_tars

from .conftest import HOSTILE, N


def read(page: Path) -> BeautifulSoup:
    return BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")


def words(part: Tag | BeautifulSoup) -> str:
    return " ".join(part.get_text(" ").split())


def test_the_page_has_its_parts_in_order(page: Path) -> None:
    html = read(page)
    assert [heading.get_text() for heading in html.find_all("h2")] == [
        "Summary",
        "Clusters",
        "Similarity and weights",
        "Pairs",
        "Other choices",
    ]
    levels = [int(heading.name[1]) for heading in html.find_all(re.compile("^h[1-6]$"))]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    links = [link["href"][1:] for link in html.nav.find_all("a")]
    assert links == [section["id"] for section in html.main.find_all("section", recursive=False)]
    assert len(html.select("figure.plot")) == 10
    assert len(html.select("article.card")) == 12  # 6 clusters of images, 6 of texts
    assert len(html.select('.pair[data-kind="generated"]')) == 40
    assert len(html.select('.pair[data-kind="lowest"]')) == 40


def test_what_is_shown_has_a_text_alternative(page: Path) -> None:
    html = read(page)
    drawings = html.select('svg[role="img"], span.none[role="img"]')
    assert len(drawings) > 150
    assert all(drawing["aria-label"].strip() for drawing in drawings)
    for table in html.find_all("table"):
        assert table.caption.get_text(strip=True)
        assert all(head["scope"] in ("row", "col") for head in table.find_all("th"))


def test_texts_are_escaped_and_nothing_is_loaded(page: Path) -> None:
    text, html = page.read_text(encoding="utf-8"), read(page)
    shown = {part.get_text() for part in html.select(".pair .text")}
    assert printable(HOSTILE) in shown
    assert len(html.find_all("script")) == 1
    assert "alert(1)</script>" not in text
    assert not html.find_all("b")
    for tag in html.find_all(True):
        for name in ("src", "href", "xlink:href", "action", "data"):
            if name in tag.attrs:
                assert tag[name].startswith(("#", "data:")), tag
    assert not re.search(r"@import|url\((?!#)", text)


def test_control_characters_are_shown_and_directions_of_texts_are_isolated(page: Path) -> None:
    text, html = page.read_text(encoding="utf-8"), read(page)
    assert all(char.isprintable() or char in "\n\N{NO-BREAK SPACE}\N{ZERO WIDTH JOINER}" for char in text)
    for part in html.select("span.text"):
        assert [child.name for child in part.children] == ["bdi"]
    assert "\\x1b[2J \\u202eevil \\x07 مرحبا" in words(html)
    assert len(html.select("td bdi + bdi")) > 5  # the texts of two clusters in a cell


def test_every_id_is_there_once_and_every_reference_has_one(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    ids = Counter(re.findall(r'\sid="([^"]+)"', text))
    assert [name for name, times in ids.items() if times > 1] == []
    referred = re.findall(r'(?:xlink:href|href)="#([^"]+)"|url\(#([^)]+)\)|aria-labelledby="([^"]+)"', text)
    assert {name for found in referred for name in found if name} <= set(ids)


def test_no_colour_of_the_drawing_is_left(page: Path) -> None:
    drawings = "".join(str(drawing) for drawing in read(page).select("figure.plot > svg"))
    assert "#0101" not in drawings
    assert "#0202" not in drawings
    assert "var(--ink)" in drawings
    assert "DejaVu" not in drawings


def test_each_picture_is_embedded_once(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    pictures = re.findall(r"data:image/webp;base64,[\w+/=]+", text)
    assert 0 < len(pictures) <= N
    assert len(set(pictures)) == len(pictures)
    assert text.count("<use href=") > len(pictures)


def test_what_is_written_is_said(folder: ClustersFolder, page: Path, tmp_path: Path) -> None:
    written = write_inspection(folder, tmp_path / "report", batch_size=32, pairs=40)
    assert written.page == tmp_path / "report" / "index.html"
    assert written.size == written.page.stat().st_size
    assert written.missing == 0
    about = json.loads((tmp_path / "report" / "report.json").read_text())
    assert about["batch_size"] == 32
    assert about["pictures"] == written.pictures
    assert sorted(item.name for item in tmp_path.iterdir()) == ["report"]
    # The same call gives the same page.
    assert written.page.read_bytes() == page.read_bytes()


def test_one_cluster_of_all_without_features_and_with_plain_batches(folder: ClustersFolder, tmp_path: Path) -> None:
    image = folder.clusters.image
    one = dataclasses.replace(image, labels=torch.zeros(N, dtype=torch.int64), centroids=image.centroids[:1])
    bare = {"image_similarity": torch.ones(1, 1), "image_features": None, "text_features": None}
    clusters = dataclasses.replace(folder.clusters, image=one, **bare)
    options = {"batch_size": 32, "sampler": "in_batch", "weighting": "uniform"}
    for _ in range(2):  # an older report is replaced
        html = read(write_inspection(dataclasses.replace(folder, clusters=clusters), tmp_path / "r", **options).page)
    assert "1 of 1 cluster:" in words(html)
    assert "so the first members are shown" in words(html)
    assert "Run clip-negatives prepare --keep-features" in words(html)


def test_removed_pairs_are_shown_where_the_weighting_removes(folder: ClustersFolder, tmp_path: Path) -> None:
    weighting = "weighted_infonce:text_beta=0,remove=true"
    html = read(write_inspection(folder, tmp_path / "r", batch_size=32, pairs=5, weighting=weighting).page)
    removed = html.select('.pair[data-kind="removed"]')
    assert len(removed) == 5
    assert all("weight removed" in words(pair) for pair in removed)
    assert "Removed as false negatives" in words(html)


def test_images_that_are_gone_have_a_placeholder(folder: ClustersFolder, tmp_path: Path) -> None:
    paths = folder.samples["image"].to_pylist()
    (tmp_path / "broken.png").write_bytes(b"no image")
    paths[0], paths[1] = str(tmp_path / "broken.png"), str(tmp_path / "gone.png")
    samples = folder.samples.set_column(folder.samples.column_names.index("image"), "image", [paths])
    bad = dataclasses.replace(folder, samples=samples)
    written = write_inspection(bad, tmp_path / "r", batch_size=32, pairs=64)
    assert written.missing == 2
    html = read(written.page)
    assert "2 of 64 images could not be read" in words(html)
    assert all("unavailable" in part["aria-label"] for part in html.select(".thumb.none"))
    assert html.select(".thumb.none")


def test_data_with_other_images_are_refused(tmp_path: Path) -> None:
    file = write_csv(tmp_path, N)
    folder = prepare(open_pairs(file), tmp_path / "clusters", Recipe(clusterer="kmeans:n_clusters=6"), progress=False)
    lines = file.read_text().splitlines(keepends=True)
    first, second = (line.split("\t") for line in lines[1:3])
    wrong = ["\t".join([second[0], *first[1:]]), "\t".join([first[0], *second[1:]])]
    (tmp_path / "wrong.csv").write_text("".join([lines[0], *wrong, *lines[3:]]))
    with pytest.raises(DataError, match="are not the data of the clusters"):
        write_inspection(folder, tmp_path / "r", source=open_pairs(tmp_path / "wrong.csv"), batch_size=32)


def test_images_and_tars_that_changed_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = Recipe(clusterer="kmeans:n_clusters=6")
    images = prepare(open_pairs(write_csv(tmp_path, N)), tmp_path / "clusters", recipe, progress=False)
    tars = write_tars(tmp_path, N)
    shards = prepare(open_pairs(tars), tmp_path / "shards", recipe, progress=False)
    for folder, source in ((images, None), (shards, open_pairs(tars))):
        write_inspection(folder, tmp_path / "r", source=source, batch_size=32, pairs=5)
    assert not caplog.text
    for file in (Path(images.samples["image"][0].as_py()), tmp_path / "pairs-000000.tar"):
        file.write_bytes(file.read_bytes() + b"0")
    write_inspection(images, tmp_path / "r", batch_size=32, pairs=5)
    assert "the page shows files as they are now. The image" in caplog.text
    write_inspection(shards, tmp_path / "r", source=open_pairs(tars), batch_size=32, pairs=5)
    assert "the page shows files as they are now. The shard" in caplog.text


def test_data_in_tars(folder: ClustersFolder, tmp_path: Path) -> None:
    source = open_pairs(write_tars(tmp_path, N))
    columns = {"key": list(source.keys), "text": list(source.texts)}
    import pyarrow as pa

    write_clusters(tmp_path / "clusters", folder.clusters, pa.table(columns), {})
    tars = read_clusters(tmp_path / "clusters")
    without = read(write_inspection(tars, tmp_path / "r", batch_size=32, pairs=5).page)
    assert "--data" in words(without)
    assert not without.find_all("symbol")
    assert "only equal texts are known" in words(without)
    with_images = write_inspection(tars, tmp_path / "r", source=source, batch_size=32, pairs=5)
    assert with_images.missing == 0
    assert read(with_images.page).find_all("symbol")
    other = write_csv(tmp_path / "other", 10)
    with pytest.raises(DataError, match=r"source= \(10 pairs\) are not the data of the clusters in .* \(64 pairs\)"):
        write_inspection(tars, tmp_path / "r", source=open_pairs(other), batch_size=32)


def test_data_in_tars_with_broken_samples(tmp_path: Path) -> None:
    tars = write_tars(tmp_path, N)
    broken = write_tar(tmp_path / "broken.tar", {"bad.png": b"no image", "bad.txt": b"text"})
    source = open_pairs(f"{broken}::{tars}")
    recipe = Recipe(clusterer="kmeans:n_clusters=8")
    folder = prepare(source, tmp_path / "clusters", recipe, progress=False, max_lost=0.02)
    assert folder.broken.select(["key", "reason"]).to_pylist() == [{"key": "bad", "reason": "the image cannot be read"}]
    written = write_inspection(folder, tmp_path / "r", source=source, batch_size=32, pairs=5)
    assert written.missing == 0
    assert read(written.page).find_all("symbol")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 65}, InputError, r"within 2 \.\. 64"),
        ({"pairs": 0}, InputError, "pairs= must be at least 1"),
        ({"clusters_shown": 0}, InputError, "clusters_shown= must be at least 1"),
        ({"sampler": "in_bach"}, UnknownNameError, "Did you mean 'in_batch'"),
        ({"weighting": "glofnd"}, InputError, "weights at each step"),
    ],
)
def test_wrong_options(
    folder: ClustersFolder, tmp_path: Path, options: dict[str, object], error: type[ClipNegativesError], message: str
) -> None:
    with pytest.raises(error, match=message):
        write_inspection(folder, tmp_path / "r", **{"batch_size": 32, **options})
    assert not (tmp_path / "r").exists()


def test_something_else_is_not_replaced(folder: ClustersFolder, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<p>a site of somebody</p>")
    with pytest.raises(ArtifactError, match=r"is not a report folder: it has files, but no report\.json"):
        write_inspection(folder, tmp_path, batch_size=32)
    assert (tmp_path / "index.html").read_text() == "<p>a site of somebody</p>"
