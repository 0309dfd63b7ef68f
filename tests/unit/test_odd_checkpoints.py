"""A checkpoint whose bookkeeping has an unexpected form is refused with a sentence, or read as one without it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from mclip_fairseq.resilience.checking import changed_options, check_same_dictionary
from mclip_fairseq.storage.checkpoints import StoredCheckpoint


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"optimizer_history": 3}, "has an optimizer history that is not a list of dicts"),
        ({"optimizer_history": [3]}, "has an optimizer history that is not a list of dicts"),
        ({"extra_state": [1]}, "has an extra state, or a position in the data, that is not a dict"),
        ({"extra_state": {"train_iterator": "x"}}, "has an extra state, or a position in the data, that is not a dict"),
    ],
)
def test_bookkeeping_of_a_wrong_type_is_refused(state: dict[str, Any], reason: str, tmp_path: Path) -> None:
    torch.save({"model": {}} | state, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=rf"x\.pt: {reason}"):
        StoredCheckpoint(tmp_path / "x.pt").check()


def test_bookkeeping_that_is_missing_is_empty(tmp_path: Path) -> None:
    torch.save({"model": {}, "extra_state": None}, tmp_path / "x.pt")
    stored = StoredCheckpoint(tmp_path / "x.pt")
    stored.check()
    assert (stored.updates, stored.position, stored.extra_state) == (0, {}, {})


@pytest.mark.parametrize("group", [3, None, "x", [1]])
def test_options_of_a_wrong_type_are_not_compared(group: Any) -> None:
    assert changed_options({"dataset": group}, OmegaConf.create({"dataset": {"batch_size": 8}})) == []


def test_a_dictionary_of_a_wrong_type_is_refused(tmp_path: Path) -> None:
    torch.save({"extra_state": {"SimpleNamespace": {"dictionary": {"symbols": "x"}}}}, tmp_path / "x.pt")
    task = SimpleNamespace(dictionary_identity=lambda: {"symbols": 3, "crc32": 0})
    with pytest.raises(ValueError, match=r"x\.pt: symbols has the type str, not int; give another checkpoint"):
        check_same_dictionary(StoredCheckpoint(tmp_path / "x.pt"), task)
