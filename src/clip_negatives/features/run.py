"""The steps of encoding a data set, each on all processes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from clip_negatives import __version__
from clip_negatives.dataset import ImageTextPairs, TablePairs, notes
from clip_negatives.dataset.captions import remedy
from clip_negatives.dataset.missing import MissingLimit
from clip_negatives.dataset.pairs import fingerprint_of
from clip_negatives.distributed.processes import ALONE, Processes
from clip_negatives.encoders import Encoder
from clip_negatives.errors import ArtifactError, DataError, InputError
from clip_negatives.features.assembly import (
    check_keys,
    encoded_blocks,
    evenly,
    write_features,
    write_samples,
    write_source_files,
)
from clip_negatives.features.encoding import CHUNK, encode_texts, texts_of
from clip_negatives.features.frequent import frequent_images
from clip_negatives.features.given import GivenFeatures, sides_to_copy, stamp_of, unit_rows
from clip_negatives.features.losses import Losses, PartReport, check_share
from clip_negatives.features.missing_parts import MissingParts
from clip_negatives.features.shared_work import SharedWork
from clip_negatives.features.store import EncodedFeatures, PartStore
from clip_negatives.printing import log
from clip_negatives.progress import stage
from clip_negatives.storage.ownership import claim_work, clear_work, remove_inside, replaced_file

Side = Encoder | GivenFeatures  # source of the features of the images, or of the texts

LEARNED_ON = 100_000  # least number of evenly spaced texts to learn a vocabulary from; at most twice as many are used
DTYPES = {"float32": torch.float32, "float16": torch.float16}  # of stored features
REPEATED = {  # causes of samples with the same tar and key
    "table": "keys of the table repeat. Name a column with unique keys, or also name the tars of the samples.",
    "tars": "a tar is named twice. Name each tar once.",
}


def encode(
    source: ImageTextPairs,
    image_encoder: Encoder | GivenFeatures,
    text_encoder: Encoder | GivenFeatures,
    folder: Path,
    *,
    dtype: str = "float32",
    copy: bool = True,
    processes: Processes = ALONE,
    max_lost: float = 1.0,
    repair: str = "",
    missing: MissingLimit = MissingLimit(),  # noqa: B008  (immutable)
) -> EncodedFeatures:
    """Encode images and texts of every pair that is not broken; each of the processes makes this call.

    Precomputed features take the place of an encoder. Without `copy`, they stay in their own file if it is a single file whose
    rows have unit norm. Otherwise they are joined and scaled on disk, once.

    Each part is encoded by one process and stored in `folder`, on a disk that all processes share. A later call with the same
    encoders encodes only the parts that are not stored yet, and returns exactly the same features. Parts of other data or
    encoders are removed.
    Memory holds one part, and the samples that encoders learn from: up to 200,000 texts and raw features of 40,000 images.
    A later call reads torn and missing tars again. DataError if the share of lost samples is larger than `max_lost`, see
    `Losses.check`, or if more tars are missing than allowed.
    """
    check_share(max_lost)
    if dtype not in DTYPES:
        raise InputError(f"Expected feature_dtype {' or '.join(DTYPES)}, got {dtype!r}.")
    return EncodingRun(source, image_encoder, text_encoder, folder, dtype, copy, processes, missing).run(max_lost, repair)


class EncodingRun(SharedWork):
    """One call of `encode`, with its arguments."""

    def __init__(
        self,
        source: ImageTextPairs,
        images: Side,
        texts: Side,
        folder: Path,
        dtype: str,
        copy: bool,
        processes: Processes,
        missing: MissingLimit,
    ) -> None:
        self.images, self.texts, self.folder, self.processes = images, texts, folder, processes
        self.dtype, self.n_pairs, self.parts = DTYPES[dtype], source.n_pairs, source.parts()
        with stage("Checking the files of the data"):
            self.missing = MissingParts(missing, self.parts, processes)
            self.digests = self.missing.digests
        self.given = {name: side for name, side in (("image", images), ("text", texts)) if not isinstance(side, Encoder)}
        self.copy, self.cause = copy, REPEATED["table" if isinstance(source, TablePairs) else "tars"]
        stamps = [processes.first(lambda: stamp_of(self.given))] if self.given else []
        self.fingerprint = fingerprint_of([*self.digests, *stamps])
        # Another version may learn other features, which must not be mixed.
        versions = [__version__, torch.__version__, version("scikit-learn")]
        # Of a part; older versions stored less.
        contents = ["features", "samples", "sources", "shards of keys", "losses", "notes", "missing"]
        names = {"image": images.name, "text": texts.name} | dict.fromkeys(self.given, "given")
        self.plan = {**names, "chunk": CHUNK, "dtype": dtype, "versions": versions}
        self.plan["contents"] = contents
        # A learned vocabulary depends on all texts, so features of one part differ between data sets.
        suffix = f"-{self.fingerprint[:16]}" if isinstance(texts, Encoder) and texts.learn is not None else ""
        self.image_store, self.text_store = (PartStore(folder / name, folder) for name in ("images", f"texts{suffix}"))
        name = "copied" if self.given and copy else "whole"
        self.whole, self.halt = folder / f"{name}-{self.fingerprint[:16]}", folder / "halt"

    def run(self, max_lost: float, repair: str) -> EncodedFeatures:
        """Encode the missing parts, and merge all parts."""
        self.processes.first(self._claim)
        self._forget_incomplete_parts()
        to_copy = self.processes.first(self._to_copy)
        self._encode_images()
        parts = self._reports()
        self.processes.together(lambda: self.missing.check(parts))
        losses = self.processes.first(lambda: self._losses(parts))
        self.processes.together(lambda: losses.check(max_lost, repair))
        summary = notes.merged(part.notes for part in parts)
        self.processes.together(lambda: notes.check_groups(summary, losses.n_usable))
        counts = {digest: part.n_samples for digest, part in zip(self.digests, parts, strict=True)}
        self._encode_texts(counts)
        images = isinstance(self.images, Encoder)
        with stage("Joining the encoded parts"):
            frequent = self.processes.first(lambda: frequent_images(self.image_store, counts) if images else [])
            self.processes.first(lambda: self._assemble(counts, losses, to_copy))
        n_broken = sum(part.n_broken for part in parts)
        warnings = [*notes.sentences(summary, losses.n_usable), *frequent]
        return EncodedFeatures(self.whole, self.fingerprint, losses.n_usable, n_broken, losses, warnings, self.given)

    def _to_copy(self) -> set[str]:
        """Check the precomputed features, and return the sides to copy: none if an earlier run completed the copy."""
        is_whole = PartStore(self.folder, self.folder).record(self.whole.name) is not None
        return set() if is_whole else sides_to_copy(self.given, self.copy)

    def _forget_incomplete_parts(self) -> None:
        """Remove the parts of torn and missing tars, and what was made from them, so that the tars are read again."""

        def is_incomplete(digest: str) -> bool:
            record = self.image_store.record(digest) or {}
            return any(record.get(name) is not None for name in ("torn", "missing"))

        incomplete = self.processes.divided(is_incomplete, self.digests)
        parts = list(itertools.compress(self.digests, incomplete))
        stale = [self.whole, *(self.image_store.folder / digest for digest in parts)]
        # A learned vocabulary depends on the texts of the torn tars too.
        learned = isinstance(self.texts, Encoder) and self.texts.learn is not None
        stale += [self.text_store.folder] if learned else [self.text_store.folder / digest for digest in parts]
        if parts:
            self.processes.first(lambda: remove_inside(self.folder, stale))

    def _claim(self) -> None:
        """Remove parts of other data or encoders from the folder."""
        file, plan = self.folder / "plan.json", json.dumps(self.plan)
        stores, kept = [self.image_store.folder, self.text_store.folder], set[Path]()
        if file.is_file() and file.read_text() == plan:
            parts = (store / digest for store in stores for digest in self.digests)
            kept = {file, self.whole, *stores, *parts}
        claim_work(self.folder)
        clear_work(self.folder, kept)
        for store in filter(Path.exists, stores):
            remove_inside(self.folder, set(store.iterdir()) - kept)
        with replaced_file(file) as partial:
            partial.write_text(plan)

    def _encode_images(self) -> None:
        parts, missing = dict(zip(self.digests, self.parts, strict=True)), self._missing(self.image_store)
        is_whole = self.processes.world_size == 1 and len(missing) == len(self.parts)
        encoder = self.images if isinstance(self.images, Encoder) else None
        title = self._title("Encoding images" if encoder else "Reading samples")
        mine = self.processes.mine(missing)
        with stage(title, self.n_pairs if is_whole else None) as running:
            options = encoder, self.image_store, self.dtype, self._advance(running)

            def encode_part(digest: str) -> None:
                self.missing.encode(parts[digest], digest, *options)
                if not (is_whole and self.n_pairs):
                    running.total = round(running.completed * len(mine) / (mine.index(digest) + 1))  # parts have similar sizes
                if digest == self.digests[0]:  # an error about groups comes only after all parts
                    self._warn_of_groups(digest)

            self._for_each(encode_part, mine)

    def _warn_of_groups(self, digest: str) -> None:
        """Warn if no sample of a part has the group field."""
        report = self._report(digest)
        if notes.all_lack_groups(report.notes, report.n_samples):
            log("The first tar has no groups. If no other tar has the group field, an error follows after the last image.")

    def _encode_texts(self, counts: dict[str, int]) -> None:
        if not isinstance(self.texts, Encoder):
            return
        missing = self._missing(self.text_store)
        mine = self.processes.mine(missing)
        if missing and self.texts.learn is not None:
            with stage("Learning the vocabulary of the texts"):
                self._learn(self.texts.learn, counts)
        with stage(self._title("Encoding texts"), sum(counts[digest] for digest in mine)) as running:
            options = self.texts, self.image_store, self.text_store, self.dtype, self._advance(running)
            self._for_each(lambda digest: encode_texts(digest, *options), mine)

    def _learn(self, learn: Callable[[Sequence[str]], object], counts: dict[str, int]) -> None:
        shares = self.processes.divided(lambda part: list(texts_of(self.image_store, *part)), evenly(counts, LEARNED_ON))
        # The last bits of sums depend on the number of threads, which torchrun changes.
        limited = threadpool_limits.wrap(limits=1, user_api="blas")(learn)
        self._for_each(limited, [[text for share in shares for text in share]])

    def _missing(self, store: PartStore) -> list[str]:
        """Return the digests of the missing parts, the same on every process."""
        digests = list(dict.fromkeys(self.digests))
        stored = self.processes.divided(lambda digest: store.record(digest) is not None, digests)
        return [digest for digest, is_stored in zip(digests, stored, strict=True) if not is_stored]

    def _reports(self) -> list[PartReport]:
        """Return what was read and lost of each part, in order."""
        return self.processes.divided(self._report, self.digests)

    def _report(self, digest: str) -> PartReport:
        record = self.image_store.record(digest)
        if record is None:
            shared = "Use a disk that all machines share, and run" if self.processes.world_size > 1 else "Run"
            raise ArtifactError(f"{self.folder} lacks an encoded part. {shared} the same command again.")
        return PartReport.of(record)

    def _losses(self, parts: list[PartReport]) -> Losses:
        """Return the losses; DataError if no sample is left, or if samples repeat."""
        losses = Losses.of(parts)
        if losses.n_usable == 0:
            examples = (part.first_broken or (part.torn and part.torn[:2]) for part in parts)
            first = next(filter(None, examples), None)
            counts = f"{sum(part.n_broken for part in parts)} samples are broken and {len(losses.torn)} tars torn"
            hint = f" ({counts}, for example {first[0]}: {first[1]})" if first else ""
            raise DataError(f"The data have no sample that can be read{hint}. {remedy(first[1] if first else '')}")
        check_keys(self.image_store, self.digests, losses.n_usable, self.cause)
        return losses

    def _assemble(self, counts: dict[str, int], losses: Losses, to_copy: set[str]) -> None:
        sides = ("image", self.images, self.image_store), ("text", self.texts, self.text_store)
        store = PartStore(self.folder, self.folder)
        if store.record(self.whole.name) is None:
            with store.adding(self.whole.name) as (partial, _):
                write_samples(self.image_store, self.digests, losses, partial)
                write_source_files(self.image_store, self.digests, partial)
                streams: dict[str, Iterator[Tensor]] = {}
                for name, side, parts in sides:
                    if isinstance(side, Encoder):
                        streams[name] = encoded_blocks(side, parts, counts, self.dtype)
                    elif name in to_copy:
                        streams[name] = unit_rows(side)
                if streams:
                    write_features(streams, sum(counts.values()), partial)
