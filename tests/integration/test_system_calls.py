"""What programs ask of the system: with local models, no network, and no file outside the named outputs and the cache.

Python's own byte code is switched off, and temporary files go to a folder of the test; `/dev/shm` is memory.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import ROOT, caption_options

EXPORTED = ROOT / "tests" / "data" / "legacy" / "exported"
TRACED = (
    "socket,open,openat,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,truncate,"
    "mknod,mknodat"
)
SCRIPT = "import sys; from {} import {} as main; sys.argv[0] = 'program'; sys.exit(main())"
CALL = re.compile(r"^(?:\d+ +)?(\w+)\(")
OPENED = ("open", "openat")
FOR_WRITING = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC")
ALLOWED = ("/dev/null", "/dev/shm", "/dev/tty", "/proc/self")

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


def traced(folder: Path, code: str, *arguments: object) -> tuple[list[str], list[str]]:
    """Run Python code under strace, with `folder` as working directory.

    Returns:
        the calls that make a socket of the internet, and the paths outside `folder` that were written to.
    """
    (folder / "tmp").mkdir(exist_ok=True)
    log = folder / "tmp" / "calls"
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "TMPDIR": str(folder / "tmp"),
        "MCLIP_CACHE": str(folder / "cache"),
    }
    environment.pop("HF_HUB_OFFLINE")  # what a user has
    # With the filter, the kernel stops the program at these calls only.
    command = ["strace", "-f", "--seccomp-bpf", "-qq", "-y", "-s", "4096", "-e", f"trace={TRACED}", "-o", str(log)]
    command += [sys.executable, "-c", code, *map(str, arguments)]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if "ptrace" in result.stderr and "not permitted" in result.stderr:
        pytest.skip("this machine does not permit strace")
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    sockets, written = list[str](), set[str]()
    for line in log.read_text(errors="replace").splitlines():
        call = CALL.match(line)
        if call is None or " = -1 " in line:
            continue
        if call[1] == "socket":
            sockets += [line] if "AF_INET" in line else []
        elif call[1] not in OPENED or FOR_WRITING.search(line):
            written |= {str(folder / path) for path in re.findall(r'"([^"]+)"', line)}
    outside = [path for path in sorted(written) if not path.startswith((str(folder), *ALLOWED))]
    return sockets, outside


@pytest.fixture(scope="module")
def work(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures, captions and features, in which every program runs."""
    folder = tmp_path_factory.mktemp("work")
    shutil.copytree(ROOT / "tests" / "data" / "legacy" / "photos" / "images", folder / "images")
    shutil.copytree(tiny_corpus, folder / "corpus")
    names = sorted(path.name for path in (folder / "images").iterdir())
    (folder / "test.ids").write_text("".join(f"{name}\n" for name in names))
    (folder / "test.en").write_text("".join(f"the red dog {number}\n" for number in range(len(names))))
    return folder


SEARCH, EVALUATE = (
    SCRIPT.format("mclip_fairseq.cli.search", "main"),
    SCRIPT.format("mclip_fairseq.cli.evaluate", "main"),
)
TRAIN = SCRIPT.format("fairseq_cli.train", "cli_main")


@pytest.mark.slow
def test_building_and_searching_an_index(work: Path) -> None:
    assert traced(work, SEARCH, "build", "images", "--model", EXPORTED, "--output", "index") == ([], [])
    assert traced(work, SEARCH, "query", "index", "a dog") == ([], [])


def test_training(work: Path) -> None:
    command = caption_options(Path("corpus"), Path("run"), "--num-workers", "1", "--max-update", "2", "--cpu")
    assert traced(work, TRAIN, *command, "--user-dir", ROOT / "mclip_fairseq") == ([], [])
    assert (work / "run" / "checkpoint_last.pt").is_file()


@pytest.mark.slow
def test_evaluating(work: Path) -> None:
    """And encoding: the captions and images of a benchmark."""
    options = ("--model", EXPORTED, "--captions", "en=test.en", "--ids", "test.ids", "--images", "images")
    assert traced(work, EVALUATE, *options, "--output", "results") == ([], [])
    assert (work / "results").is_dir()


def test_the_negative_control(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (tmp_path / "work").mkdir()
    code = f"import socket; socket.socket(); open({str(outside)!r}, 'w').close(); open('inside', 'w').close()"
    sockets, written = traced(tmp_path / "work", code)
    assert len(sockets) == 1
    assert written == [str(outside)]
