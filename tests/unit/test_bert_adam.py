"""`bert_adam` and `warmup_cosine` against the released optimizer, and MLA's recorded runs step by step."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fairseq import optim
from fairseq.optim import lr_scheduler
from omegaconf import OmegaConf
from torch import Tensor

from mclip_fairseq.formats.mla import round_as_released, to_published
from mclip_fairseq.losses import symmetric_info_nce
from mclip_fairseq.models.mla import MLAModel
from mclip_fairseq.optim.bert_adam import BertAdam, FairseqBertAdam
from mclip_fairseq.optim.warmup_cosine import warmup_cosine
from tests.mla_fixture import build, load

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])
NOT_DECAYED = ("bias", "LayerNorm.weight")


@pytest.fixture(scope="module")
def recorded(shared_dir: Path) -> dict[str, np.ndarray]:
    return dict(np.load(shared_dir / "fixtures" / "mla" / "mla_bertadam.npz"))


@pytest.fixture(scope="module")
def runs(shared_dir: Path) -> dict[str, Any]:
    return load(shared_dir, "mla_train.pt")


@pytest.fixture(scope="module")
def tiny(shared_dir: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = load(shared_dir)["model"]
    return state


@pytest.mark.parametrize("total", [100, 17])
def test_the_schedule_is_the_released_one(recorded: dict[str, np.ndarray], total: int) -> None:
    factors = recorded[f"factor_warmup_cosine_T{total}"][: total + 1]
    assert [warmup_cosine(t / total) for t in range(total + 1)] == pytest.approx(factors.tolist(), abs=1e-12)
    settings = OmegaConf.create({"_name": "bert_adam", "lr": [0.5], "max_update": 0})
    optimizer = optim.build_optimizer(settings, [torch.nn.Parameter(torch.zeros(2, 2))])
    schedule = lr_scheduler.build_lr_scheduler(
        OmegaConf.create({"_name": "warmup_cosine", "lr": [0.5], "total_num_update": total, "max_update": 0}), optimizer
    )
    rates = [schedule.step_update(t) for t in range(total + 1)]
    assert rates == pytest.approx((0.5 * factors).tolist(), abs=1e-9)


@pytest.mark.parametrize("variant", ["plain", "grad_none"])
def test_updates_are_those_of_the_released_optimizer(recorded: dict[str, np.ndarray], variant: str) -> None:
    names = [key.split("/", 2)[2] for key in recorded if key.startswith(f"{variant}/init/")]
    weights = {name: torch.nn.Parameter(torch.tensor(recorded[f"{variant}/init/{name}"])) for name in names}
    still = [weight for name, weight in weights.items() if name.endswith(NOT_DECAYED)]
    moving = [weight for name, weight in weights.items() if not name.endswith(NOT_DECAYED)]
    optimizer = BertAdam([{"params": moving, "weight_decay": 0.2}, {"params": still}], lr=0.05, total=20)
    for step in range(6):
        for name, weight in weights.items():
            gradient = recorded.get(f"{variant}/grad{step}/{name}")
            weight.grad = None if gradient is None else torch.tensor(gradient)
        optimizer.step()
        for name, weight in weights.items():
            expected = torch.tensor(recorded[f"{variant}/param_after_step{step}/{name}"])
            torch.testing.assert_close(weight.detach(), expected, rtol=1e-6, atol=1e-6)
    for name, weight in weights.items():
        torch.testing.assert_close(
            optimizer.state[weight]["exp_avg"], torch.tensor(recorded[f"{variant}/m/{name}"]), rtol=1e-5, atol=1e-7
        )


def optimizer_of(model: MLAModel, lr: float, total: int) -> Any:
    """The registered optimizer with the released code's clock."""
    settings = {"_name": "bert_adam", "lr": [lr], "max_update": total, "bert_adam_clock": "parameter"}
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = optim.build_optimizer(OmegaConf.create(settings), trained)
    assert isinstance(optimizer, FairseqBertAdam)
    return optimizer.optimizer


def pixels(images: dict[str, Tensor], names: list[str]) -> Tensor:
    """CLIP's normalisation of images that already have the model's size."""
    return torch.stack([((images[name].float() / 255 - MEAN) / STD).permute(2, 0, 1) for name in names])


def loss_of(model: MLAModel, run: str, step: dict[str, Any], images: dict[str, Tensor]) -> Tensor:
    """The loss of one recorded step, English features and images frozen where the stage says so."""
    ids, lang = step["ids"], step["lang"] or "en"
    if run.startswith("nlt"):
        with torch.no_grad():
            teacher = model.encode_clip_text(ids[0])
        return torch.nn.functional.mse_loss(model.text_features(ids[1], lang), teacher)
    text = model.encode_text(ids[-1], lang)
    image = model.encode_image(pixels(images, step["image_names"]))
    return symmetric_info_nce(text, image, model.scale)


def replay(model: MLAModel, name: str, run: dict[str, Any], images: dict[str, Tensor], total: int) -> list[float]:
    """Take a run's steps with its own data; returns the losses."""
    optimizer = optimizer_of(model.train(), run["args"]["lr"], total)
    losses = []
    for step in run["steps"]:
        loss = loss_of(model, name, step, images)
        # torch < 2 sets gradients to zero: a language that was drawn once is moved in the steps of others.
        optimizer.zero_grad(set_to_none=run["zero_grad"] == "None")
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("name", ["nlt", "nlt_grads_none", "le", "finetune_en", "finetune_all"])
def test_recorded_runs_step_by_step(name: str, runs: dict[str, Any], tiny: dict[str, Tensor]) -> None:
    run = runs["runs"][name]
    start = dict(tiny)
    if name == "le":  # it starts from the file of nlt, which the loader rounds
        start |= runs["runs"]["nlt"]["final"]
        start = round_as_released(start)
    parts = "acquirers,embedding,linear" + (",clip" if name.startswith("finetune") else "")
    model = build(start, train_parts=parts)
    total = run["args"]["max_step"] if run["args"]["max_step"] > 0 else len(run["steps"])
    losses = replay(model, name, run, runs["images"], total)
    assert losses == pytest.approx([step["loss"] for step in run["steps"]], rel=1e-5)
    final = to_published(model)
    compared = {key: tensor for key, tensor in run["final"].items() if ".ln." not in key}
    assert len(compared) >= 7
    for key, tensor in compared.items():
        torch.testing.assert_close(final[key], tensor, rtol=0, atol=3e-5, msg=key)


def test_the_clock_of_the_run_is_the_default(tiny: dict[str, Tensor]) -> None:
    model = build(tiny)
    settings = OmegaConf.create({"_name": "bert_adam", "lr": [0.1], "max_update": 50})
    optimizer: Any = optim.build_optimizer(settings, [weight for weight in model.parameters() if weight.requires_grad])
    assert optimizer.optimizer.param_groups[0]["total"] == 0
    decayed = {id(weight) for weight in optimizer.optimizer.param_groups[0]["params"]}
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert {name for name, weight in trained.items() if id(weight) in decayed} == {
        name for name in trained if not name.endswith("bias")
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bert_adam_clock": "parameter", "max_update": 0}, "--bert-adam-clock parameter needs the number of updates"),
        ({"bert_adam_betas": "(2, 0.9)"}, "--bert-adam-betas"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    config = OmegaConf.create({"_name": "bert_adam", "lr": [0.1], "max_update": 5, **settings})
    with pytest.raises(ValueError, match=message):
        optim.build_optimizer(config, [torch.nn.Parameter(torch.zeros(2, 2))])
