"""A recipe's command beside the script: its output comes in its place, its failure counts, it ends with the script."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

from tests.runs import HANG, ROOT

START = """set -euo pipefail
source "$ROOT/examples/recipe.sh"
aside "$FOLDER/output" {command}
echo meanwhile
"""


def start(folder: Path, command: str, rest: str) -> subprocess.Popen[str]:
    """A script that runs a command aside."""
    script = START.replace("{command}", command) + rest
    environment = {**os.environ, "ROOT": str(ROOT), "FOLDER": str(folder)}
    pipe = subprocess.PIPE
    return subprocess.Popen(["bash", "-c", script, "recipe"], env=environment, text=True, stdout=pipe, stderr=pipe)


def test_the_output_comes_in_its_place(tmp_path: Path) -> None:
    printed, _ = start(tmp_path, "echo aside", "rejoin\necho end\n").communicate(timeout=HANG)
    assert printed == "meanwhile\naside\nend\n"


def test_a_failure_ends_the_recipe_after_its_output(tmp_path: Path) -> None:
    process = start(tmp_path, "ls missing", "rejoin\necho end\n")
    printed, errors = process.communicate(timeout=HANG)
    assert process.returncode == 2
    assert "missing" in printed
    assert "end" not in printed
    # bash itself may say before that it has no record of a process, if one ended in the wrong moment
    assert errors.endswith("recipe: error: the command above failed\n")


def test_it_ends_with_the_script(tmp_path: Path) -> None:
    """Also what the command has started itself."""
    command = f"bash -c 'sleep {HANG} & echo $! > {tmp_path / 'pid'}; wait'"
    process = start(tmp_path, command, f"read -rt {HANG} <> <(:)\n")
    pid, end = tmp_path / "pid", time.monotonic() + HANG
    while not (pid.exists() and pid.read_text().strip()) and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=HANG)
    while Path(f"/proc/{pid.read_text().strip()}").exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert not Path(f"/proc/{pid.read_text().strip()}").exists()
