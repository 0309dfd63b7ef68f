"""The command line that all caption scripts share, from the options to the manifest."""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from corpora.captions import TRAIN, Caption, CaptionWriter, Counts, Skipping
from corpora.few_shots import only_few_shots
from corpora.images import ImageFolder
from corpora.output import Output
from corpora.sources import Sources, check_folder
from mclip_fairseq.cli.main import Parser, run_main
from mclip_fairseq.storage.errors import UserError

Options = argparse.Namespace


@dataclass(frozen=True)
class Corpus:
    """A dataset of captions.

    Attributes:
        name: as in its paper, or a function of the options if they choose between variants with different numbers.
        add_options: adds the options that name the source files.
        read: yields the captions, and registers every file it reads.
        expected: (split, language) -> published numbers of captions and images, None if unsure; or a function of the
            options that returns them.
        notes: what an evaluation on the set must know.
        folds: split -> images per fold.
        skippable: splits in which captions may be left out (--skip-budget).
        known_empty: (language, image) of captions that the published files have empty.
        own_images: every caption has its own image, so images need not be remembered.
    """

    name: str | Callable[[Options], str]
    add_options: Callable[[argparse.ArgumentParser], None]
    read: Callable[[Options, Sources], Iterator[Caption]]
    expected: Counts | Callable[[Options], Counts] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    folds: Mapping[str, int] = field(default_factory=dict)
    skippable: frozenset[str] = frozenset({TRAIN})
    known_empty: frozenset[tuple[str, str]] = frozenset()
    own_images: bool = False


def start_parser(doc: str | None, script: str) -> argparse.ArgumentParser:
    """A parser with the options of all dataset scripts."""
    parser = Parser(
        prog=script, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="directory to write")
    parser.add_argument(
        "--expect-counts",
        choices=("yes", "no"),
        default="yes",
        help="stop if the numbers of captions and images differ from the published ones (default: yes)",
    )
    parser.add_argument(
        "--checksums", type=Path, metavar="FILE", help="expected hashes of the sources, in the format of sha256sum"
    )
    return parser


def run_corpus(corpus: Corpus, doc: str | None, script: str, argv: Sequence[str] | None = None) -> int:
    """Run the script of a dataset of captions; returns the exit status."""
    parser = start_parser(doc, script)
    parser.add_argument("--images", type=Path, metavar="DIR", help="image folder; then every image must exist")
    parser.add_argument(
        "--known-empty",
        nargs="+",
        default=[],
        metavar="LANG:IMAGE",
        help="captions that the published file has empty: leave them out and list them in the manifest",
    )
    if corpus.skippable:
        splits = ", ".join(sorted(corpus.skippable))
        parser.add_argument(
            "--skip-budget",
            type=int,
            default=0,
            metavar="N",
            help=(
                f"how many captions of {splits} may be left out because they are empty or lack their image (default: 0)"
            ),
        )
    if TRAIN in corpus.skippable:
        parser.add_argument(
            "--few-shot-ids",
            type=Path,
            metavar="FILE",
            help="write only the training captions of the images that FILE names, one id a line",
        )
    corpus.add_options(parser)
    options = parser.parse_args(argv)
    return run_main(script, lambda: print(write_corpus(corpus, options, script)))


def write_corpus(corpus: Corpus, options: Options, script: str) -> str:
    """Read and write everything; returns a summary for the user."""
    sources = Sources(options.checksums)
    root = None if options.images is None else check_folder(options.images)
    name = corpus.name(options) if callable(corpus.name) else corpus.name
    known_empty = corpus.known_empty | parse_known_empty(options.known_empty)
    skipping = Skipping(getattr(options, "skip_budget", 0), corpus.skippable, known_empty)
    with Output(options.output, name) as output:
        writer = CaptionWriter(output, ImageFolder(root, remember=not corpus.own_images), skipping)
        captions = corpus.read(options, sources)
        few = getattr(options, "few_shot_ids", None)
        writer.write(captions if few is None else only_few_shots(captions, sources.file(few)))
        if options.expect_counts == "yes":
            expected = corpus.expected(options) if callable(corpus.expected) else corpus.expected
            kept = {group: count for group, count in expected.items() if few is None or group[0] != TRAIN}
            writer.check_counts(kept)
        folds = {split: writer.write_folds(split, size) for split, size in corpus.folds.items()}
        facts = {"script": f"preprocess/{script}", "sources": sources.described(), **writer.facts()}
        facts |= {"folds": {split: fold for split, fold in folds.items() if fold}, "notes": list(corpus.notes)}
        output.finish(facts, sources.paths)
    return writer.summary()


def parse_known_empty(names: Sequence[str]) -> frozenset[tuple[str, str]]:
    """(language, image) of `LANG:IMAGE`.

    Raises:
        UserError: a name has a different form.
    """
    pairs = {name: name.partition(":") for name in names}
    for name, (language, _, image) in pairs.items():
        if not (language and image):
            raise UserError(f"--known-empty {name}: write it as LANG:IMAGE, such as el:wit-test_6139")
    return frozenset((language, image) for language, _, image in pairs.values())
