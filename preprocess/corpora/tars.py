"""Webdataset tars as `img2dataset` writes them, read as streams; nothing is ever extracted by its name."""

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from corpora.files import UNREADABLE, decode, most_unpacked, sha256, unreadable
from mclip_fairseq.storage.errors import UserError

SAFE = re.compile(r"[0-9A-Za-z_-]{1,100}")
IMAGES = ("jpg", "jpeg", "png", "webp")
MAX_IMAGE = 64 << 20
TEXTS = ("txt", "json")
MAX_TEXT = 1 << 20
MAX_SAMPLE = MAX_IMAGE + 2 * MAX_TEXT
# What a tar says of the next member before it; tarfile reads it in one piece.
HEADERS = {
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
}
MAX_HEADER = 64 << 10


@dataclass(frozen=True)
class Sample:
    """The members of one sample.

    Attributes:
        key: what the names of its members begin with.
        parts: extension -> content.
    """

    key: str
    parts: dict[str, bytes]

    @property
    def image(self) -> tuple[str, bytes] | None:
        """(extension, content) of its image."""
        return next(((ending, self.parts[ending]) for ending in IMAGES if self.parts.get(ending)), None)

    def caption(self, place: str) -> str:
        """Its text; empty when it has none."""
        if "txt" in self.parts:
            return decode(self.parts["txt"], place)
        if "json" not in self.parts:
            return ""
        try:
            record = json.loads(decode(self.parts["json"], place))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place}: its .json is not JSON: {error}") from error
        caption = record.get("caption") if isinstance(record, dict) else None
        return caption if isinstance(caption, str) else ""


@dataclass
class Shard:
    """What a tar held.

    Attributes:
        path: the tar.
        digest: its SHA-256.
        captions: (path of the image below the folder it is unpacked to, caption, place).
        missing: keys of samples without an image.
    """

    path: Path
    digest: str = ""
    captions: list[tuple[str, str, str]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


class Entry(tarfile.TarInfo):
    """A member of a tar, of which nothing is read that could fill the memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Read a header; see the base class."""
        entry = super().frombuf(buf, encoding, errors)
        if entry.type in HEADERS and not 0 <= entry.size <= MAX_HEADER:
            raise tarfile.ReadError(f"a name or header of {entry.size} bytes; no sample has one; download it again")
        if entry.type == tarfile.GNUTYPE_SPARSE:
            cls._proc_gnusparse_10()
        return entry

    @staticmethod
    def _proc_gnusparse_10(*_: Any) -> None:
        # Also what tarfile calls where a header announces a list of pieces, which may be of any length.
        raise tarfile.ReadError("a file in pieces; no sample has one; download it again")

    _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10


def read_samples(path: Path) -> Iterator[Sample]:
    """Samples of a tar; members of one follow each other, and those of other extensions are passed over.

    Raises:
        UserError: no tar, a decompression bomb, a member whose name is not a plain key with an extension, or one of
            absurd size.
    """
    key, parts = "", dict[str, bytes]()
    try:
        most = most_unpacked(path)
        with tarfile.open(path, "r|*", tarinfo=Entry) as tar:
            for entry in tar:
                # It would keep every member that it has read.
                tar.members = []  # type: ignore[attr-defined]
                if entry.offset_data + entry.size > most:
                    raise UserError(f"{path}: unpacks to more than {most} bytes, as no images do; download it again")
                if not entry.isfile():
                    continue
                name, _, ending = entry.name.rpartition("/")[2].partition(".")
                limit = MAX_IMAGE if ending.lower() in IMAGES else MAX_TEXT
                if SAFE.fullmatch(name) is None or not 0 <= entry.size <= limit:
                    raise UserError(f"{path}: has a member {entry.name!r} of {entry.size} bytes, which is no sample's")
                if name != key:
                    if key:
                        yield Sample(key, parts)
                    key, parts = name, {}
                if ending.lower() in (*IMAGES, *TEXTS):
                    stream = tar.extractfile(entry)
                    parts[ending.lower()] = b"" if stream is None else stream.read(limit)
                if sum(map(len, parts.values())) > MAX_SAMPLE:
                    raise UserError(f"{path}, sample {key}: has more than {MAX_SAMPLE} bytes; no sample has")
    except (tarfile.TarError, *UNREADABLE) as error:
        raise unreadable(path, error) from error
    if key:
        yield Sample(key, parts)


def unpack(path: Path, folder: Path) -> Shard:
    """Write the images of a tar as `folder/SHARD/KEY.EXT`, and return the captions that go with them.

    Raises:
        UserError: the tar cannot be used, a key is there twice, or another image has that path.
    """
    name = path.name.partition(".")[0]
    if SAFE.fullmatch(name) is None:
        raise UserError(f"{path}: name the tar by letters, digits, - and _ only")
    shard = Shard(path)
    (folder / name).mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    for sample in read_samples(path):
        place = f"{path}, sample {sample.key}"
        if sample.key in seen:
            raise UserError(f"{place}: is there twice")
        seen.add(sample.key)
        if sample.image is None:
            shard.missing.append(sample.key)
            continue
        ending, content = sample.image
        write_image(folder / name / f"{sample.key}.{ending}", content, place)
        shard.captions.append((f"{name}/{sample.key}.{ending}", sample.caption(place), place))
    shard.digest = sha256(path)
    return shard


def write_image(path: Path, content: bytes, place: str) -> None:
    """Write an image that may be there from an earlier run.

    Raises:
        UserError: what is there is another image.
    """
    if not path.exists():
        # Whole or not at all: what a run that was ended leaves behind must not look like another image.
        part = path.with_name(path.name + ".part")
        part.write_bytes(content)
        part.replace(path)
    elif path.read_bytes() != content:
        raise UserError(f"{place}: {path} is there already and is another image; give an --output of its own")
