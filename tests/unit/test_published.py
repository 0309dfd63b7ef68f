"""Published numbers are complete and consistent."""

from __future__ import annotations

import pytest

from mclip_fairseq.evaluation.published import read_published


def test_published_numbers_are_whole() -> None:
    """Mean recall is the mean of the six recalls wherever all are given."""
    checked = 0
    for entry in read_published():
        for metrics in entry.results.values():
            recalls = [value for name, value in metrics.items() if "_R@" in name]
            assert metrics
            assert all(0 < value <= 100 for value in metrics.values())
            if recalls and "mean_recall" in metrics:
                checked += 1
                assert len(recalls) == 6
                assert metrics["mean_recall"] == pytest.approx(sum(recalls) / 6, abs=0.06)
    assert checked > 1000


def test_two_sources_of_the_same_checkpoint_agree() -> None:
    """open_clip's table and Babel-ImageNet's measured this one on XTD10, each with a program of its own."""
    of = {(entry.benchmark, entry.system): entry.results for entry in read_published()}
    ours, theirs = of["XTD10", "xlm-roberta-base-ViT-B-32 laion5b_s13b_b90k"], of["XTD10", "openclip-xlmrb-vitb32"]
    both = ours.keys() & theirs.keys()
    assert len(both) >= 10
    for language in both:
        assert ours[language]["mean_recall"] == pytest.approx(theirs[language]["mean_recall"], abs=0.3)
