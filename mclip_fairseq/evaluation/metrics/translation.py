"""BLEU and chrF of translations, by sacrebleu, with the signatures that make them comparable (Post, WMT 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mclip_fairseq.storage.extras import import_extra

if TYPE_CHECKING:
    from sacrebleu.metrics import BLEU

# sacrebleu's own tokenisation of languages that write no spaces between words.
TOKENISERS = {"zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab"}
CHARACTERS = "char"


def translation_scores(hypotheses: Sequence[str], references: Sequence[str], language: str) -> dict[str, Any]:
    """Corpus BLEU and chrF2.

    Args:
        hypotheses: translations, at least one.
        references: one each.
        language: of both, or the direction (`en-zh`); decides how BLEU tokenises (Chinese by characters, Japanese and
            Korean by characters where their analysers are not installed; the signature says which).

    Returns:
        `bleu` and `chrf` from 0 to 100, and their `signatures`.

    Raises:
        UserError: sacrebleu is missing.
    """
    bleu, chrf = bleu_for(language), import_extra("sacrebleu.metrics", "evaluate").CHRF()
    return {
        "bleu": bleu.corpus_score(hypotheses, [references]).score,
        "chrf": chrf.corpus_score(hypotheses, [references]).score,
        "signatures": {"bleu": str(bleu.get_signature()), "chrf": str(chrf.get_signature())},
    }


def bleu_for(language: str) -> BLEU:
    """Sacrebleu's BLEU with the tokeniser of a language, or of the target language of a direction (`en-zh`)."""
    metrics = import_extra("sacrebleu.metrics", "evaluate")
    name = TOKENISERS.get(language.rpartition("-")[2])
    if name is None:
        return metrics.BLEU()
    try:
        return metrics.BLEU(tokenize=name)
    except (ImportError, RuntimeError):  # the analyser is not installed
        return metrics.BLEU(tokenize=CHARACTERS)
