"""What every test shares: an offline, CPU-only, single-threaded, seeded process, and ways to run scripts.

Tests run on the CPU and without a network. `MCLIP_TEST_GPU=1` leaves the GPUs visible (tests marked
`gpu`), `MCLIP_SHARED` names the folder of shared fixtures when it is not next to the checkout.
"""

from __future__ import annotations

import os

# Before torch or transformers are imported: both read these once. Subprocesses inherit them.
os.environ.update(
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",  # pytest-xdist runs one process per core
    MKL_NUM_THREADS="1",
    MPLBACKEND="Agg",
    PYTHONIOENCODING="utf-8",
)
if os.environ.get("MCLIP_TEST_GPU") != "1":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
for _name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "LOCAL_RANK"):
    os.environ.pop(_name, None)  # fairseq would wait for the other ranks of whatever started pytest

import contextlib
import gc
import importlib
import io
import logging
import random
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import settings

from tests.python_path import python_path

torch.set_num_threads(1)
settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")

ROOT = Path(__file__).resolve().parents[1]
LOG_FORMAT = "%(asctime)s | %(levelname)s | %(name)s | %(message)s"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where torch sees none."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device is visible (MCLIP_TEST_GPU=1 shows them)")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def repository_root() -> Path:
    """The checkout that holds these tests."""
    return ROOT


@pytest.fixture(scope="session")
def shared_dir(repository_root: Path) -> Path:
    """The folder of shared fixtures and data (read only); skips the test where there is none."""
    folder = Path(os.environ.get("MCLIP_SHARED") or repository_root.parent / "shared")
    if not folder.is_dir():
        pytest.skip(f"no folder of shared fixtures at {folder} (MCLIP_SHARED names another place)")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["MCLIP_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module", autouse=True)
def _no_search_for_old_garbage() -> None:
    """Leave what is there before a file's tests, such as modules, out of every collection: 0.4 s less for each run."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _same_start_for_every_test() -> Iterator[None]:
    """Seed every generator, and give torch's global switches back as they were."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    dtype, grad, threads = torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()
    deterministic, products = torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(products)
    torch.set_default_dtype(dtype)
    torch.set_grad_enabled(grad)
    torch.set_num_threads(threads)
    if torch.are_deterministic_algorithms_enabled() != deterministic:
        torch.use_deterministic_algorithms(deterministic)  # its first call imports 800 modules


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Leave the system its time to write: what a test looks at is in the cache, and a busy disk takes seconds."""
    with pytest.MonkeyPatch.context() as patch:  # the test's own is undone before torch's switches are given back
        patch.setattr(os, "fsync", lambda handle: None)
        yield


def _command(name: str) -> list[str]:
    """The command line that starts a console script: ours from the checkout, others as installed."""
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    if name in ours:  # the checkout is what is tested, installed or not
        module, function = ours[name].split(":")
        code = f"import sys; from {module} import {function}; sys.argv[0] = {name!r}; sys.exit({function}())"
        return [sys.executable, "-c", code]
    if name == "python":
        return [sys.executable]
    script = Path(sysconfig.get_path("scripts")) / name
    if script.exists():
        return [str(script)]
    if name.startswith("fairseq-"):
        return [sys.executable, "-m", _module_of(name)]
    if name == "torchrun":
        return [sys.executable, "-m", "torch.distributed.run"]
    raise FileNotFoundError(f"no console script {name} in {script.parent}")


def _module_of(name: str) -> str:
    """The module behind one of fairseq's console scripts: `fairseq-eval-lm` -> `fairseq_cli.eval_lm`."""
    return "fairseq_cli." + name.removeprefix("fairseq-").replace("-", "_")


@pytest.fixture(scope="session")
def fairseq_cli() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a console script (fairseq's, ours, `torchrun` or `python`) as a process (4 s each).

    `fairseq_cli("fairseq-train", data, "--task", "mte", cwd=..., env={...}, check=False, input="text")`
    returns the `CompletedProcess` with decoded stdout and stderr. A non-zero status raises an
    AssertionError that shows both, unless `check=False`. The checkout is on PYTHONPATH; `env` adds
    variables, and a value of None removes one.
    """

    def run(
        name: str,
        *args: object,
        cwd: Path | str | None = None,
        env: Mapping[str, str | None] | None = None,
        check: bool = True,
        input: str = "",
        timeout: float = 600.0,
    ) -> subprocess.CompletedProcess[str]:
        merged = {**os.environ, "PYTHONPATH": python_path(), **(env or {})}
        result = subprocess.run(
            [*_command(name), *map(str, args)],
            cwd=cwd,
            env={key: value for key, value in merged.items() if value is not None},
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            input=input,
            timeout=timeout,
            check=False,
        )
        if check and result.returncode:
            shown = f"{result.stdout[-6000:]}\n--- stderr ---\n{result.stderr[-6000:]}"
            line = " ".join([name, *map(str, args)])
            raise AssertionError(f"{line}: exit status {result.returncode}\n{shown}")
        return result

    return run


@pytest.fixture(scope="session")
def installed_dir(repository_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory into which `pip install` has put this checkout (without its dependencies)."""
    source = tmp_path_factory.mktemp("source")  # setuptools leaves build/ and *.egg-info beside what it builds
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(repository_root / name, source)
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(repository_root / "mclip_fairseq", source / "mclip_fairseq", ignore=ignore)
    target = tmp_path_factory.mktemp("installed")
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *offline, "--target", str(target), str(source)]
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    return target


@contextlib.contextmanager
def _captured(argv: Sequence[str]) -> Iterator[io.StringIO]:
    """Stand in for a process: `sys.argv`, stdout and the root logger's INFO messages in one buffer."""
    buffer, root, old_argv = io.StringIO(), logging.getLogger(), sys.argv
    handler, level = logging.StreamHandler(buffer), root.level
    handler.setFormatter(logging.Formatter(LOG_FORMAT, datefmt="%Y-%m-%d %H:%M:%S"))
    old_handlers = list(root.handlers)
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    sys.argv = list(argv)
    try:
        with contextlib.redirect_stdout(buffer):
            yield buffer
    finally:
        sys.argv = old_argv
        root.setLevel(level)
        for added in [h for h in root.handlers if h not in old_handlers]:
            root.removeHandler(added)


@pytest.fixture(scope="session")
def run_in_process() -> Callable[..., str]:
    """Run one of fairseq's console scripts inside this process (one rank, CPU): no import time, shared state.

    `run_in_process("fairseq-generate", data, "--user-dir", ...)` returns what it logged (level INFO) and
    printed. Exceptions come through as they are; argparse's `SystemExit` becomes an AssertionError.
    """
    from tests import preloaded  # noqa: F401
    from tests.quick_options import remembered_compose
    from tests.runs import forget_last_run

    def run(name: str, *args: object) -> str:
        module = importlib.import_module(_module_of(name))
        forget_last_run()
        errors = io.StringIO()
        quick = mock.patch("fairseq.dataclass.utils.compose", remembered_compose)
        with quick, _captured([name, *map(str, args)]) as buffer, contextlib.redirect_stderr(errors):
            try:
                module.cli_main()
            except SystemExit as stop:
                if stop.code:
                    raise AssertionError(f"{name}: exit status {stop.code}\n{errors.getvalue()}") from stop
            finally:
                forget_last_run()
        return buffer.getvalue()

    return run


@pytest.fixture(scope="session")
def run_train(run_in_process: Callable[..., str]) -> Callable[..., str]:
    """`run_train(data, "--task", "mte", ...)`: fairseq-train in this process, our `--user-dir`, on the CPU.

    With `device="cuda"`, it trains on one GPU. Returns the log, in fairseq's format; with `--log-format json` the
    lines of the loggers `train_inner`, `train` and `valid` end with a JSON object.
    """

    def run(*args: object, device: str = "cpu") -> str:
        where = ("--cpu",) if device == "cpu" else ("--distributed-world-size", "1")
        return run_in_process("fairseq-train", *args, "--user-dir", ROOT / "mclip_fairseq", *where)

    return run


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tokenizer/`, `raw/`, `pieces/`, `mte/`, `captions/` and `features/` of the tiny corpus."""
    from tests import tiny_data

    folder = tiny_data.make_text(tmp_path_factory.mktemp("corpus"))
    tiny_data.make_parallel(folder)
    tiny_data.make_captions(folder)
    return folder


@pytest.fixture(scope="session")
def photos(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`images/`, `captions/` of them, a `teacher/` and its `features/`."""
    from tests import tiny_data

    return tiny_data.make_photos(tmp_path_factory.mktemp("photos"), tiny_corpus / "captions")


@pytest.fixture(scope="session")
def mla_corpus(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny corpus with a data directory per tokenizer, and CLIP's features of the English captions."""
    from tests import mla_data

    return mla_data.make_mla_corpus(tmp_path_factory.mktemp("mla"), photos)
