"""What pip, make and CI read: one version, one list of requirements, pins that fit it, nothing left out."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def project(repository_root: Path) -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((repository_root / "pyproject.toml").read_text(encoding="utf-8"))
    return table["project"]


@pytest.fixture
def pins(repository_root: Path) -> dict[str, str]:
    text = (repository_root / "constraints.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    found = [re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9][A-Za-z0-9.]*)", line) for line in lines]
    assert all(found), [line for line, match in zip(lines, found, strict=True) if not match]
    return {canonicalize_name(match[1]): match[2] for match in found if match}


def requirement_lines(project: dict[str, Any]) -> list[Requirement]:
    extras = project["optional-dependencies"].values()
    return [Requirement(line) for line in [*project["dependencies"], *(line for e in extras for line in e)]]


def test_every_requirement_is_pinned_within_its_bounds(project: dict[str, Any], pins: dict[str, str]) -> None:
    for requirement in requirement_lines(project):
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin, f"{requirement} is not pinned in constraints.txt"
        assert requirement.specifier.contains(pin, prereleases=True), f"{requirement} excludes the pin {pin}"


def test_what_the_requirements_require_is_pinned_too(project: dict[str, Any], pins: dict[str, str]) -> None:
    todo, seen = [canonicalize_name(r.name) for r in requirement_lines(project)], set()
    while todo:
        name = todo.pop()
        if name in seen or re.match("nvidia-|cuda-|triton", name):  # a CUDA build of torch pins those itself
            continue
        seen.add(name)
        assert name in pins, f"{name} is required by something that is pinned, but is not pinned itself"
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        needed = [r for r in map(Requirement, requires) if not r.marker or r.marker.evaluate({"extra": ""})]
        todo += [canonicalize_name(r.name) for r in needed]
    assert "filelock" in seen  # torch's: the walk went deeper than the list


def test_the_version_is_a_literal_that_pip_reads(repository_root: Path, installed_dir: Path) -> None:
    text = (repository_root / "mclip_fairseq" / "__init__.py").read_text(encoding="utf-8")
    values = [
        node.value.value
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id == "__version__"
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ]
    (distribution,) = importlib.metadata.distributions(name="mclip_fairseq", path=[str(installed_dir)])
    assert values == [distribution.version]


def test_every_module_is_installed(repository_root: Path, installed_dir: Path) -> None:
    source = repository_root / "mclip_fairseq"
    wanted = {path.relative_to(source) for path in source.rglob("*.py")} | {Path("py.typed")}
    found = {path.relative_to(installed_dir / "mclip_fairseq") for path in installed_dir.rglob("mclip_fairseq/**/*")}
    assert wanted <= found, "a folder without __init__.py is not installed"


def test_every_console_script_has_its_main(repository_root: Path, installed_dir: Path, project: dict[str, Any]) -> None:
    for name, target in project["scripts"].items():
        module, function = target.split(":")
        path = repository_root / (module.replace(".", "/") + ".py")
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, target
        assert (installed_dir / "bin" / name).is_file() or os.name == "nt"


def test_the_doctor_reads_the_same_requirements_once_installed(
    installed_dir: Path, tmp_path: Path, fairseq_cli: Run
) -> None:
    code = "from mclip_fairseq import doctor; print(sorted(doctor.requirements())); print(doctor.__file__)"
    here = fairseq_cli("python", "-c", code, cwd=tmp_path).stdout.splitlines()[-2:]
    there = fairseq_cli("python", "-c", code, cwd=tmp_path, env={"PYTHONPATH": str(installed_dir)})
    rows, path = there.stdout.splitlines()[-2:]
    assert Path(path).is_relative_to(installed_dir)

    def parsed(text: str) -> list[tuple[str, set[str], str]]:  # setuptools sorts the parts of a bound
        return [(name, set(bound.split(",")), extra) for name, bound, extra in ast.literal_eval(text)]

    assert parsed(rows) == parsed(here[0])
    assert ("torch", {">=2.10"}, "") in parsed(rows)


FAKE_PYTHON = """#!/bin/sh
case "$*" in
  *version_info*) exit {too_old} ;;
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  *) exit 1 ;;
esac
"""


@pytest.mark.parametrize(
    ("too_old", "sentence"), [(1, "is not Python 3.11 or later"), (0, "no C++ compiler (no-such-compiler)")]
)
@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_says_in_a_sentence_what_it_lacks(
    too_old: int, sentence: str, tmp_path: Path, repository_root: Path
) -> None:
    python = tmp_path / "python"
    python.write_text(FAKE_PYTHON.format(too_old=too_old), encoding="utf-8")
    python.chmod(0o755)
    command = ["make", "test", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}"]
    env = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    env["CXX"] = "no-such-compiler"
    result = subprocess.run(command, cwd=repository_root, env=env, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr


def test_the_page_is_installed(repository_root: Path, installed_dir: Path) -> None:
    names = {path.name for path in (repository_root / "mclip_fairseq/search/page").iterdir()}
    assert names == {path.name for path in (installed_dir / "mclip_fairseq/search/page").iterdir()}
    assert names == {"index.html", "page.css", "page.js"}
