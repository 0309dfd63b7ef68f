"""`mclip-evaluate`: any number of models on any number of benchmarks, as tables, JSON, CSV and pictures."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mclip_fairseq.cli.evaluate_options import (
    DEFAULT_QUERIES,
    NOTHING,
    PROGRAM,
    check_options,
    parser,
)
from mclip_fairseq.cli.main import run_main
from mclip_fairseq.cli.ranks import joined_ranks
from mclip_fairseq.evaluation.benchmarks.settings import Settings

# How notes begin that are also warnings: of the scripts of preprocess/ on test data that were seen in training, and of
# captions that name one image.
WARNED = ("Leak", "One image", "The same captions")

if TYPE_CHECKING:
    from mclip_fairseq.encoding.captions import Captions
    from mclip_fairseq.encoding.galleries import Gallery
    from mclip_fairseq.evaluation.benchmarks.base import Benchmark
    from mclip_fairseq.evaluation.runner import Candidate, ReportOutput


def main(argv: Sequence[str] | None = None) -> int:
    """Run `mclip-evaluate`; returns 0, or 2 after one sentence on stderr when something cannot be used."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(arguments)
    run = score_translations if options.hypotheses else evaluate_models
    return run_main(PROGRAM, lambda: run(options, [PROGRAM, *arguments]))


def evaluate_models(options: argparse.Namespace, command: Sequence[str]) -> None:
    """Evaluate the models that options name."""
    check_options(options)
    from mclip_fairseq.evaluation.runner import check_different, evaluate

    check_different("models", options.name or ())
    benchmarks = open_benchmarks(options)
    choices = (options.batch_size, options.protocol, options.gallery, options.captions_per_image, options.rerank)
    settings = Settings(*choices, hub_captions(options), options.hub_scale)
    with joined_ranks() as (first, device):
        options.device = options.device or device
        if first:
            show_warnings(benchmarks)
        else:  # the first process writes for all
            options.output = None
        evaluate(candidates(options), benchmarks, settings, output_of(options, command))


def show_warnings(benchmarks: Sequence[Benchmark]) -> None:
    """Say which notes on the data make numbers doubtful."""
    for note in dict.fromkeys(note for benchmark in benchmarks for note in benchmark.notes if note.startswith(WARNED)):
        print(f"{PROGRAM}: warning: {note}", file=sys.stderr)


def hub_captions(options: argparse.Namespace) -> list[Captions]:
    """The bank that `--hub-captions` and `--hub-ids` name; empty without."""
    from mclip_fairseq.encoding.captions import read_caption_files

    return read_caption_files(options.hub_captions, options.hub_ids) if options.hub_captions else []


def score_translations(options: argparse.Namespace, command: Sequence[str]) -> None:
    """Score the translations that options name with BLEU and chrF."""
    check_options(options)
    from mclip_fairseq.encoding.captions import files_by_language
    from mclip_fairseq.evaluation.benchmarks.translation import translation_report
    from mclip_fairseq.evaluation.reports.report import format_notes, format_table, write_report

    hypotheses = files_by_language(options.hypotheses, "--hypotheses")
    references = files_by_language(options.references, "--references")
    report = translation_report(hypotheses, references, command)
    print(f"{format_table(report)}\n\n{format_notes(report)}")
    if options.output is not None:
        print("Written: " + ", ".join(map(str, write_report(report, options.output))))


def output_of(options: argparse.Namespace, command: Sequence[str]) -> ReportOutput:
    """What is written, and where: one model on data without a name needs no comparison."""
    from mclip_fairseq.evaluation.runner import Pictures, ReportOutput

    pictures = Pictures(DEFAULT_QUERIES if options.queries is None else options.queries, options.font)
    compare = len(options.model) > 1 or bool(options.benchmark)
    return ReportOutput(options.output, pictures, command, compare, options.published)


def open_benchmarks(options: argparse.Namespace) -> list[Benchmark]:
    """The benchmarks that the positional arguments or `--captions` name."""
    if not options.benchmark:
        from mclip_fairseq.encoding.captions import read_caption_files
        from mclip_fairseq.evaluation.benchmarks.retrieval import RetrievalBenchmark

        captions = read_caption_files(options.captions, options.ids)
        return [RetrievalBenchmark("captions", captions, open_galleries(options))]
    from mclip_fairseq.evaluation.benchmarks.open import Places, open_benchmark

    roots = [None if root == Path(NOTHING) else root for root in options.images_root or [None]]
    roots = roots * len(options.benchmark) if len(roots) == 1 else roots
    return [
        open_benchmark(source, Places(root, options.features, options.languages, options.hash_images))
        for source, root in zip(options.benchmark, roots, strict=True)
    ]


def open_galleries(options: argparse.Namespace) -> list[Gallery]:
    """The galleries that `--features` or `--images` names."""
    from mclip_fairseq.encoding.galleries import FeatureGallery, ImageGallery
    from mclip_fairseq.storage.features import FeatureStore

    if options.images is not None:
        gallery = ImageGallery(options.images, hidden=options.hidden, hashed=options.hash_images)
        for note in [*gallery.listing.skipped(options.images), *gallery.listing.notes(options.images)]:
            print(f"{PROGRAM}: {note}", file=sys.stderr)
        return [gallery]
    root = options.images_root[0] if options.images_root else None
    return [FeatureGallery(FeatureStore.open(path), path, root) for path in options.features]


def candidates(options: argparse.Namespace) -> Iterator[Candidate]:
    """The models that `--model` names, each loaded when it is its turn."""
    from mclip_fairseq.encoding.cache import CachedEncoder
    from mclip_fairseq.evaluation.costs import measure_costs
    from mclip_fairseq.evaluation.runner import Candidate
    from mclip_fairseq.storage.provenance import shareable

    file_names = [Path(model).name for model in options.model]
    for number, path in enumerate(options.model):
        model = load_model(options, number)
        # Checkpoints are often called alike: their paths tell them apart.
        own_name = shareable(path) if file_names.count(file_names[number]) > 1 else str(getattr(model, "name", path))
        facts = {"path": shareable(path), "identity": getattr(model, "identity", None)}
        facts |= {"device": options.device, "dtype": options.dtype, "batch_size": options.batch_size}
        facts |= {"costs": measure_costs(model)} if options.costs else {}
        encoder = CachedEncoder(model, options.cache, model.fingerprint) if options.cache else model
        yield Candidate(options.name[number] if options.name else own_name, encoder, facts)


def load_model(options: argparse.Namespace, number: int) -> Any:
    """One of `--model`, on the device and in the type asked for."""
    import torch

    from mclip_fairseq.inference import MultilingualCLIP

    dtype = None if options.dtype is None else getattr(torch, options.dtype)
    moved = {
        name: values[number]
        for name, values in (("text_encoder", options.text_encoder), ("teacher", options.teacher))
        if values and values[number] != NOTHING
    }
    model = MultilingualCLIP.from_pretrained(options.model[number], device=options.device, dtype=dtype, **moved)
    model.max_pixels = options.max_pixels
    return model


if __name__ == "__main__":
    sys.exit(main())
