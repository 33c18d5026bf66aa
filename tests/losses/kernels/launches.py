"""Count the kernels that a step would launch on a GPU, on any device."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from triton.runtime.interpreter import GridExecutor
from triton.runtime.jit import JITFunction

NO_LAUNCHES = {"promote_types", "empty", "new_empty", "empty_like", "empty_strided", "lift_fresh", "_local_scalar_dense"}


class Launches(TorchDispatchMode):
    """Names of the operations of torch, but views, allocations and questions, and of the kernels of triton, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name.removeprefix("aten::")
        is_view = any(each.alias_info is not None and not each.alias_info.is_write for each in function._schema.returns)
        if not (is_view or name in NO_LAUNCHES):
            self.names.append(name)
        return function(*args, **(kwargs or {}))

    def __enter__(self) -> Launches:
        self._real = GridExecutor.__call__, JITFunction.run
        launches = self

        def interpret(executor: Any, *args: Any, **kwargs: Any) -> Any:
            launches.names.append(executor.fn.__name__)
            with _disable_current_modes():  # the interpreter's own copies
                return launches._real[0](executor, *args, **kwargs)

        def run(function: Any, *args: Any, **kwargs: Any) -> Any:
            launches.names.append(function.__name__)
            return launches._real[1](function, *args, **kwargs)

        GridExecutor.__call__, JITFunction.run = interpret, run
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        GridExecutor.__call__, JITFunction.run = self._real
        super().__exit__(*error)
