"""The files of a benchmark directory, checked where they are read: names, tables, numbers, languages."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath

from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import read_lines
from mclip_fairseq.storage.self_contained import leads_out

AGAIN = "make the benchmark again with its script of preprocess/"
QUOTED = 40  # characters of a value that is not a number, for messages


def read_table(path: Path, columns: int) -> list[list[str]]:
    """Tab-separated rows.

    Raises:
        UserError: a row has a different number of columns, or the file is empty.
    """
    rows = [line.split("\t") for line in read_lines(path)]
    if not rows:
        raise UserError(f"{path}: is empty; {AGAIN}")
    for number, row in enumerate(rows, 1):
        if len(row) != columns:
            raise UserError(f"{path}, line {number}: has {len(row)} columns instead of {columns}; {AGAIN}")
    return rows


def choose_languages(wanted: Sequence[str] | None, available: Iterable[str], place: Path) -> list[str]:
    """The languages asked for, or all that a benchmark has.

    Args:
        wanted: languages; None for all.
        available: those of the benchmark.
        place: its directory, for messages.

    Raises:
        UserError: one is missing, the benchmark has none, or a name cannot be printed.
    """
    languages = list(available)
    if not languages:
        raise UserError(f"{place}: names no language; {AGAIN}")
    if odd := [language for language in languages if not language.isprintable()]:
        raise UserError(f"{place}: names the language {odd[0]!r}, which cannot be shown; {AGAIN}")
    if missing := [language for language in wanted or () if language not in languages]:
        raise UserError(f"{place}: has no language {missing[0]!r}; choose from {', '.join(languages)}")
    return list(wanted or languages)


def file_below(folder: Path, name: str) -> Path:
    """A file that a manifest names.

    Raises:
        UserError: the name leads out of the folder.
    """
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or not name.isprintable():
        raise UserError(f"{folder}: names the file {name!r}, which is not below it; {AGAIN}")
    return folder / relative


def check_pictures(path: Path) -> None:
    """Check that a benchmark's list of pictures leads nowhere out of the folder that the user names.

    Raises:
        UserError: naming the first line that does.
    """
    for number, line in enumerate(read_lines(path), 1):
        name, tab, file = line.partition("\t")
        if leads_out(file if tab else name):
            raise UserError(
                f"{path}, line {number}: names the picture {file or name!r}, which is not below --images-root; {AGAIN}"
            )


def whole_numbers(path: Path, texts: Sequence[str], below: int) -> list[int]:
    """A column of a table as numbers from 0.

    Args:
        path: the table, for messages.
        texts: one per line.
        below: the first number that is too large; 10^18 at most.

    Raises:
        UserError: naming the first line with anything else.
    """

    def fits(text: str) -> bool:
        return text.isdecimal() and len(text) <= len(str(below)) and int(text) < below

    _check_column(path, texts, fits, f"not a whole number from 0 to {below - 1}")
    return [int(text) for text in texts]


def real_numbers(path: Path, texts: Sequence[str]) -> list[float]:
    """A column of a table as finite numbers.

    Raises:
        UserError: naming the first line with anything else.
    """
    _check_column(path, texts, is_finite_number, "not a finite number")
    return [float(text) for text in texts]


def is_finite_number(text: str) -> bool:
    """Whether a text is a number that can be computed with."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _check_column(path: Path, texts: Sequence[str], fits: Callable[[str], bool], complaint: str) -> None:
    for number, text in enumerate(texts, 1):
        if not fits(text):
            raise UserError(f"{path}, line {number}: {text[:QUOTED]!r} is {complaint}; {AGAIN}")
