"""Types of fields in files from outside, checked once where they are read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, get_origin

from mclip_fairseq.storage.errors import UserError

Kind = type | UnionType


def check_fields(place: str | Path, value: Any, fields: Mapping[str, Kind], remedy: str) -> dict[str, Any]:
    """Check that a value is an object with fields of these types.

    Args:
        place: the file, for the message.
        value: what it holds.
        fields: name -> type, such as `int`, `str | None` or `list[Any]` (its items are not checked); other fields are
            ignored. A bool is not an int, and an int counts as a float.
        remedy: what to do, for the message, such as "make it again with mclip-features".

    Returns:
        `value`.

    Raises:
        UserError: naming the first field that is missing or has a different type.
    """
    if not isinstance(value, dict):
        raise UserError(f"{place}: holds a {type(value).__name__} instead of an object; {remedy}")
    for name, kind in fields.items():
        if name not in value and not has_type(None, kind):
            raise UserError(f"{place}: {name} is missing; {remedy}")
        if not has_type(value.get(name), kind):
            actual = "null" if value[name] is None else type(value[name]).__name__
            raise UserError(f"{place}: {name} has the type {actual}, not {kind_name(kind)}; {remedy}")
    return value


def has_type(value: Any, kind: Kind) -> bool:
    """Whether a value has a type; unlike `isinstance`, a bool is not an int, and an int counts as a float."""
    if isinstance(kind, UnionType):
        return any(has_type(value, part) for part in kind.__args__)
    if isinstance(value, bool):
        return kind is bool or kind is object
    kind = get_origin(kind) or kind  # of a `dict[str, Any]`, the dict
    return isinstance(value, int | float if kind is float else kind)


def kind_name(kind: Kind) -> str:
    """A type as a person reads it: `int`, `str or None`."""
    if isinstance(kind, UnionType):
        return " or ".join(map(kind_name, kind.__args__))
    return "None" if kind is type(None) else kind.__name__
