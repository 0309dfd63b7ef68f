"""Cleaning of texts, shares of scripts, filters of pairs, and the output directory."""

import contextlib
import unicodedata
from pathlib import Path

import ftfy
import numpy as np
import pytest
from corpora.duplicates import Duplicates
from corpora.filters import Chunk, RawPair, Rules, drop_reason, filter_chunk, key_of
from corpora.output import Output
from corpora.pool import in_order
from corpora.scripts import SCRIPTS, letters_in, measure, only_in, script_share, scripts_of
from corpora.text import MARKUP, clean_text, fold_text, ftfy_config, join_segmented, looks_tagged, one_line
from hypothesis import given
from hypothesis import strategies as st

LATIN = Rules(("Latin", "Latin"))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a dog\r\n", "a dog"),
        ("\ufeffa\tdog\u2028runs\u2029\x85now\x0b", "a dog runs now"),
        ("  two\u3000words \u00a0", "two words"),
        ("Ａ，犬。", "Ａ，犬。"),
        ("cafe\u0301", "cafe\u0301"),
        ("\t \r", ""),
        ("\ud83d\udc15 and \ud83d", "\U0001f415 and \ufffd"),
    ],
)
def test_one_line_changes_white_space_only(text: str, line: str) -> None:
    assert one_line(text) == line


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("caf\u0065\u0301 au lait", "caf\u00e9 au lait"),
        ("schÃ¶n", "schön"),
        ("Tom &amp; Jerry &lt;b&gt;here&lt;/b&gt;", "Tom & Jerry here"),
        ('<a href="x">link</a><br/>two', "link two"),
        ("a < b and c > d", "a < b and c > d"),
        ("a <b and c> d" * 40, "a d" + "a d" * 39),
        ("two\u200b\x00\x1b[31mred\x1b[0m", "two\u200bred"),
        ("\ufeffsigns \u2028 here", "signs here"),
        ("„so“ – ‘so’", "„so“ – ‘so’"),
        ("你好，ＡＢＣ！", "你好，ＡＢＣ！"),
        ("ﬁne ｶﾅ", "ﬁne ｶﾅ"),
    ],
)
def test_clean_text(text: str, cleaned: str) -> None:
    assert clean_text(text) == cleaned


@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from("aÃ¶e\u0301&<>; é„犬\u2028")), max_size=20))
def test_the_shortcut_of_clean_text_changes_nothing(text: str) -> None:
    full = one_line(MARKUP.sub(" ", ftfy.fix_text(MARKUP.sub(" ", text), ftfy_config())))
    assert clean_text(text) == full
    assert "\n" not in clean_text(text)
    assert unicodedata.is_normalized("NFC", clean_text(text))


def test_folded_texts_differ_in_more_than_case_width_spaces_and_punctuation() -> None:
    assert fold_text("Ｈello, 世界！") == fold_text("hello 世界") == "hello世界"
    assert fold_text("STRASSE") == fold_text("Straße")
    assert fold_text("Hello, World") == fold_text("hello world!") != fold_text("hello word")


def test_segmented_texts_are_joined() -> None:
    assert join_segmented("一:m 只:q 狗:n") == "一只狗"
    assert join_segmented("一 个 red car 在 那") == "一个red car在那"
    assert join_segmented("") == ""
    assert looks_tagged("一:m 只:q 狗:n")
    assert not looks_tagged("at 10:30 : dog")


@pytest.mark.parametrize(
    ("text", "scripts", "share"),
    [
        ("a dog", "Latin", 1.0),
        ("a dog", "Cyrillic", 0.0),
        ("ab犬犬", "Han", 0.5),
        ("犬がいる", "Han Hiragana Katakana", 1.0),
        ("犬がいる", "Han", 0.25),
        ("Ａ Ｂ", "Latin", 1.0),
        ("12 + 3!", "Latin", None),
        ("été", "Latin", 1.0),
    ],
)
def test_share_of_letters_in_a_script(text: str, scripts: str, share: float | None) -> None:
    assert script_share(text, scripts) == share


@given(st.text(max_size=30), st.sampled_from(sorted(set(SCRIPTS.values()))))
def test_share_is_a_plain_count(text: str, scripts: str) -> None:
    letters = [letter for letter in text if unicodedata.category(letter).startswith("L")]
    inside = [letter for letter in letters if letters_in(scripts).fullmatch(letter)]
    share = script_share(text, scripts)
    if share is not None and letters:
        assert share == pytest.approx(len(inside) / len(letters), abs=1e-9)
        assert (share == 1) == (only_in(scripts).fullmatch(text) is not None)


def test_scripts_of_languages() -> None:
    assert scripts_of("zh_CN", {}) == scripts_of("zh-TW", {}) == "Han"
    assert scripts_of("tlh", {"tlh": "Latin"}) == "Latin"
    assert scripts_of("sr", {"sr": "Cyrillic"}) == "Cyrillic"
    with pytest.raises(ValueError, match="the script of 'tlh' is unknown; give it, as in --scripts tlh=Latin"):
        scripts_of("tlh", {})
    with pytest.raises(ValueError, match="'Klingon' names a script that Unicode does not have"):
        letters_in("Klingon")


def test_every_script_of_the_table_exists() -> None:
    for scripts in set(SCRIPTS.values()):
        assert letters_in(scripts).pattern


def test_words() -> None:
    assert measure("a dog runs") == (3, 4)
    assert measure("犬が走るABC です") == (7, 3)
    assert measure("größer als alles") == (3, 6)
    assert measure("") == (0, 0)


@pytest.mark.parametrize(
    ("source", "target", "rules", "reason"),
    [
        ("a dog", "ein Hund", LATIN, None),
        ("", "ein Hund", LATIN, "empty"),
        ("a dog", "ein Hund", Rules(("Latin", "Latin"), min_words=3), "too short"),
        ("a dog", "ein Hund", Rules(("Latin", "Latin"), max_words=1), "too long"),
        ("a dog", "x" * 101 + " y", LATIN, "too long"),
        ("a", "ein zwei drei vier", LATIN, "ratio"),
        ("a dog", "a dog", LATIN, "copy"),
        ("12 3", "12 4", LATIN, "no letters"),
        ("a dog", "ab собака", LATIN, "script"),
        ("a dog", "一只狗", Rules(("Latin", "Han")), None),
    ],
)
def test_why_a_pair_is_dropped(source: str, target: str, rules: Rules, reason: str | None) -> None:
    assert drop_reason(source, target, rules) == reason


def test_a_filtered_chunk() -> None:
    pairs = [
        RawPair(b"A dog\r", b"Ein Hund"),
        RawPair(b" ", b"x"),
        RawPair(b"held out!", b"egal was"),
        *[RawPair(b"", b"")] * 5,
    ]
    rules = Rules(("Latin", "Latin"), held_out=frozenset({key_of(fold_text("Held out"))}))
    filtered = filter_chunk(Chunk("x.en", 11, pairs), rules, all_examples=False)
    assert filtered.source == ["A dog\n"]
    assert filtered.target == ["Ein Hund\n"]
    assert filtered.keys.tolist() == [key_of("adog\teinhund")]
    assert filtered.dropped == {"empty": 6, "held out": 1}
    assert filtered.examples[0] == ("empty", "x.en, line 12", "", "x")
    assert len(filtered.examples) == 4
    assert len(filter_chunk(Chunk("x.en", 11, pairs), rules, all_examples=True).examples) == 7
    with pytest.raises(ValueError, match=r"x.en, line 1: is not UTF-8 \(byte 2 of the line\)"):
        filter_chunk(Chunk("x.en", 1, [RawPair(b"a\xff", b"b")]), LATIN, all_examples=False)


@pytest.mark.parametrize("window", [1, 3, 7, 1000])
@pytest.mark.parametrize("count", [0, 1, 200])
def test_duplicates_are_those_of_a_set(tmp_path_factory: pytest.TempPathFactory, window: int, count: int) -> None:
    folder = tmp_path_factory.mktemp("keys")
    keys = np.random.default_rng(0).integers(0, 60, count).astype(np.uint64) * np.uint64(2**58 + 3)
    duplicates = Duplicates(folder, window)
    for some in np.array_split(keys, 5):
        duplicates.add(some)
    masks = list(duplicates.masks())
    repetitions = [repeated for mask in masks for repeated in mask.tolist()]
    assert repetitions == [key in keys[:row] for row, key in enumerate(keys)]
    assert all(len(mask) <= window for mask in masks)
    assert not list(folder.iterdir())


def test_output_has_few_files_open_and_all_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corpora.output.MAX_OPEN", 3)
    with Output(tmp_path) as output:
        for number in range(40):
            output.write(f"file.{number % 8}", str(number))
            assert len(output.streams) <= 3
        assert not (tmp_path / "file.0").exists()
        output.finish({}, [])
    assert (tmp_path / "file.3").read_text() == "3\n11\n19\n27\n35\n"
    assert len(list(tmp_path.iterdir())) == 9
    with contextlib.suppress(RuntimeError), Output(tmp_path) as output:
        output.write("file.0", "other")
        raise RuntimeError
    assert (tmp_path / "file.0").read_text().startswith("0\n8\n")
    assert not (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize("name", ["test.\ud800", "test.\x1b[31m", "test./../../x", "test.a b", "test." + "x" * 300])
def test_a_language_that_is_not_a_valid_file_name(tmp_path: Path, name: str) -> None:
    with (
        Output(tmp_path) as output,
        pytest.raises(ValueError, match="is not a valid file name; look for a wrong language"),
    ):
        output.write(name, "text")
    assert not list(tmp_path.iterdir())


def test_half_a_character_is_an_error(tmp_path: Path) -> None:
    with (
        Output(tmp_path) as output,
        pytest.raises(ValueError, match=r"test.en: 'a \\ud800 dog' holds half a character"),
    ):
        output.write("test.en", "a \ud800 dog")
    assert not list(tmp_path.iterdir())


def square(number: int) -> int:
    if number == 13:
        raise ValueError("thirteen")
    return number * number


def test_pool_keeps_the_order_and_takes_no_more_than_it_needs() -> None:
    taken = []

    def numbers() -> "object":
        for number in range(100, 400):
            taken.append(number)
            yield number

    results = in_order(square, numbers(), 2)  # type: ignore[arg-type]
    assert next(results) == 10000
    assert len(taken) <= 6
    assert list(results) == [number * number for number in range(101, 400)]
    assert list(in_order(square, [1, 2], 1)) == [1, 4]
    with pytest.raises(ValueError, match="thirteen"):
        list(in_order(square, range(40), 2))
