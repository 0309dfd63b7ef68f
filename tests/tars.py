"""Webdataset tars and Parquet files for tests."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    """Write a tar of these members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def split_tars(photos: Path, folder: Path, each: int, captions: Mapping[str, str] | None = None) -> list[Path]:
    """The images of a folder as tars of `each` images; a key is the path without its ending."""
    files = sorted(photos.rglob("*.png"))
    tars = []
    for start in range(0, len(files), each):
        members = {}
        for file in files[start : start + each]:
            name = file.relative_to(photos).as_posix()
            members[name] = file.read_bytes()
            if captions:
                members[name.removesuffix(".png") + ".txt"] = captions[name].encode()
        tars.append(write_tar(folder / f"{start // each:05d}.tar", members))
    return tars
