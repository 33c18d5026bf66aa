"""PyTorch Lightning: a callback that wraps the loader, owns the loss, re-clusters with the model being trained, and logs.

Batches are ``(batch, index)``: what Lightning fetches, moves and hands to ``training_step`` carries the index of its samples.
"""

from clip_negatives.errors import MissingPackageError

try:
    from clip_negatives.integrations.lightning.callback import NegativesCallback
except ImportError as error:
    raise MissingPackageError.of("lightning", error) from error

__all__ = ["NegativesCallback"]
