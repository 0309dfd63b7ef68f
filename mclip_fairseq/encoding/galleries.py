"""What captions are searched in: pictures in a folder or stored teacher features, and their encoding."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mclip_fairseq.encoding.captions import Captions
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import file_sha256, shown
from mclip_fairseq.storage.images import SUFFIXES, resolve_images

# Batches handed over at once, so that the encoder can sort texts by length and decode pictures ahead.
CHUNK_BATCHES = 16


class Encoder(Protocol):
    """What evaluation needs of a dual encoder (``MultilingualCLIP`` has it)."""

    def encode_text(self, texts: list[str], batch_size: int = ..., normalize: bool = ...) -> Tensor:
        """(n, D) features of texts."""

    def encode_image(self, images: list[Path], batch_size: int = ..., normalize: bool = ...) -> Tensor:
        """(n, D) features of picture files."""

    def encode_image_features(self, features: Tensor, batch_size: int = ..., normalize: bool = ...) -> Tensor:
        """(n, D) features from raw teacher features."""


class Store(Protocol):
    """What evaluation needs of an indexed feature directory (``FeatureStore`` has it)."""

    @property
    def ids(self) -> Sequence[str]:
        """The id of each row."""

    @property
    def identity(self) -> dict[str, Any]:
        """What the features were made by."""

    @property
    def manifest(self) -> dict[str, Any]:
        """What the directory says of itself."""

    def take(self, rows: np.ndarray) -> np.ndarray:
        """(n, dim) features of these rows."""


class IdIndex:
    """Finds an id among names: the name itself, or the name without its image extension.

    Args:
        names: the names, each once.
        place: what holds them, for messages.
    """

    def __init__(self, names: Sequence[str], place: Path) -> None:
        self.names = list(names)
        self.place = place
        self._rows = {name: row for row, name in enumerate(self.names)}
        if len(self._rows) != len(self.names):
            twice = next(name for row, name in enumerate(self.names) if self._rows[name] != row)
            raise UserError(f"{place} names image {twice!r} more than once.")
        self._short: dict[str, list[int]] | None = None

    def find(self, name: str) -> int | None:
        """Row of an id, or None.

        Raises:
            UserError: when the id fits several names.
        """
        row = self._rows.get(name)
        if row is not None:
            return row
        rows = self._without_extension().get(name, [])
        if len(rows) > 1:
            fits = ", ".join(self.names[row] for row in rows[:3])
            raise UserError(f"Image id {name!r} fits several images of {self.place} ({fits}): write its extension.")
        return rows[0] if rows else None

    def rows(self, captions: Captions) -> np.ndarray:
        """(T,) int64 row of each caption's image.

        Raises:
            UserError: naming the first id that is not there with its file and line, and how many there are.
        """
        return self.rows_of(captions.ids, captions.ids_path, captions.language)

    def rows_of(self, ids: Sequence[str], file: Path, language: str = "") -> np.ndarray:
        """(n,) int64 row of each id, the ids being the lines of a file; see ``rows``."""
        found = [self.find(name) for name in ids]
        missing = [row for row, image in enumerate(found) if image is None]
        if missing:
            of = f" ({language})" if language else ""
            raise UserError(
                f"{file} line {missing[0] + 1}: image {ids[missing[0]]!r}{of} is not in {self.place}; "
                f"{len(missing)} of {len(found)} {'captions' if language else 'lines'} name an unknown image."
            )
        return np.array(found, dtype=np.int64)

    def _without_extension(self) -> dict[str, list[int]]:
        if self._short is None:
            self._short = {}
            for row, name in enumerate(self.names):
                stem, suffix = os.path.splitext(name)
                if suffix.lower() in SUFFIXES:
                    self._short.setdefault(stem, []).append(row)
        return self._short


class ImageGallery:
    """Pictures on disk.

    Args:
        source: a folder (searched recursively; an id is a path relative to it) or a list file with one
            path per line, or ``id<TAB>path`` lines.
        root: what the paths of a list are relative to; None stands for the list's own folder.
    """

    has_pictures = True

    def __init__(self, source: Path, root: Path | None = None) -> None:
        self.source = source
        names = resolve_images(source) if source.is_dir() else resolve_images(root, source)
        self.index = IdIndex([name for name, _ in names], source)
        self.paths = [path for _, path in names]

    def encode(self, model: Encoder, rows: np.ndarray, batch_size: int) -> Tensor:
        """(n, D) float32 image features of these rows.

        Raises:
            UserError: naming the first file that is not there.
        """
        paths = [self.paths[row] for row in rows]
        for path in paths:
            if not path.is_file():
                raise UserError(f"{self.source}: the picture {path} is not there; evaluation skips nothing.")
        return encode_in_chunks(model.encode_image, paths, batch_size, "images")

    def picture(self, row: int) -> Path:
        """The file of a row."""
        return self.paths[row]

    def stamp(self) -> str:
        """SHA-256 of every picture's name, size and time of change: another one where a picture was changed."""
        digest = hashlib.sha256()
        for name, path in zip(self.index.names, self.paths, strict=True):
            status = path.stat() if path.is_file() else None
            digest.update(f"{name}\t{status and (status.st_size, status.st_mtime_ns)}\n".encode())
        return digest.hexdigest()

    def describe(self) -> dict[str, object]:
        """Where the pictures are, how many, and the SHA-256 of their sorted list of ids."""
        digest = hashlib.sha256("\n".join(sorted(self.index.names)).encode()).hexdigest()
        return {"images": str(self.source), "list_sha256": digest, "count": len(self.index.names)}


class FeatureGallery:
    """Stored teacher features, with their pictures only where a folder of them is given.

    Args:
        store: an open feature directory.
        folder: the directory it was opened from.
        pictures: the folder of the pictures, to show them.

    Raises:
        UserError: features of texts, or an id that is there twice.
    """

    def __init__(self, store: Store, folder: Path, pictures: Path | None = None) -> None:
        if store.manifest["modality"] != "image":
            raise UserError(f"{folder}: holds features of texts; give features of images")
        self.store = store
        self.folder = folder
        self.index = IdIndex(store.ids, folder)
        self.pictures = None if pictures is None else ImageGallery(pictures)

    def encode(self, model: Encoder, rows: np.ndarray, batch_size: int) -> Tensor:
        """(n, D) float32 joint-space features of these rows.

        Raises:
            UserError: when another teacher made the features than the model was trained with.
        """
        made, trained = self.store.identity.get("sha256"), _teacher_sha256(model)
        if made and trained and made != trained:
            raise UserError(
                f"The features of {self.folder} come from a teacher with weights {shown(str(made))}, but the model was "
                f"trained with {shown(str(trained))}: compute the features with the model's teacher."
            )

        def encode(part: np.ndarray, batch_size: int, normalize: bool) -> Tensor:
            features = torch.from_numpy(np.ascontiguousarray(self.store.take(part)))
            return model.encode_image_features(features, batch_size=batch_size, normalize=normalize)

        return encode_in_chunks(encode, rows, batch_size, "image features")

    @property
    def has_pictures(self) -> bool:
        """Whether a folder of pictures is given."""
        return self.pictures is not None

    def picture(self, row: int) -> Path:
        """The file of a row.

        Raises:
            UserError: when no folder of pictures is given, or it has none of this id.
        """
        if self.pictures is None:
            raise UserError(f"{self.folder} holds features and no pictures: give --images-root.")
        found = self.pictures.index.find(self.index.names[row])
        if found is None:
            raise UserError(
                f"The picture of image {self.index.names[row]!r} is not in {self.pictures.source}: "
                "--images-root must be the folder that the ids are relative to."
            )
        return self.pictures.paths[found]

    def stamp(self) -> str:
        """SHA-256 of the manifest, which holds the hashes of all features, and the stamp of the pictures."""
        return file_sha256(self.folder / "manifest.json") + (self.pictures.stamp() if self.pictures else "")

    def describe(self) -> dict[str, object]:
        """Where the features are, how many, the SHA-256 of their manifest, and what they were made by."""
        return {
            "features": str(self.folder),
            "manifest_sha256": file_sha256(self.folder / "manifest.json"),
            "count": len(self.index.names),
            "identity": self.store.identity,
        }


Gallery = ImageGallery | FeatureGallery


def gallery_for(model: Encoder, galleries: Sequence[Gallery], name: str) -> Gallery:
    """What a model is tried on: features of its own teacher where there are any, else the pictures.

    Args:
        model: the dual encoder.
        galleries: all that is given for a benchmark.
        name: of the benchmark, for messages.

    Raises:
        UserError: nothing is given.
    """
    if not galleries:
        raise UserError(f"{name}: needs images: give --images-root, or --features of the model's teacher.")
    teacher = _teacher_sha256(model)
    for gallery in galleries:
        if isinstance(gallery, FeatureGallery) and teacher and gallery.store.identity.get("sha256") == teacher:
            return gallery
    pictures = [gallery for gallery in galleries if isinstance(gallery, ImageGallery)]
    return pictures[0] if pictures else galleries[0]  # which then says whose features it holds


def encode_in_chunks(encode: Callable[..., Tensor], items: Any, batch_size: int, label: str) -> Tensor:
    """Encode in chunks, with a progress bar; (n, D) float32 on the CPU.

    Args:
        encode: called as ``encode(items, batch_size=..., normalize=True)``.
        items: a list or array of what it encodes.
        batch_size: handed on.
        label: what the progress bar counts (shown on a terminal only).

    Raises:
        UserError: when the encoder returns another number of rows than it was given.
    """
    step, parts = CHUNK_BATCHES * batch_size, []
    with tqdm(total=len(items), desc=label, disable=None, leave=False) as bar:
        for start in range(0, len(items), step):
            chunk = items[start : start + step]
            part = encode(chunk, batch_size=batch_size, normalize=True).float().cpu()
            if len(part) != len(chunk):
                raise UserError(f"The encoder returned {len(part)} rows for {len(chunk)} {label}.")
            parts.append(part)
            bar.update(len(chunk))
    return torch.cat(parts)


def _teacher_sha256(model: Encoder) -> str | None:
    identity = (getattr(model, "identity", None) or {}).get("teacher") or {}
    return identity.get("sha256")
