"""open_clip 3: the training loop gets model, loss and optimizer; batches are tuples."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from functools import partial
from typing import Any

import open_clip_train.main
import open_clip_train.train
import webdataset

from clip_negatives.integrations.open_clip.adapter import Adapter, Epoch, Replacement
from clip_negatives.integrations.open_clip.seam import Negatives


class OpenClip(Adapter):
    """The training of open_clip 3."""

    main = open_clip_train.main
    checkpoint_reader = open_clip_train.main, "pt_load"

    def unsupported(self, args: Namespace) -> Iterator[tuple[str, str]]:
        """Yield ``--horovod``."""
        if args.horovod:
            yield "--horovod", "the loss gathers samples with torch.distributed"

    def checks(self) -> list[Replacement]:
        """Return nothing: the arguments show which models are not supported."""
        return []

    def replacements(self, negatives: Negatives) -> list[Replacement]:
        """Return ``get_data``, ``create_loss`` and ``train_one_epoch``."""
        own_train_one_epoch = self.main.train_one_epoch

        def train_one_epoch(
            model: Any, data: Any, loss: Any, epoch: int, optimizer: Any, *rest: Any, tb_writer: Any = None, **named: Any
        ) -> None:
            train = partial(own_train_one_epoch, model, data, loss, epoch, optimizer, *rest, tb_writer=tb_writer, **named)
            negatives.train_epoch(Epoch(epoch, _unwrapped(model), loss, optimizer, tb_writer, train))

        functions = {"get_data": negatives.get_data, "create_loss": negatives.create_loss, "train_one_epoch": train_one_epoch}
        return [(self.main, name, function) for name, function in functions.items()]

    def keep_entries(self, stages: list[Any], entries: tuple[str, ...]) -> bool:
        """Replace ``to_tuple("image", "text")``."""
        places = [place for place, stage in enumerate(stages) if getattr(stage, "args", ()) == ("image", "text")]
        if len(places) == 1:
            stages[places[0]] = webdataset.to_tuple("image", "text", *entries)
        return len(places) == 1

    def as_batch(self, batch: Any) -> Any:
        """Return the batch as it is."""
        return batch

    def wandb(self, args: Namespace) -> Any:
        """Return wandb with ``--report-to wandb``."""
        return open_clip_train.train.wandb if args.wandb else None


def _unwrapped(model: Any) -> Any:
    return open_clip_train.train.unwrap_model(getattr(model, "_orig_mod", model))
