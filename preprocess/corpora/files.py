"""Streaming readers for downloads: lines, JSON and tables of bounded memory; every error names the file and line."""

import bz2
import csv
import gzip
import json
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar, cast

from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.fields import has_type
from mclip_fairseq.storage.files import BOMB_BYTES, BOMB_RATIO

MAX_LINE = 16 << 20
MAX_JSON = 256 << 20
# A list or object takes a hundred bytes of memory but as few as three in the file; the largest data set has 1.6
# million.
MAX_CONTAINERS = 4_000_000
MAX_LOADED = 256 << 20
BOM = b"\xef\xbb\xbf"
UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
# zipfile raises RuntimeError for encrypted archives and its subclass NotImplementedError for unknown methods.
UNREADABLE = (OSError, EOFError, MemoryError, RuntimeError, lzma.LZMAError, zlib.error, zipfile.BadZipFile)
T = TypeVar("T")


def open_bytes(path: Path) -> Any:
    """Open a plain, `.gz`, `.bz2` or `.xz` file as a binary stream."""
    return OPENERS.get(path.suffix, open)(path, "rb")


def unreadable(path: Path, error: BaseException) -> UserError:
    """The error for a file that the system or its compression cannot read."""
    return UserError(
        f"{path}: cannot be read: {getattr(error, 'strerror', None) or str(error) or type(error).__name__}"
    )


def unpacked_limit(path: Path) -> int:
    """Bytes that a compressed file or an archive may unpack to before it counts as a decompression bomb."""
    return max(BOMB_BYTES, BOMB_RATIO * path.stat().st_size)


def check_plain_files(paths: Iterable[Path]) -> None:
    """Check the input of a program that reads plain text.

    Raises:
        UserError: a file is missing or compressed.
    """
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: not found; give a text file")
        if path.suffix in OPENERS:
            raise UserError(f"{path}: is compressed; unpack it first")


def split_lines(stream: Any, name: object) -> Iterator[bytes]:
    """Lines of a binary stream without line ends or byte order mark, split at line feeds only.

    Raises:
        UserError: a line is too long for a text file, or the file has old Macintosh line ends.
    """
    number = 0
    while raw := cast(bytes, stream.readline(MAX_LINE + 1)):
        number += 1
        if len(raw) > MAX_LINE:
            raise UserError(f"{name}, line {number}: is longer than {MAX_LINE} bytes; check that it is a text file")
        line = (raw.removeprefix(BOM) if number == 1 else raw).removesuffix(b"\n").removesuffix(b"\r")
        # A file without a single line feed would otherwise count as one line, one long caption.
        if number == 1 and b"\r" in line and not raw.endswith(b"\n"):
            raise UserError(
                f"{name}, line 1: has carriage returns but no line feeds; convert the line ends to Unix ones"
            )
        yield line


def raw_lines(path: Path) -> Iterator[bytes]:
    """`split_lines` of a file, compressed or not.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with open_bytes(path) as stream:
            yield from split_lines(stream, path)
    except UNREADABLE as error:
        raise unreadable(path, error) from error


def decode(raw: bytes, place: str) -> str:
    """Decode UTF-8.

    Raises:
        UserError: naming the place.
    """
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        if raw.startswith(UTF16_BOMS):
            raise UserError(f"{place}: is not UTF-8 but UTF-16; convert the file") from error
        raise UserError(f"{place}: is not UTF-8 (byte {error.start + 1} of the line); convert the file") from error


def numbered_lines(path: Path) -> Iterator[tuple[str, str]]:
    """(place, line) of a UTF-8 text file; the place is for messages."""
    for number, raw in enumerate(raw_lines(path), 1):
        place = f"{path}, line {number}"
        yield place, decode(raw, place)


@dataclass(frozen=True)
class RawChunk:
    """Consecutive lines of a text file, for one worker.

    Attributes:
        path: the file, for messages.
        first: number of the first line.
        lines: not decoded yet, without line ends.
    """

    path: Path
    first: int
    lines: list[bytes]

    def texts(self) -> list[str]:
        """The lines as text.

        Raises:
            UserError: naming the line that is not UTF-8.
        """
        try:
            return b"\n".join(self.lines).decode().split("\n")
        except UnicodeDecodeError:
            return [decode(raw, f"{self.path}, line {number}") for number, raw in enumerate(self.lines, self.first)]


def raw_chunks(path: Path, size: int) -> Iterator[RawChunk]:
    """Group the `raw_lines` of a file into chunks for the workers."""
    lines, first = raw_lines(path), 1
    while some := list(islice(lines, size)):
        yield RawChunk(path, first, some)
        first += len(some)


def load_lines(path: Path) -> list[tuple[str, str]]:
    """All `numbered_lines` of a file, compressed or not.

    Raises:
        UserError: they would fill the memory.
    """
    lines, size = [], 0
    for place, line in numbered_lines(path):
        # An empty line costs memory too: its place and its objects.
        size += len(line) + 100
        if size > MAX_LOADED:
            raise UserError(f"{place}: no file of this dataset has this many lines; download it again")
        lines.append((place, line))
    return lines


def open_member(path: Path, name: str) -> Any:
    """Open a file of a zip archive as a binary stream, in whichever folder of the archive it is.

    Raises:
        UserError: the archive does not hold exactly one such file.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (ValueError, *UNREADABLE) as error:
        raise unreadable(path, error) from error
    members = [member for member in archive.namelist() if PurePosixPath(member).name == name]
    if len(members) != 1:
        raise UserError(f"{path}: holds {len(members)} files {name}; give that file itself")
    return archive.open(members[0])


def read_bounded(path: Path, name: str) -> bytes:
    """Read a file, compressed or not, or a file of a zip archive.

    Raises:
        UserError: the file cannot be read, or is larger than any file of these datasets.
    """
    try:
        limit = min(MAX_JSON, unpacked_limit(path))
        with open_member(path, name) if path.suffix == ".zip" else open_bytes(path) as stream:
            data = cast(bytes, stream.read(limit + 1))
    except UNREADABLE as error:
        raise unreadable(path, error) from error
    if len(data) > limit:
        raise UserError(
            f"{path}: is larger than {limit} bytes; no file of this dataset is that large; download it again"
        )
    return data


def read_large_json(path: Path, drop: frozenset[str] = frozenset(), name: str = "") -> Any:
    """Read a JSON file of bounded size.

    `mclip_fairseq.storage.files.read_json` is for small files that this project wrote itself.

    Args:
        path: the file, compressed or not, or a zip archive.
        drop: keys to forget wherever they occur, to save memory.
        name: of the file in the archive.

    Raises:
        UserError: the file cannot be read, is too large, or is not JSON.
    """
    data = read_bounded(path, name)
    if data.count(b"[") + data.count(b"{") > MAX_CONTAINERS:
        raise UserError(
            f"{path}: has more than {MAX_CONTAINERS:,} lists and objects; no file of this dataset is that large; "
            "download it again"
        )

    def keep(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {key: value for key, value in pairs if key not in drop}

    try:
        return json.loads(data.removeprefix(BOM), object_pairs_hook=keep)
    except MemoryError as error:
        raise unreadable(path, error) from error
    except (ValueError, RecursionError) as error:  # ValueError also for integers of thousands of digits
        raise UserError(f"{path}: is not JSON: {error}") from error


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, object) of a file with one JSON object per line; empty lines are skipped."""
    for place, line in numbered_lines(path):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place}: is not JSON: {error}") from error
        if not isinstance(record, dict):
            raise UserError(f"{place}: is not a JSON object")
        yield place, record


def require(record: Any, key: str, kind: type[T], place: str) -> T:
    """A value of a JSON object.

    Raises:
        UserError: the object lacks it, or it has a different type.
    """
    value = record.get(key) if isinstance(record, dict) else None
    if not has_type(value, kind):
        raise UserError(f"{place}: has no {key!r} of type {kind.__name__}; check that this is the file --help names")
    return cast(T, value)


def table_rows(path: Path, columns: int, delimiter: str = "\t") -> Iterator[tuple[str, list[str]]]:
    """(place, columns) of a table without quotes.

    Raises:
        UserError: a row has too few columns.
    """
    for place, line in numbered_lines(path):
        row = line.split(delimiter)
        if len(row) < columns:
            raise UserError(f"{place}: has {len(row)} columns; at least {columns} are expected")
        yield place, row


def csv_rows(path: Path, columns: int | None, delimiter: str = ",") -> Iterator[tuple[str, list[str]]]:
    """(place, columns) of a table with quotes, in which a field may hold line breaks; empty lines are skipped.

    Args:
        path: the file.
        columns: of every row; None for as many as the first row has.
        delimiter: between columns.

    Raises:
        UserError: a row has a different number of columns, or its quotes are wrong.
    """
    reader = csv.reader((line + "\n" for _, line in numbered_lines(path)), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            place = f"{path}, line {reader.line_num}"
            if not row:
                continue
            columns = len(row) if columns is None else columns
            if len(row) != columns:
                raise UserError(f"{place}: has {len(row)} columns; {columns} are expected")
            yield place, row
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}") from error


def unique(items: Iterable[tuple[str, T]], key: Callable[[T], object], what: str) -> Iterator[tuple[str, T]]:
    """Pass (place, item) pairs through.

    Raises:
        UserError: a key occurs twice; the message names both places.
    """
    first: dict[object, str] = {}
    for place, item in items:
        name = key(item)
        if first.setdefault(name, place) is not place:
            raise UserError(f"{place}: the {what} {name!r} is already at {first[name]}")
        yield place, item


def check_same_length(sides: Mapping[Path, Sized]) -> int:
    """The length that all lists share.

    Raises:
        UserError: they differ.
    """
    (path, first), *others = sides.items()
    for other, side in others:
        if len(side) != len(first):
            raise UserError(f"{other}: has {len(side)} lines, but {path} has {len(first)}")
    return len(first)
