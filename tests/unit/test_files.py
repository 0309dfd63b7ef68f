"""Plain files: how lines are split, and what cannot be read."""

import os
from pathlib import Path

import pytest

from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import check_folder, read_lines


def test_lines_are_split_at_line_feeds_only(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    for data, expected in [
        (b"", []),
        (b"a", ["a"]),
        (b"a\r\nb\n\nc\n", ["a", "b", "", "c"]),
        ("\ufeffä\u2028\x0bb\n".encode(), ["ä\u2028\x0bb"]),
    ]:
        file.write_bytes(data)
        assert read_lines(file) == expected
    file.write_bytes(b"\xff")
    with pytest.raises(ValueError, match="is not UTF-8"):
        read_lines(file)
    with pytest.raises(ValueError, match="cannot be read"):
        read_lines(tmp_path / "none.gz")
    (tmp_path / "x.gz").write_bytes(b"not gzip")
    with pytest.raises(ValueError, match="cannot be read"):
        read_lines(tmp_path / "x.gz")


def test_an_output_that_cannot_be_made_is_refused_before_long_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for place in ("file", "file/below", "file/below/below"):
        with pytest.raises(UserError, match=f"^--output .*{place}: .*/file is a file; give a directory$"):
            check_folder("--output", tmp_path / place)
    for allowed in (tmp_path, tmp_path / "new/below", None):
        check_folder("--output", allowed)
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    check_folder("--output", tmp_path)  # what is complete may be read-only
    with pytest.raises(UserError, match=f"^--cache .*/new/below: {tmp_path} cannot be written to; give another"):
        check_folder("--cache", tmp_path / "new/below")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
