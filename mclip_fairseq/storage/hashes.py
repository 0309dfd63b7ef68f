"""Hashes of large files, each read once: `python -m mclip_fairseq.storage.hashes FILE...` is sha256sum with a memory.

The memory is in the user's cache: the hash of a file, with what the file system says of it. Any change to a file,
including a copy, changes its size, times or inode, and it is read again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import file_identity, file_sha256, read_json, shown, write_bytes
from mclip_fairseq.storage.verified import cache_folder


def remembered_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal, from the memory if the file is unchanged.

    Raises:
        OSError: the file cannot be read.
    """
    began, identity, record = time.time_ns(), file_identity(path), record_of(path)
    # Devices are left out, because a restart may number them differently.
    facts = list(identity[:4]) if identity is not None else None
    with contextlib.suppress(UserError):  # it is missing or damaged: the file is read
        known = read_json(record)
        if isinstance(known, dict) and facts is not None and known.get("file") == facts:
            return str(known.get("sha256"))
    value = file_sha256(path)
    if identity is not None and identity.is_settled(began):
        with contextlib.suppress(OSError):  # without a cache, it is read again next time
            record.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(record, json.dumps({"file": facts, "sha256": value}).encode())
    return value


def record_of(path: Path) -> Path:
    """What is remembered of a file, in the cache."""
    name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]
    return cache_folder() / "hashes" / f"{name}.json"


def main(paths: Sequence[str]) -> int:
    """Print a line for each file, as sha256sum does; returns the exit status."""
    for path in paths:
        try:
            value = remembered_sha256(Path(path))
        except OSError as error:
            print(f"{shown(path)}: cannot be read: {error.strerror}", file=sys.stderr)
            return 2
        sys.stdout.buffer.write(value.encode() + b"  " + os.fsencode(path) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
