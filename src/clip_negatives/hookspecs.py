"""The hooks. A plugin is a module, named by an entry point of the group ``clip_negatives``, that implements any of them.

Each hook hands over factories by name; nothing is called through pluggy inside a training step. The options of a factory
are its keyword arguments: annotate each with ``int``, ``float``, ``str``, ``bool`` or one of them ``| None``, and give each a
default, so that ``clip-negatives plugins`` can list them and the command line can set them.
"""

from __future__ import annotations

from collections.abc import Mapping

import pluggy

from clip_negatives.interfaces import ClustererFactory, LossWeightingFactory, NegativeSamplerFactory

PROJECT = "clip_negatives"
"""The pluggy project name, and the entry-point group."""

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
