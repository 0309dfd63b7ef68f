"""The quickstart from beginning to end: clean output, and the queries that it suggests find their drawings.

`MCLIP_QUICKSTART=DIR` uses a finished run instead of a new one, which takes ten minutes of two cores; `SEED` sets its
seed.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.test_quickstart_corpus import load

Found = Callable[[Path, list[str]], list[set[str]]]


@pytest.fixture(scope="module")
def run(repository_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder that run.sh wrote, and what it printed (empty for a finished run)."""
    if "MCLIP_QUICKSTART" in os.environ:
        return Path(os.environ["MCLIP_QUICKSTART"]), ""
    folder = tmp_path_factory.mktemp("quickstart") / "run"
    command = ["bash", str(repository_root / "examples" / "quickstart" / "run.sh"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder, done.stdout + done.stderr


def read_table(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Found:
    """The code points of the first drawings that each text finds in an index."""
    if "MCLIP_QUICKSTART" in os.environ:
        monkeypatch.delenv("MCLIP_CACHE")  # the user's own one knows where the parts of the run are
    search: Found = load("everyday").search
    return search


def test_the_readme_and_the_run_suggest_queries_of_the_list(repository_root: Path) -> None:
    listed = {row[1] for row in read_table(repository_root / "examples" / "quickstart" / "queries.tsv")}
    pattern = re.compile(r"query (?:runs/quickstart/index|%s) (\S+?)(?:\\n|\n| |`)")
    pages = [*repository_root.glob("*.md"), *repository_root.glob("docs/*.md")]
    pages += [repository_root / "examples" / "quickstart" / name for name in ("run.sh", "README.md")]
    texts = [page.read_text(encoding="utf-8") for page in pages]
    suggested = {query for text in texts for query in pattern.findall(text)}
    assert suggested
    assert suggested <= listed


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_the_suggested_queries_find_their_drawings(run: tuple[Path, str], repository_root: Path, found: Found) -> None:
    rows = read_table(repository_root / "examples" / "quickstart" / "queries.tsv")
    hits = found(run[0] / "index", [text for _, text, _ in rows])
    wrong = [text for (_, text, right), hit in zip(rows, hits, strict=True) if not hit & set(right.split())]
    assert wrong == []


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_everyday_words_find_a_right_drawing(run: tuple[Path, str], shared_dir: Path, found: Found) -> None:
    """A sample of the measure of docs/results.md: ten concepts, so an English miss is ten points."""
    cases = []
    for _, codes, queries in read_table(shared_dir / "data" / "everyday" / "sample.tsv"):
        for language, text in re.findall(r"(?:^| )(\w\w)=(.*?)(?= \w\w=|$)", queries):
            cases.append((language, text, {code.replace("-fe0f", "") for code in codes.split()}))
    hits = found(run[0] / "index", [text for _, text, _ in cases])
    right: dict[str, list[bool]] = {}
    for (language, _, allowed), hit in zip(cases, hits, strict=True):
        right.setdefault(language, []).append(bool(hit & allowed))
    share = {language: 100 * sum(each) / len(each) for language, each in right.items()}
    others = [value for language, value in share.items() if language != "en"]
    assert share["en"] >= 90, share
    assert sum(others) / len(others) >= 85, share


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_the_output_is_clean(run: tuple[Path, str]) -> None:
    folder, printed = run
    if not printed:
        pytest.skip("MCLIP_QUICKSTART names a finished run")
    assert not re.search(r"Loading weights|\d+%\||[Ww]arning|Traceback|font", printed)
    for line in (folder / "seconds.tsv").read_text(encoding="utf-8").splitlines():
        step, seconds = line.split("\t")
        part = printed.split(step, 1)[1].split("seconds\n", 1)[0]
        assert int(seconds) < 20 or "..." in part, f"{step} shows nothing for {seconds} seconds"
