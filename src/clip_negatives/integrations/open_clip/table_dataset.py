"""Tables of any format in place of open_clip's csv data."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import pyarrow as pa
from open_clip_train import data as open_clip_data
from PIL import Image
from torch.utils.data import Dataset

from clip_negatives.advice import named
from clip_negatives.batches.extras import Captions
from clip_negatives.dataset import Columns, open_table
from clip_negatives.dataset.formats import kind_of
from clip_negatives.dataset.images import check_regular
from clip_negatives.integrations.open_clip.adapter import Replacement
from clip_negatives.integrations.open_clip.arguments import OPTIONS
from clip_negatives.printing import log

open_clip_dataset_fn = open_clip_data.get_dataset_fn


class TableDataset(Dataset[Any]):
    """The samples of a table, as ``open_clip_train.data.CsvDataset`` gives those of a csv file.

    The arguments are those of open_clip, and `dataset_type`. An empty column or separator is detected. An image that is a pipe
    or another special file raises OSError.

    Attributes:
        captions: text of each row, in Arrow's memory: lists of Python strings take more, and each worker would copy them.
        transforms: function of an undecoded image.
        tokenize: function of a list of texts.
    """

    def __init__(
        self,
        input_filename: str,
        transforms: Any,
        img_key: str,
        caption_key: str,
        sep: str = "",
        tokenizer: Any = None,
        *,
        variable_text: bool = False,
        dataset_type: str = "auto",
    ) -> None:
        columns = Columns(img_key or None, caption_key or None, None, sep or None)
        with named(OPTIONS):
            self.pairs = open_table(input_filename, columns, dataset_type=dataset_type)
        log(self.pairs.summary, logging.INFO)
        self.captions = Captions(pa.table({"text": self.pairs.text_column}))
        self.transforms, self.tokenize = transforms, tokenizer

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, idx: int) -> tuple[Any, Any]:
        file = self.pairs.stored.file(idx)
        check_regular(file)
        return self.transforms(Image.open(file)), self.tokenize([self.captions[idx]])[0]


def dataset_function(location: str, dataset_type: str) -> Callable[..., Any]:
    """Return open_clip's function that opens data of this type: its csv function for every table."""
    is_table = dataset_type != "synthetic" and kind_of(location, dataset_type) != "webdataset"
    function: Callable[..., Any] = open_clip_data.get_csv_dataset if is_table else open_clip_dataset_fn(location, dataset_type)
    return function


def replacements(dataset_type: str) -> list[Replacement]:
    """Return the attributes of open_clip to replace."""
    dataset = functools.partial(TableDataset, dataset_type=dataset_type)
    return [(open_clip_data, "CsvDataset", dataset), (open_clip_data, "get_dataset_fn", dataset_function)]
