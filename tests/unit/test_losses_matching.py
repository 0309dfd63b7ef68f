from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy._core.multiarray import _reconstruct  # numpy's random state is pickled beside the numbers
from torch import Tensor

from mclip_fairseq.losses import (
    draw_matching_pairs,
    hard_negative_weights,
    masked_word_loss,
    matching_loss,
    one_to_k_info_nce,
)
from mclip_fairseq.losses.matching import LEAST
from tests.parity import gradients, load_fixture, same


def batch(images: int = 3, captions: int = 2, dim: int = 4) -> tuple[Tensor, Tensor]:
    image, text = torch.randn(images, dim, dtype=torch.float64), torch.randn(images, captions, dim, dtype=torch.float64)
    return F.normalize(image, dim=1), F.normalize(text, dim=2)


def test_weights_by_hand() -> None:
    image = torch.eye(2)
    text = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]])
    # scores of image 0: ln 3, 0, 0, 0 (of 6: 3, 1, 1, 1); of image 1: 0, ln 3, ln 3, ln 3 (of 10: 1, 3, 3, 3)
    positive, hard_image, hard_text = hard_negative_weights(image, text, math.log(3), 1)
    torch.testing.assert_close(positive, torch.tensor([[0, 1 / 2 - 1 / 6], [0.2, 0.2]]) + LEAST)
    # caption 0 sees the images as 3 to 1, the others as 1 to 3
    expected = torch.tensor([[0, 1 / 4], [0, 3 / 4], [1 / 4, 0], [1 / 4, 0]])
    torch.testing.assert_close(hard_image, torch.where(expected > 0, expected + LEAST, 0.0))
    expected = torch.tensor([[0, 0, 1 / 6, 1 / 6], [0.1, 0.3, 0, 0]])
    torch.testing.assert_close(hard_text, torch.where(expected > 0, expected + LEAST, 0.0))
    assert torch.equal(hard_negative_weights(image, text, math.log(3), 0).positive, torch.ones(2, 2))
    by_score = hard_negative_weights(image, text, math.log(3), 2).positive
    torch.testing.assert_close(by_score, torch.tensor([[0, math.log(3)], [0, 0]]) + LEAST)


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_weights_equal_the_definition(kind: int) -> None:
    image, text = batch()
    ids = torch.tensor([5, 9, 5])
    got = hard_negative_weights(image, text, 6.0, kind, ids)
    captions = text.flatten(0, 1)
    score = [[6.0 * float(i @ t) for t in captions] for i in image]
    over_captions = [[math.exp(s) / sum(map(math.exp, row)) + LEAST for s in row] for row in score]
    over_images = [[math.exp(s) / sum(map(math.exp, row)) + LEAST for s in row] for row in zip(*score, strict=True)]
    scores = {0: None, 1: over_captions, 2: score}[kind]
    for i in range(3):
        for k in range(2):
            weight = 1.0 if scores is None else max(map(max, scores)) + LEAST - scores[i][2 * i + k]
            assert float(got.positive[i, k]) == pytest.approx(weight)
        for j in range(6):
            own = ids[i] == ids[j // 2]
            assert float(got.text[i, j]) == pytest.approx(0 if own else over_captions[i][j])
            assert float(got.image[j, i]) == pytest.approx(0 if own else over_images[j][i])


def test_weights_carry_no_gradient_and_are_wide() -> None:
    image, text = (tensor.to(torch.bfloat16).requires_grad_() for tensor in batch())
    scale = torch.tensor(5.0, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        weights = hard_negative_weights(image, text, scale, 1)
    assert all(weight.dtype == torch.float32 and not weight.requires_grad for weight in weights)
    with pytest.raises(ValueError, match="choose one of 0, 1, 2"):
        hard_negative_weights(image, text, scale, 3)


def test_drawn_pairs() -> None:
    image, text = batch(images=4, captions=3)
    weights = hard_negative_weights(image, text, 20.0, 1)
    seen = torch.zeros(4, 3)
    for seed in range(200):
        pairs = draw_matching_pairs(weights, torch.Generator().manual_seed(seed))
        assert pairs.labels.tolist() == [1] * 4 + [0] * 8
        assert pairs.image[:4].tolist() == pairs.image[8:].tolist() == [0, 1, 2, 3]
        assert torch.equal(pairs.text[:4], pairs.text[4:8])
        assert torch.equal(pairs.labels == 1, pairs.text // 3 == pairs.image)
        seen[pairs.image[:4], pairs.text[:4] % 3] += 1
    share = weights.positive / weights.positive.sum(1, keepdim=True)
    assert (seen / 200 - share).abs().max() < 0.15
    again = draw_matching_pairs(weights, torch.Generator().manual_seed(199))
    assert all(map(torch.equal, pairs, again))


def test_items_without_a_foreign_one_have_no_negative_pairs() -> None:
    image, text = batch(images=1)
    pairs = draw_matching_pairs(hard_negative_weights(image, text, 20.0, 1))
    assert (pairs.image.tolist(), pairs.labels.tolist()) == ([0], [1])
    image, text = batch(images=3, captions=1)
    pairs = draw_matching_pairs(hard_negative_weights(image, text, 20.0, 1, torch.tensor([4, 4, 4])))
    assert pairs.labels.tolist() == [1, 1, 1]
    pairs = draw_matching_pairs(hard_negative_weights(image[:0], text[:0], 20.0, 1))
    assert pairs.labels.tolist() == []


def test_matching_and_masked_words_are_plain_cross_entropies() -> None:
    logits = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]])
    assert matching_loss(logits, torch.tensor([1, 1])).item() == pytest.approx(math.log(4 / 3))
    assert matching_loss(logits, torch.tensor([1, 0])).item() == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)
    slots = torch.randn(2, 3, 7, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[2, 6, -100], [0, -100, -100]])
    loss = masked_word_loss(slots, labels)
    picked = [slots[0, 0].log_softmax(0)[2], slots[0, 1].log_softmax(0)[6], slots[1, 0].log_softmax(0)[0]]
    expected = -torch.stack(picked).mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(loss, slots)[0], gradients(expected, slots)[0])
    assert matching_loss(logits.half(), torch.tensor([1, 1])).dtype == torch.float32


def test_nothing_to_match_gives_a_zero_with_a_graph() -> None:
    logits = torch.randn(3, 2, requires_grad=True)
    matching_loss(logits[:0], torch.zeros(0, dtype=torch.long)).backward()
    words = masked_word_loss(logits, torch.full((3,), -100))
    assert words.item() == 0
    words.backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum() == 0


def test_released_weights(shared_dir: Path) -> None:
    fixture = load_fixture(shared_dir, "ccrk/ccrk_losses.npz")
    image, text = (F.normalize(fixture[f"{side}_raw"], dim=1) for side in ("image", "text"))
    text = text.view(len(image), -1, image.shape[1])
    chosen = torch.arange(len(image)) * text.shape[1] + fixture["hitm_pos_language"]
    for a, tau in enumerate(fixture["hitm_temps"].float()):
        for kind in (1, 2):
            weights = hard_negative_weights(image, text, 1 / tau, kind)
            same(weights.positive, fixture[f"hitm_t{a}_type{kind}_w_pos"])
            same(weights.image, fixture[f"hitm_t{a}_weights_t2i"])
            same(weights.text, fixture[f"hitm_t{a}_weights_i2t"])
            same(weights.image[chosen], fixture[f"hitm_t{a}_type1_w_hard_image"])
            same(weights.text, fixture[f"hitm_t{a}_type1_w_hard_text"])
    tau = fixture["hitm_temps"].float()[0]
    single = hard_negative_weights(image, text.flatten(0, 1)[fixture["itc1_text_rows"]][:, None], 1 / tau, 1)
    same(single.image, fixture["itm1_w_hard_image"])
    same(single.text, fixture["itm1_w_hard_text"])


def test_released_weights_of_fine_tuning(shared_dir: Path) -> None:
    fixture = load_fixture(shared_dir, "ccrk/ccrk_losses.npz")
    image, text = (F.normalize(fixture[f"ft_{side}_raw"], dim=1) for side in ("image", "text"))
    tau = fixture["temps"].float()[0]
    weights = hard_negative_weights(image, text[:, None], 1 / tau, 1, fixture["ft_idx"])
    same(weights.image, fixture["ft_itm_w_hard_image"])
    same(weights.text, fixture["ft_itm_w_hard_text"])


def test_released_runs(shared_dir: Path) -> None:
    """Recorded features and logits of whole runs give the recorded losses and weights."""
    path = shared_dir / "fixtures" / "ccrk" / "ccrk_tiny.pt"
    if not path.exists():
        pytest.skip(f"{path} is missing")
    with torch.serialization.safe_globals([np.ndarray, np.dtype, np.dtypes.UInt32DType, _reconstruct]):
        checkpoint = torch.load(path, weights_only=True)
    saved, scale = checkpoint["fixture"], 1 / checkpoint["model"]["temp"]
    image, text = saved["outputs"]["image_feat"], saved["outputs"]["text_feat"]
    text = text.view(len(image), -1, image.shape[1])
    runs = saved["outputs"]["runs"]
    for kind in (0, 1, 2):
        recorded = runs[f"type{kind}"]
        rows, losses = torch.as_tensor(recorded["pos_rows"]), recorded["losses"]
        same(one_to_k_info_nce(image, text, scale), torch.tensor(losses["loss_mitc"]))
        weights = hard_negative_weights(image, text, scale, kind)
        if kind:  # a uniform draw has no weights
            same(weights.positive, recorded["w_pos"])
        same(weights.image[rows], recorded["w_hard_image"])
        same(weights.text, recorded["w_hard_text"])
        same(matching_loss(recorded["itm_logits"], recorded["itm_labels"]), torch.tensor(losses["loss_hitm"]))
        words = saved["inputs"]["masked_ids"][rows]
        same(masked_word_loss(recorded["mlm_logits"], words), torch.tensor(losses["loss_hmlm"]))
    for divisor, name in ((3, "type1_divm3"), (0, "type1_divm-1")):
        same(one_to_k_info_nce(image, text, scale, divisor), torch.tensor(runs[name]["loss_mitc"]))
