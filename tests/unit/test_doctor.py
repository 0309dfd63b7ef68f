"""The doctor finds what was broken on purpose, says how to fix it, and works where fairseq is missing."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from mclip_fairseq import compat, doctor
from mclip_fairseq.doctor import Check

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Exception], None]:
    """`broken("torchaudio", OSError("..."))`: from now on, importing that module raises that error."""
    errors: dict[str, Exception] = {}
    real = doctor.importlib.import_module

    def import_module(name: str) -> ModuleType:
        if name in errors:
            raise errors[name]
        return real(name)

    monkeypatch.setattr(doctor, "importlib", SimpleNamespace(import_module=import_module, metadata=importlib.metadata))
    return errors.__setitem__


def test_what_is_installed_is_ok() -> None:
    compat.shield_torchaudio()
    makefile = (Path(__file__).resolve().parents[2] / "Makefile").read_text(encoding="utf-8")
    (extras,) = re.findall(r"^EXTRAS := (.*)$", makefile, re.MULTILINE)
    for name, bound, extra in doctor.requirements():
        if extra and extra not in extras.split(","):
            continue  # make setup leaves it out
        check = doctor.check_package(name, bound, extra)
        assert check.status == "ok", check
        assert check.found == doctor.installed_version(name)
    assert {"fairseq-fixed", "torch", "faiss-cpu"} <= {name for name, _, _ in doctor.requirements()}
    assert doctor.check_compiled_extensions().status == "ok"
    assert doctor.check_plugin().status == "ok"


@pytest.mark.parametrize(
    ("name", "extra", "status"),
    [("transformers", "", "error"), ("faiss-cpu", "search", "warning"), ("emoji", "demo", "warning")],
)
def test_a_package_that_cannot_be_imported(
    name: str, extra: str, status: str, broken: Callable[[str, Exception], None]
) -> None:
    module = doctor.MODULES.get(name, name)
    broken(module, OSError("libfoo.so: undefined symbol\nsecond line"))
    check = doctor.check_package(name, ">=0.1", extra)
    assert check.status == status
    assert "OSError: libfoo.so: undefined symbol" in check.found
    assert "second line" not in check.found
    assert f"pip install '{name}>=0.1' --force-reinstall" in check.fix


def test_a_package_that_is_absent_or_too_old_or_of_another_build(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = doctor.check_package("no-such-package", ">=1")
    assert (absent.status, absent.found) == ("error", "not installed")
    assert absent.fix == "Run pip install 'no-such-package>=1'."
    old = doctor.check_package("sentencepiece", ">=9999")
    assert old.status == "error"
    assert ">=9999 is required" in old.found
    monkeypatch.setitem(doctor.MODULES, "faiss-somewhere", "faiss")
    assert doctor.check_package("faiss-somewhere", ">=1").status == "warning"


@pytest.mark.parametrize(
    ("version", "bound", "expected"),
    [
        ("2.13.0+cpu", "==2.13.0", True),
        ("2.9.1", ">=2.10", False),
        ("2.10", ">=2.10", True),
        ("2.10.0rc1", ">=2.9", True),
        ("1.0", "", True),
    ],
)
def test_versions_are_compared_as_pip_does(version: str, bound: str, expected: bool) -> None:
    assert doctor.satisfies(version, bound) is expected


def test_a_broken_torchaudio_is_a_warning(
    broken: Callable[[str, Exception], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "installed_version", {"torchaudio": "2.11.0", "torch": "2.13.0+cpu"}.get)
    broken("torchaudio", OSError("could not load _torchaudio"))
    check = doctor.check_torchaudio()
    assert check.status == "warning"
    assert "2.11.0 cannot be loaded: OSError: could not load _torchaudio" in check.found
    assert "pip uninstall torchaudio" in check.fix
    monkeypatch.setattr(doctor, "installed_version", {}.get)
    assert doctor.check_torchaudio().status == "ok"


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert doctor.check_compiler().status == "warning"
    compiler = tmp_path / "my-compiler"
    compiler.write_text("", encoding="utf-8")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", "my-compiler -O2")
    assert doctor.check_compiler() == Check("C++ compiler", "ok", str(compiler))


def test_extensions_that_were_not_compiled(broken: Callable[[str, Exception], None]) -> None:
    broken("fairseq.data.data_utils_fast", ModuleNotFoundError("No module named 'fairseq.data.data_utils_fast'"))
    check = doctor.check_compiled_extensions()
    assert check.status == "error"
    assert "data_utils_fast" in check.found
    assert "token_block" not in check.found
    assert check.fix == "Run mclip-doctor --fix."


@pytest.mark.parametrize(
    ("missing", "torchaudio", "expected"),
    [
        ("", "ok", ["doctor"]),
        ("fairseq", "ok", ["fairseq", "doctor"]),
        ("fairseq.data.data_utils_fast", "ok", ["fairseq", "doctor"]),
        ("", "warning", ["uninstall --yes torchaudio", "doctor"]),
    ],
)
def test_fix_installs_what_is_missing_and_nothing_else(
    missing: str,
    torchaudio: Any,
    expected: list[str],
    broken: Callable[[str, Exception], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []
    if missing:
        broken(missing, ModuleNotFoundError(f"No module named {missing!r}"))
    monkeypatch.setattr(doctor, "install_fairseq", lambda: done.append("fairseq"))
    monkeypatch.setattr(doctor, "run_pip", lambda *words: done.append(" ".join(words)))
    monkeypatch.setattr(doctor, "check_torchaudio", lambda: Check("torchaudio", torchaudio, "", ""))

    def run(command: list[str], check: bool) -> SimpleNamespace:
        assert command[1:] == ["-m", "mclip_fairseq.doctor", "--json"]
        done.append("doctor")
        return SimpleNamespace(returncode=1)

    monkeypatch.setattr(doctor.subprocess, "run", run)
    assert doctor.main(["--fix", "--json"]) == 1
    assert done == expected


MISSING = "fairseq is not installed; run mclip-doctor --fix"
IMPORT_TWICE = """
import mclip_fairseq
for _ in range(2):
    try:
        import fairseq
    except ImportError as error:
        print(error)
"""
SCRIPT = """
from mclip_fairseq.cli.main import run_main
def run():
    import fairseq
print(run_main("mclip-x", run))
"""


def test_fairseq_is_named_where_it_is_missing(tmp_path: Path, fairseq_cli: Run) -> None:
    """By import and by a console script; `-S` leaves out the environment's packages."""
    result = fairseq_cli("python", "-S", "-c", IMPORT_TWICE, cwd=tmp_path)
    assert result.stdout.splitlines() == [MISSING] * 2
    result = fairseq_cli("python", "-S", "-c", SCRIPT, cwd=tmp_path)
    assert (result.stdout, result.stderr) == ("2\n", f"mclip-x: error: {MISSING}\n")


def ours(registry: dict[str, Any]) -> list[str]:
    return [name for name, entry in registry.items() if entry.__module__.startswith("mclip_fairseq.")]


def test_every_entry_of_ours_is_counted() -> None:
    """What the decorators in the files say is what fairseq's registries hold."""
    import mclip_fairseq.tasks  # noqa: F401  # registers them

    for kind in ("task", "model", "criterion", "optimizer"):
        assert sorted(name for one, name in doctor.components() if one == kind) == sorted(ours(doctor.registry(kind)))


def test_a_component_that_is_missing_or_belongs_to_another_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    import fairseq.tasks

    assert doctor.check_plugin().found.startswith(f"{len(ours(fairseq.tasks.TASK_REGISTRY))} tasks, ")
    monkeypatch.delitem(fairseq.tasks.TASK_REGISTRY, "trikd")
    monkeypatch.setitem(fairseq.tasks.TASK_REGISTRY, "mte", fairseq.tasks.TASK_REGISTRY["translation"])
    check = doctor.check_plugin()
    assert check.status == "error"
    assert check.found == "not registered: task mte, task trikd"


def fake_torch(built: str | None, usable: bool, bf16: bool) -> Any:
    cuda = SimpleNamespace(
        is_available=lambda: usable,
        device_count=lambda: 2,
        get_device_name=lambda index: "Some GPU",
        is_bf16_supported=lambda including_emulation: bf16,
    )
    distributed = SimpleNamespace(is_available=lambda: True, is_backend_available=lambda name: name == "gloo")
    version = SimpleNamespace(cuda=built)
    return SimpleNamespace(cuda=cuda, version=version, distributed=distributed, __version__="9.9")


@pytest.mark.parametrize(
    ("built", "usable", "bf16", "cuda", "precision"),
    [
        (None, False, False, "built without CUDA", "not without CUDA"),
        ("13.0", False, False, "no GPU can be used", "not without CUDA"),
        ("13.0", True, False, "13.0, 2 x Some GPU", "this GPU has no bf16"),
        ("13.0", True, True, "13.0, 2 x Some GPU", "both"),
    ],
)
def test_cuda_and_precisions(
    built: str | None, usable: bool, bf16: bool, cuda: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", fake_torch(built, usable, bf16))
    checks = list(doctor.check_accelerator())
    assert [check.name for check in checks] == ["CUDA", "bf16/fp16", "distributed"]
    assert cuda in checks[0].found
    assert precision in checks[1].found
    assert [bool(check.fix) for check in checks] == [not usable, not (usable and bf16), False]
    assert "error" not in {check.status for check in checks}  # training on the CPU works


def test_little_space(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=64e6))
    checks = list(doctor.check_space())
    assert {check.status for check in checks} == {"warning"}
    assert "--save-dir" in checks[0].fix


def test_report_and_exit_status(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    checks = [Check("torch", "ok", "2.13.0"), Check("faiss-cpu", "warning", "gone", "Run pip.")]
    monkeypatch.setattr(doctor, "examine", lambda: checks)
    assert doctor.main([]) == 0
    text = capsys.readouterr().out
    assert "warning  faiss-cpu  gone" in text
    assert "-> Run pip." in text
    assert "Training works here; 1 warning(s)" in text
    checks.append(Check("fairseq-fixed", "error", "gone", "Build it."))
    assert doctor.main(["--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    assert report["checks"][-1] == {
        "name": "fairseq-fixed",
        "status": "error",
        "found": "gone",
        "fix": "Build it.",
    }


def test_every_finding_that_is_not_ok_says_what_to_do() -> None:
    for check in doctor.examine():
        assert bool(check.fix) == (check.status != "ok"), check


# Importing all packages takes ten seconds.
TWO_PACKAGES = """
import sys
from mclip_fairseq import doctor
two = [one for one in doctor.requirements() if one[0] in ("torch", "fairseq-fixed")]
doctor.requirements = lambda: two
sys.exit(doctor.main(["--json"]))
"""


def test_it_works_where_fairseq_cannot_be_imported(tmp_path: Path, repository_root: Path, fairseq_cli: Run) -> None:
    (tmp_path / "fairseq").mkdir()
    (tmp_path / "fairseq" / "__init__.py").write_text("raise ImportError('half installed')\n", encoding="utf-8")
    path = f"{tmp_path}:{repository_root}"
    result = fairseq_cli("python", "-c", TWO_PACKAGES, check=False, env={"PYTHONPATH": path}, cwd=tmp_path)
    assert result.returncode == 1, result.stderr
    checks = {check["name"]: check for check in json.loads(result.stdout)["checks"]}
    assert "half installed" in checks["fairseq-fixed"]["found"]
    assert checks["fairseq-fixed"]["status"] == checks["plugin"]["status"] == "error"
    assert checks["torch"]["status"] == "ok"
