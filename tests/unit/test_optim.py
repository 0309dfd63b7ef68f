from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils, optim
from fairseq.optim import FairseqOptimizer
from omegaconf import OmegaConf
from torch import Tensor

from mclip_fairseq.optim import fused_adamw, mclip_lamb

SHAPES = [(4, 3), (5,), (), (2, 3, 4), (1, 7)]
NAMES = ["fused_adamw", "mclip_lamb"]


def parameters(shapes: list[Any] = SHAPES) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def gradients(step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return [3 * torch.randn(shape, generator=generator) for shape in SHAPES]


def build(name: str, params: list[torch.nn.Parameter], **settings: Any) -> FairseqOptimizer:
    config = OmegaConf.create({"_name": name, "lr": [0.01], **settings})
    optimizer = optim.build_optimizer(config, params)
    assert type(optimizer) is (fused_adamw.FusedAdamW if name == "fused_adamw" else mclip_lamb.MCLIPLamb)
    return optimizer


def take_steps(optimizer: FairseqOptimizer, params: list[torch.nn.Parameter], first: int, last: int) -> None:
    for step in range(first, last):
        for param, grad in zip(params, gradients(step), strict=True):
            param.grad = grad.clone()
        optimizer.set_lr(0.01 / (1 + step))
        optimizer.step()
        optimizer.zero_grad()
        assert all(param.grad is None for param in params)


def plain_lamb(params: Sequence[Tensor], steps: int, decay: float, limit: float = 0.0) -> list[Tensor]:
    """LAMB as the paper writes it, in float64, one tensor at a time."""
    weights = [param.detach().double() for param in params]
    means, squares = [torch.zeros_like(w) for w in weights], [torch.zeros_like(w) for w in weights]
    for step in range(steps):
        grads = [grad.double() for grad in gradients(step)]
        norm = sum(float((grad**2).sum()) for grad in grads) ** 0.5
        for i, grad in enumerate(grads):
            grad = grad * min(1.0, limit / norm) if limit else grad
            means[i] = 0.9 * means[i] + 0.1 * grad
            squares[i] = 0.999 * squares[i] + 0.001 * grad**2
            mean, square = means[i] / (1 - 0.9 ** (step + 1)), squares[i] / (1 - 0.999 ** (step + 1))
            update = mean / (square**0.5 + 1e-8) + decay * weights[i]
            length, update_length = float((weights[i] ** 2).sum()) ** 0.5, float((update**2).sum()) ** 0.5
            ratio = length / update_length if length and update_length else 1.0
            weights[i] = weights[i] - 0.01 / (1 + step) * ratio * update
    return weights


@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e4])
def test_the_trust_ratio_has_no_limit(factor: float) -> None:
    """Weights of any length move by the same part of it; a ratio clamped at 10 would slow large ones down."""
    params = parameters()
    for param in params:
        param.data *= factor
    start = [param.detach().clone() for param in params]
    expected = plain_lamb(params, 1, 0.0)
    take_steps(build("mclip_lamb", params), params, 0, 1)
    for param, wanted, before in zip(params, expected, start, strict=True):
        torch.testing.assert_close(param.detach().double(), wanted, rtol=1e-6, atol=0.0)
        moved = float((param.detach() - before).norm() / before.norm())
        assert moved == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("elements", [1, 30, 2**25])
@pytest.mark.parametrize("limit", [0.0, 0.5])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_lamb_equals_the_plain_reference(
    decay: float, limit: float, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many parameters one call takes."""
    monkeypatch.setattr(mclip_lamb, "GROUP_ELEMENTS", elements)
    params = parameters()
    params[1].data.zero_()  # a norm of 0: the ratio is 1
    expected = [plain_lamb(params, steps, decay, limit) for steps in range(6)]
    optimizer = build("mclip_lamb", params, weight_decay=decay, lamb_max_grad_norm=limit)
    for step in range(5):
        take_steps(optimizer, params, step, step + 1)
        for param, wanted in zip(params, expected[step + 1], strict=True):
            torch.testing.assert_close(param.detach().double(), wanted, rtol=1e-6, atol=1e-6)
    assert max(float((a - b).abs().max()) for a, b in zip(expected[5], expected[0], strict=True)) > 1e-2


def test_lamb_groups_keep_their_order_and_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mclip_lamb, "GROUP_ELEMENTS", 10)
    tensors = [torch.empty(size) for size in (4, 6, 1, 25, 3, 3, 0, 5)]
    groups = [[len(tensor) for tensor in group] for group in mclip_lamb.in_groups(tensors)]
    assert groups == [[4, 6], [1], [25], [3, 3, 0], [5]]
    assert list(mclip_lamb.in_groups([])) == []


def test_lamb_step_moves_a_tensor_by_the_rate_times_its_length() -> None:
    (param,) = params = parameters([(4, 3)])
    before, length = param.detach().clone(), float(param.detach().norm())
    param.grad = torch.randn(4, 3)
    build("mclip_lamb", params, lr=[0.25]).step()
    assert float((param.detach() - before).norm()) == pytest.approx(0.25 * length, rel=1e-5)


def test_lamb_without_anything_to_do_changes_nothing() -> None:
    (param,) = params = parameters([(4, 3)])
    before = param.detach().clone()
    param.grad = torch.zeros(4, 3)  # the ratio of lengths would be infinite
    build("mclip_lamb", params).step()
    assert torch.equal(param, before)


def test_lamb_limit_leaves_small_gradients_alone_and_never_touches_grad() -> None:
    results = []
    for limit in (0.0, 1e6):
        params = parameters()
        take_steps(build("mclip_lamb", params, lamb_max_grad_norm=limit), params, 0, 2)
        results.append(params)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    (param,) = parameters([(3,)])
    param.grad = torch.full((3,), 100.0)
    lamb = mclip_lamb.Lamb([param], max_grad_norm=1.0)
    assert lamb.step(lambda: torch.is_grad_enabled()) is True
    assert param.grad.tolist() == [100.0] * 3


@pytest.mark.parametrize("name", NAMES)
def test_parameters_without_gradient_keep_their_values_and_steps(name: str) -> None:
    params = parameters()
    optimizer = build(name, params, weight_decay=0.1)
    before = [param.detach().clone() for param in params]
    params[0].grad = torch.ones(4, 3)
    optimizer.step()
    assert not torch.equal(params[0], before[0])
    assert all(torch.equal(param, old) for param, old in zip(params[1:], before[1:], strict=True))
    late, fresh = params[3], torch.nn.Parameter(before[3].clone())
    late.grad, fresh.grad, params[0].grad = torch.ones(2, 3, 4), torch.ones(2, 3, 4), None
    optimizer.step()
    build(name, [fresh], weight_decay=0.1).step()
    assert torch.equal(late, fresh)  # its first step is corrected as a first step


def test_adamw_equals_torch_and_decays_matrices_only() -> None:
    params, plain = parameters(), parameters()
    optimizer = build("fused_adamw", params, adamw_betas="(0.8, 0.95)", adamw_eps=1e-6, weight_decay=0.3)
    groups = [{"params": [p]} | ({} if p.dim() >= 2 else {"weight_decay": 0.0}) for p in plain]
    torchs = torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.3, foreach=False)
    for step in range(5):
        take_steps(optimizer, params, step, step + 1)
        for param, grad in zip(plain, gradients(step), strict=True):
            param.grad = grad.clone()
        for group in torchs.param_groups:
            group["lr"] = 0.01 / (1 + step)
        torchs.step()
    torch.testing.assert_close(params, plain, rtol=1e-6, atol=1e-6)
    assert all(group["fused"] for group in optimizer.param_groups)
    undecayed = parameters()
    take_steps(build("fused_adamw", undecayed, adamw_betas="(0.8, 0.95)", adamw_eps=1e-6), undecayed, 0, 5)
    same = [torch.equal(a, b) for a, b in zip(params, undecayed, strict=True)]
    assert same == [len(shape) < 2 for shape in SHAPES]


def round_trip(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Through a file, as a checkpoint goes."""
    torch.save(state, folder / "state.pt")
    return torch.load(folder / "state.pt", weights_only=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_restored_optimizer_continues_exactly(name: str, tmp_path: Path) -> None:
    params = parameters()
    optimizer = build(name, params, weight_decay=0.1)
    take_steps(optimizer, params, 0, 3)
    saved, stopped = round_trip(optimizer.state_dict(), tmp_path), copy.deepcopy(params)
    take_steps(optimizer, params, 3, 6)
    resumed = build(name, stopped, weight_decay=0.1)
    resumed.load_state_dict(saved, {})
    assert resumed.get_lr() == pytest.approx(0.01 / 3)
    take_steps(resumed, stopped, 3, 6)
    assert all(torch.equal(a, b) for a, b in zip(params, stopped, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_settings_after_restoring(name: str, tmp_path: Path) -> None:
    params = parameters()
    optimizer = build(name, params, weight_decay=0.1)
    take_steps(optimizer, params, 0, 1)
    saved = round_trip(optimizer.state_dict(), tmp_path)

    def settings(overrides: dict[str, Any]) -> list[tuple[float, float]]:
        resumed = build(name, parameters(), weight_decay=0.2, lr=[0.5])
        resumed.load_state_dict(copy.deepcopy(saved), overrides)
        return [(group["lr"], group["weight_decay"]) for group in resumed.param_groups]

    without_decay = [] if name == "mclip_lamb" else [0.0]
    # the command line's weight decay, the saved rate (the scheduler sets it anyway)
    assert settings({}) == [(0.01, decay) for decay in [0.2, *without_decay]]
    overrides = {"lr": 0.3, "weight_decay": 0.4}
    assert settings(overrides) == [(0.3, decay) for decay in [0.4, *without_decay]]


def test_adamw_state_fits_any_weight_decay(tmp_path: Path) -> None:
    params = parameters()
    optimizer = build("fused_adamw", params)
    take_steps(optimizer, params, 0, 1)
    resumed = build("fused_adamw", params, weight_decay=0.1)
    resumed.load_state_dict(round_trip(optimizer.state_dict(), tmp_path))
    assert [group["weight_decay"] for group in resumed.param_groups] == [0.1, 0.0]
    assert len(resumed.optimizer.state) == len(SHAPES)


def test_flattened_parameters() -> None:
    def flat() -> list[torch.nn.Parameter]:
        """What fairseq's FP16Optimizer makes of a model."""
        param = torch.nn.Parameter(torch.randn(50))
        param.grad = torch.zeros(50)
        return [param]

    with pytest.raises(ValueError, match="--fp16-no-flatten-grads"):
        build("fused_adamw", flat(), weight_decay=0.1)
    with pytest.raises(ValueError, match="--fp16-no-flatten-grads"):
        build("mclip_lamb", flat())
    assert build("fused_adamw", flat()).supports_flat_params
    assert not build("fused_adamw", parameters(), weight_decay=0.1).supports_flat_params
    assert not build("mclip_lamb", parameters()).supports_flat_params
    build("mclip_lamb", parameters([(5,)]))  # a model may consist of one vector


@pytest.mark.parametrize("betas", ["0.9", "(0.9, 1.0)", "(0.9, 0.99, 0.999)", "(0.9, x)", "('a', 'b')"])
def test_unsuitable_betas_are_refused(betas: str) -> None:
    with pytest.raises(ValueError, match=r"--adamw-betas is .* give two numbers"):
        build("fused_adamw", parameters(), adamw_betas=betas)
    with pytest.raises(ValueError, match=r"--lamb-betas is .* give two numbers"):
        build("mclip_lamb", parameters(), lamb_betas=betas)


@pytest.mark.parametrize("name", NAMES)
def test_moments_are_averaged_over_ranks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    params = parameters()
    optimizer = build(name, params)
    take_steps(optimizer, params, 0, 1)
    before = copy.deepcopy(optimizer.state_dict()["state"])
    # another rank whose moments are all 1
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.add_(1))
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    optimizer.average_params()
    for i, state in optimizer.state_dict()["state"].items():
        for moment in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(state[moment], (before[i][moment] + 1) / 2)


OPTIONS = {
    "fused_adamw": ["--adamw-betas", "(0.9, 0.98)", "--adamw-eps", "1e-6"],
    "mclip_lamb": ["--lamb-betas", "(0.9, 0.98)", "--lamb-eps", "1e-6", "--lamb-max-grad-norm", "1.0"],
}


@pytest.mark.parametrize("name", NAMES)
def test_fairseq_trains_stops_and_resumes(name: str, run_train: Callable[..., str], tmp_path: Path) -> None:
    """Five updates at once are, bit for bit, three and two: clipping and the schedule included."""

    def train(folder: str, updates: int) -> dict[str, Any]:
        model = ["--arch", "transformer_lm", "--decoder-layers", "1", "--decoder-embed-dim", "16"]
        model += ["--decoder-ffn-embed-dim", "16", "--decoder-attention-heads", "2", "--dropout", "0"]
        data = ["--task", "dummy_lm", "--dict-size", "40", "--dataset-size", "40", "--tokens-per-sample", "6"]
        schedule = ["--lr", "0.01", "--lr-scheduler", "inverse_sqrt", "--warmup-updates", "2", "--clip-norm", "1.0"]
        run_train(
            *data, *model, *schedule, "--optimizer", name, *OPTIONS[name], "--wd", "0.1", "--batch-size", "4",
            "--max-update", updates, "--save-dir", tmp_path / folder, "--disable-validation", "--no-epoch-checkpoints",
            "--num-workers", "0",
        )  # fmt: skip
        return checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / folder / "checkpoint_last.pt"))

    whole = train("whole", 5)
    train("parts", 3)
    parts = train("parts", 5)
    assert parts["optimizer_history"][-1]["num_updates"] == 5
    for key, value in whole["model"].items():
        assert torch.equal(value, parts["model"][key]), key
    steps = {float(state["step"]) for state in parts["last_optimizer_state"]["state"].values()}
    assert steps == {5.0}
    groups = whole["last_optimizer_state"]["param_groups"]
    assert [group["weight_decay"] for group in groups] == ([0.1, 0.0] if name == "fused_adamw" else [0.1])
    assert groups[0]["lr"] == pytest.approx(0.01 * (2 / 5) ** 0.5)
    assert tuple(groups[0]["betas"]) == (0.9, 0.98)
