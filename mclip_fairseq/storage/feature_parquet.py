"""A feature directory as Parquet files, for programs that read tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mclip_fairseq.storage.extras import import_extra
from mclip_fairseq.storage.feature_files import open_shard, read_ids, read_manifest
from mclip_fairseq.storage.files import complete_file

SHARD_KEY = b"mclip_fairseq.sha256"  # in a file's metadata: the hash of the shard that it holds


def import_arrow() -> tuple[Any, Any]:
    """The packages pyarrow and pyarrow.parquet.

    Raises:
        UserError: they are not installed.
    """
    return import_extra("pyarrow", "scale"), import_extra("pyarrow.parquet", "scale")


def write_parquet(features: Path, output: Path) -> int:
    """Write each shard of a feature directory as a file with the columns `id` and `vector`, a list of float32.

    Args:
        features: a complete directory.
        output: folder of the files; those that hold the same shard already are kept.

    Returns:
        the number of files.
    """
    arrow, parquet = import_arrow()
    manifest = read_manifest(features)
    ids, first = read_ids(features, manifest), 0
    output.mkdir(parents=True, exist_ok=True)
    for entry in manifest["shards"]:
        names = ids[first : first + entry["rows"]]
        first += entry["rows"]
        file = output / f"{Path(entry['file']).stem}.parquet"
        if shard_of(file) == entry["sha256"].encode():
            continue
        values = arrow.array(open_shard(features, manifest, entry).astype("float32").reshape(-1))
        vectors = arrow.FixedSizeListArray.from_arrays(values, manifest["dim"])
        table = arrow.table({"id": arrow.array(names, arrow.string()), "vector": vectors})
        with complete_file(file) as stream:
            parquet.write_table(table.replace_schema_metadata({SHARD_KEY: entry["sha256"]}), stream)
    return len(manifest["shards"])


def shard_of(file: Path) -> Any:
    """The hash of the shard in a Parquet file; None if the file is missing or is something else."""
    arrow, parquet = import_arrow()
    try:
        return (parquet.read_schema(file).metadata or {}).get(SHARD_KEY)
    except (arrow.ArrowException, OSError):
        return None
