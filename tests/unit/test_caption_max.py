"""Protocol `caption_max` against MLA's own evaluation."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mclip_fairseq.evaluation import retrieval_metrics
from mclip_fairseq.evaluation.metrics.retrieval import retrieval_ranks

NAMES = {"t2i": "T2V", "i2t": "V2T"}


@pytest.fixture(scope="module")
def recorded(shared_dir: Path) -> dict[str, np.ndarray]:
    return dict(np.load(shared_dir / "fixtures" / "mla" / "mla_eval.npz"))


def images_of(recorded: dict[str, np.ndarray], variant: str) -> np.ndarray:
    """The image of each caption, from the ends of MLA's groups."""
    sizes = np.diff(recorded[f"{variant}_cut_off_points"], prepend=0)
    return np.repeat(np.arange(len(sizes)), sizes)


@pytest.mark.parametrize("variant", ["k5", "k1", "kvar"])
def test_recalls_are_those_of_the_released_evaluation(recorded: dict[str, np.ndarray], variant: str) -> None:
    metrics = retrieval_metrics(
        recorded[f"{variant}_text"], recorded[f"{variant}_image"], images_of(recorded, variant), "caption_max"
    )
    assert metrics["ties"] == 0
    for direction, theirs in NAMES.items():
        for k in (1, 5, 10):
            assert metrics[f"{direction}_R@{k}"] == pytest.approx(float(recorded[f"{variant}_{theirs}_R{k}"]), abs=1e-4)
    assert metrics["mean_recall"] == pytest.approx(float(recorded[f"{variant}_AR"]), abs=1e-4)


def test_with_ties_the_released_recalls_are_within_the_bounds(recorded: dict[str, np.ndarray]) -> None:
    """Ours count ties against the query; the released t2i breaks them by an unstable sort."""
    own = torch.from_numpy(images_of(recorded, "ties"))
    text, image = (torch.from_numpy(recorded[f"ties_{side}"]) for side in ("text", "image"))
    ranks = retrieval_ranks(text, image, own, "caption_max")
    scores = torch.nn.functional.normalize(text.double()) @ torch.nn.functional.normalize(image.double()).T
    own_score = scores.gather(1, own[:, None])
    best = (scores > own_score + 1e-9).sum(1)
    assert ranks.ties > 0
    for k in (1, 5, 10):
        released = float(recorded[f"ties_T2V_R{k}"])
        worst, luckiest = (100 * values.lt(k).double().mean().item() for values in (ranks.t2i, best))
        assert worst - 1e-6 <= released <= luckiest + 1e-6
    # From images the released code counts one row per tied position: from the best to the worst rank of each image.
    by_image = torch.full((len(image), len(image)), -torch.inf, dtype=torch.float64)
    by_image.scatter_reduce_(1, own.expand(len(image), -1), scores.T.contiguous(), "amax")
    mine = by_image.diagonal()[:, None]
    above, at_least = (by_image > mine + 1e-9).sum(1), (by_image > mine - 1e-9).sum(1) - 1
    assert torch.equal(ranks.i2t, at_least)
    rows = torch.cat([torch.arange(int(low), int(high) + 1) for low, high in zip(above, at_least, strict=True)])
    assert sorted(rows.tolist()) == sorted(recorded["ties_V2T_cols"].tolist())


def test_an_image_is_a_query_once_and_uncaptioned_ones_are_left_out() -> None:
    text = torch.eye(3)[[0, 0, 1]]
    image = torch.eye(3)
    ranks = retrieval_ranks(text, image, [0, 0, 1], "caption_max")
    assert ranks.i2t_images.tolist() == [0, 1]
    assert ranks.i2t.tolist() == [0, 0]
    assert retrieval_ranks(text, image, [0, 0, 1], "released").i2t_images.tolist() == [0, 0, 1]
