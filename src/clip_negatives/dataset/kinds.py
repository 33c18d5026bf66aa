"""Formats of data sets, and the file names by which they are recognised."""

ENDINGS = {
    **dict.fromkeys(("csv", "tsv"), "csv"),
    **dict.fromkeys(("jsonl", "ndjson"), "jsonl"),
    **dict.fromkeys(("parquet", "pq"), "parquet"),
    "tar": "webdataset",
}
COMPRESSED = ("gz", "bz2", "xz", "zst")
KINDS = ("csv", "parquet", "jsonl", "imagefolder", "datasets", "webdataset")
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # of a folder of images, as in Hugging Face's imagefolder
SAVED = "state.json"  # in a folder of `datasets.Dataset.save_to_disk`
SAVED_SPLITS = "dataset_dict.json"  # in a folder of `datasets.DatasetDict.save_to_disk`
