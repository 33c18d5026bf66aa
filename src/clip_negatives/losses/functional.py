"""The weighted contrastive loss as a function."""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist

from clip_negatives.anchor_loss import AnchorLoss
from clip_negatives.errors import InputError
from clip_negatives.losses.backends import check_backend, select_backend
from clip_negatives.losses.checks import check_candidate_terms, check_extras, check_features, check_ring, one_number
from clip_negatives.losses.kernels import dense, dense_weighted, log_weights
from clip_negatives.losses.kernels.objective import anchor_losses
from clip_negatives.losses.kernels.pairs import Extras as Extras
from clip_negatives.losses.kernels.pairs import Inputs, Pairs
from clip_negatives.losses.sparse_tables import with_dense_tables
from clip_negatives.terms import LossTerms


class Candidates(NamedTuple):
    """Samples of all processes, for the contrast with the samples of this process (``local_loss``).

    Attributes:
        image_features: unit norm, shape (G, D).
        text_features: unit norm, shape (G, D).
        terms: terms of the G samples; None if no field of the terms is per sample.
        offset: row of this process's first sample among the G.
    """

    image_features: Tensor
    text_features: Tensor
    terms: LossTerms | None = None
    offset: int = 0


def weighted_info_nce(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float | None = None,
    *,
    terms: LossTerms | None = None,
    text_anchors: bool = True,
    extra_texts: Extras | None = None,
    extra_images: Extras | None = None,
    candidates: Candidates | None = None,
    gathered: bool = False,
    ring: bool = False,
    backend: str = "auto",
    chunk_size: int | None = None,
    reduction: Literal["mean", "none"] = "mean",
) -> Tensor:
    """Return the contrastive loss of images and texts, with weights or other treatment of the incorrect pairs.

    The logits are ``z_ij = logit_scale * s_ij + logit_bias``. N_i are the negatives of anchor i (its kept incorrect pairs), P_i
    its positives, b the log-weights, alpha the weight of the positives. The loss is the mean over all images and texts i of:

        n_i    = sum over j in N_i of exp(z_ij + b_ij)
        loss_i = log(n_i + alpha * sum over p in P_i of exp(z_ip)) - mean over p in P_i of z_ip

    Without `terms`, b = 0, alpha = 1 and the only positive is the own pair: `open_clip.ClipLoss`, bit for bit on the torch
    backend. With log-weights only (0 on the diagonal) and ``target = torch.arange(B)``, the loss equals
    ``(F.cross_entropy(z + b, target) + F.cross_entropy(z.T + b.T, target)) / 2``; an anchor without negatives contributes 0.

    All fields of `terms` can be combined, except groups with targets. `margin`, `hardness` and `positive_rate` use the live
    similarity s_ij:

    * `normalize` shifts b so that the weights exp(b_ij) of N_i have mean 1;
    * `groups` puts all samples of i's group into P_i, unweighted: the targets of SupCon (arXiv:2004.11362) and UniCL
      (arXiv:2204.03610). With ``attract=False`` these samples are neither positives nor negatives;
    * `margin` removes j from N_i if ``s_ij > s_ii + margin``; Qwen3-Embedding uses 0.1 (arXiv:2506.05176);
    * `hardness` = beta adds ``beta z_ij`` to b_ij and scales the weights of N_i to mean 1 (Robinson et al.,
      arXiv:2010.04592). It *raises* the weight of pairs that the model finds similar;
    * `positive_rate` = t replaces n_i by ``max((n_i - t |N_i| p_i) / (1 - t), |N_i| exp(logit_bias - logit_scale))``, with
      p_i the mean of exp(z_ip): the debiased estimate of Chuang et al. (arXiv:2007.00224);
    * `positive_weight` = alpha is 0 in decoupled losses (Yeh et al., arXiv:2110.06848). An anchor without negatives then
      contributes 0;
    * `target_factors` f and `target_mass` = m replace the mean of z_ip by ``(1 - m) z_ii + m sum over j of q_ij z_ij``, where
      ``q_i = softmax(<f_i, f_j>)`` over all samples j other than i, also over pairs that are not in N_i. This is the
      cross-entropy to the targets ``(1 - m) I + m q``. It does not work with `groups`.

    Args:
        image_features: unit norm, float32, bfloat16, float16 or float64, shape (B, D).
        text_features: like `image_features`.
        logit_scale: factor of the cosines, exp already applied, a positive number or one element.
        logit_bias: added to every logit; None is 0.
        terms: terms of the B samples, `LossTerms.take` of the batch; None is plain InfoNCE.
        text_anchors: contrast each text with all images too. False contrasts only images with texts, like
            sentence-transformers' ``MultipleNegativesRankingLoss``; this does not work with `ring`.
        extra_texts: texts added to N_i of every image i, as in NegCLIP (arXiv:2210.01936); they are not anchors. b is their
            `log_weight`. A text with the id of i's own text is not added to N_i. With ``positive=True``, the extra texts of
            sample i are in P_i instead, as in LaCLIP (arXiv:2305.20088); those of other samples in the group of i are in P_i
            if the group attracts, and otherwise in neither set. With several processes, pass the texts of all.
        extra_images: images added to N_i of every text i, in the same way; not with ``text_anchors=False``.
        candidates: samples of all processes; None contrasts the B samples with each other.
        gathered: the features are those of all processes. `open_clip.ClipLoss` then transposes its logits instead of
            computing them twice; this function does the same, so that results are bit-equal.
        ring: contrast with the samples of all processes of `torch.distributed`. Texts pass from process to process: a process
            holds only its own samples and the samples of one other process. The result is this process's share of the loss,
            as with ``local_loss``; feature gradients are those of the sum over all processes. Not with `candidates` or
            extras. Backend "torch" then means "chunked".
        backend: "torch" (holds B x G), "chunked" (never does, any device), "triton" (fused, CUDA), or "auto", see
            `clip_negatives.losses.backends.select_backend`.
        chunk_size: rows that "chunked" and "triton" compute at a time; None chooses by memory.
        reduction: "mean", or "none" for the loss of each anchor.

    Returns:
        A scalar in the dtype of the sums, differentiable in features, scale and bias. With reduction "none" the loss of each
        image and then, with `text_anchors`, of each text, shape (2 B,) or (B,).

    Raises:
        InputError: shapes, dtypes or devices do not fit, a value is out of range, or the backend is unknown.
        UnsupportedError: the triton backend is requested where it cannot run.

    Examples:
        >>> x = torch.nn.functional.normalize(torch.eye(4), dim=1)
        >>> weighted_info_nce(x, x, 10.0)
        tensor(0.0001)
    """
    x, y = image_features, text_features
    has_extras = extra_texts is not None or extra_images is not None
    all_x, all_y, all_terms, offset = candidates or Candidates(x, y)
    check_features(x, y, all_x, all_y, offset, chunk_size)
    terms = terms or LossTerms()
    if candidates is not None:
        all_terms = check_candidate_terms(terms, all_terms)
        all_terms.check(len(all_x), x.device, "candidates.terms")
    terms.check(len(x), x.device)
    if terms.scheduled:
        raise InputError("The terms have a schedule, so their weights depend on the progress. Pass terms.at(progress).")
    if ring:
        check_ring(candidates is None and not gathered and not has_extras and text_anchors, terms)
    if terms.sparse:
        terms, all_terms = with_dense_tables(terms, all_terms)
    check_extras("texts", extra_texts, y, len(all_y), terms)
    check_extras("images", extra_images, x, len(all_x), terms)
    if extra_images is not None and not text_anchors:
        raise InputError("Extra images are negatives of the texts, so they need text_anchors=True.")
    scale = one_number("logit_scale", logit_scale, x.device)
    bias = None if logit_bias is None else one_number("logit_bias", logit_bias, x.device)
    images, texts = Inputs(x, all_y, scale, bias), Inputs(y, all_x, scale, bias)
    n_columns = len(all_x) * (dist.get_world_size() if ring else 1)
    dtype = torch.promote_types(x.dtype, y.dtype)
    check_backend(backend, x.device, dtype=dtype)
    if backend == "auto":
        kinds = {"weighted": terms.weighted or terms.targeted, "treated": has_extras or not terms.only_weights}
        backend, _ = select_backend(x.device, len(x), n_columns, dtype=dtype, **kinds)
    is_plain = backend == "torch" and not ring and terms.neutral and not has_extras and text_anchors
    if is_plain and reduction == "mean":
        return dense.open_clip_loss(images, None if gathered else texts, offset)
    columns_too = text_anchors and candidates is None
    if backend == "torch" and not ring and not has_extras and terms.only_weights:
        pairs = Pairs(terms, all_terms or terms, offset=offset, columns_too=columns_too)
        each = dense_weighted.anchor_losses(images, texts if text_anchors and not columns_too else None, pairs)
        return each if reduction == "none" else each.mean()
    mixed_signs = reduction == "none"
    pairs = Pairs.of(terms, all_terms or terms, offset=offset, columns_too=columns_too, mixed_signs=mixed_signs)
    losses = functools.partial(anchor_losses, terms=terms, backend=backend, chunk_size=chunk_size, ring=ring)
    anchors = losses(images, pairs, row_extras=extra_texts, column_extras=extra_images if columns_too else None)
    if text_anchors and not columns_too:
        anchors += losses(texts, pairs.transposed_tables(), row_extras=extra_images)
    each = torch.cat(anchors) if len(anchors) > 1 else anchors[0]
    return each if reduction == "none" else each.mean()


def pair_log_weights(terms: LossTerms, image_index: Tensor, text_index: Tensor) -> Tensor:
    """Return the log-weights b of explicit pairs, not normalised: normalisation needs a batch.

    Args:
        terms: terms of the data set.
        image_index: sample of each image, int64, shape (M,).
        text_index: sample of each text, int64, shape (M,).

    Returns:
        float32, shape (M,), in [-inf, inf).

    Examples:
        >>> terms = LossTerms(image_labels=torch.tensor([0, 1]), image_table=torch.tensor([[0.0, -1.0], [-2.0, 0.0]]))
        >>> pair_log_weights(terms, torch.tensor([0, 1]), torch.tensor([1, 0]))
        tensor([-1., -2.])
    """
    if image_index.ndim != 1 or image_index.shape != text_index.shape:
        shapes = f"{tuple(image_index.shape)} and {tuple(text_index.shape)}"
        raise InputError(f"image_index and text_index must have one shape (M,), got {shapes}.")
    return log_weights.of_pairs(terms, image_index, text_index)


def require_terms(terms: LossTerms | AnchorLoss, name: str) -> LossTerms:
    """Return the terms of a weighting; an anchor loss, whose weights depend on the step, is an `InputError`."""
    if isinstance(terms, AnchorLoss):
        reason = f"The weighting {name!r} computes its weights at each step from the model's similarities"
        remedy = "Use clip-negatives compare to see its effect."
        raise InputError(f"{reason}, so its weights are not known before training. {remedy}")
    return terms
