"""What every benchmark offers, whatever it measures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from mclip_fairseq.encoding.galleries import Encoder, Gallery
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import read_lines

SHOWN = 40  # characters of what is no number
CAPTIONS = {"all": "every caption of an image", "first": "only the first caption of an image"}


@dataclass(frozen=True)
class Settings:
    """Choices that hold for every model and benchmark of a call.

    Attributes:
        batch_size: captions or images at once.
        protocol: of retrieval, see ``retrieval_ranks``.
        gallery: "captioned": the images that the captions of a language name; "all": also those without a caption.
        captions: "all" captions of an image or the "first".
    """

    batch_size: int = 256
    protocol: str = "strict"
    gallery: str = "captioned"
    captions: str = "all"


class Benchmark(Protocol):
    """Data, and what to do with them.

    Attributes:
        name: for tables.
        kind: "retrieval", "bitext", "similarity" or "classification".
        headline: the metric that stands for a language in a comparison.
        galleries: the images it may be tried on; none for text alone.
        notes: what a reader of the numbers must know, such as leaks.
    """

    name: str
    kind: str
    headline: str
    galleries: Sequence[Gallery]
    notes: Sequence[str]

    def describe(self) -> dict[str, Any]:
        """Files, hashes and counts, for reports and to tell whether a report is of these data."""

    def evaluate(self, model: Encoder, settings: Settings) -> dict[str, Any]:
        """``results``, ``average``, ``confidence`` and whatever else belongs into the report."""


def read_table(path: Path, columns: int) -> list[list[str]]:
    """Tab-separated rows.

    Raises:
        UserError: a row with another number of columns, or none at all.
    """
    rows = [line.split("\t") for line in read_lines(path)]
    for number, row in enumerate(rows, 1):
        if len(row) != columns:
            raise UserError(f"{path} line {number}: has {len(row)} columns instead of {columns}; make the file again.")
    if not rows:
        raise UserError(f"{path}: is empty; make the file again.")
    return rows


def chosen(languages: Sequence[str] | None, there: Mapping[str, Any], place: Path) -> list[str]:
    """The languages asked for, or all that are there.

    Raises:
        UserError: one that is not there, or there are none that can be shown.
    """
    if not there:
        raise UserError(f"{place}: names no language; make the directory again.")
    if odd := [language for language in there if not language.isprintable()]:
        raise UserError(f"{place}: names the language {odd[0]!r}, which cannot be shown; make the directory again.")
    if missing := [language for language in languages or () if language not in there]:
        raise UserError(f"{place}: has no language {missing[0]!r}; it has {', '.join(there)}.")
    return list(languages or there)


def file_below(folder: Path, name: str) -> Path:
    """A file that a manifest names.

    Raises:
        UserError: the name leads out of the folder.
    """
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or not name.isprintable():
        raise UserError(f"{folder}: names the file {name!r}, which is not one below it; make the directory again.")
    return folder / relative


def whole_numbers(path: Path, texts: Sequence[str], below: int) -> list[int]:
    """A column of a table as numbers from 0.

    Args:
        path: the table, for messages.
        texts: one per line.
        below: what all numbers are below, and 10^18 at most.

    Raises:
        UserError: naming the first line with anything else.
    """
    for number, text in enumerate(texts, 1):
        if not (text.isdecimal() and len(text) <= len(str(below)) and int(text) < below):
            raise UserError(
                f"{path} line {number}: {text[:SHOWN]!r} is no whole number from 0 to {below - 1}; make the file again."
            )
    return [int(text) for text in texts]


def real_numbers(path: Path, texts: Sequence[str]) -> list[float]:
    """A column of a table as finite numbers.

    Raises:
        UserError: naming the first line with anything else.
    """
    for number, text in enumerate(texts, 1):
        if not is_finite_number(text):
            raise UserError(f"{path} line {number}: {text[:SHOWN]!r} is no finite number; make the file again.")
    return [float(text) for text in texts]


def is_finite_number(text: str) -> bool:
    """Whether a text is a number that can be computed with."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
