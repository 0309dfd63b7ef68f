"""What a user chooses for an index; light, because every `--help` reads it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.images import MAX_PIXELS

# Kind of index -> what it costs, for the help text.
KINDS = {
    "exact": "compares all vectors (default)",
    "ivf": "compares only the lists nearest to the query",
    "hnsw": "walks a graph; fast, and larger than exact",
    "sq8": "ivf with one byte per dimension, a quarter of the size",
    "pq": "ivf with --bytes per vector, the smallest",
}
# The same, of databases only.
DATABASE_KINDS = {"diskann": "a graph on the disks of a milvus cluster, for more than its memory holds"}
ENGINES = ("faiss", "milvus", "qdrant")
IVF_KINDS = ("ivf", "sq8", "pq")
DEFAULT_RECALL = 0.95
MAX_LISTS = 65536  # that are picked
PQ_CENTROIDS = 256  # a code is a byte


@dataclass(frozen=True)
class ImageSettings:
    """Which images go into an index, and how they are read.

    Attributes:
        source: folder or list of images, or a feature directory.
        images_root: folder of the images of a feature directory; None where they are not shown.
        batch_size: images per batch.
        workers: processes that decode.
        max_pixels: of an image; larger ones cannot be read.
        skip_budget: unreadable images that may be skipped; None skips none, and lists all.
        hidden: of a folder, also take hidden images.
        hash_images: compare images by their hashes.
        dtype: `float32`, or the type that autocast computes in.
        skipped_before: images that were skipped already, by the same command.
    """

    source: Path
    images_root: Path | None = None
    batch_size: int = 64
    workers: int = 0
    max_pixels: int = MAX_PIXELS
    skip_budget: int | None = None
    hidden: bool = False
    hash_images: bool = False
    dtype: str = "float32"
    skipped_before: int = 0


@dataclass(frozen=True)
class IndexSettings:
    """Which kind of index is built.

    Attributes:
        kind: of `KINDS`.
        lists: of the ivf kinds; None picks from the number of images.
        code_bytes: per vector, for pq; None picks from the dimensions.
        recall: recall@10 that the index is tuned to; None is `DEFAULT_RECALL`.
        effort: instead of a recall: lists searched (ivf kinds), or breadth of the walk (hnsw).
    """

    kind: str = "exact"
    lists: int | None = None
    code_bytes: int | None = None
    recall: float | None = None
    effort: int | None = None


@dataclass(frozen=True)
class ModelPaths:
    """Where a model is loaded from, as an index remembers it.

    Attributes:
        path: checkpoint, directory or name.
        text_encoder: its text encoder, if that has moved.
        teacher: its teacher, if that has moved.
    """

    path: str
    text_encoder: str | None = None
    teacher: str | None = None


def default_lists(count: int) -> int:
    """Number of IVF lists: a power of two near twice the square root of the number of vectors."""
    return min(2 ** max(0, round(math.log2(2 * math.sqrt(max(count, 1))))), MAX_LISTS, max(count, 1))


def default_code_bytes(dim: int) -> int:
    """Bytes per vector of pq: an eighth of the dimensions."""
    return max(1, dim // 8)


def check_settings(settings: IndexSettings, dim: int, count: int) -> None:
    """Check that settings fit together and fit `count` vectors of `dim` columns.

    Raises:
        UserError: naming the option that does not fit, and what to do.
    """
    kind, effort = settings.kind, settings.effort
    lists, code_bytes = settings.lists or default_lists(count), settings.code_bytes or default_code_bytes(dim)
    most = {"exact": 0, "hnsw": count, "diskann": count}.get(kind, lists)
    refusals = {
        f"--lists is for --kind ivf, sq8 or pq; leave it out with {kind}": settings.lists and kind not in IVF_KINDS,
        f"--bytes is for --kind pq; leave it out with {kind}": settings.code_bytes and kind != "pq",
        f"{lists} lists for {count} images are too many; lower --lists, or use --kind exact": (
            kind in IVF_KINDS and lists > count
        ),
        f"--bytes {code_bytes} does not divide the model's {dim} dimensions; choose a divisor": (
            kind == "pq" and dim % code_bytes
        ),
        f"--kind pq trains on at least {PQ_CENTROIDS} images, not {count}; use --kind exact": (
            kind == "pq" and count < PQ_CENTROIDS
        ),
        "--recall and --effort are for the approximate kinds: exact always finds all; leave them out": (
            kind == "exact" and (effort or settings.recall)
        ),
        "--effort replaces --recall; give only one of them": effort and settings.recall,
        f"--effort {effort} is more than the {most} {'lists' if kind in IVF_KINDS else 'images'} of the index; give at "
        f"most {most}": effort and effort > most,
    }
    for message, applies in refusals.items():
        if applies:
            raise UserError(message)
