"""Plain files: reading and hashing files from any source, and writing files of our own."""

import contextlib
import hashlib
import json
import os
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.owners import own_name

# Text packs 3 to 20 times; a file that is larger than this and packs better than that is a decompression bomb.
BOMB_BYTES, BOMB_RATIO = 64 * 2**20, 200
BLOCK = 2**20
SETTLED_NS = 2_000_000_000


def read_lines(path: str | Path) -> list[str]:
    """Lines of a UTF-8 file, plain or `.gz`, split at line feeds only.

    Raises:
        UserError: the file cannot be read, is not UTF-8, or unpacks to far more than text would.
    """
    path = Path(path)
    try:
        data = unpack(path) if path.suffix == ".gz" else path.read_bytes()
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: is not UTF-8 text (byte {error.start}); convert it first") from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []


def unpack(path: Path) -> bytes:
    """Content of a `.gz` file of one or several members.

    Raises:
        UserError: a decompression bomb.
        OSError, zlib.error: it is damaged.
    """
    packed, parts, size = path.read_bytes(), [], 0
    rest, limit = packed, max(BOMB_BYTES, BOMB_RATIO * len(packed))
    while rest:
        member = zlib.decompressobj(wbits=31)
        while not member.eof:
            parts.append(member.decompress(rest, BLOCK))
            size, rest = size + len(parts[-1]), member.unconsumed_tail
            if size > limit:
                raise UserError(
                    f"{path}: unpacks to more than {limit} bytes from {len(packed)}, which no text does; unpack it "
                    "yourself if you trust it"
                )
            if not (rest or member.eof or parts[-1]):
                raise OSError("the file ends early")
        rest = member.unused_data.lstrip(b"\0")
    return b"".join(parts)


def read_json(path: str | Path) -> Any:
    """The value of a JSON file.

    Raises:
        UserError: it cannot be read, is not JSON, or is nested too deeply.
    """
    try:
        return parse_json(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        UserError: not JSON, or nested too deeply for any honest writer.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise UserError("is nested too deeply") from error


def first_line(error: BaseException) -> str:
    """The message of an exception in one line; its class where it has no message."""
    # A first line that ends in a colon only introduces the next.
    first, *others = str(error).strip().splitlines() or [type(error).__name__]
    return printable(" ".join([first, *others[: first.endswith(":")]]))


def printable(text: str) -> str:
    """A text in one line, without control characters."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def shown(path: str | Path) -> str:
    """A path for a message, with control characters and bytes that are not UTF-8 escaped."""
    return "".join(letter if letter.isprintable() else escaped(letter) for letter in str(path))


def escaped(letter: str) -> str:
    """A character that cannot be printed, as in a string of Python; a byte that is not UTF-8 as in bytes."""
    if "\udc80" <= letter <= "\udcff":  # how Python keeps such a byte of a file name
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return repr(letter)[1:-1]


def fold_name(name: str) -> str:
    """A key that names share if they differ only in case or Unicode form (macOS writes é as e and an accent)."""
    return unicodedata.normalize("NFC", name).casefold()


def similar_name(name: str, names: Iterable[str]) -> str:
    """For a message: that a name differs only in case or Unicode form from an existing one; empty if none does."""
    wanted = fold_name(name)
    similar = next((other for other in names if fold_name(other) == wanted), None)
    return "" if similar is None else f"{similar!a} exists, which differs only in case or Unicode form"


class FileIdentity(NamedTuple):
    """What the file system says of a file: any change to it, including a copy, changes one of these.

    Attributes:
        size: in bytes.
        modified: time of the last change of the content, in ns.
        changed: time of the last change of the content or of the entry, in ns.
        inode: its number.
        device: of the file system.
    """

    size: int
    modified: int
    changed: int
    inode: int
    device: int

    def is_settled(self, began: int) -> bool:
        """Whether a later change would show, for a reading that began at a time in ns.

        File-system clocks are coarse: a file that was written just before could change without a new time.
        """
        return max(self.modified, self.changed) < began - SETTLED_NS


def file_identity(path: Path) -> FileIdentity | None:
    """What the file system says of a file; None if it is missing."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return FileIdentity(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev)


def size_and_time(path: str | Path) -> tuple[int, int] | None:
    """Size in bytes and time of the last change in ns of a file; None if it is missing."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_folder(option: str, folder: Path | None) -> None:
    """Check, before long work, that a directory exists or can be made; nothing is made.

    Args:
        option: that names it, for the message.
        folder: None if the option is not given.

    Raises:
        UserError: a file is in its place, or the directory above is not writable.
    """
    if folder is None:
        return
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.exists(path))
    if not place.is_dir():
        raise UserError(f"{option} {folder}: {place} is a file; give a directory")
    if place != folder.absolute() and not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"{option} {folder}: {place} cannot be written to; give another directory")


@contextlib.contextmanager
def complete_file(path: Path) -> Iterator[BinaryIO]:
    """A stream to a file that is complete or absent: it is on the disk when the context ends.

    Raises:
        OSError: it cannot be written; names the file, which the error of a full disk does not.
    """
    temporary = own_name(path)
    try:
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that it is complete or absent."""
    with complete_file(path) as stream:
        stream.write(content)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object so that its file is complete or absent."""
    write_bytes(path, json_bytes(value, indent=2) + b"\n")


def json_bytes(value: Any, indent: int) -> bytes:
    """JSON in UTF-8; bytes of a file name that are not UTF-8 come back as they were."""
    return json.dumps(value, indent=indent, ensure_ascii=False).encode("utf-8", "backslashreplace")
