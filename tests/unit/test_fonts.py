"""Fonts of Python packages for scripts that the installed fonts lack, in pictures and embedded in pages."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import pytest

from mclip_fairseq.evaluation.reports import fonts

TEXTS = ["तितली", "ผีเสื้อ", "나비", "蝴蝶", "ちょうちょう", "فراشة"]


@pytest.fixture(autouse=True)
def _packages() -> None:
    for package in fonts.PACKAGES:
        pytest.importorskip(package, reason="the extra fonts is not installed")


def test_every_script_of_the_texts_has_a_font() -> None:
    families, missing = fonts.families_for(TEXTS)
    assert missing == ""
    assert len(families) >= 4


def test_without_the_packages_a_script_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "PACKAGES", ("no_such_package_of_fonts",))
    monkeypatch.setattr(fonts, "_candidates", lambda preferred: iter(()))
    assert fonts.families_for(TEXTS[:1]) == ([fonts.DEFAULT_FAMILY], "".join(sorted(set(TEXTS[0]))))
    assert fonts.font_faces(TEXTS) == ""


def test_a_page_embeds_the_letters_that_it_needs_and_no_others() -> None:
    from fontTools.ttLib import TTFont

    css = fonts.font_faces([*TEXTS, "Hund, кот"])
    embedded: set[str] = set()
    for data in re.findall(r"base64,([^\"]+)", css):
        content = base64.b64decode(data)
        assert len(content) < 100_000
        embedded |= set(map(chr, TTFont(io.BytesIO(content)).getBestCmap()))
    assert {char for text in TEXTS for char in text} <= embedded
    assert not embedded & set("Hundкот")
    assert all(Path(path).suffix in fonts.FONT_FILES for path in fonts.packaged_fonts())
