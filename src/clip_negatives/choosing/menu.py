"""The candidates that `choose` compares."""

from __future__ import annotations

from dataclasses import dataclass

from clip_negatives.errors import InputError, PluginError
from clip_negatives.host.method import NO_SAMPLER, NO_WEIGHTING, Method, split_methods

BASELINE = NO_SAMPLER  # in-batch negatives with a learned temperature

# Candidates of the default menu
TEMPERATURES = tuple(f"{BASELINE}@{temperature}" for temperature in ("0.05", "0.07", "0.1", "0.14"))
METHODS = (
    *("default", "default@0.1"),
    *("known_different:hardness=0.1,gamma=2@0.1", "blend@0.1", "gist@0.1", "glofnd@0.1"),
)
DROPOUTS = (0.1, 0.2)  # of the features, with `in_batch@0.1`: a control, which regularises without any choice of negatives
DROPOUT_METHOD = "in_batch@0.1"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A method, and the feature dropout that its heads are trained with; `str` returns its name.

    Examples:
        >>> str(Candidate(Method.parse("in_batch@0.1"), dropout=0.2))
        'in_batch@0.1 dropout 0.2'
    """

    method: Method
    dropout: float = 0.0

    @property
    def is_control(self) -> bool:
        """Return whether this is a control, which no training of towers can repeat."""
        return self.dropout > 0

    @property
    def is_in_batch(self) -> bool:
        """Return whether this is in-batch negatives without weights, at any temperature."""
        return (self.method.sampler, self.method.weighting) == (NO_SAMPLER, NO_WEIGHTING)

    def __str__(self) -> str:
        return f"{self.method} dropout {self.dropout:g}" if self.dropout else str(self.method)


@dataclass(frozen=True, slots=True)
class Menu:
    """Candidates, the baseline first, and the methods that are left out because their plugin is not installed."""

    candidates: tuple[Candidate, ...]
    left_out: tuple[str, ...] = ()


def menu_of(methods: str | None = None) -> Menu:
    """Return the default menu, or in-batch negatives at all temperatures, the given methods and the controls.

    Args:
        methods: methods separated by commas, see `clip_negatives.Method.parse`; ``menu`` stands for those of the default menu.

    Raises:
        PluginError: a plugin or an option that `methods` names is unknown.
        InputError: `methods` is empty, or names a method twice.
    """
    named = ["menu"] if methods is None else split_methods(methods)
    if not named:
        raise InputError("The list of methods is empty. Name methods, separated by commas.")
    texts = [text for name in named for text in (METHODS if name == "menu" else (name,))]
    if repeated := next((text for place, text in enumerate(texts) if text in texts[:place]), None):
        of_menu = f" (menu contains {', '.join(METHODS)})" if "menu" in named else ""
        raise InputError(f"{repeated} is named twice in {methods!r}{of_menu}. Remove one.")
    left_out = tuple(text for text in METHODS if "menu" in named and not is_installed(text))
    chosen = [Method.parse(text) for text in (BASELINE, *TEMPERATURES, *texts) if text not in left_out]
    candidates = [Candidate(method) for method in dict.fromkeys(chosen)]
    return Menu((*candidates, *(Candidate(Method.parse(DROPOUT_METHOD), dropout) for dropout in DROPOUTS)), left_out)


def is_installed(text: str) -> bool:
    """Return whether the plugins of a method are installed."""
    try:
        Method.parse(text)
    except PluginError:
        return False
    return True
