"""Hashes of large files are computed once, and again after any change."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from mclip_fairseq.storage import hashes
from mclip_fairseq.storage.hashes import main, record_of, remembered_sha256

LONG_AGO = 10**18


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file whose last change is long ago for the code: tests cannot wait for seconds."""
    monkeypatch.setattr("mclip_fairseq.storage.files.SETTLED_NS", -LONG_AGO)
    monkeypatch.setenv("MCLIP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a file").write_bytes(b"one")
    return tmp_path / "a file"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every file that is read from now on."""
    seen, original = list[Path](), hashes.file_sha256

    def count(path: Path) -> str:
        seen.append(path)
        return original(path)

    monkeypatch.setattr(hashes, "file_sha256", count)
    return seen


def test_an_unchanged_file_is_read_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = reads(monkeypatch)
    assert [remembered_sha256(file) for _ in range(3)] == [sha256(b"one")] * 3
    assert seen == [file]


def test_a_changed_file_of_the_same_size_and_time_is_read_again(file: Path) -> None:
    remembered_sha256(file)
    before = file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert remembered_sha256(file) == sha256(b"two")


def test_a_file_moved_over_it_with_its_time_is_read_again(file: Path) -> None:
    remembered_sha256(file)
    other, time = file.with_name("other"), file.stat().st_mtime_ns
    other.write_bytes(b"two")
    os.utime(other, ns=(time, time))
    os.replace(other, file)
    assert remembered_sha256(file) == sha256(b"two")


def test_a_file_that_has_just_been_written_is_not_remembered(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of a file system is coarse: the next change might leave its time as it is."""
    monkeypatch.setattr("mclip_fairseq.storage.files.SETTLED_NS", 10**12)
    seen = reads(monkeypatch)
    assert [remembered_sha256(file) for _ in range(2)] == [sha256(b"one")] * 2
    assert len(seen) == 2


@pytest.mark.parametrize("record", [b"", b"[]", b"{}", b'{"file": [1]}', b"\xff"])
def test_a_damaged_memory_is_ignored(record: bytes, file: Path) -> None:
    remembered_sha256(file)
    record_of(file).write_bytes(record)
    assert remembered_sha256(file) == sha256(b"one")


def test_a_cache_that_cannot_be_written(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCLIP_CACHE", str(file / "below a file"))
    assert remembered_sha256(file) == sha256(b"one")


def test_lines_are_those_of_sha256sum(file: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    odd = Path(os.fsdecode(os.fsencode(file.parent) + b"/caf\xe9"))
    odd.write_bytes(b"two")
    assert main([str(file), str(odd)]) == 0
    assert main([str(file.parent / "gone")]) == 2
    printed = capfdbinary.readouterr()
    lines = [sha256(b"one").encode() + b"  " + os.fsencode(file), sha256(b"two").encode() + b"  " + os.fsencode(odd)]
    assert printed.out.splitlines() == lines
    assert printed.err.endswith(b"gone: cannot be read: No such file or directory\n")
