"""Galleries, which captions are searched in: pictures in a folder or stored teacher features, and their encoding."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mclip_fairseq.encoding.captions import Captions
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import file_sha256, similar_name, size_and_time
from mclip_fairseq.storage.folders import SUFFIXES
from mclip_fairseq.storage.images import find_images
from mclip_fairseq.storage.provenance import shareable

# Batches handed over at once, so that the encoder can sort texts by length and decode pictures ahead.
CHUNK_BATCHES = 16


class Encoder(Protocol):
    """What evaluation needs of a dual encoder, such as `MultilingualCLIP`."""

    def encode_text(self, texts: list[str], batch_size: int = ..., normalize: bool = ...) -> Tensor:
        """(n, D) features of texts."""

    def encode_image(self, images: list[Path], batch_size: int = ..., normalize: bool = ...) -> Tensor:
        """(n, D) features of picture files."""

    def encode_image_features(self, features: Tensor, batch_size: int = ..., normalize: bool = ...) -> Tensor:
        """(n, D) features from raw teacher features."""


def reader_of(model: Encoder, language: str) -> Encoder:
    """The view of a model that reads texts of one language; the model itself where it has no text paths.

    Raises:
        UserError: a model with a text path per language does not have this one.
    """
    for_language: Callable[[str], Encoder] | None = getattr(model, "for_language", None)
    return model if for_language is None else for_language(language)


class Store(Protocol):
    """What evaluation needs of an indexed feature directory, such as `FeatureStore`."""

    @property
    def ids(self) -> Sequence[str]:
        """The id of each row."""

    @property
    def identity(self) -> dict[str, Any]:
        """The teacher that made the features."""

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest of the directory."""

    def take(self, rows: np.ndarray) -> np.ndarray:
        """(n, dim) features of these rows."""


class IdIndex:
    """Finds an id among names: the name itself, or the name without its image extension.

    Args:
        names: the names, each once.
        place: the folder or list that holds them, for messages.

    Raises:
        UserError: a name appears twice.
    """

    def __init__(self, names: Sequence[str], place: Path) -> None:
        self.names = list(names)
        self.place = place
        self._rows = {name: row for row, name in enumerate(self.names)}
        if len(self._rows) != len(self.names):
            twice = next(name for row, name in enumerate(self.names) if self._rows[name] != row)
            raise UserError(f"{place}: names image {twice!r} more than once; name each image once")
        self._short: dict[str, list[int]] | None = None

    def find(self, name: str) -> int | None:
        """Row of an id, or None.

        Raises:
            UserError: the id fits several names.
        """
        row = self._rows.get(name)
        if row is not None:
            return row
        rows = self._without_extension().get(name, [])
        if len(rows) > 1:
            fits = ", ".join(self.names[row] for row in rows[:3])
            raise UserError(f"{self.place}: image id {name!r} fits several images ({fits}); write its extension")
        return rows[0] if rows else None

    def rows(self, captions: Captions) -> np.ndarray:
        """(T,) int64 row of each caption's image.

        Raises:
            UserError: naming the first unknown id with its file and line, and how many are unknown.
        """
        return self.rows_of(captions.ids, captions.ids_path, captions.language)

    def rows_of(self, ids: Sequence[str], file: Path, language: str = "") -> np.ndarray:
        """(n,) int64 row of each id.

        Args:
            ids: one per line of a file.
            file: that file, for messages.
            language: of the captions that the ids belong to, if any.

        Raises:
            UserError: naming the first unknown id with its line, and how many are unknown.
        """
        rows = [self.find(name) for name in ids]
        missing = [line for line, row in enumerate(rows) if row is None]
        if missing:
            of_language, lines = (f" ({language})", "captions") if language else ("", "lines")
            name = ids[missing[0]]
            similar = similar_name(name, self.names) or similar_name(name, self._without_extension())
            raise UserError(
                f"{file}, line {missing[0] + 1}: image {name!r}{of_language} is not in {self.place}"
                f"{similar and ', but ' + similar}; correct the ids, or add the images ({len(missing)} of {len(rows)} "
                f"{lines} name an unknown one)"
            )
        return np.array(rows, dtype=np.int64)

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
        source: a folder (searched recursively; an id is a path relative to it) or a list file with one path, or one
            `id<TAB>path`, per line.
        root: folder that the paths of a list are relative to; None for the list's own folder.
        hidden: of a folder, also take hidden images.
        hashed: read all pictures when they are compared, and notice changes that keep size and time.

    Attributes:
        listing: also says what was left out.
    """

    has_pictures = True

    def __init__(self, source: Path, root: Path | None = None, hidden: bool = False, hashed: bool = False) -> None:
        self.source = source
        self.hashed = hashed
        self.listing = find_images(source, hidden=hidden) if source.is_dir() else find_images(root, source)
        names = self.listing.images
        self.index = IdIndex([name for name, _ in names], source)
        self.paths = [path for _, path in names]

    def encode(self, model: Encoder, rows: np.ndarray, batch_size: int) -> Tensor:
        """(n, D) float32 image features of these rows.

        Raises:
            UserError: naming the first file that is missing.
        """
        paths = [self.paths[row] for row in rows]
        missing = next((path for path in paths if not path.is_file()), None)
        if missing is not None:
            raise UserError(
                f"{self.source}: the picture {missing} is missing; add it, because evaluation skips nothing"
            )
        return encode_in_chunks(model.encode_image, paths, batch_size, "images")

    def picture(self, row: int) -> Path:
        """The file of a row."""
        return self.paths[row]

    @cached_property
    def times(self) -> list[tuple[int, int] | tuple[int, int, str] | None]:
        """Size, time of the last change and, if `hashed`, SHA-256 of every picture; None if it is missing.

        They are those of the moment when they were first asked for.
        """
        times = [size_and_time(path) for path in self.paths]
        if not self.hashed:
            return list(times)
        return [time and (*time, file_sha256(path)) for time, path in zip(times, self.paths, strict=True)]

    def stamp(self) -> str:
        """SHA-256 over each picture's name and hash, or size and time of change; differs if a picture has changed."""
        digest = hashlib.sha256()
        for name, time in zip(self.index.names, self.times, strict=True):
            known = time and (time[2:] or time)
            digest.update(f"{name}\t{known}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def describe(self) -> dict[str, object]:
        """Where the pictures are, how many, and the SHA-256 of their sorted list of ids."""
        digest = hashlib.sha256("\n".join(sorted(self.index.names)).encode()).hexdigest()
        return {"images": shareable(self.source), "list_sha256": digest, "count": len(self.index.names)}


class FeatureGallery:
    """Stored teacher features, and optionally the pictures they were made from.

    Args:
        store: an open feature directory.
        folder: the directory it was opened from.
        pictures: the folder of the pictures, to show them.

    Raises:
        UserError: the features are of texts, or an id appears twice.
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
            UserError: a different teacher made the features than the model was trained with.
        """
        made, trained = self.store.identity.get("sha256"), _teacher_sha256(model)
        if made and trained and made != trained:
            raise UserError(
                f"{self.folder}: the features come from a teacher with weights {made}, but the model was trained with "
                f"{trained}; compute the features with the model's teacher"
            )

        def project(chunk: np.ndarray, batch_size: int, normalize: bool) -> Tensor:
            features = torch.from_numpy(np.ascontiguousarray(self.store.take(chunk)))
            return model.encode_image_features(features, batch_size=batch_size, normalize=normalize)

        return encode_in_chunks(project, rows, batch_size, "image features")

    @property
    def has_pictures(self) -> bool:
        """Whether a folder of pictures is given."""
        return self.pictures is not None

    def picture(self, row: int) -> Path:
        """The file of a row.

        Raises:
            UserError: no folder of pictures is given, or it lacks this picture.
        """
        if self.pictures is None:
            raise UserError(f"{self.folder}: holds features and no pictures; give --images-root")
        file = self.pictures.index.find(self.index.names[row])
        if file is None:
            raise UserError(
                f"{self.pictures.source}: lacks the picture of image {self.index.names[row]!r}; --images-root must be "
                "the folder that the ids are relative to"
            )
        return self.pictures.paths[file]

    def stamp(self) -> str:
        """SHA-256 of the manifest, which holds the hashes of all features, and the stamp of the pictures."""
        return file_sha256(self.folder / "manifest.json") + (self.pictures.stamp() if self.pictures else "")

    def describe(self) -> dict[str, object]:
        """Where the features are, how many, the SHA-256 of their manifest, and the teacher that made them."""
        return {
            "features": shareable(self.folder),
            "manifest_sha256": file_sha256(self.folder / "manifest.json"),
            "count": len(self.index.names),
            "identity": self.store.identity,
        }


Gallery = ImageGallery | FeatureGallery


def gallery_for(model: Encoder, galleries: Sequence[Gallery], name: str) -> Gallery:
    """The gallery for a model: features of its own teacher where they exist, otherwise the pictures.

    Args:
        model: the dual encoder.
        galleries: all those of a benchmark.
        name: of the benchmark, for messages.

    Raises:
        UserError: the benchmark has no gallery.
    """
    if not galleries:
        raise UserError(f"{name}: needs images; give --images-root, or --features of the model's teacher")
    teacher = _teacher_sha256(model)
    for gallery in galleries:
        if isinstance(gallery, FeatureGallery) and teacher and gallery.store.identity.get("sha256") == teacher:
            return gallery
    pictures = [gallery for gallery in galleries if isinstance(gallery, ImageGallery)]
    return pictures[0] if pictures else galleries[0]  # it refuses to encode and names its teacher


def encode_in_chunks(encode: Callable[..., Tensor], items: Any, batch_size: int, label: str) -> Tensor:
    """Encode in chunks, with a progress bar; (n, D) float32 on the CPU.

    Args:
        encode: called as `encode(items, batch_size=..., normalize=True)`.
        items: a list or array of what it encodes.
        batch_size: passed to it.
        label: what the progress bar counts (shown on a terminal only).

    Raises:
        UserError: the encoder returned a different number of rows than it was given.
    """
    step, features = CHUNK_BATCHES * batch_size, []
    with tqdm(total=len(items), desc=label, disable=None, leave=False) as bar:
        for start in range(0, len(items), step):
            chunk = items[start : start + step]
            rows = encode(chunk, batch_size=batch_size, normalize=True).float().cpu()
            if len(rows) != len(chunk):
                raise UserError(f"the encoder returned {len(rows)} rows for {len(chunk)} {label}; it must skip nothing")
            features.append(rows)
            bar.update(len(chunk))
    return torch.cat(features)


def _teacher_sha256(model: Encoder) -> str | None:
    identity = (getattr(model, "identity", None) or {}).get("teacher") or {}
    return identity.get("sha256")
