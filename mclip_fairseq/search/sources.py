"""Where the vectors of an index come from: pictures that are encoded, or features that are there already."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch

from mclip_fairseq.cli.features import Decoded, ImageSource, compute
from mclip_fairseq.encoding.galleries import FeatureGallery, ImageGallery
from mclip_fairseq.search.files import NO_PERMISSION
from mclip_fairseq.search.kinds import Vectors
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.feature_writer import FeatureWriter
from mclip_fairseq.storage.features import FeatureStore

SHARD_ROWS = 1024  # what an interruption costs at most
PROJECTED_AT_ONCE = 4096


def describe_model(model: Any, load: Mapping[str, str | None]) -> dict[str, Any]:
    """What an index remembers of its model: who it is, and how it was loaded.

    Args:
        model: with `name`, `dim`, `fingerprint` and `identity`.
        load: `path`, `text_encoder` and `teacher` of the command line.
    """
    here = {name: os.path.abspath(value) if value and Path(value).exists() else value for name, value in load.items()}
    return {"name": model.name, "fingerprint": model.fingerprint, "identity": model.identity, "load": here}


def check_model(model: Any, stored: Mapping[str, Any], place: Path) -> None:
    """Refuse a model whose vectors cannot be compared with those of an index.

    Raises:
        UserError: naming both models.
    """
    if model.fingerprint != stored["fingerprint"]:
        raise UserError(
            f"{place}: was made with the model {stored.get('name')!r} (fingerprint {stored['fingerprint'][:12]}), but "
            f"this is {model.name!r} ({model.fingerprint[:12]}), whose vectors do not compare; use the model of the "
            "index, or build another index"
        )


def is_feature_directory(path: Path) -> bool:
    """Whether a path is what `mclip-features` writes, finished or not."""
    return path.is_dir() and ((path / "manifest.json").is_file() or (path / "partial" / "plan.json").is_file())


def open_gallery(path: Path, pictures: Path | None) -> ImageGallery | FeatureGallery:
    """A folder of pictures, a list of them, or a feature directory with or without its pictures.

    Raises:
        UserError: it is none of these, cannot be read, or its ids are paths of this machine.
    """
    try:
        gallery = _open_gallery(path, pictures)
    except PermissionError as error:
        raise UserError(f"{path}: {NO_PERMISSION}") from error
    for row, name in enumerate(gallery.index.names):
        if PurePath(name).is_absolute():
            raise UserError(
                f"{path}: the id {name!r} (number {row + 1}) is a path of this machine, and whoever searches sees the "
                "ids; list the images as id<TAB>path"
            )
    return gallery


def _open_gallery(path: Path, pictures: Path | None) -> ImageGallery | FeatureGallery:
    if not path.exists():
        raise UserError(f"{path}: there is no such folder, list or feature directory")
    if not is_feature_directory(path):
        if pictures is not None:
            raise UserError("--images-root goes with a feature directory: a folder's pictures are known already")
        return ImageGallery(path)
    return FeatureGallery(FeatureStore.open(path), path, pictures)


class ProjectedFeatures:
    """Rows of a feature directory, brought into the joint space when they are asked for.

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
            UserError: features of another teacher, or values that are not finite.
        """
        vectors: Vectors = self.gallery.encode(self.model, self.rows[rows], PROJECTED_AT_ONCE).numpy()
        bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(bad):
            raise UserError(f"{self.gallery.folder}: the features of {self.ids[rows[bad[0]]]!r} are not finite")
        return vectors


class JointImages(ImageSource):
    """Pictures for the image tower of a `MultilingualCLIP`, decoded by worker processes."""

    def __init__(self, model: Any, images: list[tuple[str, Path]], workers: int, max_pixels: int) -> None:
        self.ids = [name for name, _ in images]
        self.preprocessing = model.transform.description
        self.encode_image = lambda pixel_values: model.encode_image(pixel_values, normalize=False)
        self.images = Decoded(images, model.transform, max_pixels)
        self.workers = workers


def encode_images(
    gallery: ImageGallery,
    model: Any,
    identity: Mapping[str, Any],
    folder: Path,
    options: argparse.Namespace,
    rows: Sequence[int] | None = None,
) -> FeatureStore:
    """Encode pictures into a feature directory of joint-space vectors, going on where an earlier run stopped.

    Args:
        gallery: the pictures.
        model: the dual encoder.
        identity: what `describe_model` says of it.
        folder: where the vectors are kept.
        options: `batch_size`, `workers`, `max_pixels` and `skip_budget` of the command line.
        rows: of the gallery; None takes all.

    Raises:
        UserError: pictures that cannot be read, more than the budget allows; all of them are named.
    """
    chosen = range(len(gallery.paths)) if rows is None else rows
    images = [(gallery.index.names[row], gallery.paths[row]) for row in chosen]
    source = JointImages(model, images, options.workers, options.max_pixels)
    writer = FeatureWriter(
        folder,
        source.ids,
        teacher={"name": identity["name"], "sha256": identity["fingerprint"]},
        dim=model.dim,
        modality="image",
        normalized=True,
        preprocessing=source.preprocessing,
        dtype="float32",
        shard_rows=SHARD_ROWS,
    )
    settings = {"machine": 0, "machines": 1, "dtype": "float32", "normalize": True}
    compute(source, writer, argparse.Namespace(**vars(options) | settings), torch.device("cpu"))
    writer.finalize()
    return FeatureStore.open(folder)
