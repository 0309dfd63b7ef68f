"""Dictionaries and ids of `preprocess/binarise.py` are those of fairseq."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from corpora.files import RawChunk
from corpora.pieces import PieceDictionary, ids_of_lines
from fairseq.data import Dictionary

from mclip_fairseq.storage.indexed import fitting_dtype, flat_ids, read_indexed, write_indexed

LINES = ["a b", "", "  b\u00a0</s> other\u2028a ", "<s> c"]


@pytest.mark.parametrize(
    "text", ["a 1\nb 22\n", "a 1\nb 2\na 3 #fairseq:overwrite\nc 07\n", "\u2581a 1\r\n\u2581 5 \n"]
)
def test_ids_and_dictionary_are_those_of_fairseq(text: str, tmp_path: Path) -> None:
    path, saved = tmp_path / "dict.txt", tmp_path / "saved.txt"
    path.write_bytes(text.encode())
    ours, theirs = PieceDictionary.read(path), Dictionary.load(str(path))
    theirs.save(str(saved))
    assert ours.text == saved.read_text(encoding="utf-8")
    values, sizes = ids_of_lines(RawChunk(path, 1, [line.encode() for line in LINES]), ours)
    expected = [theirs.encode_line(line, add_if_not_exist=False).tolist() for line in LINES]
    assert values.tolist() == [number for line in expected for number in line]
    assert sizes.tolist() == [len(line) for line in expected]


@pytest.mark.parametrize(("entries", "kind"), [(65499, np.uint16), (65500, np.uint32)])
def test_what_is_written_is_read_again(entries: int, kind: type, tmp_path: Path) -> None:
    assert fitting_dtype(entries) is kind
    chunks = [flat_ids([[4, 2], [2]], kind), flat_ids([[entries - 1, 5, 2]], kind)]
    assert write_indexed(tmp_path / "x", chunks, kind) == 3
    values, sizes = read_indexed(tmp_path / "x")
    assert values.tolist() == [4, 2, 2, entries - 1, 5, 2]
    assert values.dtype == kind
    assert sizes.tolist() == [2, 1, 3]


def test_the_programs_start_without_torch(repository_root: Path) -> None:
    code = "import sys, binarise, encode; assert not {'torch', 'fairseq'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], cwd=repository_root / "preprocess", check=True)
