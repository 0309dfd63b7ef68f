"""SIGKILL at random moments of saving: the checkpoint to resume from is intact, and no older than the log says."""

from __future__ import annotations

import inspect
import os
import random
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.dataclass.configs import CheckpointConfig
from fairseq.file_io import PathManager

from mclip_fairseq.resilience.choosing import choose_checkpoint, remove_leftovers
from mclip_fairseq.resilience.install import install
from mclip_fairseq.storage.checkpoints import load_checkpoint

SIZE = 200_000  # 0.8 MB a file: killed in the middle of it more often than not


class OnlySaves:
    """What fairseq's `save_checkpoint` asks of a trainer and of a data iterator."""

    data_parallel_rank = 0
    should_save_checkpoint_on_current_rank = True
    checkpoint_suffix = ""
    task = None
    epoch = 1

    def __init__(self, updates: int) -> None:
        self.updates = updates

    def consolidate_optimizer(self) -> None: ...

    def end_of_epoch(self) -> bool:
        return False

    def get_num_updates(self) -> int:
        return self.updates

    def state_dict(self) -> dict[str, int]:
        return {"iterations_in_epoch": self.updates}

    def save_checkpoint(self, filename: str, extra_state: dict[str, Any]) -> str:
        state = {
            "model": {"weight": torch.full((SIZE,), float(self.updates))},
            "optimizer_history": [{"num_updates": self.updates}],
            "extra_state": extra_state,
        }
        checkpoint_utils.torch_persistent_save(state, filename)
        return filename


def save_for_ever(folder: Path, announce: int, start: int) -> None:
    """Save after every update, as fairseq does, and announce each save that has returned."""
    options = CheckpointConfig(save_dir=str(folder), save_interval_updates=1, keep_interval_updates=2)
    for updates in range(start, sys.maxsize):
        stand_in = OnlySaves(updates)
        checkpoint_utils.save_checkpoint(options, stand_in, stand_in, None)
        os.write(announce, updates.to_bytes(4, "big"))


def kill_in_saving(folder: Path, start: int, delay: float, saved: bool) -> int:
    """Let a child save until it is killed after a delay; returns the last update it announced.

    Args:
        folder: of the checkpoints.
        start: the first update.
        delay: in seconds, which a busy machine may need before the first save.
        saved: the delay begins after that.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            save_for_ever(folder, writing, start)
        finally:
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        announced = stream.read(4) if saved else b""
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        announced += stream.read()
    return int.from_bytes(announced[-4:], "big") if announced else start - 1


def survive(folder: Path, kills: int) -> SimpleNamespace:
    """Kill and resume, as a scheduler does with a run; counts where the kills hit."""
    draw, updates, met = random.Random(7), 0, SimpleNamespace(kills=0, cut_short=0, skipped=0)
    while met.kills < kills:
        announced = kill_in_saving(folder, updates + 1, draw.uniform(0.002, 0.06), bool(met.kills % 2))
        met.kills += 1
        met.cut_short += bool(remove_leftovers(folder))
        path, skipped = choose_checkpoint(folder)
        met.skipped += len(skipped)
        if path is None:
            assert announced < 1
            continue
        state = load_checkpoint(path)
        updates = state["optimizer_history"][-1]["num_updates"]
        assert updates >= announced, path
        assert state["extra_state"]["train_iterator"] == {"iterations_in_epoch": updates}
        assert torch.equal(state["model"]["weight"], torch.full((SIZE,), float(updates)))
    return met


def kill_many(folder: Path, kills: int) -> None:
    install()
    met = survive(folder, kills)
    assert met.skipped == 0, "a file under its own name is always whole"
    assert met.cut_short > kills // 20, "the kills must hit the writing itself"
    print(f"{met.kills} kills survived, {met.cut_short} of them in the middle of a file")


def test_fifty_kills_lose_nothing(tmp_path: Path) -> None:
    kill_many(tmp_path, 50)


@pytest.mark.slow
def test_a_thousand_kills_lose_nothing(tmp_path: Path) -> None:
    kill_many(tmp_path, 1000)


def test_fairseq_alone_tears_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: with fairseq's own functions the same kills leave files that do not verify."""
    for owner, name in ((checkpoint_utils, "torch_persistent_save"), (PathManager, "copy")):
        monkeypatch.setattr(owner, name, staticmethod(inspect.unwrap(getattr(owner, name))))
    draw, updates = random.Random(7), 0
    for _ in range(200):
        kill_in_saving(tmp_path, updates + 1, draw.uniform(0.002, 0.06), True)
        remove_leftovers(tmp_path)
        try:
            path, skipped = choose_checkpoint(tmp_path)
        except ValueError:
            return
        if skipped:
            return
        updates = 0 if path is None else int(load_checkpoint(path)["optimizer_history"][-1]["num_updates"])
    pytest.fail("200 kills tore no file of fairseq's")
