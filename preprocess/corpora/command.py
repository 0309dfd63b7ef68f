"""The command line that all scripts of captions have, from the options to the manifest."""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from corpora.captions import IMAGES, TRAIN, Caption, CaptionWriter, Counts, ImageFolder
from corpora.output import Output
from corpora.sources import Sources, existing

Options = argparse.Namespace


@dataclass(frozen=True)
class Corpus:
    """A data set of captions.

    Attributes:
        name: as its paper calls it; or a function of the options that returns it, where they choose between variants
            that give other numbers.
        add_options: adds what names the source files.
        read: yields the captions; it registers every file it reads.
        expected: (split, language) -> published numbers of captions and images, None where not sure; or a function of
            the options that returns them.
        notes: what an evaluation on it must know.
        folds: split -> images per fold.
        skippable: splits in which captions may be left out (--skip-budget).
        own_images: every caption has an image of its own, of which none need be remembered.
    """

    name: str | Callable[[Options], str]
    add_options: Callable[[argparse.ArgumentParser], None]
    read: Callable[[Options, Sources], Iterator[Caption]]
    expected: Counts | Callable[[Options], Counts] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    folds: Mapping[str, int] = field(default_factory=dict)
    skippable: frozenset[str] = frozenset({TRAIN})
    own_images: bool = False


def start_parser(doc: str | None, script: str) -> argparse.ArgumentParser:
    """A parser with the options of all scripts."""
    parser = argparse.ArgumentParser(
        prog=script, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="directory to write")
    parser.add_argument(
        "--expect-counts", choices=("yes", "no"), default="yes", help="refuse other counts than the published (yes)"
    )
    parser.add_argument(
        "--checksums", type=Path, metavar="FILE", help="hashes of the sources, as sha256sum writes them"
    )
    return parser


def guarded(script: str, work: Callable[[], str]) -> int:
    """Do the work and print its last word; 0, or 2 after one sentence when something cannot be used."""
    try:
        print(work())
    except (ValueError, OSError) as error:
        print(f"{script}: {error}", file=sys.stderr)
        return 2
    return 0


def run(corpus: Corpus, doc: str | None, script: str, argv: Sequence[str] | None = None) -> int:
    """Run the script of a corpus of captions; returns the exit status."""
    parser = start_parser(doc, script)
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of the images: then each must be there")
    if corpus.skippable:
        splits = ", ".join(sorted(corpus.skippable))
        parser.add_argument(
            "--skip-budget",
            type=int,
            default=0,
            metavar="N",
            help=f"captions of {splits} that may be left out, being empty or without image (0)",
        )
    corpus.add_options(parser)
    options = parser.parse_args(argv)
    return guarded(script, lambda: write_corpus(corpus, options, script))


def write_corpus(corpus: Corpus, options: Options, script: str) -> str:
    """Read and write everything; returns what to tell the user."""
    sources = Sources(options.checksums)
    root = None if options.images is None else existing(options.images)
    name = corpus.name(options) if callable(corpus.name) else corpus.name
    with Output(options.output, name) as output:
        images = ImageFolder(root, remember=not corpus.own_images)
        writer = CaptionWriter(output, images, getattr(options, "skip_budget", 0), corpus.skippable)
        writer.write(corpus.read(options, sources))
        if options.expect_counts == "yes":
            writer.check(corpus.expected(options) if callable(corpus.expected) else corpus.expected)
        folds = {split: writer.write_folds(split, size) for split, size in corpus.folds.items()}
        folds = {split: fold for split, fold in folds.items() if fold}
        output.finish(facts(corpus, writer, sources, folds, script), sources.paths)
    return summary(options.output, writer)


def facts(
    corpus: Corpus, writer: CaptionWriter, sources: Sources, folds: Mapping[str, Any], script: str
) -> dict[str, Any]:
    """The manifest, but for the name."""
    return {
        "script": f"preprocess/{script}",
        "sources": sources.described(),
        "images": {"list": IMAGES, "count": writer.image_count, "checked": writer.images.root is not None},
        "splits": writer.splits(),
        "folds": folds,
        "left_out": {reason: [count, writer.examples[reason]] for reason, count in writer.left_out.items()},
        "notes": list(corpus.notes),
    }


def summary(folder: Path, writer: CaptionWriter) -> str:
    """Counts, one line per split and language."""
    lines = [f"{folder}: {writer.image_count} images"]
    for split, languages in writer.splits().items():
        lines += [
            f"  {split}.{lang}: {it['lines']} captions of {it['images']} images" for lang, it in languages.items()
        ]
    lines += [
        f"  left out, {reason}: {count}; first {writer.examples[reason]}" for reason, count in writer.left_out.items()
    ]
    return "\n".join(lines)
