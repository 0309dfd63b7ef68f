"""Packaging: one version, requirements that match their pins, extras for optional packages, no module left out."""

from __future__ import annotations

import ast
import datetime
import importlib.metadata
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mclip_fairseq
from mclip_fairseq.doctor import MODULES
from mclip_fairseq.fairseq_wheel import FAIRSEQ
from tests.runs import HANG

Run = Callable[..., subprocess.CompletedProcess[str]]
OPTIONAL = {  # extra -> packages that training and inference do not need
    "evaluate": {"fonttools", "matplotlib", "sacrebleu", "scipy"},
    "export": {"onnx", "onnxruntime", "onnxscript", "sentence-transformers"},
    "milvus": {"milvus-lite", "pymilvus"},
    "mteb": {"mteb"},
    "prepare": {"ftfy", "pyarrow", "regex"},
    "qdrant": {"qdrant-client"},
    "scale": {"fsspec", "pyarrow", "ray"},
    "search": {"babel", "faiss-cpu", "matplotlib", "starlette", "uvicorn"},
}
IMPORTERS = {  # extra -> folders of mclip_fairseq/ that may import its packages
    # scipy also resizes the position tables of ccrk, and scores sentence similarity in validation
    "evaluate": {"evaluation", "models", "tasks"},
    "export": {"export", "formats"},
    "milvus": {"search"},
    "mteb": {"export"},
    "prepare": set(),  # preprocess/ only
    "qdrant": {"search"},
    "scale": {"encoding", "storage"},
    "search": {"search"},
}


@pytest.fixture
def project(repository_root: Path) -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((repository_root / "pyproject.toml").read_text(encoding="utf-8"))
    return table["project"]


@pytest.fixture
def pins(repository_root: Path) -> dict[str, str]:
    text = (repository_root / "constraints.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    matches = [re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9][A-Za-z0-9.]*)", line) for line in lines]
    assert all(matches), [line for line, match in zip(lines, matches, strict=True) if not match]
    return {canonicalize_name(match[1]): match[2] for match in matches if match}


def requirement_lines(project: dict[str, Any]) -> list[Requirement]:
    extras = project["optional-dependencies"].values()
    return [Requirement(line) for line in [*project["dependencies"], *(line for e in extras for line in e)]]


def test_every_requirement_is_pinned_within_its_bounds(project: dict[str, Any], pins: dict[str, str]) -> None:
    for requirement in requirement_lines(project):
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin, f"{requirement} is not pinned in constraints.txt"
        assert requirement.specifier.contains(pin, prereleases=True), f"{requirement} excludes the pin {pin}"


def test_fairseq_is_pinned_to_what_the_doctor_installs(pins: dict[str, str]) -> None:
    assert pins["fairseq-fixed"] == FAIRSEQ
    assert "torchaudio" not in pins


def test_the_supported_versions_of_python_are_classified(project: dict[str, Any]) -> None:
    named = {line.rpartition(" ")[2] for line in project["classifiers"] if re.search(r"Python :: 3\.\d+$", line)}
    assert named == {"3.11", "3.12", "3.13"}
    assert project["requires-python"] == ">=3.11"


def test_transitive_requirements_are_pinned_too(project: dict[str, Any], pins: dict[str, str]) -> None:
    todo, seen = ["fairseq-fixed", *(canonicalize_name(r.name) for r in requirement_lines(project))], set()
    while todo:
        name = todo.pop()
        # A CUDA build of torch pins its parts itself. fairseq's published wheel requires torchaudio; ours does not.
        if name in seen or re.match("nvidia-|cuda-|triton|torchaudio", name):
            continue
        seen.add(name)
        assert name in pins, f"{name} is required by a pinned package, but is not pinned itself"
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        needed = [r for r in map(Requirement, requires) if not r.marker or r.marker.evaluate({"extra": ""})]
        todo += [canonicalize_name(r.name) for r in needed]
    assert "filelock" in seen  # required by torch: the loop did go beyond the list


def test_packages_of_one_part_are_extras(project: dict[str, Any]) -> None:
    core = {canonicalize_name(Requirement(line).name) for line in project["dependencies"]}
    for extra, packages in OPTIONAL.items():
        listed = {canonicalize_name(Requirement(line).name) for line in project["optional-dependencies"][extra]}
        assert listed == packages
        assert not core & packages


def imported_modules(path: Path) -> Iterator[str]:
    """First components of every import of a file, those of `import_module` and `import_extra` included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[Any] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            names = [node.args[0].value] if function in ("import_module", "import_extra") else []
        yield from (str(name).partition(".")[0] for name in names)


def test_only_its_part_imports_a_package_of_an_extra(repository_root: Path) -> None:
    importers: dict[str, set[str]] = {}
    for extra, packages in OPTIONAL.items():
        for package in packages:
            importers.setdefault(MODULES.get(package, package.replace("-", "_")), set()).update(IMPORTERS[extra])
    root = repository_root / "mclip_fairseq"
    imports = {
        (path.relative_to(root).parts[0], module)
        for path in root.rglob("*.py")
        for module in imported_modules(path)
        if module in importers
    }
    assert not {(folder, module) for folder, module in imports if folder not in importers[module]}
    expected = {("search", "faiss"), ("evaluation", "matplotlib"), ("formats", "sentence_transformers")}
    assert expected <= imports  # each kind of import is recognised


def test_make_installs_every_extra_of_a_part(repository_root: Path, project: dict[str, Any]) -> None:
    makefile = (repository_root / "Makefile").read_text(encoding="utf-8")
    (line,) = re.findall(r"^EXTRAS := (.*)$", makefile, re.MULTILINE)
    assert set(line.split(",")) == set(project["optional-dependencies"]) - {"fuzz", "tools", "tracking"}


def test_every_pip_command_names_an_extra_that_exists(repository_root: Path, project: dict[str, Any]) -> None:
    folders = ("docs", "examples", "mclip_fairseq", "preprocess", "tests")
    paths = [path for name in folders for path in (repository_root / name).rglob("*.*")]
    paths += [repository_root / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    command = re.compile(r"pip install ['\"]?(?:mclip_fairseq|\.)\[([a-z,]+)\]")
    named = {
        (extra, path.name)
        for path in paths
        if path.suffix in (".md", ".py", ".sh")
        for extras in command.findall(path.read_text(encoding="utf-8"))
        for extra in extras.split(",")
    }
    assert "search" in {extra for extra, _ in named}
    assert not {(extra, name) for extra, name in named if extra not in project["optional-dependencies"]}


def test_the_version_is_a_literal_that_pip_can_read(repository_root: Path, installed_dir: Path) -> None:
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


def test_the_changelog_has_an_entry_for_this_version(repository_root: Path) -> None:
    headings = re.findall(r"^## (.*)$", (repository_root / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == "Unreleased"
    version, _, date = headings[1].partition(" - ")
    assert version == mclip_fairseq.__version__
    datetime.date.fromisoformat(date)


def test_every_module_is_installed(repository_root: Path, installed_dir: Path) -> None:
    source = repository_root / "mclip_fairseq"
    modules = {path.relative_to(source) for path in source.rglob("*.py")} | {Path("py.typed")}
    target = installed_dir / "mclip_fairseq"
    installed = {path.relative_to(target) for path in installed_dir.rglob("mclip_fairseq/**/*")}
    assert modules <= installed, "a folder without __init__.py is not installed"


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
    of_checkout = fairseq_cli("python", "-c", code, cwd=tmp_path).stdout.splitlines()[-2]
    installed = fairseq_cli("python", "-c", code, cwd=tmp_path, env={"PYTHONPATH": str(installed_dir)})
    of_installed, path = installed.stdout.splitlines()[-2:]
    assert Path(path).is_relative_to(installed_dir)

    def parsed(text: str) -> list[tuple[str, set[str], str]]:  # setuptools reorders the parts of a bound
        return [(name, set(bound.split(",")), extra) for name, bound, extra in ast.literal_eval(text)]

    assert parsed(of_installed) == parsed(of_checkout)
    names = [name for name, _, _ in parsed(of_installed)]
    assert len(names) == len(set(names)), "matplotlib is in two extras, and is checked once"
    assert ("torch", {">=2.10"}, "") in parsed(of_installed)
    assert ("faiss-cpu", {">=1.9"}, "search") in parsed(of_installed)


FAKE_PYTHON = """#!/bin/sh
case "$*" in
  *version_info*) exit {too_old} ;;
  *) exit 1 ;;
esac
"""


@pytest.mark.parametrize(
    ("too_old", "sentence"),
    [(1, "is not Python 3.11 or later"), (0, "cannot create a virtual environment; install its")],
)
@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_names_in_one_sentence_what_is_missing(
    too_old: int, sentence: str, tmp_path: Path, repository_root: Path
) -> None:
    python = tmp_path / "python"
    python.write_text(FAKE_PYTHON.format(too_old=too_old), encoding="utf-8")
    python.chmod(0o755)
    command = ["make", "test", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}"]
    env = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    result = subprocess.run(command, cwd=repository_root, env=env, capture_output=True, text=True, timeout=HANG)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr


def test_the_page_is_installed(repository_root: Path, installed_dir: Path) -> None:
    names = {path.name for path in (repository_root / "mclip_fairseq/search/page").iterdir()}
    assert names == {path.name for path in (installed_dir / "mclip_fairseq/search/page").iterdir()}
    assert names == {"index.html", "page.css", "page.js"}
