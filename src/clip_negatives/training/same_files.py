"""Check that the tars or images of a training run are the files that were clustered: same size, same content."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from clip_negatives.advice import remedies
from clip_negatives.dataset.images import file_size
from clip_negatives.dataset.stored_images import ROW, EmbeddedImages
from clip_negatives.dataset.urls import shard_digest, shard_size
from clip_negatives.errors import ArtifactError
from clip_negatives.printing import log
from clip_negatives.storage.atomic import digest
from clip_negatives.storage.clusters_folder import ClustersFolder
from clip_negatives.storage.clusters_parts import BYTES
from clip_negatives.storage.labels_folder import ClustersOrLabels, LabelsFolder
from clip_negatives.storage.manifest import MISSING_SHARDS
from clip_negatives.storage.shards import KnownShards
from clip_negatives.storage.source_files import DIGESTED_FILES, SourceFile, evenly_spread
from clip_negatives.training.same_data import CHECKED_FILES, map_files

REPAIR_IMAGES = "Run from the folder where the image paths are valid, or prepare again: clip-negatives prepare."


def check_shards(shards: KnownShards, addresses: Sequence[str]) -> None:
    """Compare shards with the clustered ones: the size of each, and the digest of at most `DIGESTED_FILES`.

    Shards that were not clustered and shards of unknown size are left out; see `warn_of_uncompared_shards`.

    Raises:
        ArtifactError: a shard has another size or content.
        DataError: a shard is missing or unreachable.
    """
    pairs = [(address, shards.sources.get(shards.ending(address))) for address in dict.fromkeys(addresses)]
    check_contents([(address, source) for address, source in pairs if source is not None], shards.folder)


def check_contents(pairs: Sequence[tuple[str, SourceFile]], folder: Path) -> None:
    """Compare shards, given by address, each with a clustered one; see `check_shards`. `folder` has the clusters."""
    clustered = [(address, source) for address, source in pairs if source.size is not None]
    comparable: list[tuple[str, SourceFile, int]] = []
    sizes = map_files(lambda pair: shard_size(pair[0]), clustered, chunk=1)
    for (address, source), size in zip(clustered, sizes, strict=True):
        check_same(SourceFile(address, size, ""), source, folder)
        if size is not None:
            comparable.append((address, source, size))
    digested = [comparable[place] for place in evenly_spread(len(comparable), DIGESTED_FILES)]
    digests = map_files(lambda entry: shard_digest(entry[0], entry[2]), digested, chunk=1)
    for (address, source, size), sha256 in zip(digested, digests, strict=True):
        check_same(SourceFile(address, size, sha256), source, folder)


def check_same(shard: SourceFile, source: SourceFile, folder: Path) -> None:
    """Raise ArtifactError if a shard has another size or digest than the clustered one; unknown values are not compared."""
    repair = f"Use the shards that were clustered, or make {folder} again from these: clip-negatives prepare."
    if None not in (shard.size, source.size) and shard.size != source.size:
        fault = f"The shard {shard.file} has {shard.size} bytes, but the clustered shard {source.file} had {source.size}."
        raise ArtifactError(f"{fault} {repair}")
    if shard.sha256 and source.sha256 and shard.sha256 != source.sha256:
        fault = f"The shard {shard.file} has other content than the clustered shard {source.file}, at the same size."
        raise ArtifactError(f"{fault} {repair}")


def warn_of_missing_shards(folder: ClustersOrLabels) -> None:
    """Warn of tars without labels: they were missing when the clusters were made."""
    missing = folder.manifest.get(MISSING_SHARDS, [])
    if missing:
        is_labels = isinstance(folder, LabelsFolder)
        effect = "Their pairs have weight 1" if is_labels else "Training skips their samples"
        again = "clip-negatives prepare and clip-negatives labels" if is_labels else "clip-negatives prepare"
        log(
            f"{folder.path} has no labels of {len(missing)} tar{'s' * (len(missing) > 1)}, which were missing in prepare "
            f"(first: {missing[0]}). {effect}. When the data are complete, run {again} again."
        )


def warn_of_uncompared_shards(shards: KnownShards, addresses: Sequence[str]) -> None:
    """Warn of shards that cannot be compared with the clustered ones: of unknown size, or in a folder of an older version."""
    again = "To compare them, run clip-negatives prepare again."
    if shards.depth == 0:
        log(f"{shards.folder} does not name shards, so samples are known by key alone. {again}")
    elif not shards.sources:
        log(f"{shards.folder} has no sizes of shards: they were not compared. {again}")
    else:
        sources = {address: shards.sources.get(shards.ending(address)) for address in addresses}
        clustered = [(address, source.size) for address, source in sources.items() if source is not None]
        sizes = map_files(lambda pair: None if pair[1] is None else shard_size(pair[0]), clustered, chunk=1)
        unknown = [address for (address, _), size in zip(clustered, sizes, strict=True) if size is None]
        if unknown:
            log(
                f"{len(unknown)} of {len(sources)} shards were not compared with the clustered shards, because "
                f"their size is unknown, as for pipe:. The first one is {unknown[0]}"
            )


def check_images(folder: ClustersFolder) -> None:
    """Compare images with the clustered ones: the size of at most `CHECKED_FILES`, and the stored digests.

    Images of a folder that an older version wrote need only exist. Clusters without image paths are not checked.

    Raises:
        ArtifactError: an image is missing, or has another size or content; the error names the first one.
    """
    samples = folder.samples
    if "image" not in samples.column_names:
        return
    rows = pa.array(evenly_spread(samples.num_rows, CHECKED_FILES), pa.int64())
    paths = samples["image"].take(rows).to_pylist()
    known = samples[BYTES].take(rows).to_pylist() if BYTES in samples.column_names else [None] * len(rows)
    sizes = map_files(file_size, paths)
    compared = zip(rows.to_pylist(), paths, known, sizes, strict=True)
    differing = [entry for entry in compared if entry[3] is None or (entry[2] is not None and entry[2] != entry[3])]
    if differing:
        row, path, old, size = differing[0]
        fault = _size_fault(size, old)
        count = f"{len(differing)} of {len(rows)} checked images differ"
        raise ArtifactError(f"The image {path} (row {row} of {folder.path}) {fault}; {count}. {REPAIR_IMAGES}")
    _check_image_digests(folder)


def check_embedded_images(folder: ClustersFolder, images: EmbeddedImages) -> None:
    """Compare images in a table with the clustered ones: the size of each, and the stored digests.

    Raises:
        ArtifactError: an image has another size or content; the error names its row.
    """
    repair = f"Use the data that were clustered, or make {folder.path} again from these: clip-negatives prepare."
    if BYTES in folder.samples.column_names:
        compared = zip(folder.samples[BYTES].to_pylist(), images.sizes(), strict=True)
        for row, (old, size) in enumerate(compared):
            if size != old:
                raise ArtifactError(f"The image of row {row} has {size} bytes, but had {old} when it was clustered. {repair}")
    for source in folder.sources:
        if not source.file.startswith(ROW):
            continue
        place = int(source.file.removeprefix(ROW))
        if images.source(place).sha256 != source.sha256:
            fault = f"The image of row {place} has other content than when it was clustered, at the same size."
            raise ArtifactError(f"{fault} {repair}")


def _check_image_digests(folder: ClustersFolder) -> None:
    sources = folder.sources
    chosen = [sources[place] for place in evenly_spread(len(sources), DIGESTED_FILES)]
    known = [source for source in chosen if source.sha256 and source.size is not None]
    for source, fault in zip(known, map_files(_content_fault, known, chunk=1), strict=True):
        # A file that is not in the table is none of the training data.
        if fault and (row := folder.samples["image"].index(source.file).as_py()) >= 0:
            raise ArtifactError(f"The image {source.file} (row {row} of {folder.path}) {fault}. {REPAIR_IMAGES}")


def _content_fault(source: SourceFile) -> str:
    """Return how an image differs from the clustered one, "" if it does not; a file of another size is not read."""
    size = file_size(source.file)
    if size != source.size:
        return _size_fault(size, source.size)
    if _digest(source.file) != source.sha256:
        return f"has other content than when it was clustered, at the same size of {size} bytes"
    return ""


def _size_fault(size: int | None, old: int | None) -> str:
    return "does not exist or is not a file" if size is None else f"has {size} bytes, but had {old} when it was clustered"


def _digest(path: str) -> str:
    try:
        return digest(Path(path))
    except OSError as error:
        raise ArtifactError(
            f"The image {path} cannot be read: {error.strerror}. {remedies(error) or 'Check its disk.'}"
        ) from error
