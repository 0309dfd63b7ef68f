"""AltCLIP: features before the projection, both stages, and directories in and out under the published names."""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from mclip_fairseq import MultilingualCLIP
from mclip_fairseq.cli.convert import main as convert
from mclip_fairseq.cli.export import main as export
from mclip_fairseq.compat import shield_torchaudio
from mclip_fairseq.models.altclip import AltCLIPModel
from mclip_fairseq.models.teacher import DualEncoderTeacher
from mclip_fairseq.storage.checkpoints import load_checkpoint
from mclip_fairseq.storage.features import write_features
from mclip_fairseq.storage.images import load_image
from tests.runs import train_on_ranks
from tests.tiny_data import sentences
from tests.tiny_models import tiny_clip_directory

Train = Callable[..., str]
TEXTS = ["ein Hund", "the red cat", "un chien bleu"]


@pytest.fixture(scope="module")
def fixture(shared_dir: Path) -> Path:
    """Numbers of the released code."""
    return shared_dir / "fixtures" / "altclip"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CLIP whose texts are wider than the joint space."""
    return tiny_clip_directory(tmp_path_factory.mktemp("teacher") / "clip", dim=12)


@pytest.fixture(scope="module")
def data(tiny_corpus: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny corpus with features of that teacher: texts of space pooled, images of both spaces."""
    folder = tmp_path_factory.mktemp("altclip")
    model = DualEncoderTeacher.from_pretrained(teacher)
    english = sentences("en")
    texts = model.pooled_text(**model.tokenize(english)).numpy()
    generator = torch.Generator().manual_seed(3)
    pixels = torch.rand(40, 3, 32, 32, generator=generator)
    options: dict[str, Any] = {"model": model.identity, "normalized": False}
    ids = (tiny_corpus / "features" / "text" / "ids.txt").read_text().splitlines()
    write_features(
        folder / "text", ids, texts[: len(ids)], modality="text", projection=model.projection("text"), **options
    )
    ids = (tiny_corpus / "features" / "image" / "ids.txt").read_text().splitlines()
    write_features(folder / "joint", ids, model.encode_image(pixels).numpy(), **options)
    write_features(
        folder / "pooled", ids, model.pooled_image(pixels).numpy(), projection=model.projection("image"), **options
    )
    return {
        "captions": tiny_corpus / "captions",
        "tokenizer": tiny_corpus / "tokenizer",
        "features": folder,
        "teacher": teacher,
    }


def options(data: dict[str, Path], folder: Path, task: str, *more: object) -> list[str]:
    """fairseq-train's command line of a stage."""
    values = [
        *(data["captions"], "--task", task, "--langs", "en,de,fr", "--arch", "altclip_tiny", "--criterion", task),
        *("--text-tokenizer", data["tokenizer"], "--optimizer", "fused_adamw", "--lr", "0.003", "--batch-size", "40"),
        *("--num-workers", "0", "--save-dir", folder, "--no-epoch-checkpoints", "--no-progress-bar", "--log-format"),
        *("json", "--text-features", data["features"] / "text", *more),
    ]
    return [str(value) for value in values]


@pytest.fixture(scope="module")
def trained(data: dict[str, Path], run_train: Train, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A checkpoint of the first stage, and the log."""
    folder = tmp_path_factory.mktemp("stage1")
    log = run_train(
        *options(data, folder, "distillation", "--image-features", data["features"] / "joint", "--max-epoch", "6"),
        *("--valid-retrieval", "--best-checkpoint-metric", "mean_recall", "--maximize-best-checkpoint-metric"),
    )
    return folder / "checkpoint_last.pt", log


def without_layer(name: str) -> str:
    """The name of a weight in the first layer."""
    return re.sub(r"(layers?)\.\d+\.", r"\1.0.", name)


def test_the_first_stage_learns_and_validates_by_retrieval(trained: tuple[Path, str]) -> None:
    lines = [json.loads(line[line.index("{") :]) for line in trained[1].splitlines() if "| valid | {" in line]
    assert float(lines[-1]["valid_mse_loss"]) < 0.8 * float(lines[0]["valid_mse_loss"])
    assert "valid_mean_recall_de" in lines[-1]


def test_the_checkpoint_holds_the_teachers_projection_and_scale(trained: tuple[Path, str], teacher: Path) -> None:
    weights = load_checkpoint(trained[0])["model"]
    clip = DualEncoderTeacher.from_pretrained(teacher).model
    assert torch.equal(weights["text_projection.weight"], clip.text_projection.weight)
    assert torch.equal(weights["logit_scale"], clip.logit_scale)
    assert not any(name.startswith("teacher.") for name in weights)


def test_the_exported_directory_is_stock_altclip_under_published_names(
    trained: tuple[Path, str], teacher: Path, fixture: Path, tmp_path: Path
) -> None:
    """transformers' own class reads it with equal features, and every name is one of the published file."""
    shield_torchaudio()
    from transformers import AltCLIPModel as Stock
    from transformers import AutoImageProcessor, AutoTokenizer

    command = [str(trained[0]), "--teacher", str(teacher), "--format", "altclip", "--output", str(tmp_path / "m")]
    assert export(command) == 0
    published = load_file(fixture / "altclip_tiny" / "model.safetensors")
    written = load_file(tmp_path / "m" / "model.safetensors")
    assert {without_layer(name) for name in written} == {without_layer(name) for name in published}
    stock, info = Stock.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    ours = MultilingualCLIP.from_pretrained(trained[0], device="cpu", teacher=teacher)
    inputs = AutoTokenizer.from_pretrained(tmp_path / "m")(TEXTS, padding=True, return_tensors="pt")
    pixels = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        out = stock.eval()(pixel_values=pixels, **inputs)
    torch.testing.assert_close(out.text_embeds, ours.encode_text(TEXTS), rtol=0, atol=2e-5)
    torch.testing.assert_close(out.image_embeds, ours.tower.encode_pixels(pixels), rtol=0, atol=2e-5)
    torch.testing.assert_close(stock.logit_scale.exp().detach(), ours.logit_scale)
    assert AutoImageProcessor.from_pretrained(tmp_path / "m").to_dict()["crop_size"] == {"height": 32, "width": 32}


def test_the_published_directory_is_read_and_gives_the_features_of_the_fixture(fixture: Path, tmp_path: Path) -> None:
    assert convert(["altclip", str(fixture / "altclip_tiny"), "--output", str(tmp_path / "m")]) == 0
    model = MultilingualCLIP.from_pretrained(tmp_path / "m", device="cpu")
    expected = np.load(fixture / "altclip_outputs.npz")
    texts = [str(text) for text in expected["texts"]]
    assert np.abs(model.encode_text(texts).numpy() - expected["text_embeds"]).max() < 2e-5
    images = model.tower.encode_pixels(torch.from_numpy(expected["pixels"])).numpy()
    assert np.abs(images - expected["image_embeds"]).max() < 2e-5
    module: Any = model.tower.module
    student = module.student(model.tokenizer(texts)).detach().numpy()
    assert np.abs(student - expected["pooled"]).max() < 2e-5


def test_the_assembly_is_bit_for_bit_that_of_the_fixture(fixture: Path, tmp_path: Path) -> None:
    """Image tower, both projections and the scale come out as they are in the teacher."""
    assert convert(["altclip", str(fixture / "altclip_tiny"), "--output", str(tmp_path / "in")]) == 0
    command = [str(tmp_path / "in"), "--format", "altclip", "--output", str(tmp_path / "out")]
    assert export(command) == 0
    written = load_file(tmp_path / "out" / "model.safetensors")
    published = load_file(fixture / "altclip_tiny" / "model.safetensors")
    clip = load_file(fixture / "clip_teacher_tiny" / "model.safetensors")
    assert written.keys() == published.keys()
    # fairseq has no token types: their one embedding moves into the positions.
    moved = {f"text_model.roberta.embeddings.{name}_embeddings.weight" for name in ("token_type", "position")}
    assert {name for name in written if not torch.equal(written[name], published[name])} == moved
    of_teacher = [name for name in written if not name.startswith("text_model.")]
    assert all(torch.equal(written[name], clip[name]) for name in of_teacher)


def test_portable_modules_are_the_model(trained: tuple[Path, str], teacher: Path) -> None:
    """What ONNX is made from, and what a search index is built with."""
    model = MultilingualCLIP.from_pretrained(trained[0], device="cpu", teacher=teacher)
    tower: Any = model.tower
    pixels = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        texts = tower.module.portable_text()(model.tokenizer(TEXTS))
        images = tower.module.portable_image(tower.teacher)(pixels)
        expected = tower.encode_pixels(pixels)
    torch.testing.assert_close(texts, model.encode_text(TEXTS), rtol=0, atol=2e-5)
    torch.testing.assert_close(images, expected)


@pytest.mark.parametrize("side", ["joint", "pooled"])
def test_the_second_stage_trains_what_its_options_say(
    side: str, trained: tuple[Path, str], data: dict[str, Path], run_train: Train, tmp_path: Path
) -> None:
    """On cached features: the text tower frozen, the projections and the scale trained."""
    frozen = ("--freeze-text", "all", "--train-projections", "--train-scale")
    run_train(
        *options(data, tmp_path, "image_text", "--image-features", data["features"] / side, *frozen),
        *("--finetune-from-model", trained[0], "--max-update", "3", "--disable-validation"),
    )
    before, after = (load_checkpoint(path)["model"] for path in (trained[0], tmp_path / "checkpoint_last.pt"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"text_projection.weight", "logit_scale"}
    assert ("visual_projection.weight" in after) == (side == "pooled")
    model = MultilingualCLIP.from_pretrained(tmp_path / "checkpoint_last.pt", device="cpu", teacher=data["teacher"])
    pixels = torch.rand(2, 3, 32, 32)
    tower: Any = model.tower
    with torch.no_grad():
        images = tower.module.portable_image(tower.teacher)(pixels)
        torch.testing.assert_close(images, tower.encode_pixels(pixels))
    if side == "pooled":
        own = np.load(data["features"] / "pooled" / "projection.npy")
        assert not np.array_equal(after["visual_projection.weight"].numpy(), own)


def test_the_image_tower_is_trained_on_pixels(
    photos: Path, tiny_corpus: Path, data: dict[str, Path], run_train: Train, tmp_path: Path
) -> None:
    """A trained tower is in the checkpoint, is read without the teacher's, and goes out with the directory."""
    shield_torchaudio()
    from transformers import AltCLIPModel as Stock

    run_train(
        *(photos / "captions", "--task", "image_text", "--langs", "en", "--arch", "altclip_tiny", "--criterion"),
        *("image_text", "--text-tokenizer", tiny_corpus / "tokenizer", "--optimizer", "sgd", "--lr", "0.1"),
        *("--batch-size", "20", "--max-update", "2", "--num-workers", "0", "--save-dir", tmp_path / "run"),
        *("--image-root", photos / "images", "--teacher", photos / "teacher", "--train-vision", "--no-progress-bar"),
        *("--train-projections", "--disable-validation"),
    )
    checkpoint = tmp_path / "run" / "checkpoint_last.pt"
    model = MultilingualCLIP.from_pretrained(checkpoint, device="cpu", teacher=photos / "teacher")
    clip = DualEncoderTeacher.from_pretrained(photos / "teacher")
    weights: Any = model.tower.module.state_dict()
    name = "embeddings.patch_embedding.weight"
    assert not torch.equal(weights[f"vision.model.{name}"], clip.model.vision_model.state_dict()[name])
    image = photos / "images" / "img0.png"
    pixels = model.transform([load_image(image, 10**8)])
    torch.testing.assert_close(pixels, clip.transform([load_image(image, 10**8)]))
    command = [str(checkpoint), "--teacher", str(photos / "teacher"), "--output"]
    assert export([*command, str(tmp_path / "alt"), "--format", "altclip"]) == 0
    stock = Stock.from_pretrained(tmp_path / "alt").eval()
    with torch.no_grad():
        out = stock.get_image_features(pixel_values=pixels)
    features = out if isinstance(out, torch.Tensor) else out.pooler_output
    torch.testing.assert_close(F.normalize(features, dim=1), model.encode_image([image]), rtol=0, atol=2e-5)
    assert export([*command, str(tmp_path / "directory")]) == 0
    again = MultilingualCLIP.from_pretrained(tmp_path / "directory", device="cpu")
    torch.testing.assert_close(again.encode_image([image]), model.encode_image([image]))


SECOND = ("--train-projections", "--train-scale", "--contrast-direction", "released")


def both_stages(data: dict[str, Path], folder: Path, *more: object) -> list[list[str]]:
    """The command lines of both stages, all parts but the image tower trained in the second."""
    teach = ("--contrastive-weight", "2", "--distillation-scale-init", "4.48", "--langs", "en", *more)
    align = ("--image-features", data["features"] / "pooled", *SECOND, "--langs", "en", *more)
    images = ("--image-features", data["features"] / "joint")
    return [
        options(data, folder / "teach", "distillation", *images, *teach),
        options(data, folder / "align", "image_text", *align),
    ]


# Batches in the order of the data, so that one process meets in one batch what two meet in two.
EXACT = (
    *("--optimizer", "sgd", "--lr", "0.1", "--clip-norm", "0", "--max-epoch", "1", "--curriculum", "9"),
    *("--required-batch-size-multiple", "1", "--disable-validation", "--log-interval", "1"),
)


@pytest.mark.distributed
def test_two_processes_equal_one(data: dict[str, Path], run_train: Train, tmp_path: Path) -> None:
    """With an uneven last step, in both stages."""
    one, two = (both_stages(data, tmp_path / n, *EXACT, "--batch-size", size) for n, size in (("one", 18), ("two", 9)))
    on_one_and_two_ranks(run_train, tmp_path, one, two, ("teach", "align"))


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_equal_one_with_each_variant(
    data: dict[str, Path], photos: Path, run_train: Train, tmp_path: Path
) -> None:
    """The words that a caption hides do not depend on the batch, and their mean is over all ranks; and on pixels."""
    variants: dict[str, tuple[object, ...]] = {
        "words": ("--hide-words", "0.3", "--masked-word-weight", "0.5", "--train-word-head"),
        "adapters": ("--adapter-dim", "8"),
        "invert": ("--inverse-layers", "2", "--student-head", "linear", "--teacher", data["teacher"]),
    }
    stored = ("--image-features", data["features"] / "joint", "--max-caption-tokens", "60")
    pixels = ("--image-root", photos / "images", "--teacher", photos / "teacher", "--train-vision", *SECOND[:2])

    def runs(name: str, size: int) -> list[list[str]]:
        common = (*EXACT, "--langs", "en", "--batch-size", size)
        commands = [
            options(data, tmp_path / name / variant, "distillation", *common, *stored, *more)
            for variant, more in variants.items()
        ]
        commands.append(options(data, tmp_path / name / "pixels", "image_text", *common, *pixels))
        commands[-1][0] = str(photos / "captions")
        without_texts(commands[-1])
        return commands

    on_one_and_two_ranks(run_train, tmp_path, runs("one", 18), runs("two", 9), [*variants, "pixels"])


def without_texts(arguments: list[str]) -> None:
    """Leave the teacher's text features out of a command line."""
    at = arguments.index("--text-features")
    del arguments[at : at + 2]


def on_one_and_two_ranks(
    run_train: Train, folder: Path, one: list[list[str]], two: list[list[str]], names: Iterable[str]
) -> None:
    """Run command lines in one process and their counterparts in two, and compare what is in `one/` and `two/`."""
    for arguments in one:
        run_train(*arguments)
    for log in train_on_ranks(2, two, folder):
        assert all(output.endswith("exit status 0\n") for output in log), log
    for name in names:
        states = (load_checkpoint(folder / n / name / "checkpoint_last.pt")["model"] for n in ("one", "two"))
        expected, given = states
        compared = [key for key in expected if expected[key].is_floating_point() and expected[key].numel()]
        differences = {key: float((expected[key] - given[key]).abs().max()) for key in compared}
        largest = max(differences, key=lambda key: differences[key])
        assert differences[largest] < 1e-5, (name, largest, differences[largest])


def test_a_stopped_run_resumes_exactly(data: dict[str, Path], run_train: Train, tmp_path: Path) -> None:
    for name, updates in (("whole", 7), ("parts", 3), ("parts", 7)):
        for arguments in both_stages(data, tmp_path / name, "--max-update", updates, "--disable-validation"):
            run_train(*arguments)
    for stage in ("teach", "align"):
        whole, parts = (
            load_checkpoint(tmp_path / n / stage / "checkpoint_last.pt")["model"] for n in ("whole", "parts")
        )
        assert all(torch.equal(whole[name], parts[name]) for name in whole), stage


def test_projected_text_features_are_refused(
    tiny_corpus: Path, data: dict[str, Path], run_train: Train, tmp_path: Path
) -> None:
    arguments = options(data, tmp_path, "distillation", "--max-update", "1")
    arguments[arguments.index("--text-features") + 1] = str(tiny_corpus / "features" / "text")
    with pytest.raises(ValueError, match="altclip learns the states before the projection"):
        run_train(*arguments)


def test_pooled_features_are_refused_by_a_model_of_the_joint_space(
    data: dict[str, Path], run_train: Train, tmp_path: Path
) -> None:
    arguments = options(data, tmp_path, "distillation", "--max-update", "1")
    arguments[arguments.index("--arch") + 1] = "teacher_learning_tiny"
    with pytest.raises(ValueError, match="columns of the space pooled, but this model needs"):
        run_train(*arguments)


def test_the_loss_and_gradients_of_the_whole_model_are_those_of_the_fixture(fixture: Path, tmp_path: Path) -> None:
    """Student, head and distance together, for each of the three distances."""
    from mclip_fairseq.formats.altclip import load_altclip
    from mclip_fairseq.losses import distillation_loss

    module: Any = load_altclip(str(fixture / "altclip_tiny"), tmp_path).module
    assert isinstance(module, AltCLIPModel)
    text: Any = module.text_encoder
    expected, outputs = (np.load(fixture / f"altclip_{name}.npz") for name in ("losses", "outputs"))
    tokens, target = torch.from_numpy(outputs["input_ids"]), torch.from_numpy(outputs["teacher_pooled"])
    head: Any = module.projection
    ours = {
        "transformation.weight": head.linear.weight,
        "pre_LN.weight": head.norm.weight,
        "roberta.embeddings.word_embeddings.weight": text.embed_tokens.weight,
    }
    for kind, key in (("mse", "mse"), ("cosine", "cosine"), ("contrastive", "cl")):
        module.zero_grad()
        loss = distillation_loss(module.student(tokens), target, kind, torch.tensor(1.5).exp(), "released")
        assert float(loss.detach()) == pytest.approx(float(expected[f"model_loss_{key}"]), rel=1e-5)
        loss.backward()
        gradients = {name: expected[name] for name in expected.files if name.startswith(f"model_grad_{key}/")}
        pairs = [(own, wanted) for end, own in ours.items() for name, wanted in gradients.items() if name.endswith(end)]
        assert len(pairs) >= 2
        for own, wanted in pairs:
            assert np.abs(own.grad.numpy() - wanted).max() < 1e-5 * np.abs(wanted).max(), key


def test_only_its_own_model_goes_out_as_altclip(
    trained: tuple[Path, str], teacher: Path, tmp_path: Path, capsys: Any
) -> None:
    command = [str(trained[0]), "--teacher", str(teacher), "--format", "m-clip", "--output", str(tmp_path / "m")]
    assert export(command) == 2
    assert "is not an M-CLIP; --format m-clip takes a model teacher_learning" in capsys.readouterr().err
    assert export([*command[:-2], "--output", str(tmp_path / "m"), "--onnx"]) == 2
    assert "--onnx is for --format directory" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()
