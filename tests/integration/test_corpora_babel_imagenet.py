"""Evaluation set Babel-ImageNet."""

from pathlib import Path

import pytest

from tests.downloads import FREE, babel, lines, manifest, refuses, touch, works, write_json


def test_babel_imagenet(tmp_path: Path) -> None:
    options = babel(tmp_path, {"DE": [[0, 2], ["Schleie", "Weißer\tHai"]], "ZH": [[1], ["金鱼"]]})
    names = ["ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000002.JPEG"]
    images = touch(tmp_path / "val", [f"n01443537/{names[1]}", f"n01440764/{names[0]}"])
    options += ["--imagenet", images, "--output", tmp_path / "out"]
    assert "has 2 class folders, but ImageNet has 1000" in refuses("babel_imagenet", *options)
    works("babel_imagenet", *options, *FREE)
    assert lines(tmp_path / "out" / "classes.de.tsv") == ["0\tSchleie", "2\tWeißer Hai"]
    assert lines(tmp_path / "out" / "prompts.de") == ["ein Foto von {}.", "{}"]
    assert lines(tmp_path / "out" / "labels.tsv") == [f"{names[0]}\t0", f"{names[1]}\t1"]
    assert lines(tmp_path / "out" / "images.tsv")[0] == f"{names[0]}\tn01440764/{names[0]}"
    assert manifest(tmp_path / "out")["languages"]["zh"] == {"classes": 1, "prompts": 1}


def test_prompts_from_an_extra_file(tmp_path: Path) -> None:
    """The published file has no English prompts."""
    options = babel(tmp_path, {"DE": [[0], ["Schleie"]], "EN": [[0], ["tench"]]})
    own = write_json(tmp_path / "own.json", {"en": ["a photo of a {}."]})
    works("babel_imagenet", *options, own, "--output", tmp_path / "out", *FREE)
    assert [lines(tmp_path / "out" / f"prompts.{lang}")[0] for lang in ("de", "en")] == [
        "ein Foto von {}.",
        "a photo of a {}.",
    ]
    write_json(own, {"de": ["{}"]})
    said = refuses("babel_imagenet", *options, own, "--output", tmp_path / "out", *FREE)
    assert "own.json: has prompts in de, and so has another file of --prompts" in said


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"DE": [[0], ["a", "b"]]}, "DE: is not a list of class numbers and a list of as many names"),
        ({"DE": [[0, 0], ["a", "b"]]}, "DE: has a repeated class or one without a name"),
        ({"DE": [[0], [" "]]}, "DE: has a repeated class or one without a name"),
        ({"DE": [[1000], ["a"]]}, "DE: has a number outside ImageNet's classes 0 to 999"),
        ([], "is not a JSON object of languages"),
    ],
)
def test_babel_imagenet_with_a_different_shape(tmp_path: Path, labels: object, message: str) -> None:
    assert message in refuses("babel_imagenet", *babel(tmp_path, labels), "--output", tmp_path / "out")


def test_a_language_may_have_no_prompts_unless_it_was_asked_for(tmp_path: Path) -> None:
    options = [*babel(tmp_path, {"EN": [[0], ["tench"]], "DE": [[0], ["Schleie"]]}), "--output", tmp_path / "out"]
    assert "2 languages, 0 images; without prompts: en" in works("babel_imagenet", *options)
    assert "has no prompts in EN; add a file" in refuses("babel_imagenet", *options, "--languages", "en")


def test_prompts_have_one_placeholder(tmp_path: Path) -> None:
    options = babel(tmp_path, {"DE": [[0], ["a"]]})
    write_json(tmp_path / "nllb_dist13b_prompts.json", {"DE": ["ein Foto"]})
    error = refuses("babel_imagenet", *options, "--output", tmp_path / "out")
    assert "the prompt 'ein Foto' does not have exactly one {}" in error
