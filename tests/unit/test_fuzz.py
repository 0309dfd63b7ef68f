"""Parsers under bytes that nobody meant: they read them, or say in one sentence why not."""

from __future__ import annotations

import importlib.util
import logging
import random
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fuzz import targets

Run = Callable[..., subprocess.CompletedProcess[str]]
MUTATIONS = 1000
needs_atheris = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris is not installed: pip install mclip_fairseq[fuzz]"
)


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="fuzz-", dir=targets.fast_folder()))
    (path / "a.npy").write_bytes(targets.NPY)
    logging.disable(logging.CRITICAL)
    yield path
    logging.disable(logging.NOTSET)
    shutil.rmtree(path)


@pytest.mark.parametrize("name", targets.TARGETS)
def test_mutated_files(name: str, folder: Path) -> None:
    rng = random.Random(name)
    read = [targets.attempt(name, folder, seed) for seed in targets.SEEDS[name]]
    assert True in read, "no seed is a file that is read: the mutations would stop at the first check"
    for _ in range(MUTATIONS):
        targets.attempt(name, folder, targets.mutated(rng.choice(targets.SEEDS[name]), rng))


def test_the_negative_control_a_crash_is_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(folder: Path, data: bytes) -> None:
        raise {0: KeyError("x"), 1: RecursionError(), 2: ValueError(), 3: ValueError("two\nlines")}[len(data)]

    monkeypatch.setitem(targets.TARGETS, "crash", crash)
    for data, error in ((b"", KeyError), (b"1", RecursionError), (b"22", AssertionError), (b"333", AssertionError)):
        with pytest.raises(error):
            targets.attempt("crash", folder, data)


def fuzz(fairseq_cli: Run, tmp_path: Path, target: str, runs: int, timeout: float) -> None:
    """Fuzz with coverage, and show the crash if there is one."""
    options = [f"-runs={runs}", "-seed=1", "-print_final_stats=1"]
    command = ["-m", "tests.fuzz.coverage_guided", target, *options]
    result = fairseq_cli("python", *command, cwd=tmp_path, check=False, timeout=timeout)
    said = result.stdout + result.stderr
    assert result.returncode == 0, said[-3000:]
    found = re.search(r"stat::number_of_executed_units: (\d+)", said)
    assert found, said[-3000:]
    assert int(found[1]) >= runs
    coverage = [int(number) for number in re.findall(r"cov: (\d+)", said)]
    assert coverage[-1] > 5, "nothing is instrumented, so that nothing guides the fuzzer"


@needs_atheris
def test_coverage_guided_fuzzing_of_all_parsers(fairseq_cli: Run, tmp_path: Path) -> None:
    fuzz(fairseq_cli, tmp_path, "all", 8_000, 120)


@needs_atheris
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("target", [name for name in targets.TARGETS if name != "json_text"])  # that one is C
def test_coverage_guided_fuzzing_at_length(target: str, fairseq_cli: Run, tmp_path: Path) -> None:
    fuzz(fairseq_cli, tmp_path, target, 200_000, 1100)
