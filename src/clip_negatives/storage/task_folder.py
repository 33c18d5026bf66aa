"""Folders that independent tasks fill part by part, on a disk or in an object store.

| file | content |
|---|---|
| ``plan.json`` | everything that determines the parts, and their names; every task compares it with its own settings |
| ``PART/part.json`` | record of a part with the sizes of its other files; written last: a part with it is complete |
| ``claims/PART.json`` | the task that works on a part, see `clip_negatives.storage.claims` |
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from clip_negatives.errors import ArtifactError
from clip_negatives.storage.atomic import writing
from clip_negatives.storage.folder_kind import FORMAT
from clip_negatives.storage.ownership import remove_stored, replaced_file
from clip_negatives.storage.paths import TOOL
from clip_negatives.storage.provenance import differences, in_words
from clip_negatives.storage.safe_reading import parse_json
from clip_negatives.storage.store_errors import store_errors

PLAN, RECORD, CLAIMS = "plan.json", "part.json", "claims"
SELF_DIGEST = "record_sha256"  # in a record: digest of its other entries
CONNECTIONS = 16  # threads that read from an object store at a time

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class TaskFolder:
    """A folder of parts; see the module.

    Attributes:
        url: path or URL of fsspec, as the user writes it.
        kind: "parts" (of features) or "assignments" (of clusters).
        command: command that fills the folder.
        system, root: file system of fsspec, and the folder in it.
        names: names of the parts, in order.
        plan: digest of the plan; "" before `begun` or `opened`.
    """

    url: str
    kind: str
    command: str
    system: Any
    root: str
    names: Sequence[str] = ()
    plan: str = ""

    @classmethod
    def at(cls, url: str | Path, kind: str, command: str) -> TaskFolder:
        """Return the folder of a path or URL, without reading it; ArtifactError if its file system is not known."""
        with store_errors(str(url)):
            # Listings must be new: other tasks write at the same time.
            system, root = fsspec.core.url_to_fs(str(url), use_listings_cache=False)
        return cls(str(url), kind, command, system, root.rstrip("/"))

    def begun(self, settings: Mapping[str, Any], names: Sequence[str]) -> TaskFolder:
        """Return the folder with its plan, which the first task writes.

        Raises:
            ArtifactError: the folder was begun with other settings or parts, has other files, or cannot be written.
        """
        plan = {"tool": TOOL, "kind": self.kind, "format": FORMAT, "settings": dict(settings), "parts": list(names)}
        if self._stored_plan() is None:
            with store_errors(self.url):
                entries = self.system.ls(self.root, detail=False) if self.system.exists(self.root) else []
            is_foreign = any(entry.rpartition("/")[2][:1] != "." for entry in entries)  # others are of `replaced_file`
            if is_foreign and self._stored_plan() is None:  # another task may have written it in the meantime
                raise ArtifactError(f"{self.url} has files, but no {PLAN}. Name another folder.")
            self.write(PLAN, (json.dumps(plan) + "\n").encode())
        stored = self._stored_plan()  # another task may have written it at the same time
        if stored != plan:
            different = in_words(differences(_sections(stored or {}), _sections(plan)))
            fault = f"{self.url} was begun with other settings: {different}"
            raise ArtifactError(f"{fault}. Use the same settings in all tasks, or name another folder.")
        return replace(self, names=names, plan=_digest(plan))

    def opened(self) -> TaskFolder:
        """Return the folder with its stored plan; ArtifactError if it has none."""
        if (plan := self._stored_plan()) is None:
            raise ArtifactError(f"{self.url} has no {PLAN}, so it is no folder of {self.kind}. Write one with {self.command}.")
        return replace(self, names=plan["parts"], plan=_digest(plan))

    def settings(self) -> dict[str, Any]:
        """Return the settings in the stored plan."""
        return dict((self._stored_plan() or {}).get("settings", {}))

    def record(self, name: str) -> Record | None:
        """Return the record of a complete part, None if the part is missing or torn, or belongs to another plan."""
        folder = f"{self.root}/{name}"
        try:
            with store_errors(self.url, FileNotFoundError):
                content, entries = self.system.cat_file(f"{folder}/{RECORD}"), self.system.ls(folder, detail=True)
            record: Record = parse_json(content)
            sizes = {entry["name"].rpartition("/")[2]: entry["size"] for entry in entries}
            is_complete = all(sizes.get(file) == size for file, size in record["bytes"].items())
            is_unchanged = record.pop(SELF_DIGEST) == _digest(record)
            return record if is_complete and is_unchanged and record["plan"] == self.plan else None
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def records(self) -> list[Record]:
        """Return the records of all parts; ArtifactError if parts are not complete, with the command that completes them."""
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            records = list(pool.map(self.record, self.names))
        if missing := [name for name, record in zip(self.names, records, strict=True) if record is None]:
            fault = f"{len(missing)} of {len(self.names)} parts of {self.url} are not complete, the first is {missing[0]}"
            raise ArtifactError(f"{fault}. Run {self.command} again, with --task 1/1 or in several tasks.")
        return [record for record in records if record is not None]

    def listed(self) -> set[str]:
        """Return the names of the parts that have a record; an object store is listed instead of asked for each part."""
        if self.is_local:
            return {name for name in self.names if Path(self.root, name, RECORD).is_file()}
        with store_errors(self.url):
            files = self.system.find(self.root)
        return {file.rsplit("/", 2)[-2] for file in files if file.endswith(f"/{RECORD}")} & set(self.names)

    def publish(self, name: str, files: Path, record: Mapping[str, Any]) -> None:
        """Copy the files of a local folder into a part, and complete it with its record."""
        sizes = {file.name: file.stat().st_size for file in sorted(files.iterdir())}
        self.remove(f"{name}/{RECORD}")  # a part whose files are replaced is not complete
        for file in sizes:
            self.copy(files / file, f"{name}/{file}")
        content = {**record, "plan": self.plan, "bytes": sizes}
        content[SELF_DIGEST] = _digest(content)
        self.write(f"{name}/{RECORD}", (json.dumps(content, indent=1) + "\n").encode())

    def local(self, name: str, file: str, scratch: Path) -> Path:
        """Return a local path of a file of a part; a file of an object store is copied into the folder `scratch`."""
        stored = f"{self.root}/{name}/{file}"
        if self.is_local:
            return Path(stored)
        with store_errors(self.url):
            self.system.get_file(stored, str(scratch / file))
        return scratch / file

    @property
    def is_local(self) -> bool:
        """Return whether the folder is on a disk."""
        return isinstance(self.system, LocalFileSystem)

    def read(self, file: str) -> bytes | None:
        """Return the content of a small file; None if it is missing."""
        try:
            with store_errors(self.url, FileNotFoundError):
                return bytes(self.system.cat_file(f"{self.root}/{file}"))
        except FileNotFoundError:
            return None

    def write(self, file: str, content: bytes) -> None:
        """Write a small file, atomically."""
        if self.is_local:
            with replaced_file(f"{self.root}/{file}") as partial:
                partial.write_bytes(content)
            return
        with store_errors(self.url):
            self.system.pipe_file(f"{self.root}/{file}", content)

    def copy(self, source: Path, file: str) -> None:
        """Copy a local file into the folder."""
        if self.is_local:
            with replaced_file(f"{self.root}/{file}") as partial:
                shutil.copyfile(source, partial)
            return
        with store_errors(self.url):
            self.system.put_file(str(source), f"{self.root}/{file}")

    def remove(self, file: str) -> None:
        """Remove a record or a claim, if it is still there."""
        with store_errors(self.url):
            remove_stored(self.system, f"{self.root}/{file}")

    def create(self, file: str, content: bytes) -> bool:
        """Write a small file if it is missing, and return whether it was written; False if the file system cannot do this."""
        path = f"{self.root}/{file}"
        if self.is_local:
            with writing(Path(path)):
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                with suppress(FileExistsError), Path(path).open("xb") as stream:
                    stream.write(content)
                    return True
            return False
        cannot = FileExistsError, TypeError, ValueError, NotImplementedError
        with suppress(*cannot), store_errors(self.url, *cannot):
            self.system.pipe_file(path, content, mode="create")
            return True
        return False

    def _stored_plan(self) -> dict[str, Any] | None:
        if (content := self.read(PLAN)) is None:
            return None
        try:
            plan: dict[str, Any] = parse_json(content)
            if (plan["tool"], plan["kind"], plan["format"]) == (TOOL, self.kind, FORMAT):
                return {**plan, "settings": dict(plan["settings"]), "parts": list(plan["parts"])}
        except (ValueError, KeyError, TypeError):
            pass
        fault = f"its {PLAN} is not a plan of {self.kind} of this version of {TOOL}"
        raise ArtifactError(f"{self.url} cannot be used: {fault}. Name another folder.")


def _sections(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a plan and a digest of its parts."""
    return {**plan.get("settings", {}), "data": {"parts": _digest(plan.get("parts"))}}


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
