"""Loss weightings and negative samplers written as functions."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, overload

import torch
from torch import Tensor

from clip_negatives.anchor_loss import AnchorLoss, StepTerms
from clip_negatives.anchors import Anchors, info_nce
from clip_negatives.errors import PluginError
from clip_negatives.interfaces import Clusters, LossTerms, SamplingContext
from clip_negatives.sampling import PlannedSampler
from clip_negatives.step import Step

Factory = Callable[..., Any]
Returned = Literal["log_weights", "targets"]

ROUNDING = 1e-2  # of the sums of targets, which may be bfloat16
SEES = ("clusters", "step", "anchors")  # first parameter of a weighting
PLANS = (("context", "generator"), ("context", "generator", "epoch"))  # first parameters of a sampler


@overload
def weighting(function: Callable[..., Any], /) -> Factory: ...
@overload
def weighting(
    *, returns: Returned = "log_weights", requires_clusters: bool = True
) -> Callable[[Callable[..., Any]], Factory]: ...
def weighting(
    function: Callable[..., Any] | None = None, /, *, returns: Returned = "log_weights", requires_clusters: bool = True
) -> Any:
    """Make a loss weighting of a function; register the result as the factory of the weighting.

    The name of the first parameter says what the function sees, and when it is called; its keyword arguments are the options:

    * ``clusters``: called once for each clustering; returns `LossTerms`, which the kernels sum without a B x B matrix;
    * ``step``: called at each step with a `Step` of this process; returns the `LossTerms` of its B samples;
    * ``anchors``: called at each step for the images and for the texts, with `Anchors`; returns log-weights b_ij or, with
      ``returns="targets"``, targets T_ij, shape (B, G), see `clip_negatives.anchors.info_nce`.

    Args:
        function: the function; None if the decorator has options.
        returns: what a function of ``anchors`` returns.
        requires_clusters: whether the weighting needs clusters.

    Returns:
        A `clip_negatives.interfaces.LossWeightingFactory`.

    Raises:
        PluginError: the first parameter has another name.

    Examples:
        >>> @weighting
        ... def softer(anchors: Anchors, *, beta: float = 1.0) -> Tensor:
        ...     return -beta * (1 - anchors.step.progress) * anchors.cosines.detach()
        >>> weight = softer(beta=2.0)
    """
    if function is None:
        return functools.partial(_weighting, returns=returns, requires_clusters=requires_clusters)
    return _weighting(function, returns=returns, requires_clusters=requires_clusters)


def _weighting(function: Callable[..., Any], *, returns: Returned, requires_clusters: bool) -> Factory:
    sees = _first_parameters(function, 1)[0]
    if returns not in get_args(Returned):
        raise PluginError(f"returns must be {' or '.join(map(repr, get_args(Returned)))}, got {returns!r}.")
    if sees not in SEES:
        raise PluginError(
            f"The first parameter of the weighting {function.__qualname__} must be {' or '.join(SEES)}, not {sees}."
        )

    def create(**options: Any) -> FunctionWeighting:
        return FunctionWeighting(create, options, sees, returns)

    return _factory(create, function, 1, requires_clusters)


@dataclass(frozen=True)
class FunctionWeighting:
    """A loss weighting that calls a function, see `weighting`."""

    factory: Factory  # pickled by its name, which in its module is the decorated function
    options: Mapping[str, Any]
    sees: str
    returns: Returned

    def __call__(self, clusters: Clusters) -> LossTerms | AnchorLoss:
        """Return what the function gives for these clusters."""
        if self.sees == "clusters":
            terms = self.call(clusters)
            if not isinstance(terms, LossTerms | AnchorLoss):
                raise _wrong(self, f"a {type(terms).__name__}, not LossTerms")
            return terms
        return FunctionTerms(self, clusters) if self.sees == "step" else FunctionLoss(self, clusters)

    @property
    def name(self) -> str:
        """Return the name of the function."""
        return str(self.factory.__qualname__)

    def call(self, seen: Any) -> Any:
        """Call the function."""
        return _function_of(self.factory)(seen, **self.options)


class FunctionTerms(StepTerms):
    """Loss terms that a function returns at each step."""

    def __init__(self, weighting: FunctionWeighting, clusters: Clusters) -> None:
        super().__init__()
        self.weighting, self.clusters, self.name = weighting, clusters, weighting.name

    def terms(self, step: Step) -> LossTerms:
        """Return the terms of the samples of the step."""
        terms = self.weighting.call(step)
        if not isinstance(terms, LossTerms):
            raise _wrong(self.weighting, f"a {type(terms).__name__}, not LossTerms")
        return terms


class FunctionLoss(AnchorLoss):
    """InfoNCE with the log-weights, or the targets, that a function returns at each step."""

    def __init__(self, weighting: FunctionWeighting, clusters: Clusters) -> None:
        super().__init__()
        self.weighting, self.clusters, self.name = weighting, clusters, weighting.name
        self._checked = False  # values are read once: that waits for a GPU

    def forward(self, anchors: Anchors) -> Tensor:
        """Return the loss of each anchor."""
        values = self.weighting.call(anchors)
        if not isinstance(values, Tensor) or values.shape != anchors.logits.shape:
            found = tuple(values.shape) if isinstance(values, Tensor) else f"a {type(values).__name__}"
            raise _wrong(self.weighting, f"{found}, not a tensor of shape (B, G), here {tuple(anchors.logits.shape)}")
        if not values.is_floating_point():
            fault = f"a tensor of {values.dtype}, not of floats"
            raise _wrong(self.weighting, f"{fault}; a log-weight is added to a logit, and -inf removes the pair")
        if self.weighting.returns == "targets" and not self._checked:
            sums, self._checked = values.detach().sum(1), True
            if not bool(((sums - 1).abs() < ROUNDING).all()):
                worst = float(sums[(sums - 1).abs().argmax()])
                raise _wrong(self.weighting, f"targets whose rows sum to {worst:g}, not to 1")
        return info_nce(anchors, **{self.weighting.returns: values})


def _wrong(weighting: FunctionWeighting, what: str) -> PluginError:
    return PluginError(f"The weighting {weighting.name} returns {what}. Repair the plugin.")


@overload
def sampler(function: Callable[..., Tensor], /) -> Factory: ...
@overload
def sampler(*, requires_clusters: bool = True, repeats: bool = False) -> Callable[[Callable[..., Tensor]], Factory]: ...
def sampler(function: Any = None, /, *, requires_clusters: bool = True, repeats: bool = False) -> Any:
    """Make a negative sampler of a function that plans an epoch; register the result as the factory of the sampler.

    The function gets ``context, generator`` or ``context, generator, epoch``, and its options as keyword arguments. It returns
    the sample ids of all steps of the epoch, int64, shape (steps, world_size * B), see
    `clip_negatives.sampling.PlannedSampler`.
    All randomness comes from the generator.

    Args:
        function: the function; None if the decorator has options.
        requires_clusters: whether the sampler needs clusters.
        repeats: whether a sample may occur in several steps of an epoch.

    Returns:
        A `clip_negatives.interfaces.NegativeSamplerFactory`.

    Raises:
        PluginError: the first parameters have other names.

    Examples:
        >>> @sampler(requires_clusters=False)
        ... def ascending(context: SamplingContext, generator: torch.Generator) -> Tensor:
        ...     steps = context.n_samples // context.step_size
        ...     return torch.arange(steps * context.step_size).view(steps, -1)
        >>> list(ascending(SamplingContext(n_samples=4, batch_size=2)))
        [[0, 1], [2, 3]]
    """
    if function is None:
        return functools.partial(_sampler, requires_clusters=requires_clusters, repeats=repeats)
    return _sampler(function, requires_clusters=requires_clusters, repeats=repeats)


def _sampler(function: Callable[..., Tensor], *, requires_clusters: bool, repeats: bool) -> Factory:
    seen = max((plan for plan in PLANS if plan == _first_parameters(function, len(plan))), key=len, default=None)
    if seen is None:
        needed = " or ".join(f"({', '.join(plan)})" for plan in PLANS)
        raise PluginError(f"The first parameters of the sampler {function.__qualname__} must be {needed}.")

    def create(context: SamplingContext, **options: Any) -> PlannedSampler:
        planned = PlannedSampler(context, _Plan(create, context, options, len(seen) == len(PLANS[1])))
        planned.repeats, planned.name = repeats, function.__qualname__
        return planned

    return _factory(create, function, len(seen), requires_clusters, "context")


@dataclass(frozen=True)
class _Plan:
    factory: Factory  # pickled by its name
    context: SamplingContext
    options: Mapping[str, Any]
    sees_epoch: bool

    def __call__(self, generator: torch.Generator, epoch: int) -> Tensor:
        place = (generator, epoch) if self.sees_epoch else (generator,)
        plan: Tensor = _function_of(self.factory)(self.context, *place, **self.options)
        return plan


def _first_parameters(function: Callable[..., Any], n: int) -> tuple[str, ...]:
    names = tuple(inspect.signature(function).parameters)[:n]
    return names if len(names) == n else (*names, *[""] * (n - len(names)))


def _function_of(factory: Factory) -> Callable[..., Any]:
    """Return the function of a factory, with its other decorators, such as ``torch.no_grad``."""
    wrapper: Any = factory
    function: Callable[..., Any] = wrapper.__wrapped__
    return function


def _factory(create: Factory, function: Callable[..., Any], skip: int, requires_clusters: bool, *first: str) -> Factory:
    """Return `create` with the name, the docstring and the options of the function, and the parameters `first` before them."""
    functools.update_wrapper(create, function)
    leading = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in first]
    options = list(inspect.signature(function).parameters.values())[skip:]
    as_keywords = [option.replace(kind=inspect.Parameter.KEYWORD_ONLY) for option in options]
    wrapper: Any = create
    wrapper.__signature__ = inspect.Signature([*leading, *as_keywords])
    wrapper.requires_clusters = requires_clusters
    return create
