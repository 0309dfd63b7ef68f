"""A collection of Qdrant: a server or cluster, or, for small use, a folder that its client keeps."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mclip_fairseq.search.addresses import AGAIN, Addresses
from mclip_fairseq.search.base_store import FACTS, BaseStore
from mclip_fairseq.search.engine import Unavailable, Vectors
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.extras import import_extra

ADDRESSES = Addresses("qdrant", re.compile(r"https?://[^\s@]+"), "http://HOST:6333", ".qdrant", "an API key")
KINDS = ("exact", "hnsw", "sq8")  # sq8 is a graph over one byte per dimension
MOST = 10_000  # hits and ids of one request
REQUEST_NUMBERS = 400_000  # of vectors in a request, which the server reads as JSON of up to 32 MB
ANSWER_SECONDS, WAIT_SECONDS = 60, 2.0


class QdrantStore(BaseStore):
    """One collection; see `Store` for the calls.

    Args:
        uri: `http://HOST:6333`, or a folder that ends in `.qdrant`.
        collection: its name.
        token: an API key; empty where the server asks for none.
        create: whether the folder may be created.

    Raises:
        UserError: the name or address is malformed.
        Unavailable: another program has the folder open.
    """

    most = MOST

    def __init__(self, uri: str, collection: str, token: str = "", create: bool = False) -> None:
        super().__init__(ADDRESSES, uri, collection, create)
        self.library: Any = import_extra("qdrant_client", "qdrant")
        self.models: Any = self.library.models
        at = {"url": uri, "api_key": token or None, "timeout": ANSWER_SECONDS} if "://" in uri else {"path": uri}
        for what in ("Api key", "Payload indexes", "Local mode"):  # without TLS; what a folder cannot do
            warnings.filterwarnings("ignore", message=what, category=UserWarning)
        with self.asking():
            self.client = self.library.QdrantClient(
                **at, check_compatibility=False, force_disable_check_same_thread=True
            )

    @contextlib.contextmanager
    def asking(self, where: str = "") -> Iterator[None]:
        """Say in one sentence what the database refuses.

        Args:
            where: the user's filter, if the request has one.
        """
        errors = self.library.http.exceptions
        try:
            yield
        except errors.ResponseHandlingException as error:
            message = f"{self.place}: cannot be reached ({error}); check --uri and that the server runs, and try again"
            raise Unavailable(message) from error
        except errors.UnexpectedResponse as error:
            reason = reason_of(error)
            if error.status_code in (401, 403):
                message = f"{self.place}: refuses the credentials ({reason}); {ADDRESSES.remedy}"
            elif where and error.status_code == 400:
                message = f"--where {where}: is refused by {self.place}: {reason}"
            else:
                message = f"{self.place}: the database reports: {reason}; {AGAIN}"
            raise UserError(message) from error
        except (sqlite3.Error, OSError) as error:  # of a folder, such as a full disk
            raise UserError(f"{self.place}: the database reports: {error}; {AGAIN}") from error
        except json.JSONDecodeError as error:
            raise UserError(f"{self.place}: is damaged ({error}); remove the folder and build it again") from error
        except RuntimeError as error:  # of the client, about a folder
            message = f"{self.place}: cannot be opened; wait until no other program has it open"
            raise Unavailable(message) from error

    def facts(self) -> dict[str, Any] | None:
        """See `Store`.

        Raises:
            UserError: the collection was not made by `mclip-search`.
        """
        with self.asking():
            if not self.client.collection_exists(self.collection):
                return None
            config = self.client.get_collection(self.collection).config
        return self.facts_in(config.metadata, config.params.vectors.size)

    def create(self, dim: int, kind: str, parameters: Mapping[str, int], facts: Mapping[str, Any]) -> None:
        """See `Store`.

        Raises:
            UserError: Qdrant has no such kind.
        """
        if kind not in KINDS:
            raise UserError(f"--kind {kind}: Qdrant has no such index; choose one of {', '.join(KINDS)}")
        models, self.kind = self.models, kind
        graph = {"m": parameters.get("M"), "ef_construct": parameters.get("efConstruction")}
        bytewise = models.ScalarQuantizationConfig(type=models.ScalarType.INT8)
        with self.asking():
            self.client.create_collection(
                self.collection,
                vectors_config=models.VectorParams(size=dim, distance=models.Distance.DOT),
                hnsw_config=models.HnswConfigDiff(**({"m": 0} if kind == "exact" else graph)),
                quantization_config=models.ScalarQuantization(scalar=bytewise) if kind == "sq8" else None,
                metadata={FACTS: json.dumps(facts)},
            )
            for name, schema in (("folder", "keyword"), ("date", "datetime")):
                self.client.create_payload_index(self.collection, name, schema)

    def write_facts(self, facts: Mapping[str, Any]) -> None:
        """See `Store`."""
        with self.asking():
            self.client.update_collection(self.collection, metadata={FACTS: json.dumps(facts)})

    def upsert(self, records: Sequence[Mapping[str, Any]], vectors: Vectors) -> None:
        """See `Store`."""
        step = max(1, REQUEST_NUMBERS // vectors.shape[1])
        for start in range(0, len(records), step):
            part = records[start : start + step]
            points = self.models.Batch(
                ids=points_of([record["id"] for record in part]),
                vectors=vectors[start : start + step].tolist(),
                payloads=list(part),
            )
            with self.asking():
                self.client.upsert(self.collection, points, wait=True)

    def finish(self) -> None:
        """See `Store`."""
        with self.asking():
            while self.client.get_collection(self.collection).status == self.models.CollectionStatus.YELLOW:
                time.sleep(WAIT_SECONDS)

    def get(self, ids: Sequence[str], fields: Sequence[str]) -> dict[str, dict[str, Any]]:
        """See `Store`."""
        found: dict[str, dict[str, Any]] = {}
        wanted, step = ["id", *fields], 512 if "vector" in fields else MOST
        for start in range(0, len(ids), step):
            points = points_of(ids[start : start + step])
            with self.asking():
                records = self.client.retrieve(self.collection, points, wanted, with_vectors="vector" in fields)
            found |= {record.payload["id"]: record.payload | {"vector": record.vector} for record in records}
        return found

    def delete(self, ids: Sequence[str]) -> None:
        """See `Store`."""
        for start in range(0, len(ids), MOST):
            with self.asking():
                self.client.delete(self.collection, points_of(ids[start : start + MOST]), wait=True)

    def search(
        self, queries: Vectors, k: int, fields: Sequence[str], effort: int | None, where: str
    ) -> list[list[tuple[float, dict[str, Any]]]]:
        """See `Store`."""
        asked = {
            "filter": self.filter_of(where),
            "params": self.models.SearchParams(exact=self.kind == "exact", hnsw_ef=effort and max(effort, k)),
            "limit": k,
            "with_payload": ["id", *fields],
        }
        found: list[list[tuple[float, dict[str, Any]]]] = []
        step = max(1, MOST // k)
        for start in range(0, len(queries), step):
            rows = queries[start : start + step].tolist()
            with self.asking(where):
                requests = [self.models.QueryRequest(query=row, **asked) for row in rows]
                answers = self.client.query_batch_points(self.collection, requests)
            found += [[(hit.score, hit.payload) for hit in answer.points] for answer in answers]
        return found

    def filter_of(self, where: str) -> Any:
        """A filter of the user in Qdrant's own form; None for none.

        Raises:
            UserError: it has another form.
        """
        try:
            return self.models.Filter.model_validate_json(where) if where else None
        except ValueError as error:
            reason = " ".join(str(error).split("For further")[0].split())
            raise UserError(f"--where {where}: is not a filter of Qdrant in JSON: {reason}") from error

    def count(self) -> int:
        """See `Store`."""
        with self.asking():
            return int(self.client.count(self.collection, exact=True).count)

    def some(self, count: int) -> list[str]:
        """See `Store`."""
        with self.asking():
            points, _ = self.client.scroll(self.collection, limit=count, with_payload=["id"])
        return [point.payload["id"] for point in points]


def points_of(ids: Sequence[str]) -> list[str]:
    """The points of ids: Qdrant names points by UUID."""
    return [str(uuid.uuid5(uuid.NAMESPACE_URL, name)) for name in ids]


def reason_of(error: Any) -> str:
    """What a server answered, on one line."""
    answer = f"{error.status_code} {error.reason_phrase}: {error.content.decode(errors='replace')}"
    return " ".join(answer.split())[:300]
