"""Few-shot training sets: the training captions of the images that a file names."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from corpora.captions import TRAIN, Caption
from corpora.files import numbered_lines
from mclip_fairseq.storage.errors import UserError


def only_few_shots(captions: Iterator[Caption], path: Path) -> Iterator[Caption]:
    """Leave out the training captions of all images but a few; the other splits stay whole.

    Args:
        captions: of all splits.
        path: one image id a line, with or without the ending of its file.

    Raises:
        UserError: the file names no image, or one that has no training caption in one of the languages.
    """
    lines = {line.strip(): place for place, line in numbered_lines(path) if line.strip()}
    if not lines:
        raise UserError(f"{path}: names no image; give one id a line")
    found: dict[str, set[str]] = {}
    for caption in captions:
        if caption.split == TRAIN:
            own = found.setdefault(caption.language, set())
            named = {caption.image, PurePosixPath(caption.image).stem} & lines.keys()
            if not named:
                continue
            own |= named
        yield caption
    for language, own in found.items() or [("any language", set())]:
        for name, place in lines.items():
            if name not in own:
                raise UserError(
                    f"{place}: image {name!r} has no training caption in {language}; take the ids from this data set"
                )
