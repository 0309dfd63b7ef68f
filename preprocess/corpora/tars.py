"""Webdataset tars of `img2dataset`, read as streams; no member is ever extracted under its own name."""

import json
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from corpora.files import UNREADABLE, decode, unpacked_limit, unreadable
from corpora.images import write_picture
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import file_sha256

SAFE = re.compile(r"[0-9A-Za-z_-]{1,100}")
IMAGES = ("jpg", "jpeg", "png", "webp")
MAX_IMAGE = 64 << 20
TEXTS = ("txt", "json")
MAX_TEXT = 1 << 20
MAX_SAMPLE = MAX_IMAGE + 2 * MAX_TEXT
# Extended headers of the next member; tarfile reads each in one piece.
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
        key: the prefix that the names of its members share.
        parts: extension -> content.
    """

    key: str
    parts: dict[str, bytes]

    @property
    def image(self) -> tuple[str, bytes] | None:
        """(extension, content) of its image."""
        return next(((ending, self.parts[ending]) for ending in IMAGES if self.parts.get(ending)), None)

    def caption(self, place: str) -> str:
        """Its text; empty if it has none."""
        if "txt" in self.parts:
            return decode(self.parts["txt"], place)
        if "json" not in self.parts:
            return ""
        text = decode(self.parts["json"], place)
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place}: its .json is not JSON: {error}") from error
        caption = record.get("caption") if isinstance(record, dict) else None
        return caption if isinstance(caption, str) else ""


@dataclass
class Shard:
    """The content of a tar.

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
    """A member of a tar; headers that could fill the memory are refused before they are read."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Read a header; see the base class."""
        entry = super().frombuf(buf, encoding, errors)
        if entry.type in HEADERS and not 0 <= entry.size <= MAX_HEADER:
            raise tarfile.ReadError(f"a name or header of {entry.size} bytes, too long for a sample; download it again")
        if entry.type == tarfile.GNUTYPE_SPARSE:
            cls._proc_gnusparse_10()
        return entry

    @staticmethod
    def _proc_gnusparse_10(*_: Any) -> None:
        # tarfile also calls this for a header that announces a list of pieces, which may be of any length.
        raise tarfile.ReadError("a sparse file; no sample has one; download it again")

    _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10


def is_text(ending: str) -> bool:
    """Whether `img2dataset` writes text files with this extension."""
    return ending in TEXTS


def read_samples(path: Path, reads: Callable[[str], bool] = is_text) -> Iterator[Sample]:
    """Samples of a tar, whose members are consecutive; members with other extensions are skipped.

    Args:
        path: the tar.
        reads: which extensions, besides those of images, are read.

    Raises:
        UserError: not a tar, a decompression bomb, a member whose name is not a plain key with an extension, or a
            member of absurd size.
    """
    key, parts = "", dict[str, bytes]()
    try:
        limit = unpacked_limit(path)
        with tarfile.open(path, "r|*", tarinfo=Entry) as tar:
            for entry in tar:
                # tarfile would keep every member that it has read.
                tar.members = []  # type: ignore[attr-defined]
                if entry.offset_data + entry.size > limit:
                    raise UserError(
                        f"{path}: unpacks to more than {limit} bytes; images compress less than that; download it again"
                    )
                if not entry.isfile():
                    continue
                name, _, ending = entry.name.rpartition("/")[2].partition(".")
                most = MAX_IMAGE if ending.lower() in IMAGES else MAX_TEXT
                if SAFE.fullmatch(name) is None or not 0 <= entry.size <= most:
                    raise UserError(
                        f"{path}: has a member {entry.name!r} of {entry.size} bytes, which img2dataset does not write; "
                        "give tars that img2dataset wrote"
                    )
                if name != key:
                    if key:
                        yield Sample(key, parts)
                    key, parts = name, {}
                if ending.lower() in IMAGES or reads(ending.lower()):
                    stream = tar.extractfile(entry)
                    parts[ending.lower()] = b"" if stream is None else stream.read(most)
                if sum(map(len, parts.values())) > MAX_SAMPLE:
                    raise UserError(f"{path}, sample {key}: has more than {MAX_SAMPLE} bytes; no sample is that large")
    except (tarfile.TarError, *UNREADABLE) as error:
        raise unreadable(path, error) from error
    if key:
        yield Sample(key, parts)


def extract_images(path: Path, folder: Path) -> Shard:
    """Write the images of a tar as `folder/SHARD/KEY.EXT`, and return their captions.

    Raises:
        UserError: the tar cannot be used, a key occurs twice, or a different image has that path.
    """
    name = path.name.partition(".")[0]
    if SAFE.fullmatch(name) is None:
        raise UserError(f"{path}: is not a valid name for a tar; use letters, digits, - and _ only")
    shard = Shard(path)
    (folder / name).mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    for sample in read_samples(path):
        place = f"{path}, sample {sample.key}"
        if sample.key in seen:
            raise UserError(f"{place}: occurs twice; make the tar again")
        seen.add(sample.key)
        if sample.image is None:
            shard.missing.append(sample.key)
            continue
        ending, content = sample.image
        write_picture(folder / name / f"{sample.key}.{ending}", content, place)
        shard.captions.append((f"{name}/{sample.key}.{ending}", sample.caption(place), place))
    shard.digest = file_sha256(path)
    return shard
