"""Task `distillation`: texts in any language with the teacher's features of the English ones."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fairseq.tasks import register_task

from mclip_fairseq.data.alternation import AlternatingDataset
from mclip_fairseq.data.captions import CaptionDataset
from mclip_fairseq.data.hidden_words import HiddenWordColumn
from mclip_fairseq.data.sampling import TemperatureSampledDataset
from mclip_fairseq.data.tokens import MASK, FlatTokens
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.tasks.captions import CaptionTask, CaptionTaskConfig, Ids


@dataclass
class DistillationTaskConfig(CaptionTaskConfig):
    """Texts, and the teacher's features of their English originals."""

    alternate: bool = field(
        default=False,
        metadata={
            "help": "batches of the data directories take strict turns, and an epoch ends with the shortest of them; "
            "otherwise --sampling-temperature mixes them",
            "data_position": True,
        },
    )
    hide_words: float = field(
        default=0.0,
        metadata={"help": "share of words that a copy of each caption hides, for --masked-word-weight (AltCLIP: 0.15)"},
    )


@register_task("distillation", dataclass=DistillationTaskConfig)
class DistillationTask(CaptionTask):
    """Data for a student that learns the teacher's text features; images serve validation alone.

    | batch entry | shape | needed by |
    |---|---|---|
    | `net_input.text_tokens` or `text_states`, `text_padding` | (batch, length[, dim]) | every model |
    | `net_input.teacher_text` | (batch, teacher dim) | the distances |
    | `net_input.image_features` or `pixel_values` | (batch, teacher dim) or (batch, 3, h, w) | `--valid-retrieval` |
    """

    cfg: DistillationTaskConfig
    needed = (("teacher_text",),)

    @classmethod
    def setup_task(cls, cfg: Any, **kwargs: Any) -> CaptionTask:
        """As `CaptionTask`.

        Raises:
            UserError: one data directory should take turns with itself, or the share of hidden words is out of range.
        """
        task: CaptionTask = super().setup_task(cfg, **kwargs)
        if not 0 <= cfg.hide_words < 1:
            raise UserError(f"--hide-words is {cfg.hide_words}; give a share from 0 to below 1")
        if cfg.alternate and len(task.dictionaries) < 2:
            raise UserError("--alternate needs two data directories or more, separated by colons")
        return task

    def make_dataset(self, tokens: FlatTokens, image_ids: Ids, text_ids: Ids, training: bool) -> CaptionDataset:
        """As `CaptionTask`, with hidden words if --hide-words asks for them; in validation always the same ones."""
        dataset = super().make_dataset(tokens, image_ids, text_ids, training)
        if self.cfg.hide_words:
            dictionary = self.source_dictionary
            mask, specials = dictionary.index(MASK), dictionary.nspecial
            column = HiddenWordColumn(tokens, self.cfg.hide_words, mask, specials, self.cfg.seed, fixed=not training)
            dataset.columns.append(column)
        return dataset

    def sampled(self, parts: Mapping[str, Any], training: bool) -> TemperatureSampledDataset:
        """Mixed by temperature, or in strict turns."""
        if not (training and self.cfg.alternate):
            return super().sampled(parts, training)
        return AlternatingDataset(parts, self.cfg.sampling_temperature, seed=self.cfg.seed)

    def get_batch_iterator(self, dataset: TemperatureSampledDataset, *args: Any, **kwargs: Any) -> Any:
        """As fairseq's; batches that take turns come in the order in which the dataset gives them."""
        if not isinstance(dataset, AlternatingDataset):
            return super().get_batch_iterator(dataset, *args, **kwargs)
        dataset.ranks = kwargs.get("num_shards", 1)
        iterator = super().get_batch_iterator(dataset, *args, **kwargs)
        iterator.disable_shuffling = True
        return iterator
