"""Where the bank of an index is kept: in `bank.json` of its directory, or in a collection beside that of the images."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mclip_fairseq.search.bank import AGAIN, LEAST, MOST, Bank
from mclip_fairseq.search.engine import Store
from mclip_fairseq.search.records import NUMBERS, TEXT_BYTES
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.fields import check_fields, has_type
from mclip_fairseq.storage.files import read_json, write_bytes

FILE = "bank.json"
ENDING = "_mclip_bank"  # of the collection's name
FORMAT, VERSION = "mclip_fairseq bank of queries", 1
FIELDS = {"format": str, "version": int, "fingerprint": str, "content": str, "dim": int}
COLUMNS = {"languages": str, "images": str, "nearest": str, "best": float}


def fields_of(bank: Bank) -> dict[str, Any]:
    """What is written of a bank besides its queries."""
    values = (FORMAT, VERSION, bank.fingerprint, bank.content, bank.vectors.shape[1])
    return dict(zip(FIELDS, values, strict=True))


def columns_of(bank: Bank) -> dict[str, list[Any]]:
    """What is written of each query besides its vector."""
    values = (bank.languages.tolist(), list(bank.images), list(bank.nearest), bank.best.tolist())
    return dict(zip(COLUMNS, values, strict=True))


def checked_bank(place: Path | str, content: Mapping[str, Any], data: bytes) -> Bank:
    """The bank of these fields and columns.

    Args:
        place: of the bank.
        content: `FIELDS` and `COLUMNS`.
        data: its vectors.

    Raises:
        UserError: it is damaged.
    """
    count, dim = len(content["languages"]), content["dim"]
    sound = (content["format"], content["version"]) == (FORMAT, VERSION) and LEAST <= count <= MOST
    sound = sound and all(
        len(content[name]) == count and all(has_type(value, kind) for value in content[name])
        for name, kind in COLUMNS.items()
    )
    sound = sound and all(abs(cosine) < 2 for cosine in content["best"])  # also false of NaN
    if not sound or dim < 1 or len(data) != 4 * count * dim or not np.isfinite(np.frombuffer(data, dtype="<f4")).all():
        raise UserError(f"{place}: is damaged, or of another version; {AGAIN}")
    vectors = np.frombuffer(data, dtype="<f4").reshape(count, dim).astype(np.float32)
    best = np.array(content["best"], dtype=np.float64)
    texts = np.array(content["languages"]), content["images"], content["nearest"]
    return Bank(vectors, *texts, best, content["fingerprint"], content["content"])


def write_bank_file(path: Path, bank: Bank) -> None:
    """Write a bank into a file."""
    content = fields_of(bank) | columns_of(bank)
    content["vectors"] = base64.b64encode(bank.vectors.astype("<f4").tobytes()).decode()
    write_bytes(path, json.dumps(content, ensure_ascii=False).encode() + b"\n")


def read_bank_file(path: Path) -> Bank | None:
    """The bank in a file; None if there is no file.

    Raises:
        UserError: it is damaged.
    """
    if not path.is_file():
        return None
    content = check_fields(path, read_json(path), FIELDS | dict.fromkeys(COLUMNS, list) | {"vectors": str}, AGAIN)
    try:
        data = base64.b64decode(content["vectors"], validate=True)
    except ValueError:
        data = b""
    return checked_bank(path, content, data)


def facts_of(store: Store) -> dict[str, Any] | None:
    """What the collection of a bank says about itself; None if there is no such collection."""
    facts = store.facts()
    return facts and check_fields(store.place, facts, FIELDS | {"id": str, "count": int}, f"drop it, and {AGAIN}")


def names_in(facts: Mapping[str, Any]) -> list[str]:
    """The ids of the queries of a collection."""
    return [f"{facts['id']}-{number}" for number in range(facts["count"])]


def write_bank_records(store: Store, bank: Bank) -> None:
    """Write a bank into a collection; an earlier one is replaced once all queries are there.

    Raises:
        UserError: the collection holds vectors of another width.
    """
    count, dim = bank.vectors.shape
    facts = fields_of(bank) | {"id": uuid.uuid4().hex, "kind": "exact", "count": count}
    earlier = facts_of(store)
    if earlier is None:
        store.create(dim, "exact", {}, facts | {"count": 0})
    elif earlier["dim"] != dim:
        raise UserError(f"{store.place}: holds vectors of {earlier['dim']} dimensions, not of {dim}; drop it")
    bare = dict.fromkeys(TEXT_BYTES, "") | dict.fromkeys(NUMBERS, 0)
    columns = columns_of(bank)
    records = [
        bare | {"id": name} | {column: columns[column][n] for column in columns}
        for n, name in enumerate(names_in(facts))
    ]
    store.upsert(records, bank.vectors)
    store.finish()
    store.write_facts(facts)
    store.delete(names_in(earlier) if earlier else [])


def read_bank_records(store: Store) -> Bank | None:
    """The bank in a collection; None if there is no such collection.

    Raises:
        UserError: it is damaged.
    """
    facts = facts_of(store)
    if facts is None or not 0 < facts["count"] <= MOST:  # 0: an interrupted command has not written all queries
        return None
    found = store.get(names_in(facts), [*COLUMNS, "vector"])
    records = [found[name] for name in names_in(facts) if name in found]
    columns = {column: [record.get(column) for record in records] for column in COLUMNS}
    vectors = np.array([record["vector"] for record in records], dtype="<f4")
    return checked_bank(store.place, facts | columns, vectors.tobytes() if len(records) == facts["count"] else b"")
