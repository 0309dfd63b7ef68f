"""BLEU and chrF: sacrebleu's own numbers, through the command line, from plain files and from fairseq-generate's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sacrebleu

from mclip_fairseq.cli.evaluate import main
from mclip_fairseq.evaluation.benchmarks.translation import read_hypotheses
from mclip_fairseq.evaluation.metrics.translation import translation_scores

REFERENCES = ["Ein Hund läuft über den Strand .", "Zwei Frauen lachen laut im Park ."]
HYPOTHESES = ["Ein Hund läuft am Strand .", "Zwei Frauen lachen laut im Park ."]


def test_scores_are_those_of_sacrebleu() -> None:
    scores = translation_scores(HYPOTHESES, REFERENCES, "de")
    assert scores["bleu"] == sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score
    assert scores["chrf"] == sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES]).score
    assert "tok:13a" in scores["signatures"]["bleu"]
    assert translation_scores(REFERENCES, REFERENCES, "de")["bleu"] == pytest.approx(100)
    # languages without spaces between words have tokenisers of their own
    assert "tok:zh" in translation_scores(["狗在海滩上跑"], ["狗在海滩上走"], "zh")["signatures"]["bleu"]
    assert "tok:zh" in translation_scores(["狗在海滩上跑"], ["狗在海滩上走"], "en-zh")["signatures"]["bleu"]
    assert translation_scores(["犬が浜辺を走る"], ["犬が浜辺を歩く"], "ja")["bleu"] > 0


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ref.de").write_text("\n".join(REFERENCES) + "\n", encoding="utf-8")
    lines = [
        "| Generate test with beam=5",
        f"S-1\tx\nD-1\t-0.5\t{HYPOTHESES[1]}",
        f"H-0\t-1\t▁Ein\nD-0\t-1\t{HYPOTHESES[0]}",
    ]
    (tmp_path / "generate-test.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert read_hypotheses(tmp_path / "generate-test.txt") == HYPOTHESES
    command = ["--hypotheses", f"de={tmp_path / 'generate-test.txt'}", "--references", f"de={tmp_path / 'ref.de'}"]
    assert main([*command, "--output", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["results"]["de"]["bleu"] == sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score
    assert report["signatures"]["de"]["chrf"] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("hypotheses", "arguments", "sentence"),
    [
        ("D-0\t0\ta\nD-0\t0\ta\n", [], "not numbered 0 to 1, each once"),
        ("D-" + "9" * 5000 + "\t0\ta\n", [], "not numbered 0 to 0, each once"),
        ("a\n", [], "1 translations with 2 references"),
        ("a\nb\n", ["--model", "m"], "are scored by themselves"),
    ],
)
def test_what_cannot_be_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], hypotheses: str, arguments: list[str], sentence: str
) -> None:
    (tmp_path / "h").write_text(hypotheses)
    (tmp_path / "r").write_text("a\nb\n")
    assert main([*arguments, "--hypotheses", f"de={tmp_path / 'h'}", "--references", f"de={tmp_path / 'r'}"]) == 2
    assert sentence in capsys.readouterr().err
