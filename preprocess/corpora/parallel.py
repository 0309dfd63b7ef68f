"""The formats in which parallel text is distributed, as streams of pairs."""

import html
import zipfile
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, zip_longest
from pathlib import Path

import regex

from corpora.files import UNREADABLE, raw_lines, split_lines, unreadable
from corpora.filters import Chunk, RawPair
from mclip_fairseq.storage.errors import UserError

CHUNK = 2000
Pairs = Iterator[RawPair]
SEGMENT = regex.compile(rb"<seg\b[^>]*?\bid\s*=\s*[\"']?([^\"'\s>]+)[^>]*>(.*?)</seg>", regex.DOTALL | regex.IGNORECASE)
DOCUMENT = regex.compile(rb"<doc\b[^>]*?\bdocid\s*=\s*[\"']?([^\"'>]+)", regex.IGNORECASE)


def zip_lines(left: Iterable[bytes], right: Iterable[bytes], names: tuple[object, object]) -> Pairs:
    """Line by line.

    Raises:
        UserError: one side ends before the other.
    """
    for number, (source, target) in enumerate(zip_longest(left, right), 1):
        if source is None or target is None:
            ended, other = names if source is None else names[::-1]
            raise UserError(
                f"{ended}: ends after {number - 1} lines, but {other} continues; the two files are not aligned"
            )
        yield RawPair(source, target)


def read_moses(source: Path, target: Path) -> Pairs:
    """Two files of one sentence per line, as from OPUS and WMT; `.gz`, `.bz2` and `.xz` too."""
    return zip_lines(raw_lines(source), raw_lines(target), (source, target))


def read_zip(path: Path, source: str, target: str) -> Pairs:
    """OPUS's archive of Moses files, read without unpacking: the members whose names end in the two languages.

    Raises:
        UserError: not an archive, or not exactly one such member per language.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [member_of(path, archive.namelist(), lang) for lang in (source, target)]
            left, right = (f"{path}:{name}" for name in names)
            with archive.open(names[0]) as first, archive.open(names[1]) as second:
                yield from zip_lines(split_lines(first, left), split_lines(second, right), (left, right))
    except UNREADABLE as error:
        raise unreadable(path, error) from error


def member_of(path: Path, names: list[str], lang: str) -> str:
    """The member of an archive in a language: its name ends in the code, else in the code with a region.

    Raises:
        UserError: there are none or several.
    """
    endings = {name: name.rpartition(".")[2] for name in names}
    members = [name for name, ending in endings.items() if ending == lang]
    members = members or [
        name for name, ending in endings.items() if regex.split("[-_]", ending, maxsplit=1)[0] == lang
    ]
    if len(members) != 1:
        several = f" ({', '.join(members)})" if members else ""
        raise UserError(
            f"{path}: has {len(members)} files{several} that end in .{lang}, or .{lang}_XX with a region, but one is "
            "expected; unpack it and give two files to --moses"
        )
    return members[0]


def read_columns(path: Path, columns: tuple[int, int]) -> Pairs:
    """Two columns of a table, counted from 1.

    Raises:
        UserError: a line has too few columns.
    """
    source, target = columns
    for number, line in enumerate(raw_lines(path), 1):
        row = line.split(b"\t")
        if len(row) < max(columns):
            raise UserError(f"{path}, line {number}: has {len(row)} columns, but --columns names column {max(columns)}")
        yield RawPair(row[source - 1], row[target - 1])


def read_sgm(source: Path, target: Path) -> Pairs:
    """WMT's test sets in SGML: the segments of both sides, which must agree in document and number.

    Raises:
        UserError: they differ, or a file has none.
    """
    count = 0
    for left, right in zip_longest(segments(source), segments(target)):
        if left is None or right is None or left[0] != right[0]:
            names = [(b"none" if side is None else side[0]).decode(errors="replace") for side in (left, right)]
            raise UserError(
                f"{target}: the segment after {count} others is {names[1]}, but in {source} it is {names[0]}; give "
                "the two "
                "sides of one test set"
            )
        count += 1
        yield RawPair(left[1], right[1])
    if not count:
        raise UserError(f"{source}: has no <seg id=...>; check that it is an SGML file of WMT")


def segments(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """(document and number, text) of each segment; a segment may span several lines."""
    document, pending = b"", b""
    for line in raw_lines(path):
        if match := DOCUMENT.search(line):
            document = match[1].strip()
        pending = pending + b" " + line if pending else line
        for match in SEGMENT.finditer(pending):
            yield (
                document + b" " + match[1],
                html.unescape(match[2].decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape"),
            )
        # Keep only a segment that is still open.
        start = pending.lower().rfind(b"<seg")
        pending = pending[start:] if start >= 0 and b"</seg>" not in pending[start:].lower() else b""


def chunks(name: str, pairs: Pairs, size: int = CHUNK) -> Iterator[Chunk]:
    """Group pairs into chunks for the workers."""
    first = 1
    while some := list(islice(pairs, size)):
        yield Chunk(name, first, some)
        first += len(some)


Reader = Callable[[list[Path], tuple[str, str], tuple[int, int]], Pairs]
# Option -> number of its files, and their reader.
READERS: dict[str, tuple[int, Reader]] = {
    "moses": (2, lambda files, languages, columns: read_moses(files[0], files[1])),
    "zip": (1, lambda files, languages, columns: read_zip(files[0], *languages)),
    "tsv": (1, lambda files, languages, columns: read_columns(files[0], columns)),
    "sgm": (2, lambda files, languages, columns: read_sgm(files[0], files[1])),
}
