"""Add images to an index and remove them, without building it again."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from mclip_fairseq.encoding.galleries import ImageGallery
from mclip_fairseq.search.build import (
    BLOCK,
    VectorSource,
    discard_if_changed,
    names_of,
    open_vectors,
    picture_lines,
    picture_times,
)
from mclip_fairseq.search.files import (
    PARTIAL,
    Rows,
    Time,
    locked,
    read_index_manifest,
    write_ids,
    write_manifest,
    write_times,
)
from mclip_fairseq.search.index import SearchIndex
from mclip_fairseq.search.kinds import compacted, read_index, write_index
from mclip_fairseq.search.places import KnownPlaces, remember
from mclip_fairseq.search.settings import ImageSettings
from mclip_fairseq.search.sources import Gallery, open_gallery
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import similar_name
from mclip_fairseq.storage.images import check_max_pixels
from mclip_fairseq.storage.provenance import provenance


def add_images(
    folder: Path,
    images: ImageSettings,
    load_model: Callable[[], Any],
    command: Sequence[str],
    replace: bool = False,
    moved: Sequence[Path] = (),
    drop: bool = False,
) -> str:
    """Add the images that an index does not have yet, and encode changed ones again; returns what to tell the user.

    Args:
        folder: the index.
        images: what to add.
        load_model: gives the dual encoder of the index; called if there is something to encode.
        command: what the user typed, for the manifest.
        replace: encode images again whose id is already in the index, changed or not.
        moved: where the images of the index are now, if they have moved.
        drop: remove the images of the same folder whose files are gone.

    Raises:
        UserError: a different model, an id that already names a different image, or what `build_index` refuses.
    """
    check_max_pixels(images.max_pixels)
    read_index_manifest(folder)  # before locking: `locked` would create a mistyped directory
    check_folders(moved)
    with locked(folder):
        index = SearchIndex.open(folder, moved)
        check_places(index)
        gallery, images = open_gallery(images)
        names = gallery.index.names
        indexed = [name for name in names if name in index.row_of]
        if not replace:
            check_same_images(index, gallery, indexed)
        state = compare_times(index, gallery, indexed)
        note = "" if replace else state.note(index.path)
        again = set(indexed) if replace else state.changed
        new_rows = [row for row, name in enumerate(names) if name in again or name not in index.row_of]
        gone = gone_rows(index, gallery) if drop else frozenset()
        if not new_rows and not gone:
            if moved:
                put_into_use(index, {}, absolute_roots(index))
            return f"{index.path}: nothing to add, all {len(names)} images are already in the index{note}"
        if not new_rows:
            drop_rows(index, gone, command)
            left = len(index) - len(gone)
            return f"{folder}: {len(gone)} removed whose files are gone, {left} left{recall_note(index)}"
        vectors = encode_rows(index, gallery, images, new_rows, load_model())
        replaced = [name for name in vectors.ids if name in index.row_of]
        append(index, gallery, vectors, replaced, gone, command)
        shutil.rmtree(index.path / PARTIAL, ignore_errors=True)
    counts = {
        "replaced" if replace else "changed since and encoded again": len(replaced),
        "removed whose files are gone": len(gone),
        "already in the index": len(indexed) - len(replaced),
        "unreadable images skipped": len(new_rows) - len(vectors.ids),
    }
    return added_sentence(folder, len(vectors.ids) - len(replaced), counts) + note + recall_note(index)


def added_sentence(place: Path | str, added: int, others: Mapping[str, int]) -> str:
    """What an addition has done.

    Args:
        place: the index.
        added: number of images.
        others: what became of other images -> how many; zeros are left out.
    """
    return f"{place}: {added} images added" + "".join(f", {number} {what}" for what, number in others.items() if number)


def check_places(index: SearchIndex) -> None:
    """Check that this machine knows where the images of an index are.

    Raises:
        UserError: it does not.
    """
    if index.manifest["roots"] and not index.roots:
        raise UserError(
            f"{index.path}: was built on another machine or by an earlier version, so nothing here says where its "
            "images are; name their folder with --moved, once for each folder"
        )


def encode_rows(
    index: SearchIndex, gallery: Gallery, images: ImageSettings, rows: Sequence[int], model: Any
) -> VectorSource:
    """The vectors of these images of a gallery, by the model of the index; continues an interrupted run."""
    index.check_model(model)
    contents = "\n".join([gallery.stamp(), *(gallery.index.names[row] for row in rows)])
    discard_if_changed(index.path / PARTIAL, hashlib.sha256(contents.encode()).hexdigest())
    return open_vectors(gallery, model, index.model, index.path / PARTIAL / "images", images, rows)


@dataclass(frozen=True)
class Times:
    """The images of a gallery that an index has, compared by size and time of change, or by hash.

    Attributes:
        changed: those whose file has changed since it was encoded.
        unknown: how many have no recorded size and time, or no hash to compare.
        hashed: whether hashes were compared.
    """

    changed: frozenset[str]
    unknown: int
    hashed: bool = False

    def note(self, place: Path) -> str:
        """What to add to a message if changes would not be noticed."""
        if not self.unknown:
            return ""
        lacking, again = ("hash", "--replace --hash-images") if self.hashed else ("size and time", "--replace")
        return (
            f"; for {self.unknown} of them the index has no {lacking}, so a change would not be noticed: "
            f"encode them again with {again}"
        )


def compare_times(index: SearchIndex, gallery: Gallery, names: Sequence[str]) -> Times:
    """Compare the image files of these ids with what the index has recorded.

    It costs one stat call per file or, with hashes, reading it.
    """
    if not isinstance(gallery, ImageGallery):
        return Times(frozenset(), 0)
    now = dict(zip(gallery.index.names, gallery.times, strict=True))
    recorded = {name: index.times[index.row_of[name]] for name in names}
    # A file that is missing now cannot be encoded; `sync` drops it.
    changed = [name for name, time in recorded.items() if is_changed(time, now[name])]
    unknown = sum(time is None or len(time) < 2 + gallery.hashed for time in recorded.values())
    return Times(frozenset(changed), unknown, gallery.hashed)


def is_changed(old: Time, new: Time) -> bool:
    """Whether a file is another one than was recorded: by its hash if both are known, else by size and time."""
    if old is None or new is None:
        return False
    known = len(old) == len(new) == 3
    return old[2:] != new[2:] if known else old[:2] != new[:2]


def gone_rows(index: SearchIndex, gallery: Gallery) -> frozenset[int]:
    """Rows whose image is gone: from the gallery's folder, or, beside a list, from the disk.

    A folder of the index that does not exist at all may be a disk that is not mounted: its rows are kept.

    Raises:
        UserError: the gallery holds features.
    """
    if not isinstance(gallery, ImageGallery):
        raise UserError(f"{gallery.folder}: holds features; sync compares an index with its images, so give these")
    names, source = set(gallery.index.names), os.path.abspath(gallery.source)
    roots = absolute_roots(index)
    gone = set()
    for name, row in index.row_of.items():
        place = index.rows.picture(row)
        if place is None or place[0] >= len(roots) or name in names:
            continue
        root = roots[place[0]]
        if root == source or (not os.path.isdir(source) and os.path.isdir(root) and index.is_missing(row)):
            gone.add(row)
    return frozenset(gone)


def append(
    index: SearchIndex,
    gallery: Gallery,
    vectors: VectorSource,
    replaced: Sequence[str],
    gone: Set[int],
    command: Sequence[str],
) -> None:
    """Write the next generation of an index, with these vectors after its own."""
    roots, lines = picture_lines(gallery, vectors.ids, absolute_roots(index))
    faiss_index = writable_index(index)
    for start in range(0, len(vectors.ids), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(vectors.ids)))
        faiss_index.add(np.ascontiguousarray(vectors.take(rows), dtype=np.float32))
    removed = index.removed | gone | {index.row_of[name] for name in replaced}
    table = Table([*index.rows.lines, *lines], [*index.times, *picture_times(gallery, vectors.ids)], roots)
    write_generation(index, faiss_index, table, removed, command)


@dataclass(frozen=True)
class Table:
    """What an index says about its rows.

    Attributes:
        lines: of the rows file.
        times: of the image files.
        roots: the folders that the lines refer to.
    """

    lines: Sequence[str]
    times: Sequence[Time]
    roots: Sequence[str]


def writable_index(index: SearchIndex) -> Any:
    """The faiss index of an index, read again so that it can be changed."""
    manifest = index.manifest
    file = index.path / manifest["files"]["vectors"]["file"]
    return read_index(file, manifest["kind"], manifest["dim"], manifest["rows"], writable=True)


def write_generation(
    index: SearchIndex,
    faiss_index: Any,
    table: Table,
    removed: Set[int],
    command: Sequence[str],
) -> None:
    """Write new files of an index and put them into use; removed rows are dropped once they are the majority."""
    manifest, generation = index.manifest, index.manifest["generation"] + 1
    lines, times, dropped = table.lines, table.times, frozenset[int]()
    if mostly_removed(len(lines), removed):
        keep = np.array([row not in removed for row in range(len(lines))])
        dropped = frozenset(removed)
        faiss_index = compacted(faiss_index, manifest["kind"], manifest["factory"], keep)
        lines, times, removed = list(compress(lines, keep)), list(compress(times, keep)), frozenset()
    files = {
        "vectors": write_index(faiss_index, index.path / f"vectors-{generation:05d}.faiss"),
        "rows": Rows(lines, index.path).write(index.path, generation),
        "times": write_times(index.path, generation, times),
    }
    if dropped:
        names = index.forgotten | {index.rows.id(row) for row in dropped if row < len(index.rows)}
        if names := names - {line.partition("\t")[0] for line in lines}:
            files["forgotten"] = write_ids(index.path, generation, sorted(names))
    elif "forgotten" in manifest["files"]:
        files["forgotten"] = manifest["files"]["forgotten"]
    changes = {
        "generation": generation,
        "rows": len(lines),
        "removed": sorted(removed),
        "files": files,
        "recall": None,
        "made_by": [*manifest["made_by"], provenance(command)],
    }
    put_into_use(index, changes, table.roots)


def put_into_use(index: SearchIndex, changes: Mapping[str, Any], roots: Sequence[str]) -> None:
    """Write a changed manifest, and remember where the images and the model of the index are.

    Args:
        index: the index as it was.
        changes: fields of the manifest.
        roots: absolute folders of the images; empty where they are not known.
    """
    manifest = {**index.manifest, **changes}
    if roots:
        manifest["roots"] = names_of(roots)
    if index.places is not None:
        remember(manifest, KnownPlaces(roots, index.places.model))
    write_manifest(index.path, manifest)


def mostly_removed(rows: int, removed: Set[int]) -> bool:
    """Whether fewer rows remain than were removed, and at least one remains."""
    return 0 < rows - len(removed) < len(removed)


def check_same_images(index: SearchIndex, gallery: Gallery, names: Iterable[str]) -> None:
    """Check that ids stand for the same image files in the index and in a gallery.

    Raises:
        UserError: one does not; names the first.
    """
    if not gallery.has_pictures:
        return
    row_of = {name: row for row, name in enumerate(gallery.index.names)}
    for name in names:
        old, new = index.picture(index.row_of[name]), gallery.picture(row_of[name])
        if old is not None and os.path.abspath(old) != os.path.abspath(new):
            raise UserError(
                f"{index.path}: the id {name!r} already names a different image, {old}; if the images have moved, say "
                "where they are now with --moved; otherwise give this one another id in a list, or replace the old "
                "one with --replace"
            )


def check_folders(moved: Sequence[Path]) -> None:
    """Check the folders that images have been moved to.

    Raises:
        UserError: one does not exist.
    """
    for folder in moved:
        if not folder.is_dir():
            raise UserError(f"--moved {folder}: no such folder; give the one that the images are in now")


def absolute_roots(index: SearchIndex) -> list[str]:
    """The root folders of an index for its manifest; those of --moved may be relative."""
    return [os.path.abspath(root) for root in index.roots]


def remove_images(folder: Path, names: Sequence[str], command: Sequence[str]) -> str:
    """Remove images from an index; returns what to tell the user.

    Args:
        folder: the index.
        names: ids.
        command: what the user typed, for the manifest.

    Raises:
        UserError: ids that are not in the index; nothing is removed then.
    """
    read_index_manifest(folder)  # before locking: `locked` would create a mistyped directory
    with locked(folder):
        index = SearchIndex.open(folder)
        present = [name for name in names if name in index.row_of]
        gone = index.forgotten if len(present) < len(names) else frozenset()
        unknown = [name for name in names if name not in index.row_of and name not in gone]
        if unknown:
            first = ", ".join(map(repr, unknown[:3]))
            similar = similar_name(unknown[0], index.row_of)
            raise UserError(
                f"{folder}: {len(unknown)} of the {len(names)} ids are not in the index, such as {first}"
                f"{similar and ', but ' + similar}; nothing was "
                "removed, so correct them and run the command again"
            )
        rows = {index.row_of[name] for name in present}
        if not rows:
            return f"{folder}: nothing to remove, all {len(names)} ids were removed before"
        drop_rows(index, rows, command)
    return f"{folder}: {len(rows)} images removed, {len(index) - len(rows)} left{recall_note(index)}"


def drop_rows(index: SearchIndex, rows: Set[int], command: Sequence[str]) -> None:
    """Put a manifest without these rows into use; the files are written again once most of their rows are removed."""
    removed = index.removed | rows
    if mostly_removed(len(index.rows), removed):
        table = Table(index.rows.lines, index.times, absolute_roots(index))
        write_generation(index, writable_index(index), table, removed, command)
    else:
        made_by = [*index.manifest["made_by"], provenance(command)]
        put_into_use(index, {"removed": sorted(removed), "recall": None, "made_by": made_by}, absolute_roots(index))


def recall_note(index: SearchIndex) -> str:
    """What to add to a message if the index loses its measured recall, which was of other images."""
    return "; the recall measured at the build no longer applies" if index.manifest["recall"] else ""
