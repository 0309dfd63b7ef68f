"""The model card of an exported directory: `README.md` with the metadata that the Hub reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mclip_fairseq
from mclip_fairseq.evaluation.metrics.languages import COUNTS
from mclip_fairseq.evaluation.reports.comparison import PARTIAL
from mclip_fairseq.evaluation.reports.report import format_markdown
from mclip_fairseq.formats.towers import Tower
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.fields import check_fields, has_type
from mclip_fairseq.storage.files import read_json

REMEDY = "give the report.json of mclip-evaluate"
GALLERIES = ("captioned", "all")
AVERAGES = ("all", "without_en")


@dataclass(frozen=True)
class CardFacts:
    """What the author of a model says about it.

    Attributes:
        name: of the model.
        licence: identifier as the Hub knows it, such as `mit`; empty if nobody has said.
        data: what the model was trained on, one sentence per dataset.
        reports: of `mclip-evaluate` on this model, as `read_report` returns them.
    """

    name: str
    licence: str = ""
    data: Sequence[str] = ()
    reports: Sequence[Mapping[str, Any]] = ()


def read_report(file: Path) -> dict[str, Any]:
    """Read a report of `mclip-evaluate`.

    Raises:
        UserError: it cannot be read, or is something else.
    """
    report: dict[str, Any] = read_json(file)
    check_report(file, report)
    return report


def check_report(file: Path, report: Any) -> None:
    """Check that a report has everything that its table and notes show.

    Raises:
        UserError: naming the field.
    """
    check_fields(
        file,
        report,
        {
            **{"results": dict, "average": dict, "model": dict, "protocol": object, "command": object},
            **{"gallery": str | None, "notes": list | None, "mean_rank_variance": dict | None, "partial": dict | None},
        },
        REMEDY,
    )
    rows = {**report["results"], **{f"average {name}": row for name, row in report["average"].items()}}
    first = next(iter(report["results"].values()), None)
    if not isinstance(first, dict):
        raise UserError(f"{file}: has no results; {REMEDY}")
    columns = dict.fromkeys((name for name in first if name not in COUNTS), float)
    for name, metrics in rows.items():
        check_fields(f"{file}: {name}", metrics, {**columns, "ties": float | None}, REMEDY)
    spread = report.get("mean_rank_variance") or {}
    for name in ("variance", "std") if spread else ():
        check_fields(f"{file}: mean_rank_variance: {name}", spread.get(name), {"t2i": float, "i2t": float}, REMEDY)
    if (
        not set(report["average"]) <= set(AVERAGES)
        or report.get("gallery", GALLERIES[0]) not in GALLERIES
        or not all(has_type(note, str) for note in report.get("notes") or ())
    ):
        raise UserError(f"{file}: has an average, a gallery or a note that mclip-evaluate does not write; {REMEDY}")


def model_card(tower: Tower, facts: CardFacts) -> str:
    """Write the card.

    Args:
        tower: the model.
        facts: what its author says.

    Raises:
        UserError: a report is of a different model.
    """
    for report in facts.reports:
        if report["model"].get("identity") != tower.identity:
            raise UserError(
                f"the report of {report['command']!r} is of a different model ({report['model'].get('identity')}); "
                "evaluate the model that is exported"
            )
    sections = {
        "": introduction(tower, facts.name),
        "Parts": [f"- {part}" for part in model_parts(tower)],
        "Training data": [f"- {sentence}" for sentence in facts.data] or ["Not stated by the author of this card."],
        "Measured": [paragraph for report in facts.reports for paragraph in measured(report)]
        or ["Nothing was measured when this was exported."],
        "Licence and citation": [
            f"Licence: {facts.licence or 'not stated'}. The parts keep theirs.",
            "",
            "```",
            tower.module.citation,
            "```",
        ],
    }
    lines = metadata(tower, facts)
    for title, section in sections.items():
        lines += [*([f"## {title}", ""] if title else []), *section, ""]
    return "\n".join(lines)


def metadata(tower: Tower, facts: CardFacts) -> list[str]:
    """The head of the card, in YAML, which the Hub reads."""
    head: dict[str, Any] = {
        "library_name": "mclip_fairseq",
        "language": tower.languages,
        "license": facts.licence or "unknown",
        "pipeline_tag": "zero-shot-image-classification",
        "tags": ["clip", "multilingual", "image-text-retrieval"],
    }
    if results := [entry for report in facts.reports for entry in index_entries(report)]:
        head["model-index"] = [{"name": facts.name, "results": results}]
    # JSON is YAML, and escapes what needs it.
    return ["---", *(f"{key}: {json.dumps(value)}" for key, value in head.items()), "---", ""]


def index_entries(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The results of a report as the Hub's `model-index` has them: one entry per row of its table.

    Those of a part of a published set say so, and are not listed under the set's name.

    Args:
        report: as `read_report` returns it.
    """
    kind, part = report.get("kind", "retrieval"), f", {PARTIAL}" if report.get("partial") else ""
    retrieval = {"type": "image-text-retrieval", "name": f"image-text retrieval, {report['protocol']} protocol"}
    dataset = "custom" if part else str(report.get("benchmark") or "custom")
    task = retrieval if kind == "retrieval" else {"type": kind, "name": kind}
    return [
        {
            "task": task,
            "dataset": {"type": dataset, "name": name + part, "args": {"language": name}},
            "metrics": [
                {"type": metric, "name": metric, "value": round(value, 4)}
                for metric, value in row.items()
                if metric not in COUNTS and metric != "ties" and value is not None
            ],
        }
        for name, row in report["results"].items()
    ]


def introduction(tower: Tower, name: str) -> list[str]:
    """Title, one paragraph, and how to use the model."""
    view = "" if tower.reads_any_language else f'.for_language("{tower.languages[-1]}")'
    return [
        f"# {name}",
        "",
        f"Images and texts of {len(tower.languages)} languages ({', '.join(tower.languages)}) in one space of "
        f"{tower.dim} dimensions. Written by mclip_fairseq {mclip_fairseq.__version__}.",
        "",
        "```python",
        "from mclip_fairseq import MultilingualCLIP",
        "",
        f'model = MultilingualCLIP.from_pretrained("{name}"){view}',
        'scores = model.encode_text(["ein Hund am Strand"]) @ model.encode_image(["photo.jpg"]).T',
        "```",
    ]


def measured(report: Mapping[str, Any]) -> list[str]:
    """The paragraphs of a report in a card."""
    return [f"### {', '.join(report['results'])}", "", format_markdown(report)]


def model_parts(tower: Tower) -> list[str]:
    """What the model is made of, one line per part."""
    teacher = tower.identity["teacher"]
    text = tower.identity.get("text_encoder") or {}
    return [
        f"images: {teacher.get('name', 'unknown')} ({teacher.get('architecture', 'unknown')}, revision "
        f"{teacher.get('revision') or 'unknown'}, weights SHA-256 `{teacher.get('sha256', 'unknown')}`)",
        f"text: {tower.module.text_description}, weights SHA-256 "
        f"`{text.get('sha256', 'trained')}`; texts are cut to {tower.max_tokens} tokens",
    ]
