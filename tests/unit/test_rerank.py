from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mclip_fairseq.evaluation import rerank, retrieval_ranks
from mclip_fairseq.evaluation.metrics.rerank import ranks_of_own
from mclip_fairseq.evaluation.metrics.retrieval import metrics_from_ranks
from mclip_fairseq.storage.errors import UserError
from tests.parity import Fixture, load_fixture


def slow(similarity: Tensor, matching: Tensor, k: int) -> Tensor:
    """Python's own sorting, one text at a time."""
    ranks = torch.zeros(similarity.shape, dtype=torch.long)
    for row, (near, match) in enumerate(zip(similarity.tolist(), matching.tolist(), strict=True)):
        order = sorted(range(len(near)), key=lambda image: (-near[image], image))
        order = sorted(order[:k], key=lambda image: -match[image]) + order[k:]
        for rank, image in enumerate(order):
            ranks[row, image] = rank
    return ranks


def test_ranks_by_hand() -> None:
    similarity = torch.tensor([[0.9, 0.8, 0.7, 0.6], [0.1, 0.4, 0.2, 0.3]])
    matching = torch.tensor([[1.0, 3.0, 2.0, 9.0], [9.0, -5.0, 8.0, 5.0]])
    # text 0: the nearest three by matching are 1, 2, 0, and 3 stays behind; text 1: of 1, 3, 2 comes 2, 3, 1
    ranks = rerank(similarity, lambda rows, columns: matching[rows, columns], 3)
    assert ranks.tolist() == [[2, 0, 1, 3], [3, 2, 0, 1]]
    assert ranks.dtype == torch.int64


@pytest.mark.parametrize("k", [0, 1, 4, 7, 50])
@pytest.mark.parametrize("ties", [False, True])
def test_equals_python_sorting(k: int, ties: bool) -> None:
    similarity, matching = torch.randn(5, 7), torch.randn(5, 7)
    if ties:
        similarity, matching = (similarity * 2).round(), matching.round()
    pairs: list[tuple[int, int]] = []

    def score(rows: Tensor, columns: Tensor) -> Tensor:
        pairs.extend(zip(rows.tolist(), columns.tolist(), strict=True))
        return matching[rows, columns]

    assert torch.equal(rerank(similarity, score, k), slow(similarity, matching, k))
    assert len(set(pairs)) == len(pairs) == 5 * min(k, 7)  # no pair twice, and none in vain


def test_k_of_the_gallery_is_the_order_of_the_matching_alone() -> None:
    similarity, matching = torch.randn(4, 6), torch.randn(4, 6)
    ranks = rerank(similarity, lambda rows, columns: matching[rows, columns], 6)
    assert torch.equal(ranks, matching.argsort(1, descending=True).argsort(1))
    assert not torch.equal(ranks, rerank(similarity, lambda rows, columns: matching[rows, columns], 3))


def test_pairs_come_in_batches_and_numpy_is_welcome(monkeypatch: pytest.MonkeyPatch) -> None:
    similarity, matching = np.random.randn(5, 7), np.random.randn(5, 7)
    sizes: list[int] = []

    def score(rows: Tensor, columns: Tensor) -> np.ndarray:
        sizes.append(len(rows))
        return matching[rows.numpy(), columns.numpy()]

    whole = rerank(similarity, score, 4)
    monkeypatch.setattr("mclip_fairseq.evaluation.metrics.rerank.PAIRS_AT_ONCE", 6)
    assert torch.equal(rerank(similarity, score, 4), whole)
    assert sizes == [20, 6, 6, 6, 2]


def test_a_slice_of_the_texts_gives_its_rows() -> None:
    similarity, matching = torch.randn(5, 7), torch.randn(5, 7)
    whole = rerank(similarity, lambda rows, columns: matching[rows, columns], 3)
    for part in (slice(0, 2), slice(2, 5)):
        own = rerank(similarity[part], lambda rows, columns, part=part: matching[part][rows, columns], 3)  # type: ignore[misc]
        assert torch.equal(own, whole[part])


def test_scores_that_are_not_finite_and_unknown_orders_are_refused() -> None:
    similarity = torch.eye(2)
    with pytest.raises(UserError, match="text 0 and image 0 is not finite"):
        rerank(similarity, lambda rows, columns: torch.full((len(rows),), torch.nan), 1)
    with pytest.raises(UserError, match="choose one of similarity, released"):
        rerank(similarity, lambda rows, columns: rows.float(), 1, "cosine")


def test_ranks_of_own() -> None:
    # 3 texts of images 0, 0 and 2; image 1 has no caption
    t2i = torch.tensor([[0, 1, 2], [2, 0, 1], [1, 0, 2]])
    i2t = torch.tensor([[2, 1, 0], [0, 1, 2], [0, 2, 1]])
    ranks = ranks_of_own(t2i, i2t, torch.tensor([0, 0, 2]))
    assert (ranks.t2i.tolist(), ranks.i2t.tolist(), ranks.i2t_images.tolist()) == ([0, 2, 2], [1, 1], [0, 2])
    assert ranks.ties == 0


def both_ways(fixture: Fixture, variant: str, k: int, beyond: str = "similarity") -> tuple[Tensor, Tensor]:
    """Ranks (T, I) of images and (I, T) of texts; the recorded similarities are products of the features."""
    image, text = fixture[f"{variant}_image_feat"], fixture[f"{variant}_text_feat"]
    matching = fixture[f"{variant}_itm"]
    t2i = rerank(text @ image.T, lambda rows, columns: matching[columns, rows], k, beyond)
    return t2i, rerank(image @ text.T, lambda rows, columns: matching[rows, columns], k, beyond)


def recalls(t2i: Tensor, i2t: Tensor, own: Tensor) -> list[float]:
    """In the order of the released program: image queries, text queries, each with its mean, and the mean of both."""
    metrics = metrics_from_ranks(ranks_of_own(t2i, i2t, own))
    values = []
    for way in ("i2t", "t2i"):
        three = [metrics[f"{way}_R@{k}"] for k in (1, 5, 10)]
        values += [*three, sum(three) / 3]
    return [*values, (values[3] + values[7]) / 2]


@pytest.mark.parametrize("beyond", ["similarity", "released"])
@pytest.mark.parametrize("variant", ["fix", "var", "one"])
def test_released_evaluation(shared_dir: Path, variant: str, beyond: str) -> None:
    fixture = load_fixture(shared_dir, "ccrk/ccrk_eval.npz")
    own, k = fixture[f"{variant}_txt2img"], int(fixture[f"{variant}_k_test"])
    assert k >= 10
    t2i, i2t = both_ways(fixture, variant, k, beyond)
    assert recalls(t2i, i2t, own) == pytest.approx(fixture[f"{variant}_rerank"].tolist(), abs=1e-9)
    full = both_ways(fixture, variant, int(fixture[f"{variant}_k_full"]), beyond)
    assert recalls(*full, own) == pytest.approx(fixture[f"{variant}_rerank_k_full"].tolist(), abs=1e-9)
    dual = both_ways(fixture, variant, 0)
    assert recalls(*dual, own) == pytest.approx(fixture[f"{variant}_dual"].tolist(), abs=1e-9)
    ranks, plain = ranks_of_own(t2i, i2t, own), ranks_of_own(*dual, own)
    for way, got, before in (("ir", ranks.t2i, plain.t2i), ("tr", ranks.i2t, plain.i2t)):
        key = f"{variant}_rank_{way}"
        assert torch.equal(before, fixture[f"{key}_dual"])
        low, high = fixture[f"{key}_rerank_lo"], fixture[f"{key}_rerank_hi"]
        assert ((low <= got) & (got <= high)).all()
        if beyond == "released":
            free = low != high
        else:
            free = before >= k
            assert (got[low != high] >= k).all()  # the recorded ties are the items beyond k
        assert torch.equal(got[~free], fixture[f"{key}_rerank"][~free])
        assert not free.all()
    text, image = fixture[f"{variant}_text_feat"], fixture[f"{variant}_image_feat"]
    strict = retrieval_ranks(text, image, own)
    assert torch.equal(strict.t2i, plain.t2i)
    assert torch.equal(strict.i2t, plain.i2t)


def test_released_folds(shared_dir: Path) -> None:
    """Five galleries of consecutive images, each with its own captions, and the plain mean of their recalls."""
    fixture = load_fixture(shared_dir, "ccrk/ccrk_eval.npz")
    own, results = fixture["fix_txt2img"], []
    for begin, size, k in zip(fixture["fold_begin"], fixture["fold_sizes"], fixture["fold_k_test"], strict=True):
        texts = (own >= begin) & (own < begin + size)
        fold = {
            "x_image_feat": fixture["fix_image_feat"][begin : begin + size],
            "x_text_feat": fixture["fix_text_feat"][texts],
            "x_itm": fixture["fix_itm"][begin : begin + size, texts],
        }
        results.append(recalls(*both_ways(fold, "x", int(k)), own[texts] - begin))
    np.testing.assert_allclose(results, fixture["fold_results"].numpy(), atol=1e-9)
    np.testing.assert_allclose(np.mean(results, axis=0), fixture["fold_mean"].numpy(), atol=1e-9)
