"""Temporary files name their owner: what killed processes have left is removed, and what a live one makes never is."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mclip_fairseq.encoding.cache import CachedEncoder
from mclip_fairseq.search.files import PARTIAL, locked
from mclip_fairseq.storage import files, owners
from mclip_fairseq.storage.feature_writer import FeatureWriter
from mclip_fairseq.storage.features import FeatureStore
from mclip_fairseq.storage.files import write_bytes
from mclip_fairseq.storage.owners import (
    ABANDONED_SECONDS,
    host_name,
    is_leftover,
    machine,
    own_name,
    owner,
    owner_is_alive,
    remove_leftovers,
)


def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_only_what_nobody_makes_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = [f"a.npy.{machine()}.{process}.tmp" for process in (ended_process(), os.getpid(), 99999999999)]
    kept = [f"a.npy.{machine()}.{os.getppid()}.tmp", "a.npy.elsewhere.1.tmp", f"a.{owner()}.npy", "own.tmp", "a.1.tmp"]
    for name in [*left, *kept]:
        (tmp_path / name).write_bytes(b"half")
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + ABANDONED_SECONDS + 60)
    remove_leftovers(tmp_path)
    assert not (tmp_path / "a.npy.elsewhere.1.tmp").exists()
    assert not is_leftover(tmp_path / "gone.elsewhere.1.tmp")
    remove_leftovers(tmp_path / "missing")


def test_a_container_sees_no_processes_of_its_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --network host, both have the same name."""
    file = tmp_path / f"a.{machine()}.{ended_process()}.tmp"
    file.touch()
    assert is_leftover(file)
    monkeypatch.setattr(owners, "ALL_PROCESSES", 0)
    assert machine().startswith(f"{host_name()}-")
    assert not is_leftover(file)
    assert not owner_is_alive(file)


def write_features(folder: Path) -> None:
    plan: dict[str, Any] = {"teacher": {"name": "x"}, "dim": 2, "modality": "image", "normalized": False}
    writer = FeatureWriter(folder, ["a", "b"], dtype="float32", shard_rows=1, **plan)
    for shard in writer.pending():
        writer.write(shard, [[1.0, 2.0]])
    writer.finalize()


def lock_index(folder: Path) -> None:
    with locked(folder):
        write_bytes(folder / "rows-00001.tsv", b"rows")
        (folder / PARTIAL).mkdir(exist_ok=True)
        write_bytes(folder / PARTIAL / "saved.json", b"{}")


class Zeros:
    dim = 2

    def encode_text(self, texts: list[str], batch_size: int, normalize: bool) -> Any:
        import torch

        return torch.zeros(len(texts), 2)


def fill_cache(folder: Path) -> None:
    encoder: Any = Zeros()
    CachedEncoder(encoder, folder, "fingerprint").encode_text(["a"])


class Killed(BaseException):
    """Nothing is tidied up after it."""


@pytest.mark.parametrize("write", [write_features, lock_index, fill_cache])
def test_the_next_run_removes_what_a_killed_one_has_left(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "whole")
    whole, left = sorted(path.name for path in (tmp_path / "whole").iterdir()), 0
    for step in range(20):
        folder, calls = tmp_path / str(step), itertools.count()
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", lambda *paths: kill_at(step, next(calls), *paths))  # noqa: B023
            with contextlib.suppress(Killed):
                write(folder)
        left += len(list(folder.rglob("*.tmp")))
        write(folder)
        assert not list(folder.rglob("*.tmp"))
        assert sorted(path.name for path in folder.iterdir()) == whole
    assert 0 < left < 20


def kill_at(step: int, call: int, *paths: Path, replace: Any = os.replace) -> None:
    if call == step:
        raise Killed
    replace(*paths)


def test_two_machines_never_share_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = own_name(tmp_path / "file")
    monkeypatch.setattr("socket.gethostname", lambda: "another.machine")
    assert own_name(tmp_path / "file") != one
    assert own_name(tmp_path / "file").name.startswith("file.another-machine")


def test_the_same_features_written_twice_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first process completes the directory while the second, which is alive, writes a shard."""
    plan: dict[str, Any] = {"teacher": {"name": "x"}, "dim": 1, "modality": "image", "normalized": False}
    first, second = (FeatureWriter(tmp_path, ["a", "b"], dtype="float32", shard_rows=1, **plan) for _ in range(2))
    alive = f"{machine()}.{os.getppid()}.tmp"

    def first_completes_it(handle: int) -> None:
        monkeypatch.undo()
        for shard in range(2):
            first.write(shard, [[float(shard)]])
        assert first.finalize()
        assert len(list(tmp_path.glob("*.tmp"))) == 1

    monkeypatch.setattr(files, "own_name", lambda file: file.with_name(f"{file.name}.{alive}"))
    monkeypatch.setattr(os, "fsync", first_completes_it)
    second.write(0, [[0.0]])
    second.write(1, [[9.0]])  # as from another kind of GPU: the manifest has the hash of the first
    assert second.finalize()
    assert FeatureStore.open(tmp_path).take([0, 1]).tolist() == [[0], [1]]
    assert not list(tmp_path.glob("*.tmp"))
