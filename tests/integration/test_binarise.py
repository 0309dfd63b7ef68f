"""`preprocess/binarise.py` writes what fairseq-preprocess writes, pair by pair."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

LINES = {"en": "a b\nb c\n", "de": "c\na a b\n", "fr": "b\nc\n"}


@pytest.fixture
def pieces(tmp_path: Path) -> Path:
    """Two pairs in either layout, and a dictionary."""
    folder = tmp_path / "pieces"
    folder.mkdir()
    for lang, text in LINES.items():
        (folder / f"valid.{lang}").write_text(text)
        if lang != "fr":
            (folder / f"train.{lang}").write_text(text * 2)
    for lang in ("en", "fr"):
        (folder / f"train.en-fr.{lang}").write_text(LINES[lang] * 3)
    (folder / "dict.txt").write_text("a 1\nb 1\nc 1\n")
    return folder


def binarise(root: Path, pieces: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Run the script."""
    command = [sys.executable, "preprocess/binarise.py", "--pieces", str(pieces)]
    command += ["--dictionary", str(pieces / "dict.txt"), *more]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "preprocess.log"}


def test_same_bytes_as_fairseq_preprocess(
    repository_root: Path, pieces: Path, tmp_path: Path, run_in_process: Callable[..., str]
) -> None:
    done = binarise(repository_root, pieces, "--pairs", "en-de", "en-fr", "--output", str(tmp_path / "ours"))
    assert done.returncode == 0, done.stderr
    for target, train in (("de", "train"), ("fr", "train.en-fr")):
        run_in_process(
            "fairseq-preprocess",
            *("--source-lang", "en", "--target-lang", target, "--joined-dictionary"),
            *("--trainpref", pieces / train, "--validpref", pieces / "valid"),
            *("--srcdict", pieces / "dict.txt", "--destdir", tmp_path / "theirs"),
        )
    assert contents(tmp_path / "ours") == contents(tmp_path / "theirs")
    assert "train.en-fr.fr.bin" in contents(tmp_path / "ours")


def test_captions(repository_root: Path, pieces: Path, tmp_path: Path) -> None:
    done = binarise(repository_root, pieces, "--captions", "en", "fr", "--output", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    names = {name for name in contents(tmp_path / "out") if name.endswith(".bin")}
    assert names == {"train.en-None.en.bin", "valid.en-None.en.bin", "valid.fr-None.fr.bin"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pairs", "cs-sk"], "has no cs-sk in any of the splits train, valid, test"),
        (["--pairs", "en-fr"], "train.en-fr.fr: not found beside train.en-fr.en"),
        (["--pairs", "en"], "--pairs en: write a pair as SRC-TGT"),
        (["--captions", "cs"], "has none of train.cs, valid.cs, test.cs"),
    ],
)
def test_what_is_missing_is_named(
    repository_root: Path, pieces: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (pieces / "train.en-fr.fr").unlink()
    done = binarise(repository_root, pieces, *arguments, "--output", str(tmp_path / "out"))
    assert done.returncode == 2
    assert message in done.stderr
