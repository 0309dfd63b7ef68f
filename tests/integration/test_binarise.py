"""`preprocess/binarise.py` writes the same bytes as fairseq-preprocess; errors of encode.py and train_tokenizer.py."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import hostile
from tests.downloads import lines, refuses, tokenizer, works, write

LINES = {"en": "a b\n\nb </s> unknown c\n", "de": "c\na a\u2028b\n\n", "fr": "b\nc\na\n"}


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


def test_the_bytes_do_not_depend_on_the_number_of_processes(
    pieces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("binarise.CHUNK", 2)
    for workers in (1, 2):
        command = ["--pieces", pieces, "--dictionary", pieces / "dict.txt", "--workers", workers]
        works("binarise", *command, "--captions", "en", "de", "--output", tmp_path / f"{workers}")
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


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
def test_missing_files_are_named(pieces: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    (pieces / "train.en-fr.fr").unlink()
    assert message in binarise_refuses(pieces, tmp_path / "out", *arguments)


def binarise_refuses(pieces: Path, output: Path, *what: object) -> str:
    """Its error; nothing may have been written."""
    dictionary = pieces / "dict.txt"
    said = refuses("binarise", "--pieces", pieces, "--dictionary", dictionary, "--output", output, *what)
    assert said.count("\n") == 1
    assert not output.is_dir()
    return said


@pytest.mark.parametrize("name", hostile.DICTIONARIES)
def test_files_that_are_not_dictionaries(pieces: Path, tmp_path: Path, name: str) -> None:
    content, message = hostile.DICTIONARIES[name]
    (pieces / "dict.txt").write_bytes(content)
    assert f"dict.txt: {message}" in binarise_refuses(pieces, tmp_path / "out", "--captions", "en")


def test_a_dictionary_without_entries(pieces: Path, tmp_path: Path) -> None:
    (pieces / "dict.txt").write_bytes(b"")
    assert "dict.txt: has no entries" in binarise_refuses(pieces, tmp_path / "out", "--captions", "en")


@pytest.mark.parametrize("what", [["--captions", "de"], ["--pairs", "en-de"]])
def test_pieces_that_are_not_utf8(pieces: Path, tmp_path: Path, what: list[str]) -> None:
    (pieces / "train.de").write_bytes(b"c\n" * 3000 + b"a \xff\n")
    said = binarise_refuses(pieces, tmp_path / "out", *what)
    assert "train.de, line 3001: is not UTF-8 (byte 3 of the line)" in said


def test_invalid_options_of_binarise(pieces: Path, tmp_path: Path) -> None:
    assert "is a file; --output names a directory" in binarise_refuses(pieces, pieces / "dict.txt", "--captions", "en")
    assert "give at least 1" in binarise_refuses(pieces, tmp_path / "out", "--captions", "en", "--workers", 0)


def test_a_full_disk_leaves_nothing_under_its_final_name(
    pieces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(prefix: Path, *unused: object) -> None:
        Path(f"{prefix}.bin").write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("binarise.write_indexed", half)
    command = ["--pieces", pieces, "--dictionary", pieces / "dict.txt", "--output", tmp_path / "out"]
    assert "No space left on device" in refuses("binarise", *command, "--captions", "en")
    assert not list((tmp_path / "out").iterdir())


# ------------------------------------------------------------------------------------------ encode.py


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model."""
    return tokenizer(tmp_path_factory.mktemp("encode") / "xlmr") / "sentencepiece.bpe.model"


def test_every_line_of_text_is_a_line_of_pieces(model: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "train.en", "a dog\r\n\na\u2028cat\tsleeps\nruns")
    said = works("encode", "--model", model, "--output", tmp_path / "pieces", source)
    assert "4 lines in 1 files" in said
    encoded = lines(tmp_path / "pieces" / "train.en")
    assert ["".join(line.split()).replace("\u2581", " ").strip() for line in encoded] == [
        *("a dog", "", "a cat sleeps", "runs")
    ]
    assert [path.name for path in (tmp_path / "pieces").iterdir()] == ["train.en"]


@pytest.mark.parametrize("alias", ["itself", "hard link", "soft link", "part"])
def test_the_input_is_never_overwritten(model: Path, tmp_path: Path, alias: str) -> None:
    source = write(tmp_path / "s" / ("train.en.part" if alias == "part" else "train.en"), "a dog\nthe cat\n")
    files, output = [source], tmp_path / "s"
    if alias == "part":
        files.append(write(tmp_path / "t" / "train.en", "a\n"))
    elif alias != "itself":
        output = tmp_path / "out"
        output.mkdir()
        (os.link if alias == "hard link" else os.symlink)(source, output / "train.en")
    said = refuses("encode", "--model", model, "--output", output, *files)
    assert f"{source}: would be overwritten; give an --output other than" in said
    assert lines(source) == ["a dog", "the cat"]


def test_a_file_that_cannot_be_encoded_leaves_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("encode.CHUNK", 10)
    source = write(tmp_path / "train.en", b"a dog\n" * 2000 + b"a \xff cat\n")
    command = ["--model", model, "--output", tmp_path / "pieces", "--workers", 1, source]
    said = refuses("encode", *command)
    assert "train.en, line 2001: is not UTF-8 (byte 3 of the line); convert the file" in said
    assert not list((tmp_path / "pieces").iterdir())
    before = write(tmp_path / "pieces" / "train.en", "of an earlier run\n")
    refuses("encode", *command)
    assert lines(before) == ["of an earlier run"]


@pytest.mark.parametrize("content", [b"", b"<!doctype html><title>404</title>", "cut short"])
def test_encode_with_a_file_that_is_not_a_model(model: Path, tmp_path: Path, content: bytes | str) -> None:
    bad = write(tmp_path / "bad.model", model.read_bytes()[:5000] if isinstance(content, str) else content)
    source = write(tmp_path / "train.en", "a dog\n")
    said = refuses("encode", "--model", bad, "--output", tmp_path / "pieces", source)
    assert said.startswith(f"encode.py: error: {bad}: ")
    assert "SentencePiece model" in said


def test_invalid_options_of_encode(model: Path, tmp_path: Path) -> None:
    source, packed = write(tmp_path / "train.en", "a dog\n"), write(tmp_path / "train.de.gz", "ein Hund\n")
    again = write(tmp_path / "again" / "train.en", "a cat\n")
    for output, files, message in [
        (source, [source], f"{source}: is a file; --output names a directory"),
        (source / "below", [source], f"{source / 'below'}: cannot be made (Not a directory)"),
        (tmp_path / "out", [source, again], f"{again}: has the same name as {source}"),
        (tmp_path / "out", [packed], f"{packed}: is compressed; unpack it first"),
        (tmp_path / "out", [tmp_path / "none"], f"{tmp_path / 'none'}: not found"),
    ]:
        assert message in refuses("encode", "--model", model, "--output", output, *files)


# ------------------------------------------------------------------------------------------ train_tokenizer.py

TEXT = "a dog runs and a cat sleeps\nein Hund läuft und eine Katze schläft\n" * 9


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"", [], "text.en: holds no text"),
        (b" \n\n", [], "text.en: holds no text"),
        (b"a dog\na \xff\n", [], "text.en, line 2: is not UTF-8"),
        (TEXT.encode("utf-16"), [], "text.en, line 1: is not UTF-8"),
        (TEXT.encode("utf-16-le"), [], "text.en, line 1: holds a null character, as UTF-16 does"),
        (TEXT.encode(), ["--vocabulary", 3], "--vocabulary 3: training on"),
        (TEXT.encode(), ["--vocabulary", -1], "--vocabulary -1: training on"),
    ],
)
def test_text_on_which_no_tokenizer_can_be_trained(
    tmp_path: Path, content: bytes, options: list[object], message: str
) -> None:
    source = write(tmp_path / "text.en", content)
    said = refuses("train_tokenizer", "--output", tmp_path / "out", *options, source)
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_tokenizer_of_files_with_any_names(tmp_path: Path) -> None:
    files = [write(tmp_path / name, TEXT) for name in ("a,b.txt", 'c"d.txt')]
    works("train_tokenizer", "--vocabulary", 60, "--output", tmp_path / "out", *files)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["dict.txt", "sentencepiece.bpe.model"]
    source = write(tmp_path / "s" / "dict.txt", TEXT)
    assert "would be overwritten" in refuses("train_tokenizer", "--output", tmp_path / "s", source)
    assert source.read_text() == TEXT


@pytest.mark.parametrize("fold", [False, True])
def test_upper_and_lower_case_are_folded_on_request(fold: bool, tmp_path: Path) -> None:
    from mclip_fairseq.storage.pieces import load_sentencepiece

    source = write(tmp_path / "names.txt", "ein hund\nzwei hunde\nзима\n" * 20)
    works(
        "train_tokenizer",
        "--vocabulary",
        60,
        "--output",
        tmp_path / "out",
        source,
        *(["--ignore-case"] if fold else []),
    )
    processor = load_sentencepiece(tmp_path / "out" / "sentencepiece.bpe.model")
    for upper, lower in (("Hund", "hund"), ("ЗИМА", "зима")):
        assert (processor.encode(upper) == processor.encode(lower)) is fold


def test_every_word_is_a_piece_on_request(tmp_path: Path) -> None:
    from mclip_fairseq.storage.pieces import load_sentencepiece

    words = ["mushroom", "toadstool", "Fliegenpilz", "поганка", "кит", "wheelbarrow"]
    source = write(
        tmp_path / "words.txt", "\n".join([*words, "a dog runs", "a cat sleeps"] + 9 * [*"abcdefghij"]) + "\n"
    )
    whole = {}
    for option in ([], ["--whole-words"]):
        output = tmp_path / f"out{len(option)}"
        works("train_tokenizer", "--vocabulary", 200, "--output", output, *option, source)
        processor = load_sentencepiece(output / "sentencepiece.bpe.model")
        whole[len(option)] = [word for word in words if len(processor.encode(word)) == 1]
        assert len(processor.encode("mushrooms")) > 1
        assert sorted(path.name for path in output.iterdir()) == ["dict.txt", "sentencepiece.bpe.model"]
    assert whole == {0: [], 1: words}
    said = refuses("train_tokenizer", "--whole-words", "--model-type", "bpe", "--output", tmp_path / "bpe", source)
    assert "--whole-words is for --model-type unigram" in said
