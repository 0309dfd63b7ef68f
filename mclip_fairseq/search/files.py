"""The files of an index directory, and the checks on them.

`index.json` is written last, in one step: the files in use with their hashes, the model, the kind and, until a change,
the recall measured at the build. `vectors-00001.faiss` is the faiss index; `rows-00001.tsv` has the id of each row and,
where its image is known, the number of its root folder and the path below it; `times-00001.tsv` has size and time of
change of each image file that was encoded and, with --hash-images, its SHA-256; `removed-00001.tsv` has the ids of
removed images whose rows are gone. An addition writes the next generation of these files and then removes the old ones;
so does a removal that leaves fewer rows than were removed. `partial/` is where an interrupted build or addition
continues. `bank.json` is optional; see `bank.py`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mclip_fairseq.search.settings import KINDS
from mclip_fairseq.storage import locks
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.fields import check_fields, has_type
from mclip_fairseq.storage.files import file_sha256, json_bytes, read_json, read_lines, write_bytes
from mclip_fairseq.storage.owners import remove_leftovers

logger = logging.getLogger(__name__)
FORMAT = "mclip_fairseq search index"
VERSION = 1
MANIFEST, PARTIAL, LOCK = "index.json", "partial", ".lock"
NO_PERMISSION = "permission denied; ask its owner for read access"
REBUILD = "the index is damaged; build it again"
MAX_EFFORT = 2**31 - 1  # faiss takes an int
ROOT_DIGITS = 9
NUMBER = re.compile(r"-?[0-9]{1,20}")
MANIFEST_FIELDS = {
    "model": dict,
    "factory": str,
    "dim": int,
    "kind": str,
    "rows": int,
    "removed": list,
    "roots": list,
    "generation": int,
    "effort": int | None,
    "recall": dict | None,
    "files": dict,
    "made_by": list,
    "id": str | None,
}
MODEL_FIELDS = {"fingerprint": str, "name": str | None, "load": dict | None}
# Earlier versions wrote where the model is; it is checked, and not used.
LOAD_FIELDS = {"path": str | None, "text_encoder": str | None, "teacher": str | None}
FILES_FIELDS = {"vectors": dict, "rows": dict}
FILE_FIELDS = {"file": str, "sha256": str}


def read_index_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an index directory, with all its fields checked.

    Raises:
        UserError: it is missing, unreadable, of a different version, or damaged.
    """
    check_name(folder)
    path = folder / MANIFEST
    try:
        exists = path.is_file()
    except PermissionError as error:
        raise UserError(f"{folder}: {NO_PERMISSION}") from error
    if not exists:
        unfinished = "its index is not finished; run the mclip-search build that began it again"
        missing = f"is not a search index, it has no {MANIFEST}; create one with mclip-search build"
        raise UserError(f"{folder}: {unfinished if (folder / PARTIAL).is_dir() else missing}")
    try:
        manifest = read_json(path)
    except UserError as error:
        if isinstance(error.__cause__, OSError):  # the file itself may be sound
            raise
        raise UserError(f"{error}; build the index again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{path}: is not the manifest of a search index; build the index again")
    if manifest.get("version") != VERSION:
        raise UserError(
            f"{path}: has version {manifest.get('version')}, but this program reads version {VERSION}; build the index "
            "again, or use the program that wrote it"
        )
    check_fields(path, manifest, MANIFEST_FIELDS, REBUILD)
    check_fields(path, manifest["model"], MODEL_FIELDS, REBUILD)
    check_fields(path, manifest["model"].get("load") or {}, LOAD_FIELDS, REBUILD)
    check_fields(path, manifest["files"], FILES_FIELDS, REBUILD)
    for entry in manifest["files"].values():
        check_fields(path, entry, FILE_FIELDS, REBUILD)
    for name, is_valid in _values(manifest).items():
        if not is_valid:
            raise UserError(f"{path}: {name} has an impossible value; {REBUILD}")
    return {"effort": None, "recall": None} | manifest


def _values(manifest: Mapping[str, Any]) -> dict[str, bool]:
    """Whether the value of each field is possible, once their types are right."""
    return {
        "kind": manifest["kind"] in KINDS,
        "dim": manifest["dim"] > 0,
        "effort": 0 <= (manifest.get("effort") or 0) <= MAX_EFFORT,
        "removed": all(has_type(row, int) and 0 <= row < manifest["rows"] for row in manifest["removed"]),
        "roots": all(isinstance(root, str) for root in manifest["roots"]),
        # File names lead nowhere out of the directory.
        "files": all(Path(entry["file"]).name == entry["file"] for entry in manifest["files"].values()),
    }


def check_name(folder: Path) -> None:
    """Check that faiss can open files in a directory.

    Raises:
        UserError: its path is not UTF-8.
    """
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{folder}: its path is not UTF-8, which faiss needs; rename it, or give another") from error


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Put a manifest into use, in one step, and remove the files of the one before."""
    content = json_bytes({"format": FORMAT, "version": VERSION} | dict(manifest), indent=1)
    write_bytes(folder / MANIFEST, content + b"\n")
    used = {entry["file"] for entry in manifest["files"].values()}
    patterns = ("vectors-*.faiss*", "rows-*.tsv*", "times-*.tsv*", "removed-*.tsv*")
    for old in [path for pattern in patterns for path in folder.glob(pattern)]:
        if old.name not in used:
            old.unlink(missing_ok=True)


def state_of(path: Path) -> tuple[int, ...] | None:
    """Time, inode and size of a file, which change when it is written again; None if it does not exist."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size


def check_index_file(folder: Path, entry: Mapping[str, Any]) -> Path:
    """A file of the index, after comparing its hash with the manifest's.

    Raises:
        UserError: it is missing, unreadable or altered.
    """
    path = folder / entry["file"]
    try:
        sha256 = file_sha256(path) if path.is_file() else None
    except PermissionError as error:
        raise UserError(f"{path}: {NO_PERMISSION}") from error
    if sha256 is None:
        raise UserError(f"{path}: is missing; copy the index completely, or build it again")
    if sha256 != entry["sha256"]:
        raise UserError(f"{path}: is altered or truncated, its hash differs from {MANIFEST}; build the index again")
    return path


class Rows:
    """Id and image of every row, kept as the lines of the file.

    Args:
        lines: `id`, or `id<TAB>root<TAB>path`.
        place: where they come from, for messages.
    """

    def __init__(self, lines: Sequence[str], place: Path) -> None:
        self.lines = list(lines)
        self.place = place

    @classmethod
    def read(cls, path: Path, count: int) -> Rows:
        """Read the file.

        Raises:
            UserError: it does not have `count` lines.
        """
        rows = cls(read_lines(path), path)
        if len(rows) != count:
            raise UserError(f"{path}: has {len(rows)} lines for {count} rows; build the index again")
        return rows

    def __len__(self) -> int:
        return len(self.lines)

    def id(self, row: int) -> str:
        """The id of a row."""
        return self.lines[row].partition("\t")[0]

    def picture(self, row: int) -> tuple[int, str] | None:
        """Number of the root folder, and the path below it; None where no image is known.

        Lines are parsed when they are asked for: an index of millions opens without splitting them all.

        Raises:
            UserError: the line is damaged.
        """
        fields = self.lines[row].split("\t", 2)
        if len(fields) == 1:
            return None
        if len(fields) != 3 or not fields[1].isdecimal() or len(fields[1]) > ROOT_DIGITS:
            raise UserError(f"{self.place}, line {row + 1}: {REBUILD}")
        return int(fields[1]), fields[2]

    def write(self, folder: Path, generation: int) -> dict[str, str]:
        """Write the file of a generation; returns its entry of the manifest."""
        return _write_lines(folder, f"rows-{generation:05d}.tsv", self.lines)


# Size in bytes, time of the last change in ns and, if it was asked for, SHA-256; None where unknown.
Time = tuple[int, int] | tuple[int, int, str] | None
HASH = re.compile(r"[0-9a-f]{64}")


def write_times(folder: Path, generation: int, times: Sequence[Time]) -> dict[str, str]:
    """Write sizes and times of the image files of a generation; returns the file's entry of the manifest."""
    return _write_lines(folder, f"times-{generation:05d}.tsv", ("\t".join(map(str, time or ())) for time in times))


def write_ids(folder: Path, generation: int, names: Sequence[str]) -> dict[str, str]:
    """Write the ids that were removed before a generation; returns the file's entry of the manifest."""
    return _write_lines(folder, f"removed-{generation:05d}.tsv", names)


def _write_lines(folder: Path, name: str, lines: Iterable[str]) -> dict[str, str]:
    content = "".join(f"{line}\n" for line in lines).encode()
    write_bytes(folder / name, content)
    return {"file": name, "sha256": hashlib.sha256(content).hexdigest()}


def read_times(path: Path, count: int) -> list[Time]:
    """Read what `write_times` wrote.

    Raises:
        UserError: it does not have `count` lines of two numbers each, which a hash may follow, or of none.
    """
    times = [_read_time(line) for line in read_lines(path)]
    if len(times) != count or False in times:
        raise UserError(f"{path}: does not have a size and a time for {count} rows; {REBUILD}")
    return [time or None for time in times]


def _read_time(line: str) -> Time | Literal[False]:
    """A line of what `write_times` writes; False for any other."""
    if not line:
        return None
    size, changed, hashed, *others = [*line.split("\t"), "", ""]
    sound = NUMBER.fullmatch(size) and NUMBER.fullmatch(changed) and not any(others)
    if not sound or (hashed and not HASH.fullmatch(hashed)):
        return False
    return (int(size), int(changed), hashed) if hashed else (int(size), int(changed))


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from changing the directory meanwhile; it is created if it does not exist.

    Raises:
        UserError: another process is changing it, or it cannot be written to.
    """
    check_name(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = locks.open_own(folder / LOCK)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{folder}: is a file, or below one; give a directory") from error
    except OSError as error:
        reason = f"cannot be written to: {error.strerror}; ask its owner for write access, or use another directory"
        raise UserError(f"{folder}: {reason}") from error
    try:
        taken = locks.take(fcntl.flock, handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if taken is None:
            logger.warning("%s: its file system has no locks, so do not change this index twice at a time", folder)
        elif not taken:
            raise UserError(f"{folder}: another mclip-search is changing this index; wait until it has finished")
        for place in (folder, folder / PARTIAL):
            remove_leftovers(place)
        yield
    finally:
        os.close(handle)
