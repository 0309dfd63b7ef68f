"""`mclip-average`: the weighted mean of checkpoints."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mclip_fairseq.cli.average import main
from mclip_fairseq.storage.checkpoints import load_checkpoint
from mclip_fairseq.storage.sealed import sealed_updates

LEGACY = Path(__file__).parents[1] / "data" / "legacy" / "mclip.pt"


def changed(folder: Path, name: str, **entries: torch.Tensor) -> Path:
    """The old checkpoint with other parameters, and with some entries given."""
    state = load_checkpoint(LEGACY)
    generator = torch.Generator().manual_seed(len(name))
    model = {
        key: value + torch.randn(value.shape, generator=generator) if value.is_floating_point() else value
        for key, value in state["model"].items()
    }
    torch.save(state | {"model": model | entries}, folder / name)
    return folder / name


def average(output: Path, *arguments: Any) -> dict[str, Any]:
    assert main([*map(str, arguments), "--output", str(output)]) == 0
    return load_checkpoint(output)


@pytest.mark.parametrize(("weights", "shares"), [((), (0.5, 0.5)), (("3", "1"), (0.75, 0.25)), (("2", "-1"), (2, -1))])
def test_parameters_are_the_weighted_mean(tmp_path: Path, weights: tuple[str, ...], shares: tuple[float, ...]) -> None:
    files = [changed(tmp_path, "a.pt"), changed(tmp_path, "longer.pt")]
    made = average(tmp_path / "mean.pt", *files, *(["--weights", *weights] if weights else []))
    models = [load_checkpoint(file)["model"] for file in files]
    assert made["model"].keys() == models[0].keys()
    for name, value in made["model"].items():
        if value.is_floating_point():
            expected = sum(share * model[name] for share, model in zip(shares, models, strict=True))
            assert torch.allclose(value, expected, atol=1e-5)
        else:
            assert torch.equal(value, models[0][name])
    assert made["cfg"] == load_checkpoint(files[0])["cfg"]


def test_the_mean_has_no_optimizer_and_is_sealed(tmp_path: Path) -> None:
    """Resuming there would pair the mean with the moments of one of the trainings."""
    made = average(tmp_path / "mean.pt", changed(tmp_path, "a.pt"), changed(tmp_path, "longer.pt"))
    assert made["last_optimizer_state"] is None
    assert made["optimizer_history"][-1]["num_updates"] == 0
    assert sealed_updates(tmp_path / "mean.pt") == 0


def test_many_equal_checkpoints_are_their_own_mean(tmp_path: Path) -> None:
    one = changed(tmp_path, "a.pt")
    made = average(tmp_path / "mean.pt", one, one, one)
    for name, value in load_checkpoint(one)["model"].items():
        assert torch.allclose(made["model"][name].double(), value.double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a"], "one checkpoint has no mean"),
        (["a", "b", "--weights", "1"], "--weights has 1 numbers for 2 checkpoints"),
        (["a", "b", "--weights", "1", "-1"], "--weights add up to 0"),
        (["a", "mean"], "is one of the checkpoints to average"),
        (["a", "shape"], "average models of one kind"),
        (["a", "more"], "has no extra, which another checkpoint has"),
        (["a", "frozen"], "average models with the same frozen parts"),
        (["a", "absent"], "not found"),
    ],
)
def test_what_cannot_be_averaged_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    state = load_checkpoint(LEGACY)["model"]
    whole = next(name for name, value in state.items() if not value.is_floating_point())
    changed(tmp_path, "a"), changed(tmp_path, "b"), changed(tmp_path, "mean")
    changed(tmp_path, "shape", **{"logit_scale": torch.zeros(2)})
    changed(tmp_path, "more", extra=torch.zeros(2))
    changed(tmp_path, "frozen", **{whole: state[whole] + 1})
    given = [argument if argument.lstrip("-")[:1] in ("w", "1") else str(tmp_path / argument) for argument in arguments]
    assert main([*given, "--output", str(tmp_path / "mean")]) == 2
    assert message in capsys.readouterr().err
