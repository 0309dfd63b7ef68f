"""Lock files: a link in their place, a full disk, a directory that is replaced, and file systems without locks."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mclip_fairseq.data.skips import SkipList
from mclip_fairseq.resilience.holding import LOCK, check_still_held, held
from mclip_fairseq.search import files as index_files
from mclip_fairseq.storage.errors import UserError

# Without an import of torch.
ANOTHER = """
import fcntl, os, sys
with open(sys.argv[1], "w") as stream:
    fcntl.lockf(stream, fcntl.LOCK_EX)
    print("process", os.getpid(), file=stream, flush=True)
    print("holds", flush=True)
    sys.stdin.read()
"""


def failing(number: int) -> Callable[..., None]:
    def fail(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def test_no_file_is_reached_through_a_link(tmp_path: Path) -> None:
    """As in a run, a list of skipped lines or an index that was unpacked from somebody's archive."""
    victim, folder = tmp_path / "thesis.txt", tmp_path / "run"
    victim.write_text("a thesis")
    folder.mkdir()
    for name in (LOCK, index_files.LOCK, "skipped.tsv"):
        (folder / name).symlink_to(victim)
    with pytest.raises(UserError, match=rf"run: its {LOCK} is a link to another file; remove the link$"), held(folder):
        pytest.fail("held")
    with pytest.raises(UserError, match="run: cannot be written to: "), index_files.locked(folder):
        pytest.fail("locked")
    with pytest.raises(UserError, match=r"skipped\.tsv: cannot be written \(.+\); remove it$"):
        SkipList(folder / "skipped.tsv", 1).add([("id", "reason")])
    assert victim.read_text() == "a thesis"


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "write", failing(errno.ENOSPC))
    with pytest.raises(UserError, match=r"cannot be locked \(No space left on device\); give another one$"):
        held(tmp_path).__enter__()


def test_a_removed_directory_is_held_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The directory was removed and a second run began in it, but the first is still going."""
    folder = tmp_path / "run"
    with held(folder):
        check_still_held(folder)
        check_still_held(tmp_path / "not held")
        shutil.rmtree(folder)
        check_still_held(folder)  # saving says what is wrong with a disk that is gone
        assert caplog.text == ""
        folder.mkdir()
        command = [sys.executable, "-c", ANOTHER, str(folder / LOCK)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == b"holds\n"
            with pytest.raises(UserError, match=rf"another run holds it \(process {other.pid}\)"):
                check_still_held(folder)
            other.communicate()
    assert "was removed or replaced while this run held it" in caplog.text
    with held(folder):
        (folder / LOCK).unlink()
        check_still_held(folder)
        assert (folder / LOCK).read_text().startswith(f"process {os.getpid()} on ")
    assert (folder / LOCK).read_text() == ""


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_is_used_with_a_warning(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for lock in ("lockf", "flock"):
        monkeypatch.setattr(fcntl, lock, failing(number))
    with held(tmp_path), index_files.locked(tmp_path):
        SkipList(tmp_path / "skipped.tsv", 1).add([("id", "reason")])
    assert "has no locks, so nothing keeps a second run out" in caplog.text
    assert "has no locks, so do not change this index twice at a time" in caplog.text
    assert (tmp_path / "skipped.tsv").read_text() == "id\treason\n"
