"""Task and criterion `distillation` and `image_text`: losses by hand, strict turns, and what is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fairseq.logging import metrics
from torch import nn

from mclip_fairseq.criterions.distillation import DistillationCriterion, DistillationCriterionConfig
from mclip_fairseq.criterions.image_text import ImageTextCriterion
from mclip_fairseq.data.alternation import AlternatingDataset
from mclip_fairseq.storage.checkpoints import load_checkpoint

Train = Callable[..., str]


class Answer(nn.Module):
    """A model that returns what it was given."""

    def __init__(self, **out: Any) -> None:
        super().__init__()
        self.out = out

    def forward(self) -> dict[str, Any]:
        return self.out


def distillation(**options: Any) -> DistillationCriterion:
    return DistillationCriterion(None, DistillationCriterionConfig(**options))


def sample(rows: int, **more: Any) -> dict[str, Any]:
    """A batch of that many rows."""
    return {"net_input": {}, "nsentences": rows, "ntokens": 3 * rows, **more}


@pytest.mark.parametrize("direction", ["both", "released"])
def test_the_loss_is_the_weighted_sum_of_the_fixture(shared_dir: Path, direction: str) -> None:
    """AltCLIP's released losses and gradients, and any sum of them."""
    data = np.load(shared_dir / "fixtures" / "altclip" / "altclip_losses.npz")
    student = torch.from_numpy(data["student"]).requires_grad_()
    teacher, rows = torch.from_numpy(data["teacher"]), len(data["student"])
    answer = Answer(
        student=student, teacher_text=teacher, distillation_scale=torch.tensor(float(data["cl_theta"][0])).exp()
    )
    weights: dict[str, Any] = {"mse_weight": 0.7, "cosine_weight": 0.2, "contrastive_weight": 3.0}
    criterion = distillation(**weights, contrast_direction=direction)
    loss, size, _ = criterion(answer, sample(rows))
    contrast = data["loss_cl"] if direction == "released" else data["own_symmetric_loss_cl"]
    expected = 0.7 * data["loss_mse"] + 0.2 * data["loss_cosine"] + 3.0 * contrast[0]
    assert size == rows
    assert float(loss.detach()) / rows == pytest.approx(float(expected), rel=1e-5)
    loss.backward()
    of_contrast = data["grad_student_cl" if direction == "released" else "own_symmetric_grad_student_cl"][0]
    wanted = 0.7 * data["grad_student_mse"] + 0.2 * data["grad_student_cosine"] + 3.0 * of_contrast
    assert student.grad is not None
    assert np.abs(student.grad.numpy() / rows - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_a_dummy_batch_counts_nothing_and_keeps_its_graph() -> None:
    student = torch.randn(3, 4, requires_grad=True)
    scale = torch.tensor(4.0, requires_grad=True)
    answer = Answer(student=student, teacher_text=torch.randn(3, 4), distillation_scale=scale)
    criterion = distillation(cosine_weight=1.0, contrastive_weight=1.0)
    loss, size, logged = criterion(answer, sample(3, is_dummy=True))
    loss.backward()
    assert (float(loss.detach()), size, float(logged["loss"])) == (0.0, 0, 0.0)
    assert student.grad is not None
    assert student.grad.abs().max() == 0
    assert scale.grad == 0


def test_small_errors_are_logged_apart() -> None:
    """Of vectors of length 1 and 768 dimensions, say: fairseq selects checkpoints by the logged value."""
    values = []
    for error in (0.01, 0.0101):
        student = torch.full((4, 3), error)
        answer = Answer(student=student, teacher_text=torch.zeros(4, 3))
        criterion = distillation()
        with metrics.aggregate(new_root=True) as logged:
            criterion.reduce_metrics([criterion(answer, sample(4))[2]])
        values.append(logged.get_smoothed_values())
    assert [value["loss"] for value in values] == pytest.approx([1e-4, 1.02e-4], abs=1e-9)
    assert values[0]["mse_loss"] < values[1]["mse_loss"]


def test_a_contrast_without_a_learned_scale_is_refused() -> None:
    answer = Answer(student=torch.ones(2, 3), teacher_text=torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"pass --distillation-scale-init 4\.48"):
        distillation(mse_weight=0.0, contrastive_weight=1.0)(answer, sample(2))


@pytest.mark.parametrize("weights", [{"mse_weight": 0.0}, {"cosine_weight": -1.0}])
def test_weights_that_train_nothing_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must not be negative, and one must be above 0"):
        distillation(**weights)


@pytest.mark.parametrize(("direction", "key"), [("released", "stage2_loss"), ("both", "stage2_symmetric_loss")])
def test_the_image_text_loss_is_that_of_the_fixture(shared_dir: Path, direction: str, key: str) -> None:
    losses = np.load(shared_dir / "fixtures" / "altclip" / "altclip_losses.npz")
    outputs = np.load(shared_dir / "fixtures" / "altclip" / "altclip_outputs.npz")
    text, image = torch.from_numpy(outputs["text_embeds"]), torch.from_numpy(outputs["image_embeds"])
    scale = torch.from_numpy(outputs["logits_per_text"] / (outputs["text_embeds"] @ outputs["image_embeds"].T)).median()
    rows = len(text)
    loss, _, logged = ImageTextCriterion(None, "pair", direction)(
        Answer(text=text, image=image, scale=scale), sample(rows)
    )
    assert float(loss) / rows == pytest.approx(float(losses[key]), rel=1e-5)
    hits = (scale * text @ image.T).argmax(1) == torch.arange(rows)
    assert int(logged["text_to_image_hits"]) == int(hits.sum())


def test_captions_of_one_image_are_positives_of_each_other() -> None:
    text, image = F.normalize(torch.randn(2, 4, 8), dim=2)
    answer = Answer(text=text, image=image, scale=torch.tensor(5.0))
    batch = sample(4, group=torch.tensor([7, 7, 8, 9]))
    by_pair, by_image = (float(ImageTextCriterion(None, kind, "both")(answer, batch)[0]) for kind in ("pair", "image"))
    logits, target = 5 * text @ image.T, torch.eye(4)
    target[:2, :2] = 0.5
    expected = sum(F.cross_entropy(scores, target, reduction="sum") for scores in (logits, logits.T)) / 2
    assert by_image == pytest.approx(float(expected), rel=1e-5)
    assert abs(by_pair - by_image) > 1e-3


class Numbers:
    """Rows of one length."""

    def __init__(self, count: int) -> None:
        self.sizes = np.full(count, 5)

    def __len__(self) -> int:
        return len(self.sizes)

    def rows(self, rows: Any) -> dict[str, Any]:
        return {"id": torch.from_numpy(rows), "nsentences": len(rows)}


def turns(epoch: int, ranks: int = 1) -> tuple[list[str], list[int]]:
    """The corpus and the first sample of every batch."""
    data = AlternatingDataset({"en:0": Numbers(40), "de:0": Numbers(40), "en:1": Numbers(24)}, seed=3)
    data.ranks = ranks
    data.set_epoch(epoch)
    with_seed = np.random.default_rng(1).permutation(len(data))
    order = with_seed[np.lexsort((with_seed, data.part_of[with_seed]))]
    batches = data.batch_by_size(order, max_sentences=4, required_batch_size_multiple=1)
    return [data.names[data.part_of[batch[0]]].split(":")[1] for batch in batches], [int(b[0]) for b in batches]


def test_corpora_take_strict_turns_until_the_shorter_one_ends() -> None:
    assert turns(1)[0] == ["0", "1"] * 6
    assert turns(1, ranks=2)[0] == ["0", "0", "1", "1"] * 3


def test_the_order_of_turns_depends_on_the_epoch_alone() -> None:
    assert turns(1) == turns(1)
    assert turns(1)[1] != turns(2)[1]


def options(corpus: Path, folder: Path, *more: object) -> list[str]:
    """fairseq-train's command line for two corpora."""
    values = [
        *(f"{corpus / 'captions'}:{corpus / 'captions'}", "--task", "distillation", "--langs", "en,de"),
        *("--text-features", corpus / "features" / "text", "--image-features", corpus / "features" / "image"),
        *("--arch", "teacher_learning_tiny", "--criterion", "distillation", "--text-tokenizer", corpus / "tokenizer"),
        *("--optimizer", "fused_adamw", "--lr", "0.005", "--batch-size", "40", "--num-workers", "0"),
        *("--save-dir", folder, "--disable-validation", "--no-epoch-checkpoints", "--no-progress-bar", *more),
    ]
    return [str(value) for value in values]


def test_a_stopped_run_in_turns_resumes_exactly(run_train: Train, tiny_corpus: Path, tmp_path: Path) -> None:
    turn = ("--alternate", "--cosine-weight", "0.5")
    run_train(*options(tiny_corpus, tmp_path / "whole", *turn, "--max-update", "9"))
    run_train(*options(tiny_corpus, tmp_path / "parts", *turn, "--max-update", "4"))
    run_train(*options(tiny_corpus, tmp_path / "parts", *turn, "--max-update", "9"))
    whole, parts = (load_checkpoint(tmp_path / name / "checkpoint_last.pt")["model"] for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_turns_need_two_corpora(run_train: Train, tiny_corpus: Path, tmp_path: Path) -> None:
    arguments = options(tiny_corpus, tmp_path, "--alternate", "--max-update", "1")
    arguments[0] = str(tiny_corpus / "captions")
    with pytest.raises(ValueError, match="--alternate needs two data directories or more"):
        run_train(*arguments)


def test_distillation_without_teacher_features_is_refused(run_train: Train, tiny_corpus: Path, tmp_path: Path) -> None:
    arguments = options(tiny_corpus, tmp_path, "--max-update", "1")
    at = arguments.index("--text-features")
    with pytest.raises(ValueError, match="needs teacher_text for every caption; give --text-features"):
        run_train(*arguments[:at], *arguments[at + 2 :])


def test_image_text_without_images_is_refused(run_train: Train, tiny_corpus: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "texts"
    shutil.copytree(tiny_corpus / "captions", corpus)
    for ids in corpus.glob("*.ids"):
        rows = [line.split("\t")[1] for line in ids.read_text().splitlines()]
        ids.write_text("".join(f"-\t{text}\n" for text in rows))
    with pytest.raises(ValueError, match="needs image_features or pixel_values for every caption; give --image"):
        run_train(
            *(corpus, "--task", "image_text", "--langs", "en", "--arch", "mclip_tiny", "--batch-size", "8"),
            *("--criterion", "image_text", "--save-dir", tmp_path / "run", "--max-update", "1"),
            *("--text-features", tiny_corpus / "features" / "text"),
        )
