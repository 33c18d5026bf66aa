"""The report on a choice has the answer first, and every method."""

from __future__ import annotations

from pathlib import Path

from bs4 import BeautifulSoup

from clip_negatives.choosing.choice import Choice, Row
from clip_negatives.report import write_choice_page

from .conftest import HOSTILE


def choice_of(held_out: str = "an unseen seller") -> Choice:
    rows = (
        Row("gist@0.1", 0.3, 0.2, 0.5, 0.25, (0.1, 0.05, 0.15), (0.2, 0.1, 0.3)),
        Row("in_batch@0.1", 0.27, 0.2, 0.5, 0.25, (0.0, 0.0, 0.0), (0.1, -0.05, 0.25)),
        Row("in_batch@0.1 dropout 0.1", 0.25, 0.2, 0.5, 0.25, (-0.1, -0.2, 0.0), (0.0, 0.0, 0.0), is_control=True),
    )
    setting = {"n_samples": 9000, "n_queries": 8000, "folds": 3, "seeds": 1, "steps": 250, "batch_size": 512, "lr": 0.003}
    sentence, warning = "Use gist@0.1: +10.0 % [+5.0, +15.0] MRR.", "Heads are not towers."
    return Choice("gist@0.1", "in_batch@0.1", sentence, (warning,), held_out, rows, setting, {}, {})


def test_the_answer_comes_first_and_all_methods_have_a_row(tmp_path: Path) -> None:
    page = BeautifulSoup(write_choice_page(choice_of(), tmp_path).read_text(), "html.parser")
    assert page.main.find("strong").text == choice_of().sentence
    assert choice_of().warnings[0] in page.main.text
    table = page.find("section", id="methods").table
    cells = [[cell.text for cell in row.find_all(["th", "td"])] for row in table.tbody.find_all("tr")]
    assert cells[0][:3] == ["gist@0.1", "+10.0 [+5.0, +15.0]", "30.0"]
    assert cells[1][1] == "–"
    assert cells[2][0] == "in_batch@0.1 dropout 0.1 (control)"
    assert "8,000" in page.find("section", id="setting").text
    assert len(page.select("figure svg")) == 1


def test_the_name_of_a_column_is_escaped(tmp_path: Path) -> None:
    html = write_choice_page(choice_of(HOSTILE), tmp_path).read_text()
    assert HOSTILE not in html
    assert "<script>alert" not in html.lower()
