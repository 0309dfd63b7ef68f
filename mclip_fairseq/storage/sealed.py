"""Checkpoint files that are complete or absent, and prove it by a seal.

`torch.save` writes a zip archive, and torch ignores its checksums when it reads one. A sealed file ends with an archive
comment that holds the number of updates and the SHA-256 of everything before it: one file, one rename, and every
program that reads checkpoints still reads it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import shutil
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch

from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import FileIdentity, file_identity
from mclip_fairseq.storage.owners import own_name

logger = logging.getLogger(__name__)

HASH_DIGITS = 64
SEAL = re.compile(rb"mclip_fairseq 1 updates=(\d{12}) sha256=([0-9a-f]{64})\Z")
SEAL_LENGTH = len(b"mclip_fairseq 1 updates=000000000012 sha256=") + HASH_DIGITS
ZIP_END = 22  # bytes of a zip archive's last record, whose last two are the length of the comment
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
HOPELESS = (*NO_ROOM, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
ATTEMPTS = 3
# Files that this process has read completely and found sound.
_sound: set[FileIdentity] = set()


class _SealingStream:
    """A stream for `torch.save` that hashes what passes.

    It holds back the last bytes, the archive's final record: `seal` puts the length of the comment into it.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.digest = stream, hashlib.sha256()
        self.end, self.error = b"", None  # type: tuple[bytes, OSError | None]

    def write(self, data: Any) -> int:
        """Take bytes; torch hides why a write failed, so the reason is kept."""
        view = memoryview(data).cast("B")
        try:
            if len(view) < ZIP_END:
                pending = self.end + bytes(view)
                self._pass(memoryview(pending[:-ZIP_END]))
                self.end = pending[-ZIP_END:]
            else:
                self._pass(memoryview(self.end))
                self._pass(view[:-ZIP_END])
                self.end = bytes(view[-ZIP_END:])
        except OSError as error:
            self.error = error
            raise
        return len(view)

    def flush(self) -> None:
        """Do nothing: the file is flushed once, at its end."""

    def seal(self, updates: int) -> None:
        """Write the end of the archive with the seal as its comment."""
        comment = b"mclip_fairseq 1 updates=%012d sha256=" % updates
        self._pass(memoryview(self.end[:-2] + struct.pack("<H", SEAL_LENGTH) + comment))
        self.stream.write(self.digest.hexdigest().encode())

    def _pass(self, data: memoryview) -> None:
        self.digest.update(data)
        self.stream.write(data)


def save_sealed(state: Any, path: str | Path, updates: int = 0) -> None:
    """Write a checkpoint with its seal: to a temporary file, to the disk, then under its name.

    Args:
        state: what `torch.save` takes.
        path: the checkpoint; an older one of this name remains until the new one is complete.
        updates: parameter updates it holds, which `sealed_updates` reads without loading it.

    Raises:
        UserError: it cannot be written, such as on a full disk; an older file is untouched.
    """

    def write(stream: BinaryIO) -> None:
        sealing = _SealingStream(stream)
        try:
            torch.save(state, cast(IO[bytes], sealing))
        except Exception:
            if sealing.error is not None:
                raise sealing.error from None
            raise
        sealing.seal(updates)

    _place(Path(path), write)


def copy_sealed(source: str | Path, target: str | Path) -> None:
    """Copy a checkpoint so that the target is complete or absent; see `save_sealed`."""

    def write(stream: BinaryIO) -> None:
        with Path(source).open("rb") as original:
            shutil.copyfileobj(original, stream, 1 << 22)

    # A hard link would be cheaper, but overwriting one file in place would then change both.
    _place(Path(target), write)


def _place(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Fill a temporary file beside `path`, flush it to the disk and rename it; retry after a transient fault."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with _temporary(path) as stream:
                write(stream)
            return
        except OSError as error:
            if error.errno in HOPELESS or attempt == ATTEMPTS:
                raise UserError(
                    f"{path}: cannot be written ({error.strerror}); make room or give another directory, and start "
                    "again: earlier checkpoints are untouched"
                ) from error
            logger.warning("%s: attempt %d to write it failed (%s)", path, attempt, error.strerror)
            time.sleep(attempt)


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[BinaryIO]:
    """A new file that replaces `path` at the end, and is removed after an error."""
    temporary = own_name(path)
    try:
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_directory(path.parent)


def _sync_directory(folder: Path) -> None:
    """Flush the names in a directory to the disk, on systems that can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sealed_updates(path: str | Path) -> int | None:
    """Updates that the seal of a file states; None without a seal. Only the end of the file is read."""
    seal = _read_seal(Path(path))
    return None if seal is None else seal[0]


def damage(path: str | Path) -> str:
    """Why a checkpoint file cannot be trusted, in a few words; empty where it can.

    A sealed file is hashed. In another zip archive (of fairseq or an older version) the checksums of its members
    are compared; a file in torch's format before zip archives shows its damage only when it is loaded. A file that this
    process has found sound is not read again while its size, times and inode stay the same.
    """
    path = Path(path)
    began, identity = time.time_ns(), file_identity(path)
    if identity is not None and identity in _sound:
        return ""
    reason = _find_damage(path)
    if not reason and identity is not None and identity.is_settled(began):
        _sound.add(identity)
    return reason


def _find_damage(path: Path) -> str:
    try:
        if path.stat().st_size == 0:
            return "it is empty"
        seal = _read_seal(path)
        if seal is not None:
            return "" if seal[1] == _hash_before_seal(path) else "its bytes are not those that were written"
        with path.open("rb") as stream:
            if not zipfile.is_zipfile(stream):
                return "it is truncated or not a checkpoint" if _starts_like_zip(path) else ""
        with zipfile.ZipFile(path) as archive:
            if archive.comment:
                return "its seal is damaged"
            member = archive.testzip()
            return "" if member is None else f"its part {member} is altered"
    except (OSError, zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError, zlib.error) as error:
        return f"it cannot be read: {error}"


def _starts_like_zip(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(2) == b"PK"


def _read_seal(path: Path) -> tuple[int, str] | None:
    """Updates and hash that the end of a file states."""
    with path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(size - SEAL_LENGTH, 0))
        seal = SEAL.match(stream.read())
    return None if seal is None else (int(seal[1]), seal[2].decode())


def _hash_before_seal(path: Path) -> str:
    """SHA-256 of all bytes but the hash itself."""
    digest, left = hashlib.sha256(), path.stat().st_size - HASH_DIGITS
    with path.open("rb") as stream:
        while left > 0:
            block = stream.read(min(left, 1 << 22))
            if not block:
                break
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()
