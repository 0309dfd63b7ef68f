"""The commands of `mclip-search` on an index of any engine: a directory of faiss, or a collection of a database."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from mclip_fairseq.search.settings import KINDS
from mclip_fairseq.storage.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from mclip_fairseq.search.addresses import Addresses
    from mclip_fairseq.search.engine import Index, Store


def is_database(options: argparse.Namespace) -> bool:
    """Whether the index is a collection of a database.

    Raises:
        UserError: options of a database for an index directory, or the other way round.
    """
    database: bool = options.engine != "faiss"
    where: str = getattr(options, "where", "")
    kind: str = getattr(options, "kind", "exact")
    if not database and options.uri:
        raise UserError("--uri is the address of a database; give its --engine, too")
    if not database and where:
        raise UserError("--where filters in a database, which an index directory is not; give --engine and --uri")
    if database and getattr(options, "hash_images", False):
        raise UserError("--hash-images is for an index directory: a database holds no hashes; leave it out")
    if not database and kind not in KINDS:
        raise UserError(f"--kind {kind} is for --engine milvus; choose one of {', '.join(KINDS)}")
    return database


def open_store(options: argparse.Namespace, collection: object, create: bool = False) -> Store:
    """The collection that the command line names; the token comes from the environment."""
    from mclip_fairseq.search import milvus, qdrant

    stores: dict[str, tuple[Callable[..., Store], Addresses]] = {
        "milvus": (milvus.MilvusStore, milvus.ADDRESSES),
        "qdrant": (qdrant.QdrantStore, qdrant.ADDRESSES),
    }
    store, addresses = stores[options.engine]
    uri = options.uri or os.environ.get(addresses.uri_variable, "")
    return store(uri, str(collection), os.environ.get(addresses.token_variable, ""), create)


def open_index(options: argparse.Namespace) -> Index:
    """The index that `query`, `serve` and `calibrate` search."""
    moved = getattr(options, "images_root", [])
    if is_database(options):
        from mclip_fairseq.search.collection import Collection

        return Collection(open_store(options, options.index), moved, getattr(options, "where", ""))
    from mclip_fairseq.search.index import SearchIndex

    return SearchIndex.open(options.index, moved)
