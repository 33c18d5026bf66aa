"""What is called in the process of a command before it begins: to look at it, stop it at a chosen change, or spoil a value."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
"""Flags of files that are opened to be changed."""


@dataclass(frozen=True, slots=True)
class Met:
    """Make a file once this process has joined the others."""

    file: Path

    def __call__(self) -> None:
        """Begin to look."""
        from torch import distributed as dist

        def look() -> None:
            while not dist.is_initialized():
                time.sleep(0.005)
            self.file.touch()

        threading.Thread(target=look, daemon=True).start()


@dataclass(frozen=True, slots=True)
class Writes:
    """Count what a process changes on the disk, note what gets its final name, and stop it right before a change.

    Attributes:
        notes: file; a line for each change: ``rename`` and the new name, or what it is.
        at: before which change; None lets it go on.
        number: the signal.
    """

    notes: Path
    at: int | None = None
    number: int = signal.SIGKILL

    def __call__(self) -> None:
        """Begin to count."""
        notes = os.open(self.notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        count = 0

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal count
            if event == "open":
                if not (isinstance(arguments[2], int) and arguments[2] & WRITES and isinstance(arguments[0], str)):
                    return
            elif event not in ("os.rename", "os.remove", "os.mkdir", "os.rmdir"):
                return
            count += 1
            if count == self.at:
                os.kill(os.getpid(), self.number)
            os.write(notes, f"{event} {arguments[1 if event == 'os.rename' else 0]}\n".encode())

        sys.addaudithook(hook)


@dataclass(frozen=True, slots=True)
class PoisonedEncoder:
    """Let an encoder give a feature that is no number.

    Attributes:
        place: which sample, counted as they are encoded.
        kind: "image" or "text".
    """

    place: int
    kind: str

    def __call__(self) -> None:
        """Put it in the place of the encoder."""
        from clip_negatives import prepare

        name, seen = f"{self.kind}_encoder_of", 0
        make = getattr(prepare, name)

        def poisoned(spec: str) -> Any:
            encoder = make(spec)

            def encode(some: Any) -> Any:
                nonlocal seen
                features = encoder.encode(some)
                if seen <= self.place < seen + len(features):
                    features[self.place - seen, 0] = float("nan")
                seen += len(features)
                return features

            return dataclasses.replace(encoder, encode=encode)

        setattr(prepare, name, poisoned)


@dataclass(frozen=True, slots=True)
class PoisonedLoss:
    """Let the loss of a step be infinite: what a spike that leaves the range of numbers does to the weights.

    Attributes:
        step: which one, from 0.
    """

    step: int

    def __call__(self) -> None:
        """Put it in the place of the loss."""
        from clip_negatives.loss import NegativesClipLoss

        forward, steps = NegativesClipLoss.forward, iter(range(10**9))

        def spiking(self_: Any, *given: Any, **named: Any) -> Any:
            losses = forward(self_, *given, **named)
            if next(steps) == self.step:
                return {name: loss * float("inf") for name, loss in losses.items()}
            return losses

        NegativesClipLoss.forward = spiking
