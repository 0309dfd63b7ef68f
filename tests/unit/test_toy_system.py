"""A new system is a model and a criterion in a file of its own: it trains, validates and is read for inference."""

import importlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fairseq.criterions import CRITERION_DATACLASS_REGISTRY, CRITERION_REGISTRY, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.models import (
    ARCH_CONFIG_REGISTRY,
    ARCH_MODEL_NAME_REGISTRY,
    ARCH_MODEL_REGISTRY,
    MODEL_DATACLASS_REGISTRY,
    MODEL_REGISTRY,
    register_model,
)
from torch import Tensor, nn

import mclip_fairseq.tasks  # noqa: F401  # registers the plugin, which the fixture below must not undo
from mclip_fairseq.criterions.terms import Batch, Outcome, TermsCriterion, contrast_term, log_ratio, weighted_mean
from mclip_fairseq.models.dual_encoder import Columns, DualEncoder

REGISTRIES = (MODEL_REGISTRY, MODEL_DATACLASS_REGISTRY, ARCH_MODEL_REGISTRY, ARCH_MODEL_NAME_REGISTRY)
OTHERS = (ARCH_CONFIG_REGISTRY, CRITERION_REGISTRY, CRITERION_DATACLASS_REGISTRY)


@dataclass
class BagOfWordsConfig(FairseqDataclass):
    """One table of word vectors."""

    feature_dim: int = field(default=0, metadata={"help": "width of the image features; 0: read it off the features"})


class BagOfWords(DualEncoder):
    """Captions as the mean of word vectors in the space of the image features."""

    columns = Columns(required=(("text_tokens",), ("image_features",)))

    def __init__(self, cfg: BagOfWordsConfig, words: int, padding_idx: int) -> None:
        super().__init__()
        self.cfg, self.identity = cfg, {}
        self.table = nn.EmbeddingBag(words, cfg.feature_dim, mode="mean", padding_idx=padding_idx)

    @classmethod
    def build_model(cls, cfg: BagOfWordsConfig, task: Any) -> "BagOfWords":
        return cls(cfg, len(task.source_dictionary), task.source_dictionary.pad())

    @classmethod
    def fit_to_features(cls, cfg: Any, dim: int) -> None:
        cfg.feature_dim = dim

    @property
    def dim(self) -> int:
        return self.cfg.feature_dim

    @property
    def scale(self) -> Tensor:
        return self.table.weight.new_tensor(10.0)

    def encode_text(self, tokens: Tensor) -> Tensor:
        return F.normalize(self.table(tokens), dim=1)

    def encode_image(self, pixel_values: Tensor | None = None, features: Tensor | None = None) -> Tensor:
        assert features is not None
        return F.normalize(features, dim=1)

    def forward(self, text_tokens: Tensor, image_features: Tensor) -> dict[str, Tensor]:
        return {"text": self.encode_text(text_tokens), "image": self.encode_image(features=image_features)}

    def max_positions(self) -> int:
        return 512


class ToyCriterion(TermsCriterion):
    """InfoNCE alone."""

    def outcome(self, model: nn.Module, sample: dict[str, Any]) -> Outcome:
        out, batch = model(**sample["net_input"]), Batch.of(sample, gather=self.training)
        term = contrast_term(batch, "toy", 1.0, out["text"], out["image"], 10.0, ids=sample["group"])
        return weighted_mean(batch, [term], out["text"].sum() * 0.0, [out["text"]], logged={})

    @staticmethod
    def reduce_metrics(logging_outputs: list[dict[str, Any]]) -> None:
        log_ratio("loss", logging_outputs, "loss", "sample_size")


@pytest.fixture(scope="module")
def registered() -> Iterator[None]:
    """The two components, registered for this module's tests only."""
    importlib.import_module("mclip_fairseq.tasks")  # registers ours first, so that they are not taken back below
    before = [dict(registry) for registry in (*REGISTRIES, *OTHERS)]
    # Checkpoints may build only models of this package; the class counts as one, as it would in a file of models/.
    BagOfWords.__module__ = "mclip_fairseq.models.toy_bag_of_words"
    register_model("toy_bag_of_words", dataclass=BagOfWordsConfig)(BagOfWords)
    register_criterion("toy_criterion", dataclass=FairseqDataclass)(ToyCriterion)
    yield
    for registry, content in zip((*REGISTRIES, *OTHERS), before, strict=True):
        registry.clear()
        registry.update(content)


@pytest.mark.usefixtures("registered")
def test_a_toy_system_trains_resumes_and_is_chosen_by_retrieval(
    run_train: Callable[..., str],
    run_in_process: Callable[..., str],
    repository_root: Path,
    tiny_corpus: Path,
    tmp_path: Path,
) -> None:
    command = [
        *(tiny_corpus / "captions", "--task", "trikd", "--langs", "en,de", "--arch", "toy_bag_of_words"),
        *("--image-features", tiny_corpus / "features" / "image", "--criterion", "toy_criterion"),
        *("--optimizer", "fused_adamw", "--lr", "0.05", "--batch-size", "40", "--num-workers", "0"),
        *("--validate-interval", "5", "--valid-retrieval", "--best-checkpoint-metric", "mean_recall"),
        *("--maximize-best-checkpoint-metric", "--no-epoch-checkpoints", "--no-progress-bar", "--log-format", "json"),
        *("--save-dir", tmp_path),
    ]
    log = run_train(*command, "--max-epoch", "20")
    epochs = [json.loads(line[line.index("{") :]) for line in log.splitlines() if "| valid | {" in line]
    assert float(epochs[-1]["valid_mean_recall_de"]) > 60  # chance is about 25 among 16 images
    state = torch.load(tmp_path / "checkpoint_best.pt", weights_only=True)
    assert set(state["model"]) == {"table.weight", "frozen_identity"}
    assert "Loaded checkpoint" in run_train(*command, "--max-epoch", "21")
    validated = run_in_process(
        *("fairseq-validate", tiny_corpus / "captions", "--user-dir", repository_root / "mclip_fairseq"),
        *("--task", "trikd", "--langs", "en,de", "--image-features", tiny_corpus / "features" / "image"),
        *("--path", tmp_path / "checkpoint_last.pt", "--batch-size", "40", "--valid-subset", "valid"),
    )
    assert "valid on 'valid' subset" in validated


@pytest.mark.usefixtures("registered")
def test_a_toy_system_without_its_columns_is_refused(
    run_train: Callable[..., str], tiny_corpus: Path, tmp_path: Path
) -> None:
    """The negative control: the same task notices what this model needs and what it does not read."""
    common = [
        *(tiny_corpus / "captions", "--task", "trikd", "--langs", "en", "--arch", "toy_bag_of_words"),
        *("--criterion", "toy_criterion", "--optimizer", "sgd", "--lr", "1", "--batch-size", "40", "--max-update", "1"),
        *("--image-features", tiny_corpus / "features" / "image", "--save-dir", tmp_path),
    ]
    with pytest.raises(ValueError, match="does not read teacher_text; leave out --text-features"):
        run_train(*common, "--text-features", tiny_corpus / "features" / "text")
