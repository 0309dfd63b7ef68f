"""`SearchIndex`: open an index directory and search it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mclip_fairseq.search.files import MANIFEST, Rows, read_manifest, state_of, verified
from mclip_fairseq.search.kinds import CLASSES, Searcher, Vectors, read_index
from mclip_fairseq.search.sources import check_model
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.images import resolve_image


class SearchIndex:
    """An index directory, read-only; open it with `open`.

    Args:
        path: the directory.
        manifest: its checked `index.json`.
        rows: id and picture of each row.
        searcher: the faiss index.
        moved: where the pictures are now, if they have moved.
        state: of the manifest file when it was read.
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
        self.roots = self.moved or [Path(root) for root in manifest["roots"]]

    @classmethod
    def open(cls, path: str | Path, roots: Sequence[Path] = ()) -> SearchIndex:
        """Open an index after comparing the hashes of its files.

        Args:
            path: the directory.
            roots: folders of the pictures where they have moved, one for each that the index knows.

        Raises:
            UserError: it is unfinished, altered, damaged, or knows another number of folders.
        """
        folder = Path(path)
        state = state_of(folder / MANIFEST)
        try:
            return cls._open(folder, roots, state)
        except (ValueError, OSError):
            again = state_of(folder / MANIFEST)
            if again == state:
                raise
            # A change that ended meanwhile has put other files in the place of those that were being read.
            return cls._open(folder, roots, again)

    @classmethod
    def _open(cls, folder: Path, roots: Sequence[Path], state: tuple[int, ...] | None) -> SearchIndex:
        manifest = read_manifest(folder)
        if manifest["kind"] not in CLASSES:
            raise UserError(f"{folder}: is of the kind {manifest['kind']!r}, which this program does not know")
        if roots and len(roots) != len(manifest["roots"]):
            raise UserError(
                f"{folder}: has pictures in {len(manifest['roots'])} folders; repeat --images-root once for each"
            )
        rows = Rows.read(verified(folder, manifest["files"]["rows"]), manifest["rows"])
        file = verified(folder, manifest["files"]["vectors"])
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
        """A short name of what the rows stand for: another one as soon as a row may be another picture."""
        files = [entry["sha256"] for entry in self.manifest["files"].values()]
        return hashlib.sha256("\n".join([*files, *map(os.path.abspath, self.roots)]).encode()).hexdigest()[:12]

    def __len__(self) -> int:
        return self.searcher.alive

    @property
    def model(self) -> dict[str, Any]:
        """Name, hash, identity and origin of the model that made the vectors."""
        found: dict[str, Any] = self.manifest["model"]
        return found

    @cached_property
    def removed(self) -> frozenset[int]:
        """Rows that are never found."""
        return frozenset(self.manifest["removed"])

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Row of each id that is in the index."""
        return {self.rows.id(row): row for row in range(len(self.rows)) if row not in self.removed}

    def check_model(self, model: Any) -> None:
        """Refuse a model whose vectors cannot be compared with those here."""
        check_model(model, self.model, self.path)

    def search(self, queries: Vectors, k: int) -> tuple[Vectors, npt.NDArray[np.int64]]:
        """Cosines and rows of the k nearest, (n, k) each, best first; a row of -1 where fewer were found."""
        return self.searcher(queries, k)

    def picture(self, row: int) -> Path | None:
        """The file of a row's picture; None where the index knows none.

        Raises:
            UserError: there is no such row, or its path leaves its root.
        """
        if not 0 <= row < len(self.rows) or row in self.removed:
            raise UserError(f"{self.path}: has no image {row}")
        known = self.rows.picture(row)
        if known is None:
            return None
        root, name = known
        if root >= len(self.roots):
            raise UserError(f"{self.path}: row {row} names folder {root}, but there are {len(self.roots)}")
        return resolve_image(self.roots[root], name)
