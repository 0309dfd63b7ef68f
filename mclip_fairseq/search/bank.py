"""The bank of queries of an index: their vectors, and the nearest image of each.

Both are kept with the index (`bank_files`). After a change of the index the vectors stay, and the images are searched
again when the bank is next read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mclip_fairseq.encoding.captions import check_lines
from mclip_fairseq.search.engine import Hit, Index, Vectors
from mclip_fairseq.search.languages import encode_texts
from mclip_fairseq.search.query import check_query
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import read_lines

AGAIN = "run mclip-search calibrate again"
LEAST, MOST = 20, 10_000  # queries of a bank
AT_ONCE = 1024


@dataclass(frozen=True)
class Labelled:
    """A query of a bank or of a test.

    Attributes:
        language: its code.
        text: the query.
        image: id of the image of the index that it describes; empty if there is none.
    """

    language: str
    text: str
    image: str = ""


def read_labelled(path: Path, index: Index) -> list[Labelled]:
    """Read lines of `language, tab, query` and, where an image of the index is described, a tab and its id.

    Raises:
        UserError: a line has another form, is not a query, or names an image that is not in the index; too few lines.
    """
    queries, lines = [], read_lines(path)
    check_lines(path, lines)
    for number, line in enumerate(lines, 1):
        language, *others = (part.strip() for part in line.split("\t"))
        if not language or len(others) not in (1, 2):
            raise UserError(
                f"{path}, line {number}: is not `language, tab, query`, with a tab and the id of an image where the "
                "query describes one; write it so"
            )
        try:
            queries.append(Labelled(language, check_query(others[0]), others[1] if len(others) == 2 else ""))
        except UserError as error:
            raise UserError(f"{path}, line {number}: {error}") from error
    if not LEAST <= len(queries) <= MOST:
        raise UserError(f"{path}: holds {len(queries)} queries; give {LEAST} to {MOST}")
    known = index.known([query.image for query in queries if query.image])
    for number, query in enumerate(queries, 1):
        if query.image and query.image not in known:
            raise UserError(f"{path}, line {number}: the index has no image {query.image!r}; leave the line out")
    return queries


def encode_labelled(model: Any, queries: Sequence[Labelled]) -> Vectors:
    """(n, dim) float32 vectors of queries, L2-normalised."""
    texts, languages = [query.text for query in queries], [query.language for query in queries]
    vectors: Vectors = encode_texts(model, texts, languages).numpy()
    return vectors


def nearest_others(index: Index, vectors: Vectors, images: Sequence[str]) -> list[Hit | None]:
    """The nearest image of each query that is not its own; None where the index has no other."""
    found: list[Hit | None] = []
    for start in range(0, len(vectors), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        for hits, own in zip(index.hits(vectors[part], 2), images[part], strict=True):
            found.append(next((hit for hit in hits if hit.id != own), None))
    return found


@dataclass(frozen=True)
class Bank:
    """Queries and what they find in an index.

    Attributes:
        vectors: (n, dim) float32, L2-normalised.
        languages: (n,) codes.
        images: (n,) ids of the images that they describe, which do not count as found; empty where there is none.
        nearest: (n,) ids of the nearest images; empty where the index has no other.
        best: (n,) their cosines; -1 where the index has no other.
        fingerprint: of the model of the vectors.
        content: of the index that was searched.
    """

    vectors: Vectors
    languages: npt.NDArray[np.str_]
    images: Sequence[str]
    nearest: Sequence[str]
    best: npt.NDArray[np.float64]
    fingerprint: str = ""
    content: str = ""


def search_bank(index: Index, vectors: Vectors, languages: Sequence[str], images: Sequence[str]) -> Bank:
    """Find the nearest images of a bank's queries."""
    found = nearest_others(index, vectors, images)
    nearest = [hit.id if hit else "" for hit in found]
    best = np.array([hit.score if hit else -1.0 for hit in found], dtype=np.float64)
    return Bank(vectors, np.array(languages), images, nearest, best, index.model["fingerprint"], index.content)


def read_bank(index: Index) -> Bank | None:
    """The bank of an index, with the nearest of its present images; None if it has none.

    Raises:
        UserError: it is damaged, or of another model.
    """
    bank = index.read_bank()
    if bank is None:
        return None
    if bank.fingerprint != index.model["fingerprint"] or bank.vectors.shape[1] != index.dim:
        raise UserError(f"{index.path}: its bank of queries was made with another model; {AGAIN}")
    if bank.content == index.content:
        return bank
    return search_bank(index, bank.vectors, bank.languages.tolist(), bank.images)
