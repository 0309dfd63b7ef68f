"""Plain files: how lines are split, and what cannot be read."""

from pathlib import Path

import pytest

from mclip_fairseq.storage.files import read_lines


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
