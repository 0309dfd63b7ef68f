"""Which columns of a user's data hold images, captions, languages and splits: as asked for, or by their names."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from corpora.parts import CODES, language_code
from mclip_fairseq.storage.errors import UserError

# Names of columns, the likeliest first.
IMAGES = (
    *("image", "image_path", "image_file", "file_name", "filename", "file", "filepath", "file_path", "path", "img"),
    *("img_path", "photo", "picture", "image_name", "image_id", "id", "key"),
)
CAPTIONS = (
    *("caption", "captions", "text", "texts", "sentence", "sentences", "description", "alt_text", "comment", "title"),
    *("raw", "txt"),
)
LANGUAGES = ("language", "lang", "locale", "language_code", "lang_code")
SPLITS = ("split", "subset", "partition", "set")
# Codes that are also usual names of columns with something else in them.
AMBIGUOUS = {"id", "no", "to", "or"}
# A language, with a region or script if need be, as `fold` writes it.
LANGUAGE = r"[a-z]{2}(?:_(?:[a-z]{2}|hans|hant|latn|cyrl|arab))?"
# caption_de, text-pt-BR, de_caption and so on.
WITH_LANGUAGE = re.compile("(?:{0})_({1})|({1})_(?:{0})".format("|".join(CAPTIONS), LANGUAGE))


@dataclass(frozen=True)
class Asked:
    """Columns that the user named; empty where they are to be found by name.

    Attributes:
        image: of the image.
        captions: column -> language, which is empty if the record, the file or --language says it.
        language: of the captions' language.
        split: of the split.
    """

    image: str = ""
    captions: Mapping[str, str] = field(default_factory=dict)
    language: str = ""
    split: str = ""


@dataclass(frozen=True)
class Chosen:
    """Columns of a record; see `Asked`."""

    image: str
    captions: Mapping[str, str]
    language: str
    split: str

    @property
    def all(self) -> list[str]:
        """Every column that is read."""
        return [name for name in (self.image, *self.captions, self.language, self.split) if name]

    def describe(self) -> str:
        """What was chosen, for a person."""
        captions = ", ".join(f"{name} ({language})" if language else name for name, language in self.captions.items())
        named = [("images", self.image), ("captions", captions)]
        named += [(what, name) for what, name in (("language", self.language), ("split", self.split)) if name]
        return "; ".join(f"{what}: {name}" for what, name in named)


class Columns:
    """Chooses the columns of records.

    What holds the image, a caption without language, the language and the split is decided by the first record of a
    source, and the same for all of it: a record that lacks one of them must not fall back to another column. Columns of
    one language may come and go.

    Args:
        asked: by the user.
    """

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.first: Chosen | None = None
        self.known: dict[tuple[str, ...], Chosen] = {}

    def choose(self, names: Sequence[str], place: str) -> Chosen:
        """The columns of a record with these names.

        Raises:
            UserError: a column is missing, or none has a name that tells what it is.
        """
        key = tuple(names)
        if key not in self.known:
            self.known[key] = self._again(names, place) if self.first else self._first(names, place)
        return self.known[key]

    def _first(self, names: Sequence[str], place: str) -> Chosen:
        asked = self.asked
        image = asked.image or find(names, IMAGES)
        language = asked.language or find(names, LANGUAGES)
        split = asked.split or find(names, SPLITS)
        captions = dict(asked.captions) or caption_columns(names, find(names, CAPTIONS), image)
        check_present([image, asked.language, asked.split, *asked.captions], names, place)
        if not image or not captions:
            what, option = ("image", "--image-column") if not image else ("captions", "--caption-column")
            raise UserError(
                f"{place}: no column has a name that tells it holds the {what}; give {option} with one of "
                f"{', '.join(names)}"
            )
        self.first = Chosen(image, captions, language, split)
        return self.first

    def _again(self, names: Sequence[str], place: str) -> Chosen:
        assert self.first is not None
        first = self.first
        check_present([first.image, first.language, first.split], names, place)
        plain = next((name for name, language in first.captions.items() if not language), "")
        captions = {name: code for name, code in self.asked.captions.items() if name in names} or (
            {} if self.asked.captions else caption_columns(names, plain if plain in names else "", first.image)
        )
        if not captions:
            raise UserError(f"{place}: has no caption, unlike the records before it; add {', '.join(first.captions)}")
        return Chosen(first.image, captions, first.language, first.split)


def fold(name: str) -> str:
    """A column's name in lower case, with _ for spaces, hyphens and other signs."""
    return re.sub(r"[^0-9a-z]+", "_", name.lower()).strip("_")


def find(names: Sequence[str], usual: Sequence[str]) -> str:
    """The column whose name is the likeliest; empty if none is usual."""
    folded = {fold(name): name for name in reversed(names)}
    return next((folded[name] for name in usual if name in folded), "")


def caption_columns(names: Sequence[str], plain: str, image: str) -> dict[str, str]:
    """Columns of captions -> language: those named caption_LANG and the like, and `plain`; else those named LANG."""
    found = {}
    for name in names:
        match = WITH_LANGUAGE.fullmatch(fold(name))
        code = language_of(match[1] or match[2]) if match else ""
        if code and name != image:
            found[name] = code
    if plain:
        found[plain] = ""
    if found:
        return found
    bare = {name: language_of(fold(name)) for name in names if fold(name) not in AMBIGUOUS and name != image}
    return {name: code for name, code in bare.items() if code}


def language_of(folded: str) -> str:
    """The code that a folded name stands for: de, or pt-br for pt_br; empty if for none."""
    known = re.fullmatch(LANGUAGE, folded) is not None and folded[:2] in CODES
    return language_code(folded, folded) if known else ""


def check_present(wanted: Sequence[str], names: Sequence[str], place: str) -> None:
    """Check that a record has columns.

    Raises:
        UserError: it lacks one.
    """
    for name in wanted:
        if name and name not in names:
            raise UserError(f"{place}: has no column {name!r}; it has {', '.join(names)}")
