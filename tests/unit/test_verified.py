"""A verified file is read again as soon as the file system says anything else of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mclip_fairseq.storage import files, verified
from mclip_fairseq.storage.files import FileIdentity
from mclip_fairseq.storage.verified import Verification

EXPECTED = {"a.npy": "0" * 64}


@pytest.fixture
def remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory whose one file has been verified."""
    monkeypatch.setattr(files, "SETTLED_NS", -(10**12))
    (tmp_path / "a.npy").write_bytes(b"content")
    Verification(tmp_path, EXPECTED).remember()
    assert Verification(tmp_path, EXPECTED).due == set()
    return tmp_path


@pytest.mark.parametrize("field", FileIdentity._fields)
def test_each_fact_counts_by_itself(field: str, remembered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Size, both times and inode; not the device, which a restart may number in another way."""

    def changed(path: Path) -> FileIdentity | None:
        identity = files.file_identity(path)
        assert identity is not None
        return identity._replace(**{field: getattr(identity, field) + 1})

    monkeypatch.setattr(verified, "file_identity", changed)
    assert Verification(remembered, EXPECTED).due == (set() if field == "device" else {"a.npy"})


def rewrite(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.write(b"CONTENT")


def replace(path: Path) -> None:
    path.with_suffix(".new").write_bytes(b"CONTENT")
    path.with_suffix(".new").replace(path)


@pytest.mark.parametrize("change", [rewrite, replace])
def test_a_forged_time_hides_nothing(change: Callable[[Path], None], remembered: Path) -> None:
    """As many bytes, and the old time of modification: `touch -r` cannot set the time of the change."""
    path = remembered / "a.npy"
    before = path.stat()
    change(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert Verification(remembered, EXPECTED).due == {"a.npy"}


def test_another_hash_and_a_missing_file_are_due(remembered: Path) -> None:
    assert Verification(remembered, {"a.npy": "1" * 64}).due == {"a.npy"}
    (remembered / "a.npy").unlink()
    assert Verification(remembered, EXPECTED).due == {"a.npy"}
