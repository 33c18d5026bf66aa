"""The Markdown file of a result card: its sections, its metadata, and the mark by which a card of ours is known."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_negatives.printing import log, printable
from clip_negatives.storage.ownership import replaced_file

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

NAME = "result-card.md"
MARK = "<!-- clip-negatives "  # of the last line, before a digest of the lines above: an edited card is not ours any more
SECRETS = (
    re.compile(r"(?<=://)[^/@\s'\"]+(?=@)"),  # user and password of an address
    re.compile(r"(?<=\?)[^\s'\"&]+=[^\s'\"]+"),  # query of an address, such as a signature
    re.compile(r"(?i)(?<=authorization: )[^'\"]+"),  # header of a command such as curl
)
HIDDEN = "HIDDEN"
TAGS = ["clip", "clip-negatives", "contrastive-learning", "image-text-retrieval"]
PAPER = """@inproceedings{tagami2024automatic,
  title = {Automatic data generation of incorrect image-text pairs for effective contrastive learning of CLIP model},
  author = {Tagami, Rina and Kobayashi, Hiroki and Akizuki, Shuichi and Hashimoto, Manabu},
  booktitle = {WSCG 2024: full papers proceedings},
  pages = {187--196},
  year = {2024},
  url = {http://hdl.handle.net/11025/57391}
}"""
SOFTWARE = """@software{{clip_negatives,
  title = {{clip-negatives}},
  author = {{{{The clip-negatives developers}}}},
  version = {{{version}}},
  license = {{Apache-2.0}}
}}"""


def write_card(
    folder: Path, title: str, answer: str, sections: Mapping[str, str], results: Sequence[EvalResult], **metadata: Any
) -> Path | None:
    """Write the card into a folder, atomically, and return its path; None if a file that is not ours has its name.

    The file depends on its arguments and the version of this package only.

    Args:
        folder: folder of the result.
        title: the first heading, and the name of the model in the metadata.
        answer: the result in one sentence or two.
        sections: texts in Markdown, by heading.
        results: measured figures.
        **metadata: further arguments of `huggingface_hub.ModelCardData`.
    """
    from huggingface_hub import ModelCard, ModelCardData

    file = folder / NAME
    if file.exists() and not is_ours(file):
        log(f"No result card was written: {file} was edited, or clip-negatives did not write it. Move it, then run again.")
        return None
    named: dict[str, Any] = {"model_name": printable(title), "eval_results": list(results)} if results else {}
    data = ModelCardData(tags=TAGS, **named, **metadata)
    citation = block(f"{PAPER}\n\n{SOFTWARE.format(version=version('clip-negatives'))}", "bibtex")
    texts = {**sections, "Citation": f"The paper of the default method, and this software:\n\n{citation}"}
    parts = [f"# {escaped(title)}", escaped(answer), *(f"## {heading}\n\n{text}" for heading, text in texts.items())]
    content = str(ModelCard("\n\n".join([f"---\n{data.to_yaml()}\n---", *parts]))) + "\n"
    with replaced_file(file) as partial:
        partial.write_text(f"{content}{_mark(content)}\n", encoding="utf-8", newline="\n")
    return file


def is_ours(file: Path) -> bool:
    """Return whether this package wrote a card, and nobody edited it."""
    try:
        content, mark, digest = file.read_text(encoding="utf-8").rpartition(MARK)
    except (OSError, ValueError):
        return False
    return f"{mark}{digest}".strip() == _mark(content)


def dataset_metadata(location: str | None) -> dict[str, Any]:
    """Return the metadata that name a data set of the hub; empty for other data."""
    dataset = re.search(r"huggingface\.co/datasets/([\w.-]+/[\w.-]+)/", location or "")
    return {"datasets": [dataset[1]]} if dataset else {}


def data_line(role: str, location: str | None, count: int, digests: Mapping[str, Any]) -> str:
    """Return the line of a data set: its file name, its number of pairs, and its digests."""
    contents = "".join(f", {name} {code(value)}" for name, value in digests.items())
    return f"* {role}: {code(file_name(location or 'synthetic data'))}, {count:,} pairs{contents}"


def file_name(location: str) -> str:
    """Return the file name of a data set at a path or URL."""
    return Path(without_secrets(location)).name


def versions_lines(versions: Mapping[str, str]) -> str:
    """Return a list of packages and their versions."""
    return "\n".join(f"* {name} {text}" for name, text in versions.items())


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; its cells are Markdown without line breaks or unescaped bars."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def code(value: object) -> str:
    """Return a text as inline code, also in a table; control characters are escaped."""
    text = printable(str(value)).replace("|", "\\|")
    fence = "`" * (_longest_run(text) + 1)
    space = " " if "`" in text else ""
    return f"{fence}{space}{text}{space}{fence}"


def command_block(command: str) -> str:
    """Return a command as a block of code without passwords, signatures and tokens, since cards are published."""
    shown = without_secrets(command)
    said = "" if shown == command else f"\n\nPasswords and tokens are replaced by {HIDDEN}."
    return block(shown, "bash") + said


def without_secrets(text: str) -> str:
    """Return a command or an address without passwords, signatures and tokens."""
    for secret in SECRETS:
        text = secret.sub(HIDDEN, text)
    return text


def block(text: str, language: str) -> str:
    """Return lines as a block of code."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def escaped(text: str) -> str:
    """Return a text of one line whose characters Markdown and HTML do not interpret."""
    return re.sub(r"([\\`*\[\]<>|#])", r"\\\1", printable(text))


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def _mark(content: str) -> str:
    return f"{MARK}{hashlib.sha256(content.encode()).hexdigest()} -->"
