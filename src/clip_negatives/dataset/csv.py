"""Read csv files as open_clip does."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_negatives.dataset.columns import SEPARATORS, argument_of
from clip_negatives.dataset.urls import check_local_file, open_decompressed, unreadable
from clip_negatives.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

NO_SEPARATOR = "\x1f"  # a control character: pandas then reads the first line as one name
NEAR = 20  # bytes before and after a fault that are shown
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_csv(path: Path | str, separator: str | None = None, texts: Sequence[str] = ()) -> tuple[pd.DataFrame, str]:
    """Return all rows of a csv file and its separator; DataError if it cannot be read.

    `separator` None: the most frequent of `SEPARATORS` in the header. The columns `texts` are read as strings: 007 stays 007.

    The file is in UTF-8 and may be compressed (``.gz``, ``.bz2``, ``.xz``, ``.zst``).
    """
    import pandas as pd

    if separator == "":
        raise DataError(f"The csv separator is empty. Use {argument_of('separator')} with the character between columns.")
    check_local_file("csv file", str(path))
    try:
        separator = separator or found_separator(path)
        with _source(path) as source:
            # open_clip's own call, so that the rows are the same
            frame = pd.read_csv(source, sep=separator, dtype=dict.fromkeys(texts, str) or None)
    except DataError:
        raise
    except UnicodeDecodeError as error:
        raise DataError(_encoding_fault(path)) from error
    except (ValueError, re.error) as error:  # ValueError: also the errors of pandas
        if type(error) is ValueError and not isinstance(path, Path):  # fsspec: an unknown protocol, or no ranges
            raise unreadable("csv file", path, error) from error
        if isinstance(error, pd.errors.EmptyDataError):
            raise DataError(f"The csv file {path} is empty. Add a line with the names of the columns, and pairs.") from error
        reason = " ".join(str(error).split()).removeprefix("Error tokenizing data. C error: ")
        by = "" if separator is None else f" separated by {separator!r}"
        repair = f"Correct the file or {argument_of('separator')}."
        raise DataError(f"{path} is not a csv file{by}: {reason}. {_other_separator(path, separator) or repair}") from error
    except Exception as error:  # each file system of fsspec has its own errors
        raise unreadable("csv file", str(path), error) from error
    if not isinstance(frame.index, pd.RangeIndex):  # pandas then takes the first column as the index, and shifts all others
        fault = f"The rows of {path} have more fields than its first line has names of columns"
        repair = f"Put texts that contain {separator!r} in quotation marks, or complete the first line."
        raise DataError(f"{fault}. {_other_separator(path, separator) or repair}")
    return frame, separator


def _other_separator(path: Path | str, separator: str | None) -> str:
    """Return the advice to use the separator that is found, "" if it is the present one or cannot be found."""
    with suppress(ValueError):
        if (likely := found_separator(path)) != separator:
            return f"Its columns seem to be separated by {likely!r}. Use {argument_of('separator')}."
    return ""


def found_separator(path: Path | str) -> str:
    """Return the most frequent of `SEPARATORS` in the first line of a file; a tab if there is none."""
    import pandas as pd

    with _source(path) as source:
        header = " ".join(map(str, pd.read_csv(source, sep=NO_SEPARATOR, nrows=0).columns))
    return max(SEPARATORS, key=header.count)


def _encoding_fault(path: Path | str) -> str:
    """Return an error message with the first line that is not UTF-8, and how to repair the file."""
    is_utf_8 = False  # whether an earlier line has a character that only UTF-8 writes so
    with open_decompressed(str(path), "csv file") as stream:
        for number, line in enumerate(stream, 1):
            if number == 1 and line.startswith(UTF_16):
                return f"{path} is not in UTF-8 but in UTF-16. Convert it with: iconv -f UTF-16 -t UTF-8 FILE > NEW_FILE"
            try:
                line.decode()
            except UnicodeDecodeError as error:
                near = line[max(0, error.start - NEAR) : error.start + NEAR].decode("latin-1").strip()
                where = f"line {number} has the byte {line[error.start]:#04x} in {near!r}"
                if is_utf_8:
                    return f"{path} has several encodings: {where}, and earlier lines are in UTF-8. Correct this line."
                convert = "Convert it, if it is in Latin-1, with: iconv -f LATIN1 -t UTF-8 FILE > NEW_FILE"
                return f"{path} is not in UTF-8: {where}. {convert}"
            is_utf_8 |= not line.isascii()
    return f"{path} is not in UTF-8. Convert it."  # it changed while it was read


def _source(path: Path | str) -> AbstractContextManager[Any]:
    """Return what pandas reads: a path as in open_clip, or the opened file of a URL, whose failed reads are repeated."""
    return nullcontext(path) if isinstance(path, Path) else open_decompressed(path, "csv file")
