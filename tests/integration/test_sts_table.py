"""The published table of sentence similarity: from the organisers' files to SentEval's two averages."""

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

from mclip_fairseq.cli.evaluate import main as evaluate
from mclip_fairseq.data.tokens import load_dictionary
from mclip_fairseq.models.xlmr_encoder import XLMREncoder, xlmr_args
from tests.tiny_data import run, sentences, write

# Set -> scores of its pairs; None was not judged.
SETS: dict[str, list[float | None]] = {
    "MSRpar": [1.0, 2.5, None, 4.0, 0.5],
    "MSRvid": [5.0, 4.5, 0.0, 1.0, 2.0, 3.5, 3.0, 0.2],
}
TEST = [3.0, 1.0, 4.8, 2.2, 0.0, 5.0]


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """STS 2012, STS-B and SICK-R of a few pairs, through preprocess/sts.py."""
    english = sentences("en")
    pairs = [(english[number], english[(7 * number + 3) % 120]) for number in range(40)]
    for name, scores in SETS.items():
        folder = tmp_path / "years" / "STS2012-test"
        write(folder / f"STS.input.{name}.txt", ["\t".join(pairs[number]) for number in range(len(scores))])
        write(folder / f"STS.gs.{name}.txt", ["" if score is None else str(score) for score in scores])
    for part in ("train", "dev", "test"):
        rows = [f"main\tfile\t2017\t{n}\t{score}\t" + "\t".join(pairs[n + 10]) for n, score in enumerate(TEST)]
        write(tmp_path / "stsb" / f"sts-{part}.csv", rows)
    rows = ["pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment"]
    rows += [f"{n}\t" + "\t".join(pairs[n + 20]) + f"\t{1 + 0.7 * score}\tNEUTRAL" for n, score in enumerate(TEST)]
    write(tmp_path / "sick" / "SICK_test_annotated.txt", rows)
    what = ("--sts-years", tmp_path / "years", "--stsb", tmp_path / "stsb", "--sick", tmp_path / "sick")
    run("sts", *what, "--expect-counts", "no", "--output", tmp_path / "sets")
    return tmp_path / "sets"


def test_the_two_averages_of_senteval(sets: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    """Each set of a year counts the same (mean), or each pair does (wmean); then each task counts the same."""
    archive = tmp_path / "xlmr"
    archive.mkdir()
    for file in (tiny_corpus / "tokenizer").iterdir():
        (archive / file.name).write_bytes(file.read_bytes())
    sizes = Namespace(encoder_layers=1, encoder_embed_dim=32, encoder_ffn_embed_dim=64, encoder_attention_heads=4)
    sizes.encoder_max_positions, sizes.dropout, sizes.attention_dropout = 128, 0.1, 0.1
    torch.save(XLMREncoder(xlmr_args(sizes), load_dictionary(archive)).checkpoint(), archive / "model.pt")
    command = [str(sets), "--model", str(archive), "--device", "cpu", "--output", str(tmp_path / "report")]
    command.append("--published")
    assert evaluate(command) == 0
    file = next((tmp_path / "report").rglob("report.json"))
    report = json.loads(file.read_text(encoding="utf-8"))
    results, average = report["results"], report["average"]
    for metric in ("pearson", "spearman"):
        year = [results[f"sts12.test.{name}"][metric] for name in SETS]
        mean, weighted = np.mean(year), np.average(year, weights=[4, 8])  # one pair of MSRpar has no score
        others = [results[f"{name}.test.en"][metric] for name in ("stsb", "sick")]
        assert average["sts12 mean"][metric] == pytest.approx(mean)
        assert average["sts12 wmean"][metric] == pytest.approx(weighted)
        assert average["mean"][metric] == pytest.approx(np.mean([mean, *others]))
        assert average["wmean"][metric] == pytest.approx(np.mean([weighted, *others]))
    assert "| sts12 wmean" in file.with_name("report.md").read_text(encoding="utf-8")
    pearson = (tmp_path / "report" / "comparison.md").read_text(encoding="utf-8").rpartition("STS, pearson")[2]
    rows = {line.split("|")[1].strip(): line.replace("|", " ").split() for line in pearson.splitlines() if "|" in line}
    own = [f"{results[f'{name}.test.en']['pearson']:.1f}" for name in ("stsb", "sick")]
    assert rows["model"] == ["model", "STS-B", "SICK-R", "average"]
    assert next(row for row in rows.values() if row[1:] == ["¹", *own, "–"]), "STS 2012 is not whole: no average"
    assert "\n¹ Measured on a part of the published set.\n" in pearson
    assert rows["BERT-Distil-CT"] == ["BERT-Distil-CT", "78.6", "–", "75.1"]
