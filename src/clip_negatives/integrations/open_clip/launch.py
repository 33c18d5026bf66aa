"""Run open_clip's own training with our negatives."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from clip_negatives.errors import ArtifactError, ClipNegativesError, InputError
from clip_negatives.integrations.open_clip.train_options import TrainOptions
from clip_negatives.processes import is_loss, reporting_loss
from clip_negatives.temperature import check_temperature


def _loggers() -> list[logging.Logger]:
    """Return every logger there is."""
    named = logging.root.manager.loggerDict.values()
    return [logging.root, *(logger for logger in named if isinstance(logger, logging.Logger))]


@contextmanager
def _own_logging() -> Iterator[None]:
    """Undo at the end what open_clip does to logging.

    It adds handlers to the root logger: a second run would write into the first one's log. And it sets the level of every
    logger there is: torch's would print their statistics when the process ends. While it trains, a log that finds no room on
    the disk is no reason for a traceback with every line: the checkpoint that finds none says it.
    """
    raising, logging.raiseExceptions = logging.raiseExceptions, False
    levels = {logger: logger.level for logger in _loggers()}
    handlers = list(logging.root.handlers)
    try:
        yield
    finally:
        logging.raiseExceptions = raising
        for logger in _loggers():
            logger.setLevel(levels.get(logger, logging.NOTSET))
        for handler in [added for added in logging.root.handlers if added not in handlers]:
            logging.root.removeHandler(handler)
            handler.close()


@contextmanager
def _reported() -> Iterator[None]:
    """Say in a sentence what ends open_clip from outside: a file that it cannot read or write, a process that is gone.

    Raises:
        ArtifactError: of a file, of which the system told.
        ProcessError: of a process.
    """
    try:
        with reporting_loss(is_loss):
            yield
    except OSError as error:
        raise ArtifactError(
            f"Expected open_clip to read and write its files, got: {error.strerror or error}"
            f"{f' ({error.filename})' if error.filename else ''}. Mend that and go on with --resume latest."
        ) from error


def train(arguments: Sequence[str], options: TrainOptions | None = None) -> None:
    """Train as ``python -m open_clip_train.main`` does with `arguments`, with the negatives of `options`.

    Everything that can be checked is checked before open_clip starts and writes its first file.

    Args:
        arguments: command line of open_clip_train, untouched.
        options: which negatives; None is the default.

    Raises:
        ClipNegativesError: something is not as expected; see the classes of `clip_negatives.errors`.
    """
    options = options or TrainOptions()
    needs_clusters = _check_options(options)  # resolves the names before anything slow is imported
    from clip_negatives.integrations.open_clip.checkpoints import check_resumed, whole_checkpoints
    from clip_negatives.integrations.open_clip.command_line import check_arguments
    from clip_negatives.integrations.open_clip.preflight import first_folder, try_plugins
    from clip_negatives.integrations.open_clip.seam import Negatives, installed, load_main
    from clip_negatives.integrations.open_clip.train_set import rank

    main = load_main()
    parsed = check_arguments(arguments, options)
    # The other ranks wait for rank 0 in open_clip's own rendezvous and read the folder after it.
    folder = first_folder(parsed, options) if needs_clusters and rank() == 0 else None
    if rank() == 0:
        try_plugins(folder, parsed, options)
        check_resumed(main, parsed)
    negatives = Negatives(main, options, folder, needs_clusters=needs_clusters)
    with _own_logging(), _reported(), installed(main, negatives), whole_checkpoints():
        outcome = main.main(list(arguments))
    if outcome not in (None, 0):
        raise ClipNegativesError("Expected open_clip to train, but it stopped; the line above says why.")


def check(arguments: Sequence[str], options: TrainOptions) -> None:
    """Refuse what `train` would refuse, as far as it can be told: without clusters, nothing of what is made from them.

    Raises:
        ClipNegativesError: as `train`.
    """
    _check_options(options)
    from clip_negatives.integrations.open_clip.command_line import check_arguments
    from clip_negatives.integrations.open_clip.preflight import read_folder, try_plugins
    from clip_negatives.integrations.open_clip.seam import load_main
    from clip_negatives.integrations.open_clip.train_set import kind_of

    load_main()
    parsed = check_arguments(arguments, options)
    if options.clusters is not None:
        try_plugins(read_folder(options.clusters, kind_of(parsed)), parsed, options)


def _check_options(options: TrainOptions) -> bool:
    """Refuse values out of their range and unknown names; return whether clusters are needed."""
    if options.refresh_every is not None and options.refresh_every < 1:
        raise InputError(f"Expected refresh_every of at least 1 epoch, got {options.refresh_every}.")
    if options.temperature is not None:
        check_temperature(options.temperature)
    return options.requires_clusters or options.clusters is not None
