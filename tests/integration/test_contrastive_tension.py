"""Contrastive Tension: groups, losses, optimizer and schedule as published, and a run that is chosen by STS."""

import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fairseq.data import Dictionary
from fairseq.optim.lr_scheduler.manual_lr_scheduler import ManualSchedule
from torch import nn

from mclip_fairseq import MultilingualCLIP
from mclip_fairseq.cli.export import main as export
from mclip_fairseq.criterions.contrastive_tension import ContrastiveTensionCriterion
from mclip_fairseq.data.sampling import TemperatureSampledDataset
from mclip_fairseq.data.sentence_groups import SentenceGroups
from mclip_fairseq.data.tokens import FlatTokens
from mclip_fairseq.evaluation.metrics.similarity import similarity_correlations
from mclip_fairseq.models.pooling import pool_mean
from mclip_fairseq.optim.rmsprop import RMSprop, RMSpropConfig
from mclip_fairseq.storage.checkpoints import load_checkpoint
from tests.runs import train_on_ranks
from tests.tiny_data import sentences, write

Train = Callable[..., str]
# The published schedule: 501 updates at 1e-5, and so on.
SCHEDULE = {1: 1e-5, 501: 8e-6, 1001: 6e-6, 1501: 4e-6, 2001: 2e-6}


@pytest.fixture(scope="module")
def published(shared_dir: Path) -> Any:
    """Numbers of the authors' code and of sentence-transformers."""
    return np.load(shared_dir / "fixtures" / "altclip" / "ct_losses.npz")


class Answer(nn.Module):
    """A model that returns what it was given."""

    def __init__(self, **out: Any) -> None:
        super().__init__()
        self.out = out

    def forward(self) -> dict[str, Any]:
        return self.out


def numbered(count: int) -> FlatTokens:
    """Sentences of one token each: its number."""
    dictionary = Dictionary()
    for number in range(count):
        dictionary.add_symbol(str(number))
    return FlatTokens.from_sentences([torch.tensor([4 + n, dictionary.eos()]) for n in range(count)], dictionary)


def numbers(groups: SentenceGroups, rows: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The sentence numbers of both sides of a batch, and its labels."""
    batch = groups.rows(np.array(rows))
    first, second = (batch["net_input"][f"{side}_tokens"][:, 1].numpy() - 4 for side in ("first", "second"))
    return first, second, batch["labels"].numpy()


def vectors(published: Any) -> list[torch.Tensor]:
    """The pooled vectors of the fixture's batch, with gradients."""
    return [torch.from_numpy(published[f"authors_emb_{side}"]).requires_grad_() for side in (1, 2)]


@pytest.mark.parametrize(
    ("reduction", "loss_key", "gradient"),
    [
        ("mean", "authors_loss", "authors_grad_emb"),
        ("sum", "st_loss_sum", "st_grad_emb"),
    ],
)
def test_the_loss_is_the_published_one(published: Any, reduction: str, loss_key: str, gradient: str) -> None:
    first, second = vectors(published)
    answer = Answer(first=first, second=second, scale=torch.tensor(20.0))
    labels = torch.from_numpy(published["labels"])
    batch = {"net_input": {}, "labels": labels, "nsentences": len(labels), "ntokens": 9}
    loss, size, logged = ContrastiveTensionCriterion(None, "sampled", reduction)(answer, batch)
    assert float(loss.detach()) / size == pytest.approx(float(published[loss_key]), rel=1e-5)
    loss.backward()
    for side, tensor in ((1, first), (2, second)):
        wanted = published[f"{gradient}_{side}"]
        assert tensor.grad is not None
        assert np.abs(tensor.grad.numpy() / size - wanted).max() < 1e-5 * np.abs(wanted).max()
    assert int(logged["correct"]) == int(((published["authors_logits"] > 0) == (published["labels"] > 0)).sum())


@pytest.mark.parametrize(("suffix", "theta"), [("", None), ("_theta4.8", 4.8)])
def test_negatives_within_the_batch_are_those_of_sentence_transformers(
    published: Any, suffix: str, theta: float | None
) -> None:
    log_scale = torch.tensor(theta or float(published["inbatch_init_theta"]), requires_grad=True)
    first, second = (torch.from_numpy(published[f"inbatch_emb_{side}"]).requires_grad_() for side in (1, 2))
    batch = {"net_input": {}, "nsentences": len(first), "ntokens": 9}
    answer = Answer(first=first, second=second, scale=log_scale.exp())
    loss, size, _ = ContrastiveTensionCriterion(None, "in_batch", "mean")(answer, batch)
    assert float(loss.detach()) / size == pytest.approx(float(published[f"inbatch_loss{suffix}"]), rel=1e-5)
    loss.backward()
    assert log_scale.grad is not None
    assert float(log_scale.grad) / size == pytest.approx(float(published[f"inbatch_grad_theta{suffix}"]), rel=1e-4)
    wanted = published[f"inbatch_grad_emb_1{suffix}"]
    assert first.grad is not None
    assert np.abs(first.grad.numpy() / size - wanted).max() < 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("case", ["distinct", "gold_ties", "both_ties"])
def test_similarity_is_that_of_the_authors_and_of_sentence_transformers(case: str, published: Any) -> None:
    """Equal scores and equal cosines share their mean rank."""
    suffix = "_dup" if case == "both_ties" else ""
    first, second = (torch.from_numpy(published[f"sts_{side}{suffix}"]) for side in ("a", "b"))
    gold = published["sts_gold" if case == "distinct" else "sts_gold_ties"].tolist()
    correlations, _ = similarity_correlations(first, second, gold)
    for source in ("authors", "st"):
        expected = 100 * published[f"sts_{source}_{case}"]
        assert [correlations["pearson"], correlations["spearman"]] == pytest.approx(expected.tolist(), rel=1e-6), source


def test_masked_means_are_the_published_pooling(published: Any) -> None:
    states = torch.from_numpy(published["table_1"])[torch.from_numpy(published["ids_1"]).long()]
    pooled = pool_mean(states, torch.from_numpy(published["mask_1"]).eq(0))
    assert np.abs(pooled.numpy() - published["authors_emb_1"]).max() < 2e-5


def test_consecutive_groups_use_sentences_up_as_the_published_loader_does(published: Any) -> None:
    """Its batches hold several groups; here they are batches of as many."""
    count, size, ratio = (int(number) for number in published["loader_n_sentences_batch_ratio"])
    groups = SentenceGroups(numbered(count), ratio - 1, "consecutive")
    groups.order = published["loader_order"]
    per_batch = size // ratio
    for number, (pairs, labels) in enumerate(zip(published["loader_pairs"], published["loader_labels"], strict=True)):
        first, second, own = numbers(groups, list(range(number * per_batch, (number + 1) * per_batch)))
        assert np.array_equal(np.stack([first, second], 1), pairs)
        assert np.array_equal(own, labels)
    assert len(groups) // per_batch == int(published["loader_len"])


def test_the_authors_groups_have_one_positive_and_k_draws() -> None:
    groups = SentenceGroups(numbered(50), 7, "authors")
    first, second, labels = numbers(groups, [3, 11])
    assert first[[0, 8]].tolist() == second[[0, 8]].tolist() == [3, 11]
    assert labels.tolist() == ([1.0] + [0.0] * 7) * 2
    assert (first[labels == 0] != second[labels == 0]).all()
    again = numbers(groups, [3, 11])
    assert np.array_equal(again[0], first)
    groups.set_epoch(1)
    assert not np.array_equal(numbers(groups, [3, 11])[0], first)


def test_equal_pairs_are_redrawn_unless_released() -> None:
    """Among three sentences a third of the draws are equal."""
    kept, redrawn = (SentenceGroups(numbered(3), 30, "authors", redraw_equal=redraw) for redraw in (False, True))
    equal = [sum(int((a == b)[1:].sum()) for a, b in map(groups.pairs, range(3))) for groups in (kept, redrawn)]
    assert equal[0] > 10
    assert equal[1] == 0


def test_groups_change_with_the_epoch_in_training_alone() -> None:
    for shuffle in (True, False):
        part = SentenceGroups(numbered(20), 3, "authors", fixed=not shuffle)
        data = TemperatureSampledDataset({"en:0": part}, shuffle=shuffle)
        batches = []
        for epoch in (1, 2):
            data.set_epoch(epoch)
            batches.append(part.rows(np.arange(4))["net_input"]["second_tokens"])
        assert torch.equal(*batches) != shuffle


def test_rmsprop_is_that_of_keras(published: Any) -> None:
    x = nn.Parameter(torch.from_numpy(published["opt_x0"]).clone())
    cfg = RMSpropConfig()
    cfg.lr = [0.01]
    optimizer = RMSprop(cfg, [x])
    for gradient, expected in zip(published["opt_grads"], published["opt_legacy"], strict=True):
        x.grad = torch.from_numpy(gradient)
        optimizer.step()
        assert np.abs(x.detach().numpy() - expected).max() < 1e-6


def test_the_authors_steps_are_repeated(published: Any) -> None:
    """Four updates of both tables on one batch: groups, loss and optimizer together."""
    tables = [nn.Parameter(torch.from_numpy(published[f"table_{side}"]).clone()) for side in (1, 2)]
    cfg = RMSpropConfig()
    cfg.lr = [1e-5]
    optimizer = RMSprop(cfg, tables)
    criterion = ContrastiveTensionCriterion(None, "sampled", "mean")
    labels = torch.from_numpy(published["labels"])
    for step in range(4):
        pooled = [
            pool_mean(
                table[torch.from_numpy(published[f"ids_{side}"]).long()],
                torch.from_numpy(published[f"mask_{side}"]).eq(0),
            )
            for side, table in enumerate(tables, 1)
        ]
        answer = Answer(first=pooled[0], second=pooled[1], scale=torch.tensor(20.0))
        batch = {"net_input": {}, "labels": labels, "nsentences": len(labels), "ntokens": 9}
        loss, size, _ = criterion(answer, batch)
        assert float(loss.detach()) / size == pytest.approx(
            float(published["rmsprop_legacy_losses"][step][0]), rel=1e-5
        )
        for table in tables:
            table.grad = None
        (loss / size).backward()
        optimizer.step()
        for table, expected in zip(tables, published["rmsprop_legacy_tables"][step], strict=True):
            assert np.abs(table.detach().numpy() - expected).max() < 1e-6


def test_the_published_schedule_is_one_of_fairseq(published: Any) -> None:
    class Rate:
        """An optimizer that only keeps its learning rate."""

        lr = 1e-5

        def get_lr(self) -> float:
            return self.lr

        def set_lr(self, lr: float) -> None:
            self.lr = lr

    rate: Any = Rate()
    schedule = ManualSchedule.__new__(ManualSchedule)
    schedule.optimizer = rate
    arguments = Namespace(epoch2lr="{}", update2lr=str({str(step): lr for step, lr in SCHEDULE.items()}), lr=[1e-5])
    schedule.epoch2lr = schedule.parse_manuallr_args(arguments.epoch2lr)
    schedule.update2lr = schedule.parse_manuallr_args(arguments.update2lr)
    schedule.lr = 1e-5
    rates = [1e-5]
    for update in range(1, 2600):
        rates.append(schedule.step_update(update))
    for step, expected in zip(published["lr_step"], published["lr"], strict=True):
        if step < len(rates):
            assert rates[int(step)] == pytest.approx(float(expected), rel=1e-6), step


@pytest.fixture(scope="module")
def sts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of the tiny corpus: a sentence with its neighbour, scored by words in common."""
    english = sentences("en")
    rows = []
    for number in range(60):
        one, other = english[number], english[(number * 7 + 3) % len(english)]
        common = len(set(one.split()) & set(other.split())) / len(set(one.split()) | set(other.split()))
        rows.append(f"{5 * common:.2f}\t{one}\t{other}")
    path = tmp_path_factory.mktemp("sts") / "stsb.valid.en.tsv"
    write(path, rows)
    return path


def options(corpus: Path, folder: Path, *more: object) -> list[str]:
    """fairseq-train's command line."""
    values = [
        *(corpus / "captions", "--task", "contrastive_tension", "--langs", "en,de", "--criterion"),
        *("contrastive_tension", "--arch", "contrastive_tension_tiny", "--text-tokenizer", corpus / "tokenizer"),
        *("--optimizer", "rmsprop", "--lr", "0.001", "--batch-size", "4", "--required-batch-size-multiple", "1"),
        *("--num-workers", "0", "--save-dir", folder, "--no-epoch-checkpoints", "--no-progress-bar", "--log-format"),
        *("json", *more),
    ]
    return [str(value) for value in values]


@pytest.fixture(scope="module")
def trained(
    tiny_corpus: Path, sts: Path, run_train: Train, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """The checkpoint with the best correlation of three epochs, and the log."""
    folder = tmp_path_factory.mktemp("tension")
    log = run_train(
        *options(tiny_corpus, folder, "--valid-sts", sts, "--max-epoch", "3"),
        *("--best-checkpoint-metric", "sts_spearman", "--maximize-best-checkpoint-metric"),
    )
    return folder / "checkpoint_best.pt", log


def test_two_encoders_of_one_start_are_chosen_by_similarity(
    trained: tuple[Path, str], sts: Path, tiny_corpus: Path
) -> None:
    lines = [json.loads(line[line.index("{") :]) for line in trained[1].splitlines() if "| valid | {" in line]
    assert float(lines[-1]["valid_loss"]) < float(lines[0]["valid_loss"]) or float(lines[-1]["valid_accuracy"]) > 80
    best = max(lines, key=lambda line: float(line["valid_sts_spearman"]))
    sides = [float(best[f"valid_sts_spearman_{side}"]) for side in ("first", "second")]
    assert float(best["valid_sts_spearman"]) == max(sides)
    weights = load_checkpoint(trained[0])["model"]
    assert int(weights["better"]) == (0 if sides[0] > sides[1] else 1)
    name = "encoder.sentence_encoder.layers.0.fc1.weight"
    assert not torch.equal(weights[f"first.{name}"], weights[f"second.{name}"])
    model = MultilingualCLIP.from_pretrained(trained[0], device="cpu")
    rows = [line.split("\t") for line in sts.read_text().splitlines()]
    own = similarity_correlations(
        model.encode_text([row[1] for row in rows]),
        model.encode_text([row[2] for row in rows]),
        [float(row[0]) for row in rows],
    )[0]["spearman"]
    assert own == pytest.approx(max(sides), abs=0.01)


def test_it_goes_out_as_a_directory_of_sentence_transformers(trained: tuple[Path, str], tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    command = [str(trained[0]), "--format", "sentence-transformers", "--output", str(tmp_path / "m")]
    assert export(command) == 0
    texts = ["ein Hund", "the red cat"]
    stock = library.SentenceTransformer(str(tmp_path / "m"), device="cpu")
    expected = MultilingualCLIP.from_pretrained(trained[0], device="cpu").encode_text(texts)
    vectors_of_stock = torch.nn.functional.normalize(torch.from_numpy(stock.encode(texts)), dim=1)
    torch.testing.assert_close(vectors_of_stock, expected, rtol=0, atol=2e-5)
    again = MultilingualCLIP.from_pretrained(tmp_path / "m", device="cpu")
    torch.testing.assert_close(again.encode_text(texts), expected, rtol=0, atol=2e-5)


def test_a_stopped_run_resumes_exactly(tiny_corpus: Path, run_train: Train, tmp_path: Path) -> None:
    for name, updates in (("whole", 9), ("parts", 4), ("parts", 9)):
        run_train(*options(tiny_corpus, tmp_path / name, "--max-update", updates, "--disable-validation"))
    whole, parts = (load_checkpoint(tmp_path / name / "checkpoint_last.pt")["model"] for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.distributed
def test_two_processes_equal_one(tiny_corpus: Path, run_train: Train, tmp_path: Path) -> None:
    """For the groups' loss and for negatives within the batch, with an uneven last step."""
    kinds: dict[str, tuple[str, ...]] = {"mean": (), "sum": ("--tension-reduction", "sum", "--lr", "0.0005")}
    kinds["in_batch"] = ("--negatives", "in_batch", "--group-negatives", "0", "--lr", "0.5")
    common = [
        *("--disable-validation", "--max-epoch", "1", "--curriculum", "9", "--langs", "en", "--optimizer", "sgd"),
        *("--lr", "0.05", "--clip-norm", "0", "--log-interval", "1"),
    ]
    runs = []
    for kind, more in kinds.items():
        runs.append([*options(tiny_corpus, tmp_path / f"{kind}-two", *common, *more), "--batch-size", "9"])
        run_train(*options(tiny_corpus, tmp_path / f"{kind}-one", *common, *more), "--batch-size", "18")
    for log in train_on_ranks(2, runs, tmp_path):
        assert all(output.endswith("exit status 0\n") for output in log), log
    for kind in kinds:
        one, two = (
            load_checkpoint(tmp_path / f"{kind}-{count}" / "checkpoint_last.pt")["model"] for count in ("one", "two")
        )
        difference = max(
            float((one[n] - two[n]).abs().max()) for n in one if one[n].is_floating_point() and one[n].numel()
        )
        assert difference < 1e-5, kind


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--negatives", "in_batch"), "--negatives in_batch and --group-negatives 0 belong together"),
        (("--group-negatives", "-1"), "--group-negatives is -1; give 0 or more"),
        (("--freeze-text", "all"), "contrastive_tension trains its text encoders"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    more: tuple[str, ...], message: str, tiny_corpus: Path, run_train: Train, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        run_train(*options(tiny_corpus, tmp_path, *more, "--max-update", "1", "--disable-validation"))
