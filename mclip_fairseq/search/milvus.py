"""A collection of Milvus: a server or cluster, or, for small use, a file that milvus-lite keeps."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mclip_fairseq.search.addresses import AGAIN, Addresses
from mclip_fairseq.search.base_store import FACTS, BaseStore
from mclip_fairseq.search.engine import Unavailable, Vectors
from mclip_fairseq.search.records import NUMBERS, TEXT_BYTES
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.extras import import_extra

SERVER = re.compile(r"(https?|tcp|unix)://?[^\s@]+")
ADDRESSES = Addresses("milvus", SERVER, "http://HOST:19530", ".db", "USER:PASSWORD")
# Kind -> (index of Milvus, the parameter of a search that says how much it compares).
INDEXES = {
    "exact": ("FLAT", ""),
    "ivf": ("IVF_FLAT", "nprobe"),
    "hnsw": ("HNSW", "ef"),
    "sq8": ("IVF_SQ8", "nprobe"),
    "pq": ("IVF_PQ", "nprobe"),
    "diskann": ("DISKANN", "search_list"),
}
MOST = 16384  # hits, queries and ids of one request
REQUEST_BYTES = 8 << 20  # of vectors; servers refuse requests of 64 MB
ANSWER_HITS = 65536
CONNECT_SECONDS, ANSWER_SECONDS, LOAD_SECONDS, WAIT_SECONDS = 10.0, 60.0, 600.0, 2.0
# Read when grpc is imported: it logs what is raised, too. Processes that decode images are forked, and do not use it.
GRPC = {"GRPC_VERBOSITY": "NONE", "GRPC_ENABLE_FORK_SUPPORT": "0"}
CONNECTION_CODE = 2  # of the errors of pymilvus
ARGUMENT_CODES = (6, 1100)  # of milvus-lite and of servers, for a filter that they cannot read
CREDENTIALS = re.compile(r"\bauth\b|authentic|authori[sz]|permission|privilege", re.I)
GONE = re.compile(r"unavailable|deadline|timed? ?out|retry|connect", re.I)


class MilvusStore(BaseStore):
    """One collection; see `Store` for the calls.

    Args:
        uri: `http://HOST:19530`, or a file that ends in `.db`.
        collection: its name.
        token: `user:password` or an API key; empty where the server asks for none.
        create: whether the file may be created.

    Raises:
        UserError: the name or address is malformed, or the server refuses the credentials.
        Unavailable: the server cannot be reached.
    """

    most = MOST

    def __init__(self, uri: str, collection: str, token: str = "", create: bool = False) -> None:
        super().__init__(ADDRESSES, uri, collection, create)
        for name, value in GRPC.items():
            os.environ.setdefault(name, value)
        self.library: Any = import_extra("pymilvus", "milvus")
        if uri.endswith(".db"):
            import_extra("milvus_lite", "milvus")
        for name in ("pymilvus", "milvus_lite", "grpc._server"):  # they log what they also raise, or work around
            logging.getLogger(name).setLevel(logging.CRITICAL)
        with self.asking():
            self.client = self.library.MilvusClient(uri=uri, token=token, timeout=CONNECT_SECONDS)

    @contextlib.contextmanager
    def asking(self, where: str = "") -> Iterator[None]:
        """Say in one sentence what the database refuses.

        Args:
            where: the user's filter, if the request has one.
        """
        try:
            yield
        except self.library.MilvusException as error:
            reason = reason_of(error)
            refused = f"--where {where}: is refused by {self.place}: {reason}"
            if where and error.code in ARGUMENT_CODES:  # such a reason repeats the filter, which may hold any word
                raise UserError(refused) from error
            if CREDENTIALS.search(reason):
                message = f"{self.place}: refuses the credentials ({reason}); {ADDRESSES.remedy}"
                raise UserError(message) from error
            if "local milvus" in reason:
                message = f"{self.place}: cannot be opened ({reason}); wait until no other program has it open"
                raise Unavailable(message) from error
            if error.code == CONNECTION_CODE or GONE.search(reason):
                message = (
                    f"{self.place}: cannot be reached ({reason}); check --uri and that the server runs, and try again"
                )
                raise Unavailable(message) from error
            if where:
                raise UserError(refused) from error
            message = f"{self.place}: the database reports: {reason}; {AGAIN}"
            raise UserError(message) from error

    def facts(self) -> dict[str, Any] | None:
        """See `Store`.

        Raises:
            UserError: the collection was not made by `mclip-search`.
        """
        with self.asking():
            if not self.client.has_collection(self.collection, timeout=ANSWER_SECONDS):
                return None
            described = self.client.describe_collection(self.collection, timeout=ANSWER_SECONDS)
        width = next(field["params"]["dim"] for field in described["fields"] if field["name"] == "vector")
        facts = self.facts_in(described.get("properties"), width)
        if not self.loaded:
            with self.asking():
                self.client.load_collection(self.collection, timeout=LOAD_SECONDS)
            self.loaded = True
        return facts

    def create(self, dim: int, kind: str, parameters: Mapping[str, int], facts: Mapping[str, Any]) -> None:
        """See `Store`."""
        types, self.kind = self.library.DataType, kind
        schema = self.client.create_schema(auto_id=False, enable_dynamic_field=True)
        for name, size in TEXT_BYTES.items():
            schema.add_field(name, types.VARCHAR, max_length=size, is_primary=name == "id")
        for name in NUMBERS:
            schema.add_field(name, types.INT64)
        schema.add_field("vector", types.FLOAT_VECTOR, dim=dim)
        indexes = self.client.prepare_index_params()
        indexes.add_index(
            "vector", index_name="vector", index_type=INDEXES[kind][0], metric_type="IP", params=dict(parameters)
        )
        for name in ("folder", "date"):
            indexes.add_index(name, index_type="INVERTED")
        remove_leftover(self.uri, self.collection)
        with self.asking():
            self.client.create_collection(
                self.collection,
                schema=schema,
                index_params=indexes,
                properties={FACTS: json.dumps(facts)},
                # Removed images must not be found any more, and a resumed run must see what it has written.
                consistency_level="Strong",
                timeout=ANSWER_SECONDS,
            )

    def write_facts(self, facts: Mapping[str, Any]) -> None:
        """See `Store`."""
        properties = {FACTS: json.dumps(facts)}
        with self.asking():
            self.client.alter_collection_properties(self.collection, properties=properties, timeout=ANSWER_SECONDS)

    def upsert(self, records: Sequence[Mapping[str, Any]], vectors: Vectors) -> None:
        """See `Store`."""
        rows = [{**record, "vector": vector} for record, vector in zip(records, vectors, strict=True)]
        step = max(1, min(MOST, REQUEST_BYTES // (vectors.shape[1] * vectors.itemsize)))
        for start in range(0, len(rows), step):
            with self.asking():
                self.client.upsert(self.collection, rows[start : start + step], timeout=ANSWER_SECONDS)

    def finish(self) -> None:
        """See `Store`."""
        with self.asking():
            self.client.flush(self.collection)
            while int(self.client.describe_index(self.collection, "vector").get("pending_index_rows", 0)):
                time.sleep(WAIT_SECONDS)

    def get(self, ids: Sequence[str], fields: Sequence[str]) -> dict[str, dict[str, Any]]:
        """See `Store`."""
        found: dict[str, dict[str, Any]] = {}
        step = 512 if "vector" in fields else 4096
        for start in range(0, len(ids), step):
            with self.asking():
                records = self.client.query(
                    self.collection,
                    filter=one_of(ids[start : start + step]),
                    output_fields=["id", *fields],
                    timeout=ANSWER_SECONDS,
                )
            found |= {record["id"]: record for record in records}
        return found

    def delete(self, ids: Sequence[str]) -> None:
        """See `Store`."""
        for start in range(0, len(ids), 4096):
            with self.asking():
                self.client.delete(self.collection, filter=one_of(ids[start : start + 4096]), timeout=ANSWER_SECONDS)

    def search(
        self, queries: Vectors, k: int, fields: Sequence[str], effort: int | None, where: str
    ) -> list[list[tuple[float, dict[str, Any]]]]:
        """See `Store`."""
        name = INDEXES[self.kind][1]
        # A graph cannot return more than it walks.
        values = {name: effort if name == "nprobe" else max(effort or 0, k)} if name and effort else {}
        found: list[list[tuple[float, dict[str, Any]]]] = []
        step = max(1, min(MOST, ANSWER_HITS // k))
        for start in range(0, len(queries), step):
            with self.asking(where):
                answers = self.client.search(
                    self.collection,
                    data=list(np.ascontiguousarray(queries[start : start + step], dtype=np.float32)),
                    anns_field="vector",
                    limit=k,
                    filter=where,
                    output_fields=list(fields),
                    search_params={"metric_type": "IP", "params": values},
                    timeout=ANSWER_SECONDS,
                )
            found += [[(hit["distance"], hit["entity"] | {"id": hit["id"]}) for hit in hits] for hits in answers]
        return found

    def count(self) -> int:
        """See `Store`."""
        with self.asking():
            answer = self.client.query(self.collection, filter="", output_fields=["count(*)"], timeout=ANSWER_SECONDS)
        return int(answer[0]["count(*)"])

    def some(self, count: int) -> list[str]:
        """See `Store`."""
        with self.asking():
            records = self.client.query(
                self.collection, filter="", limit=count, output_fields=["id"], timeout=ANSWER_SECONDS
            )
        return [record["id"] for record in records]


def remove_leftover(uri: str, collection: str) -> None:
    """Remove what a full disk has left of a collection that milvus-lite could not create, if it holds no data."""
    folder = Path(uri, "collections", collection)
    if uri.endswith(".db") and not (folder / "partitions").exists():
        shutil.rmtree(folder, ignore_errors=True)


def reason_of(error: Any) -> str:
    """What an error of pymilvus says, on one line: what the server answered, where the error hides that."""
    details = getattr(error.__cause__, "details", None)  # of an error of grpc
    hidden = details() if error.code == CONNECTION_CODE and callable(details) else None
    return " ".join(str(hidden or error.message or error).split())[:300]


def one_of(ids: Sequence[str]) -> str:
    """The filter that takes these ids; JSON escapes quotes and backslashes as Milvus reads them."""
    return f"id in {json.dumps(list(ids), ensure_ascii=False)}"
