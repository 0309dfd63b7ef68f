"""The classes of photos that examples/multi30k8k derives from English captions."""

import json
from pathlib import Path

import photo_classes
import pytest

WORDS = ["dog dogs puppy", "man men", "girl girls"]


@pytest.mark.parametrize(
    ("captions", "expected"),
    [
        (["A dog runs.", "Two dogs", "a puppy"], 0),
        (["a man and a dog", "the man", "a dog, a man"], None),  # two classes
        (["a woman sings"] * 3, None),  # "man" is not a word of it
        (["a girl", "a child", "a girl in red"], 2),  # two of three captions
        (["a girl", "a child"], None),  # not most of them
    ],
)
def test_a_photo_is_of_the_one_class_that_most_captions_name(captions: list[str], expected: int | None) -> None:
    assert photo_classes.label(captions, WORDS) == expected


def test_sets_are_written_as_a_benchmark(tmp_path: Path) -> None:

    captions = {"1": ["a dog in the snow"], "2": ["a girl on the grass"], "3": ["nothing"]}
    assert photo_classes.write_classes(tmp_path, ("en", "de", "fr", "cs"), captions) == {"who": 2, "where": 2}
    assert (tmp_path / "who" / "labels.tsv").read_text() == "1\t0\n2\t4\n"
    assert (tmp_path / "where" / "classes.cs.tsv").read_text().splitlines()[1] == "1\tsníh"
    manifest = json.loads((tmp_path / "who" / "manifest.json").read_text())
    assert manifest["photos"] == {"dog": 1, "man": 0, "woman": 0, "boy": 0, "girl": 1}
    for classes in photo_classes.SETS.values():
        assert all(len(set(names)) == 4 for names in classes)
