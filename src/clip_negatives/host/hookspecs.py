"""Hooks of a plugin. A plugin is a module with at least one hook, named by an entry point of the group ``clip_negatives``.

Each hook returns factories by name; pluggy is not called inside a training step. The keyword arguments of a factory are its
options. Annotate each with ``int``, ``float``, ``str``, ``bool``, a ``Literal`` or one of these ``| None``, and give it a
default. Then ``clip-negatives plugins show`` lists the option, and the command line can set it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from clip_negatives.interfaces import ClustererFactory, LossWeightingFactory, NegativeSamplerFactory

PROJECT = "clip_negatives"  # name of the pluggy project and of the entry-point group
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def clip_negatives_register_clusterers() -> Mapping[str, ClustererFactory]:  # type: ignore[empty-body]
    """Return the clusterers of this plugin by name."""


@hookspec
def clip_negatives_register_negative_samplers() -> Mapping[str, NegativeSamplerFactory]:  # type: ignore[empty-body]
    """Return the negative samplers of this plugin by name."""


@hookspec
def clip_negatives_register_loss_weightings() -> Mapping[str, LossWeightingFactory]:  # type: ignore[empty-body]
    """Return the loss weightings of this plugin by name."""
