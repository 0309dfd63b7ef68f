"""Build a collection of a vector database, add images to it and remove them.

Nothing is kept on this machine: an interrupted command reads from the database what it has written and continues.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from mclip_fairseq.encoding.galleries import ImageGallery
from mclip_fairseq.search.build import digest_of, names_of, open_vectors, picture_lines
from mclip_fairseq.search.change import added_sentence, check_folders
from mclip_fairseq.search.collection import FORMAT, VERSION, Collection, check_width, manifest_of, read_facts
from mclip_fairseq.search.engine import Store, Vectors, check_same_model
from mclip_fairseq.search.kinds import HNSW_LINKS, MAX_BREADTH, powers
from mclip_fairseq.search.languages import encode_texts
from mclip_fairseq.search.places import KnownPlaces, recall, remember
from mclip_fairseq.search.recall import Yardstick, recall_sentence
from mclip_fairseq.search.records import NOWHERE, Records
from mclip_fairseq.search.settings import (
    DEFAULT_RECALL,
    IVF_KINDS,
    ImageSettings,
    IndexSettings,
    ModelPaths,
    check_settings,
    default_code_bytes,
    default_lists,
)
from mclip_fairseq.search.sources import absolute_paths, describe_model, open_gallery
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.images import check_max_pixels
from mclip_fairseq.storage.provenance import provenance

CHUNK = 4096  # at most this many images are encoded again after an interruption
HNSW_BREADTH = 200  # of the walk while the graph is built


@dataclass
class Written:
    """What a command has done.

    Attributes:
        ids: of the gallery that are in the collection now.
        added, replaced, unreadable: numbers of images.
    """

    ids: list[str] = field(default_factory=list)
    added: int = 0
    replaced: int = 0
    unreadable: int = 0


def write_images(
    store: Store, records: Records, images: ImageSettings, load_model: Callable[[], Any], again: bool
) -> Written:
    """Encode and write the images that a collection does not have as they are now, chunk by chunk.

    Args:
        store: the collection.
        records: of the gallery.
        images: how they are read.
        load_model: gives the dual encoder; called if there is something to encode.
        again: also write images that have not changed.

    Raises:
        UserError: an id already names a different image, or more images cannot be read than the budget allows; what
            was written before is kept.
    """
    names, written, model = records.gallery.index.names, Written(), None
    with tqdm(total=len(names), unit="image", disable=None, leave=False) as progress:
        for start in range(0, len(names), CHUNK):
            chunk = range(start, min(start + CHUNK, len(names)))
            there = store.get([names[row] for row in chunk], ("root", "file", "size", "changed"))
            rows = [row for row in chunk if again or not is_same(store, records, row, there.get(names[row]))]
            written.ids += [names[row] for row in sorted({*chunk}.difference(rows))]
            if rows:
                model = model or load_model()
                here = replace(images, skipped_before=written.unreadable)
                made = write_rows(store, records, here, model, rows)
                written.ids += made
                written.replaced += sum(name in there for name in made)
                written.added += sum(name not in there for name in made)
                written.unreadable += len(rows) - len(made)
            progress.update(len(chunk))
    return written


def write_rows(store: Store, records: Records, images: ImageSettings, model: Any, rows: Sequence[int]) -> list[str]:
    """Encode and write these images of a gallery; returns the ids of those that can be read."""
    row_of = {records.gallery.index.names[row]: row for row in rows}
    with tempfile.TemporaryDirectory() as folder:
        staging = Path(folder) / "images"
        vectors = open_vectors(records.gallery, model, describe_model(model), staging, images, rows)
        ids = list(vectors.ids)
        if ids:
            made = [records.record(row_of[name]) for name in ids]
            store.upsert(made, np.asarray(vectors.take(np.arange(len(ids))), dtype=np.float32))
    return ids


def is_same(store: Store, records: Records, row: int, there: Mapping[str, Any] | None) -> bool:
    """Whether a collection has an image as it is now.

    Raises:
        UserError: its id names a different image there.
    """
    if there is None:
        return False
    root, file = records.place(row)
    if NOWHERE not in (root, there["root"]) and (root, file) != (there["root"], there["file"]):
        name = records.gallery.index.names[row]
        raise UserError(
            f"{store.place}: the id {name!r} already names a different image, {there['file']}; give this one another "
            "id in a list, say where the images are now with --moved, or replace the old one with --replace"
        )
    return records.time(row) in ((0, 0), (there["size"], there["changed"]))


def build_collection(
    store: Store,
    images: ImageSettings,
    settings: IndexSettings,
    load_model: Callable[[], Any],
    model_paths: ModelPaths,
    queries: Sequence[str],
    command: Sequence[str],
) -> str:
    """Build a collection, or continue a build that was interrupted; returns what to tell the user.

    The arguments are those of `build_index`.

    Raises:
        UserError: an option or a file cannot be used, or the collection is of other images or another model.
    """
    check_max_pixels(images.max_pixels)
    gallery, images = open_gallery(images)
    names, built_from = gallery.index.names, digest_of(gallery, settings)
    roots, lines = picture_lines(gallery, names, [])
    records = Records(gallery, lines)
    facts = None if store.facts() is None else read_facts(store)
    if facts is not None and facts["finished"] and facts["built_from"] != built_from:
        raise UserError(
            f"{store.place}: already holds other images or settings, or was changed since; use mclip-search add, or "
            "another collection"
        )
    if facts is not None and facts["kind"] != settings.kind:
        raise UserError(f"{store.place}: was begun with --kind {facts['kind']}; give that, or another collection")
    model = load_model()
    if isinstance(gallery, ImageGallery):
        model.transform  # noqa: B018  (loads the image tower, which the fingerprint then covers)
    if facts is None:
        check_settings(settings, model.dim, len(names))
        facts = new_facts(model, settings.kind, built_from, command)
        store.create(model.dim, settings.kind, parameters(settings, model.dim, len(names)), facts)
    check_same_model(store.place, facts["model"], model)
    check_width(store.place, facts["dim"], model.dim)
    if facts["finished"]:
        return f"{store.place}: nothing to do, holds these {store.count()} images already"
    facts |= {"roots": names_of(roots), "built_from": built_from, "changed": uuid.uuid4().hex[:12]}
    store.write_facts(facts)
    remember(manifest_of(facts), KnownPlaces(roots, absolute_paths(model_paths)))
    written = write_images(store, records, images, lambda: model, again=False)
    if not written.ids:
        raise UserError(f"{images.source}: none of its images can be read, so there is nothing to search")
    store.finish()
    if (others := store.count() - len(written.ids)) > 0:
        raise UserError(
            f"{store.place}: holds {others} images that an interrupted build has written and {images.source} lacks; "
            "remove them with mclip-search remove, or build another collection"
        )
    texts = encode_texts(model, list(queries)).numpy() if queries else None
    measured = measure(store, settings, written.ids, texts)
    facts |= {"finished": True, "effort": measured and measured["effort"], "recall": measured}
    store.write_facts(facts)
    skipped = f"; {written.unreadable} unreadable images skipped" if written.unreadable else ""
    summary = f"{store.place}: {store.count()} images of {model.dim} dimensions, {settings.kind}{skipped}"
    return f"{summary}\n{recall_sentence(measured, settings.kind)}" if measured else summary


def new_facts(model: Any, kind: str, built_from: str, command: Sequence[str]) -> dict[str, Any]:
    """What a new collection says about itself."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "id": uuid.uuid4().hex,
        "model": describe_model(model),
        "dim": model.dim,
        "kind": kind,
        "roots": [],
        "finished": False,
        "built_from": built_from,
        "effort": None,
        "recall": None,
        "changed": "",
        "made_by": provenance(command),
    }


def parameters(settings: IndexSettings, dim: int, count: int) -> dict[str, int]:
    """The parameters of the database's index."""
    if settings.kind == "hnsw":
        return {"M": HNSW_LINKS, "efConstruction": HNSW_BREADTH}
    if settings.kind not in IVF_KINDS:
        return {}
    lists = {"nlist": settings.lists or default_lists(count)}
    return lists | ({"m": settings.code_bytes or default_code_bytes(dim), "nbits": 8} if settings.kind == "pq" else {})


class StoreSearcher:
    """A collection as `Yardstick` searches it: with numbers for its ids.

    Args:
        store: the collection.
        row_of: id -> number.
        effort: lists searched, or breadth of the walk.
    """

    def __init__(self, store: Store, row_of: Mapping[str, int], effort: int) -> None:
        self.store, self.row_of, self.effort = store, row_of, effort

    def __call__(self, queries: Vectors, k: int) -> tuple[Vectors, npt.NDArray[np.int64]]:
        """Cosines and rows of the k nearest, (n, k) each; a row of -1 where fewer were found."""
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        rows = np.full((len(queries), k), -1, dtype=np.int64)
        for number, answer in enumerate(self.store.search(queries, k, (), self.effort, "")):
            for rank, (score, fields) in enumerate(answer):
                scores[number, rank], rows[number, rank] = score, self.row_of.get(fields["id"], -1)
        return scores, rows


def measure(store: Store, settings: IndexSettings, ids: Sequence[str], texts: Vectors | None) -> dict[str, Any] | None:
    """The recall against exact search over all vectors, read back once; None for exact.

    The effort is the settings', or the least that reaches their recall.
    """
    if settings.kind == "exact":
        return None

    def take(rows: np.ndarray) -> Vectors:
        names = [ids[row] for row in rows]
        found = store.get(names, ("vector",))
        return np.array([found[name]["vector"] for name in names], dtype=np.float32)

    if settings.kind in IVF_KINDS:
        efforts = powers(1, settings.lists or default_lists(len(ids)))
    else:
        efforts = powers(16, MAX_BREADTH)
    row_of = {name: row for row, name in enumerate(ids)}
    attempts = efforts if settings.effort is None else [settings.effort]
    searchers = (StoreSearcher(store, row_of, effort) for effort in attempts)
    return Yardstick(take, len(ids), texts).first_that_reaches(searchers, settings.recall or DEFAULT_RECALL)


def add_to_collection(
    store: Store,
    images: ImageSettings,
    load_model: Callable[[Collection], Any],
    again: bool,
    moved: Sequence[Path],
) -> str:
    """Add the images that a collection does not have, and encode changed ones again; returns what to tell the user.

    Args:
        store: the collection.
        images: what to add.
        load_model: gives the dual encoder of the collection.
        again: encode images again whose id is already in the collection, changed or not.
        moved: where its images are now, if they have moved.

    Raises:
        UserError: a different model, an id that already names a different image, or unreadable images.
    """
    check_max_pixels(images.max_pixels)
    check_folders(moved)
    collection = Collection(store, moved)
    if collection.facts["roots"] and not collection.roots:
        raise UserError(
            f"{store.place}: was made on another machine, so nothing here says where its images are; name their folder "
            "with --moved, once for each folder"
        )
    gallery, images = open_gallery(images)
    roots, lines = picture_lines(gallery, gallery.index.names, [str(root.absolute()) for root in collection.roots])
    facts = collection.facts | {"roots": names_of(roots), "changed": uuid.uuid4().hex[:12]}
    if facts["roots"] != collection.facts["roots"]:
        store.write_facts(facts)  # before records refer to them
    places = recall(manifest_of(facts))
    remember(manifest_of(facts), KnownPlaces(roots, places.model if places else ModelPaths("")))

    def begin() -> Any:
        model = load_model(collection)
        store.write_facts(facts | changed_now())  # first: an interrupted addition is not the outcome of the build
        return model

    written = write_images(store, Records(gallery, lines), images, begin, again)
    if not written.added + written.replaced:
        return f"{store.place}: nothing to add, all {len(written.ids)} images are already in the collection"
    store.finish()
    store.write_facts(facts | changed_now())
    counts = {
        "replaced" if again else "changed since and encoded again": written.replaced,
        "already in the collection": len(written.ids) - written.added - written.replaced,
        "unreadable images skipped": written.unreadable,
    }
    return added_sentence(store.place, written.added, counts)


def changed_now() -> dict[str, str]:
    """Facts of a collection that is no longer, or not only, the outcome of its build."""
    return {"changed": uuid.uuid4().hex[:12], "built_from": ""}


def remove_from_collection(store: Store, names: Sequence[str]) -> str:
    """Remove images; returns what to tell the user. Ids that are not in the collection are named, and do no harm."""
    facts = read_facts(store)
    wanted = list(dict.fromkeys(names))
    there = store.get(wanted, ())
    if there:
        store.write_facts(facts | changed_now())  # first, as in an addition
        store.delete(list(there))
    unknown = [name for name in wanted if name not in there]
    message = f"{store.place}: {len(there)} images removed, {store.count()} left"
    if unknown:
        message += f"; {len(unknown)} of the {len(wanted)} ids are not in the collection, such as {unknown[0]!r}"
    return message
