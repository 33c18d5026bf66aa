"""What every loss weighting must do."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_negatives.anchors import AnchorLoss
from clip_negatives.errors import ClipNegativesError
from clip_negatives.interfaces import Clustering, Clusters, LossTerms
from clip_negatives.sampling import epoch_generator
from clip_negatives.terms import TENSORS_OF_TERMS
from clip_negatives.testing import anchor_losses
from clip_negatives.testing.blobs import changed_parts, make_blobs
from clip_negatives.testing.steps import DIM, SCALE, B, N, Terms, batch, batch_index, make_terms, value
from clip_negatives.testing.subject import (
    Check,
    ConformanceError,
    NotApplicableError,
    Subject,
    expect,
    global_generators_kept,
)


def terms_or_an_anchor_loss_is_returned(plugin: Subject) -> None:
    """It returns `LossTerms` or an `AnchorLoss`."""
    found = make_terms(plugin)
    expect(isinstance(found, Terms), f"Expected LossTerms or an AnchorLoss, got {type(found).__name__}.")


def labels_name_rows_of_their_tables(plugin: Subject) -> None:
    """Per-sample tensors have N entries; tables are float32, square or as wide as their lists, and hold every label."""
    terms = _terms(plugin)
    for name, labels, table, listed in (
        ("image", terms.image_labels, terms.image_table, terms.image_listed),
        ("text", terms.text_labels, terms.text_table, terms.text_listed),
    ):
        expect((labels is None) == (table is None), f"Expected {name}_labels and {name}_table together, got one of them.")
        if labels is not None and table is not None:
            width = len(table) if listed is None else listed.shape[1] + 1
            fits = table.ndim == 2 and table.shape[1] == width and table.dtype == torch.float32
            fits = fits and (listed is None or len(listed) == len(table))
            expect(fits, f"Expected a float32 {name}_table, {width} wide, got {table.dtype} of shape {tuple(table.shape)}.")
            within = labels.dtype == torch.int64 and 0 <= int(labels.min()) <= int(labels.max()) < len(table)
            expect(within, f"Expected int64 {name}_labels within 0 .. {len(table) - 1}.")
    for name in ("image_labels", "text_labels", "groups", "factors"):
        part = getattr(terms, name)
        expect(part is None or len(part) == N, f"Expected {name} of {N} samples, got {part if part is None else len(part)}.")


def log_weights_are_numbers(plugin: Subject) -> None:
    """Tables are within [-inf, inf) and factors finite: no NaN, no infinite weight."""
    terms = _terms(plugin)
    for name in ("image_table", "text_table"):
        table = getattr(terms, name)
        sound = table is None or not bool((table.isnan() | (table == math.inf)).any())
        expect(sound, f"Expected {name} within [-inf, inf), got NaN or infinity.")
    expect(terms.factors is None or bool(terms.factors.isfinite().all()), "Expected finite factors, got NaN or infinity.")


def numbers_are_in_their_ranges(plugin: Subject) -> None:
    """Rates are within 0 .. 1 without 1, hardness and the positive's weight finite and not negative, the margin a cosine."""
    terms = _terms(plugin)
    if terms.positive_rate is not None:
        low, high = float(terms.positive_rate.min()), float(terms.positive_rate.max())
        expect(0 <= low <= high < 1, f"Expected positive_rate within 0 .. 1, without 1, got {low:g} .. {high:g}.")
    for name in ("hardness", "positive_weight"):
        value = getattr(terms, name)
        expect(0 <= value < math.inf, f"Expected {name} of at least 0, got {value}.")
    expect(terms.margin is None or -2 <= terms.margin <= 2, f"Expected a margin within -2 .. 2, got {terms.margin}.")


def the_same_clusters_give_the_same_loss(plugin: Subject) -> None:
    """Called again with the same clusters it weighs the same: processes rely on it."""
    one, other = value(make_terms(plugin)), value(make_terms(plugin))
    expect(torch.equal(one, other), f"Expected the same loss from the same clusters, got {one:.6f} and {other:.6f}.")


def global_generators_are_untouched(plugin: Subject) -> None:
    """Nothing is drawn from the global generators of torch, NumPy or Python, when it is called or in a step."""
    with global_generators_kept():
        value(make_terms(plugin))


def clusters_are_left_as_they_are(plugin: Subject) -> None:
    """The clusters that it is handed are not written to."""
    clusters, before = make_blobs(N), make_blobs(N)
    value(plugin.create()(clusters))
    changed = changed_parts(clusters, before)
    expect(not changed, f"Expected clusters that are only read, got changed {', '.join(changed)}.")


def loss_and_gradients_are_finite(plugin: Subject) -> None:
    """Loss and gradients are finite, also at open_clip's largest scale, for equal features and for a batch of one."""
    same = torch.ones(B, DIM) / DIM**0.5
    for what, (x, y), scale in (
        ("an ordinary batch", batch(), SCALE),
        ("scale 100", batch(), 100.0),
        ("scale 100 and pairs that agree", (batch()[0], batch()[0]), 100.0),
        ("equal features", (same, same.clone()), SCALE),
        ("a batch of one", tuple(side[:1] for side in batch()), SCALE),
    ):
        sides = [side.detach().requires_grad_() for side in (x, y)]
        loss = value(make_terms(plugin), *sides, scale=scale)
        found = [loss, *torch.autograd.grad(loss, sides)]
        expect(
            all(bool(part.isfinite().all()) for part in found), f"Expected a finite loss and gradients for {what}, got others."
        )


def something_is_learned(plugin: Subject) -> None:
    """An ordinary batch has a gradient: not every pair is removed."""
    sides = [side.requires_grad_() for side in batch()]
    gradients = torch.autograd.grad(value(make_terms(plugin), *sides), sides)
    largest = max(float(part.abs().max()) for part in gradients)
    expect(largest > 1e-6, f"Expected gradients to the features, got at most {largest:.1e}.")


def order_in_the_batch_does_not_matter(plugin: Subject) -> None:
    """The loss of a batch is that of the same samples in another order."""
    x, y = batch()
    order = torch.randperm(B, generator=epoch_generator(1, 0))
    terms = make_terms(plugin)
    again = copy.deepcopy(terms)  # it may remember the first
    one, other = value(terms, x, y), value(again, x[order], y[order], index=batch_index()[order])
    close = torch.allclose(one, other, rtol=1e-4, atol=1e-6)
    expect(close, f"Expected the same loss in another order, got {one:.6f} and {other:.6f}.")


def pickles(plugin: Subject) -> None:
    """It can be pickled, as processes are started with it, and the copy weighs the same."""
    weighting = plugin.create()
    again = pickle.loads(pickle.dumps(weighting))  # noqa: S301  (our own)
    same = torch.equal(value(again(make_blobs(N))), value(weighting(make_blobs(N))))
    expect(same, "Expected the same loss from a copy, got another.")


def clusters_are_required_or_done_without(plugin: Subject) -> None:
    """One whose factory says ``requires_clusters = False`` works without."""
    if plugin.says("requires_clusters", True):
        raise NotApplicableError("it says that it needs clusters")
    try:
        found = plugin.create()(None)
    except Exception as error:
        raise ConformanceError(
            f"Expected it to work without clusters, as it says, got {type(error).__name__}: {error}"
        ) from error
    expect(bool(value(found).isfinite()), "Expected a finite loss without clusters, got another.")


def clusters_without_features_are_used_or_refused(plugin: Subject) -> None:
    """Clusters whose features, texts and groups were not kept are used, or are an error of clip_negatives.errors."""
    bare = dataclasses.replace(make_blobs(N), image_features=None, text_features=None, texts=None, groups=None)
    _used_or_refused(plugin, bare, "clusters without features, texts and groups")


def one_cluster_is_used_or_refused(plugin: Subject) -> None:
    """Data that are all of one cluster give a finite loss, or are an error of clip_negatives.errors."""
    one = Clustering(torch.zeros(N, dtype=torch.int64), F.normalize(torch.ones(1, DIM), dim=1))
    alike = torch.ones(1, 1)
    blobs = make_blobs(N)
    features = blobs.image_features, blobs.text_features
    _used_or_refused(plugin, Clusters(one, one, alike, alike, *features, blobs.texts, blobs.groups), "one cluster")


def _terms(plugin: Subject) -> LossTerms:
    found = make_terms(plugin)
    if isinstance(found, AnchorLoss):
        raise NotApplicableError("it decides at each step")
    unfit = {name for name in TENSORS_OF_TERMS if not isinstance(getattr(found, name), Tensor | None)}
    expect(not unfit, f"Expected tensors or None, got others in {', '.join(sorted(unfit))}.")
    terms: LossTerms = found
    return terms


def _used_or_refused(plugin: Subject, clusters: Clusters, what: str) -> None:
    try:
        loss = value(plugin.create()(clusters))
    except ClipNegativesError:
        return
    except Exception as error:
        raise ConformanceError(f"Expected {what} to be used, or a sentence, got {type(error).__name__}: {error}") from error
    expect(bool(loss.isfinite()), f"Expected a finite loss for {what}, got {float(loss)}.")


CHECKS: tuple[Check, ...] = (
    terms_or_an_anchor_loss_is_returned,
    labels_name_rows_of_their_tables,
    log_weights_are_numbers,
    numbers_are_in_their_ranges,
    the_same_clusters_give_the_same_loss,
    global_generators_are_untouched,
    clusters_are_left_as_they_are,
    loss_and_gradients_are_finite,
    something_is_learned,
    order_in_the_batch_does_not_matter,
    pickles,
    clusters_are_required_or_done_without,
    clusters_without_features_are_used_or_refused,
    one_cluster_is_used_or_refused,
    *anchor_losses.CHECKS,
)
