"""Training runs to compare: several ranks without a launcher, what a checkpoint holds, and what was logged."""

from __future__ import annotations

import contextlib
import gc
import json
import multiprocessing as mp
import os
import random
import runpy
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mclip_fairseq.storage.checkpoints import load_checkpoint

ROOT = Path(__file__).resolve().parents[1]
# What the clock decides, and what names the run's own folder.
CLOCK = {"wps", "ups", "wall", "train_wall", "previous_training_time", "save_dir", "restore_file", "metrics", "places"}
GLOO = ("--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp")
RANK = "__rank__"
PRELOADED = ["tests.preloaded"]  # by the server that forks ranks
# Seconds after which a test gives up: tests wait for events, and a busy machine takes its time for them.
HANG = 600


def caption_options(corpus: Path, folder: Path, *more: object) -> list[object]:
    """Options of a small training on captions and image features."""
    return [
        *(corpus / "captions", "--task", "trikd", "--langs", "en,de", "--arch", "mclip_tiny", "--criterion", "trikd"),
        *("--image-features", corpus / "features" / "image", "--text-text-weight", "0", "--freeze-text", "none"),
        *("--optimizer", "fused_adamw", "--lr", "0.003", "--batch-size", "8", "--no-epoch-checkpoints"),
        *("--save-dir", folder, "--log-interval", "1", "--log-format", "json", *more),
    ]


def difference(one: Any, two: Any, where: str = "") -> str:
    """Path to the first value in which two checkpoints differ, bit for bit; empty if none does."""
    if type(one) is not type(two):
        return f"{where}: {type(one).__name__} and {type(two).__name__}"
    if isinstance(one, dict):
        if one.keys() != two.keys():
            return f"{where}: {sorted(map(str, one.keys() ^ two.keys()))}"
        pairs = ((f"{where}.{key}", one[key], two[key]) for key in one if key not in CLOCK)
        return next(filter(None, (difference(a, b, path) for path, a, b in pairs)), "")
    if isinstance(one, list | tuple):
        if len(one) != len(two):
            return f"{where}: lengths {len(one)} and {len(two)}"
        return next(
            filter(None, (difference(a, b, f"{where}.{n}") for n, (a, b) in enumerate(zip(one, two, strict=True)))), ""
        )
    if isinstance(one, torch.Tensor):
        return "" if torch.equal(one, two) else where
    return "" if one == two else f"{where}: {one} and {two}"


def state_of(folder: Path, name: str = "checkpoint_last.pt") -> dict[str, Any]:
    """What a run has saved last, less its options."""
    state = load_checkpoint(folder / name)
    del state["cfg"]
    del state["optimizer_history"][:-1]  # one entry more after each stop
    return state


def losses_of(log: str) -> dict[int, dict[str, Any]]:
    """Every logged average of the training, by number of updates, less what the clock decides (--log-format json)."""
    lines = [json.loads(line[line.index("{") :]) for line in log.splitlines() if "| train_inner | {" in line]
    values = [{name: value for name, value in line.items() if name not in CLOCK} for line in lines]
    return {int(value["num_updates"]): value for value in values}


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on, below those that the system gives to connections meanwhile."""
    found, draw = set[int](), random.SystemRandom()  # plain `random` is seeded, in all workers alike
    while len(found) < count:
        port = draw.randrange(16384, 32768)
        with contextlib.suppress(OSError), socket.socket() as one:
            one.bind(("127.0.0.1", port))
            found.add(port)
    return list(found)


def train_on_ranks(
    world: int, runs: Sequence[Sequence[object]], logs: Path, timeout: float = HANG, unchecked: bool = False
) -> list[list[str]]:
    """Run fairseq-train with several argument lists, one after the other, in `world` gloo processes.

    Args:
        world: processes.
        runs: their command lines.
        logs: folder for the output of every rank.
        timeout: seconds for all of it.
        unchecked: features that are not finite are let in, as if they had changed after they were opened.

    Returns:
        for each run the output of each rank; it ends with `exit status N`.
    """
    arguments = [[*map(str, run), *GLOO, "--distributed-world-size", str(world)] for run in runs]
    start_ranks("train", world, (arguments, free_ports(len(runs)), str(logs), unchecked), timeout)
    return [[(logs / f"run{run}.rank{rank}").read_text() for rank in range(world)] for run in range(len(runs))]


def forked(function: Callable[..., object], *arguments: object) -> Any:
    """A process, not started yet, that calls a function; it is forked from a server that has imported fairseq."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with contextlib.chdir(ROOT):  # Python 3.11 hands the server no path on which it finds tests/
        forkserver.ensure_running()
    return context.Process(target=function, args=arguments)


def start_ranks(
    function: str, world: int, arguments: tuple[Any, ...], timeout: float = HANG, file: str = __file__
) -> None:
    """Call a function of a file, by its name, with (rank, world, *arguments) in `world` processes."""
    ranks = []
    for rank in range(world):
        # By path: the module name that pytest gives a test file cannot be imported elsewhere.
        call = {"call": (function, (rank, world, *arguments))}
        ranks.append(forked(runpy.run_path, file, call, RANK))
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=timeout)
        process.kill()  # nothing to a rank that has ended
    assert [process.exitcode for process in ranks] == [0] * world


@contextlib.contextmanager
def gloo_group(rank: int, world: int, store: str) -> Iterator[None]:
    """A process group of ranks that meet in a file."""
    torch.set_num_threads(1)
    patience = timedelta(seconds=HANG)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=patience)
    try:
        yield
    finally:
        dist.destroy_process_group()


def train(rank: int, world: int, runs: list[list[str]], ports: list[int], logs: str, unchecked: bool = False) -> None:
    """One rank of `train_on_ranks`."""
    from fairseq.dataclass import utils as dataclass_utils
    from fairseq.distributed import utils as distributed_utils
    from fairseq_cli import train as fairseq_train

    from mclip_fairseq.storage import features
    from tests.quick_options import remembered_compose

    vars(dataclass_utils)["compose"] = remembered_compose
    if unchecked:
        vars(features)["check_finite"] = lambda *arguments: None

    mp.set_start_method("fork", force=True)  # for data workers, as under torchrun
    torch.set_num_threads(1)
    vars(os)["fsync"] = lambda handle: None  # see tests/conftest.py
    for number, (run, port) in enumerate(zip(runs, ports, strict=True)):
        here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": world, "RANK": rank, "LOCAL_RANK": rank}
        os.environ.update({name: str(value) for name, value in here.items()})
        vars(distributed_utils.get_global_group).clear()
        sys.argv = ["fairseq-train", *run, "--user-dir", str(ROOT / "mclip_fairseq"), "--cpu"]
        with _into_file(Path(logs) / f"run{number}.rank{rank}"):
            status: Any = 0
            try:
                fairseq_train.cli_main()
            except SystemExit as stop:
                status = stop.code
            except Exception as error:
                status = f"{type(error).__name__}: {error}"
            print(f"exit status {status}")
        forget_last_run()
        gc.freeze()  # what the next runs need not search for garbage


def forget_last_run() -> None:
    """Undo what a run of fairseq leaves in module state, so that the next one starts like a new process."""
    from fairseq import checkpoint_utils
    from fairseq.logging import metrics
    from fairseq_cli import train

    from mclip_fairseq.resilience.workers import close_remaining

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    for function in (checkpoint_utils.save_checkpoint, train.should_stop_early):
        vars(function).clear()  # fairseq keeps the best validation loss and the patience counter there
    metrics.reset()
    close_remaining()
    gc.collect()  # a trainer that is gone gives the signals back


@contextlib.contextmanager
def _into_file(path: Path) -> Iterator[None]:
    """Send everything that this process writes to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with path.open("wb") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, copy in enumerate(kept, 1):
                os.dup2(copy, number)
                os.close(copy)


if __name__ == RANK:
    name, values = call  # type: ignore[name-defined] # noqa: F821
    globals()[name](*values)
