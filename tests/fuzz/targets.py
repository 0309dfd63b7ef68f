"""Fuzz targets: each feeds bytes to one of our parsers, which may only raise one-sentence errors."""

from __future__ import annotations

import gzip
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mclip_fairseq.data.captions import read_caption_ids
from mclip_fairseq.data.tokens import load_dictionary
from mclip_fairseq.encoding.bulk import read_caption_list
from mclip_fairseq.encoding.captions import read_language_captions
from mclip_fairseq.storage.feature_files import open_shard, read_manifest
from mclip_fairseq.storage.feature_files import read_ids as read_feature_ids
from mclip_fairseq.storage.files import parse_json, read_lines
from mclip_fairseq.storage.images import find_images
from mclip_fairseq.storage.indexed import read_indexed
from tests import hostile

MANIFEST = (
    b'{"format": "mclip_fairseq features", "version": 1, "teacher": {"name": "x"}, "modality": "image", "dim": 3, '
    b'"count": 4, "dtype": "float32", "normalized": false, "ids_sha256": "", '
    b'"shards": [{"file": "a.npy", "rows": 4, "sha256": ""}]}'
)
NPY = hostile.npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (4, 3), }\n") + bytes(48)


def manifest(folder: Path, data: bytes) -> None:
    (folder / "manifest.json").write_bytes(data)
    stored = read_manifest(folder)
    for entry in stored["shards"]:
        open_shard(folder, stored, entry)
    (folder / "ids.txt").write_bytes(b"a\nb\nc\nd\n")
    read_feature_ids(folder, stored)


def shard(folder: Path, data: bytes) -> None:
    (folder / "a.npy").write_bytes(data)
    stored = {"dim": 3, "dtype": "float32"}
    array = open_shard(folder, stored, {"file": "a.npy", "rows": 4})
    assert array.shape == (4, 3)
    float(array.sum())


def captions(folder: Path, data: bytes) -> None:
    (folder / "c.tsv").write_bytes(data)
    (folder / "c.txt").write_bytes(data.replace(b"\t", b" "))  # which may hold no tabs
    texts = read_caption_list(folder / "c.txt")
    assert [text for _, text in texts] == read_lines(folder / "c.txt")
    ids = [name for name, _ in read_caption_list(folder / "c.tsv")]
    assert len(set(ids)) == len(ids)


def evaluation(folder: Path, data: bytes) -> None:
    (folder / "e.tsv").write_bytes(data)
    found = read_language_captions("en", folder / "e.tsv")
    assert len(found.texts) == len(found.ids)
    assert all(text.strip() for text in [*found.texts, *found.ids])


def ids(folder: Path, data: bytes) -> None:
    (folder / "i").write_bytes(data)
    for column in read_caption_ids(folder / "i", data.count(b"\n")):
        assert column is None or all(column)


def images(folder: Path, data: bytes) -> None:
    (folder / "l").write_bytes(data)
    found = [name for name, _ in find_images(None, folder / "l").images]
    assert len(set(found)) == len(found) > 0


def packed(folder: Path, data: bytes) -> None:
    (folder / "z.gz").write_bytes(data)
    read_lines(folder / "z.gz")


def dictionary(folder: Path, data: bytes) -> None:
    (folder / "dict.txt").write_bytes(data)
    assert len(load_dictionary(folder)) > 4


def index(folder: Path, data: bytes) -> None:
    (folder / "t.idx").write_bytes(data)
    (folder / "t.bin").write_bytes(hostile.TOKENS)
    values, sizes = read_indexed(folder / "t")
    assert len(values) == sizes.sum()


def json_text(folder: Path, data: bytes) -> None:
    parse_json(data)


TARGETS: dict[str, Callable[[Path, bytes], None]] = {
    target.__name__: target
    for target in (manifest, captions, ids, shard, evaluation, images, packed, dictionary, index, json_text)
}
CAPTION_SEED = b"one\ta red dog\r\ntwo\t\xe2\x80\xaea cat\n"
SEEDS: dict[str, list[bytes]] = {
    "manifest": [MANIFEST, hostile.DEEP_JSON[:2000]],
    "shard": [NPY, hostile.npz(np.ones(1))],
    "captions": [CAPTION_SEED, *(caption.line[:100] for caption in hostile.CAPTIONS.values())],
    "evaluation": [CAPTION_SEED, b"\xef\xbb\xbfa\tb"],
    "ids": [b"a.jpg\tt1\nb.jpg\tt2\n", b"-\tx\n", *(content for content, _ in hostile.ID_LISTS.values())],
    "images": [b"a.jpg\nx\tb.jpg\n", *(content for content, _ in hostile.IMAGE_LISTS.values())],
    "packed": [gzip.compress(b"a\nb\n", mtime=0), gzip.compress(b"x" * 500, mtime=0) * 2],
    "dictionary": [b"one 1\ntwo 2 #fairseq:overwrite\n", *(content for content, _ in hostile.DICTIONARIES.values())],
    "index": [hostile.index([3, 2]), b"TNTIDX\0\0" + struct.pack("<5Q", 1, 4, 4, 2, 2) + bytes(64)],
    "json_text": [MANIFEST, b'[{"a": [1.5e3, null, true, "\\ud800"]}]', b"[" * 3000],
}


def attempt(name: str, folder: Path, data: bytes) -> bool:
    """Give bytes to a target.

    Returns:
        whether it read them; anything but a ValueError or OSError of one line is a bug and is raised.
    """
    try:
        TARGETS[name](folder, data)
    except (ValueError, OSError) as error:
        said = str(error)
    else:
        return True
    assert said, f"{name}: an error without a message"
    assert said.isprintable(), f"{name}: not one line of text: {said!r}"
    return False


def fast_folder() -> str | None:
    """A folder in memory, if one exists: fuzzing writes thousands of files a second."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A few random edits, such as a fuzzer makes."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        place = rng.randrange(len(found) + 1)
        match rng.randrange(5):
            case 0:
                found[place:place] = rng.choice(TOKENS)
            case 1:
                del found[place : place + rng.randint(1, 8)]
            case 2 if place < len(found):
                found[place] ^= 1 << rng.randrange(8)
            case 3:
                found[place:place] = found[: rng.randint(0, 30)]
            case _:
                found[place : place + 1] = bytes([rng.randrange(256)])
    return bytes(found)


TOKENS = (
    *(b"\n", b"\t", b"\r", b"\0", b"-", b"\xff", b"\xef\xbb\xbf", b"..", b"/", b'"', b"\\u0000", b"{}", b"[]", b"null"),
    *(b"-1", b"1e999", b"NaN", b"9" * 40, b"true", b"'", b"(", b"{'", b"O", b"|O", b"<f8", b"\xe2\x80\xa8", b"\x85"),
)
