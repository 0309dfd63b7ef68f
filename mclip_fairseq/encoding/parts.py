"""Parts of a large collection: webdataset tars and Parquet files, on the disk or behind any address of fsspec.

A part is encoded as a whole and becomes one shard, so a driver only knows the names of the parts, not of all images.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mclip_fairseq.encoding.images import Place, Slice
from mclip_fairseq.storage.addresses import REMAKE, asking, filesystem_of, part_name, stamp_of, tar_members
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.extras import import_extra
from mclip_fairseq.storage.folders import SUFFIXES, why_awkward

IMAGE_COLUMNS, TEXT_COLUMNS = ("image", "jpg", "png", "webp", "image_bytes"), ("caption", "text", "txt")
ID_COLUMNS = ("id", "key", "__key__")


@dataclass(frozen=True)
class Columns:
    """Which columns of Parquet files are read; empty takes the first usual name that exists.

    Attributes:
        content: images or captions.
        ids: ids; without such a column, an id is the part's name and the number of the row.
    """

    content: str = ""
    ids: str = ""


def parts_content(parts: Sequence[str]) -> str:
    """A hash over size and time of change (or tag) of parts, which costs no reading."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{stamp_of(part)}\n".encode())
    return f"parts {digest.hexdigest()}"


@contextlib.contextmanager
def local_copy(part: str) -> Iterator[Path]:
    """A part as a file on this machine: itself, or a copy that lives as long as the context."""
    filesystem, path = filesystem_of(part)
    if isinstance(filesystem, import_extra("fsspec.implementations.local", "scale").LocalFileSystem):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / PurePosixPath(part).name
        try:
            with asking(part):
                filesystem.get_file(path, str(copy))
        except UserError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno:
                reason = os.strerror(error.__cause__.errno)
                raise UserError(
                    f"{part}: cannot be copied to {folder}: {reason}; set TMPDIR to a larger disk"
                ) from error
            raise
        yield copy


def read_part(part: str, file: Path, modality: str, columns: Columns) -> list[tuple[str, Any]]:
    """(id, place) of the images of a part, or (id, caption).

    Args:
        part: its address, for messages.
        file: where it is on this machine.
        modality: `image` or `text`.
        columns: of a Parquet file.

    Raises:
        UserError: it is damaged, holds nothing of this kind, or an id cannot be one or appears twice.
    """
    found: list[tuple[str, Any]]
    if part.endswith(".tar"):
        found = [*(tar_images if modality == "image" else tar_captions)(part, file)]
    else:
        found = parquet_rows(part, file, modality, columns)
    if not found:
        raise UserError(f"{part}: holds no {'images' if modality == 'image' else 'captions (KEY.txt)'}; {REMAKE}")
    seen: set[str] = set()
    for name, _ in found:
        if reason := why_awkward(name):  # now, and not when the ids of all parts are written
            raise UserError(f"{part}, {name!r}: {reason}; {REMAKE}")
        if name in seen:
            raise UserError(f"{part}: the id {name!r} appears twice; {REMAKE}")
        seen.add(name)
    return found


def tar_images(part: str, file: Path) -> list[tuple[str, Place]]:
    """(key, place) of the images of a tar."""
    with file.open("rb") as stream:
        return [
            (key, Slice(file, member.offset_data, member.size))
            for key, ending, member in tar_members(part, stream)
            if f".{ending}" in SUFFIXES
        ]


def tar_captions(part: str, file: Path) -> list[tuple[str, str]]:
    """(key, caption) of the texts KEY.txt of a tar; line breaks become spaces."""
    captions = []
    with file.open("rb") as members, file.open("rb") as stream:
        for key, ending, member in tar_members(part, members):
            if ending != "txt":
                continue
            stream.seek(member.offset_data)
            try:
                captions.append((key, " ".join(stream.read(member.size).decode().split())))
            except UnicodeDecodeError as error:
                raise UserError(f"{part}, {member.name}: is not UTF-8 ({error}); {REMAKE}") from error
    return captions


def parquet_rows(part: str, file: Path, modality: str, columns: Columns) -> list[tuple[str, Any]]:
    """(id, image as bytes) or (id, caption) of the rows of a Parquet file.

    Raises:
        UserError: it is damaged, or a column is missing or holds something else.
    """
    parquet = import_extra("pyarrow.parquet", "scale")
    try:
        names = parquet.ParquetFile(file).schema_arrow.names
        content = choose(part, names, columns.content, IMAGE_COLUMNS if modality == "image" else TEXT_COLUMNS)
        ids = choose(part, names, columns.ids, ID_COLUMNS) if columns.ids or {*names} & {*ID_COLUMNS} else ""
        table = parquet.read_table(file, columns=[content, *([ids] if ids else [])])
    except (import_extra("pyarrow", "scale").ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{part}: is not a readable Parquet file ({reason}); {REMAKE}") from error
    rows = table.column(content).to_pylist()
    keys = table.column(ids).to_pylist() if ids else [f"{part_name(part)}/{row}" for row in range(len(rows))]
    found = []
    for number, (key, value) in enumerate(zip(keys, rows, strict=True)):
        if isinstance(value, dict):  # an image as the datasets library stores it
            value = value.get("bytes")
        if value is None:
            value = b"" if modality == "image" else ""
        if key is None or not isinstance(value, bytes if modality == "image" else str):
            wanted = "image bytes" if modality == "image" else "text"
            raise UserError(f"{part}, row {number}: {content!r} is not {wanted}, or the row has no id; {REMAKE}")
        found.append((str(key), " ".join(value.split()) if isinstance(value, str) else value))
    return found


def choose(part: str, names: Sequence[str], given: str, usual: Sequence[str]) -> str:
    """The column that is read.

    Raises:
        UserError: there is no such column.
    """
    found = next((name for name in ([given] if given else usual) if name in names), None)
    if found is None:
        wanted = repr(given) if given else " or ".join(map(repr, usual))
        raise UserError(f"{part}: has no column {wanted}; name one of {', '.join(names)} with --column or --id-column")
    return found
