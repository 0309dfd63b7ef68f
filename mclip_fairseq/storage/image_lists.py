"""Lists of images: a path a line, or an id, a tab and a path, or a table with a header and further columns."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import read_lines

HEADER = "id\tpath\t"  # how the first line of a table begins
COLUMN = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,17})")  # 64 bits hold it; 007 is a name
NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]{1,2})?")
Value = str | int | float


@dataclass
class ImageList:
    """What a list says.

    Attributes:
        images: (id, file), in the order of the list.
        columns: name -> a value per image, None where the list leaves it empty; a column whose values are all numbers
            holds numbers.
    """

    images: list[tuple[str, Path]] = field(default_factory=list)
    columns: dict[str, list[Value | None]] = field(default_factory=dict)


def read_image_list(path: Path, root: str | Path | None) -> ImageList:
    """Read a list of images.

    Args:
        path: UTF-8; each line is a path, which is also the id, or `id<TAB>path`. A first line that begins with
            `id<TAB>path<TAB>` names further columns, and every line then has a field for each.
        root: folder that relative paths start from; None is the list's own.

    Raises:
        UserError: no images, an empty line, an id that appears twice, or a line of another number of fields.
    """
    lines = read_lines(path)
    names = lines[0].split("\t")[2:] if lines and lines[0].startswith(HEADER) else []
    check_columns(path, names)
    base = Path(path.parent if root is None else root)
    found, texts, first = ImageList(), [list[str]() for _ in names], dict[str, int]()
    for number, line in enumerate(lines[1:] if names else lines, 2 if names else 1):
        name, tab, rest = line.partition("\t")
        file, *values = rest.split("\t") if names else [rest]
        if not name.strip() or (tab and not file.strip()):
            raise UserError(f"{path}, line {number}: names no image; write a path, or an id, a tab and a path")
        if first.setdefault(name, number) != number:
            raise UserError(f"{path}, line {number}: the id {name!r} is already on line {first[name]}")
        if len(values) != len(names):
            raise UserError(
                f"{path}, line {number}: has {len(values) + 1 + bool(tab)} fields, but the header names "
                f"{len(names) + 2}; write a tab between each two, also where a value is empty"
            )
        found.images.append((name, base / (file if tab else name)))
        for column, value in zip(texts, values, strict=True):
            column.append(value.strip())
    if not found.images:
        raise UserError(f"{path}: lists no images")
    found.columns = {name: typed(column) for name, column in zip(names, texts, strict=True)}
    return found


def check_columns(path: Path, names: Sequence[str]) -> None:
    """Check the names of the columns behind id and path.

    Raises:
        UserError: one cannot be the name of a field, or appears twice.
    """
    for name, count in Counter(names).items():
        if not COLUMN.fullmatch(name):
            raise UserError(f"{path}, line 1: {name!r} cannot name a column; use up to 64 letters, digits and _")
        if count > 1 or name in ("id", "path"):
            raise UserError(f"{path}, line 1: names the column {name!r} more than once; name each column once")


def typed(values: Sequence[str]) -> list[Value | None]:
    """The values of a column: whole numbers or numbers if all of them are, otherwise texts; None for empty ones."""
    given = [value for value in values if value]
    kind: type[int] | type[float] | type[str] = str
    if given and all(INTEGER.fullmatch(value) for value in given):
        kind = int
    elif given and all(NUMBER.fullmatch(value) for value in given):
        kind = float
    return [kind(value) if value else None for value in values]
