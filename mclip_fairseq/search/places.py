"""Where the images and the model of an index are on this machine.

An index is made to be shared, so it names no path. What was made here is remembered in the user's cache; an index that
came from elsewhere chooses nothing that is read or fetched: the user names its images and its model.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mclip_fairseq.search.settings import ModelPaths
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.fields import check_fields
from mclip_fairseq.storage.files import read_json, write_bytes
from mclip_fairseq.storage.verified import cache_folder

FIELDS = {"roots": list, "model": dict}
MODEL_FIELDS = {"path": str, "text_encoder": str | None, "teacher": str | None}


@dataclass(frozen=True)
class KnownPlaces:
    """Places of an index that was made on this machine.

    Attributes:
        roots: absolute folders of its images.
        model: where its model is loaded from.
    """

    roots: Sequence[str]
    model: ModelPaths


def remember(manifest: Mapping[str, Any], places: KnownPlaces) -> None:
    """Record the places of an index; if the cache cannot be written to, nothing is recorded."""
    content = {"roots": list(places.roots), "model": asdict(places.model)}
    with contextlib.suppress(OSError):
        record = record_of(manifest)
        record.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(record, json.dumps(content).encode())


def recall(manifest: Mapping[str, Any]) -> KnownPlaces | None:
    """The places of an index; None if it was not made on this machine, or the record is gone or damaged."""
    record = record_of(manifest)
    if not record.is_file():
        return None
    try:
        content = check_fields(record, read_json(record), FIELDS, "remove it")
        check_fields(record, content["model"], MODEL_FIELDS, "remove it")
    except UserError:  # as good as none: the user is asked for the places
        return None
    model = {name: content["model"].get(name) for name in MODEL_FIELDS}
    return KnownPlaces([str(root) for root in content["roots"]], ModelPaths(**model))


def record_of(manifest: Mapping[str, Any]) -> Path:
    """The record of an index: it belongs to these rows, so that nobody else's rows are read below its folders."""
    facts = [manifest.get("id"), manifest["files"]["rows"]["sha256"], manifest["model"]["fingerprint"]]
    return cache_folder() / "indexes" / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]}.json"
