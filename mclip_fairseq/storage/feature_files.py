"""What an indexed feature directory holds, and the checks on it.

`features-00000.npy` ... (float16 or float32, memory-mapped when read), `ids.txt` (UTF-8, one id per line, in row order)
and `manifest.json`, which is written last: a directory without it is not finished. While it is being written,
`partial/` holds the plan and a record of each finished shard, so that a killed run continues.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import file_sha256, first_line, read_json, read_lines
from mclip_fairseq.storage.projection import check_space

FORMAT = "mclip_fairseq features"
VERSION = 1
DTYPES = ("float16", "float32")
MODALITIES = ("image", "text")
# A file name below the directory and nothing else.
SHARD_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.npy")
# Beyond any model and any disk; products of them still fit an int64.
MAX_DIM, MAX_ROWS = 2**20, 2**40
# Values looked at in one go when a shard is checked.
CHECK_VALUES = 2**24
NORM_TOLERANCE = 1e-2  # float16 rows of 1024 columns stay well inside
MANIFEST_KEYS = {
    "teacher": dict,
    "modality": str,
    "dim": int,
    "count": int,
    "dtype": str,
    "normalized": bool,
    "ids_sha256": str,
    "shards": list,
}


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a directory.

    Raises:
        UserError: it is missing, unreadable, of another version, or incomplete.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        unfinished = "its features are not finished; run the command that writes it again"
        raise UserError(
            f"{folder}: {unfinished}"
            if (folder / "partial").is_dir()
            else f"{folder}: is not a feature directory, it has no manifest.json; make one with mclip-features"
        )
    try:
        manifest = read_json(path)
    except ValueError as error:
        raise UserError(f"{error}; make the features again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{path}: is not the manifest of a feature directory")
    if manifest.get("version") != VERSION:
        raise UserError(
            f"{path}: has version {manifest.get('version')}, but this program reads version {VERSION}; make the "
            "features again, or use the program that wrote them"
        )
    wrong = [name for name, kind in MANIFEST_KEYS.items() if type(manifest.get(name)) is not kind]
    if wrong or manifest["dtype"] not in DTYPES or not all(map(is_shard_entry, manifest["shards"])):
        raise UserError(f"{path}: is damaged ({', '.join(wrong) or 'dtype or shards'}); make the features again")
    if not 0 < manifest["dim"] <= MAX_DIM or manifest["modality"] not in MODALITIES:
        raise UserError(
            f"{path}: is damaged (dim {manifest['dim']}, modality {manifest['modality']!r}); make the features again"
        )
    check_space(manifest, path)
    if manifest["count"] != sum(entry["rows"] for entry in manifest["shards"]):
        raise UserError(f"{path}: counts {manifest['count']} rows, but its shards have another number; make it again")
    return manifest


def is_shard_entry(entry: Any) -> bool:
    """Whether this describes a shard by a plain file name, rows and a hash."""
    return (
        isinstance(entry, dict)
        and type(entry.get("rows")) is int
        and 0 <= entry["rows"] <= MAX_ROWS
        and isinstance(entry.get("sha256"), str)
        and isinstance(entry.get("file"), str)
        and SHARD_FILE.fullmatch(entry["file"]) is not None
    )


def check_alike(first: Path, expected: Mapping[str, Any], other: Path, manifest: Mapping[str, Any]) -> None:
    """Refuse two directories that cannot be one table.

    Raises:
        UserError: naming both and what differs.
    """
    for name in ("dim", "modality", "normalized"):
        if expected[name] != manifest[name]:
            raise UserError(
                f"{first} and {other} differ in {name} ({expected[name]} and {manifest[name]}); open them apart"
            )
    if expected.get("projection") != manifest.get("projection"):
        raise UserError(f"{first} and {other} differ in space or projection; open them apart")
    mine, theirs = expected["teacher"], manifest["teacher"]
    if not same_teacher(mine, theirs):
        raise UserError(f"{first} was made by {mine} and {other} by {theirs}; features of two teachers do not mix")


def same_teacher(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two identities are of the same weights; where no hash is known, of the same name and revision."""
    return bool((one.get("sha256") or one) == (other.get("sha256") or other))


def expected_hashes(manifest: Mapping[str, Any]) -> dict[str, str]:
    """File name -> SHA-256 that a manifest says."""
    entries = [*manifest["shards"], *filter(None, [manifest.get("projection")])]
    return {"ids.txt": manifest["ids_sha256"], **{entry["file"]: entry["sha256"] for entry in entries}}


def verify_hashes(expected: Mapping[Path, str]) -> None:
    """Compare files with their hashes.

    Args:
        expected: file -> SHA-256.

    Raises:
        UserError: naming the first file that is missing or altered.
    """
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock
        found = pool.map(_hash_or_none, expected)
        for (path, sha256), actual in zip(expected.items(), found, strict=True):
            if actual is None:
                raise UserError(f"{path}: is missing; make the features again, or copy the directory completely")
            if actual != sha256:
                raise UserError(f"{path}: is altered or truncated, its hash is not that of the manifest; make it again")


def _hash_or_none(path: Path) -> str | None:
    return file_sha256(path) if path.is_file() else None


def read_ids(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Ids in row order.

    Raises:
        UserError: another number of ids than rows.
    """
    path = folder / "ids.txt"
    ids = read_lines(path)
    if len(ids) != manifest["count"]:
        raise UserError(f"{path}: has {len(ids)} ids for {manifest['count']} rows; make the features again")
    return ids


def open_shard(folder: Path, manifest: Mapping[str, Any], entry: Mapping[str, Any]) -> npt.NDArray[np.floating]:
    """Memory-map a shard.

    Raises:
        UserError: it is missing, truncated, or of another shape or type than its manifest says.
    """
    path, expected = folder / entry["file"], (entry["rows"], manifest["dim"])
    if not path.is_file():
        raise UserError(f"{path}: is missing; make the features again, or copy the directory completely")
    try:
        shape, dtype, fortran, offset = _npy_header(path)
    except Exception as error:  # NumPy's parser of headers raises whatever broken bytes lead it to
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{path}: is truncated or no .npy file ({reason}); make the features again") from error
    if shape != expected or dtype != manifest["dtype"]:
        raise UserError(
            f"{path}: holds {dtype} of shape {shape}, but the manifest says {manifest['dtype']} of shape "
            f"{expected}; make the features again"
        )
    if path.stat().st_size != offset + entry["rows"] * manifest["dim"] * dtype.itemsize:
        raise UserError(f"{path}: is truncated or no .npy file (its size is not that of {shape}); make it again")
    if not entry["rows"]:  # an empty array cannot be memory-mapped
        return np.zeros(expected, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=expected, order="F" if fortran else "C")


def _npy_header(path: Path) -> tuple[tuple[int, ...], np.dtype[Any], bool, int]:
    """Shape, type, order and the place of the first value; no value is read and nothing is unpickled."""
    with path.open("rb") as stream:
        version = np.lib.format.read_magic(stream)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            raise UserError(f"version {version} of the format is not read")
        shape, fortran, dtype = readers[version](stream)
        if dtype.hasobject:
            raise UserError("it holds Python objects")
        return shape, dtype, fortran, stream.tell()


def check_finite(
    folder: Path, ids: Sequence[str], shards: Sequence[npt.NDArray[np.floating]], due: Sequence[bool]
) -> None:
    """Refuse features that are not finite, whatever their hashes say.

    Args:
        folder: for the message.
        ids: id of each row, over all shards.
        shards: (rows, dim) arrays.
        due: of each shard, whether to look at it.

    Raises:
        UserError: naming the first such id.
    """
    starts = np.cumsum([0, *(len(shard) for shard in shards)])
    step = max(1, CHECK_VALUES // max([1, *(shard.shape[1] for shard in shards)]))
    pieces = [
        (int(start) + row, shard[row : row + step])
        for start, shard, look in zip(starts[:-1], shards, due, strict=True)
        for row in range(0, len(shard) if look else 0, step)
    ]
    with ThreadPoolExecutor() as pool:
        for (start, _), bad in zip(pieces, pool.map(_first_not_finite, (part for _, part in pieces)), strict=True):
            if bad is not None:
                raise UserError(
                    f"{folder}: the features of {ids[start + bad]!r} (row {start + bad}) are not finite; remake them"
                )


def _first_not_finite(rows: npt.NDArray[np.floating]) -> int | None:
    # The sum of a row is finite only if all its values are; it may overflow, so that a second look is needed.
    with np.errstate(over="ignore", invalid="ignore"):
        suspects = np.flatnonzero(~np.isfinite(rows.sum(axis=1, dtype=np.float32)))
    bad = suspects[~np.isfinite(rows[suspects]).all(axis=1)]
    return int(bad[0]) if len(bad) else None


def check_values(path: Path, ids: Sequence[str], array: npt.NDArray[np.floating], normalized: bool) -> None:
    """Refuse rows that are not finite in their stored type, or not normalised as promised.

    Raises:
        UserError: naming the first such id.
    """
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if len(bad):
        raise UserError(
            f"{path}: the features of {ids[bad[0]]!r} and {len(bad) - 1} others are not finite as {array.dtype}; use "
            "float32 where float16 is too narrow, and look at these inputs otherwise"
        )
    if normalized:
        norms = np.linalg.norm(array.astype(np.float32, copy=False), axis=1)
        bad = np.flatnonzero(np.abs(norms - 1) > NORM_TOLERANCE)
        if len(bad):
            raise UserError(
                f"{path}: the features of {ids[bad[0]]!r} and {len(bad) - 1} others are called normalised but have "
                f"norms like {norms[bad[0]]:.4g}; normalise them or call them not normalised"
            )


def encode_ids(ids: Sequence[str]) -> bytes:
    """Ids as the bytes of `ids.txt`.

    Raises:
        UserError: an id that is empty, appears twice, is not Unicode, or has a tab, a line break or outer spaces.
    """
    if len(set(ids)) != len(ids):
        raise UserError(f"the id {first_duplicate(ids)!r} appears twice; ids must be unique")
    for number, name in enumerate(ids):
        if not is_usable_id(name):
            raise UserError(f"id {number} is {name!r}: ids have no tabs, line breaks or outer spaces and are not empty")
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
    """The first id that has been there before."""
    seen: set[str] = set()
    return next(name for name in ids if name in seen or seen.add(name))  # type: ignore[func-returns-value]
