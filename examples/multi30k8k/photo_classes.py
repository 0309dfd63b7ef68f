"""Zero-shot classification of the evaluated photos: who is on them, and where.

A photo is of a class if most of its English captions name that class and no other of the set; photos of no class or of
several are left out. The sets are small, so that their intervals are wide; they show whether better retrieval has been
paid for with class names. Names stand alone, without prompts, because teacher and students learned from captions only.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mclip_fairseq.storage.files import write_json

MOST = 0.5  # share of the captions that must name a class
# Set -> class in the four languages -> English words that name it in a caption.
SETS: dict[str, dict[tuple[str, str, str, str], str]] = {
    "who": {
        ("dog", "Hund", "chien", "pes"): "dog dogs puppy puppies",
        ("man", "Mann", "homme", "muž"): "man men",
        ("woman", "Frau", "femme", "žena"): "woman women lady ladies",
        ("boy", "Junge", "garçon", "chlapec"): "boy boys",
        ("girl", "Mädchen", "fille", "dívka"): "girl girls",
    },
    "where": {
        ("water", "Wasser", "eau", "voda"): "water lake river pool ocean sea",
        ("snow", "Schnee", "neige", "sníh"): "snow snowy",
        ("grass", "Gras", "herbe", "tráva"): "grass grassy lawn",
        ("street", "Straße", "rue", "ulice"): "street road sidewalk",
        ("beach", "Strand", "plage", "pláž"): "beach sand",
        ("rock", "Felsen", "rocher", "skála"): "rock rocks rocky cliff",
    },
}


def label(captions: Sequence[str], words: Sequence[str]) -> int | None:
    """The class of a photo.

    Args:
        captions: its English captions.
        words: of each class, the words that name it, separated by spaces.

    Returns:
        number of the one class that most captions name; None for none or several.
    """
    spoken = [set(re.findall(r"[a-z]+", caption.lower())) for caption in captions]
    named = [sum(bool(own & set(names.split())) for own in spoken) for names in words]
    found = [number for number, count in enumerate(named) if count > MOST * len(captions)]
    return found[0] if len(found) == 1 else None


def write_classes(output: Path, langs: Sequence[str], captions: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Write the sets in the layout of `preprocess/babel_imagenet.py`.

    Args:
        output: directory to make; one folder a set.
        langs: the four languages, in the order of `SETS`.
        captions: photo -> its English captions.

    Returns:
        set -> number of its photos.
    """
    counts = {}
    for name, classes in SETS.items():
        folder = output / name
        labels = {photo: label(texts, list(classes.values())) for photo, texts in captions.items()}
        known = {photo: number for photo, number in labels.items() if number is not None}
        write_table(folder / "labels.tsv", known.items())
        write_table(
            folder / "images.tsv", ((photo, f"{photo}.png") for photo in known)
        )  # for models that read pictures
        for column, lang in enumerate(langs):
            write_table(folder / f"classes.{lang}.tsv", enumerate(names[column] for names in classes))
        of_classes = Counter(known.values())
        manifest = {
            "name": f"Multi30K photos: {name}",
            "languages": {lang: {"classes": len(classes)} for lang in langs},
        }
        facts = {"photos": {names[0]: of_classes[number] for number, names in enumerate(classes)}}
        write_json(folder / "manifest.json", manifest | facts)
        counts[name] = len(known)
    return counts


def write_table(path: Path, rows: Iterable[tuple[object, object]]) -> None:
    """Write rows of two columns, separated by a tab."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{first}\t{second}\n" for first, second in rows), encoding="utf-8")
