"""Checks of what feature directories contain: hashes, values, and whether several directories fit together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.feature_files import REMAKE, same_teacher
from mclip_fairseq.storage.files import file_sha256

# Values looked at in one go when a shard is checked.
CHECK_VALUES = 2**24
NORM_TOLERANCE = 1e-2  # float16 rows of 1024 columns stay well within it


def check_alike(first: Path, expected: Mapping[str, Any], other: Path, manifest: Mapping[str, Any]) -> None:
    """Refuse two directories that cannot be one table.

    Raises:
        UserError: naming both and what differs.
    """
    for name in ("dim", "modality", "normalized"):
        if expected[name] != manifest[name]:
            raise UserError(
                f"{first} and {other} differ in {name} ({expected[name]} and {manifest[name]}); open them separately"
            )
    if expected.get("projection") != manifest.get("projection"):
        raise UserError(f"{first} and {other} differ in space or projection; open them separately")
    mine, theirs = expected["teacher"], manifest["teacher"]
    if not same_teacher(mine, theirs):
        raise UserError(f"{first} was made by {mine} and {other} by {theirs}; features of two teachers cannot be mixed")


def check_hashes(expected: Mapping[Path, str]) -> None:
    """Refuse files that are missing or whose hashes differ.

    Args:
        expected: file -> SHA-256.

    Raises:
        UserError: naming the first file that is missing or altered.
    """
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock
        hashes = pool.map(_hash_or_none, expected)
        for (path, sha256), actual in zip(expected.items(), hashes, strict=True):
            if actual is None:
                raise UserError(f"{path}: is missing; {REMAKE}, or copy the directory completely")
            if actual != sha256:
                raise UserError(f"{path}: is altered or truncated, its hash differs from the manifest; {REMAKE}")


def _hash_or_none(path: Path) -> str | None:
    return file_sha256(path) if path.is_file() else None


def check_finite(
    folder: Path, ids: Sequence[str], shards: Sequence[npt.NDArray[np.floating]], due: Sequence[bool]
) -> None:
    """Refuse features that are not finite, even if their hashes are right.

    Args:
        folder: for the message.
        ids: id of each row, over all shards.
        shards: (rows, dim) arrays.
        due: for each shard, whether to look at it.

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
                    f"{folder}: the features of {ids[start + bad]!r} (row {start + bad}) are not finite; {REMAKE}"
                )


def _first_not_finite(rows: npt.NDArray[np.floating]) -> int | None:
    # One pass without a copy: a sum is finite only if all its values are. It may also overflow, hence the second look.
    with np.errstate(over="ignore", invalid="ignore"):
        suspects = np.flatnonzero(~np.isfinite(rows.sum(axis=1, dtype=np.float32)))
    bad = suspects[~np.isfinite(rows[suspects]).all(axis=1)]
    return int(bad[0]) if len(bad) else None


def check_values(path: Path, ids: Sequence[str], array: npt.NDArray[np.floating], normalized: bool) -> None:
    """Refuse rows that are not finite in their stored type, or not normalised as stated.

    Raises:
        UserError: naming the first such id.
    """
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if len(bad):
        raise UserError(
            f"{path}: the features of {ids[bad[0]]!r} and {len(bad) - 1} others are not finite as {array.dtype}; use "
            "float32 if float16 is too narrow, else look at these inputs"
        )
    if normalized:
        norms = np.linalg.norm(array.astype(np.float32, copy=False), axis=1)
        bad = np.flatnonzero(np.abs(norms - 1) > NORM_TOLERANCE)
        if len(bad):
            raise UserError(
                f"{path}: the features of {ids[bad[0]]!r} and {len(bad) - 1} others are called normalised but have "
                f"norms like {norms[bad[0]]:.4g}; normalise them, or pass normalized=False"
            )
