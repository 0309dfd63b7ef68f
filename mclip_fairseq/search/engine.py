"""The seam between search and what holds the vectors: a directory of faiss, or a collection of a vector database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from mclip_fairseq.search.places import KnownPlaces
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.fingerprints import HALF, same_vectors, text_side

if TYPE_CHECKING:
    from mclip_fairseq.search.bank import Bank

Vectors = npt.NDArray[np.float32]
Row = int | str  # number in a faiss index, id in a collection


class Unavailable(UserError):
    """A database cannot be reached, or did not answer in time."""


@dataclass(frozen=True)
class Hit:
    """An image that a query returned.

    Attributes:
        row: of the index.
        id: of the image.
        score: cosine.
        match: matching score, where the hits were re-ranked.
        copies: how many further images with the same vector it stands for.
        fit: how well it fits, from 0 to 1, where the index has a bank of queries; see `Calibration`.
    """

    row: Row
    id: str
    score: float
    match: float | None = None
    copies: int = 0
    fit: float | None = None


class Index(Protocol):
    """What queries, re-ranking and the page need of an index; each image is one row."""

    @property
    def path(self) -> Path | str:
        """What messages call it."""

    @property
    def name(self) -> str:
        """What the page calls it."""

    @property
    def model(self) -> dict[str, Any]:
        """Name, fingerprint and identity of the model that made the vectors."""

    @property
    def dim(self) -> int:
        """Width of its vectors."""

    @property
    def places(self) -> KnownPlaces | None:
        """Where its images and its model are; None where this machine does not know."""

    @property
    def stamp(self) -> str:
        """Changes as soon as a row may be a different image."""

    @property
    def content(self) -> str:
        """Changes as soon as other images may be found, here and on every machine."""

    @property
    def state(self) -> Any:
        """What `state_now` was when the index was opened."""

    @property
    def state_now(self) -> Any:
        """Differs from `state` once the index was changed."""

    def __len__(self) -> int:
        """Images that can be found."""

    def reopened(self) -> Index:
        """The index as it is now."""

    def without_vectors(self) -> Index:
        """The same without what takes memory: it knows the images, and cannot be searched."""

    def check_model(self, model: Any) -> None:
        """Check that a model's vectors can be compared with those of the index; a `UserError` if not."""

    def hits(self, queries: Vectors, k: int) -> list[list[Hit]]:
        """The k nearest images of each (n, dim) normalised query, best first."""

    def vectors(self, rows: Sequence[Row]) -> Vectors | None:
        """(n, dim) stored vectors; None where they are not kept."""

    def find(self, name: str) -> Row | None:
        """Row of an id; None if the image is not in the index."""

    def known(self, names: Sequence[str]) -> set[str]:
        """Which of these ids are in the index."""

    def id_of(self, row: Row) -> str:
        """Id of a row."""

    def address(self, row: Row) -> str:
        """A row in a URL."""

    def row_at(self, address: str) -> Row | None:
        """The row that `address` named; None if there is no such row."""

    def samples(self, count: int) -> list[Row]:
        """About `count` rows that are in the index."""

    def picture(self, row: Row) -> Path | None:
        """The image file of a row; None where the index does not know it."""

    def is_missing(self, row: Row) -> bool:
        """Whether the index knows the image file of a row, and it no longer exists."""

    def read_bank(self) -> Bank | None:
        """The bank of queries that is kept with the index; None if there is none. A `UserError` if it is damaged."""

    def write_bank(self, bank: Bank) -> Path | str:
        """Keep a bank with the index, instead of an earlier one; returns its place."""


class Store(Protocol):
    """One collection of a vector database; what a new database has to offer.

    Every record has an `id` and fields. All calls raise a `UserError` that says what the database refuses, and
    `Unavailable` where it cannot be reached.
    """

    place: str
    most: int  # hits that a search may ask for

    def beside(self, ending: str) -> Store:
        """The collection of the same database whose name has this ending more."""

    def facts(self) -> dict[str, Any] | None:
        """What was written with `write_facts`, and `dim`; None if there is no such collection."""

    def create(self, dim: int, kind: str, parameters: Mapping[str, int], facts: Mapping[str, Any]) -> None:
        """Create the collection: `kind` of index for vectors of `dim` columns, with these `parameters`."""

    def write_facts(self, facts: Mapping[str, Any]) -> None:
        """Replace the facts that are stored with the collection."""

    def upsert(self, records: Sequence[Mapping[str, Any]], vectors: Vectors) -> None:
        """Write records and their (n, dim) vectors; a record with the same id is replaced."""

    def finish(self) -> None:
        """Wait until everything that was written is indexed."""

    def get(self, ids: Sequence[str], fields: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Id -> fields of the records that exist; the field `vector` is a list of numbers."""

    def delete(self, ids: Sequence[str]) -> None:
        """Remove records."""

    def search(
        self, queries: Vectors, k: int, fields: Sequence[str], effort: int | None, where: str
    ) -> list[list[tuple[float, dict[str, Any]]]]:
        """Cosine and fields (with `id`) of the k nearest records of each query that fit `where`, best first."""

    def count(self) -> int:
        """Number of records."""

    def some(self, count: int) -> list[str]:
        """Up to `count` ids."""


def check_same_model(place: Path | str, entry: Mapping[str, Any], model: Any) -> None:
    """Check that a model's vectors can be compared with those of an index.

    Args:
        place: the index.
        entry: the model that made it.
        model: with `name` and `fingerprint`.

    Raises:
        UserError: it is a different model; names both.
    """
    made, given = entry["fingerprint"], model.fingerprint
    if same_vectors(made, given):
        return
    name, own = entry.get("name"), model.name
    if text_side(made) == text_side(given):
        raise UserError(
            f"{place}: was made with the model {name!r}, whose image tower or image processor has changed "
            f"since (fingerprint {made[HALF:][:12]}, now {given[HALF:][:12]}); restore the old files, or build "
            "another index"
        )
    raise UserError(
        f"{place}: was made with the model {name!r} (fingerprint {made[:12]}), not with {own!r} "
        f"({given[:12]}), and vectors of two models cannot be compared; use the model of the index, in the version "
        "of mclip_fairseq that built it, or build another index"
    )
