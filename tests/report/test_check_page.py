"""The page of a check: its text, and in headless Chromium sorting, searching, enlarging, and the map."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from playwright.sync_api import Browser, expect

from clip_negatives import ClustersFolder
from clip_negatives.checking import check
from clip_negatives.checking.truth import with_groups
from clip_negatives.errors import ArtifactError
from clip_negatives.printing import printable
from clip_negatives.report import write_check
from clip_negatives.report.page import LIBRARIES

from .conftest import COMMANDS, HOSTILE, N
from .test_browser import Watched, browser  # noqa: F401  (a fixture)


@pytest.fixture
def opened(browser: Browser, check_page: Path) -> Iterator[Watched]:  # noqa: F811
    watched = Watched(browser, check_page, viewport={"width": 1280, "height": 900}, color_scheme="light")
    yield watched
    watched.context.close()
    assert watched.messages == []
    assert all(url.startswith(("file://", "data:")) for url in watched.requests)


def rows_in(file: Path) -> list[str]:
    return file.read_text().splitlines()


def column(watched: Watched, number: int) -> list[float]:
    cells = watched.page.locator(f"#suspects-table tbody tr td:nth-child({number})").all_inner_texts()
    return [float(cell.replace(",", "")) for cell in cells]


def test_the_verdict_comes_first(check_page: Path) -> None:
    soup = BeautifulSoup(check_page.read_text(), "html.parser")
    headings = [heading.text for heading in soup.select("main h2")]
    assert headings[:6] == [
        "Are there false negatives?",
        "Are the features good enough?",
        "What to do?",
        "How sure is that?",
        "Suspect pairs",
        "Map",
    ]
    assert [block.text for block in soup.select("pre.command")] == COMMANDS
    assert len(soup.select("#suspects-table tbody tr")) == len(rows_in(check_page.parent / "suspects.csv")) - 1 > 0
    paths = [path.text for path in soup.select(".path")]
    assert all(".png" in path for path in paths)


def test_hostile_texts_are_texts(check_page: Path) -> None:
    soup = BeautifulSoup(check_page.read_text(), "html.parser")
    data = json.loads(soup.select_one("#map-data").text)
    assert any(text.startswith(printable(HOSTILE)[:40]) for text in data["texts"])
    assert "alert(1)</script>" not in check_page.read_text()


def test_sorting(opened: Watched) -> None:
    header = opened.page.locator("#suspects-table thead th", has_text="image")
    header.click()
    expect(header).to_have_attribute("aria-sort", "descending")
    assert column(opened, 2) == sorted(column(opened, 2), reverse=True)
    header.click()
    expect(header).to_have_attribute("aria-sort", "ascending")
    assert column(opened, 2) == sorted(column(opened, 2))
    lift = opened.page.locator("#suspects-table thead th", has_text="lift")
    lift.click()
    expect(lift).to_have_attribute("aria-sort", "descending")
    assert column(opened, 5) == sorted(column(opened, 5), reverse=True)


def test_searching_explains_an_empty_table(opened: Watched) -> None:
    opened.page.get_by_label("Search texts and paths").fill("no text has these words")
    assert opened.page.locator("#suspects-table tbody").inner_text() == "No pair matches the search. Clear it to see all pairs."
    opened.page.get_by_label("Search texts and paths").fill("")
    assert opened.page.locator("#suspects-table tbody tr .zoom").count() > 0


def test_pictures_are_enlarged(opened: Watched) -> None:
    page = opened.page
    small = page.locator("#suspects-table .zoom").first
    path = page.locator("#suspects-table .path").first.inner_text()
    before = small.bounding_box()
    small.focus()
    page.keyboard.press("Enter")
    large = page.locator("dialog svg use").bounding_box()
    assert before is not None
    assert large is not None
    assert large["width"] > 3 * before["width"]
    assert page.locator("dialog .path").inner_text() == path
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()


def test_the_map_is_filtered_by_cluster(opened: Watched) -> None:
    page, count = opened.page, opened.page.locator("#map-count")
    assert count.inner_text() == f"{N} of {N} samples."
    labels = page.locator("#cluster option").all_inner_texts()
    sizes = [int(label.split("(")[1].rstrip(")")) for label in labels[1:]]
    assert sum(sizes) == N
    page.locator("#cluster").select_option(index=1)
    assert count.inner_text() == f"{sizes[0]} of {N} samples."
    points = "Chart.getChart('map-canvas').data.datasets[0].data.length"
    assert page.evaluate(points) == sizes[0]
    page.get_by_role("radio", name="texts").check()
    assert count.inner_text() == f"{N} of {N} samples."
    colours = "Chart.getChart('map-canvas').data.datasets[0].pointBackgroundColor[0]"
    light = page.evaluate(colours)
    page.get_by_role("button", name="Dark theme").click()
    page.wait_for_function(f"{colours} !== '{light}'")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_numbers_are_visible_on_a_phone(browser: Browser, check_page: Path, theme: str) -> None:  # noqa: F811
    watched = Watched(browser, check_page, viewport={"width": 400, "height": 900}, color_scheme=theme)
    for cell in watched.page.locator("#suspects-table tbody tr").first.locator("td").all():
        box = cell.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 400
        assert box["width"] > 30
    watched.context.close()


def test_without_script_the_verdict_and_all_pairs_are_there(browser: Browser, check_page: Path) -> None:  # noqa: F811
    watched = Watched(browser, check_page, java_script_enabled=False)
    pairs = watched.page.locator("#suspects-table tbody tr:visible").count()
    assert pairs == len(rows_in(check_page.parent / "suspects.csv")) - 1
    assert watched.page.get_by_text("The map needs JavaScript.").is_visible()
    watched.context.close()


@pytest.mark.parametrize(
    ("has_features", "words"),
    [(False, "because the clusters folder has no features"), (True, "no two samples are similar by image and by text")],
)
def test_an_empty_list_is_explained(folder: ClustersFolder, tmp_path: Path, has_features: bool, words: str) -> None:
    same_group = with_groups(folder, ["all"] * N)
    if not has_features:
        clusters = dataclasses.replace(same_group.clusters, image_features=None, text_features=None)
        same_group = dataclasses.replace(same_group, clusters=clusters)
    written = write_check(check(same_group, choose=False), tmp_path / "check")
    assert written.suspects is None
    assert words in written.page.read_text()


def test_edited_suspects_are_kept(folder: ClustersFolder, tmp_path: Path) -> None:
    result = check(with_groups(folder, [""] * N), choose=False, suspects=5)
    first = write_check(result, tmp_path / "check")
    assert first.suspects is not None
    assert write_check(result, tmp_path / "check").suspects == first.suspects
    first.suspects.write_text(first.suspects.read_text().replace("\n,", "\nsame,", 1))
    edited = first.suspects.read_text()
    second = write_check(check(with_groups(folder, [""] * N), decided=first.suspects, choose=False), tmp_path / "check")
    assert second.suspects == tmp_path / "check" / "suspects-2.csv"
    assert first.suspects.read_text() == edited
    assert sum(row.startswith("same,") for row in rows_in(second.suspects)) == 1


def test_other_folders_are_not_replaced(folder: ClustersFolder, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="not a report folder"):
        write_check(check(folder, choose=False), tmp_path)


def test_the_page_names_the_versions_of_its_libraries(check_page: Path) -> None:
    notice = BeautifulSoup(check_page.read_text(), "html.parser").select_one("#origin .note")
    assert notice is not None
    for name, header in (("datatables", r"DataTables ([\d.]+)"), ("chart", r"Chart\.js v([\d.]+)")):
        code = (LIBRARIES / f"{name}.js").read_text()
        version = re.search(header, code[:200])
        assert version is not None
        assert version[1] in notice.text
        assert f"| `{name}.js` |" in (LIBRARIES / "README.md").read_text()
        assert version[1] in (LIBRARIES / "README.md").read_text()
        assert "permission is hereby granted" in (LIBRARIES / f"{name}.LICENSE.txt").read_text().lower()
