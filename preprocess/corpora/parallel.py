"""The forms in which parallel text is passed on, as streams of pairs."""

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
            raise UserError(f"{ended}: ends after {number - 1} lines, but {other} goes on; they are not aligned")
        yield RawPair(source, target)


def read_moses(source: Path, target: Path) -> Pairs:
    """Two files of one sentence per line, as OPUS and WMT have them; `.gz`, `.bz2` and `.xz` too."""
    return zip_lines(raw_lines(source), raw_lines(target), (source, target))


def read_zip(path: Path, source: str, target: str) -> Pairs:
    """OPUS's archive of Moses files, read without unpacking: the members that end in the two languages.

    Raises:
        UserError: no archive, or not exactly one such member of each.
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
    """The member of an archive that is in a language: the one that ends in its code, else in the code with a region.

    Raises:
        UserError: there is none, or several.
    """
    endings = {name: name.rpartition(".")[2] for name in names}
    found = [name for name, ending in endings.items() if ending == lang]
    found = found or [name for name, ending in endings.items() if regex.split("[-_]", ending, maxsplit=1)[0] == lang]
    if len(found) != 1:
        several = f" ({', '.join(found)})" if found else ""
        raise UserError(
            f"{path}: has {len(found)} files{several} that end in .{lang}, or .{lang}_XX with a region, where one is "
            "expected; unpack it and give two files to --moses"
        )
    return found[0]


def read_tsv(path: Path, columns: tuple[int, int]) -> Pairs:
    """A table with both sides in one line; columns count from 1.

    Raises:
        UserError: a line has too few columns.
    """
    source, target = columns
    for number, line in enumerate(raw_lines(path), 1):
        row = line.split(b"\t")
        if len(row) < max(columns):
            raise UserError(f"{path}, line {number}: has {len(row)} columns, but --columns names {max(columns)}")
        yield RawPair(row[source - 1], row[target - 1])


def read_sgm(source: Path, target: Path) -> Pairs:
    """WMT's test sets in SGML: the segments of both sides, which must be the same by document and number.

    Raises:
        UserError: they are not, or a file has none.
    """
    count = 0
    for left, right in zip_longest(segments(source), segments(target)):
        if left is None or right is None or left[0] != right[0]:
            shown = [b"none" if side is None else side[0] for side in (left, right)]
            raise UserError(
                f"{target}: the segment after {count} others is {shown[1].decode(errors='replace')}, "
                f"in {source} it is {shown[0].decode(errors='replace')}"
            )
        count += 1
        yield RawPair(left[1], right[1])
    if not count:
        raise UserError(f"{source}: has no <seg id=...>; is it an SGML file of WMT?")


def segments(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """(document and number, text) of each segment; a segment may go over several lines."""
    document, held = b"", b""
    for line in raw_lines(path):
        if found := DOCUMENT.search(line):
            document = found[1].strip()
        held = held + b" " + line if held else line
        for match in SEGMENT.finditer(held):
            yield (
                document + b" " + match[1],
                html.unescape(match[2].decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape"),
            )
        open_at = held.lower().rfind(b"<seg")
        held = held[open_at:] if open_at >= 0 and b"</seg>" not in held[open_at:].lower() else b""


def chunks(name: str, pairs: Pairs, size: int = CHUNK) -> Iterator[Chunk]:
    """Pairs in pieces for the workers."""
    first = 1
    while some := list(islice(pairs, size)):
        yield Chunk(name, first, some)
        first += len(some)


Reader = Callable[[list[Path], tuple[str, str], tuple[int, int]], Pairs]
# Option -> number of its files, and what reads them.
READERS: dict[str, tuple[int, Reader]] = {
    "moses": (2, lambda files, languages, columns: read_moses(files[0], files[1])),
    "zip": (1, lambda files, languages, columns: read_zip(files[0], *languages)),
    "tsv": (1, lambda files, languages, columns: read_tsv(files[0], columns)),
    "sgm": (2, lambda files, languages, columns: read_sgm(files[0], files[1])),
}
