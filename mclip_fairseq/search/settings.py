"""What a user chooses for an index; light, because every `--help` reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mclip_fairseq.storage.images import MAX_PIXELS

# Kind of index -> what it costs, for the help text.
KINDS = {
    "exact": "compares all vectors (default)",
    "ivf": "compares only the lists nearest to the query",
    "hnsw": "walks a graph; fast, and larger than exact",
    "sq8": "ivf with one byte per dimension, a quarter of the size",
    "pq": "ivf with --bytes per vector, the smallest",
}
DEFAULT_RECALL = 0.95


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
    """

    source: Path
    images_root: Path | None = None
    batch_size: int = 64
    workers: int = 0
    max_pixels: int = MAX_PIXELS
    skip_budget: int | None = None


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
