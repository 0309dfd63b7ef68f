"""Indexed feature directories as one table: open them, look up ids, take rows; and write an array in one call.

`mclip_fairseq.storage.feature_files` describes a directory; `FeatureWriter` writes one shard by shard.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.feature_checks import check_alike, check_finite, check_hashes
from mclip_fairseq.storage.feature_files import expected_hashes, first_duplicate, open_shard, read_ids, read_manifest
from mclip_fairseq.storage.feature_writer import FeatureWriter
from mclip_fairseq.storage.files import similar_name
from mclip_fairseq.storage.projection import Projection, read_projection
from mclip_fairseq.storage.verified import Verification

__all__ = ["FeatureStore", "FeatureWriter", "write_features"]


class FeatureStore:
    """Features of one or several directories, read as one table; open it with `open` or `open_all`.

    Args:
        paths: the directories.
        manifests: their manifests.
        ids: id of each row, over all directories; None reads them when they are first used.
        shards: (rows, dim) arrays, memory-mapped, over all directories.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        manifests: Sequence[dict[str, Any]],
        ids: list[str] | None,
        shards: Sequence[npt.NDArray[np.floating]],
    ) -> None:
        self.paths = tuple(paths)
        self.manifests = tuple(manifests)
        if ids is not None:
            self.ids = ids
        self._shards = tuple(shards)
        self._starts = np.cumsum([0, *(len(shard) for shard in shards)])

    @classmethod
    def open(cls, path: str | Path, verify: bool = True) -> FeatureStore:
        """Open one directory; see `open_all`."""
        return cls.open_all([path], verify)

    @classmethod
    def open_all(cls, paths: Sequence[str | Path], verify: bool = True) -> FeatureStore:
        """Open several directories of one teacher as one table, in this order.

        Args:
            paths: the directories.
            verify: check hashes, repeated ids and non-finite values in the files that have changed since this was last
                done (`mclip_fairseq.storage.verified`); if False, only sizes and types are checked. Ids that need no
                check are read when they are first used.

        Raises:
            UserError: a directory is unfinished, a file is missing, altered or does not fit its manifest, an id
                appears twice, or the directories come from different teachers.
        """
        if not paths:
            raise UserError("no feature directory is given; name at least one")
        folders = [Path(path) for path in paths]
        manifests = [read_manifest(folder) for folder in folders]
        for folder, manifest in zip(folders[1:], manifests[1:], strict=True):
            check_alike(folders[0], manifests[0], folder, manifest)
        checks = [
            Verification(folder, expected_hashes(manifest) if verify else {})
            for folder, manifest in zip(folders, manifests, strict=True)
        ]
        check_hashes({check.folder / name: check.expected[name] for check in checks for name in sorted(check.due)})
        # Ids of millions of rows cost seconds: they are read now only if something has to be compared by id.
        ids = None
        if any(check.due for check in checks) or (verify and len(folders) > 1):
            ids = list(chain.from_iterable(map(read_ids, folders, manifests)))
            if len(set(ids)) != len(ids):
                place, twice = ", ".join(map(str, folders)), first_duplicate(ids)
                raise UserError(f"{place}: the id {twice!r} appears twice; ids must be unique")
        shards = [
            open_shard(folder, manifest, entry)
            for folder, manifest in zip(folders, manifests, strict=True)
            for entry in manifest["shards"]
        ]
        if ids is not None:
            due = [
                entry["file"] in check.due
                for check, manifest in zip(checks, manifests, strict=True)
                for entry in manifest["shards"]
            ]
            check_finite(folders[0], ids, shards, due)
        for check in checks:
            check.remember()  # only now, when every check has passed
        return cls(folders, manifests, ids, shards)

    def __reduce__(self) -> tuple[Any, ...]:
        """Other processes map the same files instead of receiving a copy."""
        return (FeatureStore.open_all, (self.paths, False))

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest of the (first) directory."""
        return self.manifests[0]

    @property
    def dim(self) -> int:
        """Columns."""
        return int(self.manifest["dim"])

    @property
    def space(self) -> str:
        """`joint`, `pooled`: the states before the teacher's projection, or `layers`: see `text_layers`."""
        return "layers" if self.text_layers else str(self.manifest.get("space", "joint"))

    @property
    def text_layers(self) -> str:
        """The layers, such as `0,6`, whose states stand before the joint features of a text; empty for none."""
        return str((self.manifest.get("settings") or {}).get("text_layers", ""))

    @cached_property
    def projection(self) -> Projection | None:
        """The teacher's projection of pooled features; None for joint ones."""
        return read_projection(self.paths[0], self.manifest)

    @property
    def dtype(self) -> np.dtype[Any]:
        """float16 or float32, the wider one where directories differ."""
        return np.result_type(*(manifest["dtype"] for manifest in self.manifests))

    @property
    def identity(self) -> dict[str, Any]:
        """The teacher that made the features, without paths: `name`, `revision` and, if known, `sha256` of weights."""
        return dict(self.manifest["teacher"])

    @property
    def content_hash(self) -> str:
        """SHA-256 over the hashes of all shards and ids; equal content in equal shards has an equal hash."""
        digest = hashlib.sha256()
        for manifest in self.manifests:
            hashes = [manifest["ids_sha256"], *(entry["sha256"] for entry in manifest["shards"])]
            digest.update("".join(f"{value}\n" for value in hashes).encode())
        return digest.hexdigest()

    @cached_property
    def ids(self) -> list[str]:
        """Id of each row, over all directories."""
        return list(chain.from_iterable(map(read_ids, self.paths, self.manifests)))

    @cached_property
    def _index(self) -> dict[str, int]:
        return {identifier: row for row, identifier in enumerate(self.ids)}

    def has(self, ids: Sequence[str]) -> npt.NDArray[np.bool_]:
        """(n,) whether each id has features."""
        return np.fromiter((name in self._index for name in ids), dtype=bool, count=len(ids))

    def rows(self, ids: Iterable[str]) -> npt.NDArray[np.int64]:
        """(n,) row of each id.

        Raises:
            UserError: naming the first unknown ids, and their number.
        """
        wanted = list(ids)
        rows = np.fromiter((self._index.get(name, -1) for name in wanted), dtype=np.int64, count=len(wanted))
        missing = np.flatnonzero(rows < 0)
        if len(missing):
            unknown = list(dict.fromkeys(wanted[place] for place in missing))
            similar = similar_name(unknown[0], self.ids)
            first = ", ".join(map(repr, unknown[:3])) + (similar and f" (but {similar})")
            raise UserError(
                f"{', '.join(map(str, self.paths))}: has no features for {len(missing)} of {len(wanted)} ids, the "
                f"first are {first}; make features for them or remove them"
            )
        return rows

    def take(self, rows: npt.ArrayLike) -> npt.NDArray[np.floating]:
        """(n, dim) features of these rows, in their order, as stored (`dtype`).

        Raises:
            UserError: a row that does not exist.
        """
        wanted = np.asarray(rows, dtype=np.int64)
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < len(self):
            raise UserError(f"{self.paths[0]}: rows must lie in 0..{len(self) - 1}, got {wanted.min()}..{wanted.max()}")
        out = np.empty((len(wanted), self.dim), dtype=self.dtype)
        shard_of = np.searchsorted(self._starts, wanted, side="right") - 1
        for number in np.unique(shard_of):
            inside = shard_of == number
            out[inside] = self._shards[number][wanted[inside] - self._starts[number]]
        return out


def write_features(
    path: str | Path,
    ids: Sequence[str],
    array: npt.ArrayLike,
    *,
    model: str | Mapping[str, Any],
    revision: str | None = None,
    normalized: bool,
    preprocessing: str = "",
    modality: str = "image",
    shard_rows: int = 65536,
    projection: Projection | None = None,
) -> FeatureStore:
    """Turn an array into a feature directory; does nothing if the same one exists already.

    Args:
        path: directory to make.
        ids: id of each row.
        array: (rows, dim); float16 is kept, everything else is stored as float32.
        model: name of the model that made the features, or its whole identity (`DualEncoderTeacher.identity`).
        revision: of a model given by name.
        normalized: whether rows are L2-normalised.
        preprocessing: description of what was done to the inputs.
        modality: `image` or `text`.
        shard_rows: rows per shard.
        projection: of pooled features; see `FeatureWriter`.

    Raises:
        UserError: ids and rows that do not match, or see `FeatureWriter`.
    """
    features = np.asarray(array)
    if features.ndim != 2 or len(features) != len(ids):
        raise UserError(f"{path}: features of shape {features.shape} do not fit {len(ids)} ids; give one row per id")
    features = np.ascontiguousarray(features, dtype=np.float16 if features.dtype == np.float16 else np.float32)
    writer = FeatureWriter(
        path,
        ids,
        teacher={"name": model, "revision": revision} if isinstance(model, str) else model,
        dim=features.shape[1],
        modality=modality,
        normalized=normalized,
        preprocessing=preprocessing,
        dtype=features.dtype.name,
        shard_rows=shard_rows,
        settings={"content": hashlib.sha256(features.data).hexdigest()},
        projection=projection,
    )
    for shard in writer.pending():
        rows = writer.inputs(shard)
        writer.write(shard, features[rows.start : rows.stop])
    writer.finalize()
    return FeatureStore.open(path, verify=False)
