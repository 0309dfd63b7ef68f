"""How every program ends: one sentence for the user, one line after Ctrl-C, a traceback for a bug."""

from __future__ import annotations

import ast
import errno
import io
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from mclip_fairseq.cli.main import Parser, run_main
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.features import FeatureStore
from mclip_fairseq.storage.files import read_json, write_json
from mclip_fairseq.storage.provenance import shareable


def failing(error: BaseException) -> Callable[[], int]:
    def run() -> int:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "status", "printed"),
    [
        (UserError("x\x1b[31m.txt: is empty; write it"), 2, "prog: error: x\\x1b[31m.txt: is empty; write it\n"),
        (FileNotFoundError(2, "No such file", "a\nb"), 2, "prog: error: a\\nb: No such file\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "x.npy"),
            2,
            "prog: error: x.npy: No space left on device; make space and run the same command again\n",
        ),
        (KeyboardInterrupt(), 130, "\nprog: interrupted; run it again\n"),
    ],
)
def test_a_person_reads_one_sentence(
    error: BaseException, status: int, printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main("prog", failing(error), when_interrupted="run it again") == status
    assert capsys.readouterr().err == printed


@pytest.mark.parametrize(("encoding", "printed"), [("utf-8", "ü\\udcff\n"), ("ascii", "\\xfc\\udcff\n")])
def test_a_name_that_the_terminal_cannot_show_is_escaped(
    encoding: str, printed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in JSON, where it comes back as it was."""
    name = os.fsdecode("ü".encode() + b"\xff")
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr("sys.stdout", stream)
    assert run_main("prog", lambda: print(name)) == 0
    stream.flush()
    assert stream.buffer.getvalue().decode() == printed
    write_json(tmp_path / "x.json", {"name": name})
    assert read_json(tmp_path / "x.json") == {"name": name}
    assert shareable(f"/home/{name}") == ".../ü\\udcff"


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    """`mclip-doctor options | head -1`, where the writer notices in the middle, and where it notices at its end."""
    for text in ("'x' * 100000", "'x'"):
        code = (
            f"import sys; from mclip_fairseq.cli.main import run_main; sys.exit(run_main('p', lambda: print({text})))"
        )
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            assert process.stderr.read() == b""
            assert process.wait() == 141


def test_a_pipe_of_its_own_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main("prog", failing(BrokenPipeError(32, "Broken pipe"))) == 2
    assert capsys.readouterr().err == "prog: error: Broken pipe\n"


def test_a_bug_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a reader catches what parsers raise about a damaged file."""
    with pytest.raises(AttributeError, match="a bug"):
        run_main("prog", failing(AttributeError("a bug")))

    def read_json(path: Path) -> None:
        raise AttributeError("a bug")

    monkeypatch.setattr("mclip_fairseq.storage.feature_files.read_json", read_json)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(AttributeError, match="a bug"):
        run_main("prog", lambda: print(FeatureStore.open(tmp_path)))


def test_the_parser_escapes_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        Parser(prog="prog").parse_args(["\x1b[31mx"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.endswith("prog: error: unrecognized arguments: \\x1b[31mx\n")


def console_scripts(root: Path) -> list[Path]:
    scripts = tomllib.loads((root / "pyproject.toml").read_text())["project"]["scripts"]
    modules = [Path(root, *target.partition(":")[0].split(".")).with_suffix(".py") for target in scripts.values()]
    others = [path for folder in ("preprocess", "examples") for path in (root / folder).rglob("*.py")]
    return modules + [path for path in others if "__main__" in path.read_text(encoding="utf-8")]


def test_every_program_ends_by_run_main(repository_root: Path) -> None:
    scripts = console_scripts(repository_root)
    assert len(scripts) > 20
    for path in scripts:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        called = {
            node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert called & {"run_main", "run_corpus"}, path
        made = [
            node for node in ast.walk(tree) if isinstance(node, ast.Call) and "ArgumentParser" in ast.unparse(node.func)
        ]
        assert not made, path
