"""accelerate's training loop: the loader of `attach`, prepared, and stored in accelerate's checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from clip_negatives.batches.loader import IndexedLoader
from clip_negatives.errors import InputError, MissingPackageError
from clip_negatives.losses.module import NegativesClipLoss

try:
    from accelerate import Accelerator
except ImportError as error:
    raise MissingPackageError.of("accelerate", error) from error


class AcceleratedLoader:
    """The loader of `attach`, prepared by accelerate, whose place in the epoch is in accelerate's checkpoints.

    `Accelerator.save_state` stores the place of the loader, what the sampler has learned, and the buffers and parameters of
    the loss. After `Accelerator.load_state`, the first epoch of ``range(loader.epoch, EPOCHS)`` yields the batches that were
    left. The gradients of a step that is not complete are not stored: save when ``accelerator.sync_gradients`` is true.

    Args:
        accelerator: prepares the loader, and stores loader and loss.
        loader: the loader of `attach`, not prepared.
        loss: the loss of `attach`; it is moved to the device of the accelerator.

    Raises:
        InputError: `loader` is not a loader of `attach`, or is prepared already.

    Attributes:
        loss: the loss on the device of the accelerator.
    """

    def __init__(self, accelerator: Accelerator, loader: IndexedLoader, loss: NegativesClipLoss) -> None:
        if type(loader) is not IndexedLoader:
            raise InputError(
                f"Expected the loader of clip_negatives.attach, got an object of type {type(loader).__name__}. Do not prepare "
                "the loader yourself."
            )
        self._attached, self._prepared = loader, accelerator.prepare(loader)
        self.loss = loss.to(accelerator.device)
        accelerator.register_for_checkpointing(loader, self.loss)

    @property
    def epoch(self) -> int:
        """Return the epoch of the next iteration."""
        return self._attached.epoch

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration; the place of `Accelerator.load_state` is kept if it is in this epoch."""
        self._attached.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self._attached)

    def __iter__(self) -> Iterator[Any]:
        """Yield ``(batch, samples)`` on the device of the accelerator."""
        return self._attached.counted(self._batches)

    def _batches(self) -> Any:
        self._prepared.set_epoch(self.epoch)  # accelerate counts epochs itself, from 0 after a resume
        return self._prepared
