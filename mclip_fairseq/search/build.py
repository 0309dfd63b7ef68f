"""Build an index directory, continuing where an earlier build was stopped."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mclip_fairseq.encoding.galleries import FeatureGallery, ImageGallery
from mclip_fairseq.search.files import (
    MANIFEST,
    PARTIAL,
    Rows,
    Time,
    locked,
    read_index_manifest,
    write_manifest,
    write_times,
)
from mclip_fairseq.search.index import SearchIndex
from mclip_fairseq.search.kinds import (
    efforts,
    factory_string,
    new_index,
    read_index,
    training_rows,
    write_index,
)
from mclip_fairseq.search.languages import encode_texts
from mclip_fairseq.search.places import KnownPlaces, remember
from mclip_fairseq.search.recall import Yardstick, recall_sentence
from mclip_fairseq.search.settings import (
    DEFAULT_RECALL,
    ImageSettings,
    IndexSettings,
    ModelPaths,
    check_settings,
)
from mclip_fairseq.search.sources import (
    Gallery,
    ProjectedFeatures,
    absolute_paths,
    describe_model,
    encode_images,
    open_gallery,
)
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.feature_files import encode_ids
from mclip_fairseq.storage.features import FeatureStore
from mclip_fairseq.storage.files import file_sha256, read_json, write_json
from mclip_fairseq.storage.images import check_max_pixels
from mclip_fairseq.storage.provenance import provenance

BLOCK = 16384  # vectors handed to faiss at a time
SAVE_SECONDS = 120.0  # at most this much of the second stage is repeated after an interruption
VectorSource = FeatureStore | ProjectedFeatures


def build_index(
    folder: Path,
    images: ImageSettings,
    settings: IndexSettings,
    load_model: Callable[[], Any],
    model_paths: ModelPaths,
    queries: Sequence[str],
    command: Sequence[str],
) -> str:
    """Build an index; returns what to tell the user.

    Args:
        folder: the index directory to create or to continue.
        images: what goes into it.
        settings: its kind.
        load_model: gives the dual encoder; called once the images have been listed.
        model_paths: where it is loaded from, for the manifest.
        queries: texts to measure the recall with; if empty, images of the index are used.
        command: what the user typed, for the manifest.

    Raises:
        UserError: an option or a file cannot be used; finished work is kept.
    """
    check_max_pixels(images.max_pixels)
    gallery, images = open_gallery(images)
    with locked(folder):
        built_from = digest_of(gallery, settings)
        again = holds_this_build(folder, built_from)
        model = load_model()
        if again:
            index = SearchIndex.open(folder)
            index.check_model(model)
            return f"{folder}: nothing to do, holds an index of these {len(index)} images already"
        facts = {"built_from": built_from, "id": uuid.uuid4().hex, "made_by": [provenance(command)]}
        message = build_first(folder, gallery, images, settings, model, model_paths, queries, facts)
        shutil.rmtree(folder / PARTIAL, ignore_errors=True)
    return message


def holds_this_build(folder: Path, built_from: str) -> bool:
    """Whether a directory holds the index of this build already.

    Raises:
        UserError: it holds another one, or this one has been changed since.
    """
    if not (folder / MANIFEST).exists():
        return False
    if not is_untouched(folder, built_from):
        raise UserError(
            f"{folder}: already holds an index, of other images or settings or changed since; use mclip-search "
            "add, or choose another directory"
        )
    return True


def build_first(
    folder: Path,
    gallery: Gallery,
    images: ImageSettings,
    settings: IndexSettings,
    model: Any,
    model_paths: ModelPaths,
    queries: Sequence[str],
    facts: Mapping[str, Any],
) -> str:
    """Encode a gallery, index its vectors and write the first generation; returns what to tell the user.

    The arguments are those of `build_index`, with the gallery opened, the dual encoder loaded, and what the manifest
    says about this build.
    """
    if isinstance(gallery, ImageGallery):
        model.transform  # noqa: B018  (loads the image tower, which the fingerprint then covers)
    model_entry = describe_model(model)
    listed = len(gallery.index.names)
    # Options are checked against the listed images before any of them is encoded.
    check_settings(settings, model.dim, listed)
    discard_if_changed(folder / PARTIAL, gallery.stamp())
    vectors = open_vectors(gallery, model, model_entry, folder / PARTIAL / "images", images)
    count = len(vectors.ids)
    if not count:
        raise UserError(f"{images.source}: none of its images can be read, so there is nothing to search")
    check_settings(settings, model.dim, count)  # unreadable images may have left too few
    factory = factory_string(settings, model.dim, count)
    plan = {"factory": factory, "model": model_entry["fingerprint"]}
    index = fill_index(settings.kind, model.dim, vectors, folder / PARTIAL, plan)
    texts = encode_texts(model, list(queries)).numpy() if queries and efforts(settings.kind, index) else None
    recall = measure_recall(index, settings, vectors, texts)
    roots, lines = picture_lines(gallery, vectors.ids, [])
    kind = {"model": model_entry, "dim": model.dim, "kind": settings.kind, "factory": factory}
    manifest = {**kind, "roots": names_of(roots), **facts}
    places = KnownPlaces(roots, absolute_paths(model_paths))
    write_first_generation(folder, index, lines, picture_times(gallery, vectors.ids), recall, manifest, places)
    skipped = f"; {listed - count} unreadable images skipped" if count < listed else ""
    summary = f"{folder}: {count} images of {model.dim} dimensions, {settings.kind}{skipped}"
    return f"{summary}\n{recall_sentence(recall, settings.kind)}" if recall else summary


def write_first_generation(
    folder: Path,
    index: Any,
    lines: Sequence[str],
    times: Sequence[Time],
    recall: dict[str, Any] | None,
    facts: Mapping[str, Any],
    places: KnownPlaces,
) -> None:
    """Write the files of a new index and its manifest.

    Args:
        folder: the index directory.
        index: of faiss.
        lines: of the rows file.
        times: of the image files.
        recall: its measurement; None for exact.
        facts: the other fields of the manifest.
        places: where its images and its model are, for the record of this machine.
    """
    files = {
        "vectors": write_index(index, folder / "vectors-00001.faiss"),
        "rows": Rows(lines, folder).write(folder, 1),
        "times": write_times(folder, 1, times),
    }
    counts = {"generation": 1, "rows": len(lines), "removed": [], "files": files}
    manifest = {**facts, **counts, "effort": recall and recall["effort"], "recall": recall}
    remember(manifest, places)
    write_manifest(folder, manifest)


def digest_of(gallery: Gallery, settings: IndexSettings) -> str:
    """A hash of what a build is asked for: the images as they are now, and the kind of index."""
    return hashlib.sha256(json.dumps([gallery.stamp(), asdict(settings)]).encode()).hexdigest()


def is_untouched(folder: Path, built_from: str) -> bool:
    """Whether an index is the outcome of the same build, and was not changed since."""
    manifest = read_index_manifest(folder)
    changed = manifest["generation"] != 1 or bool(manifest["removed"])
    return not changed and manifest.get("built_from") == built_from


def names_of(roots: Sequence[str]) -> list[str]:
    """The folders of an index as its manifest has them: names without their parents."""
    return [os.path.basename(root) for root in roots]


def measure_recall(
    index: Any, settings: IndexSettings, vectors: VectorSource, texts: np.ndarray | None
) -> dict[str, Any] | None:
    """The recall at the settings' effort, or at the least effort that reaches their recall; None for exact."""
    if not efforts(settings.kind, index):
        return None
    yardstick = Yardstick(vectors.take, len(vectors.ids), texts)
    return yardstick.tune(index, settings.kind, settings.recall or DEFAULT_RECALL, settings.effort)


def discard_if_changed(partial: Path, contents: str) -> None:
    """Keep the files of an interrupted run if its images are the same; otherwise remove them, and say so.

    Args:
        partial: the directory of those files.
        contents: stamp of the images; it differs when an image was added, removed or changed.
    """
    file, record = partial / "contents.json", {"contents": contents}
    earlier = read_json(file) if file.is_file() else None
    if earlier == record:
        return
    if partial.exists():
        shutil.rmtree(partial)
    if earlier is not None:
        print(f"{partial.parent}: the images changed after the interruption; starting from scratch", file=sys.stderr)
    partial.mkdir(parents=True)
    write_json(file, record)


def open_vectors(
    gallery: Gallery,
    model: Any,
    model_entry: dict[str, Any],
    staging: Path,
    settings: ImageSettings,
    rows: Sequence[int] | None = None,
) -> VectorSource:
    """The joint-space vectors of a gallery: images are encoded now, features are projected as they are read."""
    if isinstance(gallery, ImageGallery):
        return encode_images(gallery, model, model_entry, staging, settings, rows)
    features = ProjectedFeatures(gallery, model, rows)
    encode_ids(features.ids)
    return features


def fill_index(kind: str, dim: int, vectors: VectorSource, partial: Path, settings: Mapping[str, str]) -> Any:
    """Train a faiss index and add all vectors, continuing from what an interrupted run has saved.

    Args:
        kind: of `KINDS`.
        dim: columns.
        vectors: what to add.
        partial: where intermediate states are saved.
        settings: faiss's description as `factory`, and anything else that a saved state depends on.
    """
    # The same images give fewer vectors if more of them could not be read.
    plan = {**settings, "ids_sha256": hashlib.sha256(encode_ids(vectors.ids)).hexdigest()}
    file, record = partial / "index.faiss", partial / "saved.json"
    last_save = time.monotonic()
    index = _saved_index(file, record, plan, kind, dim)
    if index is None:
        index = new_index(settings["factory"], dim)
        if not index.is_trained:
            index.train(vectors.take(training_rows(index, len(vectors.ids))))
    done = index.ntotal
    with tqdm(total=len(vectors.ids), initial=done, unit="vector", disable=None, leave=False) as progress:
        for start in range(done, len(vectors.ids), BLOCK):
            rows = np.arange(start, min(start + BLOCK, len(vectors.ids)))
            index.add(np.ascontiguousarray(vectors.take(rows), dtype=np.float32))
            progress.update(len(rows))
            if time.monotonic() - last_save > SAVE_SECONDS:
                partial.mkdir(parents=True, exist_ok=True)
                entry = write_index(index, file)
                write_json(record, plan | {"rows": index.ntotal, "sha256": entry["sha256"]})
                last_save = time.monotonic()
    return index


def _saved_index(file: Path, record: Path, plan: dict[str, Any], kind: str, dim: int) -> Any:
    """The index that an interrupted run has left, if it has the same plan and is unaltered; otherwise None."""
    if not (file.is_file() and record.is_file()):
        return None
    saved = read_json(record)
    if not isinstance(saved, dict) or saved != plan | {"rows": saved.get("rows"), "sha256": file_sha256(file)}:
        return None
    return read_index(file, kind, dim, saved["rows"], writable=True)


def picture_times(gallery: Gallery, ids: Sequence[str]) -> list[Time]:
    """Size and time of change of the image files of these ids as they were before encoding; None for features."""
    if not isinstance(gallery, ImageGallery):
        return [None] * len(ids)
    time_of = dict(zip(gallery.index.names, gallery.times, strict=True))
    return [time_of[name] for name in ids]


def picture_lines(gallery: Gallery, ids: Sequence[str], roots: Sequence[str]) -> tuple[list[str], list[str]]:
    """Lines of the rows file for these ids, and the root folders, to which the gallery's is added if it is new.

    Raises:
        UserError: an image of a feature directory is not in its folder.
    """
    if isinstance(gallery, FeatureGallery) and not gallery.has_pictures:
        return list(roots), list(ids)
    row_of = {name: row for row, name in enumerate(gallery.index.names)}
    files = [os.path.abspath(gallery.picture(row_of[name])) for name in ids]
    pictures = gallery if isinstance(gallery, ImageGallery) else gallery.pictures
    assert pictures is not None
    source = os.path.abspath(pictures.source)
    root = source if os.path.isdir(source) else os.path.commonpath([os.path.dirname(file) for file in files])
    all_roots = [*roots] if root in roots else [*roots, root]
    number = all_roots.index(root)
    lines = [f"{name}\t{number}\t{os.path.relpath(file, root)}" for name, file in zip(ids, files, strict=True)]
    return all_roots, lines
