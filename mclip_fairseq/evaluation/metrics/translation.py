"""BLEU and chrF of translations, by sacrebleu, with the signatures that make them comparable."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sacrebleu.metrics import BLEU, CHRF

from mclip_fairseq.evaluation.metrics.languages import average_languages
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import file_sha256, read_lines
from mclip_fairseq.storage.provenance import provenance

# Lines of fairseq-generate: detokenised hypotheses, number, score, text.
GENERATED = re.compile(r"D-(\d+)\t[^\t]*\t(.*)")
# sacrebleu's own tokenisation of languages that write no spaces between words.
TOKENISERS = {"zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab"}
CHARACTERS = "char"
DIGITS = 18  # of a line number, more than any set has


def read_hypotheses(path: Path) -> list[str]:
    """Translations in the order of their sources: plain lines, or what `fairseq-generate` printed.

    Raises:
        UserError: numbers that are missing or there twice.
    """
    lines = read_lines(path)
    found = [match for match in map(GENERATED.fullmatch, lines) if match]
    if not found:
        return lines
    numbered = {int(match[1]) if len(match[1]) <= DIGITS else -1: match[2] for match in found}
    if len(numbered) != len(found) or sorted(numbered) != list(range(len(found))):
        raise UserError(
            f"{path}: its D- lines are not numbered 0 to {len(found) - 1}, each once; generate the whole set, one best."
        )
    return [numbered[number] for number in range(len(numbered))]


def translation_scores(hypotheses: Sequence[str], references: Sequence[str], language: str) -> dict[str, Any]:
    """Corpus BLEU and chrF2.

    Args:
        hypotheses: translations.
        references: one each.
        language: of both, or the direction (`en-zh`); decides how BLEU tokenises (Chinese by characters, Japanese and
            Korean by characters where their analysers are not installed; the signature says which).

    Returns:
        ``bleu`` and ``chrf`` from 0 to 100, and their ``signatures``.

    Raises:
        UserError: another number of references, or none.
    """
    if len(hypotheses) != len(references) or not references:
        raise UserError(f"{len(hypotheses)} translations with {len(references)} references: there must be as many.")
    bleu, chrf = bleu_for(language), CHRF()
    scores = {"bleu": bleu.corpus_score(hypotheses, [references]).score}
    scores["chrf"] = chrf.corpus_score(hypotheses, [references]).score
    signatures = {"bleu": str(bleu.get_signature()), "chrf": str(chrf.get_signature())}
    return {**scores, "signatures": signatures}


def translation_report(
    hypotheses: Mapping[str, Path], references: Mapping[str, Path], command: Sequence[str]
) -> dict[str, Any]:
    """BLEU and chrF of every language, as a report.

    Args:
        hypotheses: language or direction -> file, see `read_hypotheses`.
        references: language or direction -> file, a line per translation.
        command: what the user typed.

    Raises:
        UserError: the languages differ, or as `translation_scores`.
    """
    if hypotheses.keys() != references.keys():
        raise UserError(
            f"--hypotheses are given for {', '.join(hypotheses)} and --references for {', '.join(references)}: both "
            "must name the same languages."
        )
    results = {
        language: translation_scores(read_hypotheses(path), read_lines(references[language]), language)
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
                what: {"path": str(of[language]), "sha256": file_sha256(of[language])} for what, of in files.items()
            }
            for language in results
        },
        "results": results,
        "average": average_languages(results),
        "signatures": signatures,
        "notes": [f"{language}: {', '.join(signed.values())}" for language, signed in signatures.items()],
    }


def bleu_for(language: str) -> BLEU:
    """Sacrebleu's BLEU with the tokeniser of a language, or of the second one of a direction (`en-zh`)."""
    name = TOKENISERS.get(language.rpartition("-")[2])
    if name is None:
        return BLEU()
    try:
        return BLEU(tokenize=name)
    except (ImportError, RuntimeError):  # the analyser is not installed
        return BLEU(tokenize=CHARACTERS)
