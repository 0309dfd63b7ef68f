"""Types of fields in files from outside."""

import pytest

from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.fields import check_fields

FIELDS = {"count": int, "share": float, "name": str | None}


@pytest.mark.parametrize(
    "value",
    [{"count": 1, "share": 1, "name": "x"}, {"count": 0, "share": 0.5, "name": None}, {"count": 2, "share": 1.0}],
)
def test_fields_of_the_right_types_pass(value: object) -> None:
    assert check_fields("f.json", value, FIELDS, "make it again") is value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "f.json: holds a list instead of an object; make it again"),
        ({"share": 1.0}, "f.json: count is missing; make it again"),
        ({"count": True, "share": 1.0}, "f.json: count has the type bool, not int; make it again"),
        ({"count": 1, "share": "1"}, "f.json: share has the type str, not float; make it again"),
        ({"count": 1, "share": 1.0, "name": 3}, "f.json: name has the type int, not str or None; make it again"),
    ],
)
def test_other_types_are_named(value: object, message: str) -> None:
    with pytest.raises(UserError) as refused:
        check_fields("f.json", value, FIELDS, "make it again")
    assert str(refused.value) == message


def test_items_of_a_list_are_not_checked() -> None:
    kinds = {"names": list[str] | dict[str, int]}
    assert check_fields("f.json", {"names": [1]}, kinds, "make it again") == {"names": [1]}
    with pytest.raises(UserError, match="names has the type str, not list or dict"):
        check_fields("f.json", {"names": "x"}, kinds, "make it again")
