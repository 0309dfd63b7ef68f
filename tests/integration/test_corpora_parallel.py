"""`preprocess/parallel.py` on files in the formats of OPUS and WMT."""

import bz2
import io
import lzma
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.downloads import lines, manifest, refuses, tokenizer, works, write

SGM = """<srcset setid="newstest2014" srclang="any">
<doc sysid="src" docid="bbc.1" genre="news" origlang="de">
<hl>
<seg id="1">Fish &amp; chips</seg>
</hl>
<p>
<seg id="2">Two
 lines</seg><seg id="3">Last</seg>
</p>
</doc>
</srcset>
"""


def clean(*arguments: object) -> str:
    """The script on English and German, in this process."""
    return works("parallel", "--languages", "en", "de", "--workers", 1, *arguments)


def moses(folder: Path, pairs: list[tuple[str, str]], ending: str = "") -> list[Path]:
    """A pair of files."""
    paths = [folder / f"x.en-de.{lang}{ending}" for lang in ("en", "de")]
    for path, side in zip(paths, zip(*pairs, strict=True), strict=True):
        write(path, "".join(f"{text}\n" for text in side))
    return paths


ODD = [
    ("\ufeffA dog runs.\r", "Ein Hund läuft.\r"),
    ("a dog, runs", "ein hund\tläuft"),
    ("", "Nur hier"),
    ("<b>Tom</b> &amp; Jerry", "Tom und Jerry\u2028jetzt"),
    ("Same", "Same"),
    ("1 2 3", "1 2 4"),
    ("This is English", "Это по русски"),
    ("schÃ¶n", "scho\u0308n hier"),
    ("word", "sehr viele Worte stehen hier dafür"),
    ("A dog runs.", "Ein Hund läuft."),
]


def test_what_is_kept_what_is_dropped_and_why(tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = clean("--moses", *moses(tmp_path, ODD), "--output", out, "--list-dropped")
    assert lines(out / "train.en-de.en") == ["A dog runs.", "Tom & Jerry", "schön"]
    assert lines(out / "train.en-de.de") == ["Ein Hund läuft.", "Tom und Jerry jetzt", "schön hier"]
    facts = manifest(out, "train.en-de.json")
    assert facts["read"] == 10
    assert facts["kept"] == 3
    dropped = {reason: value["pairs"] for reason, value in facts["dropped"].items()}
    assert dropped == {"empty": 1, "copy": 1, "no letters": 1, "script": 1, "ratio": 1, "duplicate": 2}
    assert facts["dropped"]["script"]["examples"] == [["x.en-de.en, line 7", "This is English", "Это по русски"]]
    assert [source["file"] for source in facts["sources"]] == ["x.en-de.en", "x.en-de.de"]
    assert len(lines(out / "train.en-de.dropped.tsv")) == 7
    assert "read 10, kept 3" in said
    assert "dropped 2: the pair occurred before" in said
    assert not [path for path in out.iterdir() if path.name.startswith(".") or path.suffix == ".part"]


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_sources_are_never_overwritten(tmp_path: Path, split: str) -> None:
    paths = [write(tmp_path / f"{split}.en-de.{lang}", f"{text}  \n") for lang, text in (("en", "a"), ("de", "ein"))]
    command = ["--languages", "en", "de", "--workers", 1, "--split", split, "--moses", *paths, "--output"]
    said = refuses("parallel", *command, tmp_path)
    assert f"{paths[0]}: would be overwritten; give an --output other than the directory of the input" in said
    assert [path.read_text() for path in paths] == ["a  \n", "ein  \n"]
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    works("parallel", *command, tmp_path / "out")


def test_all_forms_are_one_corpus(tmp_path: Path) -> None:
    pair = moses(tmp_path / "moses", [("One house", "Ein Haus")], ".gz")
    table = tmp_path / "x.tsv.bz2"
    table.write_bytes(bz2.compress(b"id\t0.9\tTwo cats\tZwei Katzen\nid\t1\tOne house\tEin Haus\n"))
    archive = tmp_path / "de-en.txt.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("README", "read me")
        packed.writestr("x.de-en.de", "Drei Bäume\r\nEin Haus\r\n")
        packed.writestr("x.de-en.en", "Three trees\r\nOne house\r\n")
    source = write(tmp_path / "newstest2014-deen-src.en.sgm", SGM)
    target = write(tmp_path / "newstest2014-deen-ref.de.sgm", SGM.replace("Fish &amp; chips", "Fisch und Chips"))
    out = tmp_path / "out"
    options = ["--moses", *pair, "--tsv", table, "--columns", 3, 4, "--zip", archive, "--sgm", source, target]
    clean(*options, "--output", out)
    assert lines(out / "train.en-de.en") == ["One house", "Three trees", "Two cats", "Fish & chips"]
    assert lines(out / "train.en-de.de") == ["Ein Haus", "Drei Bäume", "Zwei Katzen", "Fisch und Chips"]
    assert manifest(out, "train.en-de.json")["dropped"]["duplicate"]["pairs"] == 2


def test_an_archive_may_name_a_region(tmp_path: Path) -> None:
    def archive(*languages: str) -> Path:
        path = tmp_path / f"{'-'.join(languages)}.txt.zip"
        with zipfile.ZipFile(path, "w") as packed:
            packed.writestr("README", "read me")
            for lang in languages:
                packed.writestr(f"x.en-zh.{lang}", "一只狗" if lang.startswith("zh") else "a dog")
        return path

    out = tmp_path / "out"
    command = ["--languages", "en", "zh", "--output", out, "--zip"]
    for languages in (("en", "zh_CN"), ("en", "zh-Hans"), ("en", "zh", "zh_TW"), ("en_GB", "zh")):
        works("parallel", *command, archive(*languages))
        assert lines(out / "train.en-zh.zh") == ["一只狗"]
    error = refuses("parallel", *command, archive("en", "zh_CN", "zh_TW", "zhx"))
    assert "has 2 files (x.en-zh.zh_CN, x.en-zh.zh_TW) that end in .zh, or .zh_XX with a region, but one" in error


def test_evaluation_sets_are_unchanged(tmp_path: Path) -> None:
    pairs = [
        ("A dog\u2028runs", "Ein  Hund läuft"),
        ("A dog\u2028runs", "Ein  Hund läuft"),
        ("1", "1"),
        ("<b>x</b>", "e\u0301"),
    ]
    clean("--moses", *moses(tmp_path, pairs), "--split", "valid", "--output", tmp_path)
    assert lines(tmp_path / "valid.en-de.en") == ["A dog runs", "A dog runs", "1", "<b>x</b>"]
    assert lines(tmp_path / "valid.en-de.de")[3] == "e\u0301"
    empty = moses(tmp_path / "empty", [("a", "b"), ("\u3000", "b")])
    error = refuses("parallel", "--languages", "en", "de", "--moses", *empty, "--split", "test", "--output", tmp_path)
    assert "line 2: a side is empty" in error
    assert not (tmp_path / "test.en-de.en").exists()


def test_excluded_sentences_are_not_trained_on(tmp_path: Path) -> None:
    pairs = [(f"word number {letter}", f"Wort Nummer {letter}") for letter in "abcdefgh"]
    held = write(tmp_path / "newstest.de", "WORT Nummer a!\n\nnicht da\n")
    options = ["--moses", *moses(tmp_path, pairs), "--exclude", held, "--valid-every", 3]
    clean(*options, "--output", tmp_path)
    assert lines(tmp_path / "valid.en-de.en") == ["word number d", "word number g"]
    assert len(lines(tmp_path / "train.en-de.de")) == 5
    facts = manifest(tmp_path, "train.en-de.json")
    assert facts["dropped"]["held out"]["pairs"] == 1
    assert facts["sources"][0]["file"] == "newstest.de"
    assert facts["splits"] == {"train": 5, "valid": 2}


def test_result_does_not_depend_on_the_number_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [(f"word {number % 700:b} is", f"Wort {number % 700:b} ist") for number in range(2500)]
    files = moses(tmp_path, pairs)
    monkeypatch.setattr("corpora.parallel.CHUNK", 100)
    for workers in (1, 2):
        options = ["--languages", "en", "de", "--moses", *files, "--workers", workers]
        works("parallel", *options, "--output", tmp_path / str(workers))
    for name in ("train.en-de.en", "train.en-de.de", "train.en-de.json"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    assert len(lines(tmp_path / "1" / "train.en-de.en")) == 700


def test_languages_are_checked_by_their_script(tmp_path: Path) -> None:
    pairs = [("a dog", "一只狗"), ("a cat", "いぬがいる"), ("a car", "a auto")]
    files = moses(tmp_path, pairs)
    works("parallel", "--languages", "en", "zh_CN", "--workers", 1, "--moses", *files, "--output", tmp_path)
    assert lines(tmp_path / "train.en-zh_CN.zh_CN") == ["一只狗"]
    options = ["--languages", "en", "xx", "--scripts", "xx=Han+Hiragana", "--workers", 1]
    works("parallel", *options, "--moses", *files, "--output", tmp_path)
    assert lines(tmp_path / "train.en-xx.xx") == ["一只狗", "いぬがいる"]


def bad_inputs(folder: Path) -> dict[str, list[object]]:
    """Unusable inputs."""
    left, right = moses(folder, [("a dog", "ein Hund"), ("a", "b")])
    short = write(folder / "short.de", "ein Hund\n")
    latin = write(folder / "latin.de", "größer\n".encode("latin-1") + b"b\n")
    cut = write(folder / "cut.gz", b"\x1f\x8b\x08\x00")
    cut.write_bytes(lzma.compress(b"x"))
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as packed:
        packed.writestr("a.en", "x")
    sgm = write(folder / "a.sgm", SGM)
    other = write(folder / "b.sgm", SGM.replace('seg id="3"', 'seg id="4"'))
    return {
        "no input": [],
        "missing": ["--moses", left, folder / "none.de"],
        "short": ["--moses", left, short],
        "latin": ["--moses", left, latin],
        "cut": ["--moses", left, cut],
        "zip": ["--zip", write(folder / "a.zip", zipped.getvalue())],
        "no zip": ["--zip", left],
        "columns": ["--tsv", left, "--columns", 1, 2],
        "sgm": ["--sgm", sgm, other],
        "no sgm": ["--sgm", left, right],
        "nothing left": ["--moses", left, left],
        "script": ["--moses", left, right, "--scripts", "de"],
        "no script": ["--moses", left, right, "--scripts", "de=Elvish"],
        "workers": ["--moses", left, right, "--workers", 0],
        "whole": ["--moses", left, right, "--split", "test", "--list-dropped"],
        "other checksums": ["--moses", left, right, "--checksums", write(folder / "other", "0" * 64 + " *x.fr\n")],
        "wrong checksums": ["--moses", left, right, "--checksums", left],
        "checksums": ["--moses", left, right, "--checksums", write(folder / "sums", "0" * 64 + "  x.en-de.en\n")],
    }


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("no input", "give at least one of --moses, --zip, --tsv, --sgm"),
        ("missing", "none.de: not found; --help says where to get the data"),
        ("short", "short.de: ends after 1 lines, but"),
        ("latin", "x.en-de.en, line 1: is not UTF-8 (byte 3 of the line)"),
        ("cut", "cut.gz: cannot be read"),
        ("zip", "has 0 files that end in .de, or .de_XX with a region, but one is expected; unpack it"),
        ("no zip", "x.en-de.en: cannot be read: File is not a zip file"),
        ("columns", "x.en-de.en, line 1: has 1 columns, but --columns names column 2"),
        ("sgm", "the segment after 2 others is bbc.1 4, but in"),
        ("no sgm", "has no <seg id=...>; check that it is an SGML file of WMT"),
        ("nothing left", "train.en-de: none of 2 pairs is left (2 copy); check"),
        ("script", "--scripts de: write LANG=SCRIPT"),
        ("no script", "'Elvish' names a script that Unicode does not have"),
        ("workers", "--workers 0: give at least 1"),
        ("whole", "--list-dropped need --split train"),
        ("checksums", "x.en-de.en: its SHA-256 is"),
        ("other checksums", "--checksums names none of the files that were read (x.en-de.en, x.en-de.de)"),
        ("wrong checksums", "line 1: is not in the format of sha256sum"),
    ],
)
def test_unusable_input_is_an_error(tmp_path: Path, case: str, message: str) -> None:
    arguments = bad_inputs(tmp_path)[case]
    out = tmp_path / "out"
    error = refuses("parallel", "--languages", "en", "de", "--workers", 1, "--output", out, *arguments)
    assert message in error
    assert not out.exists() or not list(out.iterdir())


def test_from_download_to_fairseq(tmp_path: Path, repository_root: Path) -> None:
    pairs = [("a dog runs", "ein Hund läuft"), ("a cat", "eine Katze"), ("a dog runs", "ein Hund läuft")]
    raw = moses(tmp_path, pairs, ".gz")
    valid = moses(tmp_path / "valid", pairs[:2])
    command: list[object] = [
        "preprocess/parallel.sh",
        "--xlmr",
        tokenizer(tmp_path / "xlmr"),
        "--output",
        tmp_path / "mt",
    ]
    command += ["--jobs", 1, "en", "de", "--train", "--moses", *raw, "--valid", "--moses", *valid]
    done = subprocess.run(list(map(str, command)), cwd=repository_root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    names = {path.name for path in (tmp_path / "mt" / "bin").iterdir()}
    assert {"train.en-de.en.bin", "valid.en-de.de.bin", "dict.en.txt", "dict.de.txt"} <= names
