"""Damaged checkpoint files: every fault is detected, an older sound file is chosen, and refusals give the reason."""

from __future__ import annotations

import contextlib
import inspect
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.file_io import PathManager

from mclip_fairseq.resilience.choosing import choose_checkpoint, remove_leftovers
from mclip_fairseq.storage import files, sealed
from mclip_fairseq.storage.checkpoints import load_checkpoint
from mclip_fairseq.storage.owners import host_name, owner_is_alive
from mclip_fairseq.storage.sealed import copy_sealed, damage, save_sealed, sealed_updates


def state(updates: int, size: int = 5000) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(updates)
    weight = torch.randn(size, generator=generator)
    return {"model": {"weight": weight}, "optimizer_history": [{"num_updates": updates}], "extra_state": {}}


def save_as_torch(path: Path, updates: int) -> None:
    torch.save(state(updates), path)


def flip(path: Path, position: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


def test_a_sealed_file_is_an_ordinary_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_last.pt"
    save_sealed(state(12), path, 12)
    assert sealed_updates(path) == 12
    assert damage(path) == ""
    assert torch.equal(load_checkpoint(path)["model"]["weight"], state(12)["model"]["weight"])
    mapped = torch.load(path, weights_only=True, mmap=True)
    assert torch.equal(mapped["model"]["weight"], state(12)["model"]["weight"])
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert b"updates=000000000012" in archive.comment
    copy_sealed(path, tmp_path / "copy.pt")
    assert (tmp_path / "copy.pt").read_bytes() == path.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint_last.pt", "copy.pt"]


def test_every_flipped_bit_is_seen(tmp_path: Path) -> None:
    original = tmp_path / "original.pt"
    save_sealed(state(3), original, 3)
    size, draw, path = original.stat().st_size, random.Random(0), tmp_path / "flipped.pt"
    # Everywhere, and every byte of the seal and of the archive's last record.
    positions = [draw.randrange(size) for _ in range(150)] + list(range(size - 130, size))
    unnoticed_by_torch = 0
    for position in positions:
        shutil.copy(original, path)
        flip(path, position, draw.randrange(8))
        assert damage(path), position
        with contextlib.suppress(Exception):
            torch.load(path, weights_only=True)
            unnoticed_by_torch += 1
    assert unnoticed_by_torch > 100  # the negative control: torch alone reads most of them without a word


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (lambda path: path.write_bytes(b""), "it is empty"),
        (lambda path: os.truncate(path, path.stat().st_size // 2), "truncated"),
        (lambda path: os.truncate(path, path.stat().st_size - 1), "seal is damaged"),
        (lambda path: flip(path, path.stat().st_size // 2, 0), "not those that were written"),
        (lambda path: path.write_bytes(b"<html>404</html>"), "is not a checkpoint written by torch.save"),
    ],
)
def test_the_newest_sound_checkpoint_is_chosen(fault: Callable[[Path], None], reason: str, tmp_path: Path) -> None:
    save_sealed(state(4), tmp_path / "checkpoint_1_4.pt", 4)
    save_sealed(state(8), tmp_path / "checkpoint_1_8.pt", 8)
    save_sealed(state(12), tmp_path / "checkpoint_last.pt", 12)
    assert choose_checkpoint(tmp_path) == (tmp_path / "checkpoint_last.pt", [])
    fault(tmp_path / "checkpoint_last.pt")
    path, skipped = choose_checkpoint(tmp_path)
    assert path == tmp_path / "checkpoint_1_8.pt"
    assert len(skipped) == 1
    assert skipped[0].startswith("checkpoint_last.pt (")
    assert reason in skipped[0]
    fault(tmp_path / "checkpoint_1_8.pt")
    assert choose_checkpoint(tmp_path).path == tmp_path / "checkpoint_1_4.pt"
    fault(tmp_path / "checkpoint_1_4.pt")
    with pytest.raises(ValueError, match=r"no checkpoint verifies: .*checkpoint_last\.pt"):
        choose_checkpoint(tmp_path)


def test_files_without_a_seal_are_checked_by_their_own_sums(tmp_path: Path) -> None:
    save_as_torch(tmp_path / "checkpoint_1_4.pt", 4)
    save_as_torch(tmp_path / "checkpoint_last.pt", 8)
    assert choose_checkpoint(tmp_path) == (tmp_path / "checkpoint_last.pt", [])
    flip(tmp_path / "checkpoint_last.pt", (tmp_path / "checkpoint_last.pt").stat().st_size // 2, 3)
    path, skipped = choose_checkpoint(tmp_path)
    assert path == tmp_path / "checkpoint_1_4.pt"
    assert "altered" in skipped[0]
    torch.save(state(2), tmp_path / "checkpoint_last.pt", _use_new_zipfile_serialization=False)
    assert choose_checkpoint(tmp_path) == (tmp_path / "checkpoint_last.pt", [])
    os.truncate(tmp_path / "checkpoint_last.pt", 4000)
    assert choose_checkpoint(tmp_path).path == tmp_path / "checkpoint_1_4.pt"


def test_a_kill_between_two_files_differs_from_going_back(tmp_path: Path) -> None:
    last, newer = tmp_path / "checkpoint_last.pt", tmp_path / "checkpoint_1_8.pt"
    save_sealed(state(4), last, 4)
    save_sealed(state(8), newer, 8)  # and killed before it was copied
    os.utime(last, ns=(1, 1))
    assert choose_checkpoint(tmp_path).path == newer
    save_sealed(state(4), last, 4)  # as `cp checkpoint_1_4.pt checkpoint_last.pt` does
    os.utime(newer, ns=(1, 1))
    assert choose_checkpoint(tmp_path).path == last


def test_a_broken_link_is_not_a_fresh_start(tmp_path: Path) -> None:
    (tmp_path / "checkpoint_last.pt").symlink_to(tmp_path / "gone.pt")
    with pytest.raises(ValueError, match=r"checkpoint_last.pt \(is a link to a missing file\)"):
        choose_checkpoint(tmp_path)
    (tmp_path / "checkpoint_last.pt").unlink()
    (tmp_path / "checkpoint_last.pt").mkdir()
    with pytest.raises(ValueError, match=r"checkpoint_last.pt \(is not a file\)"):
        choose_checkpoint(tmp_path)
    save_sealed(state(3), tmp_path / "checkpoint_1_3.pt", 3)
    assert choose_checkpoint(tmp_path).path == tmp_path / "checkpoint_1_3.pt"


def test_altered_checkpoints_are_not_evaluated_either(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_best.pt"
    save_sealed(state(12), path, 12)
    flip(path, 3000, 2)
    with pytest.raises(
        ValueError,
        match=r"checkpoint_best\.pt: its bytes are not those that were written; give another checkpoint, or copy",
    ):
        load_checkpoint(path)


def test_only_checkpoints_of_a_run_count(tmp_path: Path) -> None:
    for name in ("crash.pt", "checkpoint_of_a_friend.pt", "model.pt"):
        save_sealed(state(9), tmp_path / name, 9)
    (tmp_path / "checkpoint_1_4.pt.tmp").write_bytes(b"half")
    (tmp_path / "notes.pt.tmp").write_bytes(b"not ours")
    assert choose_checkpoint(tmp_path) == (None, [])
    assert remove_leftovers(tmp_path) == ["checkpoint_1_4.pt.tmp"]
    assert (tmp_path / "notes.pt.tmp").exists()
    assert choose_checkpoint(tmp_path / "nowhere") == (None, [])


def test_temporary_files_carry_their_owner_and_a_live_one_keeps_its_own(tmp_path: Path) -> None:
    """Of a process that is gone, of another machine, of this one, and of an earlier version: nobody writes to them."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    host = host_name()
    names = {owner: f"checkpoint_last.pt.{owner}.tmp" for owner in (f"{host}.{ended.pid}", "elsewhere.1")}
    names |= {"own": f"checkpoint_1_2.pt.{host}.{os.getpid()}.tmp", "none": "checkpoint1.pt.tmp"}
    names["no process"] = f"checkpoint2.pt.{host}.99999999999.tmp"
    alive = f"checkpoint_best.pt.{host}.{os.getppid()}.tmp"
    for name in [*names.values(), alive, f"notes.pt.{host}.{ended.pid}.tmp"]:
        (tmp_path / name).write_bytes(b"half")
    assert owner_is_alive(tmp_path / alive)
    assert sorted(remove_leftovers(tmp_path)) == sorted(names.values())
    assert (tmp_path / alive).exists()


def test_a_save_names_its_owner_until_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[str]()
    monkeypatch.setattr(os, "fsync", lambda handle: seen.extend(path.name for path in tmp_path.iterdir()))
    save_sealed(state(3), tmp_path / "checkpoint_last.pt", 3)
    assert seen[0] == f"checkpoint_last.pt.{host_name()}.{os.getpid()}.tmp"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_last.pt"]


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A disk that is full after this many bytes of a file, for this process."""
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_what_cannot_be_written_leaves_everything_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("a full disk does not go away by waiting"))
    last = tmp_path / "checkpoint_last.pt"
    save_sealed(state(4), last, 4)
    for size in (0, 1000, 10000, 20000):  # also within the end of the archive
        with (
            files_of_at_most(size),
            pytest.raises(ValueError, match=r"checkpoint_last.pt: cannot be written .*make room"),
        ):
            save_sealed(state(8), last, 8)
        with files_of_at_most(size), pytest.raises(ValueError, match="cannot be written"):
            copy_sealed(last, tmp_path / "checkpoint_best.pt")
        assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_last.pt"]
        assert choose_checkpoint(tmp_path) == (last, [])
    save_sealed(state(8), last, 8)
    assert sealed_updates(last) == 8


def test_a_passing_fault_is_tried_again_with_a_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bool] = []

    def failing_once(handle: int) -> None:
        calls.append(stat.S_ISDIR(os.fstat(handle).st_mode))
        if len(calls) == 1:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", failing_once)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    save_sealed(state(4), tmp_path / "checkpoint_last.pt", 4)
    assert choose_checkpoint(tmp_path) == (tmp_path / "checkpoint_last.pt", [])
    assert calls == [False, False, True], "the file is on the disk before its name, and its name before we continue"


def test_a_full_tmpfs(tmp_path: Path) -> None:
    """The same on a real full disk, where the system lets us mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root can mount a tmpfs; the file size limit above replaces it")
    try:
        save_sealed(state(4), disk / "checkpoint_last.pt", 4)
        with pytest.raises(ValueError, match="No space left on device"):
            save_sealed(state(8, size=50000), disk / "checkpoint_last.pt", 8)
        copy_sealed(disk / "checkpoint_last.pt", disk / "checkpoint1.pt")
        with pytest.raises(ValueError, match="No space left on device"):
            copy_sealed(disk / "checkpoint_last.pt", disk / "checkpoint2.pt")
        path, skipped = choose_checkpoint(disk)
        assert path == disk / "checkpoint_last.pt"
        assert skipped == []
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def test_fairseq_alone_would_lose_the_run(tmp_path: Path) -> None:
    """The negative control: fairseq's own copy leaves a torn file on a full disk, and it cannot be loaded."""
    last = tmp_path / "checkpoint_last.pt"
    save_as_torch(tmp_path / "checkpoint_1_4.pt", 4)
    copy = inspect.unwrap(PathManager.copy)
    copy(str(tmp_path / "checkpoint_1_4.pt"), str(last), overwrite=True)
    assert damage(last) == ""
    with files_of_at_most(9000), pytest.raises(OSError, match="too large"):
        copy(str(tmp_path / "checkpoint_1_4.pt"), str(last), overwrite=True)
    assert "truncated" in damage(last)
    with pytest.raises(ValueError, match="is damaged"):
        load_checkpoint(last)


def test_a_sound_file_is_hashed_once_while_it_is_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, hash_file = tmp_path / "checkpoint_last.pt", sealed._hash_before_seal
    hashed: list[Path] = []

    def counted(file: Path) -> str:
        hashed.append(file)
        return hash_file(file)

    monkeypatch.setattr(sealed, "_hash_before_seal", counted)
    save_sealed(state(3), path, 3)
    assert damage(path) == damage(path) == ""
    assert len(hashed) == 2, "a file this new could change without a new time"
    monkeypatch.setattr(files, "SETTLED_NS", -(10**12))
    assert damage(path) == damage(path) == ""
    assert len(hashed) == 3
    time.sleep(0.02)  # the clock of the file system advances
    flip(path, 3000, 2)
    assert damage(path) == damage(path) == "its bytes are not those that were written"
    assert len(hashed) == 5, "what is damaged is not remembered"
