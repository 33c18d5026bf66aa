"""Training with open_clip's own loop, a negative sampler and a loss weighting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_negatives.advice import argument, remedies
from clip_negatives.errors import ArtifactError, ClipNegativesError
from clip_negatives.integrations.open_clip.adapter import installed
from clip_negatives.integrations.open_clip.arguments import FOUND, check_paths, has_checkpoint, parsed
from clip_negatives.integrations.open_clip.train_options import TrainOptions
from clip_negatives.plugin_code import no_exit
from clip_negatives.storage.locks import sole_user

if TYPE_CHECKING:
    from clip_negatives.storage.clusters_folder import ClustersFolder


def train(arguments: Sequence[str], options: TrainOptions | None = None) -> Path | None:
    """Train as ``python -m open_clip_train.main`` does with `arguments`, but with the method in `options`.

    Every check that can run before open_clip starts does so, before the first file is written. Returns the folder of the run.
    """
    options = options or TrainOptions()
    check_paths(arguments, options)  # before the slow imports
    options.check()
    adapter = installed()  # before the imports that need its functions
    from clip_negatives.batches.streams import worker_errors
    from clip_negatives.distributed.failures import lost_process_errors
    from clip_negatives.integrations.open_clip import (
        checkpoints,
        command_line,
        guest,
        preflight,
        rehearsal,
        run_record,
        seam,
        train_set,
    )

    main = adapter.main
    args = command_line.check_arguments(arguments, options)
    record = run_record.record_of(args, options, run_record.data_section(args))
    folder, warning = None, ""
    if train_set.rank() == 0:  # the other ranks wait in open_clip's own rendezvous, and read the folder after it
        checkpoint = checkpoints.check_resumed(main, args)
        run_record.check_resume(args, checkpoint, record, anyway=options.resume_anyway)  # names a changed --model
        rehearsal.rehearse(adapter, args)
        folder = preflight.first_folder(args, options)
        preflight.try_plugins(folder, args, options)
        full_record = run_record.with_clusters(record, folder)
        warning = run_record.check_resume(args, checkpoint, full_record, anyway=options.resume_anyway)
    run_lock = sole_user(Path(args.logs) / args.name, wait=False) if args.name and train_set.rank() == 0 else nullcontext()
    try:
        negatives = seam.Negatives(adapter, options, folder, record, warning)
        changes = guest.installed(adapter, negatives, args.dataset_type, options.known_missing)
        with run_lock, lost_process_errors(), changes, no_exit(), worker_errors():
            outcome = main.main([*FOUND, *arguments])
    except OSError as error:
        file = f" {error.filename}" if error.filename else f" in {args.logs}"
        reason = error.strerror or str(error).strip().rpartition("\n")[2]  # of a traceback: its last line
        fault = f"open_clip could not read or write a file{file}: {reason}."
        raise ArtifactError(f"{fault} {remedies(error) or 'Correct this.'} Then {_next_step(negatives.run_folder)}.") from error
    if outcome not in (None, 0):
        raise ClipNegativesError("open_clip stopped before training. See its message above.")
    return negatives.run_folder


def _next_step(run: Path | None) -> str:
    """Return the advice for a run that stopped; `run` is its folder, None if unknown."""
    if run is None or not has_checkpoint(run):
        return "train again"
    return f"continue with {argument('resume', f'--name {run.name} --resume latest')}"


def check(arguments: Sequence[str], options: TrainOptions) -> None:
    """Run the checks of `train` without training; without clusters, skip the checks that need them."""
    check_paths(arguments, options)
    options.check()
    adapter = installed()  # before the imports that need its functions
    from clip_negatives.integrations.open_clip import command_line, preflight, rehearsal

    args = command_line.check_arguments(arguments, options)
    rehearsal.rehearse(adapter, args)
    if options.clusters is not None:
        preflight.try_plugins(preflight.first_folder(args, options), args, options)


def provenance(
    arguments: Sequence[str], options: TrainOptions, folder: ClustersFolder | None, data: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the provenance record of a run; `folder` has its clusters, and `data` is the section that identifies its data."""
    from clip_negatives.integrations.open_clip import run_record

    return run_record.with_clusters(run_record.record_of(parsed(arguments), options, dict(data)), folder)
