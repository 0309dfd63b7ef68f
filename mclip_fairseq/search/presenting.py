"""What the page shows: hits, sample pictures, captions."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from mclip_fairseq.encoding.captions import check_lines
from mclip_fairseq.search.engine import Hit, Index
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import read_lines

SAMPLES = 12  # pictures on the start screen


@dataclass(frozen=True)
class Extras:
    """What the page shows besides hits, and how it judges them.

    Attributes:
        examples: (language, text) of queries for the start screen.
        captions: image id -> caption.
        fit: least fit of a hit that fits well; None is the default of `Calibration`.
        hubs: whether hubs are corrected.
    """

    examples: Sequence[tuple[str, str]] = ()
    captions: Mapping[str, str] = field(default_factory=dict)
    fit: float | None = None
    hubs: bool = False


def read_extras(examples: Path | None, captions: Path | None, fit: float | None = None, hubs: bool = False) -> Extras:
    """Read files of lines `language, tab, query` and `image id, tab, caption`.

    Args:
        examples: file of queries.
        captions: file of captions.
        fit: see `Extras`.
        hubs: see `Extras`.

    Raises:
        UserError: naming the line that has another form.
    """
    queries = [] if examples is None else read_pairs(examples, "language, tab, query")
    known: dict[str, str] = {}
    for name, caption in [] if captions is None else read_pairs(captions, "image id, tab, caption"):
        known.setdefault(name, caption)
    return Extras(queries, known, fit, hubs)


def read_pairs(path: Path, columns: str) -> list[tuple[str, str]]:
    """Read lines of two columns.

    Args:
        path: the file.
        columns: what they are, for the message.

    Raises:
        UserError: naming the line that has another form.
    """
    pairs, lines = [], read_lines(path)
    check_lines(path, lines)
    for number, line in enumerate(lines, 1):
        first, tab, second = line.partition("\t")
        if not (tab and first.strip() and second.strip()):
            raise UserError(f"{path}, line {number}: is not `{columns}`; write both with a tab between them")
        pairs.append((first.strip(), " ".join(second.split())))
    return pairs


def hits_as_json(index: Index, hits: Sequence[Hit], captions: Mapping[str, str]) -> list[dict[str, Any]]:
    """Hits as the page shows them."""
    return [
        {"picture": f"{index.stamp}/{index.address(hit.row)}", "id": hit.id, "score": round(hit.score, 4)}
        | ({} if hit.fit is None else {"fit": round(hit.fit, 4)})
        | ({"caption": captions[hit.id]} if hit.id in captions else {})
        | ({"copies": hit.copies} if hit.copies else {})
        | ({"missing": True} if index.is_missing(hit.row) else {})
        for hit in hits
    ]


def sample_pictures(index: Index) -> list[dict[str, str]]:
    """Pictures for the start screen, spread evenly over the index."""
    return [
        {"picture": f"{index.stamp}/{index.address(row)}", "id": index.id_of(row)}
        for row in index.samples(SAMPLES)
        if index.picture(row) is not None and not index.is_missing(row)
    ]


def as_jpeg(image: Image.Image, size: int) -> bytes:
    """An image as JPEG, with edges of at most `size` pixels."""
    if max(image.size) > size:
        image = ImageOps.contain(image, (size, size))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=88)
    return stream.getvalue()
