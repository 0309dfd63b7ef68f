"""The translation task through fairseq's own commands."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mclip_fairseq.cli.extract_mte import main as extract_mte
from mclip_fairseq.data.tokenizer import XLMRTokenizer
from mclip_fairseq.storage.checkpoints import load_checkpoint
from mclip_fairseq.storage.pieces import SENTENCEPIECE
from tests.tiny_data import mte_options

Train = Callable[..., str]


def options(corpus: Path, folder: Path, *more: str) -> list[str]:
    """fairseq-train's command line on the tiny corpus."""
    return [
        *mte_options(corpus, folder),
        *("--both-directions", "--contrastive-weight", "2", "--max-tokens", "600"),
        *("--log-format", "json", "--log-interval", "5", *more),
    ]


def json_lines(log: str, logger: str) -> list[dict[str, float]]:
    """The JSON objects that one of fairseq's loggers wrote."""
    lines = [line for line in log.splitlines() if f"| {logger} |" in line and "{" in line]
    return [
        {k: float(v) for k, v in json.loads(line[line.index("{") :]).items() if v not in ("", None)} for line in lines
    ]


@pytest.fixture(scope="module")
def trained(tiny_corpus: Path, run_train: Train, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A model after 8 epochs, and its log."""
    folder = tmp_path_factory.mktemp("mte")
    log = run_train(
        *options(tiny_corpus, folder, "--max-epoch", "8", "--dropout", "0.1", "--sampling-temperature", "5")
    )
    return folder / "checkpoint_last.pt", log


def test_both_losses_fall_and_all_metrics_are_logged(trained: tuple[Path, str]) -> None:
    epochs = json_lines(trained[1], "train")
    assert epochs[-1]["train_nll_loss"] < 0.9 * epochs[0]["train_nll_loss"]
    assert epochs[-1]["train_contrastive_loss"] < epochs[0]["train_contrastive_loss"]
    assert epochs[-1]["train_accuracy"] > epochs[0]["train_accuracy"]
    assert {"train_loss", "train_ppl"} <= epochs[-1].keys()


def test_generate_and_interactive_translate(
    trained: tuple[Path, str],
    tiny_corpus: Path,
    run_in_process: Train,
) -> None:
    plugin = Path(__file__).resolve().parents[2] / "mclip_fairseq"
    common = [
        *(str(tiny_corpus / "mte"), "--user-dir", str(plugin), "--task", "mte", "-s", "en", "-t", "de", "--cpu"),
        *("--path", str(trained[0]), "--beam", "2", "--remove-bpe", "sentencepiece"),
    ]
    log = run_in_process(
        "fairseq-generate", *common, "--gen-subset", "valid", "--scoring", "sacrebleu", "--batch-size", "6"
    )
    hypotheses = [line for line in log.splitlines() if line.startswith("H-")]
    assert sorted(int(line.split("\t")[0][2:]) for line in hypotheses) == list(range(16))
    assert "BLEU" in log
    log = run_in_process("fairseq-interactive", *common, "--input", tiny_corpus / "pieces" / "valid.en")
    spoken = [line.split("\t")[2] for line in log.splitlines() if line.startswith("H-")]
    generated = dict(line.split("\t")[::2] for line in hypotheses)
    assert spoken == [generated[f"H-{number}"] for number in range(16)], "the target language reaches the encoder"


def test_extracted_encoder_is_an_ordinary_xlmr(trained: tuple[Path, str], tiny_corpus: Path, tmp_path: Path) -> None:
    from fairseq.models.roberta import XLMRModel

    output = tmp_path / "archive"
    assert extract_mte([str(trained[0]), "--tokenizer", str(tiny_corpus / "tokenizer"), "--output", str(output)]) == 0
    hub = XLMRModel.from_pretrained(str(output), checkpoint_file="model.pt").eval()
    text = "the red dog is small"
    ids = hub.encode(text)
    assert torch.equal(ids, XLMRTokenizer(output)(text)[0])
    weights = load_checkpoint(trained[0])["model"]
    stored = {k.removeprefix("encoder.xlmr."): v for k, v in weights.items() if k.startswith("encoder.xlmr.encoder.")}
    for name, tensor in hub.model.state_dict().items():
        assert torch.equal(tensor, stored[name]), name
    assert hub.extract_features(ids).shape == (1, len(ids), 32)


def test_extraction_explains_bad_input(
    trained: tuple[Path, str], tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = str(tiny_corpus / "tokenizer")
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"not a checkpoint")
    cut = tmp_path / "cut"
    shutil.copytree(tokenizer, cut)
    (cut / SENTENCEPIECE).write_bytes((cut / SENTENCEPIECE).read_bytes()[:-50])
    for checkpoint, folder in ((str(broken), tokenizer), (str(trained[0]), str(tmp_path)), (str(trained[0]), str(cut))):
        assert extract_mte([checkpoint, "--tokenizer", folder, "--output", str(tmp_path / "out")]) == 2
        message = capsys.readouterr().err.strip()
        assert message.startswith("mclip-extract-mte: error: ")
        assert folder != str(cut) or f"{SENTENCEPIECE}: is not a SentencePiece model" in message
        assert not (tmp_path / "out").exists()
        assert "\n" not in message


def test_stage_two_starts_from_stage_one(tiny_corpus: Path, run_train: Train, tmp_path: Path) -> None:
    """Stage 1 leaves the encoder as it was; stage 2 is one flag apart and trains it, but not its embeddings."""
    first = tmp_path / "one"
    stop = ("--max-update", "3", "--disable-validation")
    run_train(*options(tiny_corpus, first, *stop, "--freeze", "encoder", "--seed", "5"))
    fresh = tmp_path / "fresh"
    run_train(*options(tiny_corpus, fresh, *stop[2:], "--max-update", "1", "--freeze", "encoder", "--seed", "5"))
    states = [load_checkpoint(folder / "checkpoint_last.pt")["model"] for folder in (fresh, first)]
    second = tmp_path / "two"
    run_train(
        *options(tiny_corpus, second, *stop, "--freeze", "embeddings"),
        *("--finetune-from-model", str(first / "checkpoint_last.pt")),
    )
    states.append(load_checkpoint(second / "checkpoint_last.pt")["model"])
    layer = "encoder.xlmr.encoder.sentence_encoder.layers.0.fc1.weight"
    table = "encoder.xlmr.encoder.sentence_encoder.embed_tokens.weight"
    decoder = "decoder.layers.0.fc1.weight"
    assert torch.equal(states[0][layer], states[1][layer])
    assert not torch.equal(states[0][decoder], states[1][decoder])
    assert not torch.equal(states[1][layer], states[2][layer])
    assert torch.equal(states[0][table], states[2][table])


def test_resuming_in_mid_epoch_changes_nothing(tiny_corpus: Path, run_train: Train, tmp_path: Path) -> None:
    common = ("--sampling-temperature", "3", "--dropout", "0.2", "--disable-validation", "--save-interval-updates", "5")
    run_train(*options(tiny_corpus, tmp_path / "straight", *common, "--max-update", "12"))
    run_train(*options(tiny_corpus, tmp_path / "stopped", *common, "--max-update", "5"))
    run_train(*options(tiny_corpus, tmp_path / "stopped", *common, "--max-update", "12"))
    straight, stopped = (load_checkpoint(tmp_path / f / "checkpoint_last.pt")["model"] for f in ("straight", "stopped"))
    assert all(torch.equal(straight[name], stopped[name]) for name in straight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--langs": "en,de"}, "fr is not among en, de"),
        ({"--langs": "en,de,de"}, "more than once"),
        ({"--lang-pairs": "en:de"}, "not of the form"),
        ({"--lang-pairs": "de-fr"}, "no train.de-fr"),
        ({"--contrastive-weight": "0", "--translation-weight": "0"}, "nothing to train"),
    ],
)
def test_contradictory_options_are_refused(
    tiny_corpus: Path, run_train: Train, tmp_path: Path, change: dict[str, str], message: str
) -> None:
    arguments = options(tiny_corpus, tmp_path, "--max-update", "1", "--disable-validation")
    for name, value in change.items():
        if name in arguments:
            arguments[arguments.index(name) + 1] = value
        else:
            arguments += [name, value]
    with pytest.raises(ValueError, match=message):
        run_train(*arguments)


def test_other_languages_than_the_checkpoint_are_refused(
    trained: tuple[Path, str], tiny_corpus: Path, run_in_process: Train
) -> None:
    plugin = Path(__file__).resolve().parents[2] / "mclip_fairseq"
    with pytest.raises(ValueError, match="numbers its languages en,de,fr"):
        run_in_process(
            "fairseq-generate",
            *(str(tiny_corpus / "mte"), "--user-dir", str(plugin), "--task", "mte", "-s", "en", "-t", "de", "--cpu"),
            *("--path", str(trained[0]), "--langs", "de,en,fr", "--gen-subset", "valid"),
        )
