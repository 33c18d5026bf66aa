"""What every loss weighting must do that decides at each step, by an `AnchorLoss`."""

from __future__ import annotations

import torch
from torch import Tensor

from clip_negatives.anchors import AnchorLoss, Anchors, Where, anchors
from clip_negatives.testing.steps import BIAS, SCALE, B, batch, batch_index, make_terms, value
from clip_negatives.testing.subject import Check, NotApplicableError, Subject, expect


def an_anchor_loss_has_an_entry_for_each_anchor(plugin: Subject) -> None:
    """An `AnchorLoss` returns one number for each anchor, shape (B,)."""
    loss, where = _anchor_loss(plugin), _everyone()
    for each in _both(where, *batch()):
        shape = tuple(loss(each).shape)
        expect(shape == (B,), f"Expected losses of shape ({B},), one for each anchor, got {shape}.")


def rows_of_one_process_are_those_of_all(plugin: Subject) -> None:
    """An `AnchorLoss` gives the anchors of one process, which stand further down, what it gives them among all."""
    x, y = batch()
    rows = slice(B // 2, B)
    here = Where(batch_index()[rows], batch_index(), B // 2)
    for whole, part in zip(
        _both(_everyone(), x, y), anchors(x[rows], y[rows], x, y, torch.tensor(SCALE), torch.tensor(BIAS), here), strict=True
    ):
        expected, found = (_anchor_loss(plugin)(each).flatten() for each in (whole, part))
        close = torch.allclose(expected[rows], found, rtol=1e-4, atol=1e-5)
        expect(close, "Expected a process's anchors to lose what they lose among all, got others. Mind where.offset.")


def state_travels_with_state_dict(plugin: Subject) -> None:
    """What an `AnchorLoss` remembers is in its ``state_dict``: a copy that loads it goes on alike."""
    first, second = _anchor_loss(plugin), _anchor_loss(plugin)
    for seed in (0, 1):
        value(first, *batch(seed))
    second.load_state_dict({name: part.clone() for name, part in first.state_dict().items()})
    one, other = value(first, *batch(2)), value(second, *batch(2))
    expect(torch.equal(one, other), f"Expected the same loss after its state was loaded, got {one:.6f} and {other:.6f}.")


def _everyone() -> Where:
    return Where(batch_index(), batch_index())


def _both(where: Where, x: Tensor, y: Tensor) -> list[Anchors]:
    return list(anchors(x, y, x, y, torch.tensor(SCALE), torch.tensor(BIAS), where))


def _anchor_loss(plugin: Subject) -> AnchorLoss:
    found = make_terms(plugin)
    if not isinstance(found, AnchorLoss):
        raise NotApplicableError("it returns terms that are known before training")
    return found


CHECKS: tuple[Check, ...] = (
    an_anchor_loss_has_an_entry_for_each_anchor,
    rows_of_one_process_are_those_of_all,
    state_travels_with_state_dict,
)
