"""The model and criterion `ccrk` on the released checkpoints: what the released code computed with them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mclip_fairseq.formats.ccrk import OUR_POSITIONS, from_released
from mclip_fairseq.losses import hard_negative_weights
from mclip_fairseq.models.ccrk import CCRKModel
from mclip_fairseq.models.vision.swin import resize_table
from tests.ccrk_models import (
    PinnedCriterion,
    archive,
    checkpoint,
    fixture_folder,
    parallel_batch,
    released_model,
)
from tests.parity import load_fixture

PICKS = ("pos_rows", "neg_image", "neg_text")
LOSSES = {"loss_mitc": "contrast_loss", "loss_hitm": "matching_loss", "loss_hmlm": "masked_words_loss"}


@pytest.fixture(scope="module")
def text_files(shared_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    fixture_folder(shared_dir)
    return archive(shared_dir, tmp_path_factory.mktemp("xlmr") / "files")


@pytest.fixture(scope="module")
def state(shared_dir: Path) -> dict[str, Any]:
    return checkpoint(shared_dir, "ccrk_tiny.pt")


@pytest.fixture
def model(state: dict[str, Any], text_files: Path) -> CCRKModel:
    return released_model(state["model"], text_files)


def picks_of(recorded: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Recorded rows of the positive captions, the hard images and the hard captions."""
    text, image, negative = (recorded[name] for name in PICKS)
    return text, image, negative


def close(got: Tensor, wanted: Tensor, atol: float) -> None:
    torch.testing.assert_close(got.detach(), wanted, rtol=0, atol=atol)


def test_both_towers_give_the_recorded_states_and_features(model: CCRKModel, state: dict[str, Any]) -> None:
    inputs, wanted = (state["fixture"][part] for part in ("inputs", "outputs"))
    image = model.image_states(inputs["image"].float())
    text, padding = model.text_states(inputs["text_ids"])
    real = inputs["text_atts"].bool()
    assert torch.equal(padding, ~real)
    close(image, wanted["image_embeds"], 3e-5)
    close(text[real], wanted["text_embeds"][real], 1e-4)
    close(model.encode_image(inputs["image"].float()), wanted["image_feat"], 3e-5)
    close(model.encode_text(inputs["text_ids"]), wanted["text_feat"], 3e-5)


def test_padding_on_the_left_changes_nothing(model: CCRKModel, state: dict[str, Any]) -> None:
    ids = state["fixture"]["inputs"]["text_ids"]
    moved = torch.stack([row.roll(int((row == model.padding_idx).sum())) for row in ids])
    assert not torch.equal(moved, ids)
    close(model.encode_text(moved), model.encode_text(ids).detach(), 1e-5)


def test_fusion_matching_and_masked_words_are_the_recorded_ones(model: CCRKModel, state: dict[str, Any]) -> None:
    inputs, wanted = (state["fixture"][part] for part in ("inputs", "outputs"))
    rows = wanted["cross_fusion_rows"]
    image = model.image_states(inputs["image"].float())
    text, padding = model.text_states(inputs["text_ids"][rows])
    real = inputs["text_atts"][rows].bool()
    close(model.fusion(text, padding, image)[real], wanted["cross_fusion"][real], 3e-5)
    close(model.match_states(text, padding, image), wanted["itm_logits"], 3e-5)
    close(model.match(inputs["text_ids"][rows], inputs["image"].float()), wanted["itm_logits"][:, 1], 3e-5)
    positions = inputs["masked_pos"][rows]
    used = positions.nonzero(as_tuple=True)
    words = model.masked_words(inputs["text_ids_masked"][rows], used[0], positions[used], image)
    close(words, wanted["mlm_logits_rows"][positions != 0], 1e-4)


@pytest.mark.parametrize("run", ["type0", "type1", "type2"])
def test_a_pre_training_step_with_the_recorded_picks(run: str, model: CCRKModel, state: dict[str, Any]) -> None:
    """Losses, and the weights by which the picks were drawn."""
    inputs, wanted = state["fixture"]["inputs"], state["fixture"]["outputs"]["runs"][run]
    criterion = PinnedCriterion(picks_of(wanted))
    batch = parallel_batch(inputs)
    outcome = criterion.eval().outcome(model, batch)
    images = batch["nsentences"]
    for theirs, ours in LOSSES.items():
        close(outcome.logged[ours] / images, torch.as_tensor(wanted["losses"][theirs]), 3e-5)
    with torch.no_grad():
        image, text = model.encode_image(inputs["image"].float()), model.encode_text(inputs["text_ids"])
        weights = hard_negative_weights(image, text.view(images, batch["captions"], -1), model.scale, int(run[-1]))
    if run != "type0":
        close(weights.positive, wanted["w_pos"], 3e-4)
    close(weights.image[wanted["pos_rows"]], wanted["w_hard_image"], 3e-4)
    close(weights.text, wanted["w_hard_text"], 3e-4)


@pytest.mark.parametrize(("released", "divisor"), [("type1_divm3", "3"), ("type1_divm-1", "1")])
def test_other_divisors_of_the_contrast(released: str, divisor: str, model: CCRKModel, state: dict[str, Any]) -> None:
    wanted = state["fixture"]["outputs"]["runs"][released]
    wanted = wanted["loss_mitc"]
    criterion = PinnedCriterion(contrast_divisor=divisor, matching_weight=0.0, masked_words_weight=0.0)
    batch = parallel_batch(state["fixture"]["inputs"])
    close(criterion.eval().outcome(model, batch).logged["contrast_loss"] / 4, torch.as_tensor(wanted), 3e-5)


def test_one_caption_per_image_is_the_ordinary_contrast(model: CCRKModel, state: dict[str, Any]) -> None:
    """`cclm_easy`: one caption of each image, all three losses."""
    inputs, wanted = dict(state["fixture"]["inputs"]), state["fixture"]["outputs"]["runs"]["cclm_easy"]
    for name in ("text_ids", "text_atts", "text_ids_masked", "masked_pos", "masked_ids"):
        inputs[name] = inputs[name][wanted["rows"]]
    criterion = PinnedCriterion((torch.arange(4), wanted["neg_image"], wanted["neg_text"]))
    outcome = criterion.eval().outcome(model, parallel_batch(inputs))
    for theirs, ours in LOSSES.items():
        named = {"loss_mitc": "loss_itc", "loss_hitm": "loss_itm", "loss_hmlm": "loss_mlm"}
        value = wanted["losses"].get(theirs, wanted["losses"].get(named[theirs]))
        close(outcome.logged[ours] / 4, torch.as_tensor(value), 3e-5)


def gradients_match(model: CCRKModel, wanted: dict[str, Tensor], layers: int) -> int:
    """Compare gradients under released names with those of the model; returns how many were large enough."""
    own = {name: parameter.grad for name, parameter in model.named_parameters()}
    largest = max(float(gradient.abs().max()) for gradient in wanted.values() if gradient is not None)
    compared = 0
    for name, gradient in wanted.items():
        name = name.replace("text_encoder.bert.", "text_encoder.")
        if gradient is None or "decoder." in name or "token_type" in name or gradient.abs().max() < 1e-4 * largest:
            continue
        if "position_embeddings" in name:
            pieces = {OUR_POSITIONS: gradient}
        else:
            pieces = from_released(name, gradient, layers, "fixture")
        for ours, piece in pieces.items():
            got = own[ours]
            assert got is not None, ours
            got = got[2:] if ours == OUR_POSITIONS else got
            # Of the three parts of a joint tensor, that of the keys' biases is zero up to rounding.
            limit = 3e-4 * float(gradient.abs().max())
            assert float((got - piece).abs().max()) <= limit, ours
            compared += 1
    return compared


def test_the_gradient_of_a_pre_training_step(model: CCRKModel, state: dict[str, Any]) -> None:
    wanted = state["fixture"]["outputs"]["runs"]["type1"]
    criterion = PinnedCriterion(picks_of(wanted)).eval()
    (criterion.outcome(model, parallel_batch(state["fixture"]["inputs"])).loss / 4).backward()
    assert gradients_match(model, wanted["grad_total"], 6) > 250
    named = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    # The released code holds the token type, the gradient of which is the sum over positions, apart.
    norm = torch.stack([grad.norm() for grad in [*named.values(), named[OUR_POSITIONS].sum(0)]]).norm()
    assert float(norm) == pytest.approx(float(wanted["grad_total_norm"]), rel=1e-3)


def adamw_of_transformers_4(
    groups: list[tuple[list[torch.nn.Parameter], float, float]], moments: dict[Any, list[Tensor]], step: int
) -> None:
    """One step of the released optimizer: eps before the bias correction, decay after the step."""
    for parameters, rate, decay in groups:
        for parameter in parameters:
            if parameter.grad is None:
                continue
            first, second = moments.setdefault(parameter, [torch.zeros_like(parameter), torch.zeros_like(parameter)])
            first.mul_(0.9).add_(parameter.grad, alpha=0.1)
            second.mul_(0.98).addcmul_(parameter.grad, parameter.grad, value=0.02)
            size = rate * (1 - 0.98**step) ** 0.5 / (1 - 0.9**step)
            parameter.data.addcdiv_(first, second.sqrt() + 1e-8, value=-size)
            parameter.data.add_(parameter.data, alpha=-rate * decay)


def initial_weights(shared_dir: Path, training: dict[str, Any], like: dict[str, Tensor]) -> dict[str, Tensor]:
    """The released state before the first step: XLM-R's odd layers, Swin, and what the code initialised itself."""
    folder = fixture_folder(shared_dir) / "ccrk_init"
    xlmr = torch.load(folder / "xlm-roberta-large" / "pytorch_model.bin", weights_only=True)
    swin = torch.load(folder / "swin_tiny.pth", weights_only=True)["model"]
    weights = dict(training["initial_state_of_init_params"])
    weights |= {f"vision_encoder.{name}": value for name, value in swin.items() if not name.startswith("head.")}
    for name, value in xlmr.items():
        name = name.removeprefix("roberta.")
        if name.startswith("encoder.layer."):
            number, _, rest = name.removeprefix("encoder.layer.").partition(".")
            if int(number) % 2:
                weights[f"text_encoder.bert.encoder.layer.{int(number) // 2}.{rest}"] = value
        elif name.startswith("embeddings."):
            weights[f"text_encoder.bert.{name}"] = value
        elif name.startswith("lm_head."):
            part = name.removeprefix("lm_head.").replace("layer_norm", "LayerNorm")
            inner = part if part == "bias" else f"transform.{part}"
            weights[f"text_encoder.cls.predictions.{inner}"] = value
    return {name: value for name, value in weights.items() if name in like}


def test_two_pre_training_steps_end_where_the_released_ones_do(
    shared_dir: Path, state: dict[str, Any], text_files: Path
) -> None:
    """From XLM-R's odd layers and Swin, through both steps of the released loop, clipped to 1."""
    inputs, training = state["fixture"]["inputs"], state["fixture"]["training"]
    model = released_model(initial_weights(shared_dir, training, state["model"]), text_files)
    wanted = released_model(state["model"], text_files)
    fresh = {id(parameter) for parameter in model.parameters() if getattr(parameter, "fresh", False)}
    names = dict(model.named_parameters())
    assert len(fresh) == len(training["init_params"])
    undecayed = [group for group in training["groups"] if group["weight_decay"] == 0]
    skipped = {name.replace("bert.", "") for group in undecayed for name in group["names"]}
    without_decay = {ours for name in skipped for ours in from_released(name, torch.zeros(3), 6, "fixture")}
    moments: dict[Any, list[Tensor]] = {}
    for step, batch in enumerate((inputs, inputs["batch2"]), 1):
        picks = picks_of({name: training[name][step - 1] for name in PICKS})
        for parameter in model.parameters():
            parameter.grad = None
        outcome = PinnedCriterion(picks).eval().outcome(model, parallel_batch(batch))
        (outcome.loss / 4).backward()
        for theirs, ours in LOSSES.items():
            close(outcome.logged[ours] / 4, torch.as_tensor(training["losses"][step - 1][theirs]), 5e-5)
        # The released code holds the token type, the gradient of which is the sum over positions, apart.
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        norm = torch.stack([grad.norm() for grad in [*gradients, names[OUR_POSITIONS].grad.sum(0)]]).norm()
        for gradient in gradients:
            gradient /= norm
        assert float(norm) == pytest.approx(float(training["grad_norm"][step - 1]), rel=1e-3)
        rate = 0.0 if step == 1 else 1e-4  # warm-up begins at 0: the first update changes nothing
        groups = [
            ([parameter], rate * (2 if id(parameter) in fresh else 1), 0.0 if name in without_decay else 0.01)
            for name, parameter in names.items()
        ]
        adamw_of_transformers_4(groups, moments, step)
    for name, parameter in wanted.named_parameters():
        # The released code also moves the token type's row, which ours holds in the positions.
        first, atol = (2, 1.5e-4) if name == OUR_POSITIONS else (0, 5e-5)
        got, end = (torch.atleast_1d(tensor)[first:] for tensor in (names[name], parameter.detach()))
        close(got, end, atol)


@pytest.fixture(scope="module")
def retrieval(shared_dir: Path) -> dict[str, Any]:
    return checkpoint(shared_dir, "ccrk_tiny_retrieval.pt")


def test_the_retrieval_checkpoint_and_its_fine_tuning_losses(retrieval: dict[str, Any], text_files: Path) -> None:
    model = released_model(retrieval["model"], text_files)
    fixture = retrieval["fixture"]
    inputs, wanted = fixture["inputs"], fixture["outputs"]
    pixels = (inputs.get("pixels", fixture.get("pixels")))[torch.as_tensor(inputs["image_index"])].float()
    close(model.encode_image(pixels), wanted["image_feat"], 3e-5)
    close(model.encode_text(inputs["text_ids"]), wanted["text_feat"], 3e-5)
    close(model.match(inputs["text_ids"], pixels), wanted["itm_logits"][:, 1], 3e-5)
    picks = (torch.arange(5), torch.as_tensor(wanted["neg_image"]), torch.as_tensor(wanted["neg_text"]))
    batch: dict[str, Any] = {
        "net_input": {"pixel_values": pixels, "text_tokens": inputs["text_ids"]},
        "group": torch.as_tensor(inputs["idx"]),
        "nsentences": 5,
        "ntokens": 1,
    }
    outcome = PinnedCriterion(picks).eval().outcome(model, batch)
    close(outcome.logged["contrast_loss"] / 5, torch.as_tensor(wanted["loss_itc"]), 3e-5)
    close(outcome.logged["matching_loss"] / 5, torch.as_tensor(wanted["loss_itm"]), 3e-5)
    weights = hard_negative_weights(
        model.encode_image(pixels), model.encode_text(inputs["text_ids"])[:, None], model.scale, 1, batch["group"]
    )
    close(weights.image, wanted["w_hard_image"], 3e-4)
    close(weights.text, wanted["w_hard_text"], 3e-4)
    (outcome.loss / 5).backward()
    assert gradients_match(model, wanted["grad_selected"], 6) > 5


def test_a_larger_window_makes_the_retrieval_model_of_the_pre_training_one(
    state: dict[str, Any], retrieval: dict[str, Any], text_files: Path
) -> None:
    """Loading a checkpoint of window 4 into a model of window 5 resizes every table as the released code does."""
    wanted = released_model(retrieval["model"], text_files)
    model = released_model(retrieval["model"], text_files)
    before = released_model(state["model"], text_files).state_dict()
    model.load_state_dict(before)
    for name, weight in wanted.state_dict().items():
        if "lm_head" not in name:
            close(model.state_dict()[name].float(), weight.float(), 1e-6)


def test_tables_are_resized_to_the_last_bit(shared_dir: Path) -> None:
    arrays = load_fixture(shared_dir, "ccrk/ccrk_losses.npz")
    for old, new in arrays["interp_windows"].tolist():
        got = resize_table(arrays[f"interp_{old}_{new}_in"], new)
        assert torch.equal(got, arrays[f"interp_{old}_{new}_out"]), (old, new)
