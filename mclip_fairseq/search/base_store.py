"""What the stores of all databases share: name, address and facts of a collection."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Self

from mclip_fairseq.search.addresses import Addresses, check_collection_name
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import parse_json

FACTS = "mclip_fairseq"  # the property of a collection that holds its facts, as JSON


class BaseStore:
    """One collection.

    Args:
        addresses: of the engine.
        uri: address of the database.
        collection: its name.
        create: whether the file or folder may be created.

    Attributes:
        uri, collection: the arguments.
        place: what messages call it.
        kind: of its index, once the collection was created or its facts were read.
        loaded: whether the database has it in memory.

    Raises:
        UserError: the name or address is malformed.
    """

    def __init__(self, addresses: Addresses, uri: str, collection: str, create: bool) -> None:
        addresses.check(uri, create)
        check_collection_name(collection)
        self.uri, self.place, self.collection = uri, f"{uri}, collection {collection}", collection
        self.kind, self.loaded = "", False

    def beside(self, ending: str) -> Self:
        """The collection of the same database whose name has this ending more."""
        other = copy.copy(self)
        other.place, other.collection = self.place + ending, self.collection + ending
        other.kind, other.loaded = "", False
        return other

    def facts_in(self, properties: Mapping[str, Any] | None, dim: int) -> dict[str, Any]:
        """The facts among the properties of the collection, with the width of its vectors.

        Raises:
            UserError: the collection was not made by `mclip-search`.
        """
        text = (properties or {}).get(FACTS)
        if text is None:
            raise UserError(f"{self.place}: was not made by mclip-search build; choose another collection")
        facts: dict[str, Any] = parse_json(text)
        self.kind = str(facts.get("kind"))
        return facts | {"dim": int(dim)}
