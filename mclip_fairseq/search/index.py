"""`SearchIndex`: open an index directory and search it."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from mclip_fairseq.search.bank import Bank
from mclip_fairseq.search.bank_files import FILE, read_bank_file, write_bank_file
from mclip_fairseq.search.engine import Hit, Row, Vectors, check_same_model
from mclip_fairseq.search.files import MANIFEST, Rows, Time, check_index_file, read_index_manifest, read_times, state_of
from mclip_fairseq.search.kinds import Searcher, read_index
from mclip_fairseq.search.places import recall
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import read_lines
from mclip_fairseq.storage.images import resolve_image

ADDRESS_DIGITS = 12  # of a row in a URL


class SearchIndex:
    """An index directory, read-only; open it with `open`.

    Args:
        path: the directory.
        manifest: its checked `index.json`.
        rows: id and image of each row.
        searcher: the faiss index.
        moved: where the images are now, if they have moved or the index comes from another machine.
        state: `state_of` the manifest file when it was read.

    Attributes:
        places: where its images and its model are, if it was made on this machine; otherwise None.
        roots: folders of its images; empty where nobody says where they are.
    """

    def __init__(
        self,
        path: Path,
        manifest: dict[str, Any],
        rows: Rows,
        searcher: Searcher,
        moved: Sequence[Path],
        state: tuple[int, ...] | None,
    ) -> None:
        self.path, self.manifest, self.rows, self.searcher = path, manifest, rows, searcher
        self.moved, self.state = list(moved), state
        self.places = recall(manifest)
        self.roots = self.moved or [Path(root) for root in (self.places.roots if self.places else ())]

    @classmethod
    def open(cls, path: str | Path, roots: Sequence[Path] = ()) -> SearchIndex:
        """Open an index after comparing the hashes of its files.

        Args:
            path: the directory.
            roots: folders of the images if they have moved, one for each root folder of the index.

        Raises:
            UserError: it is unfinished, altered or damaged, or has a different number of root folders.
        """
        folder = Path(path)
        state = state_of(folder / MANIFEST)
        try:
            return cls._open(folder, roots, state)
        except (UserError, OSError):
            new_state = state_of(folder / MANIFEST)
            if new_state == state:
                raise
            # A change finished meanwhile and removed the files that were being read.
            return cls._open(folder, roots, new_state)

    @classmethod
    def _open(cls, folder: Path, roots: Sequence[Path], state: tuple[int, ...] | None) -> SearchIndex:
        manifest = read_index_manifest(folder)
        if roots and len(roots) != len(manifest["roots"]):
            raise UserError(
                f"{folder}: has images in {len(manifest['roots'])} folders; give --images-root once for each"
            )
        rows = Rows.read(check_index_file(folder, manifest["files"]["rows"]), manifest["rows"])
        file = check_index_file(folder, manifest["files"]["vectors"])
        index = read_index(file, manifest["kind"], manifest["dim"], manifest["rows"])
        searcher = Searcher(index, manifest["kind"], manifest["effort"], manifest["removed"])
        return cls(folder, manifest, rows, searcher, roots, state)

    @property
    def state_now(self) -> tuple[int, ...] | None:
        """What `state` would be if the index were opened now."""
        return state_of(self.path / MANIFEST)

    def reopened(self) -> SearchIndex:
        """The index as it is on the disk now."""
        return SearchIndex.open(self.path, self.moved)

    @cached_property
    def stamp(self) -> str:
        """A short hash of the files and root folders: it changes as soon as a row may be a different image."""
        hashes = [entry["sha256"] for entry in self.manifest["files"].values()]
        return hashlib.sha256("\n".join([*hashes, *map(os.path.abspath, self.roots)]).encode()).hexdigest()[:12]

    @property
    def content(self) -> str:
        """A hash of the images that can be found."""
        files = [self.manifest["files"][name]["sha256"] for name in ("vectors", "rows")]
        return hashlib.sha256(json.dumps([*files, sorted(self.removed)]).encode()).hexdigest()

    def __len__(self) -> int:
        return self.searcher.alive

    @property
    def name(self) -> str:
        """The name of the directory."""
        return self.path.resolve().name

    @property
    def model(self) -> dict[str, Any]:
        """Name, fingerprint, identity and origin of the model that made the vectors."""
        model: dict[str, Any] = self.manifest["model"]
        return model

    @property
    def dim(self) -> int:
        """Width of its vectors."""
        dim: int = self.manifest["dim"]
        return dim

    @cached_property
    def removed(self) -> frozenset[int]:
        """Rows that are never returned."""
        return frozenset(self.manifest["removed"])

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Row of each id that is in the index."""
        return {self.rows.id(row): row for row in range(len(self.rows)) if row not in self.removed}

    @cached_property
    def times(self) -> list[Time]:
        """Size and time of change of each row's image file when it was encoded; None where nobody recorded them.

        Raises:
            UserError: the file of these numbers is missing or altered.
        """
        entry = self.manifest["files"].get("times")
        if entry is None:  # an earlier version built the index, or its rows are features
            return [None] * len(self.rows)
        return read_times(check_index_file(self.path, entry), len(self.rows))

    @cached_property
    def forgotten(self) -> frozenset[str]:
        """Ids that were removed, also those whose rows are no longer in the files."""
        entry = self.manifest["files"].get("forgotten")
        dropped = read_lines(check_index_file(self.path, entry)) if entry else []
        return frozenset(dropped) | {self.rows.id(row) for row in self.removed}

    def check_model(self, model: Any) -> None:
        """Check that a model's vectors can be compared with those of the index.

        Raises:
            UserError: it is a different model; names both.
        """
        check_same_model(self.path, self.model, model)

    def hits(self, queries: Vectors, k: int) -> list[list[Hit]]:
        """The k nearest images of each (n, dim) normalised query, best first; fewer where fewer were found."""
        scores, rows = self.searcher(queries, k)
        return [
            [Hit(int(row), self.rows.id(int(row)), float(score)) for row, score in zip(*pair, strict=True) if row >= 0]
            for pair in zip(rows, scores, strict=True)
        ]

    def vectors(self, rows: Sequence[Row]) -> Vectors | None:
        """(n, dim) stored vectors; None for the kinds that keep no exact ones."""
        return self.searcher.vectors([int(row) for row in rows])

    def find(self, name: str) -> int | None:
        """Row of an id; None if it is not in the index."""
        return self.row_of.get(name)

    def known(self, names: Sequence[str]) -> set[str]:
        """Which of these ids are in the index."""
        return {name for name in names if name in self.row_of}

    def id_of(self, row: Row) -> str:
        """Id of a row."""
        return self.rows.id(int(row))

    def address(self, row: Row) -> str:
        """A row in a URL: its number."""
        return str(row)

    def row_at(self, address: str) -> int | None:
        """The row of a number in a URL; None if there is none, or it was removed."""
        row = int(address) if address.isdecimal() and len(address) < ADDRESS_DIGITS else -1
        return row if 0 <= row < len(self.rows) and row not in self.removed else None

    def samples(self, count: int) -> list[Row]:
        """About `count` rows, spread evenly over the index."""
        rows = list(self.row_of.values())
        return list(rows[:: max(1, -(-len(rows) // count))])

    def without_vectors(self) -> SearchIndex:
        """The same without the vectors, which take the memory: it knows the images, and cannot be searched."""
        pictures = copy.copy(self)
        pictures.searcher = None  # type: ignore[assignment]
        return pictures

    def picture(self, row: Row) -> Path | None:
        """The image file of a row; None where the index does not know it.

        Raises:
            UserError: the row does not exist, or its path leaves its root folder.
        """
        row = int(row)
        if not 0 <= row < len(self.rows) or row in self.removed:
            raise UserError(f"{self.path}: has no image {row}")
        place = self.rows.picture(row)
        if place is None:
            return None
        root, name = place
        folders = self.manifest["roots"]
        if root >= len(folders):
            raise UserError(f"{self.path}: row {row} is in folder {root} of {len(folders)}; build the index again")
        file = resolve_image(self.roots[root] if self.roots else Path(), name)
        return file if self.roots else None

    def is_missing(self, row: Row) -> bool:
        """Whether the index knows the image file of a row, and it no longer exists."""
        file = self.picture(row)
        return file is not None and not file.is_file()

    def read_bank(self) -> Bank | None:
        """The bank of queries in the directory; None if there is none.

        Raises:
            UserError: it is damaged.
        """
        return read_bank_file(self.path / FILE)

    def write_bank(self, bank: Bank) -> Path:
        """Write a bank into the directory; returns its file."""
        write_bank_file(self.path / FILE, bank)
        return self.path / FILE
