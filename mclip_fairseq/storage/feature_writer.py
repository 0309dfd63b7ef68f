"""Write a feature directory shard by shard; a run can be restarted, and machines can share the work."""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.feature_checks import check_values
from mclip_fairseq.storage.feature_files import (
    DTYPES,
    FORMAT,
    MODALITIES,
    VERSION,
    check_shard,
    encode_ids,
    read_manifest,
    same_teacher,
    shard_name,
)
from mclip_fairseq.storage.fields import check_fields
from mclip_fairseq.storage.files import complete_file, file_sha256, read_json, read_lines, write_bytes, write_json
from mclip_fairseq.storage.owners import TEMPORARY, owner_is_alive, remove_leftovers
from mclip_fairseq.storage.projection import PROJECTION, Projection

LABELS = {
    "inputs": "number of inputs",
    "inputs_sha256": "list of ids",
    "shard_rows": "number of rows per shard",
    "inputs_content": "content of the inputs",
    "text_layers": "--text-layers",
    "columns": "choice of columns",
    "model_settings": "configuration, image processor or tokenizer of the model",
}
# What an earlier version did not record.
UNRECORDED = ("inputs_content", "model_settings")


class FeatureWriter:
    """Writes a feature directory shard by shard; several processes or machines may share the work.

    Shard `i` holds the inputs `i * shard_rows ...` except those that are skipped. Every file is written completely or
    not at all, finished shards survive a kill, and the manifest is written when all shards are finished.

    Args:
        path: directory to create or to continue.
        ids: id of every input, in order.
        teacher: identity of the model, free of paths, with at least `name`.
        dim: columns.
        modality: `image` or `text`.
        normalized: whether rows are L2-normalised; `write` checks it.
        preprocessing: description of what was done to the inputs.
        dtype: `float16` or `float32`.
        shard_rows: inputs per shard.
        settings: anything else that must not change while the directory is written, or when it is written again:
            `inputs_content` is a hash of the inputs, `model_settings` one of what the model does besides its weights.
        projection: for features of the space `pooled`, the model's way from there to the joint space.

    Raises:
        UserError: unusable ids, or the directory was started with different settings.
    """

    def __init__(
        self,
        path: str | Path,
        ids: Sequence[str],
        *,
        teacher: Mapping[str, Any],
        dim: int,
        modality: str,
        normalized: bool,
        preprocessing: str = "",
        dtype: str = "float16",
        shard_rows: int = 65536,
        settings: Mapping[str, Any] | None = None,
        projection: Projection | None = None,
    ) -> None:
        if dtype not in DTYPES or modality not in MODALITIES or shard_rows < 1 or dim < 1:
            raise UserError(
                f"features need a dtype of {DTYPES}, a modality of {MODALITIES} and positive sizes, not {dtype!r}, "
                f"{modality!r}, {shard_rows} rows per shard and {dim} columns"
            )
        self.path = Path(path)
        self.ids = list(ids)
        self.plan: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "teacher": dict(teacher),
            "modality": modality,
            "dim": int(dim),
            "dtype": dtype,
            "normalized": bool(normalized),
            "preprocessing": preprocessing,
            "shard_rows": int(shard_rows),
            "inputs": len(self.ids),
            "inputs_sha256": hashlib.sha256(encode_ids(self.ids)).hexdigest(),
            "settings": dict(settings or {}),
            "space": "joint" if projection is None else "pooled",
            "projection": None if projection is None else projection.entry(),
        }
        self._partial = self.path / "partial"
        self._check_plan()
        if projection is not None and not (self.path / PROJECTION).exists():
            write_bytes(self.path / PROJECTION, projection.encoded())

    def _check_plan(self) -> None:
        """Start the directory, or check that it was started with this plan."""
        if self.complete:
            started = read_manifest(self.path)
            self._tidy_up()
        else:
            self._partial.mkdir(parents=True, exist_ok=True)
            for folder in (self.path, self._partial):
                remove_leftovers(folder)
            plan = self._partial / "plan.json"
            if not plan.exists():
                if any(self.path.glob("features-*.npy")):
                    raise UserError(f"{self.path}: holds shards of unknown origin; remove it or use another directory")
                write_json(plan, self.plan)
            started = check_fields(
                plan, read_json(plan), {"settings": dict, "teacher": dict}, f"remove {self.path} and start again"
            )
        new, old = self._flat(self.plan), self._flat(started)
        if same_teacher(new["teacher"], old.get("teacher") or {}):
            old["teacher"] = new["teacher"]  # its directory may have been renamed
        differing = [LABELS.get(name, name) for name, value in new.items() if old.get(name) != value]
        if new.get("inputs_sha256") != old.get("inputs_sha256"):  # with other ids the content is another one anyway
            differing = [name for name in differing if name != LABELS["inputs_content"]]
        if differing and differing == [LABELS[name] for name in UNRECORDED if name not in old]:
            raise UserError(
                f"{self.path}: was made by an earlier version, which did not record the content of its inputs, so a "
                "change of them would not be noticed; use the features as they are, or remove the directory and run "
                "the command again"
            )
        if differing:
            raise UserError(
                f"{self.path}: was started with a different {' and '.join(differing)}; remove it, use another "
                "directory, or use the settings it was started with"
            )

    @staticmethod
    def _flat(plan: Mapping[str, Any]) -> dict[str, Any]:
        # Directories from before there were two spaces do not name theirs.
        return {"space": "joint", "projection": None, **plan, **plan.get("settings", {}), "settings": None}

    @property
    def complete(self) -> bool:
        """Whether the manifest exists."""
        return is_complete(self.path)

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-len(self.ids) // int(self.plan["shard_rows"]))

    def inputs(self, shard: int) -> range:
        """Numbers of the inputs of a shard."""
        size = self.plan["shard_rows"]
        return range(shard * size, min((shard + 1) * size, len(self.ids)))

    def pending(self, machine: int = 0, machines: int = 1) -> list[int]:
        """Shards that this machine (0-based, of `machines`) has yet to write."""
        if self.complete:
            return []
        return [shard for shard in range(machine, self.shards, machines) if self._record(shard) is None]

    def write(self, shard: int, features: npt.ArrayLike, skipped: Sequence[tuple[str, str]] = ()) -> None:
        """Write one shard; it is on the disk and recorded when this returns.

        Args:
            shard: its number.
            features: (rows, dim) features of its inputs that are not skipped, in order.
            skipped: (id, reason) of inputs without features.

        Raises:
            UserError: the wrong shape, values that are not finite, or rows that should be normalised and are not.
        """
        write_shard(self.path, self.plan, shard, [self.ids[number] for number in self.inputs(shard)], features, skipped)

    def skipped(self) -> list[tuple[str, str]]:
        """(id, reason) of all inputs that finished shards skip, of all machines."""
        listed = self.path / "skipped.tsv"
        if self.complete:
            lines = read_lines(listed) if listed.exists() else []
            return [(name, reason) for name, _, reason in (line.partition("\t") for line in lines)]
        records = (self._record(shard) for shard in range(self.shards))
        return [(name, reason) for record in records if record for name, reason in record["skipped"]]

    def finalize(self, made_by: Mapping[str, Any] | None = None) -> bool:
        """Write ids and manifest if all shards are finished.

        Args:
            made_by: command and versions, kept in the manifest.

        Returns:
            Whether the directory is complete; False while shards of other machines are missing.
        """
        records = [self._record(shard) for shard in range(self.shards)]
        finished = [record for record in records if record is not None]
        if self.complete or len(finished) < len(records):  # another machine may have finished meanwhile
            return self.complete
        skipped = [tuple(pair) for record in finished for pair in record.pop("skipped")]
        kept = encode_ids(self._kept_ids(finished, {identifier for identifier, _ in skipped}))
        write_bytes(self.path / "ids.txt", kept)
        if skipped:
            write_bytes(self.path / "skipped.tsv", "".join(f"{i}\t{why}\n" for i, why in skipped).encode())
        count = sum(record["rows"] for record in finished)
        facts: dict[str, Any] = {"count": count, "skipped": len(skipped)}
        facts |= {"ids_sha256": hashlib.sha256(kept).hexdigest(), "shards": finished, "made_by": dict(made_by or {})}
        write_json(self.path / "manifest.json", self.plan | facts)
        self._tidy_up()
        return True

    def _tidy_up(self) -> None:
        """Remove what a complete directory does not need, of whichever machine, but no file of a live process."""
        for leftover in self.path.glob(f"features-*.{TEMPORARY}"):
            if not owner_is_alive(leftover):
                leftover.unlink(missing_ok=True)
        shutil.rmtree(self._partial, ignore_errors=True)

    def _kept_ids(self, records: Sequence[dict[str, Any]], skipped: Set[str]) -> list[str]:
        """The ids of all rows, from the records of all shards."""
        return [identifier for identifier in self.ids if identifier not in skipped]

    def _record(self, shard: int) -> dict[str, Any] | None:
        """The record of a finished shard; None if the shard has to be written."""
        file = self._partial / f"{shard:05d}.json"
        if not file.exists():
            return None
        remedy = "remove it, and the shard will be written again"
        record = check_shard(str(file), read_json(file), remedy)
        if record["file"] != shard_name(shard) or not is_skipped(record.get("skipped")):
            raise UserError(f"{file}: is not the record of shard {shard}; {remedy}")
        return record if (self.path / record["file"]).exists() else None


class PartWriter(FeatureWriter):
    """Writes a feature directory whose shards are parts, such as tars, that hold any number of inputs.

    What a part holds is known once it is read, so the record of its shard has the ids. If two parts have the same id,
    all ids become PART/ID.

    Args:
        path: directory to create or to continue.
        parts: names of the parts, in order.
        plan: the other arguments of `FeatureWriter`, without `shard_rows`.
    """

    def __init__(self, path: str | Path, parts: Sequence[str], **plan: Any) -> None:
        super().__init__(path, parts, shard_rows=1, **plan)

    def write(self, shard: int, features: npt.ArrayLike, skipped: Sequence[tuple[str, str]] = ()) -> None:
        """Parts are written with `write_shard`, which takes their ids."""
        raise NotImplementedError

    def _kept_ids(self, records: Sequence[dict[str, Any]], skipped: Set[str]) -> list[str]:
        found = [record.pop("ids") for record in records]
        ids = [identifier for own in found for identifier in own]
        if len(set(ids)) == len(ids):
            return ids
        return [f"{part}/{identifier}" for part, own in zip(self.ids, found, strict=True) for identifier in own]


def write_shard(
    path: Path,
    plan: Mapping[str, Any],
    shard: int,
    ids: Sequence[str],
    features: npt.ArrayLike,
    skipped: Sequence[tuple[str, str]] = (),
    with_ids: bool = False,
) -> None:
    """Write one shard of a directory that a `FeatureWriter` has started; it is on the disk when this returns.

    If another process with the same command has completed the directory meanwhile, its shard stays.

    Args:
        path: the directory.
        plan: of its writer.
        shard: number of the shard.
        ids: of all its inputs.
        features: (rows, dim) features of the inputs that are not skipped, in order.
        skipped: (id, reason) of inputs without features.
        with_ids: keep the ids in the record, for a `PartWriter`.

    Raises:
        UserError: the wrong shape, values that are not finite, or rows that should be normalised and are not.
    """
    with np.errstate(over="ignore"):  # check_values names what float16 cannot hold
        array = np.ascontiguousarray(features, dtype=plan["dtype"])
    skipped_ids = {identifier for identifier, _ in skipped}
    kept = [identifier for identifier in ids if identifier not in skipped_ids]
    if array.shape != (len(kept), plan["dim"]):
        raise UserError(f"{path}: shard {shard} needs values of shape {(len(kept), plan['dim'])}, got {array.shape}")
    check_values(path, kept, array, plan["normalized"])
    file = path / shard_name(shard)
    try:
        with complete_file(file) as stream:
            np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(array))
            stream.write(array.data)  # np.save hides why a disk takes no more
            if is_complete(path):
                raise FileExistsError(errno.EEXIST, "is complete already", str(path))
        record = {"file": file.name, "rows": len(kept), "sha256": file_sha256(file), "skipped": list(skipped)}
        write_json(path / "partial" / f"{shard:05d}.json", record | ({"ids": kept} if with_ids else {}))
    except (FileExistsError, FileNotFoundError):
        if not is_complete(path):
            raise


def is_complete(path: Path) -> bool:
    """Whether a directory has a manifest, which is written last."""
    return (path / "manifest.json").exists()


def is_skipped(value: Any) -> bool:
    """Whether a record's list of skipped inputs is a list of (id, reason)."""
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in value
    )
