"""One model on one benchmark: a report, made now or found where an earlier call left it."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mclip_fairseq.evaluation.benchmarks.base import Benchmark, Settings
from mclip_fairseq.evaluation.benchmarks.retrieval import Encoded, RetrievalBenchmark, examples_of
from mclip_fairseq.evaluation.reports.comparison import format_comparison, format_csv
from mclip_fairseq.evaluation.reports.report import format_notes, format_table, write_report
from mclip_fairseq.storage.files import expecting, read_json
from mclip_fairseq.storage.provenance import provenance

Report = dict[str, Any]


@dataclass(frozen=True)
class Candidate:
    """A model that is evaluated.

    Attributes:
        name: for tables.
        model: its encoder.
        facts: what a report says of it.
    """

    name: str
    model: Any
    facts: dict[str, Any]


@dataclass(frozen=True)
class Pictures:
    """What is drawn beside a report.

    Attributes:
        queries: rows of `examples.png`; 0 draws none.
        fonts: files to try before the installed ones.
    """

    queries: int
    fonts: Sequence[Path] = ()


def run(
    candidate: Candidate,
    benchmark: Benchmark,
    settings: Settings,
    folder: Path | None,
    pictures: Pictures,
    command: Sequence[str],
) -> Report:
    """Evaluate, print the table and write the files; nothing is done again.

    Args:
        candidate: the model.
        benchmark: the data.
        settings: how.
        folder: where the files go; None writes none.
        pictures: what to draw.
        command: what the user typed, for the report.
    """
    described = benchmark.describe()
    key = None if folder is None else key_of(candidate, benchmark, described, settings, pictures)
    if folder is not None and (found := report_there(folder, key)) is not None:
        print(f"{candidate.name}, {benchmark.name}: {folder / 'report.json'} is there")
        return found | {"name": candidate.name}
    start = time.monotonic()
    encoded, choices = None, {}
    if isinstance(benchmark, RetrievalBenchmark):
        encoded = benchmark.encode(candidate.model, settings)
        measured = benchmark.measure(encoded, settings)
        described = {"captions": described["captions"]}
        described["gallery"] = encoded.gallery.describe() | {"searched": len(encoded.used)}
        choices = {name: value for name, value in asdict(settings).items() if name != "batch_size"}
    else:
        measured = benchmark.evaluate(candidate.model, settings)
    report: Report = {
        "name": candidate.name,
        **provenance(command),
        "benchmark": benchmark.name,
        "kind": benchmark.kind,
        "headline": benchmark.headline,
        "model": candidate.facts,
        **choices,
        "data": described,
        **measured,
        "notes": list(benchmark.notes),
        "seconds": round(time.monotonic() - start, 1),
        "key": key,
    }
    print(f"{candidate.name}\n\n{format_table(report)}\n\n{format_notes(report)}")
    if folder is not None:
        print("Written: " + ", ".join(map(str, write_files(report, encoded, folder, pictures))))
    return report


def key_of(
    candidate: Candidate, benchmark: Benchmark, described: dict[str, Any], settings: Settings, pictures: Pictures
) -> str:
    """SHA-256 of everything that numbers and pictures hang on."""
    stamps = [gallery.stamp() for gallery in benchmark.galleries]
    facts = [candidate.model.fingerprint, benchmark.kind, described, stamps, asdict(settings), asdict(pictures)]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def report_there(folder: Path, key: str | None) -> Report | None:
    """The report of an earlier call, if it is of the same model, data and settings.

    Raises:
        UserError: it is damaged.
    """
    file = folder / "report.json"
    if not file.is_file():
        return None
    report = read_json(file)
    if not isinstance(report, dict) or report.get("key") != key:
        return None
    with expecting(file, "a report of mclip-evaluate, so remove it"):
        format_comparison([report]), format_csv([report])
    return report


def slug(name: str) -> str:
    """A name as a folder has it."""
    return re.sub(r"[^\w.+-]+", "_", name).strip("_.") or "unnamed"


def write_files(report: Report, encoded: Encoded | None, folder: Path, pictures: Pictures) -> list[Path]:
    """Write the pictures, then the report, whose presence says that all is there."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [] if encoded is None else draw(report, encoded, folder, pictures)
    return [*write_report(report, folder), *drawn]


def draw(report: Report, encoded: Encoded, folder: Path, pictures: Pictures) -> list[Path]:
    """Draw recalls and examples."""
    from mclip_fairseq.evaluation.reports.pictures import draw_examples, draw_recalls

    averages = {"average": report["average"]["all"]} if len(report["results"]) > 1 else {}
    drawn = [folder / "recall.png"]
    draw_recalls(report["results"] | averages, drawn[0], title=report["name"])
    if not encoded.gallery.has_pictures:
        print("No examples.png: a feature directory holds no pictures; --images-root says where they are.")
    elif pictures.queries:
        drawn.append(folder / "examples.png")
        draw_examples(examples_of(encoded, pictures.queries), drawn[-1], title=report["name"], fonts=pictures.fonts)
    return drawn
