"""Hostile inputs, made on the spot: name -> what makes it -> the error message, or what is read.

The tests of captions, id lists, features, dictionaries and parallel files use all rows of these tables; images are in
`hostile_images`.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

DEEP_JSON = b"[" * 200_000


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.folder,)


# ------------------------------------------------------------------------------------------ captions


@dataclass(frozen=True)
class Caption:
    """A line of a caption file.

    Attributes:
        line: its bytes.
        features: what `mclip-features` says; None where it is read.
        evaluation: what `mclip-evaluate` says, likewise.
    """

    line: bytes
    features: str | None = None
    evaluation: str | None = None


CAPTIONS = {
    "empty": Caption(b"", "the caption is empty", "line 2: is empty; evaluation skips nothing"),
    "blank": Caption("  \u3000\u00a0".encode(), "the caption is empty", "line 2: is empty; evaluation skips nothing"),
    "100,000 tokens": Caption(b"dog " * 100_000),
    "one word of 100,000 letters": Caption(b"a" * 100_000),
    "control characters": Caption(b"\x01\x07\x08\x0b\x1b[31m\x7f"),
    "NUL": Caption(b"a\x00dog", "line 2: has a NUL character", "line 2: has a NUL character"),
    "tab": Caption(b"1.jpg\ta dog", "line 2: has a tab", "line 2: has a tab"),
    "carriage return inside": Caption(b"a dog\ra cat", *["line 2: has a carriage return inside"] * 2),
    "invalid UTF-8": Caption(b"a \xff dog", "line 2: is not UTF-8 text", "line 2: is not UTF-8 text"),
    "a surrogate": Caption(b"\xed\xa0\x80", "line 2: is not UTF-8 text", "line 2: is not UTF-8 text"),
    "overlong UTF-8": Caption(b"\xc0\xaf", "line 2: is not UTF-8 text", "line 2: is not UTF-8 text"),
    "right-to-left marks": Caption("\u202eshalom\u200f \u05e9\u05dc\u05d5\u05dd\u202c".encode()),
    "marks alone": Caption(
        "\u200f\u200e\u200b\ufeff".encode(), "the caption is empty", "line 2: is empty; evaluation skips nothing"
    ),
    "emoji alone": Caption("🐕‍🦺🏳️‍🌈👩🏽‍🚀".encode()),
    "combining marks": Caption(("e" + "\u0301" * 500).encode()),
    "carriage return": Caption(b"a dog\r"),
    "other line breaks": Caption("a\u2028b\x0bc\x85d".encode()),
}

# ------------------------------------------------------------------------------------------ id lists

# name -> (content, what `read_caption_ids` says of it beside three captions)
ID_LISTS = {
    "a line too few": (b"a\nb\n", "2 lines for 3 captions; write exactly one line per caption"),
    "a line too many": (b"a\nb\nc\nd\n", "4 lines for 3 captions"),
    "none at all": (b"", "0 lines for 3 captions"),
    "an empty line": (b"a\n\nc\n", "line 2: no image id, while other lines have one"),
    "a column that ends": (b"a\t1\nb\nc\t3\n", "line 2: no teacher text id, while other lines have one"),
    "invalid UTF-8": (b"a\nb\n\xff\n", "line 3: is not UTF-8 text"),
}
# name -> (content, what `find_images` says of it)
IMAGE_LISTS = {
    "a duplicate": (b"a.jpg\nb.jpg\na.jpg\n", "line 3: the id 'a.jpg' is already on line 1"),
    "two paths of an id": (b"x\ta.jpg\nx\tb.jpg\n", "line 2: the id 'x' is already on line 1"),
    "an empty line": (b"a.jpg\n\n", "line 2: names no image"),
    "nothing": (b"", "lists no images"),
    "invalid UTF-8": (b"a\n\xfe\xff\n", "line 2: is not UTF-8 text"),
}

# ------------------------------------------------------------------------------------------ features


def manifest(folder: Path, **changes: Any) -> None:
    """Change entries of a manifest."""
    file = folder / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def shard_entry(folder: Path, **changes: Any) -> None:
    """Change the first shard's entry."""
    entries = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["shards"]
    manifest(folder, shards=[entries[0] | changes, *entries[1:]])


def replace_shard(folder: Path, content: bytes) -> None:
    """Another first shard, with its right hash in the manifest."""
    (folder / "features-00000.npy").write_bytes(content)
    shard_entry(folder, sha256=sha256(content).hexdigest())


def npy(array: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def npy_header(header: str) -> bytes:
    """A `.npy` file that consists of a header."""
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode("latin1")


def npz(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, array)
    return stream.getvalue()


def with_value(value: float) -> bytes:
    array = np.ones((4, 3), dtype=np.float32)
    array[2, 1] = value
    return npy(array)


def flip_a_bit(folder: Path) -> None:
    file = folder / "features-00001.npy"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def empty_first_shard(folder: Path) -> None:
    shard_entry(folder, rows=0)
    (folder / "ids.txt").write_text("".join(f"id{number}\n" for number in range(4, 10)))
    manifest(folder, count=6, ids_sha256=sha256((folder / "ids.txt").read_bytes()).hexdigest())
    replace_shard(folder, npy_header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': (0, {10**15}), }}\n"))


NOT_NPY = r"features-00000.npy: is truncated or not a \.npy file"
# name -> (damage to a directory of ten float32 rows of three columns in shards of four, part of the message)
FEATURES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "NaN": (lambda f: replace_shard(f, with_value(np.nan)), r"the features of 'id2' \(row 2\) are not finite"),
    "infinity": (lambda f: replace_shard(f, with_value(-np.inf)), r"the features of 'id2' \(row 2\) are not finite"),
    "wrong dtype": (lambda f: replace_shard(f, npy(np.ones((4, 3)))), "holds float64 of shape"),
    "wrong dtype, in the manifest too": (lambda f: manifest(f, dtype="float64"), r"is damaged \(dtype is 'float64'\)"),
    "big-endian": (lambda f: replace_shard(f, npy(np.ones((4, 3), dtype=">f4"))), "holds >f4 of shape"),
    "wrong shape": (lambda f: replace_shard(f, npy(np.ones((4, 4), np.float32))), r"shape \(4, 4\), but the manifest"),
    "missing shard": (lambda f: (f / "features-00001.npy").unlink(), "features-00001.npy: is missing"),
    "changed bit": (flip_a_bit, "features-00001.npy: is altered or truncated"),
    "objects": (lambda f: replace_shard(f, npy(np.array([{}], dtype=object), allow_pickle=True)), NOT_NPY),
    "a pickle": (lambda f: replace_shard(f, pickle.dumps(Trap(f / "trap"))), NOT_NPY),
    "an archive": (lambda f: replace_shard(f, npz(np.ones((4, 3), np.float32))), NOT_NPY),
    "zero bytes": (lambda f: replace_shard(f, b""), NOT_NPY),
    "a deep header": (lambda f: replace_shard(f, npy_header("-" * 9000 + "1\n")), NOT_NPY),
    "a header that calls": (lambda f: replace_shard(f, npy_header("__import__('os').getcwd()\n")), NOT_NPY),
    "a header that does not end": (lambda f: replace_shard(f, npy_header("{'descr': '<f4', (\n")), NOT_NPY),
    "rows it does not hold": (
        lambda f: replace_shard(
            f, npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (4, 3), }\n") + b"\0" * 8
        ),
        NOT_NPY,
    ),
    "an empty shard of 10^15 values": (
        empty_first_shard,
        r"holds float32 of shape \(0, 1000000000000000\)",
    ),
    "a shard above": (lambda f: shard_entry(f, file="../x.npy"), r"shard 0: file is '\.\./x\.npy' and rows 4"),
    "a shard elsewhere": (lambda f: shard_entry(f, file="/etc/passwd"), r"shard 0: file is '/etc/passwd'"),
    "a shard with a line break": (lambda f: shard_entry(f, file="a\nb.npy"), r"shard 0: file is 'a\\nb\.npy'"),
    "a shard with a null": (lambda f: shard_entry(f, file="a\0.npy"), r"shard 0: file is 'a\\x00\.npy'"),
    "rows below zero": (lambda f: shard_entry(f, rows=-1), "shard 0: .* rows -1; make"),
    "rows that are true": (lambda f: shard_entry(f, rows=True), "shard 0: rows has the type bool, not int"),
    "rows beyond count": (lambda f: shard_entry(f, rows=10**30), "shard 0: .* rows 1000000"),
    "no columns": (lambda f: manifest(f, dim=0), r"is damaged \(dim is 0"),
    "too many columns": (lambda f: manifest(f, dim=10**12), r"is damaged \(dim is 1000000000000"),
    "another modality": (lambda f: manifest(f, modality="smell"), "modality is 'smell'"),
    "a deep manifest": (lambda f: (f / "manifest.json").write_bytes(DEEP_JSON), "is nested too deeply"),
    "a deep object": (lambda f: (f / "manifest.json").write_bytes(b'{"a":' * 100_000), "is nested too deeply"),
    "no manifest but YAML": (lambda f: (f / "manifest.json").write_text("!!python/name:os.system"), "cannot be read"),
    "a manifest in Latin-1": (lambda f: (f / "manifest.json").write_bytes(b'{"a": "\xe9"}'), "cannot be read"),
    "a number without end": (lambda f: (f / "manifest.json").write_bytes(b"9" * 10_000), "cannot be read"),
}

# ------------------------------------------------------------------------------------------ benchmarks

OUT = "which is not below it"
# Manifest of a benchmark -> what `mclip-evaluate` says of it.
BENCHMARKS = {
    '{"splits": []}': "names no split",
    '{"splits": {}}': "names no split",
    '{"splits": null}': "not list or dict",
    '{"splits": "test"}': "not list",
    '{"splits": ["test"]}': "holds a list instead of an object",
    '{"splits": {"test": ["en"]}}': "not dict",
    '{"splits": {"test": {}}}': "names no language",
    '{"splits": {"test": {"en": {}}}}': "captions is missing",
    '{"splits": {"test": {"en": "x"}}}': "holds a str instead of an object",
    '{"splits": {"test": {"en": {"captions": 1, "ids": 2}}}}': "not str",
    '{"splits": {"test": {"en": {"captions": "../xtd/test.en", "ids": "x"}}}}': OUT,
    '{"splits": {"test": {"en": {"captions": "/etc/hostname", "ids": "x"}}}}': OUT,
    '{"splits": {"test": {"en": {"captions": "a\\u0000b", "ids": "x"}}}}': OUT,
    '{"splits": {"te\\u001b[31mst": {}}}': "has no split 'test'; name one of te [31mst",
    '{"splits": {"test": {"\\u001b[31men": {}}}}': "names the language '\\x1b[31men', which cannot be shown",
    '{"tables": 1}': "not list",
    '{"tables": [1]}': "tables holds 1, which is not a name",
    '{"tables": []}': "names no split",
    '{"tables": ["x"]}': "names no split",
    '{"tables": ["x.test.y/../../sts/stsb"]}': OUT,
    '{"pairs": 1}': "not list",
    '{"pairs": [1]}': "pairs holds 1, which is not a name",
    '{"pairs": ["x"]}': "manifest.json|cannot be read",
    '{"pairs": []}': "names no language",
    '{"pairs": ["x/../../../tatoeba/test.deu-eng"]}': OUT,
    '{"languages": 3}': "not list",
    '{"name": 3, "languages": ["en"]}': "not str",
    '["languages"]': "holds a list instead of an object",
    '{"languages": []}': "names no language",
    '{"languages": ["x/../../en"]}': OUT,
    '{"name": "x", "pairs": ["deu-eng"], "notes": 3}': "not list",
}
WHOLE = "is not a whole number from 0 to "
# A file of a benchmark with its columns -> content, what `mclip-evaluate` says of it.
BENCHMARK_FILES = {
    "a fold that fills the memory": ("xtd/test.folds.tsv", "a\t0\nb\t999999999\n", f"line 2: '999999999' {WHOLE}1;"),
    "a fold beyond": ("xtd/test.folds.tsv", "a\t99999999999999999999\n", f"line 1: '99999999999999999999' {WHOLE}0;"),
    "a negative fold": ("xtd/test.folds.tsv", "a\t0\nb\t-1\n", f"line 2: '-1' {WHOLE}1;"),
    "a fold that is not a number": ("xtd/test.folds.tsv", "a\tx\n", f"line 1: 'x' {WHOLE}0;"),
    "a fold of many digits": ("xtd/test.folds.tsv", f"a\t{'9' * 5000}\n", f"line 1: '{'9' * 40}' {WHOLE}0;"),
    "a label that is not a number": ("babel/labels.tsv", "a\tx\n", f"labels.tsv, line 1: 'x' {WHOLE}999999999;"),
    "a class that is not a number": (
        "babel/classes.en.tsv",
        "0\ta\nzero\tc\n",
        f"en.tsv, line 2: 'zero' {WHOLE}999999999;",
    ),
    "a picture of another folder": (
        "xtd/images.tsv",
        "a\t../pictures/a.png\n",
        "'../pictures/a.png', which is not below",
    ),
    "a picture of the system": ("xtd/images.tsv", "a\ta.png\nb\t/etc/passwd\n", "line 2: names the picture '/etc/pas"),
    "a picture of a path alone": ("xtd/images.tsv", "/etc/passwd\n", "line 1: names the picture '/etc/passwd'"),
    "a score that is not a number": (
        "sts/stsb.test.de.tsv",
        "1\ta\tb\nnan\ta\tc\n",
        "line 2: 'nan' is not a finite number",
    ),
    "an infinite score": ("sts/stsb.test.de.tsv", "1e999\ta\tb\n", "line 1: '1e999' is not a finite number"),
    "a score that is a word": ("sts/stsb.test.de.tsv", "much\ta\tb\n", "line 1: 'much' is not a finite number"),
}

# ------------------------------------------------------------------------------------------ dictionaries, indexes

# name -> (content of dict.txt, part of the message)
DICTIONARIES = {
    "no counts": (b"one\ntwo\n", "is not a dictionary (Incorrect dictionary format"),
    "a word twice": (b"one 1\none 1\n", "is not a dictionary (Duplicate word found"),
    "invalid UTF-8": (b"\xff 1\n", "is not a dictionary (Incorrect encoding"),
    "a count that is not a number": (b"one many\n", "is not a dictionary (Incorrect dictionary format"),
    "a pickle": (pickle.dumps(Trap(Path("trap"))), "is not a dictionary"),
}


def index(sizes: list[int], code: int = 4, version: int = 1, starts: list[int] | None = None, width: int = 4) -> bytes:
    """A `.idx` file of fairseq."""
    if starts is None:
        starts = [int(start) for start in np.cumsum([0, *sizes])[:-1] * width]
    header = b"MMIDIDX\0\0" + struct.pack("<QBQ", version, code, len(sizes))
    return header + np.array(sizes, "<i4").tobytes() + np.array(starts, "<i8").tobytes()


def tokens(*ids: int) -> bytes:
    """The `.bin` file that belongs to it."""
    return np.array(ids, "<i4").tobytes()


TOKENS = tokens(4, 5, 2, 6, 2)
# name -> (.idx, .bin, part of the message with a dictionary of ten entries)
INDEXES = {
    "another format": (b"HUFFMAN\0\0" * 9, TOKENS, "is not an index of fairseq-preprocess"),
    "a pickle": (pickle.dumps(Trap(Path("trap"))), TOKENS, "is not an index of fairseq-preprocess"),
    "zero bytes": (b"", TOKENS, "is not an index of fairseq-preprocess"),
    "truncated": (index([3, 2])[:-1], TOKENS, "is truncated or damaged"),
    "header alone": (index([3, 2])[:20], TOKENS, "is truncated"),
    "10^18 sentences": (b"MMIDIDX\0\0" + struct.pack("<QBQ", 1, 4, 10**18), TOKENS, "is truncated or damaged"),
    "floats": (index([3, 2], code=6), TOKENS, "is truncated or damaged"),
    "no such type": (index([3, 2], code=77), TOKENS, "is truncated or damaged"),
    "a negative size": (index([6, -1]), TOKENS, "not stored one after the other"),
    "a place elsewhere": (index([3, 2], starts=[0, 10**9]), TOKENS, "not stored one after the other"),
    "fewer tokens": (index([3, 2]), TOKENS[:-4], "has 16 bytes where x.idx counts 20"),
    "more tokens": (index([3, 2]), TOKENS + b"\0", "has 21 bytes where x.idx counts 20"),
    "an id beyond": (
        index([3, 2]),
        tokens(4, 99, 2, 6, 2),
        "holds id 99 but the dictionary has 10",
    ),
    "an id below": (
        index([3, 2]),
        tokens(4, -7, 2, 6, 2),
        "holds id -7 but the dictionary has 10",
    ),
    "no end": (index([3, 2]), tokens(4, 5, 6, 6, 2), "sentence 1 does not end with </s>"),
    "legacy, truncated": (b"TNTIDX\0\0" + struct.pack("<Q", 1), TOKENS, "is truncated or damaged"),
    "legacy, no such type": (
        b"TNTIDX\0\0" + struct.pack("<5Q", 1, 77, 4, 0, 0) + b"\0" * 16,
        b"",
        "is not an index of fairseq-preprocess, or is damaged",
    ),
}
