"""The report of `check`: the verdict, suspect pairs, and a map of the data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from clip_negatives.checking import CheckResult
from clip_negatives.checking.suspects import rows_of, samples_of
from clip_negatives.dataset import TablePairs, TarPairs
from clip_negatives.dataset.decided import suspects_text
from clip_negatives.report.album import Album, images_of
from clip_negatives.report.check.map import map_of
from clip_negatives.report.page import render
from clip_negatives.storage.manifest import REPORT_FOLDER

INDEX, SUSPECTS = "index.html", "suspects"
SIDE = 192  # longer side of a picture in pixels


class Written(NamedTuple):
    """Files of a check: the page, the file of suspect pairs (None without pairs), and the number of unreadable images."""

    page: Path
    suspects: Path | None
    missing: int


def write_check(
    check: CheckResult,
    output: str | Path,
    *,
    commands: Sequence[str] = (),
    source: TablePairs | TarPairs | None = None,
) -> Written:
    """Write the report and the file of suspect pairs, atomically.

    The file has the decisions that were used too. A file of suspect pairs that the user changed is kept: the new one then has
    another name.

    Args:
        check: the answer.
        output: folder; an older report is replaced.
        commands: the next commands to run.
        source: the checked data, for the images; without it, images are read from the paths in the clusters folder.

    Raises:
        DataError: the pairs of the source are not the pairs of the folder.
        ArtifactError: `output` is not a report, or cannot be written.
    """
    folder, output = check.folder, REPORT_FOLDER.check(output)
    samples = samples_of(folder)
    rows = [*rows_of(check.suspects, samples), *(dict(row) for row in check.decisions.rows)]
    shown = {index for suspect in check.suspects for index in (suspect.left, suspect.right)}
    album = Album({index: samples.texts[index] for index in shown}, images_of(folder, source), side=SIDE)
    name = _free_name(output) if rows else ""
    html = render(
        "check.html.j2",
        libraries=("datatables.js", "chart.js"),
        scripts=("page.js", "check.js"),
        folder=folder,
        check=check,
        album=album,
        samples=samples,
        map=map_of(check.folder),
        commands=commands,
        suspects_file=name,
    )
    with REPORT_FOLDER.replacing(output) as partial:
        (partial / INDEX).write_text(html, encoding="utf-8")
        if rows:
            (partial / name).write_text(suspects_text(rows), encoding="utf-8")
        REPORT_FOLDER.write_manifest(partial, {"clusters": folder.manifest.get("data"), "suspects": len(check.suspects)})
    return Written(output / INDEX, output / name if rows else None, album.missing)


def _free_name(output: Path) -> str:
    """Return the first name of a file of suspect pairs that is not a file of the user."""
    taken = set(REPORT_FOLDER.not_ours(output)) if output.exists() else set()
    names = (f"{SUSPECTS}{f'-{number}' if number > 1 else ''}.csv" for number in range(1, len(taken) + 2))
    return next(name for name in names if name not in taken)
