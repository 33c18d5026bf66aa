"""A method: a sampler (which incorrect pairs are in a batch), a weighting (how much each counts) and a temperature."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clip_negatives.errors import InputError, UnknownNameError
from clip_negatives.host import registry
from clip_negatives.host.options import parse_spec

if TYPE_CHECKING:
    from clip_negatives.interfaces import LossWeighting, NegativeSampler, SamplingContext

LOWEST, HIGHEST = 0.01, 1.0  # temperature: CLIP's training clamps ``logit_scale`` to 0 .. ln 100 after each step
ALLOW = "learned_temperature"  # option with which a weighting that needs a fixed temperature accepts a learned one
NO_SAMPLER, NO_WEIGHTING = "in_batch", "uniform"  # the baseline: in-batch negatives, all with the same weight


@dataclass(frozen=True)  # no slots, so that `Method.sampler` is the default value, which signatures and the command line read
class Method:
    """A negative sampler, a loss weighting and a temperature; `str` returns the shortest text that `Method.parse` accepts.

    Attributes:
        sampler: ``name`` or ``name:key=value,...`` of the negative sampler.
        weighting: ``name`` or ``name:key=value,...`` of the loss weighting.
        temperature: fixed temperature, 0.01 .. 1; None if it is learned.

    Examples:
        >>> str(Method()), str(Method("in_batch", "uniform")), str(Method(weighting="uniform", temperature=0.1))
        ('default', 'in_batch', 'cluster_similarity@0.1')
    """

    sampler: str = "cluster_similarity"
    weighting: str = "weighted_infonce"
    temperature: float | None = None

    @classmethod
    def parse(cls, text: str) -> Method:
        """Return the method that `text` names; invalid text is an `InputError` or a `PluginError`.

        Args:
            text: ``default``, ``paper``, a sampler (with uniform weights), a weighting (with in-batch sampling), or
                ``SAMPLER+WEIGHTING``. Sampler and weighting may have options, ``NAME:key=value,key=value``. A final ``@0.1``
                fixes the temperature at 0.1.

        Examples:
            >>> Method.parse("weighted_infonce:beta=2@0.05")
            Method(sampler='in_batch', weighting='weighted_infonce:beta=2', temperature=0.05)
        """
        spec, at, number = text.rpartition("@")
        if not at:
            return cls(*_plugins(text))
        try:
            temperature = float(number)
        except ValueError:
            raise InputError(f"{text!r} has no number after the @. Write the temperature there, such as {spec}@0.1.") from None
        return cls(*_plugins(spec), check_temperature(temperature))

    def __str__(self) -> str:
        pair = self.sampler, self.weighting
        name = next((name for name, method in NAMED.items() if pair == (method.sampler, method.weighting)), "")
        if not name and self.weighting == NO_WEIGHTING:
            name = self.sampler
        elif not name:
            name = self.weighting if self.sampler == NO_SAMPLER else "+".join(pair)
        return name if self.temperature is None else f"{name}@{self.temperature:g}"

    @property
    def plugins(self) -> tuple[registry.Registration, registry.Registration]:
        """Return the registered sampler and weighting; an unknown name or option, or a wrong value, is a `PluginError`."""
        resolve = registry.default_registry().resolve
        return resolve("negative_sampler", self.sampler)[0], resolve("loss_weighting", self.weighting)[0]

    @property
    def requires_clusters(self) -> bool:
        """Return whether the sampler or the weighting needs clusters; errors as in `plugins`."""
        return any(plugin.requires_clusters for plugin in self.plugins)

    @property
    def requires_only_ids(self) -> bool:
        """Return whether the method needs the ids of texts and groups, but no clustering; errors as in `plugins`."""
        sampler, weighting = self.plugins
        only_ids = bool(getattr(self.create_weighting(), "requires_only_ids", False))
        return only_ids and weighting.requires_clusters and not sampler.requires_clusters

    @property
    def requires_fixed_temperature(self) -> bool:
        """Return whether the weighting needs a fixed temperature; errors as in `plugins`."""
        return bool(getattr(self.create_weighting(), "requires_fixed_temperature", False))

    def check_fixed_temperature(self, remedy: str) -> None:
        """Raise an `InputError` with `remedy` if the weighting needs a fixed temperature, and the temperature is learned."""
        if self.temperature is not None or not self.requires_fixed_temperature:
            return
        name, options = self.plugins[1].name, self.plugins[1].options
        allow = f", or {name}:{ALLOW}=true to train all the same" if any(option.name == ALLOW for option in options) else ""
        raise InputError(f"The weighting {name} needs a fixed temperature, but the temperature is learned. {remedy}{allow}.")

    def create_sampler(self, context: SamplingContext) -> NegativeSampler:
        """Return the sampler for a context; errors as in `plugins`, and `InputError` if the context does not fit."""
        return registry.create("negative_sampler", self.sampler, context)  # type: ignore[no-any-return]

    def create_weighting(self) -> LossWeighting:
        """Return the loss weighting, to be called with clusters; errors as in `plugins`."""
        return registry.create("loss_weighting", self.weighting)  # type: ignore[no-any-return]


NAMED = {"default": Method(), "paper": Method(weighting="weighted_infonce:text_beta=0.0,remove=true")}


def split_methods(text: str) -> list[str]:
    """Split a list of methods at commas, but not at commas between options of a plugin."""
    parts: list[str] = []
    for piece in filter(None, (piece.strip() for piece in text.split(","))):
        if parts and re.match(r"\w+\s*=", piece):
            parts[-1] += f",{piece}"
        else:
            parts.append(piece)
    return parts


def check_temperature(temperature: float) -> float:
    """Return `temperature`, or raise an `InputError` if it is not within 0.01 .. 1."""
    if not LOWEST <= temperature <= HIGHEST:
        raise InputError(f"Expected a temperature of {LOWEST} .. {HIGHEST:g}, the range of CLIP's training, got {temperature}.")
    return temperature


def _plugins(text: str) -> tuple[str, str]:
    """Return the specs of the sampler and the weighting, after checking that both exist."""
    if text in NAMED:
        return NAMED[text].sampler, NAMED[text].weighting
    sampler, plus, weighting = text.partition("+")
    if not plus:
        name, items = parse_spec(text)[0], registry.default_registry().items
        samplers, weightings = ({item.name for item in items(kind)} for kind in ("negative_sampler", "loss_weighting"))
        if name not in samplers | weightings:
            raise UnknownNameError.of("method, sampler or weighting", name, {*NAMED} | samplers | weightings)
        sampler, weighting = (text, NO_WEIGHTING) if name in samplers else (NO_SAMPLER, text)
    _ = Method(sampler, weighting).plugins  # an error if one of them does not exist
    return sampler, weighting
