"""Run independent tasks on a cluster of Spark (extra ``spark``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from pyspark.sql import SparkSession

from clip_negatives.distributed.task import Task

T = TypeVar("T")


def run_tasks(session: SparkSession, work: Callable[..., T], *arguments: Any, n_tasks: int, **options: Any) -> list[T]:
    """Return ``[work(*arguments, task=Task(i, n_tasks), **options) for i in 1 .. n_tasks]``, each computed by a task of Spark.

    Spark starts a task again if its machine is lost. Complete parts are kept, so nothing is done twice.

    Args:
        session: session of the cluster.
        work: `clip_negatives.pipelines.encoded_parts.encode_parts` or
            `clip_negatives.pipelines.assigned_parts.assign_parts`.
        arguments: its arguments. Paths must be the same on all machines.
        n_tasks: number of tasks.
        options: its keyword arguments.

    Raises:
        py4j.protocol.Py4JJavaError: a task raised an error; its message has the error.
    """

    def run(number: int) -> T:
        return work(*arguments, task=Task(number, n_tasks), **options)

    results: list[T] = session.sparkContext.parallelize(range(1, n_tasks + 1), n_tasks).map(run).collect()
    return results
