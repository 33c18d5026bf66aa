"""Checks of paths before torch is imported, because the import takes seconds.

A run on several processes skips them. It makes the same checks later, so that only one process reports an error.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Literal

from clip_negatives.cli.output import is_stdout
from clip_negatives.errors import DataError


def check_data(location: str, dataset_type: str = "auto") -> None:
    """Raise DataError if a local file of a data set is missing."""
    if _is_alone():
        from clip_negatives.dataset.formats import check_exists

        check_exists(location, dataset_type)


def clustered_data(location: str, dataset_type: str, clusters: Path) -> str:
    """Return data without the tars that were missing when `clusters` was made; check that the local files exist."""
    from clip_negatives.dataset.formats import kind_of
    from clip_negatives.dataset.urls import expand_urls
    from clip_negatives.storage.manifest import missing_shards

    missing = missing_shards(clusters)
    if missing and kind_of(location, dataset_type) == "webdataset":
        location = "::".join(shard for shard in expand_urls(location) if shard not in missing)
    check_data(location, dataset_type)
    return location


def check_features(spec: str | None) -> bool:
    """Check that the files of ``--features`` exist, and return whether images must be opened, because it lacks their features.

    Raises:
        DataError: a file is missing.
    """
    if spec is None:
        return True
    from clip_negatives.dataset.given import feature_places

    return feature_places(spec).image is None


def check_decided(file: Path) -> None:
    """Raise DataError if the file of ``--decided`` is missing."""
    from clip_negatives.dataset.urls import check_local_file

    if _is_alone():
        check_local_file("file of suspect pairs", str(file))


def check_assignments(table: str, centroids: str) -> None:
    """Raise DataError if the table of ``--from`` or a file of ``--centroids`` is missing."""
    from clip_negatives.dataset.assignment_files import centroid_files, files_of

    files_of(table)
    centroid_files(centroids)


def check_clusters(path: Path) -> None:
    """Raise ArtifactError if `path` is not a clusters folder."""
    if _is_alone():
        from clip_negatives.storage import manifest

        manifest.check_clusters(path)


def check_labelled(path: Path) -> None:
    """Raise ArtifactError if `path` is neither a clusters folder nor a labels folder."""
    from clip_negatives.storage.manifest import LABELS_FOLDER

    if not LABELS_FOLDER.is_at(path):
        check_clusters(path)


def is_data(location: str, dataset_type: str = "auto") -> bool:
    """Return whether a path or URL is a data set, not a clusters folder."""
    from clip_negatives.dataset.formats import kind_of
    from clip_negatives.storage.manifest import MANIFEST

    if dataset_type == "auto" and (Path(location) / MANIFEST).exists():
        return False
    with suppress(DataError):
        return bool(kind_of(location, dataset_type))
    return False


def check_clusters_or_data(location: str, dataset_type: str = "auto") -> None:
    """Raise ArtifactError if a path is neither a clusters folder nor data, DataError if a local file of the data is missing."""
    if is_data(location, dataset_type):
        check_data(location, dataset_type)
        return
    from clip_negatives.dataset.formats import kind_of
    from clip_negatives.storage.manifest import LABELS_FOLDER, MANIFEST

    if Path(location).exists() and not (Path(location) / MANIFEST).exists() and not LABELS_FOLDER.is_at(Path(location)):
        try:
            kind_of(location, dataset_type)
        except DataError as error:
            raise DataError(f"{location} is not a clusters folder. As data: {error}") from error
    check_clusters(Path(location))


def check_output_file(path: Path) -> None:
    """Raise ArtifactError if a file cannot be written, or is not ours to replace."""
    if _is_alone() and not is_stdout(path):
        from clip_negatives.storage import output_file
        from clip_negatives.storage.paths import check_writable

        check_writable(output_file.check_output_file(path))


def check_output_folder(path: Path, kind: Literal["centroids", "clusters", "labels", "report"]) -> None:
    """Raise ArtifactError if a folder cannot be written, or has files and is not of this kind."""
    if _is_alone():
        from clip_negatives.storage import manifest
        from clip_negatives.storage.paths import check_writable

        formats = manifest.CLUSTERS_FOLDER, manifest.LABELS_FOLDER, manifest.REPORT_FOLDER, manifest.CENTROIDS_FOLDER
        folders = {folder.name: folder for folder in formats}
        check_writable(folders[kind].check(path))


def check_new_shards(output: str, work_folder: Path | None) -> None:
    """Raise ArtifactError if the folder of new tars or its work folder cannot be written; URLs are checked later."""
    if _is_alone():
        from clip_negatives.storage.manifest import PLAN
        from clip_negatives.storage.paths import check_resumable, check_writable, output_path

        if "://" not in output:
            check_writable(check_resumable(output, PLAN))
        if work_folder is not None:
            check_writable(output_path(work_folder))


def _is_alone() -> bool:
    """Return whether the run has a single process."""
    return os.environ.get("WORLD_SIZE", "1") == "1"
