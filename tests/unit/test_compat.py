"""A broken torchaudio does no harm, and no checkpoint runs code."""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from mclip_fairseq import compat
from mclip_fairseq.compat import shield_torchaudio
from mclip_fairseq.storage.checkpoints import allow_checkpoint_globals, load_checkpoint

Run = Callable[..., subprocess.CompletedProcess[str]]
# Without our package, whose import shields already.
SHIELD = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("compat", {file!r})
compat = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compat)
compat.shield_torchaudio()
compat.shield_torchaudio()
"""
CLIP = "from transformers import CLIPModel; print(CLIPModel.__name__)"


def test_clip_can_be_imported_with_any_torchaudio(fairseq_cli: Run) -> None:
    source = SHIELD.format(file=str(compat.__file__))
    assert fairseq_cli("python", "-c", source + CLIP).stdout == "CLIPModel\n"


def test_without_the_shield_a_broken_torchaudio_breaks_clip(fairseq_cli: Run) -> None:
    alone = fairseq_cli("python", "-c", "import torchaudio", check=False)
    if alone.returncode == 0 or "ModuleNotFoundError" in alone.stderr:
        pytest.skip("torchaudio works here, or is not installed")
    assert fairseq_cli("python", "-c", CLIP, check=False).returncode != 0


@pytest.fixture
def no_torchaudio() -> Iterator[None]:
    """Forget torchaudio for a test, and put back what was there."""
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "torchaudio"}
    for name in before:
        del sys.modules[name]
    problems = dict(compat._problems)
    compat._problems.clear()
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchaudio"]:
        del sys.modules[name]
    sys.modules.update(before)
    compat._problems.clear()
    compat._problems.update(problems)


@pytest.mark.usefixtures("no_torchaudio")
def test_a_package_that_raises_is_hidden_with_its_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    package = tmp_path / "torchaudio"
    package.mkdir()
    (package / "part.py").touch()
    (package / "__init__.py").write_text("import torchaudio.part\nraise OSError('no such library')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with caplog.at_level(logging.DEBUG, logger="mclip_fairseq.compat"):
        shield_torchaudio()
        shield_torchaudio()
    assert [record.levelname for record in caplog.records] == ["DEBUG"]
    assert compat.torchaudio_problem() == "OSError: no such library"
    assert "torchaudio.part" not in sys.modules
    with pytest.raises(ModuleNotFoundError):
        __import__("torchaudio")
    utils = sys.modules.get("transformers.utils.import_utils")
    assert utils is None or not utils.is_torchaudio_available()


@pytest.mark.usefixtures("no_torchaudio")
def test_one_that_works_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torchaudio.py").write_text("ANSWER = 42\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    shield_torchaudio()
    assert isinstance(sys.modules["torchaudio"], ModuleType)
    assert compat.torchaudio_problem() == ""


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trap),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_checkpoint_runs_no_code(tmp_path: Path, zipped: bool) -> None:
    from fairseq.checkpoint_utils import load_checkpoint_to_cpu

    path, trap = tmp_path / "evil.pt", tmp_path / "trap"
    state = {"args": argparse.Namespace(evil=Malicious(trap)), "model": {}}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"evil\.pt: is not loaded, because it contains \w+\.mkdir, and only types"):
        load_checkpoint(path)
    with pytest.raises(Exception, match="mkdir"):
        load_checkpoint_to_cpu(str(path))
    assert not trap.exists()
    # The trap works where pickles are trusted.
    torch.load(path, weights_only=False)
    assert trap.is_dir()


def test_allowing_more_does_not_allow_code(tmp_path: Path) -> None:
    path, trap = tmp_path / "evil.pt", tmp_path / "trap"
    torch.save({"meters": np.array([Malicious(trap)], dtype=object)}, path)
    with pytest.raises(ValueError, match="mkdir"):
        load_checkpoint(path)
    assert not trap.exists()
    torch.save({"meters": np.array([{"harmless": 1}], dtype=object)}, path)
    with pytest.raises(ValueError, match="ObjectDType"):
        load_checkpoint(path)


def test_what_fairseq_writes_is_read(tmp_path: Path) -> None:
    from fairseq.checkpoint_utils import load_checkpoint_to_cpu

    allow_checkpoint_globals()
    namespace = argparse.Namespace(arch="x", nested=argparse.Namespace(y=[1, None]))
    state = {
        "args": None,
        "cfg": {"model": namespace, "task": {"_name": "mte"}},
        "model": {"weight": torch.ones(2, dtype=torch.float16)},
        "extra_state": {
            "counts": np.arange(3),
            "best": np.float64(0.5),
            "flag": np.bool_(True),
            "train_iterator": {"epoch": 1},
        },
        "optimizer_history": [{"optimizer_name": "FairseqAdam", "lr_scheduler_state": {}, "num_updates": 1}],
    }
    torch.save(state, tmp_path / "x.pt")
    loaded = load_checkpoint(tmp_path / "x.pt")
    assert loaded["cfg"]["model"] == namespace
    assert torch.equal(loaded["model"]["weight"], torch.ones(2, dtype=torch.float16))
    np.testing.assert_array_equal(loaded["extra_state"]["counts"], [0, 1, 2])
    assert loaded["extra_state"]["best"] == 0.5
    assert load_checkpoint_to_cpu(str(tmp_path / "x.pt"))["cfg"]["model"].arch == "x"


def test_the_reference_checkpoints_are_read(shared_dir: Path) -> None:
    for name in ("mte_tiny.pt", "mclip_tiny.pt", "mte_tiny_extracted.pt", "xlmr_tiny/model.pt"):
        assert "model" in load_checkpoint(shared_dir / "fixtures" / name)


def test_files_that_are_not_checkpoints_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with pytest.raises(ValueError, match=r"x\.pt: not found"):
        load_checkpoint(path)
    with pytest.raises(ValueError, match="is a directory"):
        load_checkpoint(tmp_path)
    for data in (b"", b"hello, this is text\n", b"\x80\x02garbage", b"PK\x03\x04garbage"):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"x\.pt: is not a checkpoint written by torch\.save") as caught:
            load_checkpoint(path)
        assert "\n" not in str(caught.value)
    torch.save({"model": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="or is damaged"):
        load_checkpoint(path)
    torch.save([1], path)
    with pytest.raises(ValueError, match="holds a list, but a checkpoint is a dict"):
        load_checkpoint(path)


# README's line for sentence-transformers, in a process that has not imported this package before.
SENTENCES = """
from sentence_transformers import SentenceTransformer
print(SentenceTransformer({!r}, trust_remote_code=True).encode(["a dog"]).shape)
"""
AS_AFTER_MAKE = "import sys; sys.modules['torchaudio'] = None\n"


@pytest.mark.parametrize("before", [AS_AFTER_MAKE, "import mclip_fairseq\n"])
def test_the_line_of_the_readme_works_in_a_fresh_process(before: str, fairseq_cli: Run, repository_root: Path) -> None:
    """Where `make` has removed a torchaudio that cannot be loaded, and where this package is imported first."""
    exported = str(repository_root / "tests" / "data" / "legacy" / "exported")
    assert fairseq_cli("python", "-c", before + SENTENCES.format(exported)).stdout.strip() == "(1, 16)"


def test_make_removes_a_torchaudio_that_cannot_be_loaded(repository_root: Path) -> None:
    """By `mclip-doctor --fix`; tests/unit/test_doctor.py shows that it does."""
    recipe = (repository_root / "Makefile").read_text(encoding="utf-8").partition("$(STAMP):")[2].partition("\n\n")[0]
    assert "$(PY) -m mclip_fairseq.doctor --fix" in recipe


LATE_SCORES = """
import sys
import mclip_fairseq.models.xlmr_encoder
from fairseq.criterions import sentence_prediction
from fairseq.tasks import audio_classification
assert "sklearn" not in sys.modules, "imported for scores"
assert "scipy.stats" not in sys.modules, "imported for scores"
assert sentence_prediction.f1_score([1, 0, 1], [1, 0, 0]) == 2 / 3
assert len(audio_classification.sklearn_metrics.roc_curve([0, 1], [0.1, 0.9])) == 3
assert abs(sentence_prediction.pearsonr([1, 2, 3], [2, 4, 6])[0] - 1) < 1e-12
import sklearn.metrics, scipy.stats
assert sklearn.metrics.f1_score.__module__.startswith("sklearn")
"""


def test_fairseq_imports_its_scores_when_they_are_needed(fairseq_cli: Callable[..., Any]) -> None:
    fairseq_cli("python", "-c", LATE_SCORES)
