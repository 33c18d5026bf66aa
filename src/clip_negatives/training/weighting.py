"""The loss weighting of a training run; a weighting that removes all incorrect pairs is an error."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_negatives.anchor_loss import AnchorLoss, StepTerms
from clip_negatives.anchors import anchors
from clip_negatives.errors import InputError
from clip_negatives.host import registry
from clip_negatives.interfaces import Clusters, LossTerms
from clip_negatives.losses.functional import pair_log_weights
from clip_negatives.losses.kernels import log_weights
from clip_negatives.losses.plugin_losses import FiniteLosses, losses_of, terms_of
from clip_negatives.plugin_code import no_exit
from clip_negatives.sampling import epoch_generator
from clip_negatives.step import BatchSamples, Position, Step, StepSamples, Towers

ROWS = 256  # samples to try an anchor loss on, and images of a batch that `batch_keeps_pairs` checks
DIM, SCALE = 32, 14.3  # size of the random features, and open_clip's initial logit scale
DRAWN = 2**16  # random incorrect pairs to check; if none of them is kept, the model cannot learn


def loss_terms(weighting: str, clusters: Clusters | None, *, teacher: bool = True) -> LossTerms | AnchorLoss:
    """Return the terms, or the anchor loss, of a weighting.

    Args:
        weighting: ``name`` or ``name:key=value,...`` of the weighting.
        clusters: the clusters; None for a weighting that needs none.
        teacher: whether the training has a teacher, or may have one.

    Raises:
        InputError: the weighting removes all incorrect pairs, or needs a teacher.
    """
    create = registry.create("loss_weighting", weighting)
    with no_exit():
        terms: LossTerms | AnchorLoss = create(clusters)
    n_pairs = DRAWN if isinstance(terms, LossTerms) else ROWS * (ROWS - 1)
    if not (keeps_pairs(terms) if isinstance(terms, LossTerms) else teaches(terms, clusters, teacher=teacher)):
        raise InputError(
            f"The weighting {weighting} removes all of {n_pairs:,} random incorrect pairs, so the model would learn nothing. "
            "Use options that remove fewer pairs, or make more clusters."
        )
    return terms


def keeps_pairs(terms: LossTerms) -> bool:
    """Return whether any of `DRAWN` random incorrect pairs stays in the loss."""
    n, generator = terms.n_samples, epoch_generator(0, 0)
    if n is None or n < 2:
        return True
    images = torch.randint(n, (DRAWN,), generator=generator)
    texts = (images + torch.randint(1, n, (DRAWN,), generator=generator)) % n
    kept = pair_log_weights(terms, images, texts) > -torch.inf
    if terms.groups is not None:
        # Pairs of one group are positives, which have a gradient, or they are removed.
        same_group = terms.groups[images] == terms.groups[texts]
        kept = kept | same_group if terms.attract else kept & ~same_group
    return bool(kept.any())


def teaches(loss: AnchorLoss, clusters: Clusters | None, *, teacher: bool = True) -> bool:
    """Return whether a batch of `ROWS` random samples and features has a gradient; the state of the loss is restored."""
    n_samples = ROWS if clusters is None else clusters.n_samples
    if n_samples < 2:
        return True
    generator = epoch_generator(0, 0)
    ids = torch.randperm(n_samples, generator=generator)[:ROWS]
    x, y = (F.normalize(torch.randn(len(ids), DIM, generator=generator), dim=1).requires_grad_() for _ in range(2))
    features, position = Towers(x, y), Position.of(epoch=0, step=0, total_steps=1)
    taught = features.map(Tensor.detach) if teacher else None
    of_run = None, position, loss.clusters, taught, taught
    step = Step(StepSamples(ids, ids), features, features, torch.tensor(SCALE), *of_run)
    if isinstance(loss, StepTerms):
        return keeps_pairs(terms_of(loss, step, check_values=True))
    loss.begin(ids)
    losses = losses_of(loss, anchors(step))
    loss.begin(ids, again=True)
    FiniteLosses().check(loss, losses, features, step.scale)
    return bool(torch.autograd.grad(losses.sum(), x)[0].any())


def batch_terms(terms: LossTerms, samples: BatchSamples) -> LossTerms:
    """Return the terms of a batch, on the devices of `terms`; InputError if the batch lacks ids or labels that they need.

    Without the progress of the training, scheduled weights have their full strength.
    """
    if samples.progress is not None:
        terms = terms.at(samples.progress)
    needed = "labels" if terms.by_label else "ids" if terms.per_sample() else None
    if needed is None:
        return terms
    values = getattr(samples, needed)
    if values is None:
        raise InputError(f"The weighting needs {needed} of the batch. Pass samples=BatchSamples({needed}=...) to the loss.")
    return terms.with_labels(values) if terms.by_label else terms.map_samples(lambda rows: rows[values.to(rows.device)])


def batch_keeps_pairs(terms: LossTerms, samples: BatchSamples) -> bool:
    """Return whether an incorrect pair of the first `ROWS` images of a batch stays in the loss; `terms` are on the CPU."""
    if len(samples) < 2 or (terms.n_samples is None and not terms.by_label):
        return True
    batch = batch_terms(terms, samples)
    rows = batch.map_samples(lambda values: values[:ROWS])
    kept = log_weights.block(rows, batch) > -torch.inf
    if batch.groups is not None and batch.attract:
        kept |= batch.groups[:ROWS, None] == batch.groups
    kept.fill_diagonal_(False)
    return bool(kept.any())
