"""The bank of queries of an index: their vectors, and the nearest image of each.

`bank.json` in the index directory holds both. After a change of the index the vectors stay and the images are searched
again when the bank is next read.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mclip_fairseq.search.engine import Hit, Vectors
from mclip_fairseq.search.index import SearchIndex
from mclip_fairseq.search.languages import encode_texts
from mclip_fairseq.search.query import check_query
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.fields import check_fields, has_type
from mclip_fairseq.storage.files import read_json, read_lines, write_bytes

FILE = "bank.json"
FORMAT = "mclip_fairseq bank of queries"
FIELDS = {"format": str, "version": int, "fingerprint": str, "content": str, "dim": int, "vectors": str}
COLUMNS = {"languages": str, "images": str, "nearest": str, "best": float}
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


def read_labelled(path: Path, index: SearchIndex) -> list[Labelled]:
    """Read lines of `language, tab, query` and, where an image of the index is described, a tab and its id.

    Raises:
        UserError: a line has another form, is not a query, or names an image that is not in the index; too few lines.
    """
    queries = []
    for number, line in enumerate(read_lines(path), 1):
        language, *others = (part.strip() for part in line.split("\t"))
        if not language or len(others) not in (1, 2):
            raise UserError(
                f"{path}, line {number}: is not `language, tab, query`, with a tab and the id of an image where the "
                "query describes one; write it so"
            )
        image = others[1] if len(others) == 2 else ""
        if image and index.find(image) is None:
            raise UserError(f"{path}, line {number}: the index has no image {image!r}; leave the line out")
        try:
            queries.append(Labelled(language, check_query(others[0]), image))
        except UserError as error:
            raise UserError(f"{path}, line {number}: {error}") from error
    if not LEAST <= len(queries) <= MOST:
        raise UserError(f"{path}: holds {len(queries)} queries; give {LEAST} to {MOST}")
    return queries


def encode_labelled(model: Any, queries: Sequence[Labelled]) -> Vectors:
    """(n, dim) float32 vectors of queries, L2-normalised."""
    texts, languages = [query.text for query in queries], [query.language for query in queries]
    vectors: Vectors = encode_texts(model, texts, languages).numpy()
    return vectors


def nearest_others(index: SearchIndex, vectors: Vectors, images: Sequence[str]) -> list[Hit | None]:
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
        nearest: (n,) ids of the nearest images.
        best: (n,) their cosines.
    """

    vectors: Vectors
    languages: npt.NDArray[np.str_]
    images: Sequence[str]
    nearest: Sequence[str]
    best: npt.NDArray[np.float64]


def search_bank(index: SearchIndex, vectors: Vectors, languages: Sequence[str], images: Sequence[str]) -> Bank:
    """Find the nearest images of a bank's queries.

    Raises:
        UserError: the index has no image for a query.
    """
    found = nearest_others(index, vectors, images)
    hits = [hit for hit in found if hit is not None]
    if len(hits) < len(found):
        raise UserError(f"{index.path}: has {len(index)} images, too few to compare queries with; add some")
    best = np.array([hit.score for hit in hits], dtype=np.float64)
    return Bank(vectors, np.array(languages), images, [hit.id for hit in hits], best)


def content_of(index: SearchIndex) -> str:
    """A hash of the images that can be found."""
    files = [index.manifest["files"][name]["sha256"] for name in ("vectors", "rows")]
    return hashlib.sha256(json.dumps([*files, sorted(index.removed)]).encode()).hexdigest()


def write_bank(index: SearchIndex, bank: Bank) -> None:
    """Write a bank into the directory of its index."""
    content = {
        "format": FORMAT,
        "version": 1,
        "fingerprint": index.model["fingerprint"],
        "content": content_of(index),
        "dim": bank.vectors.shape[1],
        "languages": bank.languages.tolist(),
        "images": list(bank.images),
        "nearest": list(bank.nearest),
        "best": bank.best.tolist(),
        "vectors": base64.b64encode(bank.vectors.astype("<f4").tobytes()).decode(),
    }
    write_bytes(index.path / FILE, json.dumps(content, ensure_ascii=False).encode() + b"\n")


def read_bank(index: SearchIndex) -> Bank | None:
    """The bank in the directory of an index; None if there is none.

    Raises:
        UserError: it is damaged, or of another model.
    """
    path = index.path / FILE
    if not path.is_file():
        return None
    content = check_fields(path, read_json(path), FIELDS | dict.fromkeys(COLUMNS, list), AGAIN)
    count, dim = len(content["languages"]), content["dim"]
    columns = all(
        len(content[name]) == count and all(has_type(value, kind) for value in content[name])
        for name, kind in COLUMNS.items()
    )
    try:
        data = base64.b64decode(content["vectors"], validate=True)
    except ValueError:
        data = b""
    sound = (content["format"], content["version"]) == (FORMAT, 1) and LEAST <= count <= MOST and columns
    sound = sound and all(abs(cosine) < 2 for cosine in content["best"])  # also false of NaN
    if not sound or dim < 1 or len(data) != 4 * count * dim or not np.isfinite(np.frombuffer(data, dtype="<f4")).all():
        raise UserError(f"{path}: is damaged, or of another version; {AGAIN}")
    if content["fingerprint"] != index.model["fingerprint"] or dim != index.manifest["dim"]:
        raise UserError(f"{path}: was made with another model than the index; {AGAIN}")
    vectors = np.frombuffer(data, dtype="<f4").reshape(count, dim).astype(np.float32)
    if content["content"] != content_of(index):
        return search_bank(index, vectors, content["languages"], content["images"])
    best = np.array(content["best"], dtype=np.float64)
    return Bank(vectors, np.array(content["languages"]), content["images"], content["nearest"], best)
