"""Imports run downwards: the table of folders that may import one another, and nothing beside it.

A folder of `mclip_fairseq` is a layer, and so is a module in its root. Imports inside functions count like any other.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "mclip_fairseq"
# Importer -> what it may import, from the ground up. Take a name out when its last import goes: the test insists.
ALLOWED = {
    "storage": "",
    "losses": "",
    "compat": "",
    "batching": "",
    "resilience": "losses storage",
    "registration": "compat resilience storage",  # and all that it registers, which it finds by folder
    "models": "compat losses storage",
    "data": "batching compat losses models resilience storage",
    "criterions": "losses storage",
    "optim": "storage",
    "encoding": "batching storage",
    "evaluation": "encoding losses storage",
    "tasks": "batching criterions data evaluation losses models registration resilience storage",
    "formats": "compat data models registration storage",
    "pairs": "encoding evaluation formats storage",
    "inference": "batching encoding formats models pairs storage",
    "export": "data encoding evaluation formats inference models registration storage",
    "search": "encoding evaluation storage",
    "translation": "data registration storage tasks",
    "cli": "encoding evaluation export formats inference models search storage translation",
    "fairseq_wheel": "storage",
    "reference": "storage tasks",
    "doctor": "cli compat fairseq_wheel reference",
    "user_dir": "resilience tasks",
    "__init__": "compat inference user_dir",
}
# Imports against that order.
UPWARDS: set[tuple[str, str]] = set()


def imported(tree: ast.AST, names: set[str]) -> Iterator[str]:
    """Layers that a module imports, anywhere in it, and those that it names for `importlib.import_module`."""
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                modules = [alias.name for alias in node.names]
            case ast.ImportFrom(module=str(module)):
                # `from mclip_fairseq import compat` names a layer, `from mclip_fairseq import __version__` none.
                modules = [f"{module}.{alias.name}" for alias in node.names]
            case ast.Call(func=ast.Attribute(attr="import_module"), args=[ast.Constant(value=str(module)), *_]):
                modules = [module]
            case _:
                continue
        for parts in (module.split(".") for module in modules):
            if parts[0] == PACKAGE and len(parts) > 1:
                layer = "inference" if parts[1] == "MultilingualCLIP" else parts[1]
                if layer in names:
                    yield layer


def pairs(root: Path) -> dict[tuple[str, str], set[str]]:
    """(importer, imported) -> the files in which it happens."""
    package, found = root / PACKAGE, dict[tuple[str, str], set[str]]()
    files = {file: file.relative_to(package) for file in package.rglob("*.py")}
    layers = {path.parts[0].removesuffix(".py") for path in files.values()} - {"__init__"}
    for file, path in files.items():
        importer = path.parts[0].removesuffix(".py")
        for layer in imported(ast.parse(file.read_text(encoding="utf-8")), layers):
            if layer != importer:
                found.setdefault((importer, layer), set()).add(path.as_posix())
    return found


def wrong(found: dict[tuple[str, str], set[str]], allowed: dict[str, str]) -> list[str]:
    """Imports that the table does not allow, and pairs in it that no file needs."""
    table = {(importer, layer) for importer, layers in allowed.items() for layer in layers.split()}
    return [
        *(f"{a} imports {b}: {', '.join(sorted(found[a, b]))}" for a, b in sorted(found.keys() - table)),
        *(f"nothing in {a} imports {b}: take it out of the table" for a, b in sorted(table - found.keys())),
    ]


def test_folders_import_what_the_table_allows(repository_root: Path) -> None:
    assert wrong(pairs(repository_root), ALLOWED) == []


def test_the_ground_imports_nothing_of_ours(repository_root: Path) -> None:
    assert not [layer for importer, layer in pairs(repository_root) if importer in ("storage", "losses")]


def test_the_table_runs_downwards() -> None:
    order = list(ALLOWED)
    table = [(importer, layer) for importer, layers in ALLOWED.items() for layer in layers.split()]
    assert {(above, below) for above, below in table if order.index(below) > order.index(above)} == UPWARDS


@pytest.mark.parametrize(
    "line",
    [
        *("import mclip_fairseq.cli.main", "from mclip_fairseq import cli", "from mclip_fairseq.cli.main import main"),
        *("def f():\n    from mclip_fairseq.cli import main", "importlib.import_module('mclip_fairseq.cli')"),
    ],
)
def test_the_negative_control_is_noticed(line: str, tmp_path: Path) -> None:
    for folder in ("cli", "losses"):
        (tmp_path / PACKAGE / folder).mkdir(parents=True)
        (tmp_path / PACKAGE / folder / "main.py").touch()
    assert wrong(pairs(tmp_path), {"losses": ""}) == []
    assert wrong(pairs(tmp_path), {"losses": "cli"}) == ["nothing in losses imports cli: take it out of the table"]
    (tmp_path / PACKAGE / "losses" / "main.py").write_text(line, encoding="utf-8")
    assert wrong(pairs(tmp_path), {"losses": ""}) == ["losses imports cli: losses/main.py"]
