"""Which files of a feature directory have been verified and not changed since, so that no run reads them twice.

The record is in the user's cache and holds what the file system says of each file. Any change to a file, including a
copy, changes its size, times or inode, and it is checked again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import FileIdentity, file_identity, read_json, write_bytes

Hashes = Mapping[str, str]


class Verification:
    """One verification of a directory; create it before the files are read.

    Args:
        folder: the directory.
        expected: file name -> SHA-256 in the manifest; empty if nothing is to be verified.

    Attributes:
        due: names of the files that must be read.
    """

    def __init__(self, folder: Path, expected: Hashes) -> None:
        self.folder = folder
        self.expected = expected
        self.began = time.time_ns()
        self.identities = {name: file_identity(folder / name) for name in expected}
        self.record = record_of(folder)
        known = _read_record(self.record)
        self.due = {
            name
            for name, identity in self.identities.items()
            if identity is None or known.get(name) != self._entry(name, identity)
        }

    def _entry(self, name: str, identity: FileIdentity) -> list[Any]:
        """What the record says of a file; devices are left out, because a restart may number them differently."""
        return [self.expected[name], *identity[:4]]

    def remember(self) -> None:
        """Record all files as verified; if the cache cannot be written to, nothing is recorded."""
        settled = {
            name: self._entry(name, identity)
            for name, identity in self.identities.items()
            if identity is not None and identity.is_settled(self.began)
        }
        if not (self.due & settled.keys()):
            return
        with contextlib.suppress(OSError):
            self.record.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(self.record, json.dumps(settled).encode())


def cache_folder() -> Path:
    """What this project remembers for a user: `MCLIP_CACHE`, by default `~/.cache/mclip_fairseq`."""
    return Path(os.environ.get("MCLIP_CACHE") or os.path.expanduser("~/.cache/mclip_fairseq"))


def record_of(folder: Path) -> Path:
    """The record of a directory, in the cache."""
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]
    return cache_folder() / "verified" / f"{name}.json"


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = read_json(path)
    except UserError:  # it is missing or damaged: then everything is due
        return {}
    return record if isinstance(record, dict) else {}
