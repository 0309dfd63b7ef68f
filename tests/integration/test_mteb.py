"""Our models in mteb: local tasks run unmodified, with the figures of our own evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mclip_fairseq import MultilingualCLIP
from mclip_fairseq.evaluation import retrieval_metrics
from mclip_fairseq.evaluation.metrics.bitext import bitext_accuracy
from mclip_fairseq.evaluation.metrics.similarity import similarity_correlations
from mclip_fairseq.storage.errors import UserError

mteb = pytest.importorskip("mteb", reason="mteb is not installed (pip install mclip_fairseq[mteb])")

LEGACY = Path(__file__).parents[1] / "data" / "legacy" / "exported"
WORDS = ["a", "red", "dog", "cat", "house", "ein", "Hund", "am", "Strand", "un", "chien", "rouge", "blue", "green"]
IMAGES, TEXTS = 20, 60
EVERY_TASK: dict[str, Any] = {
    "description": "made for a test",
    "dataset": {"path": "local", "revision": "1"},
    "eval_splits": ["test"],
    "eval_langs": ["eng-Latn"],
}


@pytest.fixture(scope="module")
def encoder() -> Any:
    from mclip_fairseq.export.mteb import MTEBEncoder

    return MTEBEncoder(LEGACY, device="cpu")


@pytest.fixture(scope="module")
def texts() -> list[str]:
    rng = np.random.default_rng(0)
    return list(dict.fromkeys(" ".join(rng.choice(WORDS, rng.integers(2, 7))) for _ in range(2 * TEXTS)))[:TEXTS]


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(1)
    colours = rng.integers(0, 255, (IMAGES, 2, 3, 3), dtype=np.uint8)
    return [Image.fromarray(pixels).resize((60, 40), Image.Resampling.NEAREST) for pixels in colours]


def run(task: Any, encoder: Any) -> dict[str, float]:
    """What mteb measures on the only split of a task, times 100."""
    (result,) = mteb.evaluate(encoder, task, cache=None, show_progress_bar=False).task_results
    (scores,) = result.scores["test"]
    return {name: 100 * value for name, value in scores.items() if isinstance(value, float)}


def made(base: type, kind: str, dataset: Any, modalities: list[str], category: str, main_score: str) -> Any:
    """A task of mteb over data that are here already."""
    details = EVERY_TASK | {"modalities": modalities, "category": category, "main_score": main_score}
    metadata = mteb.TaskMetadata(name=f"Local{kind}", type=kind, **details)
    task = type(f"Local{kind}", (base,), {"metadata": metadata})()
    task.dataset, task.data_loaded = dataset, True
    return task


def test_retrieval_agrees(encoder: Any, texts: list[str], pictures: list[Image.Image]) -> None:
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval

    own = [number % IMAGES for number in range(TEXTS)]
    queries = Dataset.from_dict({"id": [f"q{n}" for n in range(TEXTS)], "text": texts})
    corpus = Dataset.from_dict({"id": [f"d{n}" for n in range(IMAGES)], "image": pictures})
    relevant = {f"q{n}": {f"d{image}": 1} for n, image in enumerate(own)}
    split = {"queries": queries, "corpus": corpus, "relevant_docs": relevant, "top_ranked": None}
    dataset = {"default": {"test": split}}
    task = made(AbsTaskRetrieval, "Any2AnyRetrieval", dataset, ["text", "image"], "t2i", "ndcg_at_10")
    theirs = run(task, encoder)
    model = encoder.model
    ours = retrieval_metrics(model.encode_text(texts), model.encode_image(pictures), torch.tensor(own))
    for k in (1, 5, 10):
        assert theirs[f"recall_at_{k}"] == pytest.approx(ours[f"t2i_R@{k}"], abs=0.1)
    assert 0 < ours["t2i_R@1"] < ours["t2i_R@5"] < ours["t2i_R@10"] < 100


def test_similarity_agrees(encoder: Any, texts: list[str]) -> None:
    from datasets import Dataset
    from mteb.abstasks.sts import AbsTaskSTS

    scores = [round(value, 1) for value in np.random.default_rng(2).uniform(0, 5, TEXTS)]
    columns = {"sentence1": texts, "sentence2": texts[::-1], "score": scores}
    dataset = {"test": Dataset.from_dict(columns)}
    theirs = run(made(AbsTaskSTS, "STS", dataset, ["text"], "t2t", "cosine_spearman"), encoder)
    model = encoder.model
    ours, _ = similarity_correlations(model.encode_text(texts), model.encode_text(texts[::-1]), scores)
    assert theirs["cosine_spearman"] == pytest.approx(ours["spearman"], abs=0.1)
    assert theirs["pearson"] == pytest.approx(ours["pearson"], abs=0.1)
    assert abs(ours["spearman"]) > 1


def test_bitext_agrees(encoder: Any, texts: list[str]) -> None:
    from datasets import Dataset
    from mteb.abstasks.text.bitext_mining import AbsTaskBitextMining

    others = [" ".join(["ein", *text.split()[1:]]) for text in texts]
    dataset = {"test": Dataset.from_dict({"sentence1": texts, "sentence2": others})}
    theirs = run(made(AbsTaskBitextMining, "BitextMining", dataset, ["text"], "t2t", "f1"), encoder)
    model = encoder.model
    ours, _ = bitext_accuracy(model.encode_text(texts), model.encode_text(others))
    assert theirs["accuracy"] == pytest.approx(ours["into"], abs=0.1)
    assert 0 < ours["into"] < 100


def test_mteb_is_told_what_the_model_is(encoder: Any) -> None:
    meta = encoder.mteb_model_meta
    model = encoder.model
    assert isinstance(encoder, mteb.models.EncoderProtocol)
    assert (meta.name, meta.embed_dim, meta.max_tokens) == ("mclip_fairseq/exported", model.dim, 78)
    assert meta.revision == model.fingerprint[:16]
    modules = (model.tower.module, model.tower.image_module)
    assert meta.n_parameters == sum(sum(p.numel() for p in module.parameters()) for module in modules)


def test_an_input_of_two_parts_is_their_sum(encoder: Any, texts: list[str], pictures: list[Image.Image]) -> None:
    both = encoder.encode([{"text": texts[:2], "image": pictures[:2]}, {"text": texts[2:3], "image": pictures[2:3]}])
    expected = encoder.model.encode_text(texts[:3]) + encoder.model.encode_image(pictures[:3])
    torch.testing.assert_close(both, expected)
    with pytest.raises(UserError, match="2 texts and 1 images"):
        encoder.encode([{"text": texts[:2], "image": pictures[:1]}])
    with pytest.raises(UserError, match="0 texts and 0 images"):
        encoder.encode([{"audio": [0]}])


def test_a_model_that_reads_languages_apart_needs_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from mclip_fairseq.export.mteb import MTEBEncoder

    model = MultilingualCLIP.from_pretrained(LEGACY, device="cpu")
    monkeypatch.setattr(type(model.tower), "reads_any_language", False)
    with pytest.raises(UserError, match="give the tasks' language"):
        MTEBEncoder(model)
