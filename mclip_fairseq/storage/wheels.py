"""Changes files inside a wheel, and keeps its RECORD true.

Only the standard library is used: `setup.py` imports this module where nothing else is installed.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path


def rewrite_wheel(wheel: str | Path, changes: Mapping[str, bytes], version: str = "") -> Path:
    """Add or replace files of a wheel.

    Args:
        wheel: the file; it is replaced, or removed if the version changes.
        changes: path inside the wheel -> new content. `METADATA` stands for that file, wherever it is.
        version: the new version, which is part of the wheel's name and of its folder of metadata; empty keeps it.
            The line `Version:` of METADATA is the caller's.

    Returns:
        the new wheel, in the same directory.
    """
    wheel = Path(wheel)
    name, old, *tags = wheel.name.split("-")
    version = version or old
    before, after = f"{name}-{old}.dist-info", f"{name}-{version}.dist-info"
    target = wheel.with_name("-".join([name, version, *tags]))
    changed = {f"{after}/METADATA" if path == "METADATA" else path: data for path, data in changes.items()}
    partial = target.with_name(f"{target.name}.partial")
    rows = []
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as out:
        infos = {info.filename.replace(before, after, 1): info for info in source.infolist() if not info.is_dir()}
        for path in sorted(infos.keys() | changed.keys()):
            if path == f"{after}/RECORD":
                continue
            data = changed[path] if path in changed else source.read(infos[path])
            entry = zipfile.ZipInfo(path)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = infos[path].external_attr if path in infos else 0o644 << 16
            out.writestr(entry, data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode("ascii")
            rows.append((path, f"sha256={digest}", len(data)))
        record = io.StringIO()
        csv.writer(record, lineterminator="\n").writerows([*rows, (f"{after}/RECORD", "", "")])
        out.writestr(f"{after}/RECORD", record.getvalue())
    if target != wheel:
        wheel.unlink()
    return partial.replace(target)


def wheel_metadata(wheel: str | Path) -> str:
    """The text of a wheel's METADATA."""
    name, version, *_ = Path(wheel).name.split("-")
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(f"{name}-{version}.dist-info/METADATA").decode("utf-8")
