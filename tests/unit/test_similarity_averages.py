"""The two averages of SentEval over the sets of a year of STS."""

import pytest

from mclip_fairseq.evaluation.metrics.similarity import average_sets


def test_sets_of_a_year_are_averaged_plainly_and_by_pairs() -> None:
    results = {
        "sts12.test.MSRpar": {"pearson": 40.0, "spearman": 50.0},
        "sts12.test.MSRvid": {"pearson": 80.0, "spearman": 60.0},
        "stsb.test.en": {"pearson": 70.0, "spearman": 70.0},
    }
    averages = average_sets(results, {"sts12.test.MSRpar": 100, "sts12.test.MSRvid": 300, "stsb.test.en": 7})
    assert averages["sts12 mean"] == {"pearson": 60.0, "spearman": 55.0}
    assert averages["sts12 wmean"] == {"pearson": 70.0, "spearman": 57.5}
    assert averages["mean"] == {"pearson": 65.0, "spearman": 62.5}
    assert averages["wmean"]["spearman"] == pytest.approx(63.75)


def test_other_splits_and_languages_count_in_no_average() -> None:
    """A folder of preprocess/sts.py has train and valid, and translations, too."""
    own = {"sts12.test.MSRpar": {"spearman": 40.0}, "sts12.test.MSRvid": {"spearman": 60.0}}
    others = {
        name: {"spearman": 1.0} for name in ("stsb.train.en", "stsb.test.de", "sick.valid.en", "sts2017.test.ar-ar")
    }
    one = {"stsb.test.en": {"spearman": 70.0}}
    averages = average_sets(own | others | one, dict.fromkeys([*own, *others, *one], 10))
    assert averages["sts12 mean"] == averages["sts12 wmean"] == {"spearman": 50.0}
    assert averages["mean"] == {"spearman": 60.0}
    assert set(averages) == {"sts12 mean", "sts12 wmean", "mean", "wmean"}


def test_single_tables_have_no_average_of_their_own() -> None:
    results = {"stsb.test.en": {"spearman": 70.0}, "sick.test.en": {"spearman": 60.0}}
    assert average_sets(results, {"stsb.test.en": 1, "sick.test.en": 1}) == {}
