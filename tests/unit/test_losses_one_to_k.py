from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mclip_fairseq.losses import global_one_to_k_info_nce, one_to_k_info_nce, symmetric_info_nce
from tests.parity import gradients, load_fixture, same


def batch(images: int = 4, captions: int = 3, dim: int = 5) -> tuple[Tensor, Tensor]:
    image, text = torch.randn(images, dim, dtype=torch.float64), torch.randn(images, captions, dim, dtype=torch.float64)
    return F.normalize(image, dim=1).requires_grad_(), F.normalize(text, dim=2).requires_grad_()


def slow(image: Tensor, text: Tensor, scale: Tensor, divisor: float) -> Tensor:
    """The definition, one number at a time."""
    images, captions, _ = text.shape
    score = {
        (i, j, k): scale * sum(a * b for a, b in zip(image[i], text[j, k], strict=True))
        for i in range(images)
        for j in range(images)
        for k in range(captions)
    }
    i2t, t2i = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for i in range(images):
        partition = sum(score[i, j, k].exp() for j in range(images) for k in range(captions))
        for k in range(captions):
            i2t = i2t + (partition.log() - score[i, i, k]) / images
            over_images = sum(score[j, i, k].exp() for j in range(images))
            t2i = t2i + (over_images.log() - score[i, i, k]) / (images * captions)
    return (i2t + t2i) / 2 / divisor


def test_two_images_with_two_captions() -> None:
    image = torch.eye(2)
    text = torch.stack([image, image], dim=1)  # each image twice
    # image -> text: scores ln 3 twice and 0 twice, 3/8 for each own caption; text -> image: 3/4
    i2t, t2i = 2 * math.log(8 / 3), math.log(4 / 3)
    for divisor, number in ((None, 2), (0, 1), (3, 3)):
        loss = one_to_k_info_nce(image, text, math.log(3), divisor)
        assert loss.item() == pytest.approx((i2t + t2i) / 2 / number)


@pytest.mark.parametrize(("divisor", "number"), [(None, 3), (0, 1), (2.5, 2.5)])
def test_value_and_gradients_equal_the_definition(divisor: float | None, number: float) -> None:
    image, text = batch()
    scale = torch.tensor(7.0, dtype=torch.float64, requires_grad=True)
    loss, expected = one_to_k_info_nce(image, text, scale, divisor), slow(image, text, scale, number)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for got, wanted in zip(gradients(loss, image, text, scale), gradients(expected, image, text, scale), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)


def test_one_caption_is_ordinary_info_nce() -> None:
    image, text = batch(captions=1)
    torch.testing.assert_close(one_to_k_info_nce(image, text, 7.0), symmetric_info_nce(image, text[:, 0], 7.0))


def test_order_of_captions_does_not_matter_but_their_image_does() -> None:
    image, text = batch()
    loss = one_to_k_info_nce(image, text, 7.0)
    torch.testing.assert_close(one_to_k_info_nce(image, text.flip(1), 7.0), loss)
    assert abs(one_to_k_info_nce(image, text.flip(0), 7.0) - loss) > 1e-2


def test_hits() -> None:
    image = torch.eye(2)
    text = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.6, 0.8], [0.0, 1.0]]])
    # image 0 finds its first caption; image 1 ties between an own and a foreign one. Caption 2 goes to image 0.
    out = global_one_to_k_info_nce(image, text, 5.0)
    assert (int(out.hits_xy), int(out.hits_yx), out.rows) == (1, 3, 2)


def test_half_precision_is_widened_also_under_autocast() -> None:
    image, text = (tensor.detach().to(torch.bfloat16) for tensor in batch(8, 2, 64))
    with torch.autocast("cpu", torch.bfloat16):
        loss = one_to_k_info_nce(image, text, 50.0)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), one_to_k_info_nce(image.double(), text.double(), 50.0), rtol=1e-5, atol=0)


def test_no_images_give_a_zero_with_a_graph() -> None:
    image, text = batch()
    out = global_one_to_k_info_nce(image[:0], text[:0], 5.0)
    assert (out.loss.item(), out.rows, int(out.hits_xy), int(out.hits_yx)) == (0, 0, 0, 0)
    out.loss.backward()
    assert image.grad is not None
    assert text.grad is not None


def test_unsuitable_shapes_are_refused() -> None:
    image, text = batch()
    for bad in (text[:2], text[:, :, :2], text[:, 0], text[:, :0]):
        with pytest.raises(ValueError, match=r"\(B, D\) and \(B, K, D\)"):
            one_to_k_info_nce(image, bad, 1.0)


def test_released_pre_training(shared_dir: Path) -> None:
    fixture = load_fixture(shared_dir, "ccrk/ccrk_losses.npz")
    images, dim = fixture["image_raw"].shape
    for row, mode in enumerate(fixture["need_divm"].tolist()):
        divisor = None if mode == 0 else 0 if mode < 0 else mode  # ours: 0 is the sum
        for column, start in enumerate(fixture["temps"]):
            raw = [fixture[f"{side}_raw"].clone().requires_grad_() for side in ("image", "text")]
            tau = start.float().requires_grad_()
            image, text = F.normalize(raw[0], dim=1), F.normalize(raw[1], dim=1)
            loss = one_to_k_info_nce(image, text.view(images, -1, dim), 1 / tau, divisor)
            same(loss, fixture["mitc"][row, column])
            by_tau, by_image, by_text, *by_raw = gradients(loss, tau, image, text, *raw)
            same(by_tau, fixture["mitc_grad_temp"][row, column])
            key = "neg" if mode < 0 else str(mode)
            if column == 0 and f"mitc_grad_image_feat_div{key}" in fixture:
                same(by_image, fixture[f"mitc_grad_image_feat_div{key}"])
                same(by_text, fixture[f"mitc_grad_text_feat_div{key}"])
            if column == 0 and mode == 0:
                same(by_raw[0], fixture["mitc_grad_image_raw_div0"])
                same(by_raw[1], fixture["mitc_grad_text_raw_div0"])


def test_released_single_captions(shared_dir: Path) -> None:
    fixture = load_fixture(shared_dir, "ccrk/ccrk_losses.npz")
    image, text = (F.normalize(fixture[f"{side}_raw"], dim=1) for side in ("image", "text"))
    first = text.view(len(image), -1, image.shape[1])[:, :1]
    for column, tau in enumerate(fixture["temps"].float()):
        same(one_to_k_info_nce(image, first, 1 / tau), fixture["mitc_K1"][column])
        same(one_to_k_info_nce(image, text[fixture["itc1_text_rows"]][:, None], 1 / tau), fixture["itc1"][column])


def test_released_fine_tuning(shared_dir: Path) -> None:
    """Captions of one image are positives of each other, and a row's targets add up to 1: the mean over positives."""
    fixture = load_fixture(shared_dir, "ccrk/ccrk_losses.npz")
    ids = fixture["ft_idx"]
    positives = ids[:, None] == ids
    same(positives / positives.sum(1, keepdim=True), fixture["ft_labels"])
    for column, start in enumerate(fixture["temps"]):
        image, text = (F.normalize(fixture[f"ft_{side}_raw"], dim=1).requires_grad_() for side in ("image", "text"))
        tau = start.float().requires_grad_()
        loss = symmetric_info_nce(image, text, 1 / tau, positives)
        same(loss, fixture["ft_itc"][column])
        by_tau, by_image, by_text = gradients(loss, tau, image, text)
        same(by_tau, fixture["ft_itc_grad_temp"][column])
        if column == 0:
            same(by_image, fixture["ft_itc_grad_image_feat"])
            same(by_text, fixture["ft_itc_grad_text_feat"])


def test_released_two_ranks(shared_dir: Path) -> None:
    """Each of the released ranks has the loss of the union, and its rows the slice of the union's gradient."""
    fixture = load_fixture(shared_dir, "ccrk/ccrk_losses.npz")
    count, dim = int(fixture["w2_images"]), fixture["image_raw"].shape[1]
    image = F.normalize(fixture["image_raw"][:count], dim=1).requires_grad_()
    captions = len(fixture["text_raw"]) // len(fixture["image_raw"])
    text = F.normalize(fixture["text_raw"][: count * captions], dim=1).requires_grad_()
    tau = fixture["temps"][0].float().requires_grad_()
    loss = one_to_k_info_nce(image, text.view(count, captions, dim), 1 / tau)
    by_tau, by_image, by_text = gradients(loss, tau, image, text)
    for rank in range(2):
        same(loss, fixture["w2_loss"][rank])
        same(by_tau, fixture["w2_grad_temp"][rank])
    same(by_image, fixture["w2_grad_image_feat"].flatten(0, 1))
    same(by_text, fixture["w2_grad_text_feat"].flatten(0, 1))
    assert abs(loss.detach() - fixture["w2_loss_without_gather"][0]) > 1e-2
