"""The weighted contrastive loss as a function: checks of what it is given, and the sums over pairs."""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor
from torch import distributed as dist

from clip_negatives.anchors import AnchorLoss
from clip_negatives.backends import chosen_backend
from clip_negatives.checks import check_extra, check_features, check_groups, check_terms, one_number
from clip_negatives.errors import InputError, UnsupportedError
from clip_negatives.interfaces import LossTerms
from clip_negatives.kernels import dense, log_weights
from clip_negatives.kernels.objective import Further, Objective, anchor_losses
from clip_negatives.kernels.pairs import Pairs, Side
from clip_negatives.listed import with_dense_tables


def weighted_info_nce(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float | None = None,
    *,
    terms: LossTerms | None = None,
    margin: float | None = None,
    positive_rate: Tensor | float | None = None,
    hardness: float | None = None,
    groups: Tensor | None = None,
    attract: bool | None = None,
    positive_weight: float | None = None,
    text_anchors: bool = True,
    extra_text_features: Tensor | None = None,
    text_ids: Tensor | None = None,
    extra_text_ids: Tensor | None = None,
    all_image_features: Tensor | None = None,
    all_text_features: Tensor | None = None,
    all_terms: LossTerms | None = None,
    all_groups: Tensor | None = None,
    positive_offset: int = 0,
    gathered: bool = False,
    ring: bool = False,
    backend: str = "auto",
    chunk_size: int | None = None,
) -> Tensor:
    """Compute InfoNCE in both directions, or in one, with log-weights on the incorrect pairs.

    Equals in plain torch, with b as `LossTerms` says, 0 on the diagonal, and normalised by row in each direction if
    asked::

        z = logit_scale * image_features @ text_features.T + logit_bias
        target = torch.arange(len(z))
        (F.cross_entropy(z + b, target) + F.cross_entropy(z.T + b.T, target)) / 2

    With b = 0 it is `open_clip.ClipLoss`, to the bit on the torch backend. A row all of whose negatives are removed
    contributes 0. With `all_image_features` and `all_text_features` (``local_loss``) the rows are this process's B
    samples and the columns the G of all processes.

    More ways to treat incorrect pairs can be mixed freely, with each other and with log-weights; what is None is as
    `terms` say, which by default do nothing. They go by what the model thinks now (s_ij, the *live* similarity), the
    log-weights by frozen features. For anchor i, an image or a text, with N_i its incorrect pairs that are kept and P_i
    its positives::

        n_i = sum over N_i of exp(z_ij + b_ij)
        loss_i = log(n_i + alpha * sum over P_i of exp(z_ip)) - mean over P_i of z_ip

    * `margin` takes j out of N_i where ``s_ij > s_ii + margin``, as Qwen3-Embedding does (arXiv:2506.05176, 0.1);
    * `groups` puts every sample of i's group into P_i: the targets of SupCon (arXiv:2004.11362) and UniCL (2204.03610);
      pairs of a group are never weighted; with ``attract=False`` they are neither positive nor negative;
    * `hardness` = beta adds ``beta z_ij`` to b_ij and scales the weights of N_i to mean 1 (Robinson et al., 2010.04592);
      it *raises* the weight of what the model finds similar;
    * `positive_rate` = t replaces n_i by ``max((n_i - t |N_i| p_i) / (1 - t), |N_i| exp(logit_bias - logit_scale))`` with
      p_i the mean of exp(z_ip): the debiased estimate of Chuang et al. (2007.00224), t being how probably an incorrect
      pair is correct;
    * `positive_weight` = alpha, 1 in InfoNCE, is 0 in decoupled losses (Yeh et al., 2110.06848). A row without negatives
      then contributes 0;
    * `extra_text_features` are texts beside those of the samples: they are put into N_i of every image i, with b = 0, and are
      no anchors themselves, as the columns that NegCLIP adds (arXiv:2210.01936). One whose `extra_text_ids` is that of i's
      own text, in `text_ids`, is left out of N_i. With several processes give those of all.

    Args:
        image_features: unit norm, float32, bfloat16, float16 or float64, shape (B, D).
        text_features: the same, shape (B, D).
        logit_scale: factor of the cosines, exp already applied, a positive number or one element.
        logit_bias: added to every logit; None is 0.
        terms: how to treat the pairs of the B samples, `LossTerms.take` of the batch; None leaves them as they are.
        margin: difference of cosines, -2 .. 2.
        positive_rate: 0 <= t < 1, one number or one for each of the B samples, shape (B,).
        hardness: beta, at least 0.
        groups: group of each of the B samples, int64, shape (B,).
        attract: whether samples of a group are positives of each other, or only no negatives.
        positive_weight: alpha, at least 0.
        text_anchors: whether texts are told from the images as well; else images from the texts only, as sentence-transformers'
            ``MultipleNegativesRankingLoss`` tells queries from documents. Not without it in the ring.
        extra_text_features: unit norm, the dtype of the text features, shape (E, D), at least one.
        text_ids: the same number for equal texts, of each of the B samples, int64, shape (B,).
        extra_text_ids: the same of the extra texts, int64, shape (E,); given together or not at all.
        all_image_features: shape (G, D), given for both sides or for none.
        all_text_features: shape (G, D).
        all_terms: terms of the G samples.
        all_groups: group of each of the G samples.
        positive_offset: row of the G in which the first of the B samples stands.
        gathered: the features are those of all processes; ClipLoss then transposes its logits instead of computing them
            twice, which this follows so that results are equal to the bit.
        ring: contrast with the samples of all processes of `torch.distributed`, whose texts pass by one process after the
            other, so that no process holds more than its own and those of one other. The result is this process's share
            of the loss, as with ``local_loss``; feature gradients are those of the sum over the processes. Not together
            with `all_image_features` or `extra_text_features`; "torch" then means "chunked".
        backend: "torch" (holds B x G), "chunked" (never does, any device), "triton" (fused, CUDA), or "auto", see
            `clip_negatives.backends.select_backend`.
        chunk_size: rows that "chunked" and "triton" take at a time; None chooses by memory.

    Returns:
        A scalar of the precision of the sums, differentiable in features, scale and bias.

    Raises:
        InputError: shapes, dtypes or devices do not fit, a value is out of its range, or the backend is unknown.
        UnsupportedError: the triton backend is asked for where it cannot run.

    Examples:
        >>> x = torch.nn.functional.normalize(torch.eye(4), dim=1)
        >>> weighted_info_nce(x, x, 10.0)
        tensor(0.0001)
    """
    x, y = image_features, text_features
    if (all_image_features is None) != (all_text_features is None):
        raise InputError("Expected all_image_features and all_text_features, got one of them. Give both or none.")
    rectangle = all_image_features is not None
    extra = extra_text_features
    if ring and (rectangle or gathered or extra is not None or not text_anchors or not dist.is_initialized()):
        raise InputError("Expected features of this process alone and torch.distributed to be initialised with ring=True.")
    all_x = x if all_image_features is None else all_image_features
    all_y = y if all_text_features is None else all_text_features
    terms = terms or LossTerms()
    all_terms = terms if not rectangle else all_terms or (None if terms.n_samples else terms)
    if terms.listed:
        if ring:
            raise UnsupportedError(
                "Expected tables of all clusters with ring=True, got lists of the nearest. Leave the ring out."
            )
        terms, listed = with_dense_tables(terms, all_terms if rectangle else None)
        all_terms = listed if rectangle else terms
    check_features(x, y, all_x, all_y, positive_offset, chunk_size)
    further = None
    if extra is not None:
        check_extra(extra, text_ids, extra_text_ids, y)
        further = Further(extra, text_ids, extra_text_ids)
    check_terms(terms, all_terms, x, all_x)
    how = _treatment(terms, margin, positive_rate, hardness, positive_weight, len(x))
    mine, everyone = Side.of(terms, groups), Side.of(all_terms, all_groups if rectangle else groups)
    check_groups(mine.groups, everyone.groups, len(x), len(all_x))
    scale = one_number("logit_scale", logit_scale, x.device)
    bias = None if logit_bias is None else one_number("logit_bias", logit_bias, x.device)
    n_columns = len(all_x) * (dist.get_world_size() if ring else 1)
    backend = chosen_backend(backend, x, n_columns, weighted=terms.weighted)
    plain = not terms.weighted and how.plain and mine.groups is None and extra is None
    if backend == "torch" and not ring and plain and text_anchors:
        return dense.open_clips_loss(x, y, scale, bias, all_x, all_y, positive_offset, shared=gathered)
    how = dataclasses.replace(how, grouped=mine.groups is not None and (terms.attract if attract is None else attract))
    tables = terms.image_table, terms.text_table
    pairs = Pairs(mine, everyone, *tables, offset=positive_offset, columns_too=text_anchors and not rectangle)
    losses = functools.partial(anchor_losses, objective=how, backend=backend, chunk_size=chunk_size, ring=ring)
    by_image = losses(x, all_y, scale, bias, pairs, further=further)
    if not rectangle or not text_anchors:
        return torch.cat(by_image).mean()  # of both, where columns are anchors too
    by_text = losses(y, all_x, scale, bias, pairs.transposed_tables())
    return torch.cat(by_image + by_text).mean()


def pair_log_weights(terms: LossTerms, image_index: Tensor, text_index: Tensor) -> Tensor:
    """Return b of explicit pairs, before any normalisation, which only a batch has.

    Args:
        terms: log-weights of the data set.
        image_index: samples whose image it is, int64, shape (M,).
        text_index: samples whose text it is, int64, shape (M,).

    Returns:
        float32, shape (M,), in [-inf, inf).

    Raises:
        InputError: the indices are not of one shape (M,).

    Examples:
        >>> terms = LossTerms(image_labels=torch.tensor([0, 1]), image_table=torch.tensor([[0.0, -1.0], [-2.0, 0.0]]))
        >>> pair_log_weights(terms, torch.tensor([0, 1]), torch.tensor([1, 0]))
        tensor([-1., -2.])
    """
    if image_index.ndim != 1 or image_index.shape != text_index.shape:
        raise InputError(
            f"Expected image and text indices of one shape (M,), got {tuple(image_index.shape)} and {tuple(text_index.shape)}."
        )
    return log_weights.of_pairs(terms, image_index, text_index)


def before_training(terms: LossTerms | AnchorLoss, name: str) -> LossTerms:
    """Return the terms of a weighting that are known before training.

    Raises:
        InputError: it decides at each step.
    """
    if isinstance(terms, AnchorLoss):
        raise InputError(
            f"Expected a weighting that is known before training, got {name!r}, which decides at each step by what the model "
            "thinks. See what it does with clip-negatives compare."
        )
    return terms


def _treatment(
    terms: LossTerms,
    margin: float | None,
    rate: Tensor | float | None,
    hardness: float | None,
    positive_weight: float | None,
    n: int,
) -> Objective:
    """Return what to make of the pairs; refuses values out of their range, but reads no value of a tensor."""
    margin = terms.margin if margin is None else margin
    rate = terms.positive_rate if rate is None else rate
    hardness = terms.hardness if hardness is None else hardness
    alpha = terms.positive_weight if positive_weight is None else positive_weight
    if margin is not None and not -2 <= margin <= 2:
        raise InputError(f"Expected a margin of cosines within -2 .. 2, got {margin}.")
    if not 0 <= hardness < float("inf"):
        raise InputError(f"Expected hardness of at least 0, got {hardness}.")
    if not 0 <= alpha < float("inf"):
        raise InputError(f"Expected positive_weight of at least 0, got {alpha}.")
    if isinstance(rate, Tensor):
        if rate.shape not in ((), (n,)):
            raise InputError(f"Expected positive_rate as a number or of shape ({n},), got shape {tuple(rate.shape)}.")
    elif rate is not None and not 0 <= rate < 1:
        raise InputError(f"Expected positive_rate within 0 .. 1, without 1, got {rate}.")
    normalize = hardness > 0 or (terms.weighted and terms.normalize)
    return Objective(normalize, rate, margin=margin, hardness=hardness, positive_weight=alpha)
