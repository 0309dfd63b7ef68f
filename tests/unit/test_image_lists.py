from __future__ import annotations

from pathlib import Path

import pytest

from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.image_lists import read_image_list, typed
from mclip_fairseq.storage.images import find_images


def test_a_header_names_columns(tmp_path: Path) -> None:
    (tmp_path / "list.tsv").write_text("id\tpath\tyear\tcamera\tf\na\tx/a.png\t2024\tX100\t1.5\nb\t/b.png\t\t\t2\n")
    listed = read_image_list(tmp_path / "list.tsv", None)
    assert listed.images == [("a", tmp_path / "x/a.png"), ("b", Path("/b.png"))]
    assert listed.columns == {"year": [2024, None], "camera": ["X100", None], "f": [1.5, 2.0]}
    assert find_images(None, tmp_path / "list.tsv").columns == listed.columns


def test_without_a_header_a_line_is_a_path_or_an_id_and_a_path(tmp_path: Path) -> None:
    (tmp_path / "list.tsv").write_text("id\tpath\nx y.png\n")
    listed = read_image_list(tmp_path / "list.tsv", tmp_path / "root")
    assert listed.images == [("id", tmp_path / "root/path"), ("x y.png", tmp_path / "root/x y.png")]
    assert listed.columns == {}


def test_a_column_is_numbers_only_where_every_value_is_one() -> None:
    assert typed(["1", "", "-20"]) == [1, None, -20]
    assert typed(["1", "2.5", "1e3"]) == [1.0, 2.5, 1000.0]
    assert typed(["007", "1"]) == ["007", "1"]  # a name
    assert typed(["1", "x"]) == ["1", "x"]
    assert typed(["9" * 30, "1"]) == [1e30, 1.0]
    assert typed(["", ""]) == [None, None]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id\tpath\ta\nx\tx.png\n", "line 2: has 2 fields, but the header names 3"),
        ("id\tpath\ta\nx\tx.png\t1\t2\n", "line 2: has 4 fields, but the header names 3"),
        ("id\tpath\ta b\nx\tx.png\t1\n", "line 1: 'a b' cannot name a column"),
        ("id\tpath\ta\ta\nx\tx.png\t1\t1\n", "line 1: names the column 'a' more than once"),
        ("id\tpath\tid\nx\tx.png\t1\n", "line 1: names the column 'id' more than once"),
        ("id\tpath\ta\nx\t\t1\n", "line 2: names no image"),
        ("id\tpath\ta\nx\ty\t1\nx\tz\t1\n", "line 3: the id 'x' is already on line 2"),
        ("id\tpath\ta\n", "lists no images"),
    ],
)
def test_a_malformed_table_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "list.tsv").write_text(text)
    with pytest.raises(UserError, match=r"list\.tsv") as caught:
        read_image_list(tmp_path / "list.tsv", None)
    assert message in str(caught.value)
