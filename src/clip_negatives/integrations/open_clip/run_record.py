"""The record of a training run: stored in its folder, compared between processes, and compared before a resume."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from clip_negatives.dataset.urls import shard_digest
from clip_negatives.distributed.processes import Processes
from clip_negatives.errors import ArtifactError, DataError, InputError
from clip_negatives.host.registry import Kind
from clip_negatives.integrations.open_clip.arguments import kind_of
from clip_negatives.integrations.open_clip.checkpoints import resumed_run
from clip_negatives.integrations.open_clip.train_options import TrainOptions
from clip_negatives.integrations.open_clip.train_set import pairs, samples_of_stream, world_size
from clip_negatives.storage.clusters_folder import ClustersFolder
from clip_negatives.storage.digests import digest_of, package_digest, rows_digest, weights_digest
from clip_negatives.storage.labels_folder import ClustersOrLabels
from clip_negatives.storage.provenance import (
    Difference,
    Record,
    as_json,
    clusters_section,
    differences,
    in_words,
    plugins_section,
    read_record,
    resolved,
    versions,
    write_record,
)

# fmt: off
# Arguments of open_clip that do not affect the trained model: names, logs, evaluation, connections. The arguments of the data
# are here too, because the data have their own section.
NOT_RECORDED = {
    "name", "logs", "log_local", "report_to", "wandb_notes", "wandb_project_name", "debug", "copy_codebase",
    "remote_sync", "remote_sync_frequency", "remote_sync_protocol", "resume", "save_frequency", "save_most_recent",
    "delete_previous_checkpoint", "zeroshot_frequency", "val_frequency", "val_data", "val_num_samples", "imagenet_val",
    "imagenet_v2", "cache_dir", "dist_url", "dist_backend", "no_set_device_rank", "horovod", "train_data", "dataset_type",
    "csv_separator", "csv_img_key", "csv_caption_key", "log_metric_every_n_steps", "train_loss_ema_samples",
    "val_retrieval_chunk_size", "val_retrieval_precision",
}
# Arguments for speed and memory. They are recorded, because a comparison measures both. They may change at a resume, and differ
# between processes.
COST = {
    "device", "workers", "log_every_n_steps", "grad_checkpointing", "ddp_static_graph", "torchcompile", "torchcompile_strategy",
    "torchcompile_backend", "torchcompile_mode",
}
# Arguments for the length of the training and for the optimizer. They may change at a resume.
SCHEDULE = {
    "epochs", "epochs_cooldown", "train_num_samples", "lr", "beta1", "beta2", "eps", "wd", "momentum", "warmup", "opt",
    "skip_scheduler", "lr_scheduler", "lr_cooldown_end", "lr_cooldown_power", "grad_clip_norm", "precision",
}
# fmt: on
WARNED = ("versions", "plugins")  # sections whose differences are a warning at a resume


def record_of(args: Namespace, options: TrainOptions, data: dict[str, Any]) -> Record:
    """Return the record of a run, without the section of its clusters; `data` is the section of its data."""
    samplings: list[tuple[Kind, str]] = [("negative_sampler", options.sampler), ("loss_weighting", options.weighting)]
    method: dict[str, Any] = {kind.split("_")[1]: resolved(kind, spec) for kind, spec in samplings}
    method |= {"temperature": options.temperature, "--refresh-every": options.refresh_every}
    if options.has_teacher:
        method |= {"--ema": options.ema, "--teacher": None if options.teacher is None else weights_digest(options.teacher)}
    if options.refresh_every is not None:
        clusterers: list[tuple[Kind, str]] = [("clusterer", spec) for spec in options.recipe.clusterers.values()]
        samplings += clusterers
        method |= {name: resolved("clusterer", spec) for name, spec in options.recipe.clusterers.items()}
    arguments = {name: value for name, value in sorted(vars(args).items()) if name not in NOT_RECORDED}
    if Path(args.pretrained).is_file():  # otherwise the name of published weights
        arguments["pretrained"] = weights_digest(args.pretrained)
    if args.model.startswith("local-dir:"):
        arguments["model"] = weights_digest(args.model.removeprefix("local-dir:"))
    if kind_of(args) == "webdataset":  # the length of an epoch may be in a file beside the shards
        arguments["train_num_samples"] = samples_of_stream(args)
    record = {
        "data": data,
        "method": method,
        "open_clip": arguments,
        "processes": {"number": world_size()},
        # In a checkout, the source can change without the version.
        "plugins": {"package clip-negatives": {"source": package_digest("clip_negatives")}, **plugins_section(samplings)},
        "versions": versions("clip-negatives", "open_clip_torch", "torch"),
    }
    return as_json(record)


def data_section(args: Namespace) -> dict[str, Any]:
    """Return the section that identifies the training data: rows of a table, tars, or number of synthetic samples."""
    kind = kind_of(args)
    return {"kind": kind, **({"samples": args.train_num_samples} if kind == "synthetic" else pairs(args).identity())}


def with_clusters(record: Record, folder: ClustersOrLabels | None) -> Record:
    """Check that the clusters belong to the data of a record, and return the record with a section of the clusters."""
    if isinstance(folder, ClustersFolder) and "texts" in record["data"]:
        for name in ("text", "image"):
            has_column = name in folder.samples.column_names
            if has_column and rows_digest(folder.samples[name]) != record["data"][f"{name}s"]:
                raise ArtifactError(
                    f"The clusters in {folder.path} belong to other data (the {name}s differ). Prepare them again: "
                    "clip-negatives prepare."
                )
    return {**record, "clusters": clusters_section(None if folder is None else folder.manifest)}


def start_section(args: Namespace, epoch: int) -> dict[str, Any]:
    """Return the section that must be the same on all processes at the start, besides the record. It is not stored.

    It has the first epoch, and a digest of both ends of the resumed checkpoint, which contain the checksums of its tensors. It
    names the evaluation data, because the processes wait for each other in an evaluation. For streams it has the number of
    workers, which determines the number of batches.
    """
    file = Path(args.resume) if args.resume and "://" not in args.resume else None
    checkpoint = None if file is None else shard_digest(str(file), file.stat().st_size)
    evaluated = " ".join(name for name in ("val_data", "imagenet_val", "imagenet_v2") if getattr(args, name))
    workers = args.workers if kind_of(args) == "webdataset" else None
    return {"first_epoch": epoch, "resumed_checkpoint": checkpoint, "evaluation_data": evaluated, "workers": workers}


def data_digest(record: Record) -> str:
    """Return a digest of the data of a record."""
    return digest_of({name: str(value) for name, value in record["data"].items()})


def check_dataset(record: Record, dataset: Any) -> None:
    """Check that open_clip read the recorded table, which may have changed after it was recorded."""
    for name, value in dataset.pairs.identity().items():
        if record["data"].get(name, value) != value:
            raise DataError(f"The training data changed while the run started: the {name} differ. Start again.")


def check_processes(record: Record, processes: Processes) -> Record:
    """Return the record of this process; if the records of the processes differ, raise the same InputError on all of them."""
    records = processes.gather(record)
    for rank, record_of_rank in enumerate(records):
        faults = [difference for difference in differences(records[0], record_of_rank) if not _may_differ(difference, COST)]
        if faults:
            raise InputError(
                f"Rank {rank} differs from rank 0: {in_words(faults, 'on rank 0 is', f'on rank {rank} is')}. Start all "
                "processes with the same data, clusters, options and packages."
            )
    return record


def check_resume(args: Namespace, checkpoint: Path | None, record: Record, *, anyway: bool) -> str:
    """Check that a resumed run had the same data, clusters and settings; return a warning, or "" if there is none.

    Args:
        args: arguments of open_clip.
        checkpoint: local checkpoint that open_clip will resume from; None for a new run or a remote checkpoint.
        record: record of the new run; only its sections are compared.
        anyway: return the differences as a warning instead of raising an InputError.
    """
    if checkpoint is None:
        is_remote = bool(args.resume) and (args.remote_sync is not None or "://" in args.resume)
        return "Nothing was compared with the resumed run: its checkpoint is remote." if is_remote else ""
    file = record_file(resumed_run(checkpoint))
    if not file.exists():
        return f"Nothing was compared with the resumed run: it has no {file}, as runs of older versions."
    stored = read_record(file)
    if stored is None and not anyway:
        raise ArtifactError(
            f"The record of the resumed run, {file}, is damaged or of another version, so nothing can be compared with it. "
            "If data and settings are those of the run, add --resume-anyway."
        )
    if stored is None:
        return f"Nothing was compared with the resumed run: {file} is damaged or of another version."
    stored = {section: entries for section, entries in stored.items() if section in record}
    changes = [difference for difference in differences(stored, record) if not _may_differ(difference, COST | SCHEDULE)]
    faults = [difference for difference in changes if difference.path[0] not in WARNED]
    if faults and not anyway:
        raise InputError(
            f"The run of {checkpoint} had other data or settings: {in_words(faults)}. Resume with those of the run, or add "
            "--resume-anyway."
        )
    return f"The resumed run had other data, settings or packages: {in_words(changes)}." if changes else ""


def record_file(run: Path) -> Path:
    """Return the file of the record in the folder of a run."""
    return run / "clip_negatives" / "provenance.json"


def store(record: Record, args: Any) -> None:
    """Write the record into the folder of the run, on rank 0."""
    if args.rank == 0:
        write_record(record, record_file(Path(args.checkpoint_path).parent))


def _may_differ(difference: Difference, names: set[str]) -> bool:
    """Return whether a difference is in one of the arguments `names` of open_clip."""
    return difference.path[0] == "open_clip" and difference.path[-1] in names
