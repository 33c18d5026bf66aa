"""The parameters of an anchor loss in the optimizer of a training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

NOT_BY_GROUP = ("_milestones", "_schedule_phases")  # lists of `SequentialLR` and `OneCycleLR` whose entries are no groups


class LossParameters:
    """The parameters of a loss, as one more group of an optimizer: with its learning rate, without weight decay.

    The state of the optimizer, which the loop stores in its checkpoints, stays without this group: other tools can load it.
    `state` is the part of this group. Parameters that the optimizer has already stay where they are. A loss without parameters
    changes nothing.

    Args:
        loss: the anchor loss, or None.
        optimizer: the optimizer of the training, with the options of its last group.
        schedulers: schedulers of `optimizer` that already exist; the new group gets the schedule of the last group.
    """

    def __init__(self, loss: nn.Module | None, optimizer: Optimizer, schedulers: Iterable[Any] = ()) -> None:
        present = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        named = [] if loss is None else loss.named_parameters()
        self.parameters = {name: parameter for name, parameter in named if id(parameter) not in present}
        self.optimizer = optimizer
        if not self.parameters:
            return
        groups = optimizer.param_groups
        n_groups, options = len(groups), {name: value for name, value in groups[-1].items() if name != "params"}
        optimizer.add_param_group({**options, "weight_decay": 0.0, "params": list(self.parameters.values())})
        optimizer.register_state_dict_post_hook(self._without_own_group)
        optimizer.register_load_state_dict_pre_hook(self._with_own_group)
        for scheduler in schedulers:
            if getattr(scheduler, "optimizer", optimizer) is optimizer:
                _extend(scheduler, n_groups)

    def state(self) -> dict[str, Tensor]:
        """Return the optimizer's state of the parameters: tensors by ``PARAMETER/NAME``; numbers as tensors of shape ()."""
        return {
            f"{name}/{key}": torch.as_tensor(value)
            for name, parameter in self.parameters.items()
            for key, value in self.optimizer.state[parameter].items()
            if isinstance(value, Tensor | int | float)
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue with a state that `state` returned."""
        own = next((group for group in self.optimizer.param_groups if self._is_own(group)), {})
        counts_on_device = own.get("fused") or own.get("capturable")  # as optimizers keep their counts of steps
        for key, value in state.items():
            name, _, part = key.rpartition("/")
            parameter = self.parameters[name]
            device = "cpu" if part == "step" and not counts_on_device else parameter.device
            self.optimizer.state[parameter][part] = value.clone().to(device)

    def without_own_group(self, scheduler: dict[str, Any]) -> dict[str, Any]:
        """Return the state of a scheduler of the optimizer without this group, which is the last one."""
        n_groups, state = len(self.optimizer.param_groups), dict(scheduler)
        for name, value in scheduler.items():
            if name == "_schedulers":
                state[name] = [self.without_own_group(inner) for inner in value]
            elif isinstance(value, list) and len(value) == n_groups and name not in NOT_BY_GROUP:
                state[name] = value[:-1]
        return state

    def _without_own_group(self, optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        place = next(place for place, group in enumerate(optimizer.param_groups) if self._is_own(group))
        own = set(state["param_groups"][place]["params"])
        groups = [group for group in state["param_groups"] if own.isdisjoint(group["params"])]
        return {**state, "param_groups": groups, "state": {key: it for key, it in state["state"].items() if key not in own}}

    def _with_own_group(self, optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        group = next(group for group in optimizer.param_groups if self._is_own(group))
        used = [key for stored in state["param_groups"] for key in stored["params"]]
        keys = range(max(used, default=-1) + 1, max(used, default=-1) + 1 + len(group["params"]))
        own = {key: optimizer.state[parameter] for key, parameter in zip(keys, group["params"], strict=True)}
        *_, last = state["param_groups"]  # its learning rate is that of the stored step
        groups = [*state["param_groups"], {**group, **last, "weight_decay": 0.0, "params": list(keys)}]
        return {**state, "param_groups": groups, "state": {**state["state"], **{key: it for key, it in own.items() if it}}}

    def _is_own(self, group: dict[str, Any]) -> bool:
        return any(group["params"][0] is parameter for parameter in self.parameters.values())


def _extend(scheduler: Any, n_groups: int) -> None:
    """Repeat the last entry of each list that a scheduler, or a scheduler within it, keeps by group."""
    for name, value in vars(scheduler).items():
        if name == "_schedulers":
            for inner in value:
                _extend(inner, n_groups)
        elif isinstance(value, list) and len(value) == n_groups and name not in NOT_BY_GROUP:
            value.append(value[-1])
