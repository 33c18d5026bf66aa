"""Provenance of a run: everything that determines its result, as one JSON record, and the differences between two records.

A record has sections: data, clusters, method, plugins, versions, and the arguments of the trainer. Its values are names,
numbers and SHA-256 digests of contents. Paths of files are not recorded: a moved file is the same file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from clip_negatives.errors import PluginError
from clip_negatives.host.options import parse_spec
from clip_negatives.host.registry import Kind, default_registry
from clip_negatives.storage.atomic import digest
from clip_negatives.storage.digests import digest_of, source_digest
from clip_negatives.storage.manifest import MISSING_SHARDS
from clip_negatives.storage.ownership import replaced_file
from clip_negatives.storage.safe_reading import read_json

Record = dict[str, Any]  # sections, each a mapping from names to JSON values

FORMAT = 1  # version of the record format; records of other formats are not compared
# In a manifest; "assignments" is a digest of the labels that another program made.
RECIPE = ("image_encoder", "text_encoder", "clusterer", "text_clusterer", "seed", "feature_dtype", "assignments")
MAX_CHARACTERS = 500  # of a value in a message
SHOWN = 4  # differences that a message lists


@dataclass(frozen=True, slots=True)
class Difference:
    """An entry that differs between two records; its value is None in a record that lacks the entry."""

    path: tuple[str, ...]
    first: Any
    second: Any

    def words(self, first: str = "was", second: str = "is") -> str:
        """Return the difference in words. Digests are not shown, only that they differ."""
        name = _name(self.path)
        if any(re.fullmatch(r"[0-9a-f]{64}", str(value)) for value in (self.first, self.second)):
            return f"{name} differ" if name.split()[:2][-1].endswith("s") else f"{name} differs"
        a, b = _distinct(self.first, self.second)
        return f"{name} {first} {a}, {second} {b}"


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Difference]:
    """Return the entries that differ between two records, in the order of `second`."""
    old, new = dict(_entries(first)), dict(_entries(second))
    return [Difference(path, old.get(path), new.get(path)) for path in {**new, **old} if old.get(path) != new.get(path)]


def in_words(listed: Iterable[Difference], first: str = "was", second: str = "is") -> str:
    """Return one line with the first `SHOWN` differences, and the number of further ones."""
    words = [difference.words(first, second) for difference in listed]
    return "; ".join(words[:SHOWN]) + (f"; and {len(words) - SHOWN} more" if len(words) > SHOWN else "")


def clusters_section(manifest: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the digest of the clusters of a folder, and their recipe, from its manifest.

    The digest leaves out the tables of samples and shards: their addresses change when data are moved.
    """
    if manifest is None:
        return {"content": None}
    files = {name: entry["sha256"] for name, entry in manifest.get("files", {}).items() if name.endswith(".safetensors")}
    missing = {MISSING_SHARDS: manifest[MISSING_SHARDS]} if manifest.get(MISSING_SHARDS) else {}
    return {"content": digest_of(files), **{name: manifest[name] for name in RECIPE if name in manifest}, **missing}


def plugins_section(specs: Iterable[tuple[Kind, str]]) -> dict[str, dict[str, str | None]]:
    """Return distribution, version and source of the plugins in `specs`, and of the plugins that their options name."""
    plugins: dict[str, dict[str, str | None]] = {}
    pending = list(specs)
    while pending:
        kind, spec = pending.pop(0)
        item, values = default_registry().resolve(kind, spec)
        name = f"{kind.replace('_', ' ')} {item.name}"
        if name in plugins:
            continue
        plugins[name] = {"distribution": item.distribution, "version": item.version, "source": source_digest(item)}
        texts = [values.get(option.name, option.default) for option in item.options if option.type is str]
        pending += [(kind, text) for text in texts if text is not None and _is_registered(kind, text)]
    return plugins


def resolved(kind: Kind, spec: str) -> str:
    """Return the spec of a plugin with all its options, including options at their default; files with a digest."""
    item, values = default_registry().resolve(kind, spec)
    options = ",".join(f"{option.name}={_identified(values.get(option.name, option.default))}" for option in item.options)
    return f"{item.name}:{options}" if options else item.name


def _identified(value: Any) -> Any:
    """Return the value of an option; the name of a file with a digest of its content."""
    is_file = isinstance(value, str) and value != "" and Path(value).is_file()
    return f"{value} ({digest(Path(value))})" if is_file else value


def versions(*distributions: str) -> dict[str, str]:
    """Return the versions of installed distributions."""
    return {name: version(name) for name in distributions}


def write_record(record: Record, file: Path) -> None:
    """Write a record, atomically."""
    with replaced_file(file) as partial:
        partial.write_text(json.dumps({"format": FORMAT, **record}, indent=2) + "\n")


def read_record(file: Path) -> Record | None:
    """Return a record, or None if the file is missing, damaged or of another format."""
    try:
        stored = read_json(file, "json_bytes")
    except (OSError, ValueError):
        return None
    return stored if stored.pop("format", None) == FORMAT else None


def as_json(record: Record) -> Record:
    """Return a record as `read_record` would return it: lists instead of tuples, strings instead of other objects."""
    return json.loads(json.dumps(record, default=str))  # type: ignore[no-any-return]


def _entries(section: Any, path: tuple[str, ...] = ()) -> Iterable[tuple[tuple[str, ...], Any]]:
    if not isinstance(section, Mapping):
        yield path, section
        return
    for name, value in section.items():
        yield from _entries(value, (*path, name))


def _name(path: tuple[str, ...]) -> str:
    """Return the name of an entry in words: the option of the command line, or "the version of torch"."""
    section, *names = path
    if not names:
        return f"the {section}"
    if section == "open_clip":
        return f"--{names[0].replace('_', '-')}"
    if path[-1].startswith("--"):
        return path[-1]
    if section == "versions":
        return f"the version of {path[-1]}"
    if section == "plugins":
        return f"the {' of the '.join(reversed(names))}"
    return f"the {' of the '.join(reversed(names if section in ('method', 'start') else path))}".replace("_", " ")


def _distinct(first: Any, second: Any) -> tuple[str, str]:
    """Return two values as text. If both are specs of one plugin, keep only the options that differ."""
    a, b = ("none" if value in (None, "") else str(value)[:MAX_CHARACTERS] for value in (first, second))
    if ":" not in a or a.partition(":")[0] != b.partition(":")[0]:
        return a, b
    specs = [text.partition(":") for text in (a, b)]
    options = [rest.split(",") for _, _, rest in specs]
    different = [[option for option in own if option not in other] for own, other in (options, options[::-1])]
    a, b = (f"{name}:{','.join(texts)}" for (name, _, _), texts in zip(specs, different, strict=True))
    return a, b


def _is_registered(kind: Kind, spec: str) -> bool:
    try:
        return bool(default_registry().get(kind, parse_spec(spec)[0]))
    except PluginError:  # the text names no plugin
        return False
