"""Task `contrastive_tension`: groups of sentence pairs from raw sentences, and validation by sentence similarity."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq import utils
from fairseq.data import Dictionary, indexed_dataset
from fairseq.dataclass import ChoiceEnum
from fairseq.tasks import register_task

from mclip_fairseq.data.batches import RowDataset
from mclip_fairseq.data.sentence_groups import PAIRINGS, SentenceGroups
from mclip_fairseq.data.tokens import FlatTokens, data_dictionary
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.tasks.caption_files import caption_prefix, check_one_dictionary, check_tokenizer
from mclip_fairseq.tasks.sampled import SampledTask, split_list
from mclip_fairseq.tasks.sampled_options import SampledTaskConfig
from mclip_fairseq.tasks.validation_similarity import SimilarityFile

logger = logging.getLogger(__name__)


@dataclass
class ContrastiveTensionTaskConfig(SampledTaskConfig):
    """Sentences and how they are paired."""

    data: str = field(
        default="???",
        metadata={
            "help": "directories, separated by colons, with {split}.{lang}-None.{lang}.bin/.idx from "
            "fairseq-preprocess --only-source"
        },
    )
    langs: str = field(default="en", metadata={"help": "languages, separated by commas", "data_position": True})
    group_negatives: int = field(
        default=7,
        metadata={"help": "negative pairs beside each positive; 0 for --negatives in_batch", "data_position": True},
    )
    pairing: ChoiceEnum(PAIRINGS) = field(  # type: ignore[valid-type]
        default="authors",
        metadata={
            "help": "authors: negatives are drawn from all sentences; consecutive: shuffled sentences are used up in "
            "order, as in sentence-transformers",
            "data_position": True,
        },
    )
    equal_pairs: ChoiceEnum(["redraw", "released"]) = field(  # type: ignore[valid-type]
        default="redraw",
        metadata={
            "help": "redraw a negative pair that has one sentence twice, or keep it as the released code does",
            "data_position": True,
        },
    )
    max_sentence_tokens: int = field(
        default=75,
        metadata={"help": "cut sentences to this many tokens, <s> and </s> included", "data_position": True},
    )
    sampling_temperature: float = field(
        default=1.0,
        metadata={
            "help": "draw a language of n sentences in proportion to n^(1/T); 1 keeps the proportions",
            "data_position": True,
        },
    )
    valid_sts: str = field(
        default="",
        metadata={
            "help": "file of preprocess/sts.py (score, sentence, sentence): at each validation, log Spearman's "
            "correlation of both encoders and keep the better one, for --best-checkpoint-metric sts_spearman "
            "--maximize-best-checkpoint-metric"
        },
    )


@register_task("contrastive_tension", dataclass=ContrastiveTensionTaskConfig)
class ContrastiveTensionTask(SampledTask):
    """Data for Contrastive Tension.

    | batch entry | shape | needed by |
    |---|---|---|
    | `net_input.first_tokens`, `net_input.second_tokens` | (pairs, length) | the two encoders |
    | `labels` | (pairs,) float32 | `--negatives sampled` |
    """

    cfg: ContrastiveTensionTaskConfig
    too_long = "lower --max-sentence-tokens or raise --max-tokens"

    def __init__(self, cfg: ContrastiveTensionTaskConfig, dictionary: Dictionary) -> None:
        super().__init__(cfg)
        self.dictionary = dictionary
        self.similarity = SimilarityFile(Path(cfg.valid_sts)) if cfg.valid_sts else None

    @classmethod
    def setup_task(cls, cfg: ContrastiveTensionTaskConfig, **kwargs: Any) -> "ContrastiveTensionTask":
        """Read the dictionaries.

        Raises:
            UserError: they differ, or an option is out of range.
        """
        if cfg.group_negatives < 0:
            raise UserError(f"--group-negatives is {cfg.group_negatives}; give 0 or more")
        directories = utils.split_paths(cfg.data)
        dictionaries = [data_dictionary(directory) for directory in directories]
        check_one_dictionary(directories, dictionaries)
        return cls(cfg, dictionaries[0])

    @property
    def source_dictionary(self) -> Dictionary:
        """The text encoder's dictionary."""
        return self.dictionary

    @property
    def target_dictionary(self) -> None:
        """None: nothing is generated."""
        return None

    def max_positions(self) -> int:
        """Longest sentence in tokens; longer ones are cut."""
        return self.cfg.max_sentence_tokens

    def load_parts(self, split: str, training: bool) -> dict[str, SentenceGroups]:
        """The sentences of every language and data directory."""
        parts: dict[str, SentenceGroups] = {}
        for lang in split_list(self.cfg.langs, "--langs"):
            for number, directory in enumerate(utils.split_paths(self.cfg.data)):
                prefix = caption_prefix(directory, split, lang)
                if indexed_dataset.dataset_exists(prefix, impl=None):
                    tokens = FlatTokens.from_prefix(prefix, self.dictionary, self.max_positions())
                    usable = self.usable(tokens, number, split, lang, training)
                    parts[f"{lang}:{number}"] = self.groups(usable, training)
            if not any(name.startswith(f"{lang}:") for name in parts):
                raise UserError(
                    f"{caption_prefix(self.cfg.data, split, lang)}: not found; make it with fairseq-preprocess "
                    f"--only-source --source-lang {lang} --srcdict dict.txt, or give --disable-validation"
                )
        return parts

    def usable(self, tokens: FlatTokens, number: int, split: str, lang: str, training: bool) -> FlatTokens:
        """Sentences without the empty ones, which training may leave out within --skip-budget."""
        empty = [(self.line_name(number, f"{split}.{lang}", row), "is empty") for row in tokens.empty]
        if empty and not training:
            raise UserError(f"{' '.join(empty[0])}, one of {len(empty)}; fix the sentences and binarise them again")
        self.skips.add(empty)
        kept = np.setdiff1d(np.arange(len(tokens)), tokens.empty)
        logger.info("%s %s: %d sentences, %d cut", split, lang, len(kept), tokens.truncated)
        return tokens.select(kept) if empty else tokens

    def groups(self, tokens: FlatTokens, training: bool) -> SentenceGroups:
        """Sentences in the groups that the options ask for; those of a validation never change."""
        redraw, pairing = str(self.cfg.equal_pairs) == "redraw", str(self.cfg.pairing)
        return SentenceGroups(tokens, self.cfg.group_negatives, pairing, self.cfg.seed, redraw, fixed=not training)

    def content_elsewhere(self, part: RowDataset) -> Iterator[bytes]:
        """The sentences and scores of --valid-sts."""
        if self.similarity is not None:
            yield repr((self.similarity.scores, self.similarity.sides)).encode()

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> torch.nn.Module:
        """As `SampledTask.build_model`; a tokenizer that is named must be there."""
        if not from_checkpoint:
            check_tokenizer(cfg)
        return super().build_model(cfg, from_checkpoint)

    def build_criterion(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Build the criterion, for the groups that this task makes."""
        in_batch = str(getattr(cfg, "negatives", "")) == "in_batch"
        if getattr(cfg, "_name", "") == "contrastive_tension" and in_batch != (self.cfg.group_negatives == 0):
            raise UserError("--negatives in_batch and --group-negatives 0 belong together; give both or neither")
        return super().build_criterion(cfg, from_checkpoint)

    def begin_valid_epoch(self, epoch: int, model: torch.nn.Module) -> None:
        """Measure sentence similarity, on every rank alike, and keep the better encoder."""
        super().begin_valid_epoch(epoch, model)
        if self.similarity is not None:
            self.figures = self.similarity.choose(self.model, self.between_batches)
