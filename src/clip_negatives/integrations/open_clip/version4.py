"""open_clip 4: a task holds model and loss; batches are dicts."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import open_clip_train.data
import open_clip_train.file_utils
import open_clip_train.main
import open_clip_train.train
import torch
from open_clip.task import CLIPTask, SigLIPTask, get_model_from_task
from torch.utils.data import DataLoader, default_collate
from webdataset import rename, to_tuple

from clip_negatives.errors import UnsupportedError
from clip_negatives.integrations.open_clip.adapter import Adapter, Epoch, Replacement
from clip_negatives.integrations.open_clip.seam import Negatives
from clip_negatives.losses.module import NegativesClipLoss

# Options that do not work with another value than the default, and the reason.
_CAPTIONS = "--csv-caption-key names the ending or json field of the captions"
UNSUPPORTED = {
    "use_naflex": (False, "its batches have no sample ids"),
    "fsdp": (False, "the checks and the re-clustering need all weights on each process"),
    "json_text_key": (None, _CAPTIONS),
    "text_key": ("txt", _CAPTIONS),
    "image_key": ("jpg;png;jpeg;webp", "images in tars have the endings jpg, png, jpeg and webp"),
}


class OpenClip(Adapter):
    """The training of open_clip 4."""

    main = open_clip_train.main
    checkpoint_reader = open_clip_train.file_utils, "pt_load"

    def unsupported(self, args: Namespace) -> Iterator[tuple[str, str]]:
        """Yield models without a contrastive loss, and options of other batches than those of the clustered samples."""
        if "genlip" in args.model.lower() or "genlap" in args.model.lower():
            yield f"--model {args.model}", "it has no contrastive loss"
        for name, (default, reason) in UNSUPPORTED.items():
            if getattr(args, name, default) != default:
                yield f"--{name.replace('_', '-')}", reason

    def checks(self) -> list[Replacement]:
        """Return ``create_task`` with a check of the task."""
        return [(self.main, "create_task", partial(_checked_task, self.main.create_task))]

    def replacements(self, negatives: Negatives) -> list[Replacement]:
        """Return ``get_data``, ``train_one_epoch``, which sets the loss of the task, and the data set of synthetic data."""
        own_train_one_epoch = self.main.train_one_epoch

        def get_data(args: Namespace, preprocess_fns: Any, epoch: int = 0, tokenizer: Any = None, **_: Any) -> Any:
            data = negatives.get_data(args, preprocess_fns, epoch, tokenizer)
            if "val" in data and isinstance(loader := data["val"].dataloader, DataLoader):
                loader.collate_fn = _collated
            return data

        def train_one_epoch(state: Any, data: Any, args: Namespace, tb_writer: Any = None) -> None:
            if not isinstance(state.task.loss, NegativesClipLoss):
                loss = negatives.create_loss(args)
                state.task.loss = _outside_graphs(loss) if args.torchcompile else loss
            train = partial(own_train_one_epoch, state, data, args, tb_writer=tb_writer)
            model = get_model_from_task(state.task)
            negatives.train_epoch(Epoch(state.epoch, model, state.task.loss, state.optimizer, tb_writer, train))

        functions = {"get_data": get_data, "train_one_epoch": train_one_epoch}
        return [
            *((self.main, name, function) for name, function in functions.items()),
            (open_clip_train.data, "SyntheticDataset", SyntheticPairs),
        ]

    def keep_entries(self, stages: list[Any], entries: tuple[str, ...]) -> bool:
        """Keep the entries in ``rename``, and insert ``to_tuple`` before ``batched``."""
        names = [getattr(getattr(stage, "f", None), "__name__", "") for stage in stages]
        if names.count("_rename") != 1 or names.count("_batched") != 1:
            return False
        place = names.index("_rename")
        stages[place] = rename(**stages[place].kw, **{name: name for name in entries})
        stages.insert(names.index("_batched"), to_tuple("image", "text", *entries))
        return True

    def as_batch(self, batch: Any) -> Any:
        """Return ``{"image": images, "text": tokens}``."""
        return _named(batch)

    def wandb(self, args: Namespace) -> Any:
        """Return wandb or trackio, as ``--report-to`` names it."""
        return open_clip_train.train.get_wandb_backend(args)


class SyntheticPairs(open_clip_train.data.SyntheticDataset):  # type: ignore[misc]
    """open_clip's synthetic data as pairs ``(image, tokens)``, like our tables."""

    def __getitem__(self, idx: int) -> tuple[Any, Any]:
        sample = super().__getitem__(idx)
        return sample["image"], sample["text"]


def _named(pair: Any) -> dict[str, Any]:
    images, tokens = pair
    return {"image": images, "text": tokens}


def _collated(samples: list[Any]) -> dict[str, Any]:
    """Return a batch of our tables or synthetic pairs, for open_clip's evaluation."""
    return _named(default_collate(samples))


def _outside_graphs(loss: NegativesClipLoss) -> NegativesClipLoss:
    """Keep a loss out of the graphs of ``--torchcompile``: it reads the samples of the batch, which differ at each call."""
    forward: Callable[..., Any] = loss.forward
    loss.forward = torch.compiler.disable(forward)  # type: ignore[method-assign]
    return loss


def _checked_task(create_task: Callable[..., Any], args: Namespace, model: Any, *rest: Any, **named: Any) -> Any:
    """Return the task for a model; UnsupportedError if its loss or its captions are of another kind."""
    task = create_task(args, model, *rest, **named)
    fault = ""
    if type(task) not in (CLIPTask, SigLIPTask):
        fault = f"is trained with {type(task).__name__}, and the weights fit only the contrastive loss of CLIP"
    elif args.variable_text:
        fault = "has captions of variable length, and the batches need tokens of one length"
    if fault:
        raise UnsupportedError(f"--model {args.model} {fault}. Use another model, or train with open_clip_train itself.")
    return task
