"""Agreement of all processes on data, clusters and settings, before a training starts."""

from __future__ import annotations

from typing import Any

from clip_negatives.distributed.processes import Processes
from clip_negatives.integrations.open_clip import run_record
from clip_negatives.integrations.open_clip.arguments import kind_of
from clip_negatives.integrations.open_clip.preflight import first_folder
from clip_negatives.integrations.open_clip.recluster import stored_folder
from clip_negatives.integrations.open_clip.train_options import TrainOptions
from clip_negatives.integrations.open_clip.train_set import place_of_files
from clip_negatives.interfaces import Clusters
from clip_negatives.storage.labels_folder import ClustersOrLabels
from clip_negatives.storage.provenance import Record
from clip_negatives.training.reclustering import with_truth_of


def agree(
    args: Any,
    options: TrainOptions,
    folder: ClustersOrLabels | None,
    record: Record,
    dataset: Any,
    epoch: int,
    processes: Processes,
) -> tuple[ClustersOrLabels | None, Record, Clusters | None]:
    """Read the clusters on all ranks, and check that all ranks have the same data, clusters and settings.

    On rank 0, `folder` has the clusters; `record` has no section of the clusters yet. The result is the folder, the complete
    record, and the clusters of `epoch`, which may be re-clustered ones.
    """
    if kind_of(args) == "table":
        processes.together(lambda: run_record.check_dataset(record, dataset))
    start = processes.together(lambda: run_record.start_section(args, epoch))
    # Compared before the clusters are read: a rank with other data would not find the clusters of rank 0.
    run_record.check_processes({**record, "start": start}, processes)
    places = processes.gather(place_of_files(args))
    check_files = args.rank > 0 and places.index(places[args.rank]) == args.rank  # first process with these files
    folder = processes.together(lambda: folder or first_folder(args, options, check_files=check_files))
    record = processes.together(lambda: run_record.with_clusters(record, folder))
    run_record.check_processes(record, processes)
    clusters = None if folder is None else folder.clusters
    if (every := options.refresh_every) is not None:
        stored = processes.together(lambda: stored_folder(args, epoch, every, dataset))
        stored_digest = None if stored is None else stored.digest
        run_record.check_processes({"start": {"clusters_of_the_last_re-clustering": stored_digest}}, processes)
        clusters = clusters if stored is None else with_truth_of(clusters, stored.clusters)
    return folder, record, clusters
