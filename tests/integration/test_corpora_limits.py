"""Downloads that would fill the memory: JSON, archives, tars and texts."""

import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from corpora.tars import read_samples

from tests.downloads import (
    FREE,
    coco_split_file,
    multi30k_data,
    refuses,
    sample,
    webdataset,
    works,
    write,
)


@pytest.fixture
def split_file(tmp_path: Path) -> Path:
    return coco_split_file(tmp_path)


@pytest.fixture
def multi30k(tmp_path: Path) -> Path:
    return multi30k_data(tmp_path)


def test_json_is_bounded(tmp_path: Path, split_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corpora.files.MAX_JSON", 100)
    assert "is larger than" in refuses("coco", "--karpathy", split_file, "--output", tmp_path / "out")


@pytest.mark.parametrize("suffix", [".json.gz", ".zip"])
def test_json_that_unpacks_to_far_more_is_refused(
    tmp_path: Path, split_file: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    content = split_file.read_bytes() + b" " * 1_000_000
    path = write(tmp_path / f"bomb{suffix}", content if suffix != ".zip" else packed_json(content))
    command = ["--karpathy", path, "--output", tmp_path / "out", *FREE]
    works("coco", *command)
    monkeypatch.setattr("corpora.files.BOMB_BYTES", 2000)
    limit = 200 * path.stat().st_size
    assert limit < len(content)
    assert f"bomb{suffix}: is larger than {limit} bytes; no file of this" in refuses("coco", *command)


def test_json_of_many_lists_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corpora.files.MAX_CONTAINERS", 1000)
    path = write(tmp_path / "dataset_coco.json", '{"images":[' + "[]," * 999 + "[]]}")
    said = refuses("coco", "--karpathy", path, "--output", tmp_path / "out", *FREE)
    assert "dataset_coco.json: has more than 1,000 lists and objects" in said


def packed_json(content: bytes, **changes: int) -> bytes:
    """A zip archive of the split file; changes are made to both of its headers, by offset in the local one."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("dataset_coco.json", content)
    data = bytearray(stream.getvalue())
    for name, value in changes.items():
        offset = {"flags": 6, "method": 8}[name]
        for place in (offset, data.rindex(b"PK\1\2") + offset + 2):
            data[place : place + 2] = value.to_bytes(2, "little")
    return bytes(data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"flags": 1}, "is encrypted, password required"), ({"method": 99}, "That compression method is not supported")],
)
def test_archives_that_cannot_be_unpacked(tmp_path: Path, changes: dict[str, int], message: str) -> None:
    path = write(tmp_path / "mine.zip", packed_json(b"{}", **changes))
    said = refuses("coco", "--karpathy", path, "--output", tmp_path / "out", *FREE)
    assert "mine.zip: cannot be read: " in said
    assert message in said


def test_texts_that_would_fill_the_memory(tmp_path: Path, multi30k: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corpora.files.MAX_LOADED", 2000)
    works("multi30k", "--data", multi30k, "--output", tmp_path / "out", *FREE)
    write(multi30k / "task1" / "raw" / "train.de.gz", "\n" * 100_000)
    said = refuses("multi30k", "--data", multi30k, "--output", tmp_path / "out", *FREE)
    assert "train.de.gz, line 21: no file of this dataset has this many lines" in said


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """The header of a member, whatever follows it."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.type = size, kind
    return entry.tobuf(tarfile.GNU_FORMAT)


def pieces(version: int) -> bytes:
    """A member that is said to be in pieces, their number being the first of its content."""
    entry = tarfile.TarInfo("a.txt")
    entry.size = 512
    entry.pax_headers = {
        "GNU.sparse.major": str(version),
        "GNU.sparse.minor": "0",
        "GNU.sparse.realsize": "512",
        **({} if version else {"GNU.sparse.size": "x"}),
    }
    return entry.tobuf(tarfile.PAX_FORMAT) + b"999999999\n".ljust(512, b"\0")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header("././@LongLink", 3 << 30, tarfile.GNUTYPE_LONGNAME), "a name or header of 3221225472 bytes"),
        (header("././@LongLink", 3 << 30, tarfile.GNUTYPE_LONGLINK), "a name or header of 3221225472 bytes"),
        (header("./PaxHeaders/a", 3 << 30, tarfile.XHDTYPE), "a name or header of 3221225472 bytes"),
        (header("./PaxHeaders/a", 3 << 30, tarfile.XGLTYPE), "a name or header of 3221225472 bytes"),
        (
            header("a.txt", 1) + b"x".ljust(512, b"\0") + header("b", 1 << 20, tarfile.XHDTYPE),
            "header of 1048576 bytes",
        ),
        (header("a.txt", 9, tarfile.GNUTYPE_SPARSE), "a sparse file"),
        (pieces(1), "a sparse file"),
        (pieces(0), "a sparse file"),
        (header("a.bin", 3 << 30), "unpacks to more than 67108864 bytes"),
        (header("folder", 3 << 30, tarfile.FIFOTYPE), "unpacks to more than 67108864 bytes"),
    ],
)
@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_tars_that_would_fill_the_memory(tmp_path: Path, content: bytes, message: str, suffix: str) -> None:
    tar = write(tmp_path / f"00000{suffix}", content + bytes(1024))
    said = refuses("cc3m", "--tar", tar, "--output", tmp_path / "out", "--workers", 1)
    assert f"{tar}: " in said
    assert message in said


def test_a_tar_that_unpacks_to_far_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = webdataset(tmp_path / "plain.tar", [(f"{number}.txt", b"") for number in range(2000)])
    tar = write(tmp_path / "00000.tar.gz", plain.read_bytes())
    command = ["--tar", tar, "--output", tmp_path / "out", "--workers", 1, "--skip-budget", 2000]
    assert "no caption of the chosen" in refuses("cc3m", *command)
    monkeypatch.setattr("corpora.files.BOMB_BYTES", 1000)
    monkeypatch.setattr("corpora.files.BOMB_RATIO", 5)
    said = refuses("cc3m", *command)
    assert f"unpacks to more than {5 * tar.stat().st_size} bytes; images compress less" in said


def test_only_known_parts_of_a_sample_are_kept_and_their_sum_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [(f"a.e{number}", b"x" * 1000) for number in range(50)]
    tar = webdataset(tmp_path / "00000.tar", [*others, *sample("a", "a dog"), ("b.e1", b"x")])
    read = list(read_samples(tar))
    assert [(it.key, sorted(it.parts)) for it in read] == [("a", ["jpg", "json", "txt"]), ("b", [])]
    monkeypatch.setattr("corpora.tars.MAX_SAMPLE", 1000)
    assert len(list(read_samples(tar))) == 2
    webdataset(tar, [("a.jpg", b"x" * 600), ("a.png", b"x" * 600)])
    with pytest.raises(ValueError, match="sample a: has more than 1000 bytes"):
        list(read_samples(tar))


def test_members_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    take = tarfile.TarFile.next

    def take_and_count(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
        entry = take(tar)
        kept.append(len(vars(tar)["members"]))
        return entry

    monkeypatch.setattr(tarfile.TarFile, "next", take_and_count)
    tar = webdataset(tmp_path / "00000.tar", [(f"{number}.txt", b"") for number in range(20)])
    assert len(list(read_samples(tar))) == 20
    assert max(kept) <= 1
