"""What an index directory holds, and the checks on it.

`index.json` is written last, in one step: what is in use with hashes, the model, the kind and, until a change, the
recall measured at the build. `vectors-00001.faiss` is the faiss index; `rows-00001.tsv` has per row the id and, where
its picture is known, the number of its root and the path below it. An addition writes the next number and then removes
the old one; so does a removal after which most rows would be dead. `partial/` is what an interrupted build or addition
goes on from.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import file_sha256, read_json, read_lines, write_bytes

FORMAT = "mclip_fairseq search index"
VERSION = 1
MANIFEST, PARTIAL, LOCK = "index.json", "partial", ".lock"
NO_PERMISSION = "you have no permission to read it; ask its owner for it"
MOST_EFFORT = 2**31 - 1  # that faiss can be given
ROOT_DIGITS = 9
MANIFEST_KEYS = {
    "model": dict,
    "factory": str,
    "dim": int,
    "kind": str,
    "rows": int,
    "removed": list,
    "roots": list,
    "generation": int,
    "files": dict,
    "made_by": list,
}


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an index directory.

    Raises:
        UserError: it is missing, unreadable, of another version, or damaged.
    """
    path = folder / MANIFEST
    try:
        found = path.is_file()
    except PermissionError as error:
        raise UserError(f"{folder}: {NO_PERMISSION}") from error
    if not found:
        unfinished = "its index is not finished; repeat the mclip-search build that began it"
        missing = f"is not a search index, it has no {MANIFEST}; make one with mclip-search build"
        raise UserError(f"{folder}: {unfinished if (folder / PARTIAL).is_dir() else missing}")
    try:
        manifest = read_json(path)
    except ValueError as error:
        if isinstance(error.__cause__, OSError):  # it may be sound
            raise
        raise UserError(f"{error}; build the index again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{path}: is not the manifest of a search index")
    if manifest.get("version") != VERSION:
        raise UserError(
            f"{path}: has version {manifest.get('version')}, but this program reads version {VERSION}; build the index "
            "again, or use the program that wrote it"
        )
    wrong = [name for name, kind in MANIFEST_KEYS.items() if not isinstance(manifest.get(name), kind)]
    if wrong or not _is_sound(manifest):
        raise UserError(f"{path}: is damaged ({', '.join(wrong) or 'files or rows'}); build the index again")
    return manifest


def _is_sound(manifest: Mapping[str, Any]) -> bool:
    """Files are names inside the directory, rows exist, roots are paths."""
    names = [manifest["files"].get(part) for part in ("vectors", "rows")]
    return (
        all(isinstance(entry, dict) and isinstance(entry.get("sha256"), str) for entry in names)
        and all(isinstance(entry.get("file"), str) and Path(entry["file"]).name == entry["file"] for entry in names)
        and all(type(row) is int and 0 <= row < manifest["rows"] for row in manifest["removed"])
        and all(isinstance(root, str) for root in manifest["roots"])
        and isinstance(manifest["model"].get("fingerprint"), str)
        and isinstance(manifest["model"].get("load"), dict)
        and all(isinstance(value, str | None) for value in manifest["model"]["load"].values())
        and isinstance(manifest.get("effort"), int | None)
        and 0 <= (manifest.get("effort") or 0) <= MOST_EFFORT
        and manifest["dim"] > 0
    )


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Put a manifest into use, in one step, and remove the files of the one before."""
    content = json.dumps({"format": FORMAT, "version": VERSION} | dict(manifest), indent=1, ensure_ascii=False)
    write_bytes(folder / MANIFEST, content.encode() + b"\n")
    used = {entry["file"] for entry in manifest["files"].values()}
    for old in [*folder.glob("vectors-*.faiss*"), *folder.glob("rows-*.tsv*")]:
        if old.name not in used:
            old.unlink(missing_ok=True)


def state_of(path: Path) -> tuple[int, ...] | None:
    """What tells cheaply that a file was written again; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size


def verified(folder: Path, entry: Mapping[str, Any]) -> Path:
    """A file of the index, after its hash was compared.

    Raises:
        UserError: it is missing, unreadable or altered.
    """
    path = folder / entry["file"]
    if not path.is_file():
        raise UserError(f"{path}: is missing; copy the index completely, or build it again")
    try:
        found = file_sha256(path)
    except PermissionError as error:
        raise UserError(f"{path}: {NO_PERMISSION}") from error
    if found != entry["sha256"]:
        raise UserError(f"{path}: is altered or truncated, its hash is not that of {MANIFEST}; build the index again")
    return path


class Rows:
    """Id and picture of every row, kept as the lines of the file.

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
            UserError: it has another number of lines.
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
        """Number of the root, and the path below it; None where no picture is known.

        Raises:
            UserError: the line is damaged.
        """
        fields = self.lines[row].split("\t", 2)
        if len(fields) == 1:
            return None
        if len(fields) != 3 or not fields[1].isdecimal() or len(fields[1]) > ROOT_DIGITS:
            raise UserError(f"{self.place}, line {row + 1}: is damaged; build the index again")
        return int(fields[1]), fields[2]

    def write(self, folder: Path, generation: int) -> dict[str, str]:
        """Write the file of a generation; returns its entry of the manifest."""
        name = f"rows-{generation:05d}.tsv"
        content = "".join(f"{line}\n" for line in self.lines).encode()
        write_bytes(folder / name, content)
        return {"file": name, "sha256": hashlib.sha256(content).hexdigest()}


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from changing the directory meanwhile.

    Raises:
        UserError: another one is changing it now, or it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{folder}: is a file, or below one; name a directory") from error
    except OSError as error:
        told = f"cannot be written to: {error.strerror}; ask its owner for permission, or take another directory"
        raise UserError(f"{folder}: {told}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise UserError(f"{folder}: another mclip-search is changing this index; wait until it has ended") from error
    finally:
        os.close(handle)
