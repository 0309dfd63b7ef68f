"""`Collection`: an index whose vectors and rows are in a vector database."""

from __future__ import annotations

import base64
import binascii
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mclip_fairseq.search.bank import Bank
from mclip_fairseq.search.bank_files import ENDING, read_bank_records, write_bank_records
from mclip_fairseq.search.engine import Hit, Row, Store, Vectors, check_same_model
from mclip_fairseq.search.places import KnownPlaces, recall
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.fields import check_fields
from mclip_fairseq.storage.images import resolve_image

FORMAT, VERSION = "mclip_fairseq collection", 1
FIELDS = {
    "format": str,
    "version": int,
    "id": str,
    "model": dict,
    "dim": int,
    "kind": str,
    "roots": list,
    "finished": bool,
    "built_from": str,
    "effort": int | None,
    "changed": str,
}
MODEL_FIELDS = {"fingerprint": str, "name": str | None}
PLACE = ("root", "file")  # where the picture of a record is; root -1: nobody knows
KNOWN_PLACES = 100_000  # of pictures, kept in memory


def read_facts(store: Store) -> dict[str, Any]:
    """What a collection says about itself, checked.

    Raises:
        UserError: there is no such collection, or it was made by something else.
    """
    facts = store.facts()
    if facts is None:
        raise UserError(f"{store.place}: no such collection; create it with mclip-search build")
    remedy = "build the collection again under another name"
    check_fields(store.place, facts, FIELDS, remedy)
    check_fields(store.place, facts["model"], MODEL_FIELDS, remedy)
    if (facts["format"], facts["version"]) != (FORMAT, VERSION):
        raise UserError(f"{store.place}: has version {facts['version']}, but this program reads {VERSION}; {remedy}")
    return facts


def manifest_of(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What `remember` and `recall` know a collection by."""
    return {"id": facts["id"], "model": facts["model"], "files": {"rows": {"sha256": ""}}}


class Collection:
    """An index in a vector database; see `Index` for the calls. Its rows are ids.

    Args:
        store: the collection.
        moved: where the images are now, if they have moved or the collection was made on another machine.
        where: a filter of the database that every hit has to fit; empty for none.

    Raises:
        UserError: there is no such collection, it is unfinished, or it has another number of root folders.
    """

    def __init__(self, store: Store, moved: Sequence[Path] = (), where: str = "") -> None:
        self.store, self.moved, self.where = store, list(moved), where
        self.facts = read_facts(store)
        if not self.facts["finished"]:
            raise UserError(f"{store.place}: is not finished; run the mclip-search build that began it again")
        if moved and len(moved) != len(self.facts["roots"]):
            raise UserError(
                f"{store.place}: has images in {len(self.facts['roots'])} folders; give --images-root once for each"
            )
        self.places: KnownPlaces | None = recall(manifest_of(self.facts))
        self.roots = self.moved or [Path(root) for root in (self.places.roots if self.places else ())]
        self.state = self.facts["changed"]
        self._places: OrderedDict[str, tuple[int, str]] = OrderedDict()
        self._count: int | None = None

    @property
    def path(self) -> str:
        """What messages call it."""
        return self.store.place

    @property
    def name(self) -> str:
        """The name of the collection."""
        return self.store.place.rpartition(" ")[2]

    @property
    def model(self) -> dict[str, Any]:
        """Name, fingerprint and identity of the model that made the vectors."""
        model: dict[str, Any] = self.facts["model"]
        return model

    @property
    def dim(self) -> int:
        """Width of its vectors."""
        dim: int = self.facts["dim"]
        return dim

    @property
    def content(self) -> str:
        """Which images can be found: those of the collection as it is, as far as they fit the filter."""
        return f"{self.facts['id']} {self.state} {self.where}"

    @property
    def stamp(self) -> str:
        """Changes with every change of the collection."""
        return str(self.state)

    @property
    def state_now(self) -> str:
        """Differs from `state` once the collection was changed."""
        return str(read_facts(self.store)["changed"])

    def reopened(self) -> Collection:
        """The collection as it is now."""
        return Collection(self.store, self.moved, self.where)

    def without_vectors(self) -> Collection:
        """The collection itself: the database holds the vectors."""
        return self

    def __len__(self) -> int:
        if self._count is None:
            self._count = self.store.count()
        return self._count

    def check_model(self, model: Any) -> None:
        """Check that a model's vectors can be compared with those of the collection.

        Raises:
            UserError: it is a different model, or of another width.
        """
        check_same_model(self.path, self.model, model)
        check_width(self.path, self.dim, model.dim)

    def hits(self, queries: Vectors, k: int) -> list[list[Hit]]:
        """The k nearest images of each (n, dim) normalised query, best first; fewer where fewer fit the filter."""
        k = min(k, self.store.most, len(self))
        if not len(queries) or k < 1:
            return [[] for _ in queries]
        answers = self.store.search(queries, k, PLACE, self.facts["effort"], self.where)
        for answer in answers:
            for _, fields in answer:
                self._keep(fields)
        return [[Hit(fields["id"], fields["id"], float(score)) for score, fields in answer] for answer in answers]

    def vectors(self, rows: Sequence[Row]) -> Vectors | None:
        """(n, dim) stored vectors; None where one of the images is no longer in the collection."""
        found = self.store.get([str(row) for row in rows], ["vector"])
        if any(row not in found for row in rows):
            return None
        return np.array([found[str(row)]["vector"] for row in rows], dtype=np.float32)

    def find(self, name: str) -> str | None:
        """The id itself; None if it is not in the collection."""
        return name if self.store.get([name], []) else None

    def known(self, names: Sequence[str]) -> set[str]:
        """Which of these ids are in the collection."""
        return set(self.store.get(list(names), []))

    def id_of(self, row: Row) -> str:
        """The row itself."""
        return str(row)

    def address(self, row: Row) -> str:
        """An id in a URL, in which any character may stand."""
        return base64.urlsafe_b64encode(str(row).encode()).decode().rstrip("=")

    def row_at(self, address: str) -> str | None:
        """The id that an address names; None if it cannot be one."""
        try:
            return base64.urlsafe_b64decode(address + "=" * (-len(address) % 4)).decode()
        except (binascii.Error, ValueError):
            return None

    def samples(self, count: int) -> list[Row]:
        """Up to `count` ids."""
        return list(self.store.some(count))

    def picture(self, row: Row) -> Path | None:
        """The image file of an id; None where the collection does not know it.

        Raises:
            UserError: the image is not in the collection, or its path leaves its root folder.
        """
        name = str(row)
        if name not in self._places:
            for fields in self.store.get([name], PLACE).values():
                self._keep(fields)
        place = self._places.get(name)
        if place is None:
            raise UserError(f"{self.path}: has no image {name!r}")
        root, file = place
        if not 0 <= root < len(self.roots):
            return None
        return resolve_image(self.roots[root], file)

    def is_missing(self, row: Row) -> bool:
        """Whether the collection knows the image file of an id, and it no longer exists."""
        file = self.picture(row)
        return file is not None and not file.is_file()

    def read_bank(self) -> Bank | None:
        """The bank of queries in the collection beside this one; None if there is none.

        Raises:
            UserError: it is damaged.
        """
        return read_bank_records(self.store.beside(ENDING))

    def write_bank(self, bank: Bank) -> str:
        """Write a bank into the collection beside this one; returns what messages call it."""
        beside = self.store.beside(ENDING)
        write_bank_records(beside, bank)
        return beside.place

    def _keep(self, fields: Mapping[str, Any]) -> None:
        """Keep where a picture is; the oldest entries go first."""
        self._places[fields["id"]] = int(fields["root"]), str(fields["file"])
        if len(self._places) > KNOWN_PLACES:
            self._places.popitem(last=False)


def check_width(place: str, dim: int, given: int) -> None:
    """Check that vectors have as many columns as those of a collection.

    Raises:
        UserError: they have not.
    """
    if dim != given:
        raise UserError(f"{place}: holds vectors of {dim} dimensions, not of {given}; choose another collection")
