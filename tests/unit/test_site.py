"""The documentation: what the site's hooks make of links, the pages it lists, README's links, and the notebook."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

STORED = Path(__file__).resolve().parents[1] / "data" / "legacy"


@pytest.fixture(scope="module")
def hooks(repository_root: Path) -> Any:
    spec = importlib.util.spec_from_file_location("site_hooks", repository_root / "docs" / "site_hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("page", "text", "rewritten"),
    [
        (
            "mla.md",
            "[r](../examples/mla) [c](../CONTRIBUTING.md#tests)",
            "[r](recipes/mla.md) [c](contributing.md#tests)",
        ),
        ("index.md", "![p](docs/search.png) [d](docs/data.md)", "![p](search.png) [d](data.md)"),
        ("recipes/mla.md", "[doc](../../docs/mla.md#use)", "[doc](../mla.md#use)"),
        ("mla.md", "[code](../preprocess/encode.py) [folder](../mclip_fairseq)", "code folder"),
        ("mla.md", "[s](#use) [a](altclip.md)\n```\nf[0](x)\n```\n", "[s](#use) [a](altclip.md)\n```\nf[0](x)\n```\n"),
        ("mla.md", "[missing](nothing.md)", "[missing](nothing.md)"),
    ],
)
def test_links_of_the_repository_become_links_of_the_site(hooks: Any, page: str, text: str, rewritten: str) -> None:
    assert hooks.site_links(text, page) == rewritten


def pages_of(entry: Any) -> Iterator[str]:
    """The pages that a navigation names, at any depth."""
    if isinstance(entry, str):
        yield entry
    else:
        for value in entry.values() if isinstance(entry, dict) else entry:
            yield from pages_of(value)


def test_the_site_lists_every_page_once(repository_root: Path, hooks: Any) -> None:
    settings = yaml.safe_load((repository_root / "mkdocs.yml").read_text(encoding="utf-8"))
    written = [path.name for path in (repository_root / "docs").glob("*.md")]
    assert sorted(pages_of(settings["nav"])) == sorted([*written, *hooks.PAGES.values()])


def test_links_between_pages_lead_somewhere(repository_root: Path, hooks: Any) -> None:
    """As GitHub and editors follow them; `make docs` checks them on the site."""
    pages = [*(repository_root / "docs").glob("*.md"), *(repository_root / source for source in hooks.PAGES)]
    links: list[tuple[Path, str]] = []
    for page in pages:
        text = hooks.FENCE.sub("", page.read_text(encoding="utf-8"))
        links += [(page, match[2]) for match in hooks.LINK.finditer(text)]
    assert len(links) > 30
    assert not [(page.name, target) for page, target in links if not (page.parent / target).exists()]


@pytest.mark.slow
def test_the_site_loads_nothing_from_elsewhere(repository_root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=repository_root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 25
    foreign = re.compile(r"""(?:src|href)=["'](?:https?:)?//[^"']+""")
    assert not {match for page in pages for match in foreign.findall(page.read_text(encoding="utf-8"))}


@pytest.fixture
def five_lines(repository_root: Path) -> list[str]:
    """The code cells of the notebook."""
    notebook = json.loads((repository_root / "docs" / "five_lines.ipynb").read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_has_the_lines_of_the_readme(repository_root: Path, five_lines: list[str]) -> None:
    readme = (repository_root / "README.md").read_text(encoding="utf-8")
    match = re.search(r"^## Five lines of Python\n+```python\n(.*?)```", readme, re.MULTILINE | re.DOTALL)
    assert match is not None
    assert "\n\n".join(five_lines) + "\n" == match[1]


def test_the_notebook_runs(
    five_lines: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a small stored model, in the places that the demonstration gives its own."""
    run = tmp_path / "runs" / "quickstart"
    drawings = run / "corpus" / "images" / "twemoji"
    for folder in (run / "trikd", drawings):
        folder.mkdir(parents=True)
    shutil.copy(STORED / "mclip.pt", run / "trikd" / "checkpoint_last.pt")
    shutil.copytree(STORED / "encoder", run / "trikd" / "encoder")
    shutil.copytree(STORED / "photos" / "teacher", run / "trikd" / "teacher")
    for name, source in (("1f98b.png", "img0.png"), ("1f308.png", "img1.png")):
        shutil.copy(STORED / "photos" / "images" / source, drawings / name)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for cell in five_lines:
        exec(cell, names)
    assert (names["texts"] @ names["images"].T).shape == (2, 2)
    assert capsys.readouterr().out.startswith("tensor([[")
