"""Where the vectors of an index come from: images that are encoded, or features that are projected."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from mclip_fairseq.encoding.bulk import BulkSettings, compute
from mclip_fairseq.encoding.galleries import FeatureGallery, ImageGallery
from mclip_fairseq.encoding.images import ImageSource
from mclip_fairseq.search.files import NO_PERMISSION
from mclip_fairseq.search.kinds import Vectors
from mclip_fairseq.search.settings import ImageSettings, ModelPaths
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.feature_writer import FeatureWriter
from mclip_fairseq.storage.features import FeatureStore

SHARD_ROWS = 1024  # at most this many images are encoded again after an interruption
PROJECTED_AT_ONCE = 4096
Gallery = ImageGallery | FeatureGallery


def describe_model(model: Any) -> dict[str, Any]:
    """The model's entry in the manifest: what it is, and not where it was loaded from.

    Args:
        model: with `name`, `dim`, `fingerprint` and `identity`.
    """
    return {"name": model.name, "fingerprint": model.fingerprint, "identity": model.identity}


def absolute_paths(paths: ModelPaths) -> ModelPaths:
    """Where a model was loaded from, with local paths made absolute."""
    found = {
        name: os.path.abspath(value) if value and Path(value).exists() else value
        for name, value in asdict(paths).items()
    }
    return ModelPaths(**found)


def is_feature_directory(path: Path) -> bool:
    """Whether `mclip-features` writes a directory like this, finished or not."""
    return path.is_dir() and ((path / "manifest.json").is_file() or (path / "partial" / "plan.json").is_file())


def open_gallery(settings: ImageSettings) -> tuple[Gallery, ImageSettings]:
    """A folder of images, a list of them, or a feature directory with or without its images.

    What was left out is printed.

    Returns:
        the gallery, and the settings with what awkward names leave of the skip budget.

    Raises:
        UserError: it is none of these, cannot be read, or has ids that are absolute paths or too many awkward names.
    """
    path = settings.source
    try:
        gallery = _open_gallery(settings)
    except PermissionError as error:
        raise UserError(f"{path}: {NO_PERMISSION}") from error
    for row, name in enumerate(gallery.index.names):
        if PurePath(name).is_absolute():
            raise UserError(
                f"{path}: the id {name!r} (number {row + 1}) is an absolute path, and everyone who searches sees the "
                "ids; list the images as id<TAB>path"
            )
    if not isinstance(gallery, ImageGallery):
        return gallery, settings
    listing = gallery.listing
    left = replace(settings, skip_budget=listing.check_names(path, settings.skip_budget))
    for note in [*listing.skipped(path), *listing.notes(path)]:
        print(note, file=sys.stderr)
    return gallery, left


def _open_gallery(settings: ImageSettings) -> Gallery:
    path, images_root = settings.source, settings.images_root
    if not path.exists():
        raise UserError(f"{path}: no such folder, list or feature directory; check the path")
    if is_feature_directory(path):
        if settings.hash_images:
            raise UserError(f"{path}: holds features, which are always compared by their hashes; omit --hash-images")
        return FeatureGallery(FeatureStore.open(path), path, images_root)
    if images_root is not None:
        raise UserError("--images-root is for a feature directory; leave it out, the source already names the images")
    return ImageGallery(path, hidden=settings.hidden, hashed=settings.hash_images)


class ProjectedFeatures:
    """Rows of a feature directory, projected into the joint space when they are asked for.

    Args:
        gallery: the feature directory.
        model: the dual encoder.
        rows: of the directory, in this order; None takes all.
    """

    def __init__(self, gallery: FeatureGallery, model: Any, rows: Sequence[int] | None = None) -> None:
        self.gallery, self.model = gallery, model
        self.rows = np.arange(len(gallery.index.names)) if rows is None else np.asarray(rows, dtype=np.int64)
        self.ids = [gallery.index.names[row] for row in self.rows]

    def take(self, rows: np.ndarray) -> Vectors:
        """(n, dim) normalised vectors.

        Raises:
            UserError: the features come from a different teacher, or are not finite.
        """
        vectors: Vectors = self.gallery.encode(self.model, self.rows[rows], PROJECTED_AT_ONCE).numpy()
        bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(bad):
            raise UserError(f"{self.gallery.folder}: the features of {self.ids[rows[bad[0]]]!r} are not finite")
        return vectors


def encode_images(
    gallery: ImageGallery,
    model: Any,
    model_entry: Mapping[str, Any],
    folder: Path,
    settings: ImageSettings,
    rows: Sequence[int] | None = None,
) -> FeatureStore:
    """Encode images into a feature directory of joint-space vectors, continuing where an earlier run stopped.

    Args:
        gallery: the images.
        model: the dual encoder.
        model_entry: its `describe_model`.
        folder: where the vectors are kept.
        settings: how the images are read.
        rows: of the gallery; None takes all.

    Raises:
        UserError: more images cannot be read than the budget allows; all of them are listed.
    """
    chosen = range(len(gallery.paths)) if rows is None else rows
    images = [(gallery.index.names[row], gallery.paths[row]) for row in chosen]
    source = ImageSource(images, model.transform, model.encode_pixels, settings.workers, settings.max_pixels)
    lowered = "" if settings.dtype == "float32" else f", encoded in {settings.dtype}"
    writer = FeatureWriter(
        folder,
        source.ids,
        teacher={"name": model_entry["name"], "sha256": model_entry["fingerprint"]},
        dim=model.dim,
        modality="image",
        normalized=True,
        preprocessing=source.preprocessing + lowered,
        dtype="float32",
        shard_rows=SHARD_ROWS,
    )
    bulk = BulkSettings(
        settings.batch_size,
        settings.dtype,
        normalize=True,
        skip_budget=settings.skip_budget,
        skipped_before=settings.skipped_before,
    )
    compute(source, writer, bulk, model.device)
    writer.finalize()
    return FeatureStore.open(folder)
