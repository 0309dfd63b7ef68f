"""Bitext retrieval, similarity, classification and intervals, on matrices small enough to check by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from mclip_fairseq.evaluation.metrics.bitext import bitext_accuracy
from mclip_fairseq.evaluation.metrics.classification import class_features, zero_shot_accuracy
from mclip_fairseq.evaluation.metrics.confidence import mean_interval, recall_intervals
from mclip_fairseq.evaluation.metrics.retrieval import metrics_from_ranks, retrieval_ranks
from mclip_fairseq.evaluation.metrics.similarity import similarity_correlations

EYE = torch.eye(4)


def test_bitext_accuracy_by_hand() -> None:
    target = EYE.clone()
    target[3] = torch.tensor([0.9, 0.0, 0.0, 0.5])  # nearer to sentence 0 than to its own
    metrics, (low, high) = bitext_accuracy(EYE, target)
    assert metrics == {"into": 100.0, "out_of": 75.0, "accuracy": 87.5, "ties": 0}
    assert 50 <= low < 87.5 < high <= 100
    with pytest.raises(ValueError, match="4 sentences with 3 translations"):
        bitext_accuracy(EYE, EYE[:3])


def test_a_duplicate_translation_is_a_tie_and_counts_against() -> None:
    metrics, _ = bitext_accuracy(EYE[:2], torch.stack([EYE[0], EYE[0]]))
    assert (metrics["into"], metrics["out_of"]) == (0.0, 50.0)
    assert metrics["ties"] == 2


def test_correlations_equal_scipy() -> None:
    rng = np.random.default_rng(1)
    first, second = torch.from_numpy(rng.standard_normal((2, 40, 8)))
    cosine = torch.cosine_similarity(first, second).numpy()
    scores = np.round(cosine * 2 + rng.standard_normal(40))  # with ties
    correlations, intervals = similarity_correlations(first, second, scores.tolist())
    assert correlations["pearson"] == pytest.approx(100 * stats.pearsonr(cosine, scores).statistic)
    assert correlations["spearman"] == pytest.approx(100 * stats.spearmanr(cosine, scores).statistic)
    assert correlations["spearman"] != pytest.approx(correlations["pearson"], abs=0.1)
    for name, (low, high) in intervals.items():
        assert low < correlations[name] < high
    with pytest.raises(ValueError, match="correlation is undefined"):
        similarity_correlations(first, second, [1.0] * 40)


def test_classes_are_means_over_prompts() -> None:
    features_of = {"a cat": EYE[0], "my cat": EYE[1], "a dog": EYE[2], "my dog": 5 * EYE[2]}
    features = class_features(
        ["cat", "dog"], ["a {}", "my {}"], lambda texts: torch.stack([features_of[t] for t in texts])
    )
    torch.testing.assert_close(features, torch.stack([(EYE[0] + EYE[1]) / 2**0.5, EYE[2]]))
    image = torch.stack([EYE[0], EYE[2], EYE[1] + 2 * EYE[2], EYE[3]])
    metrics, _ = zero_shot_accuracy(image, features, torch.tensor([0, 1, 0, 1]))
    assert metrics == {"top1": 50.0, "top5": 100.0, "ties": 1}  # the last image is equally far from both


def test_intervals_are_those_of_resampled_queries() -> None:
    """Against the slow way: draw queries with replacement and count."""
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.standard_normal((60, 6)))
    own = torch.arange(60).repeat(2)
    ranks = retrieval_ranks(image[own] + 0.7 * torch.from_numpy(rng.standard_normal((120, 6))), image, own)
    fast = recall_intervals([ranks], resamples=4000)
    slow = []
    for _ in range(2000):
        i2t = ranks.i2t[torch.from_numpy(rng.integers(0, 60, 60))]
        t2i = ranks.t2i[torch.from_numpy(rng.integers(0, 120, 120))]
        slow.append([100 * (t2i < 1).double().mean().item(), 100 * (i2t < 5).double().mean().item()])
    for key, column in (("t2i_R@1", 0), ("i2t_R@5", 1)):
        np.testing.assert_allclose(fast[key], np.percentile(np.array(slow)[:, column], [2.5, 97.5]), atol=2.5)
    metrics = metrics_from_ranks(ranks)
    for key, (low, high) in fast.items():
        assert low <= metrics[key] <= high
    assert all(low < high for low, high in fast.values())  # a control: these recalls are uncertain


def test_certain_outcomes_have_no_width() -> None:
    assert mean_interval(np.ones(10)) == [100.0, 100.0]
    everything = recall_intervals([retrieval_ranks(EYE, EYE, torch.arange(4))])
    assert set(map(tuple, everything.values())) == {(100.0, 100.0)}
