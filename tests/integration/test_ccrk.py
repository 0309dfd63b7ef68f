"""CCRK from training to retrieval: pre-training, fine-tuning, resuming, two ranks, and matching in inference."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from mclip_fairseq import MultilingualCLIP
from mclip_fairseq.cli.evaluate import main as evaluate
from mclip_fairseq.cli.export import main as export
from mclip_fairseq.cli.search import main as search
from mclip_fairseq.encoding.matching import PairScorer, encode_image_states
from mclip_fairseq.search.index import SearchIndex
from mclip_fairseq.search.query import search_texts
from mclip_fairseq.search.questions import Asked
from mclip_fairseq.search.reranking import Reranker
from mclip_fairseq.search.server import Search
from mclip_fairseq.storage.checkpoints import load_checkpoint
from tests.ccrk_models import parallel_corpus, training_options
from tests.runs import difference, losses_of, state_of
from tests.tiny_data import LANGS, sentences, write

Train = Callable[..., str]


@pytest.fixture(scope="module")
def corpus(photos: Path, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return parallel_corpus(photos, tiny_corpus, tmp_path_factory.mktemp("parallel") / "captions")


@pytest.fixture(scope="module")
def options(corpus: Path, photos: Path, tiny_corpus: Path) -> Callable[..., list[str]]:
    return lambda folder, *more: training_options(corpus, photos, tiny_corpus / "tokenizer", folder, *more)


@pytest.fixture(scope="module")
def trained(
    options: Callable[..., list[str]], run_train: Train, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A pre-training of three epochs with two of three languages per image, and its log."""
    folder = tmp_path_factory.mktemp("ccrk")
    choose = ("--valid-retrieval", "--best-checkpoint-metric", "mean_recall", "--maximize-best-checkpoint-metric")
    log = run_train(*options(folder, "--max-epoch", 3, "--captions-per-image", 2, "--log-interval", 1, *choose))
    return folder / "checkpoint_last.pt", log


def test_pre_training_logs_all_three_losses_and_retrieval(trained: tuple[Path, str]) -> None:
    first, *_, last = losses_of(trained[1]).values()
    for name in ("contrast_loss", "matching_loss", "masked_words_loss"):
        assert 0 < float(last[name]) < 1.5 * float(first[name])
    assert float(last["masked_words_loss"]) < float(first["masked_words_loss"])
    lines = [line for line in trained[1].splitlines() if "| valid |" in line and "{" in line]
    valid = json.loads(lines[-1][lines[-1].index("{") :])
    assert {"valid_mean_recall_de", "valid_masked_words_loss", "valid_matching_accuracy"} <= valid.keys()


def test_inference_encodes_and_matches(trained: tuple[Path, str], photos: Path, tmp_path: Path) -> None:
    """The checkpoint, and the directory exported from it, give the model's own numbers."""
    model = MultilingualCLIP.from_pretrained(trained[0], device="cpu")
    texts = ["the red dog is small", "ein Haus das ist blau", "le chien"]
    files = [photos / "images" / f"img{number}.png" for number in range(3)]
    assert model.encode_text(texts).shape == model.encode_image(files).shape == (3, 16)
    module = model.tower.module
    pixels = model.transform([Image.open(file).convert("RGB") for file in files])
    tokens = model.tokenizer(texts)
    with torch.inference_mode():
        expected = module.match(tokens, pixels)
    torch.testing.assert_close(model.match(texts, files), expected)
    torch.testing.assert_close(model.match(tokens, pixels, batch_size=2), expected)
    torch.testing.assert_close(model.match(texts[0], files[0]), expected[:1], rtol=1e-4, atol=1e-5)
    assert export([str(trained[0]), "--output", str(tmp_path / "m"), "--license", "mit"]) == 0
    exported = MultilingualCLIP.from_pretrained(tmp_path / "m", device="cpu")
    torch.testing.assert_close(exported.match(texts, files), expected)
    torch.testing.assert_close(exported.encode_image(files), model.encode_image(files))
    assert not (tmp_path / "m" / "teacher").exists()


def test_portable_towers_are_those_of_the_dual_encoder(trained: tuple[Path, str], photos: Path) -> None:
    """What `mclip-export --onnx` is given; `test_ccrk_onnx.py` runs the whole."""
    model = MultilingualCLIP.from_pretrained(trained[0], device="cpu")
    module = model.tower.module
    tokens = model.tokenizer(["le chien", "ein Hund das ist rot"])
    files = [photos / "images" / f"img{number}.png" for number in range(3)]
    pixels = model.transform([Image.open(file).convert("RGB") for file in files])
    with torch.inference_mode():
        torch.testing.assert_close(module.portable_text()(tokens), model.encode_text(tokens))
        torch.testing.assert_close(module.portable_image(None)(pixels), model.encode_image(pixels))


def test_pairs_are_scored_in_half_precision_as_in_full(trained: tuple[Path, str], photos: Path) -> None:
    model = MultilingualCLIP.from_pretrained(trained[0], device="cpu")
    texts = ["the red dog is small", "ein Haus", "le chien qui est rouge et petit"]
    files = [photos / "images" / f"img{number}.png" for number in range(5)]
    scorer = PairScorer(model, texts, encode_image_states(model, files), batch_size=4)
    rows, columns = torch.arange(15) // 5, torch.arange(15) % 5
    expected = model.match([texts[row] for row in rows], [files[column] for column in columns])
    torch.testing.assert_close(scorer(rows, columns), expected, rtol=0, atol=5e-3)
    assert scorer.image.dtype == scorer.text[0].dtype == torch.float16


def test_a_model_of_features_only_says_that_it_cannot_match(photos: Path) -> None:
    model = MultilingualCLIP.from_pretrained(photos / "teacher", device="cpu")
    assert not model.can_match
    with pytest.raises(ValueError, match="cannot look at both together"):
        model.match(["a dog"], [photos / "images" / "img0.png"])


def test_as_many_texts_as_images(trained: tuple[Path, str], photos: Path) -> None:
    model = MultilingualCLIP.from_pretrained(trained[0], device="cpu")
    with pytest.raises(ValueError, match="2 texts and 1 images; give one image for each text"):
        model.match(["a", "b"], [photos / "images" / "img0.png"])


def test_a_stopped_run_continues_bit_for_bit(
    options: Callable[..., list[str]], run_train: Train, tmp_path: Path
) -> None:
    """With augmentation, masks, drawn languages, dropout and hard negatives on."""
    common = ("--captions-per-image", 2, "--disable-validation", "--batch-size", 26)
    run_train(*options(tmp_path / "whole", *common, "--max-update", 7))
    run_train(*options(tmp_path / "parts", *common, "--max-update", 3))
    run_train(*options(tmp_path / "parts", *common, "--max-update", 7))
    assert difference(state_of(tmp_path / "whole"), state_of(tmp_path / "parts")) == ""


def test_fine_tuning_from_a_pre_training_at_a_higher_resolution(
    trained: tuple[Path, str], options: Callable[..., list[str]], run_train: Train, tmp_path: Path
) -> None:
    """Pairs of one language, multi-positive contrast; position tables are resized when the checkpoint is loaded."""
    log = run_train(
        *options(tmp_path, "--mode", "finetune", "--max-epoch", 1, "--log-interval", 1, "--image-size", 40),
        *("--image-window", 5, "--finetune-from-model", trained[0], "--crop-area", 0.5),
    )
    last = list(losses_of(log).values())[-1]
    assert float(last["contrast_loss"]) > 0
    assert float(last["matching_loss"]) > 0
    assert "masked_words_loss" not in last
    before, after = (load_checkpoint(file)["model"] for file in (trained[0], tmp_path / "checkpoint_last.pt"))
    table = next(name for name in after if name.endswith("relative_position_bias_table"))
    assert (len(before[table]), len(after[table])) == (49, 81)
    head = "text_encoder.encoder.lm_head.dense.weight"  # nothing asks for masked words, so their head stays
    assert torch.equal(before[head], after[head])


def test_languages_that_are_not_aligned_are_refused(
    corpus: Path, photos: Path, tiny_corpus: Path, run_train: Train, tmp_path: Path
) -> None:
    shutil.copytree(corpus, tmp_path / "captions")
    file = tmp_path / "captions" / "train.de.ids"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[1], lines[0], *lines[2:]]) + "\n")
    arguments = training_options(tmp_path / "captions", photos, tiny_corpus / "tokenizer", tmp_path, "--max-update", 1)
    with pytest.raises(ValueError, match=r"train\.de\.ids: does not name the images of train\.en\.ids in the same"):
        run_train(*arguments)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("--captions-per-image", 4), "--captions-per-image is 4; give 0 for all or up to 3"),
        (("--contrast-divisor", "none"), "--contrast-divisor is 'none'; give k or a positive number"),
        (("--mask-share", 0), "--mask-share is within 0 and 1"),
        (("--crop-area", 2), "--crop-area is from 0 to 1"),
        (("--image-size", 30), "--image-size is 30; 2 stages need a multiple of 8 pixels"),
        (("--image-window", 5), "--image-window is 5, but the last stage has 4 x 4 positions; give 4 at most"),
        (("--contrast-weight", 0, "--matching-weight", 0, "--masked-words-weight", 0), "give one above 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    wrong: tuple[object, ...], message: str, options: Callable[..., list[str]], run_train: Train, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        run_train(*options(tmp_path, "--max-update", 1, *wrong))


def test_evaluation_shows_features_alone_and_re_ranked_side_by_side(
    trained: tuple[Path, str], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`mclip-evaluate --rerank K`, with the consistency over languages of both."""
    captions = []
    for lang in LANGS:
        write(tmp_path / f"{lang}.txt", sentences(lang)[:12])
        captions.append(f"{lang}={tmp_path / lang}.txt")
    write(tmp_path / "ids.txt", [f"img{number}.png" for number in range(12)])
    data = ["--captions", *captions, "--ids", str(tmp_path / "ids.txt"), "--images", str(photos / "images")]
    command = ["--model", str(trained[0]), *data, "--device", "cpu", "--output", str(tmp_path / "out")]
    assert evaluate([*command, "--rerank", "4"]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    again = report["reranked"]
    assert (again["k"], report["rerank"]) == (4, 4)
    assert again["results"].keys() == report["results"].keys() == set(LANGS)
    assert again["mean_rank_variance"].keys() == report["mean_rank_variance"].keys()
    said = capsys.readouterr().out
    assert "The nearest 4 of every query re-ranked by matching scores:" in said
    assert "Mean rank variance over languages, re-ranked:" in said
    model = MultilingualCLIP.from_pretrained(trained[0], device="cpu")
    files = [photos / "images" / f"img{number}.png" for number in range(12)]
    similarity = model.encode_text(sentences("de")[:12]) @ model.encode_image(files).T
    hits = 0
    for row, nearest in enumerate(similarity.topk(4).indices.tolist()):
        scores = model.match([sentences("de")[row]] * 4, [files[column] for column in nearest])
        hits += nearest[int(scores.argmax())] == row
    assert again["results"]["de"]["t2i_R@1"] == pytest.approx(100 * hits / 12)


def test_a_model_of_features_only_is_not_re_ranked(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "en.txt", ["a dog"])
    write(tmp_path / "ids.txt", ["img0.png"])
    data = ["--captions", f"en={tmp_path}/en.txt", "--ids", str(tmp_path / "ids.txt")]
    command = ["--model", str(photos / "teacher"), *data, "--images", str(photos / "images"), "--device", "cpu"]
    assert evaluate([*command, "--rerank", "4"]) == 2
    assert "cannot re-rank; leave out --rerank" in capsys.readouterr().err
    assert evaluate([*command, "--rerank", "4", "--protocol", "released"]) == 2
    assert "--rerank counts as the strict protocol does" in capsys.readouterr().err


def test_a_search_puts_the_nearest_in_the_order_of_matching(
    trained: tuple[Path, str], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`mclip-search query --rerank K`, and the same order on the page."""
    index = tmp_path / "index"
    command = ["build", str(photos / "images"), "--model", str(trained[0]), "--output", str(index), "--workers", "0"]
    assert search([*command, "--device", "cpu"]) == 0
    capsys.readouterr()
    question = ["query", str(index), "ein Hund das ist rot", "--json", "--device", "cpu"]
    assert search([*question, "-k", "8"]) == 0
    plain = json.loads(capsys.readouterr().out)["answers"][0]["results"]
    assert search([*question, "-k", "8", "--rerank", "5"]) == 0
    again = json.loads(capsys.readouterr().out)["answers"][0]["results"]
    assert {hit["id"] for hit in again[:5]} == {hit["id"] for hit in plain[:5]}
    assert [hit["id"] for hit in again[5:]] == [hit["id"] for hit in plain[5:]]
    scores = [hit["match"] for hit in again[:5]]
    assert scores == sorted(scores, reverse=True)
    model = MultilingualCLIP.from_pretrained(trained[0], device="cpu")
    files = [photos / "images" / hit["id"] for hit in again[:5]]
    torch.testing.assert_close(
        model.match(["ein Hund das ist rot"] * 5, files), torch.tensor(scores), rtol=0, atol=5e-3
    )
    opened = SearchIndex.open(index)
    page = Search(opened, model, rerank=5).find([Asked("ein Hund das ist rot")])[0][0]
    assert [hit["id"] for hit in page[:8]] == [hit["id"] for hit in again]
    # Of the candidates three survive into a shorter list, chosen by the model, not by the cosine.
    assert search([*question, "-k", "3", "--rerank", "5"]) == 0
    short = json.loads(capsys.readouterr().out)["answers"][0]["results"]
    assert [hit["id"] for hit in short] == [hit["id"] for hit in again[:3]]
    image = str(photos / "images" / "img0.png")
    assert search(["query", str(index), "--image", image, "--rerank", "5", "--device", "cpu"]) == 2
    assert "--rerank puts the answers of texts in order" in capsys.readouterr().err


def test_an_image_that_is_gone_comes_behind_the_matched_ones(
    trained: tuple[Path, str], photos: Path, tmp_path: Path
) -> None:
    shutil.copytree(photos / "images", tmp_path / "images")
    index = tmp_path / "index"
    command = ["build", str(tmp_path / "images"), "--model", str(trained[0]), "--output", str(index), "--workers", "0"]
    assert search([*command, "--device", "cpu"]) == 0
    opened, model = SearchIndex.open(index), MultilingualCLIP.from_pretrained(trained[0], device="cpu")
    hits = search_texts(opened, model, ["un chien"], 6)
    (tmp_path / "images" / hits[0][1].id).unlink()
    again = Reranker(opened, model, 4)(opened, ["un chien"], hits)[0]
    assert again[3] == hits[0][1]
    assert again[4:] == hits[0][4:]
    assert all(hit.match is not None for hit in again[:3])
