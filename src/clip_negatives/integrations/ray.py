"""Run independent tasks on a cluster of Ray (extra ``ray``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import ray

from clip_negatives.distributed.task import Task

T = TypeVar("T")


def run_tasks(
    work: Callable[..., T], *arguments: Any, n_tasks: int, resources: Mapping[str, Any] | None = None, **options: Any
) -> list[T]:
    """Return ``[work(*arguments, task=Task(i, n_tasks), **options) for i in 1 .. n_tasks]``, each computed by a task of Ray.

    Ray starts a task again if its machine is lost. Complete parts are kept, so nothing is done twice.

    Args:
        work: `clip_negatives.pipelines.encoded_parts.encode_parts` or
            `clip_negatives.pipelines.assigned_parts.assign_parts`.
        arguments: its arguments. Paths must be the same on all machines.
        n_tasks: number of tasks.
        resources: resources of each task, as ``ray.remote`` takes them, such as ``{"num_gpus": 1}``.
        options: its keyword arguments.

    Raises:
        ray.exceptions.RayTaskError: a task raised an error. It is also an instance of the class of that error.
    """
    remote: Any = ray.remote(work)
    remote = remote.options(**(resources or {}))
    return list(ray.get([remote.remote(*arguments, task=Task(number, n_tasks), **options) for number in range(1, n_tasks + 1)]))
