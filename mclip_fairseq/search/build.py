"""Make an index directory, going on where an earlier build was stopped."""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mclip_fairseq.encoding.galleries import FeatureGallery, ImageGallery
from mclip_fairseq.search.files import MANIFEST, PARTIAL, Rows, locked, write_manifest
from mclip_fairseq.search.kinds import (
    check_effort,
    efforts,
    factory_string,
    new_index,
    read_index,
    training_rows,
    write_index,
)
from mclip_fairseq.search.recall import Yardstick, sentence
from mclip_fairseq.search.sources import ProjectedFeatures, describe_model, encode_images, open_gallery
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.feature_files import encode_ids
from mclip_fairseq.storage.features import FeatureStore
from mclip_fairseq.storage.files import file_sha256, read_json, write_json
from mclip_fairseq.storage.images import check_max_pixels
from mclip_fairseq.storage.provenance import provenance

BLOCK = 16384  # vectors handed to faiss at a time
RECALL = 0.95  # that is searched for unless another is asked for
SAVE_SECONDS = 120.0  # how much work an interruption of the second stage costs at most
VectorSource = FeatureStore | ProjectedFeatures


def build(options: argparse.Namespace, load: Callable[[], Any], queries: Sequence[str], command: Sequence[str]) -> str:
    """Build an index; returns what to tell the user.

    Args:
        options: of `mclip-search build`.
        load: gives the dual encoder; called when the images are known to be there.
        queries: texts to measure the recall with; none takes images of the index.
        command: what the user typed.

    Raises:
        UserError: in one sentence, when an option or a file cannot be used; what is done is kept.
    """
    folder = options.output
    check_max_pixels(options.max_pixels)
    gallery = open_gallery(options.source, options.images_root)
    with locked(folder):
        if (folder / MANIFEST).exists():
            raise UserError(f"{folder}: holds an index already; use mclip-search add, or name another directory")
        model = load()
        identity = describe_model(model, load_options(options))
        named = len(gallery.index.names)
        factory = factory_string(options.kind, model.dim, named, options.lists, options.bytes)
        check_effort(options.kind, factory, named, options.effort, options.recall)
        contents = gallery.stamp()
        settle(folder / PARTIAL, contents)
        vectors = open_vectors(gallery, model, identity, folder / PARTIAL / "images", options)
        count = len(vectors.ids)
        if not count:
            raise UserError(f"{options.source}: none of its images can be read; there is nothing to search")
        factory = factory_string(options.kind, model.dim, count, options.lists, options.bytes)
        plan = {"factory": factory, "model": identity["fingerprint"]}
        index = fill(options.kind, model.dim, vectors, folder / PARTIAL, plan)
        recall = None
        if efforts(options.kind, index):
            texts = model.encode_text(list(queries)).numpy() if queries else None
            yardstick = Yardstick(vectors.take, count, texts)
            recall = yardstick.tune(index, options.kind, options.recall or RECALL, options.effort)
        roots, lines = picture_lines(gallery, vectors.ids, [])
        manifest = {
            "generation": 1,
            "model": identity,
            "dim": model.dim,
            "kind": options.kind,
            "factory": factory,
            "effort": recall and recall["effort"],
            "recall": recall,
            "rows": count,
            "removed": [],
            "roots": roots,
            "files": {
                "vectors": write_index(index, folder / "vectors-00001.faiss"),
                "rows": Rows(lines, folder).write(folder, 1),
            },
            "made_by": [provenance(command)],
        }
        write_manifest(folder, manifest)
        shutil.rmtree(folder / PARTIAL, ignore_errors=True)
    told = [f"{folder}: {count} images of {model.dim} dimensions, {options.kind}"]
    told[0] += f"; {named - count} that cannot be read are left out" if count < named else ""
    return "\n".join(told + ([sentence(recall, options.kind)] if recall else []))


def load_options(options: argparse.Namespace) -> dict[str, str | None]:
    """How the model of the command line is loaded again."""
    return {"path": options.model, "text_encoder": options.text_encoder, "teacher": options.teacher}


def settle(partial: Path, contents: str) -> None:
    """Keep what an interrupted run has left if it is of the same images; else remove it, and say so.

    Args:
        partial: where it is.
        contents: stamp of the images, which is another one when an image was added, taken out or changed.
    """
    record, wanted = partial / "contents.json", {"contents": contents}
    if record.is_file() and read_json(record) == wanted:
        return
    if partial.exists():
        shutil.rmtree(partial)
        told = "images were added, taken out or changed since this was interrupted; it is begun anew"
        print(f"{partial.parent}: {told}", file=sys.stderr)
    partial.mkdir(parents=True)
    write_json(record, wanted)


def open_vectors(
    gallery: ImageGallery | FeatureGallery,
    model: Any,
    identity: dict[str, Any],
    staging: Path,
    options: argparse.Namespace,
    rows: Sequence[int] | None = None,
) -> VectorSource:
    """The joint-space vectors of a gallery: pictures are encoded, features are projected as they are read."""
    if isinstance(gallery, ImageGallery):
        return encode_images(gallery, model, identity, staging, options, rows)
    features = ProjectedFeatures(gallery, model, rows)
    encode_ids(features.ids)
    return features


def fill(kind: str, dim: int, vectors: VectorSource, partial: Path, settings: Mapping[str, str]) -> Any:
    """Train a faiss index and add all vectors, going on from what an interrupted run has saved.

    Args:
        kind: of `KINDS`.
        dim: columns.
        vectors: what to add.
        partial: where intermediate states are saved.
        settings: faiss's description as `factory`, and whatever else a saved state depends on.
    """
    # Of the same images there are fewer when more of them could not be read.
    plan = {**settings, "ids_sha256": hashlib.sha256(encode_ids(vectors.ids)).hexdigest()}
    file, record = partial / "index.faiss", partial / "saved.json"
    saved = time.monotonic()
    index = _saved(file, record, plan, kind, dim)
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
            if time.monotonic() - saved > SAVE_SECONDS:
                partial.mkdir(parents=True, exist_ok=True)
                entry = write_index(index, file)
                write_json(record, plan | {"rows": index.ntotal, "sha256": entry["sha256"]})
                saved = time.monotonic()
    return index


def _saved(file: Path, record: Path, plan: dict[str, Any], kind: str, dim: int) -> Any:
    """The index an interrupted run has left, if it is of the same plan and unaltered."""
    if not (file.is_file() and record.is_file()):
        return None
    found = read_json(record)
    if not isinstance(found, dict) or found != plan | {"rows": found.get("rows"), "sha256": file_sha256(file)}:
        return None
    return read_index(file, kind, dim, found["rows"], writable=True)


def picture_lines(
    gallery: ImageGallery | FeatureGallery, ids: Sequence[str], roots: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Lines of the rows file for these ids, and the roots, to which the gallery's is added when it is new.

    Raises:
        UserError: a picture of a feature directory is not in its folder.
    """
    if isinstance(gallery, FeatureGallery) and not gallery.has_pictures:
        return list(roots), list(ids)
    row_of = {name: row for row, name in enumerate(gallery.index.names)}
    files = [os.path.abspath(gallery.picture(row_of[name])) for name in ids]
    pictures = gallery if isinstance(gallery, ImageGallery) else gallery.pictures
    assert pictures is not None
    source = os.path.abspath(pictures.source)
    root = source if os.path.isdir(source) else os.path.commonpath([os.path.dirname(file) for file in files])
    known = [*roots] if root in roots else [*roots, root]
    number = known.index(root)
    return known, [f"{name}\t{number}\t{os.path.relpath(file, root)}" for name, file in zip(ids, files, strict=True)]
