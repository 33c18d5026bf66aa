"""Join the processes that torchrun started into one run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
from torch import distributed as dist
from torch.distributed.rendezvous import rendezvous

from clip_negatives.distributed.environment import check_address, started_processes
from clip_negatives.distributed.failures import lost_process_errors, timeout
from clip_negatives.distributed.processes import ALONE, EXCHANGES, KNOWN, Processes
from clip_negatives.errors import ClipNegativesError

START_TIMEOUT = timedelta(minutes=30)  # maximum time for all processes to start
EXIT_TIMEOUT = timedelta(seconds=30)  # maximum time to wait for the end of the process that reports an error


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the processes that torchrun started, and yield them; without torchrun, yield a single process.

    Only the process with the ``rank`` of an error reports the error. The other processes then exit silently with code 2.

    Raises:
        ProcessError: a process did not start, or an environment variable of torchrun is missing or invalid.
        InputError: ``CLIP_NEGATIVES_TIMEOUT`` is not a number of seconds.
    """
    if started_processes() == 1:
        yield ALONE
        return
    processes = _join()
    try:
        yield processes
    except ClipNegativesError as error:
        if error.rank in (None, processes.rank):
            raise
        # torchrun ends all processes when the first one ends: let the reporting process end first.
        with suppress(RuntimeError):  # the process has ended, or takes too long
            if (end := dist.irecv(torch.empty(1), src=error.rank)) is not None:
                end.wait(EXIT_TIMEOUT)
        time.sleep(0.5)  # the reporting process prints its message just after it leaves the group
        raise SystemExit(2) from error
    finally:
        dist.destroy_process_group()


def _join() -> Processes:
    """Wait for all processes and initialise the default group, which clusterers use too."""
    message_timeout = timeout()
    check_address("RANK")
    with lost_process_errors():
        store, rank, world_size = next(rendezvous("env://", timeout=START_TIMEOUT))
        store.set(EXCHANGES.format(rank), "0")
        # Wait here: the timeout of init_process_group also applies to every later message.
        store.wait([EXCHANGES.format(peer) for peer in range(world_size)], START_TIMEOUT)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=message_timeout)
    KNOWN[dist.group.WORLD] = processes = Processes(rank, world_size, store=store)
    return processes
