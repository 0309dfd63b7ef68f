"""What an indexed feature directory holds, and how it is read; `feature_checks` checks what it contains.

`features-00000.npy` ... (float16 or float32, memory-mapped when read), `ids.txt` (UTF-8, one id per line, in row order)
and `manifest.json`, which is written last: a directory without it is not finished. While the directory is being
written, `partial/` holds the plan and a record of each finished shard, so that a killed run can continue.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.fields import check_fields
from mclip_fairseq.storage.files import first_line, read_json, read_lines
from mclip_fairseq.storage.projection import check_space

FORMAT = "mclip_fairseq features"
VERSION = 1
DTYPES = ("float16", "float32")
MODALITIES = ("image", "text")
REMAKE = "make the features again"
MANIFEST_FIELDS = {
    "teacher": dict,
    "modality": str,
    "dim": int,
    "count": int,
    "dtype": str,
    "normalized": bool,
    "ids_sha256": str,
    "shards": list,
}
SHARD_FIELDS = {"file": str, "rows": int, "sha256": str}
# A file name below the directory and nothing else.
SHARD_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.npy")
# More than any model or disk has; their products still fit in an int64.
MAX_DIM, MAX_ROWS = 2**20, 2**40


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a directory.

    Raises:
        UserError: it is missing, unreadable, incomplete, or has an unknown version.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        unfinished = "its features are not finished; run the command that writes it again"
        missing = "is not a feature directory, it has no manifest.json; make one with mclip-features"
        raise UserError(f"{folder}: {unfinished if (folder / 'partial').is_dir() else missing}")
    try:
        manifest = read_json(path)
    except UserError as error:
        raise UserError(f"{error}; {REMAKE}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{path}: is not the manifest of a feature directory; {REMAKE}")
    if manifest.get("version") != VERSION:
        raise UserError(
            f"{path}: has version {manifest.get('version')!r:.20}, but this program reads version {VERSION}; {REMAKE}, "
            "or use the program that wrote them"
        )
    check_fields(path, manifest, MANIFEST_FIELDS, REMAKE)
    for number, entry in enumerate(manifest["shards"]):
        check_shard(f"{path}, shard {number}", entry, REMAKE)
    expected = {
        "dtype": manifest["dtype"] in DTYPES,
        "modality": manifest["modality"] in MODALITIES,
        "dim": 0 < manifest["dim"] <= MAX_DIM,
        "count": manifest["count"] == sum(entry["rows"] for entry in manifest["shards"]),
    }
    wrong = [f"{name} is {manifest[name]!r:.40}" for name, as_expected in expected.items() if not as_expected]
    if wrong:
        raise UserError(f"{path}: is damaged ({', '.join(wrong)}); {REMAKE}")
    check_space(manifest, path)
    return manifest


def check_shard(place: str, entry: Any, remedy: str) -> dict[str, Any]:
    """Refuse what does not describe a shard by a plain file name, rows and a hash; see `check_fields`."""
    check_fields(place, entry, SHARD_FIELDS, remedy)
    if not SHARD_FILE.fullmatch(entry["file"]) or not 0 <= entry["rows"] <= MAX_ROWS:
        raise UserError(f"{place}: file is {entry['file']!r:.80} and rows {entry['rows']!r:.40}; {remedy}")
    return dict(entry)


def read_ids(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Ids in row order.

    Raises:
        UserError: the number of ids differs from the number of rows.
    """
    path = folder / "ids.txt"
    ids = read_lines(path)
    if len(ids) != manifest["count"]:
        raise UserError(f"{path}: has {len(ids)} ids for {manifest['count']} rows; {REMAKE}")
    return ids


def open_shard(folder: Path, manifest: Mapping[str, Any], entry: Mapping[str, Any]) -> npt.NDArray[np.floating]:
    """Memory-map a shard: (rows, dim).

    Raises:
        UserError: it is missing or truncated, or its shape or type differs from its manifest.
    """
    path, expected = folder / entry["file"], (entry["rows"], manifest["dim"])
    if not path.is_file():
        raise UserError(f"{path}: is missing; {REMAKE}, or copy the directory completely")
    shape, dtype, fortran, offset = _npy_header(path)
    if shape != expected or dtype != manifest["dtype"]:
        raise UserError(
            f"{path}: holds {dtype} of shape {shape}, but the manifest says {manifest['dtype']} of shape {expected}; "
            f"{REMAKE}"
        )
    if path.stat().st_size != offset + entry["rows"] * manifest["dim"] * dtype.itemsize:
        raise UserError(f"{path}: is truncated or not a .npy file (its size does not fit {shape}); {REMAKE}")
    if not entry["rows"]:  # an empty array cannot be memory-mapped
        return np.zeros(expected, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=expected, order="F" if fortran else "C")


def _npy_header(path: Path) -> tuple[tuple[int, ...], np.dtype[Any], bool, int]:
    """Shape, type, order and offset of the first value; no value is read and nothing is unpickled.

    Raises:
        UserError: it is not a `.npy` file, or not one of plain numbers.
    """
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        with path.open("rb") as stream:
            version = np.lib.format.read_magic(stream)
            header = readers[version](stream) if version in readers else None
            offset = stream.tell()
    except Exception as error:  # NumPy's parser of headers raises whatever broken bytes lead it to
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{path}: is truncated or not a .npy file ({reason}); {REMAKE}") from error
    if header is None:
        raise UserError(f"{path}: is truncated or not a .npy file of a version that is read ({version}); {REMAKE}")
    shape, fortran, dtype = header
    if dtype.hasobject:
        raise UserError(f"{path}: is truncated or not a .npy file of numbers (it holds Python objects); {REMAKE}")
    return shape, dtype, fortran, offset


def same_teacher(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two identities have the same weights or, without a hash, the same name and revision."""
    return bool((one.get("sha256") or one) == (other.get("sha256") or other))


def expected_hashes(manifest: Mapping[str, Any]) -> dict[str, str]:
    """File name -> SHA-256 in a manifest."""
    entries = [*manifest["shards"], *filter(None, [manifest.get("projection")])]
    return {"ids.txt": manifest["ids_sha256"], **{entry["file"]: entry["sha256"] for entry in entries}}


def encode_ids(ids: Sequence[str]) -> bytes:
    """Ids as the bytes of `ids.txt`.

    Raises:
        UserError: an id that is empty, appears twice, is not Unicode, or has a tab, a line break or outer spaces.
    """
    if len(set(ids)) != len(ids):
        raise UserError(f"the id {first_duplicate(ids)!r} appears twice; ids must be unique")
    for number, name in enumerate(ids):
        if not is_usable_id(name):
            raise UserError(f"id {number} is {name!r}; ids have no tabs, line breaks or outer spaces and are not empty")
    try:
        return "".join(f"{name}\n" for name in ids).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"an id is not Unicode text ({error}); rename the file") from error


def is_usable_id(name: str) -> bool:
    """Whether an id has no tab, line break or outer spaces and is not empty."""
    return name == name.strip() and "\t" not in name and len(name.splitlines()) == 1


def shard_name(shard: int) -> str:
    """File name of a shard."""
    return f"features-{shard:05d}.npy"


def first_duplicate(ids: Sequence[str]) -> str:
    """The first id that appears for the second time."""
    seen: set[str] = set()
    return next(name for name in ids if name in seen or seen.add(name))  # type: ignore[func-returns-value]
