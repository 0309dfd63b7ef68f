"""Fonts that can draw the script of a text, among those given, installed, and packaged for Python (extra `fonts`)."""

from __future__ import annotations

import base64
import functools
import importlib.resources
import io
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.extras import import_extra

if TYPE_CHECKING:
    from matplotlib.font_manager import FontEntry

DEFAULT_FAMILY = "DejaVu Sans"  # comes with matplotlib
# Packages of Noto fonts: one family a script, and the one of Chinese, Japanese and Korean.
PACKAGES = ("manimgx_fonts", "noto_cjk_sans_jp_regular")
FIRST_EMBEDDED = 0x0530  # code points below are Latin, Greek and Cyrillic
FONT_FILES = (".ttf", ".otf")
# Draws a box with the name of the script for every character: not a font to read.
PLACEHOLDER = "Last Resort"


def add_fonts(paths: Sequence[Path]) -> list[str]:
    """Make font files known to matplotlib and return their family names.

    Raises:
        UserError: naming the file that is not a font, or matplotlib is missing.
    """
    font = import_extra("matplotlib.ft2font", "evaluate").FT2Font
    manager = import_extra("matplotlib.font_manager", "evaluate").fontManager
    families = []
    for path in paths:
        try:
            families.append(font(str(path)).family_name)
            manager.addfont(str(path))
        except (OSError, RuntimeError) as error:
            raise UserError(f"{path}: is not a font file that can be read ({error}); give another file") from error
    return families


def families_for(texts: Iterable[str], preferred: Sequence[str] = ()) -> tuple[list[str], str]:
    """Font families that together can draw the texts, for matplotlib's glyph-by-glyph fallback.

    Args:
        texts: the texts to draw.
        preferred: families to try first, as `add_fonts` returns them.

    Returns:
        the families, and the characters, sorted, that no installed font has.
    """
    needed = {char for text in texts for char in text if not _invisible(char)}
    families = []
    for entry in _candidates(preferred):
        if not needed:
            break
        covered = needed & _characters(entry.fname, entry.index)
        if covered:
            families.append(entry.name)
            needed -= covered
    for path in packaged_fonts():
        covered = needed & _characters(str(path), 0)
        if covered:
            families += add_fonts([path])
            needed -= covered
    return families or [DEFAULT_FAMILY], "".join(sorted(needed))


def packaged_fonts() -> list[Path]:
    """The upright font files of the installed packages of fonts, in the order of `PACKAGES`."""
    files: list[Path] = []
    for package in PACKAGES:
        try:
            folder = Path(str(importlib.resources.files(package)))
        except ModuleNotFoundError:
            continue
        files += sorted(path for path in folder.rglob("*") if path.suffix in FONT_FILES and "Italic" not in path.name)
    return files


def font_faces(texts: Iterable[str]) -> str:
    """CSS that embeds what a page's texts need of the packaged fonts, as the family `Embedded`; empty without any.

    Latin, Greek and Cyrillic letters are left to the reader's own fonts.
    """
    needed = {char for text in texts for char in text if ord(char) >= FIRST_EMBEDDED and not _invisible(char)}
    faces = []
    for path in packaged_fonts():
        covered = needed & _characters(str(path), 0)
        if covered:
            data = base64.b64encode(_subset(path, covered)).decode()
            faces.append(f'@font-face {{ font-family: Embedded; src: url("data:font/otf;base64,{data}") }}')
            needed -= covered
    return "\n".join(faces)


def _subset(path: Path, characters: Iterable[str]) -> bytes:
    """A font file reduced to some characters, with what joins and orders them."""
    subset = import_extra("fontTools.subset", "evaluate")
    font = subset.load_font(str(path), subset.Options(layout_features=["*"]))
    subsetter = subset.Subsetter(subset.Options(layout_features=["*"]))
    subsetter.populate(text="".join(characters) + "\u200c\u200d ")
    subsetter.subset(font)
    stream = io.BytesIO()
    font.save(stream)
    return stream.getvalue()


def _candidates(preferred: Sequence[str]) -> Iterator[FontEntry]:
    """One upright face per family, the likeliest to read well first."""
    manager = import_extra("matplotlib.font_manager", "evaluate").fontManager

    def order(entry: FontEntry) -> tuple[bool, bool, bool, int, str]:
        return (
            entry.name not in preferred,
            entry.name != DEFAULT_FAMILY,
            "Sans" not in entry.name,
            abs(int(entry.weight) - 400) if str(entry.weight).isdigit() else 0,
            entry.name,
        )

    seen = set()
    for entry in sorted(manager.ttflist, key=order):
        if entry.name not in seen and entry.style == "normal" and not entry.name.startswith(PLACEHOLDER):
            seen.add(entry.name)
            yield entry


@functools.cache
def _characters(path: str, face: int) -> frozenset[str]:
    font = import_extra("matplotlib.ft2font", "evaluate").FT2Font
    try:
        return frozenset(map(chr, font(path, face_index=face).get_charmap()))
    except (OSError, RuntimeError):  # in matplotlib's cache, but deleted or damaged since
        return frozenset()


def _invisible(char: str) -> bool:
    """Spaces, controls, joiners and variation selectors need no glyph."""
    return char.isspace() or unicodedata.category(char) in ("Cc", "Cf") or "\ufe00" <= char <= "\ufe0f"
