"""Signals over several processes: ranks that stop together, and data workers that end with their trainer."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mclip_fairseq.storage.checkpoints import load_checkpoint
from tests.processes import alive, children, start, wait_for, wait_for_children
from tests.runs import GLOO, HANG, ROOT
from tests.runs import caption_options as options

ON_TWO_GPUS = """
import torch
from fairseq_cli.train import cli_main

if __name__ == "__main__":
    torch.cuda.device_count = lambda: 2
    cli_main()
"""


@pytest.mark.distributed
@pytest.mark.slow
def test_two_ranks_that_fairseq_started_stop_together(tiny_corpus: Path, tmp_path: Path) -> None:
    """Only the process that started them is signalled, as by `kill` or `timeout`; it passes the signal on."""
    log, program = tmp_path / "log", tmp_path / "train.py"
    program.write_text(ON_TWO_GPUS)
    command = [
        *(sys.executable, program, *options(tiny_corpus, tmp_path / "run", *GLOO)),
        *("--user-dir", ROOT / "mclip_fairseq", "--distributed-world-size", "2", "--cpu", "--num-workers", "0"),
        *("--max-update", "100000", "--disable-validation"),
    ]
    process = start(command, log)
    try:
        wait_for("| train_inner | {", log, process)
        everyone = children(process.pid)
        process.terminate()
        assert process.wait(timeout=HANG) == 0, log.read_text()[-4000:]
        assert alive(everyone) == []
    finally:
        process.kill()
    updates = load_checkpoint(tmp_path / "run" / "checkpoint_last.pt")["optimizer_history"][-1]["num_updates"]
    assert f"SIGTERM: saving after {updates} updates and ending" in log.read_text()


@pytest.mark.slow
@pytest.mark.distributed
def test_two_ranks_under_torchrun_stop_together(tiny_corpus: Path, tmp_path: Path) -> None:
    """One rank is signalled, and so is every data worker, as a scheduler does; torchrun ends with status 0."""
    log = tmp_path / "log"
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("-m", "fairseq_cli.train", *options(tiny_corpus, tmp_path / "run", "--user-dir", ROOT / "mclip_fairseq")),
        *("--cpu", "--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp", "--distributed-world-size", "2"),
        *("--num-workers", "2", "--max-update", "100000", "--disable-validation"),
    ]
    process = start(command, log)
    try:
        wait_for("| train_inner | {", log, process)
        ranks = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        assert len(ranks) == 2
        everyone = wait_for_children(6, process)
        for worker in set(everyone) - set(ranks):
            with contextlib.suppress(ProcessLookupError):  # its epoch has just ended
                os.kill(worker, signal.SIGTERM)
        os.kill(ranks[1], signal.SIGTERM)
        assert process.wait(timeout=HANG) == 0, log.read_text()[-4000:]
        assert alive(everyone) == []
    finally:
        process.kill()
    text = log.read_text()
    assert "SIGTERM: saving after" in text
    assert "Traceback" not in text
    updates = load_checkpoint(tmp_path / "run" / "checkpoint_last.pt")["optimizer_history"][-1]["num_updates"]
    assert f"saving after {updates} updates" in text


LEAVING_ONE_BEHIND = """
import os, signal, time, torch.utils.data
from fairseq_cli.train import cli_main
from mclip_fairseq.data import sampling

def stay():
    if torch.utils.data.get_worker_info() and not started:
        started.append(os.fork())
        if not started[0]:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            time.sleep(3600)

started = []
sampling.shield_worker = stay
cli_main()
"""


@pytest.mark.parametrize(
    ("program", "workers"),
    [(("-m", "fairseq_cli.train"), 8), pytest.param(("-c", LEAVING_ONE_BEHIND), 1, marks=pytest.mark.slow)],
)
def test_eight_workers_end_with_an_interrupt(
    program: tuple[str, str], workers: int, tiny_corpus: Path, tmp_path: Path
) -> None:
    """Control-C reaches every process of the terminal: all end, and only the trainer says why.

    The negative control is a worker that starts a process which does not listen: it is noticed.
    """
    log = tmp_path / "log"
    command = [
        *(sys.executable, *program, *options(tiny_corpus, tmp_path / "run", "--num-workers", workers)),
        *("--user-dir", ROOT / "mclip_fairseq", "--cpu", "--disable-validation", "--no-save", "--max-update", "100000"),
    ]
    process = start(command, log)
    everyone: list[int] = []
    try:
        wait_for("| train_inner | {", log, process)
        everyone = wait_for_children(workers, process)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=HANG) == 128 + signal.SIGINT
        assert (alive(everyone, patience=HANG if workers == 8 else 0) == []) == (workers == 8)
    finally:
        process.kill()
        for left in alive(everyone, patience=0):
            os.kill(left, signal.SIGKILL)
    text = log.read_text()
    assert "Traceback" not in text, text[-4000:]
    assert text.rstrip().endswith(": interrupted")
    assert "leaked" not in text


# In a process of its own: libraries that other tests load, such as gRPC, start threads in every fork.
FORKING = """
import multiprocessing, os, signal, sys, time
from types import SimpleNamespace
from mclip_fairseq.resilience import signals, workers

if sys.argv[1] == "False":
    signals.listening = lambda: False
# What a rank that was spawned by fairseq's launcher says, and its forks at first.
multiprocessing.parent_process = lambda: SimpleNamespace(pid=1)
signals.listen()
reading, writing = os.pipe()
child = os.fork()
if not child:
    os.write(writing, b"ready ")
    while not signals._received:
        time.sleep(0.01)
    os.write(writing, b"noted")
    os._exit(1)
os.close(writing)
assert os.read(reading, 6) == b"ready "
os.kill(child, signal.SIGTERM)
print(os.read(reading, 5).decode(), os.waitpid(child, 0)[1])
"""


@pytest.mark.parametrize("shielded", [True, False])
def test_a_child_of_a_run_obeys_it_from_its_fork_on(shielded: bool) -> None:
    """Before it has loaded anything; the noting of signals that it inherits would swallow SIGTERM, as the other case is
    there to show."""
    command = [sys.executable, "-c", FORKING, str(shielded)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=True, cwd=ROOT)
    # It ends, which closes the pipe; or it notes the signal as if it were the run.
    assert done.stdout == (" 0\n" if shielded else f"noted {1 << 8}\n")
