from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from fairseq.criterions.label_smoothed_cross_entropy import label_smoothed_nll_loss
from torch import Tensor

from mclip_fairseq.losses import chunked_linear_label_smoothed_nll, label_smoothed_nll, smoothing

PAD = 1


def slow_nll(logits: Tensor, target: Tensor, epsilon: float, kind: str) -> tuple[Tensor, Tensor]:
    """The definition, one row at a time."""
    loss = nll = torch.zeros((), dtype=torch.float64)
    classes = logits.shape[1]
    for row, gold in zip(logits, target.tolist(), strict=True):
        if gold == PAD:
            continue
        log_p = [score - torch.log(torch.stack([torch.exp(s) for s in row]).sum()) for score in row]
        if kind == "uniform":
            weights = [epsilon / classes + (1 - epsilon) * (v == gold) for v in range(classes)]
        else:
            weights = [1 - epsilon if v == gold else epsilon / (classes - 1) for v in range(classes)]
        loss = loss - sum(w * p for w, p in zip(weights, log_p, strict=True))
        nll = nll - log_p[gold]
    return loss, nll


def case(rows: int = 7, classes: int = 11, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    logits = (3 * torch.randn(rows, classes, dtype=dtype)).requires_grad_()
    target = torch.randint(2, classes, (rows,))
    target[1::3] = PAD
    return logits, target


def test_known_answer() -> None:
    logits, target = torch.tensor([[0.0, math.log(3)], [5.0, 5.0]]), torch.tensor([0, PAD])
    # p = 1/4, 3/4; the second row is padding
    gold, other = math.log(4), math.log(4 / 3)
    loss, nll = label_smoothed_nll(logits, target, 0.2, PAD, "fairseq")
    assert nll.item() == pytest.approx(gold)
    assert loss.item() == pytest.approx(0.8 * gold + 0.2 * other)
    loss, _ = label_smoothed_nll(logits, target, 0.2, PAD, "uniform")
    assert loss.item() == pytest.approx(0.9 * gold + 0.1 * other)


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("kind", smoothing.KINDS)
def test_value_and_gradient_equal_the_definition(kind: str, epsilon: float) -> None:
    logits, target = case()
    loss, nll = label_smoothed_nll(logits, target, epsilon, PAD, kind)
    expected, expected_nll = slow_nll(logits, target, epsilon, kind)
    torch.testing.assert_close((loss, nll), (expected, expected_nll), rtol=1e-12, atol=0)
    (got,), (wanted,) = torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits)
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-13)
    assert got[target == PAD].abs().sum() == 0


def test_kinds_are_those_of_fairseq_and_torch() -> None:
    logits, target = case()
    theirs = label_smoothed_nll_loss(logits.log_softmax(1), target[:, None], 0.1, ignore_index=PAD)
    torch.testing.assert_close(label_smoothed_nll(logits, target, 0.1, PAD, "fairseq"), theirs, rtol=1e-12, atol=0)
    torchs = F.cross_entropy(logits, target, ignore_index=PAD, reduction="sum", label_smoothing=0.1)
    uniform = label_smoothed_nll(logits, target, 0.1, PAD, "uniform")[0]
    torch.testing.assert_close(uniform, torchs, rtol=1e-12, atol=0)
    assert abs(uniform - theirs[0]) > 1e-3  # the kinds differ


def test_negative_ignore_index() -> None:
    logits, target = case()
    expected = label_smoothed_nll(logits, target, 0.1, PAD)
    outside = target.masked_fill(target == PAD, -100)
    torch.testing.assert_close(label_smoothed_nll(logits, outside, 0.1, -100), expected, rtol=1e-12, atol=0)


def test_half_precision_is_widened() -> None:
    logits, target = case(64, 500)
    half = logits.detach().half().requires_grad_()
    loss, nll = label_smoothed_nll(half, target, 0.1, PAD)
    assert loss.dtype == nll.dtype == torch.float32
    expected = label_smoothed_nll(half.double(), target, 0.1, PAD)[0]
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    assert torch.autograd.grad(loss, half)[0].dtype == torch.float16


@pytest.mark.parametrize("kind", smoothing.KINDS)
def test_chunks_change_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, target = case(10)
    whole = label_smoothed_nll(logits, target, 0.1, PAD, kind)
    (whole_grad,) = torch.autograd.grad(whole[0], logits)
    seen = record_logits(monkeypatch)
    monkeypatch.setattr(smoothing, "CHUNK_ELEMENTS", 3 * 11 + 5)
    chunked = label_smoothed_nll(logits, target, 0.1, PAD, kind)
    (chunked_grad,) = torch.autograd.grad(chunked[0], logits)
    assert seen[:4] == [3, 3, 3, 1]
    assert sorted(seen[4:]) == [1, 3, 3, 3]  # backward computes each once more
    torch.testing.assert_close(chunked, whole, rtol=1e-13, atol=0)
    torch.testing.assert_close(chunked_grad, whole_grad, rtol=1e-13, atol=0)


def record_logits(monkeypatch: pytest.MonkeyPatch, function: str = "_sum_of_rows") -> list[int]:
    """Rows of every block of logits from now on."""
    seen, original = [], getattr(smoothing, function)

    def recording(logits: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
        seen.append(len(logits))
        return original(logits, *rest)

    monkeypatch.setattr(smoothing, function, recording)
    return seen


@pytest.mark.parametrize("elements", [None, 1, 11, 44, 1100])
@pytest.mark.parametrize("kind", smoothing.KINDS)
def test_linear_by_rows(kind: str, elements: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    _, target = case(13)
    features = torch.randn(13, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 6, dtype=torch.float64, requires_grad=True)
    whole = label_smoothed_nll(features @ weight.T, target, 0.1, PAD, kind)
    wanted = torch.autograd.grad(whole[0], (features, weight))
    seen = record_logits(monkeypatch, "_sums_and_gradient")
    chunked = chunked_linear_label_smoothed_nll(features, weight, target, 0.1, PAD, kind, elements)
    got = torch.autograd.grad(chunked[0], (features, weight))
    # 13 rows, of which padding is never multiplied; backward multiplies none again.
    assert sum(seen) == int((target != PAD).sum()) <= 9
    assert max(seen) <= max(1, (elements or 13 * 11) // 11)
    torch.testing.assert_close(chunked, whole, rtol=1e-12, atol=0)
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("elements", [None, 1, 27, 40, 1100])
@pytest.mark.parametrize("kind", smoothing.KINDS)
def test_linear_by_classes(kind: str, elements: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    _, target = case(13)
    # Large logits, so that the largest so far grows from one block of classes to the next.
    features, weight = 9 * torch.randn(13, 6, dtype=torch.float64), torch.randn(11, 6, dtype=torch.float64)
    features.requires_grad_()
    whole = label_smoothed_nll(features @ weight.T, target, 0.1, PAD, kind)
    (wanted,) = torch.autograd.grad(whole[0], features)
    by_rows = record_logits(monkeypatch, "_sums_and_gradient")
    chunked = chunked_linear_label_smoothed_nll(features, weight, target, 0.1, PAD, kind, elements)
    (got,) = torch.autograd.grad(chunked[0], features)
    assert not by_rows  # a frozen table
    torch.testing.assert_close(chunked, whole, rtol=1e-12, atol=0)
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("trained", ["features", "table", "both", "neither"])
def test_only_what_is_trained_gets_a_gradient(trained: str) -> None:
    _, target = case(13)
    features = torch.randn(13, 6, dtype=torch.float64, requires_grad=trained in ("features", "both"))
    weight = torch.randn(11, 6, dtype=torch.float64, requires_grad=trained in ("table", "both"))
    inputs = [tensor for tensor in (features, weight) if tensor.requires_grad]
    loss, nll = chunked_linear_label_smoothed_nll(features, weight, target, 0.1, PAD, chunk_elements=22)
    assert (loss.requires_grad, nll.requires_grad) == (bool(inputs), False)
    if inputs:
        whole = label_smoothed_nll(features @ weight.T, target, 0.1, PAD)[0]
        # Twice, and of a multiple: the stored gradients stay as they are.
        for _ in range(2):
            got = torch.autograd.grad(loss * 3, inputs, retain_graph=True)
            torch.testing.assert_close(got, torch.autograd.grad(whole * 3, inputs, retain_graph=True))


@pytest.mark.parametrize("trained", [False, True])
def test_large_vocabularies_in_float32_are_exact_to_a_millionth(trained: bool) -> None:
    features, weight = torch.randn(40, 32, requires_grad=True), torch.randn(30_000, 32, requires_grad=trained)
    target = torch.randint(2, 30_000, (40,))
    loss, nll = chunked_linear_label_smoothed_nll(features, weight, target, 0.1, PAD, chunk_elements=16 * 30_000)
    exact = features.detach().double().requires_grad_()
    expected, expected_nll = label_smoothed_nll(exact @ weight.detach().double().T, target, 0.1, PAD)
    torch.testing.assert_close((loss.double(), nll.double()), (expected, expected_nll), rtol=1e-6, atol=0)
    (got,), (wanted,) = torch.autograd.grad(loss, features), torch.autograd.grad(expected, exact)
    assert float((got - wanted).norm() / wanted.norm()) < 1e-6


def test_float16_keeps_gradients_that_only_the_loss_scale_saves() -> None:
    """Each class gets less than float16's smallest number, times the loss scale more."""
    features = torch.zeros(4, 8, dtype=torch.float16, requires_grad=True)
    weight = torch.ones(60_000, 8, dtype=torch.float16).requires_grad_()
    with torch.no_grad():
        features += 1e-4
    loss, _ = chunked_linear_label_smoothed_nll(
        features, weight, torch.tensor([2, 3, 2, 3]), 0.0, PAD, chunk_elements=22
    )
    unscaled, scaled = (torch.autograd.grad(loss * scale, weight, retain_graph=True)[0] for scale in (1.0, 2.0**12))
    assert float(unscaled[100].abs().max()) == 0
    assert float(scaled[100].abs().min()) > 0


def test_linear_under_autocast_keeps_the_sums_in_float32() -> None:
    _, target = case(13)
    features, weight = torch.randn(13, 16, requires_grad=True), torch.randn(11, 16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = chunked_linear_label_smoothed_nll(features, weight, target, 0.1, PAD, chunk_elements=22)
        frozen, _ = chunked_linear_label_smoothed_nll(features, weight.detach(), target, 0.1, PAD, chunk_elements=22)
        expected, _ = label_smoothed_nll(F.linear(features, weight), target, 0.1, PAD)
    assert loss.dtype == frozen.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(frozen, expected, rtol=1e-3, atol=0)  # the mean of the logits is not rounded
    wanted = torch.autograd.grad(label_smoothed_nll(features @ weight.T, target, 0.1, PAD)[0], (features, weight))
    for got in (torch.autograd.grad(loss, (features, weight)), torch.autograd.grad(frozen, features)):
        for some, exact in zip(got, wanted, strict=False):
            assert float((some - exact).norm() / exact.norm()) < 0.01


def test_nothing_but_padding_gives_a_zero_with_a_graph() -> None:
    features = torch.randn(3, 4, requires_grad=True)
    weight = torch.randn(5, 4, requires_grad=True)
    loss, nll = chunked_linear_label_smoothed_nll(features, weight, torch.full((3,), PAD), 0.1, PAD)
    assert (loss.item(), nll.item()) == (0, 0)
    loss.backward()
    assert features.grad is not None
    assert weight.grad is not None
    assert features.grad.abs().sum() + weight.grad.abs().sum() == 0
    assert label_smoothed_nll(features @ weight.T, torch.full((3,), PAD), 0.1, PAD)[0].item() == 0


def test_no_gradient_no_graph() -> None:
    logits, target = case()
    with torch.no_grad():
        weight = torch.eye(11, dtype=torch.float64)
        loss, _ = chunked_linear_label_smoothed_nll(logits, weight, target, 0.1, PAD, chunk_elements=22)
    assert not loss.requires_grad


def test_unsuitable_arguments_are_refused() -> None:
    logits, target = case()
    with pytest.raises(ValueError, match="choose one of fairseq, uniform"):
        label_smoothed_nll(logits, target, 0.1, PAD, "none")
    with pytest.raises(ValueError, match=r"epsilon is 1\.0"):
        label_smoothed_nll(logits, target, 1.0, PAD)
    with pytest.raises(ValueError, match="chunk_elements is 0"):
        chunked_linear_label_smoothed_nll(logits, torch.eye(11), target, 0.1, PAD, chunk_elements=0)
