"""Translations in files, scored against references: plain lines, or what `fairseq-generate` prints."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mclip_fairseq.evaluation.metrics.languages import average_languages
from mclip_fairseq.evaluation.metrics.translation import translation_scores
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import file_sha256, read_lines
from mclip_fairseq.storage.provenance import provenance, shareable

# Lines of fairseq-generate: detokenised hypotheses, number, score, text.
GENERATED = re.compile(r"D-(\d+)\t[^\t]*\t(.*)")
DIGITS = 18  # of a line number, more than any set has


def read_hypotheses(path: Path) -> list[str]:
    """Translations in the order of their sources: plain lines, or what `fairseq-generate` printed.

    Raises:
        UserError: a line number is missing or appears twice.
    """
    lines = read_lines(path)
    generated = [match for match in map(GENERATED.fullmatch, lines) if match]
    if not generated:
        return lines
    numbered = {int(match[1]) if len(match[1]) <= DIGITS else -1: match[2] for match in generated}
    if len(numbered) != len(generated) or sorted(numbered) != list(range(len(generated))):
        raise UserError(
            f"{path}: its D- lines are not numbered 0 to {len(generated) - 1}, each once; generate the whole set with "
            "--nbest 1"
        )
    return [numbered[number] for number in range(len(numbered))]


def read_translations(hypotheses: Path, references: Path) -> tuple[list[str], list[str]]:
    """Translations and the reference of each.

    Raises:
        UserError: their numbers differ, or the files are empty.
    """
    translations, expected = read_hypotheses(hypotheses), read_lines(references)
    if len(translations) != len(expected) or not expected:
        raise UserError(
            f"{hypotheses}: {len(translations)} translations with {len(expected)} references in {references}; give one "
            "reference per translation, at least one"
        )
    return translations, expected


def translation_report(
    hypotheses: Mapping[str, Path], references: Mapping[str, Path], command: Sequence[str]
) -> dict[str, Any]:
    """BLEU and chrF of every language, as a report.

    Args:
        hypotheses: language or direction -> file, see `read_hypotheses`.
        references: language or direction -> file, a line per translation.
        command: the command line.

    Raises:
        UserError: the languages differ, a file cannot be used, or sacrebleu is missing.
    """
    if hypotheses.keys() != references.keys():
        raise UserError(
            f"--hypotheses are given for {', '.join(hypotheses)} and --references for {', '.join(references)}; both "
            "must name the same languages"
        )
    results = {
        language: translation_scores(*read_translations(path, references[language]), language)
        for language, path in hypotheses.items()
    }
    signatures = {language: scores.pop("signatures") for language, scores in results.items()}
    files = {"hypotheses": hypotheses, "references": references}
    return {
        "name": "translation",
        **provenance(command),
        "kind": "translation",
        "headline": "bleu",
        "data": {
            language: {
                what: {"path": shareable(of[language]), "sha256": file_sha256(of[language])}
                for what, of in files.items()
            }
            for language in results
        },
        "results": results,
        "average": average_languages(results),
        "signatures": signatures,
        "notes": [f"{language}: {', '.join(signed.values())}" for language, signed in signatures.items()],
    }
