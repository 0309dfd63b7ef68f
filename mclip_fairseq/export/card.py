"""The model card of an exported directory: `README.md` with the metadata that the Hub reads."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mclip_fairseq
from mclip_fairseq.evaluation.reports.report import format_markdown
from mclip_fairseq.formats.towers import TrainedTower
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import expecting, read_json

CITATION = """@inproceedings{chen-etal-2023-mclip,
  title = {{mCLIP}: Multilingual {CLIP} via Cross-lingual Transfer},
  author = {Chen, Guanhua and Hou, Lu and Chen, Yun and Dai, Wenliang and Shang, Lifeng and Jiang, Xin and Liu, Qun
            and Pan, Jia and Wang, Wenping},
  booktitle = {Proceedings of ACL},
  year = {2023},
}"""


def read_report(file: Path) -> dict[str, Any]:
    """A report of `mclip-evaluate`.

    Raises:
        UserError: it cannot be read, or is something else.
    """
    report = read_json(file)
    if not isinstance(report, dict) or not {"results", "protocol", "command", "model"} <= set(report):
        raise UserError(f"{file}: is no report.json of mclip-evaluate")
    with expecting(file, "a report.json of mclip-evaluate"):
        report["model"].get("identity"), measured(report)
    return report


def measured(report: Mapping[str, Any]) -> list[str]:
    """The paragraphs of a report in a card."""
    return [f"### {', '.join(report['results'])}", "", format_markdown(report)]


def model_card(
    tower: TrainedTower, name: str, licence: str, data: Sequence[str], reports: Sequence[Mapping[str, Any]]
) -> str:
    """Write the card.

    Args:
        tower: the model.
        name: what it is called.
        licence: identifier as the Hub knows it, such as `mit`; empty where nobody has said.
        data: what it was trained on, one sentence a set.
        reports: of `mclip-evaluate` on this model.

    Raises:
        UserError: a report is of another model.
    """
    head = {
        "library_name": "mclip_fairseq",
        "language": tower.languages,
        "license": licence or "unknown",
        "pipeline_tag": "zero-shot-image-classification",
        "tags": ["clip", "multilingual", "image-text-retrieval"],
    }
    for report in reports:
        if report["model"].get("identity") != tower.identity:
            raise UserError(
                f"the report of {report['command']!r} is of another model ({report['model'].get('identity')}); "
                "evaluate the model that is exported"
            )
    teacher = tower.identity["teacher"]
    text = tower.identity.get("text_encoder") or {}
    lines = [
        "---",
        *(f"{key}: {json.dumps(value)}" for key, value in head.items()),  # JSON is YAML
        "---",
        "",
        f"# {name}",
        "",
        f"Images and texts of {len(tower.languages)} languages ({', '.join(tower.languages)}) in one space of "
        f"{tower.dim} dimensions. Written by mclip_fairseq {mclip_fairseq.__version__}.",
        "",
        "```python",
        "from mclip_fairseq import MultilingualCLIP",
        "",
        f'model = MultilingualCLIP.from_pretrained("{name}")',
        'scores = model.encode_text(["ein Hund am Strand"]) @ model.encode_image(["photo.jpg"]).T',
        "```",
        "",
        "## Parts",
        "",
        f"- images: {teacher.get('name', 'unknown')} ({teacher.get('architecture', 'unknown')}, revision "
        f"{teacher.get('revision') or 'unknown'}, weights SHA-256 `{teacher.get('sha256', 'unknown')}`)",
        f"- text: XLM-R of {tower.module.text_encoder.dim} dimensions, weights SHA-256 "
        f"`{text.get('sha256', 'trained')}`; texts are cut to {tower.tokenizer.max_tokens} tokens",
        "",
        "## Training data",
        "",
        *([f"- {sentence}" for sentence in data] or ["Not stated by whoever exported it."]),
        "",
        "## Measured",
        "",
    ]
    for report in reports:
        lines += measured(report)
    lines += [] if reports else ["Nothing was measured when this was exported.", ""]
    lines += ["## Licence and citation", "", f"Licence: {licence or 'not stated'}. The parts keep theirs.", ""]
    return "\n".join([*lines, "```", CITATION, "```", ""])
