"""Models on benchmarks: a report for each, measured now or read from an earlier call, and their comparison."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mclip_fairseq.evaluation.benchmarks.base import Benchmark
from mclip_fairseq.evaluation.benchmarks.retrieval import Encoded, RetrievalBenchmark
from mclip_fairseq.evaluation.benchmarks.settings import Settings
from mclip_fairseq.evaluation.published import format_published, missing_from_published, published_beside
from mclip_fairseq.evaluation.reports.comparison import PARTIAL, format_comparison
from mclip_fairseq.evaluation.reports.examples import examples_of
from mclip_fairseq.evaluation.reports.pages import write_comparison
from mclip_fairseq.evaluation.reports.pictures import draw_examples, draw_recalls
from mclip_fairseq.evaluation.reports.report import (
    check_comparable,
    format_costs,
    format_notes,
    format_tables,
    write_report,
)
from mclip_fairseq.losses.gather import objects_of_all_ranks
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.extras import import_extra
from mclip_fairseq.storage.files import read_json
from mclip_fairseq.storage.provenance import provenance

Report = dict[str, Any]


@dataclass(frozen=True)
class Candidate:
    """A model that is evaluated.

    Attributes:
        name: for tables.
        model: its encoder.
        facts: what a report says about it.
    """

    name: str
    model: Any
    facts: dict[str, Any]


@dataclass(frozen=True)
class Pictures:
    """Pictures that go with a report.

    Attributes:
        queries: rows of `examples.png`; 0 draws none.
        fonts: files to try before the installed ones.
    """

    queries: int
    fonts: Sequence[Path] = ()


@dataclass(frozen=True)
class ReportOutput:
    """Where files go, and which are written.

    Attributes:
        folder: of the reports, pictures and comparison; None writes nothing.
        pictures: what to draw.
        command: the command line, for the reports.
        compare: also compare the models, each report in a folder of its own.
        published: include published numbers in the comparison.
    """

    folder: Path | None
    pictures: Pictures
    command: Sequence[str]
    compare: bool = False
    published: bool = False

    def folder_of(self, benchmark: Benchmark, candidate: Candidate) -> Path | None:
        """Where the report of a model on a benchmark goes."""
        if self.folder is None or not self.compare:
            return self.folder
        return self.folder / slug(benchmark.name) / slug(candidate.name)


def evaluate(
    candidates: Iterable[Candidate], benchmarks: Sequence[Benchmark], settings: Settings, output: ReportOutput
) -> list[Report]:
    """Evaluate every model on every benchmark, print tables and write files.

    Args:
        candidates: the models, loaded one after the other.
        benchmarks: the data.
        settings: how they are measured.
        output: where files go, and which.

    Returns:
        the reports, by model and then by benchmark.

    Raises:
        UserError: two models or two benchmarks have one name, a file cannot be used, or matplotlib is missing.
    """
    if output.folder is not None:
        import_extra("matplotlib.figure", "evaluate")  # fail now, not after hours of encoding
    check_different("benchmarks", [benchmark.name for benchmark in benchmarks])
    reports = [
        evaluate_one(candidate, benchmark, settings, output)
        for candidate in _with_different_names(candidates)
        for benchmark in benchmarks
    ]
    if output.compare:
        published = published_beside(reports) if output.published else []
        tables = [format_comparison(reports), format_costs(reports), format_published(reports, published)]
        print("\n\n".join(filter(None, ["", *tables])))
        if output.folder is not None:
            files = write_comparison(reports, published, output.folder, output.command)
            print("\nWritten: " + ", ".join(map(str, files)))
    return reports


def evaluate_one(candidate: Candidate, benchmark: Benchmark, settings: Settings, output: ReportOutput) -> Report:
    """Evaluate one model on one benchmark, print the table and write the files; nothing is measured twice."""
    folder = output.folder_of(benchmark, candidate)
    described = benchmark.describe()
    key, earlier = None, None
    if folder is not None:
        key = report_key(candidate, benchmark, described, settings, output.pictures)
        earlier = read_earlier_report(folder, key)
    earlier = objects_of_all_ranks(earlier)[0]  # the first of several processes knows, and writes
    if earlier is not None:
        print(f"{candidate.name}, {benchmark.name}: {folder}/report.json is up to date")
        costs = {"costs": candidate.facts["costs"]} if "costs" in candidate.facts else {}
        report: Report = dict(earlier) | {"name": candidate.name, "model": (earlier.get("model") or {}) | costs}
        if costs and not output.compare:  # the comparison shows them otherwise
            print(f"\n{format_costs([report])}")
        return report
    start = time.monotonic()
    encoded, choices, notes = None, {}, list(benchmark.notes)
    if isinstance(benchmark, RetrievalBenchmark):
        encoded = benchmark.encode_all(candidate.model, settings)
        measured = benchmark.measure(encoded, settings)
        described = {
            "captions": described["captions"],
            "gallery": encoded.gallery.describe() | {"searched": len(encoded.used)},
        }
        choices = {name: value for name, value in choices_of(settings).items() if name != "batch_size"}
    elif settings.hubs:
        raise UserError(f"{benchmark.name}: is not retrieval; leave out --hub-captions, or evaluate it in another call")
    else:
        measured = benchmark.evaluate(candidate.model, settings)
    partial = missing_from_published(benchmark.name, benchmark.counts())
    if partial:
        choices["partial"] = partial
        lacking = "; ".join(f"{language} has {what}" for language, what in partial.items())
        notes.append(f"A part of the published set, not comparable with published numbers: {lacking}.")
    report = {
        "name": candidate.name,
        **provenance(output.command),
        "benchmark": benchmark.name,
        "kind": benchmark.kind,
        "headline": benchmark.headline,
        "model": candidate.facts,
        **choices,
        "data": described,
        **measured,
        "notes": notes,
        "seconds": round(time.monotonic() - start, 1),
        "key": key,
    }
    parts = [candidate.name, format_tables(report), format_costs([report]), format_notes(report)]
    print("\n\n".join(filter(None, parts)))
    if folder is not None:
        print("Written: " + ", ".join(map(str, write_files(report, encoded, folder, output.pictures))))
    return report


def report_key(
    candidate: Candidate, benchmark: Benchmark, described: dict[str, Any], settings: Settings, pictures: Pictures
) -> str:
    """SHA-256 of everything that numbers and pictures depend on."""
    stamps = [gallery.stamp() for gallery in benchmark.galleries]
    facts = [candidate.model.fingerprint, benchmark.kind, described, stamps, choices_of(settings), asdict(pictures)]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def choices_of(settings: Settings) -> dict[str, Any]:
    """Every choice; re-ranking and hubs only where there are some, so that older reports are recognised."""
    choices = {name: getattr(settings, name) for name in ("batch_size", "protocol", "gallery", "captions")}
    if settings.rerank:
        choices["rerank"] = settings.rerank
    if settings.hubs:
        bank = {each.language: each.describe() for each in settings.hubs}
        choices["hubs"] = {"scale": settings.hub_scale, "bank": bank}
    return choices


def read_earlier_report(folder: Path, key: str) -> Report | None:
    """The report of an earlier call, if it is of the same model, data and settings, and no file of it is missing.

    Raises:
        UserError: it is damaged.
    """
    file = folder / "report.json"
    if not file.is_file():
        return None
    report = read_json(file)
    if not isinstance(report, dict) or report.get("key") != key:
        return None
    drawn = report.get("files")  # earlier versions did not name them
    if isinstance(drawn, list) and not all((folder / str(name)).is_file() for name in ["report.md", *drawn]):
        return None
    return check_comparable(file, report, "remove it to evaluate again")


def check_different(what: str, names: Sequence[str]) -> None:
    """Refuse two names whose reports would share a folder, and whose rows in a table would look the same.

    Raises:
        UserError: naming the second.
    """
    for number, name in enumerate(names):
        if slug(name) in map(slug, names[:number]):
            raise UserError(f"two {what} are called {name!r}; evaluate them in two calls, or give --name for models")


def _with_different_names(candidates: Iterable[Candidate]) -> Iterator[Candidate]:
    """The candidates, each checked against those before it: a model may only be named once it is loaded."""
    names: list[str] = []
    for candidate in candidates:
        names.append(candidate.name)
        check_different("models", names)
        yield candidate


def slug(name: str) -> str:
    """A name as a folder has it."""
    return re.sub(r"[^\w.+-]+", "_", name).strip("_.") or "unnamed"


def write_files(report: Report, encoded: Encoded | None, folder: Path, pictures: Pictures) -> list[Path]:
    """Write the pictures, then the report: where it exists, everything is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [] if encoded is None else draw_pictures(report, encoded, folder, pictures)
    return [*write_report({**report, "files": [file.name for file in drawn]}, folder), *drawn]


def draw_pictures(report: Report, encoded: Encoded, folder: Path, pictures: Pictures) -> list[Path]:
    """Draw recalls and examples."""
    averages = {"average": report["average"]["all"]} if len(report["results"]) > 1 else {}
    files, title = [folder / "recall.png"], report["name"] + (f", {PARTIAL}" if report.get("partial") else "")
    draw_recalls(report["results"] | averages, files[0], title=title)
    if not encoded.gallery.has_pictures:
        print("No examples.png: a feature directory holds no pictures; give --images-root")
    elif pictures.queries:
        files.append(folder / "examples.png")
        draw_examples(examples_of(encoded, pictures.queries), files[-1], title=title, fonts=pictures.fonts)
    return files
