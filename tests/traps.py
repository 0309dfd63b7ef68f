"""Files that would run code where they are trusted, and what notices that they did."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import hostile

TRAP = "trap"


def nothing_is_sprung(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail if a test makes the trap folder, or a file above its own folder."""
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.parent.iterdir())
    yield
    assert set(tmp_path.parent.iterdir()) == before
    assert not (tmp_path / TRAP).exists()


def refused(call: Callable[[], object]) -> str:
    """Call, and expect one sentence."""
    with pytest.raises((ValueError, OSError)) as caught:
        call()
    assert str(caught.value).isprintable()  # no line break and no control characters
    return str(caught.value)


def evil_checkpoint(file: Path, kind: str) -> Path:
    """A checkpoint that makes a folder where pickles are trusted."""
    state = {"model": {"w": torch.zeros(1)}, "args": hostile.Trap(Path(TRAP))}
    if kind == "pickle":
        file.write_bytes(pickle.dumps(state))
    elif kind == "legacy tar":
        with tarfile.open(file, "w") as archive:
            for name in ("sys_info", "pickle", "storages", "tensors"):
                content = pickle.dumps(hostile.Trap(Path(TRAP)))
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    else:
        torch.save(state, file, _use_new_zipfile_serialization=kind == "zip")
    return file


def edit(file: Path, **changes: Any) -> None:
    stored = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    file.write_text(json.dumps(stored | changes), encoding="utf-8")
