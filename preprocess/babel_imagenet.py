#!/usr/bin/env python3
"""Babel-ImageNet: names of ImageNet's classes in up to 298 languages, and translated prompts, for classification.

From the repository Babel-ImageNet (Geigle et al., 2023), folder `data`: `babel_imagenet.json` (language -> [numbers
of classes, their names]; `babel_imagenet-298.json` is the same of more languages) and `nllb_dist13b_prompts.json`
(language -> prompts with {}; none in English, whose prompts are OpenAI's: write those you use into a file of the same
form and name both, or English is tried with bare names). --imagenet names the validation set of ImageNet-1k
(Russakovsky et al., 2015), one folder per class, named by its WordNet id, as torchvision has it.

Writes `classes.LANG.tsv` (number of the class from 0, tab, name), `prompts.LANG` and, with --imagenet, `images.tsv` for
mclip-features (id, tab, path) and `labels.tsv` (id, tab, number of the class).
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from corpora.command import Options, guarded, start_parser
from corpora.files import member, read_json
from corpora.output import Output
from corpora.sources import Sources, existing
from corpora.text import one_line

from mclip_fairseq.storage.errors import UserError

SCRIPT = "babel_imagenet.py"
CLASSES = 1000
PHOTOS = 50000
SUFFIXES = (".jpeg", ".jpg")
NOTES = (
    "A language has only some of the classes: classify among those, and only the images of those.",
    "Accuracies of two languages are of different classes; compare models within a language.",
)


def read_classes(labels: Any, lang: str, place: str) -> list[tuple[int, str]]:
    """(number, name) of the classes of a language.

    Raises:
        UserError: another form, a number that ImageNet does not have or that is there twice, or an empty name.
    """
    pair = member(labels, lang, list, place)
    place = f"{place}, {lang}"
    if len(pair) != 2 or not all(isinstance(side, list) for side in pair) or len(pair[0]) != len(pair[1]):
        raise UserError(f"{place}: is not a list of numbers and a list of as many names")
    numbers, names = pair[0], [one_line(name) if isinstance(name, str) else "" for name in pair[1]]
    if not all(type(number) is int and 0 <= number < CLASSES for number in numbers):
        raise UserError(f"{place}: has a number that is none of ImageNet's classes 0 to {CLASSES - 1}")
    if len(set(numbers)) < len(numbers) or not all(names):
        raise UserError(f"{place}: has a class twice or one without a name")
    return list(zip(numbers, names, strict=True))


def read_prompts(files: Sequence[Path], sources: Sources) -> dict[str, tuple[str, Any]]:
    """Language -> (place, prompts) of all files.

    Raises:
        UserError: a file of another form, or a language in two of them.
    """
    found: dict[str, tuple[str, Any]] = {}
    for path in files:
        prompts = read_json(sources.file(path))
        if not isinstance(prompts, dict):
            raise UserError(f"{path}: is no JSON object of languages")
        for lang in prompts:
            if lang.upper() in found:
                raise UserError(f"{path}: has prompts of {lang}, as another file has")
            found[lang.upper()] = (f"{path}, {lang}", member(prompts, lang, list, str(path)))
    return found


def checked_prompt(prompt: Any, place: str) -> str:
    """A prompt on one line.

    Raises:
        UserError: it has no place for the name, or several.
    """
    text = one_line(prompt) if isinstance(prompt, str) else ""
    if text.count("{}") != 1:
        raise UserError(f"{place}: the prompt {prompt!r} has not exactly one {{}}")
    return text


def write_languages(options: Options, sources: Sources, output: Output) -> dict[str, dict[str, int]]:
    """Write classes and prompts; returns their numbers."""
    labels = read_json(sources.file(options.labels))
    prompts = read_prompts(options.prompts, sources)
    if not isinstance(labels, dict):
        raise UserError(f"{options.labels}: is no JSON object of languages")
    counts: dict[str, dict[str, int]] = {}
    for lang in [lang.upper() for lang in options.languages or labels]:
        code = lang.lower()
        counts[code] = {"classes": 0, "prompts": 0}
        for number, name in read_classes(labels, lang, str(options.labels)):
            output.write(f"classes.{code}.tsv", f"{number}\t{name}")
            counts[code]["classes"] += 1
        if options.languages and prompts and lang not in prompts:
            raise UserError(f"{options.prompts[0]}: has no prompts of {lang}; give another file of --prompts with them")
        place, texts = prompts.get(lang, ("", ()))
        for prompt in texts:
            output.write(f"prompts.{code}", checked_prompt(prompt, place))
            counts[code]["prompts"] += 1
    return counts


def write_photos(folder: Path, output: Output, whole: bool) -> int:
    """Write images and labels of ImageNet's validation set; returns the number of images."""
    synsets = sorted(path.name for path in existing(folder).iterdir() if path.is_dir())
    if whole and len(synsets) != CLASSES:
        raise UserError(f"{folder}: {len(synsets)} folders of classes where {CLASSES} were published")
    count = 0
    # The numbers of the classes are their places among the sorted WordNet ids, so none may be missing.
    for number, synset in enumerate(synsets):
        for path in sorted(path for path in (folder / synset).iterdir() if path.suffix.lower() in SUFFIXES):
            output.write("images.tsv", f"{path.name}\t{synset}/{path.name}")
            output.write("labels.tsv", f"{path.name}\t{number}")
            count += 1
    if whole and count != PHOTOS:
        raise UserError(f"{folder}: {count} images where {PHOTOS} were published")
    return count


def make(options: Options) -> str:
    """Run the command; returns what to tell the user."""
    sources = Sources(options.checksums)
    with Output(options.output, "Babel-ImageNet") as output:
        counts = write_languages(options, sources, output)
        whole = options.expect_counts == "yes"
        photos = 0 if options.imagenet is None else write_photos(options.imagenet, output, whole)
        facts = {"script": f"preprocess/{SCRIPT}", "sources": sources.described()}
        output.finish(facts | {"languages": counts, "images": photos, "notes": list(NOTES)}, sources.paths)
    without = [lang for lang, count in counts.items() if not count["prompts"]]
    return f"{options.output}: {len(counts)} languages, {photos} images; without prompts: {' '.join(without) or 'none'}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = start_parser(__doc__, SCRIPT)
    parser.add_argument("--labels", type=Path, required=True, metavar="FILE", help="babel_imagenet.json")
    prompts = "nllb_dist13b_prompts.json, and files of that form for languages without, such as English"
    parser.add_argument("--prompts", type=Path, nargs="+", default=[], metavar="FILE", help=prompts)
    parser.add_argument("--imagenet", type=Path, metavar="DIR", help="ImageNet's validation set, a folder per class")
    parser.add_argument("--languages", nargs="+", metavar="LANG", help="which to take (all)")
    options = parser.parse_args(argv)
    return guarded(SCRIPT, lambda: make(options))


if __name__ == "__main__":
    sys.exit(main())
