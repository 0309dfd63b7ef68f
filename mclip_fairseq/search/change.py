"""Add images to an index and remove them, without building it again."""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np

from mclip_fairseq.encoding.galleries import FeatureGallery, ImageGallery
from mclip_fairseq.search.build import BLOCK, VectorSource, open_vectors, picture_lines, settle
from mclip_fairseq.search.files import PARTIAL, Rows, locked, read_manifest, write_manifest
from mclip_fairseq.search.index import SearchIndex
from mclip_fairseq.search.kinds import compacted, read_index, write_index
from mclip_fairseq.search.sources import open_gallery
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.images import check_max_pixels
from mclip_fairseq.storage.provenance import provenance


def add(options: argparse.Namespace, load: Callable[[], Any], command: Sequence[str]) -> str:
    """Add the images that an index does not have yet; returns what to tell the user.

    Args:
        options: of `mclip-search add`.
        load: gives the dual encoder of the index; called when there is something to add.
        command: what the user typed.

    Raises:
        UserError: another model, an id that already names another picture, or what `build` refuses.
    """
    check_max_pixels(options.max_pixels)
    read_manifest(options.index)  # a directory that is none is left as it is
    with locked(options.index):
        index = SearchIndex.open(options.index, moved(options.moved))
        gallery = open_gallery(options.source, options.images_root)
        names = gallery.index.names
        known = [name for name in names if name in index.row_of]
        if not options.replace:
            refuse_other_pictures(index, gallery, known)
        fresh = [row for row, name in enumerate(names) if options.replace or name not in index.row_of]
        if not fresh:
            if options.moved:
                write_manifest(index.path, index.manifest | {"roots": roots_of(index)})
            return f"{index.path}: nothing to add, all {len(names)} images are there"
        model = load()
        index.check_model(model)
        wanted = "\n".join([gallery.stamp(), *(names[row] for row in fresh)])
        settle(index.path / PARTIAL, hashlib.sha256(wanted.encode()).hexdigest())
        vectors = open_vectors(gallery, model, index.model, index.path / PARTIAL / "images", options, fresh)
        replaced = [name for name in vectors.ids if name in index.row_of]
        append(index, gallery, vectors, replaced, command)
        shutil.rmtree(index.path / PARTIAL, ignore_errors=True)
    left, lost = len(known) - len(replaced), len(fresh) - len(vectors.ids)
    told = f"{options.index}: {len(vectors.ids) - len(replaced)} images added"
    told += f", {len(replaced)} replaced" if replaced else ""
    told += f", {left} were there already" if left else ""
    return told + (f", {lost} that cannot be read are left out" if lost else "") + recall_note(index)


def append(
    index: SearchIndex,
    gallery: ImageGallery | FeatureGallery,
    vectors: VectorSource,
    replaced: Sequence[str],
    command: Sequence[str],
) -> None:
    """Write the next generation of an index, with these vectors behind its own."""
    roots, lines = picture_lines(gallery, vectors.ids, roots_of(index))
    grown = writable(index)
    for start in range(0, len(vectors.ids), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(vectors.ids)))
        grown.add(np.ascontiguousarray(vectors.take(rows), dtype=np.float32))
    removed = index.removed | {index.row_of[name] for name in replaced}
    write_generation(index, grown, [*index.rows.lines, *lines], removed, roots, command)


def writable(index: SearchIndex) -> Any:
    """The faiss index of an index, to be changed."""
    manifest = index.manifest
    file = index.path / manifest["files"]["vectors"]["file"]
    return read_index(file, manifest["kind"], manifest["dim"], manifest["rows"], writable=True)


def write_generation(
    index: SearchIndex,
    vectors: Any,
    lines: Sequence[str],
    removed: Set[int],
    roots: Sequence[str],
    command: Sequence[str],
) -> None:
    """Write new files of an index and put them into use; rows that were removed are dropped when they are the most."""
    manifest, generation = index.manifest, index.manifest["generation"] + 1
    if outnumbered(len(lines), removed):
        keep = np.array([row not in removed for row in range(len(lines))])
        vectors = compacted(vectors, manifest["kind"], manifest["factory"], keep)
        lines, removed = [line for line, kept in zip(lines, keep, strict=True) if kept], frozenset()
    files = {
        "vectors": write_index(vectors, index.path / f"vectors-{generation:05d}.faiss"),
        "rows": Rows(lines, index.path).write(index.path, generation),
    }
    changed = {
        "generation": generation,
        "rows": len(lines),
        "removed": sorted(removed),
        "roots": roots,
        "files": files,
        "recall": None,
        "made_by": [*manifest["made_by"], provenance(command)],
    }
    write_manifest(index.path, manifest | changed)


def outnumbered(rows: int, removed: Set[int]) -> bool:
    """Whether the rows that are left, if any, are fewer than those that were removed."""
    return 0 < rows - len(removed) < len(removed)


def refuse_other_pictures(index: SearchIndex, gallery: ImageGallery | FeatureGallery, names: Iterable[str]) -> None:
    """Refuse ids that stand for one picture in the index and for another one here.

    Raises:
        UserError: naming the first.
    """
    if not gallery.has_pictures:
        return
    row_of = {name: row for row, name in enumerate(gallery.index.names)}
    for name in names:
        there, here = index.picture(index.row_of[name]), gallery.picture(row_of[name])
        if there is not None and os.path.abspath(there) != os.path.abspath(here):
            raise UserError(
                f"{index.path}: the id {name!r} already names another picture, {there}; if the pictures have moved, "
                "say where they are now with --moved; else give this one another id in a list, or take it instead "
                "with --replace"
            )


def moved(folders: Sequence[Path]) -> Sequence[Path]:
    """Folders that pictures have been moved to.

    Raises:
        UserError: one is not there.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"--moved {folder}: there is no such folder; name the one that the pictures are in now")
    return folders


def roots_of(index: SearchIndex) -> list[str]:
    """The folders of an index's pictures for its manifest: what --moved names is named from everywhere."""
    return [os.path.abspath(root) for root in index.roots]


def remove(folder: Path, names: Sequence[str], command: Sequence[str]) -> str:
    """Take images out of an index; returns what to tell the user.

    Args:
        folder: the index.
        names: ids.
        command: what the user typed.

    Raises:
        UserError: ids that are not in the index; nothing is removed then.
    """
    read_manifest(folder)  # a directory that is none is left as it is
    with locked(folder):
        index = SearchIndex.open(folder)
        unknown = [name for name in names if name not in index.row_of]
        if unknown:
            first = ", ".join(map(repr, unknown[:3]))
            raise UserError(
                f"{folder}: has no image of {len(unknown)} of the {len(names)} ids, such as {first}; nothing is removed"
            )
        rows = {index.row_of[name] for name in names}
        removed = index.removed | rows
        if outnumbered(len(index.rows), removed):
            write_generation(index, writable(index), index.rows.lines, removed, index.manifest["roots"], command)
        else:
            made_by = [*index.manifest["made_by"], provenance(command)]
            changed = {"removed": sorted(removed), "recall": None, "made_by": made_by}
            write_manifest(folder, index.manifest | changed)
    return f"{folder}: {len(rows)} images removed, {len(index) - len(rows)} are left{recall_note(index)}"


def recall_note(index: SearchIndex) -> str:
    """What is to be said of a recall that was measured with other images."""
    return "; its recall, measured with other images, is no longer claimed" if index.manifest["recall"] else ""
