"""Reading files of others as streams: lines, JSON and tables; every error names the file and the line."""

import bz2
import csv
import gzip
import hashlib
import json
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar, cast

from mclip_fairseq.storage.errors import UserError

MAX_LINE = 16 << 20
MAX_JSON = 256 << 20
# Lists and objects take a hundred bytes each where the file may have three; the largest data set has 1.6 million.
MAX_CONTAINERS = 4_000_000
MAX_HELD = 256 << 20
# Text packs 3 to 20 times, images hardly; what is larger than this and packs better than that is a decompression bomb.
BOMB_BYTES, BOMB_RATIO = 64 << 20, 200
BOM = b"\xef\xbb\xbf"
OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
# RuntimeError is an archive's password, and NotImplementedError, which it includes, a method that is not known.
UNREADABLE = (OSError, EOFError, MemoryError, RuntimeError, lzma.LZMAError, zlib.error, zipfile.BadZipFile)
T = TypeVar("T")


def open_bytes(path: Path) -> Any:
    """A plain, `.gz`, `.bz2` or `.xz` file as a binary stream."""
    return OPENERS.get(path.suffix, open)(path, "rb")


def unreadable(path: Path, error: BaseException) -> ValueError:
    """What to say of a file that the system or its compression refuses."""
    return ValueError(
        f"{path}: cannot be read: {getattr(error, 'strerror', None) or str(error) or type(error).__name__}"
    )


def most_unpacked(path: Path) -> int:
    """Bytes that a compressed file, or an archive, may honestly unpack to."""
    return max(BOMB_BYTES, BOMB_RATIO * path.stat().st_size)


def plain_files(paths: Iterable[Path]) -> None:
    """Refuse what a program that reads plain text cannot read.

    Raises:
        UserError: a file is not there, or is compressed.
    """
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: not found; give a text file")
        if path.suffix in OPENERS:
            raise UserError(f"{path}: is compressed; unpack it first")


def split_lines(stream: Any, name: object) -> Iterator[bytes]:
    """Lines of a binary stream without their ends, split at line feeds only; a byte order mark is no text.

    Raises:
        UserError: a line so long that the file cannot be text.
    """
    number = 0
    while raw := cast(bytes, stream.readline(MAX_LINE + 1)):
        number += 1
        if len(raw) > MAX_LINE:
            raise UserError(f"{name}, line {number}: is longer than {MAX_LINE} bytes; this is no text file")
        yield (raw.removeprefix(BOM) if number == 1 else raw).removesuffix(b"\n").removesuffix(b"\r")


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
    """UTF-8 or an error that names the place."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: is not UTF-8 (byte {error.start + 1} of the line); convert the file") from error


def numbered_lines(path: Path) -> Iterator[tuple[str, str]]:
    """(place, line) of a UTF-8 text file; the place is for messages."""
    for number, raw in enumerate(raw_lines(path), 1):
        place = f"{path}, line {number}"
        yield place, decode(raw, place)


def held_lines(path: Path) -> list[tuple[str, str]]:
    """All `numbered_lines` of a file of moderate size, compressed or not.

    Raises:
        UserError: it is so long that it would fill the memory.
    """
    held, size = [], 0
    for place, line in numbered_lines(path):
        # Of empty lines too, place and object take memory.
        size += len(line) + 100
        if size > MAX_HELD:
            raise UserError(f"{place}: no file of this data set has as many lines; download it again")
        held.append((place, line))
    return held


def open_member(path: Path, name: str) -> Any:
    """A file of a zip archive, in whichever folder of it, as a binary stream.

    Raises:
        UserError: it is not there, or there twice.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (ValueError, *UNREADABLE) as error:
        raise unreadable(path, error) from error
    found = [member for member in archive.namelist() if PurePosixPath(member).name == name]
    if len(found) != 1:
        raise UserError(f"{path}: holds {len(found)} files {name}; give that file itself")
    return archive.open(found[0])


def read_bounded(path: Path, name: str) -> bytes:
    """The content of a file, compressed or not, or of a file in a zip archive, as far as its size is credible.

    Raises:
        UserError: it is not, or the file cannot be read.
    """
    try:
        limit = min(MAX_JSON, most_unpacked(path))
        with open_member(path, name) if path.suffix == ".zip" else open_bytes(path) as stream:
            data = cast(bytes, stream.read(limit + 1))
    except UNREADABLE as error:
        raise unreadable(path, error) from error
    if len(data) > limit:
        raise UserError(f"{path}: is larger than {limit} bytes, which no file of this data set is; download it again")
    return data


def read_json(path: Path, drop: frozenset[str] = frozenset(), name: str = "") -> Any:
    """A JSON file of bounded size.

    Args:
        path: the file, compressed or not, or a zip archive.
        name: of the file in the archive.
        drop: keys that are forgotten wherever they occur, to save memory.

    Raises:
        UserError: unreadable, too large, or not JSON.
    """
    data = read_bounded(path, name)
    if data.count(b"[") + data.count(b"{") > MAX_CONTAINERS:
        raise UserError(f"{path}: has more than {MAX_CONTAINERS} lists and objects, as no file of this data set")

    def keep(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {key: value for key, value in pairs if key not in drop}

    try:
        return json.loads(data.removeprefix(BOM), object_pairs_hook=keep)
    except MemoryError as error:
        raise unreadable(path, error) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not JSON: {error}") from error


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, object) of a file with one JSON object per line; empty lines are passed over."""
    for place, line in numbered_lines(path):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place}: is not JSON: {error}") from error
        if not isinstance(record, dict):
            raise UserError(f"{place}: is no JSON object")
        yield place, record


def member(record: Any, key: str, kind: type[T], place: str) -> T:
    """A value of a JSON object, of the type it must have.

    Raises:
        UserError: there is none, or it is of another type.
    """
    value = record.get(key) if isinstance(record, dict) else None
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"{place}: has no {key!r} of type {kind.__name__}; is this the file that --help names?")
    return value


def fields(path: Path, least: int, delimiter: str = "\t") -> Iterator[tuple[str, list[str]]]:
    """(place, columns) of a table without quotes.

    Raises:
        UserError: a row of fewer columns.
    """
    for place, line in numbered_lines(path):
        row = line.split(delimiter)
        if len(row) < least:
            raise UserError(f"{place}: has {len(row)} columns where {least} are expected")
        yield place, row


def quoted_fields(path: Path, columns: int) -> Iterator[tuple[str, list[str]]]:
    """(place, columns) of a comma separated table with quotes, in which a field may hold line breaks."""
    reader = csv.reader((line + "\n" for _, line in numbered_lines(path)), strict=True)
    try:
        for row in reader:
            place = f"{path}, line {reader.line_num}"
            if len(row) != columns:
                raise UserError(f"{place}: has {len(row)} columns where {columns} are expected")
            yield place, row
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}") from error


def unique(items: Iterable[tuple[str, T]], key: Callable[[T], object], what: str) -> Iterator[tuple[str, T]]:
    """(place, item) pairs as they come.

    Raises:
        UserError: a key that was there before, naming both places.
    """
    first: dict[object, str] = {}
    for place, item in items:
        name = key(item)
        if first.setdefault(name, place) is not place:
            raise UserError(f"{place}: the {what} {name!r} is already at {first[name]}")
        yield place, item


def same_length(sides: Mapping[Path, Sized]) -> int:
    """The length that all lists have.

    Raises:
        UserError: they differ.
    """
    (path, first), *others = sides.items()
    for other, side in others:
        if len(side) != len(first):
            raise UserError(f"{other}: has {len(side)} lines, but {path} has {len(first)}")
    return len(first)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    # mclip_fairseq.storage.files has this too, but importing the plugin imports fairseq: five seconds, 400 MB.
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(path, error) from error
