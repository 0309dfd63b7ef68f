"""Text encoders of `transformers` as students: BERT and DistilBERT, from a directory to directories."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mclip_fairseq import MultilingualCLIP
from mclip_fairseq.cli.export import main as export
from mclip_fairseq.compat import shield_torchaudio
from mclip_fairseq.models.transformers_encoder import parameters_behind
from mclip_fairseq.storage.checkpoints import load_checkpoint
from tests.runs import train_on_ranks
from tests.tiny_data import DIM, LANGS, run, sentences
from tests.tiny_models import tiny_clip_directory, tiny_wordpiece

Train = Callable[..., str]
TEXTS = ["ein Hund", "the red cat, [SEP] and more", "un chien bleu, deux chats"]
SIZES = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32}


def bert_directory(path: Path, vocabulary: Path) -> Path:
    """A small BERT with its head for hidden words, as mBERT is published, and a tokenizer."""
    shield_torchaudio()
    from transformers import BertConfig, BertForMaskedLM, BertTokenizer

    tokenizer = BertTokenizer(vocab=str(vocabulary), do_lower_case=False)
    config = BertConfig(vocab_size=len(tokenizer), intermediate_size=48, max_position_embeddings=64, **SIZES)
    BertForMaskedLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def distilbert_directory(path: Path, vocabulary: Path) -> Path:
    """A small DistilBERT, whose settings have other names, and whose table has spare rows."""
    shield_torchaudio()
    from transformers import BertTokenizer, DistilBertConfig, DistilBertModel

    tokenizer = BertTokenizer(vocab=str(vocabulary), do_lower_case=False)
    config = DistilBertConfig(
        vocab_size=len(tokenizer) + 3, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=64
    )
    DistilBertModel(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def corpus(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny captions in the ids of a WordPiece tokenizer, with two encoders that read them, and a teacher."""
    folder = tmp_path_factory.mktemp("students")
    vocabulary = tiny_wordpiece(folder / "vocab.txt")
    torch.manual_seed(0)
    places = {"bert": bert_directory(folder / "bert", vocabulary)}
    places["distilbert"] = distilbert_directory(folder / "distilbert", vocabulary)
    data = folder / "captions"
    what = ("--pieces", tiny_corpus / "raw", "--tokenizer", places["bert"], "--captions", *LANGS)
    run("binarise", "--output", data, *what)
    for file in (tiny_corpus / "captions").glob("*.ids"):
        shutil.copy(file, data)
    teacher = tiny_clip_directory(folder / "teacher", dim=DIM)
    return {**places, "captions": data, "features": tiny_corpus / "features", "teacher": teacher, "xlmr": tiny_corpus}


def options(corpus: dict[str, Path], folder: Path, *more: object) -> list[str]:
    """fairseq-train's command line."""
    values = [
        *(corpus["captions"], "--task", "distillation", "--langs", "en,de,fr", "--criterion", "distillation"),
        *("--image-features", corpus["features"] / "image", "--text-features", corpus["features"] / "text"),
        *("--arch", "m_clip_base", "--optimizer", "fused_adamw", "--lr", "0.005", "--batch-size", "40"),
        *("--num-workers", "0", "--save-dir", folder, "--no-progress-bar", "--no-epoch-checkpoints"),
        *("--max-caption-tokens", "60", "--disable-validation", *more),
    ]
    return [str(value) for value in values]


@pytest.mark.parametrize("kind", ["bert", pytest.param("distilbert", marks=pytest.mark.slow)])
def test_a_student_trains_and_goes_out(kind: str, corpus: dict[str, Path], run_train: Train, tmp_path: Path) -> None:
    """As a directory of this project and as M-CLIP's, whose strict class and whose tokenizer read it."""
    shield_torchaudio()
    from transformers import AutoModel, AutoTokenizer

    run_train(*options(corpus, tmp_path / "run", "--text-encoder", corpus[kind], "--max-update", "4"))
    checkpoint = str(tmp_path / "run" / "checkpoint_last.pt")
    command = [checkpoint, "--teacher", str(corpus["teacher"]), "--output"]
    assert export([*command, str(tmp_path / "m")]) == 0
    assert export([*command, str(tmp_path / "m-clip"), "--format", "m-clip"]) == 0
    trained = MultilingualCLIP.from_pretrained(checkpoint, device="cpu", teacher=corpus["teacher"])
    expected = trained.encode_text(TEXTS)
    again = MultilingualCLIP.from_pretrained(tmp_path / "m", device="cpu")
    torch.testing.assert_close(again.encode_text(TEXTS), expected)
    assert again.fingerprint == trained.fingerprint
    tokens = trained.tokenizer(TEXTS)
    left = torch.stack([torch.cat([row[row == 0], row[row != 0]]) for row in tokens])
    torch.testing.assert_close(trained.encode_text(left), expected)
    torch.testing.assert_close(
        MultilingualCLIP.from_pretrained(tmp_path / "m-clip").encode_text(TEXTS[:1]), expected[:1]
    )

    class Published(nn.Module):
        """The layout of the published class."""

        def __init__(self) -> None:
            super().__init__()
            self.transformer = AutoModel.from_pretrained(tmp_path / "m-clip" / "base")
            self.LinearTransformation = nn.Linear(32, DIM)

    module = Published()
    module.load_state_dict(torch.load(tmp_path / "m-clip" / "pytorch_model.bin", weights_only=True), strict=True)
    inputs = AutoTokenizer.from_pretrained(tmp_path / "m-clip")(TEXTS[::2], padding=True, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        states = module.eval().transformer(**inputs).last_hidden_state
        mask = inputs["attention_mask"][:, :, None]
        embedding = module.LinearTransformation((states * mask).sum(1) / mask.sum(1))
    torch.testing.assert_close(nn.functional.normalize(embedding, dim=1), expected[::2], rtol=0, atol=2e-5)


def test_what_is_trained_and_chosen_by_retrieval(corpus: dict[str, Path], run_train: Train, tmp_path: Path) -> None:
    """The start is that of the directory, the pooler stays as it is, and validation searches the images."""
    values = options(corpus, tmp_path, "--text-encoder", corpus["bert"], "--max-update", "2", "--log-format", "json")
    values.remove("--disable-validation")
    log = run_train(*values, "--valid-retrieval", "--pooling", "last", "--student-head", "tanh", "--lr", "1e-6")
    assert "valid_mean_recall_de" in log
    start = load_file(corpus["bert"] / "model.safetensors")
    trained = load_checkpoint(tmp_path / "checkpoint_last.pt")["model"]
    for name in ("embeddings.word_embeddings.weight", "encoder.layer.1.output.dense.weight"):
        change = (trained[f"text_encoder.encoder.{name}"] - start[f"bert.{name}"]).abs().max()
        assert 0 < float(change) < 1e-5, name
    assert not trained["text_encoder.encoder.pooler.dense.weight"].any()


def test_a_frozen_student_keeps_its_start_and_caches_its_states(
    corpus: dict[str, Path], run_train: Train, tmp_path: Path
) -> None:
    common = ("--text-encoder", corpus["bert"], "--freeze-text", "all", "--max-update", "3")
    run_train(*options(corpus, tmp_path / "tokens", *common))
    run_train(*options(corpus, tmp_path / "states", *common, "--text-state-cache", tmp_path / "cache"))
    tokens, states = (load_checkpoint(tmp_path / n / "checkpoint_last.pt")["model"] for n in ("tokens", "states"))
    assert not any(name.startswith("text_encoder.") for name in tokens)
    torch.testing.assert_close(tokens["projection.weight"], states["projection.weight"], rtol=1e-5, atol=1e-6)
    model = MultilingualCLIP.from_pretrained(tmp_path / "states" / "checkpoint_last.pt", device="cpu")
    assert model.encode_text(sentences("de")[:2]).shape == (2, DIM)


@pytest.mark.slow
def test_a_stopped_run_resumes_exactly(corpus: dict[str, Path], run_train: Train, tmp_path: Path) -> None:
    for name, updates in (("whole", 5), ("parts", 2), ("parts", 5)):
        more = ("--text-encoder", corpus["distilbert"], "--adapter-dim", "4", "--max-update", updates)
        run_train(*options(corpus, tmp_path / name, *more))
    whole, parts = (load_checkpoint(tmp_path / name / "checkpoint_last.pt")["model"] for name in ("whole", "parts"))
    assert any(name.startswith("text_encoder.adapters.") for name in whole)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_equal_one(corpus: dict[str, Path], run_train: Train, tmp_path: Path) -> None:
    """With every distance at once, an uneven last step, and a pooler that gets no gradient on either count."""
    common = [
        *("--text-encoder", corpus["bert"], "--dropout", "0", "--attention-dropout", "0", "--langs", "en"),
        *("--optimizer", "sgd", "--lr", "0.2", "--clip-norm", "0", "--max-epoch", "1", "--curriculum", "9"),
        *("--required-batch-size-multiple", "1", "--log-interval", "1", "--cosine-weight", "0.3"),
        *("--contrastive-weight", "2", "--distillation-scale-init", "4.48"),
    ]
    run_train(*options(corpus, tmp_path / "one", *common, "--batch-size", "18"))
    (logs,) = train_on_ranks(2, [options(corpus, tmp_path / "two", *common, "--batch-size", "9")], tmp_path)
    assert all(log.endswith("exit status 0\n") for log in logs), logs
    one, two = (load_checkpoint(tmp_path / name / "checkpoint_last.pt")["model"] for name in ("one", "two"))
    start = load_file(corpus["bert"] / "model.safetensors")["bert.encoder.layer.0.output.dense.weight"]
    assert not torch.equal(one["text_encoder.encoder.encoder.layer.0.output.dense.weight"], start)
    differences = {name: float((one[name] - two[name]).abs().max()) for name in one if one[name].is_floating_point()}
    assert max(differences.values()) < 1e-5, differences


@pytest.mark.slow
def test_contrastive_tension_starts_from_it_too(corpus: dict[str, Path], run_train: Train, tmp_path: Path) -> None:
    """Its directory is read by `transformers` itself."""
    shield_torchaudio()
    from transformers import AutoModel

    run_train(
        *(
            str(corpus["captions"]),
            "--task",
            "contrastive_tension",
            "--criterion",
            "contrastive_tension",
            "--langs",
            "en",
        ),
        *("--arch", "contrastive_tension_base", "--text-encoder", str(corpus["bert"]), "--max-sentence-tokens", "60"),
        *("--optimizer", "rmsprop", "--lr", "1e-4", "--batch-size", "8", "--max-update", "2", "--disable-validation"),
        *("--num-workers", "0", "--no-progress-bar", "--save-dir", str(tmp_path / "run")),
    )
    checkpoint = str(tmp_path / "run" / "checkpoint_last.pt")
    assert export([checkpoint, "--format", "sentence-transformers", "--output", str(tmp_path / "m")]) == 0
    trained = MultilingualCLIP.from_pretrained(checkpoint, device="cpu")
    tokens = trained.tokenizer(TEXTS)
    with torch.no_grad():
        states = AutoModel.from_pretrained(tmp_path / "m").eval()(tokens, attention_mask=tokens.ne(0).long())[0]
    mean = (states * tokens.ne(0)[:, :, None]).sum(1) / tokens.ne(0).sum(1, keepdim=True)
    torch.testing.assert_close(nn.functional.normalize(mean, dim=1), trained.encode_text(TEXTS), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("teacher", "give a text encoder, such as mBERT"),
        pytest.param("lacks", "lacks 1 weights, such as embeddings.word_embeddings.weight", marks=pytest.mark.slow),
        pytest.param("words", "--train-word-head needs XLM-R", marks=pytest.mark.slow),
        ("other data", "make the data with its tokenizer"),
    ],
)
def test_what_cannot_be_a_student_is_refused(
    what: str, message: str, corpus: dict[str, Path], run_train: Train, tmp_path: Path
) -> None:
    from transformers import DistilBertConfig, DistilBertModel

    place, more = corpus["teacher"], ["--arch", "m_clip_base"]
    if what == "lacks":
        place = distilbert_directory(tmp_path / "d", corpus["bert"].parent / "vocab.txt")
        weights = load_file(place / "model.safetensors")
        weights["spare"] = weights.pop("embeddings.word_embeddings.weight")
        save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
    elif what == "words":
        place, more = (
            corpus["bert"],
            ["--arch", "altclip_base", "--train-word-head", "--teacher", str(corpus["teacher"])],
        )
    elif what == "other data":
        place = tmp_path / "small"
        config = DistilBertConfig(
            vocab_size=9, dim=32, n_layers=1, n_heads=4, hidden_dim=48, max_position_embeddings=64
        )
        DistilBertModel(config).save_pretrained(place)
    values = options(corpus, tmp_path / "run", "--text-encoder", place, "--max-update", "1")
    values[values.index("--arch") : values.index("--arch") + 2] = more
    if what == "words":
        at = values.index("--image-features")
        values = values[:at] + values[at + 4 :]
    with pytest.raises(ValueError, match=message):
        run_train(*values)


def test_what_a_result_does_not_depend_on_is_found() -> None:
    used, unused = nn.Linear(2, 2), nn.Linear(2, 2)
    result = used(torch.ones(1, 2)).tanh()
    assert parameters_behind(result) == set(used.parameters())
    assert not parameters_behind(result) & set(unused.parameters())
