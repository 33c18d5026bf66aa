"""The caption of a sample of a tar: a file with a chosen ending, or a field of the ``.json``.

`prepare` and training both call `with_caption`, so that they use the same texts.
"""

from __future__ import annotations

from typing import Any

from clip_negatives.dataset.columns import argument_of
from clip_negatives.printing import printable
from clip_negatives.storage.safe_reading import parse_json

RawSample = dict[str, Any]  # contents of the files of a sample by ending (None: too large), and its ``__key__``

NO_CAPTION = "no "  # start of the reason why a sample without a caption is left out
KEPT = ("__key__", "__url__")  # entries that webdataset adds: key of the sample, and address of its tar
SHOWN = 100  # characters of a list of endings or fields


def ending_of(field: str | None) -> str:
    """Return the file ending that `field` stands for: "cls" for ".CLS", "txt" for None."""
    return "txt" if field is None else field.lower().removeprefix(".")


def with_caption(sample: RawSample, field: str | None) -> RawSample:
    r"""Return a sample whose ``txt`` is its caption, UTF-8; a sample without a caption has no ``txt``.

    `field` None is the ``.txt``. Otherwise, the caption is the file with this ending, else this field of the ``.json``. White
    space around the caption is removed, but not from a ``.txt``, which open_clip reads unchanged. A JSON number becomes its
    text. A null, a list and an object are no caption.

    Examples:
        >>> with_caption({"cls": b"7\n", "txt": b"shoe"}, "cls")
        {'txt': b'7'}
        >>> with_caption({"json": b'{"caption": "shoe"}'}, "caption")
        {'json': b'{"caption": "shoe"}', 'txt': b'shoe'}
    """
    if field is None:
        return sample
    ending = ending_of(field)
    # Remove the file, because webdataset would decode it: a .cls that is no number would make it skip the sample.
    rest = {name: content for name, content in sample.items() if name not in {"txt", ending} - {"json", *KEPT}}
    if ending in sample and ending not in KEPT:
        content = sample[ending]
        return {**rest, "txt": content if ending == "txt" or content is None else content.strip()}
    value = json_fields(sample).get(field)
    if value is None or isinstance(value, list | dict) or value != value:  # JSON of Python can have NaN
        return rest
    text = value if isinstance(value, str) else str(value)
    return {**rest, "txt": text.strip().encode("utf-8", "backslashreplace")}  # JSON can escape text that is not valid UTF-8


def why_no_caption(sample: RawSample, field: str | None) -> str:
    """Return why `with_caption` finds no caption, such as "no .txt"."""
    if field is None:
        return f"{NO_CAPTION}.txt"
    fault = f"{NO_CAPTION}.{ending_of(field)} and no json field {field!r}"
    fields = json_fields(sample)
    if field not in fields:
        return fault
    value = fields[field]
    kinds = "null" * (value is None) or "a list" * isinstance(value, list) or "an object" * isinstance(value, dict)
    return f"{fault}: it is {kinds or 'not a number'}"


def contents(sample: RawSample) -> str:
    """Return the endings of a sample and the fields of its ``.json``, as a list for messages."""
    endings = ", ".join(f".{ending}" for ending in sample if not ending.startswith("__"))
    fields = ", ".join(json_fields(sample))
    return printable(endings[:SHOWN]) + (f" (fields: {printable(fields[:SHOWN])})" if fields else "")


def json_fields(sample: RawSample) -> dict[str, Any]:
    """Return the fields of the ``.json`` of a sample, empty if it is missing or damaged."""
    try:
        value = parse_json(sample.get("json") or b"{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def remedy(reason: str, option: str = "") -> str:
    """Return the advice if no sample can be used. `reason` says why one was left out; `option` sets the caption field."""
    if reason.startswith(NO_CAPTION) and not reason.startswith("no image"):
        return f"Name the ending or the json field of the caption with {option or argument_of('text')}."
    return "Check the data."
