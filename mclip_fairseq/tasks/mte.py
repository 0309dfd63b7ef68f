"""Task `mte`: translation between many languages, in batches of one direction each."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq import utils
from fairseq.data import Dictionary, indexed_dataset
from fairseq.tasks import register_task
from omegaconf import II
from torch import Tensor

from mclip_fairseq.data.parallel import ParallelDataset, shifted_blocks, unusable_pairs
from mclip_fairseq.data.sampling import TemperatureSampledDataset
from mclip_fairseq.data.tokens import FlatTokens, data_dictionary
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.tasks.sampled import SampledTask, check_names, split_list
from mclip_fairseq.tasks.sampled_options import SampledTaskConfig

logger = logging.getLogger(__name__)


@dataclass
class MTETaskConfig(SampledTaskConfig):
    """Data, languages and directions."""

    data: str = field(
        default="???", metadata={"help": "fairseq-preprocess directories, separated by colons; the first has dict.txt"}
    )
    langs: str = field(
        default="",
        metadata={
            "help": "languages, separated by commas; the order numbers the language projections (0 is unknown)",
            "data_position": True,
        },
    )
    lang_pairs: str = field(
        default="", metadata={"help": "directions to train on, such as en-de,de-en", "data_position": True}
    )
    both_directions: bool = field(
        default=False, metadata={"help": "train every pair in both directions", "data_position": True}
    )
    source_lang: str = field(default="", metadata={"help": "source language when translating", "argparse_alias": "-s"})
    target_lang: str = field(default="", metadata={"help": "target language when translating", "argparse_alias": "-t"})
    sampling_temperature: float = field(
        default=1.0,
        metadata={
            "help": "draw a direction of n pairs in proportion to n^(1/T); 1 keeps the proportions",
            "data_position": True,
        },
    )
    truncate: bool = field(
        default=False,
        metadata={"help": "cut sentences that are longer than these limits and the model allow", "data_position": True},
    )
    max_source_positions: int = field(
        default=512, metadata={"help": "longest source in tokens, <s> and </s> included", "data_position": True}
    )
    max_target_positions: int = field(
        default=512, metadata={"help": "longest target in tokens, <s> and </s> included", "data_position": True}
    )
    max_tokens: int | None = II("dataset.max_tokens")


@register_task("mte", dataclass=MTETaskConfig)
class MTETask(SampledTask):
    """Translation data for the multilingual text encoder.

    | batch entry | shape | needed by |
    |---|---|---|
    | `net_input.src_tokens`, `src_lengths` | (batch, length), (batch,) int64 | the model |
    | `net_input.tgt_lang_id` | (batch,) int64 | the model's language projection |
    | `net_input.prev_output_tokens` | (batch, length) int64 | the decoder |
    | `target` | (batch, length) int64 | both terms of the criterion |
    """

    cfg: MTETaskConfig
    too_long = "pass --truncate to cut them, or raise --max-tokens"

    def __init__(self, cfg: MTETaskConfig, dictionary: Dictionary) -> None:
        super().__init__(cfg)
        self.dictionary = dictionary
        self.langs = split_list(cfg.langs, "--langs") if cfg.langs else []

    @classmethod
    def setup_task(cls, cfg: MTETaskConfig, **kwargs: Any) -> "MTETask":
        """Read the dictionary."""
        return cls(cfg, data_dictionary(utils.split_paths(cfg.data)[0]))

    @property
    def source_dictionary(self) -> Dictionary:
        """The text encoder's dictionary, for both sides."""
        return self.dictionary

    @property
    def target_dictionary(self) -> Dictionary:
        """The same dictionary."""
        return self.dictionary

    def max_positions(self) -> tuple[int, int]:
        """Longest source and target in tokens that the options and the model allow."""
        limits = self.cfg.max_source_positions, self.cfg.max_target_positions
        of_model = self.model.max_positions() if self.model is not None else limits
        return min(limits[0], of_model[0]), min(limits[1], of_model[1])

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> torch.nn.Module:
        """Build the model; the languages a checkpoint was trained with win over, and must agree with, --langs."""
        stored = split_list(cfg.langs, "langs") if getattr(cfg, "langs", "") else []
        if stored and self.langs and stored != self.langs:
            raise UserError(
                f"--langs is {','.join(self.langs)} but the checkpoint numbers its languages {','.join(stored)}; "
                "leave --langs out or give that order"
            )
        self.langs = self.langs or stored
        if not self.langs:
            raise UserError("--langs is missing; list all languages of the data, such as --langs en,de,fr")
        cfg.langs = ",".join(self.langs)
        model: torch.nn.Module = super().build_model(cfg, from_checkpoint)
        return model

    def directions(self, training: bool) -> list[tuple[str, str]]:
        """(source, target) pairs to load: the one of -s and -t, or those of --lang-pairs."""
        if not training and self.cfg.source_lang and self.cfg.target_lang:
            pairs = [(self.cfg.source_lang, self.cfg.target_lang)]
        else:
            pairs = [parse_pair(pair) for pair in split_list(self.cfg.lang_pairs, "--lang-pairs")]
        if self.cfg.both_directions and not (self.cfg.source_lang and not training):
            pairs += [(target, source) for source, target in pairs if (target, source) not in pairs]
        check_names([lang for pair in pairs for lang in pair], self.langs, "a language pair")
        return pairs

    def lang_id(self, lang: str | None) -> int:
        """1-based number of a language in --langs; 0 for an unknown one."""
        return self.langs.index(lang) + 1 if lang in self.langs else 0

    def load_parts(self, split: str, training: bool) -> dict[str, ParallelDataset]:
        """Every direction of a split."""
        return {
            f"{source}-{target}": self.load_direction(split, source, target, training)
            for source, target in self.directions(training)
        }

    def load_direction(self, split: str, source: str, target: str, training: bool) -> ParallelDataset:
        """Read one direction."""
        number, prefix = self.find_pair(split, source, target)
        limits = dict(zip((source, target), self.max_positions(), strict=True))
        sides = {
            lang: FlatTokens.from_prefix(f"{prefix}.{lang}", self.dictionary, limit if self.cfg.truncate else None)
            for lang, limit in limits.items()
        }
        cut = sum(side.truncated for side in sides.values())
        logger.info("%s %s-%s: %d pairs, %d sentences cut", split, source, target, len(sides[source]), cut)
        check_alignment(prefix, sides[source], sides[target])
        sides = self.usable(number, prefix, sides, training)
        return ParallelDataset(sides[source], sides[target], self.lang_id(source), self.lang_id(target))

    def find_pair(self, split: str, source: str, target: str) -> tuple[int, Path]:
        """Where the files of a direction are, whichever way round fairseq-preprocess was called.

        Returns:
            number of the data directory, and the path less the language.

        Raises:
            UserError: no directory has them.
        """
        for number, directory in enumerate(utils.split_paths(self.cfg.data)):
            for pair in (f"{source}-{target}", f"{target}-{source}"):
                prefix = Path(directory) / f"{split}.{pair}"
                if indexed_dataset.dataset_exists(f"{prefix}.{source}", impl=None):
                    return number, prefix
        raise UserError(
            f"{self.cfg.data}: no {split}.{source}-{target} or {split}.{target}-{source}; make it with "
            f"fairseq-preprocess --source-lang {source} --target-lang {target} --joined-dictionary --srcdict dict.txt"
        )

    def usable(
        self, number: int, prefix: Path, sides: Mapping[str, FlatTokens], training: bool
    ) -> dict[str, FlatTokens]:
        """The pairs without an empty or over-long side; training spends --skip-budget on the others.

        Raises:
            UserError: naming the first other one, in evaluation or where the budget is used up.
        """
        longest_batch = (self.cfg.max_tokens or np.inf) if training else np.inf
        limits = {
            lang: (limit, "that --truncate cuts to")
            if limit <= longest_batch
            else (int(longest_batch), "of --max-tokens")
            for lang, limit in zip(sides, self.max_positions(), strict=True)
        }
        unusable = unusable_pairs(sides, limits)
        items = [
            (self.line_name(number, prefix.name, row), f"{reason} (in {prefix.parent})")
            for row, reason in unusable.items()
        ]
        if items and not training:
            raise UserError(
                f"{': '.join(items[0])}, one of {len(items)}; evaluation skips nothing: fix these lines, or remove "
                "them from both sides, and binarise them again"
            )
        if not items:
            return dict(sides)
        self.skips.add(items)
        return {
            lang: tokens.select(np.setdiff1d(np.arange(len(tokens)), list(unusable))) for lang, tokens in sides.items()
        }

    def build_dataset_for_inference(
        self, src_tokens: Sequence[Tensor], src_lengths: Sequence[int], **kwargs: Any
    ) -> TemperatureSampledDataset:
        """Hold sentences that fairseq-interactive has read, for the direction of -s and -t."""
        if not (self.cfg.source_lang and self.cfg.target_lang):
            raise UserError("give the direction with --source-lang and --target-lang")
        check_names([self.cfg.target_lang], self.langs, "--target-lang")
        limit = self.cfg.max_source_positions if self.cfg.truncate else None
        source = FlatTokens.from_sentences(src_tokens, self.dictionary, limit)
        part = ParallelDataset(source, None, self.lang_id(self.cfg.source_lang), self.lang_id(self.cfg.target_lang))
        return TemperatureSampledDataset({"input": part}, shuffle=False)

    def inference_step(
        self, generator: Any, models: Any, sample: dict[str, Any], prefix_tokens: Any = None, constraints: Any = None
    ) -> Any:
        """Translate a batch; fairseq-interactive hands on only the tokens of one, so the language is added here."""
        net_input = sample["net_input"]
        if "tgt_lang_id" not in net_input:
            language = net_input["src_lengths"].new_full(
                (len(net_input["src_tokens"]),), self.lang_id(self.cfg.target_lang)
            )
            sample = {**sample, "net_input": {**net_input, "tgt_lang_id": language}}
        return super().inference_step(generator, models, sample, prefix_tokens, constraints)


def check_alignment(prefix: Path, source: FlatTokens, target: FlatTokens) -> None:
    """Refuse sides of unequal length, and warn where sentences fit their translations' neighbours better.

    Raises:
        UserError: the two sides differ in length.
    """
    if len(source) != len(target):
        raise UserError(
            f"{prefix}: has {len(source)} source and {len(target)} target sentences; parallel files must have equally "
            "many lines, so look for a line that is missing or broken in two"
        )
    if shifted := shifted_blocks(source.sizes, target.sizes):
        start, stop, lines = shifted[0]
        logger.warning(
            "%s: in %d sampled blocks, the first of them lines %d to %d, sentences fit the lengths of the other side "
            "better when it is moved by %+d; look before that line for one that is missing or broken in two",
            *(prefix, len(shifted), start + 1, stop, lines),
        )


def parse_pair(pair: str) -> tuple[str, str]:
    """Split `en-de`.

    Raises:
        UserError: it is not two names.
    """
    names = pair.split("-")
    if len(names) != 2 or not all(names):
        raise UserError(f"--lang-pairs: {pair!r} is not of the form en-de")
    return names[0], names[1]
