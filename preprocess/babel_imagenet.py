#!/usr/bin/env python3
"""Babel-ImageNet: names of ImageNet's classes in up to 298 languages, and translated prompts, for classification.

From the repository Babel-ImageNet (Geigle et al., 2023), folder `data`: `babel_imagenet.json` (language -> [class
numbers, class names]; `babel_imagenet-298.json` has more languages) and `nllb_dist13b_prompts.json` (language ->
prompts with {}). The prompts have no English, whose prompts are OpenAI's: write the ones you use into a file of the
same format and give both files; without it, English is evaluated with bare names. --imagenet names the validation set
of ImageNet-1k (Russakovsky et al., 2015), one folder per class, named by WordNet id, as torchvision expects it.

Writes `classes.LANG.tsv` (class number from 0, tab, name), `prompts.LANG` and, with --imagenet, `images.tsv` for
mclip-features (id, tab, path) and `labels.tsv` (id, tab, class number).
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from corpora.command import Options, start_parser
from corpora.files import read_large_json, require
from corpora.output import Output
from corpora.sources import Sources, check_folder
from corpora.text import one_line

from mclip_fairseq.cli.main import run_main
from mclip_fairseq.storage.errors import UserError

SCRIPT = "babel_imagenet.py"
CLASSES = 1000
PHOTOS = 50000
SUFFIXES = (".jpeg", ".jpg")
NOTES = (
    "A language has only some of the classes: classify only their images, and only among them.",
    "Languages have different classes, so compare models within a language, not languages with each other.",
)


def read_classes(labels: Any, lang: str, place: str) -> list[tuple[int, str]]:
    """(number, name) of the classes of a language.

    Raises:
        UserError: a different format, a class number that ImageNet lacks or that is repeated, or an empty name.
    """
    pair = require(labels, lang, list, place)
    place = f"{place}, {lang}"
    if len(pair) != 2 or not all(isinstance(side, list) for side in pair) or len(pair[0]) != len(pair[1]):
        raise UserError(f"{place}: is not a list of class numbers and a list of as many names; download it again")
    numbers, names = pair[0], [one_line(name) if isinstance(name, str) else "" for name in pair[1]]
    if not all(type(number) is int and 0 <= number < CLASSES for number in numbers):
        raise UserError(f"{place}: has a number outside ImageNet's classes 0 to {CLASSES - 1}; download it again")
    if len(set(numbers)) < len(numbers) or not all(names):
        raise UserError(f"{place}: has a repeated class or one without a name; download it again")
    return list(zip(numbers, names, strict=True))


def read_prompts(files: Sequence[Path], sources: Sources) -> dict[str, tuple[str, Any]]:
    """Language -> (place, prompts) of all files.

    Raises:
        UserError: a file has a different format, or a language is in two of them.
    """
    prompts: dict[str, tuple[str, Any]] = {}
    for path in files:
        by_language = read_languages(sources.file(path))
        for lang in by_language:
            if lang.upper() in prompts:
                raise UserError(f"{path}: has prompts in {lang}, and so has another file of --prompts; remove one")
            prompts[lang.upper()] = (f"{path}, {lang}", require(by_language, lang, list, str(path)))
    return prompts


def read_languages(path: Path) -> dict[str, Any]:
    """Read a JSON object whose keys are languages.

    Raises:
        UserError: the file holds something else.
    """
    languages = read_large_json(path)
    if not isinstance(languages, dict):
        raise UserError(f"{path}: is not a JSON object of languages; check that this is the file --help names")
    return languages


def prompt_line(prompt: Any, place: str) -> str:
    """A prompt on one line.

    Raises:
        UserError: it does not have exactly one placeholder for the class name.
    """
    text = one_line(prompt) if isinstance(prompt, str) else ""
    if text.count("{}") != 1:
        raise UserError(f"{place}: the prompt {prompt!r} does not have exactly one {{}}; fix it")
    return text


def write_languages(options: Options, sources: Sources, output: Output) -> dict[str, dict[str, int]]:
    """Write classes and prompts; returns how many."""
    labels = read_languages(sources.file(options.labels))
    prompts = read_prompts(options.prompts, sources)
    counts: dict[str, dict[str, int]] = {}
    for lang in [lang.upper() for lang in options.languages or labels]:
        code = lang.lower()
        counts[code] = {"classes": 0, "prompts": 0}
        for number, name in read_classes(labels, lang, str(options.labels)):
            output.write(f"classes.{code}.tsv", f"{number}\t{name}")
            counts[code]["classes"] += 1
        if options.languages and prompts and lang not in prompts:
            raise UserError(f"{options.prompts[0]}: has no prompts in {lang}; add a file with them to --prompts")
        place, texts = prompts.get(lang, ("", ()))
        for prompt in texts:
            output.write(f"prompts.{code}", prompt_line(prompt, place))
            counts[code]["prompts"] += 1
    return counts


def write_photos(folder: Path, output: Output, whole: bool) -> int:
    """Write images and labels of ImageNet's validation set; returns the number of images."""
    synsets = sorted(path.name for path in check_folder(folder).iterdir() if path.is_dir())
    if whole and len(synsets) != CLASSES:
        raise UserError(
            f"{folder}: has {len(synsets)} class folders, but ImageNet has {CLASSES}; give the whole set or "
            "--expect-counts no"
        )
    count = 0
    # A class's number is its position among the sorted WordNet ids, so no class may be missing.
    for number, synset in enumerate(synsets):
        for path in sorted(path for path in (folder / synset).iterdir() if path.suffix.lower() in SUFFIXES):
            output.write("images.tsv", f"{path.name}\t{synset}/{path.name}")
            output.write("labels.tsv", f"{path.name}\t{number}")
            count += 1
    if whole and count != PHOTOS:
        raise UserError(
            f"{folder}: has {count} images, but {PHOTOS} were published; give the whole set or --expect-counts no"
        )
    return count


def make(options: Options) -> str:
    """Write everything; returns a summary for the user."""
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
    prompts = "nllb_dist13b_prompts.json, and files of the same format for languages it lacks, such as English"
    parser.add_argument("--prompts", type=Path, nargs="+", default=[], metavar="FILE", help=prompts)
    parser.add_argument("--imagenet", type=Path, metavar="DIR", help="ImageNet's validation set, one folder per class")
    parser.add_argument("--languages", nargs="+", metavar="LANG", help="languages to write (default: all)")
    options = parser.parse_args(argv)
    return run_main(SCRIPT, lambda: print(make(options)))


if __name__ == "__main__":
    sys.exit(main())
