"""Task `ccrk`: images with captions in several languages at once, or pairs of an image and a caption (CCRK)."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from fairseq import utils
from fairseq.dataclass import ChoiceEnum
from fairseq.tasks import register_task

from mclip_fairseq.data.augmentation import LEVELS, Augmentation, AugmentedPixels
from mclip_fairseq.data.captions import CaptionDataset, group_numbers, read_caption_ids
from mclip_fairseq.data.columns import PixelColumn
from mclip_fairseq.data.k_parallel import ParallelCaptions
from mclip_fairseq.data.masking import MaskedColumn, WordMasking
from mclip_fairseq.data.tokens import FlatTokens
from mclip_fairseq.models.ccrk import CCRKModel
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.tasks.caption_files import caption_prefix
from mclip_fairseq.tasks.captions import CaptionTask, CaptionTaskConfig, Ids
from mclip_fairseq.tasks.sampled import split_list

logger = logging.getLogger(__name__)


@dataclass
class CCRKTaskConfig(CaptionTaskConfig):
    """Captions, images, and what is drawn of them."""

    mode: ChoiceEnum(["pretrain", "finetune"]) = field(  # type: ignore[valid-type]
        default="pretrain",
        metadata={
            "help": "pretrain: each image with captions in all --langs, whose files are aligned, and masked words; "
            "finetune: pairs of an image and a caption",
            "data_position": True,
        },
    )
    captions_per_image: int = field(
        default=0,
        metadata={"help": "languages drawn of --langs for each image and epoch (with --mode pretrain); 0: all"},
    )
    max_caption_tokens: int = field(
        default=40,
        metadata={"help": "cut captions to this many tokens, <s> and </s> included", "data_position": True},
    )
    mask_share: float = field(default=0.4, metadata={"help": "share of a caption's tokens that are masked"})
    mask_most: int = field(default=12, metadata={"help": "masked tokens of one caption at most"})
    mask_span_share: float = field(
        default=0.2, metadata={"help": "how often two or three neighbours are masked together"}
    )
    mask_keep_end: bool = field(
        default=False, metadata={"help": "never mask </s>; as published it is masked like a word"}
    )
    crop_area: float = field(
        default=0.2,
        metadata={
            "help": "least share of an image that a random crop shows (0.5 for fine-tuning); 0: no augmentation at all"
        },
    )
    augment_operations: int = field(default=2, metadata={"help": "operations of RandAugment; 0: crops and flips only"})
    augment_level: int = field(default=7, metadata={"help": "strength of RandAugment, from 0 to 10"})


@register_task("ccrk", dataclass=CCRKTaskConfig)
class CCRKTask(CaptionTask):
    """Data for CCRK; validation has a part for each language, as in the other tasks.

    | batch entry | shape | in |
    |---|---|---|
    | `net_input.pixel_values` | (B, 3, h, w) | every batch |
    | `net_input.text_tokens` | (B K, length), (B, length) | pre-training, others |
    | `net_input.masked_tokens`, `masked_positions`, `masked_labels` | (B K, ...) | pre-training |
    | `captions`, `languages` | K, (B, K) int64 | pre-training |
    | `group` | (B,) int64 | every batch |
    """

    cfg: CCRKTaskConfig

    @classmethod
    def setup_task(cls, cfg: CCRKTaskConfig, **kwargs: Any) -> "CaptionTask":
        """Check the options; see `CaptionTask.setup_task`."""
        langs = split_list(cfg.langs, "--langs")
        if not 0 <= cfg.captions_per_image <= len(langs):
            raise UserError(
                f"--captions-per-image is {cfg.captions_per_image}; give 0 for all or up to {len(langs)} of --langs"
            )
        if not (0 < cfg.mask_share < 1 and cfg.mask_most >= 1 and 0 <= cfg.mask_span_share <= 1):
            raise UserError("--mask-share is within 0 and 1, --mask-most at least 1, --mask-span-share from 0 to 1")
        if not (0 <= cfg.crop_area <= 1 and cfg.augment_operations >= 0 and 0 <= cfg.augment_level <= LEVELS):
            raise UserError(
                f"--crop-area is from 0 to 1, --augment-operations at least 0, --augment-level from 0 to {LEVELS}"
            )
        return super().setup_task(cfg, **kwargs)

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> torch.nn.Module:
        """Build the model; a fine-tuning masks no words, so it leaves their head as it is."""
        model = super().build_model(cfg, from_checkpoint)
        if self.cfg.mode == "finetune" and isinstance(model, CCRKModel):
            model.word_head.requires_grad_(False)
            model.text_encoder.embed_tokens.requires_grad_(True)  # the head's output layer is the same table
        return model

    def load_parts(self, split: str, training: bool) -> dict[str, Any]:
        """One part with the captions of all languages for pre-training; one of each language otherwise."""
        if not training or self.cfg.mode == "finetune":
            return super().load_parts(split, training)
        parts = {
            f"parallel:{number}": self.load_parallel(number, Path(directory), split)
            for number, directory in enumerate(utils.split_paths(self.cfg.data))
        }
        self.check_columns(split, parts)
        return parts

    def load_parallel(self, number: int, directory: Path, split: str) -> ParallelCaptions:
        """Read the captions of all languages of one data directory.

        Args:
            number: of the data directory, from 0.
            directory: the data directory.
            split: such as `train`.

        Raises:
            UserError: a file is missing, a caption is empty, or the languages do not describe the same images.
        """
        langs = split_list(self.cfg.langs, "--langs")
        if not self.needs_teacher:
            raise UserError("--task ccrk trains an image tower: give --image-root, the folder of the images")
        captions: dict[str, FlatTokens] = {}
        images: Ids = None
        for lang in langs:
            prefix = caption_prefix(directory, split, lang)
            tokens = FlatTokens.from_prefix(prefix, self.dictionaries[number], self.max_positions())
            place = directory / f"{split}.{lang}.ids"
            ids = read_caption_ids(place, len(tokens))[0]
            if ids is None or ids != (images or ids):
                raise UserError(
                    f"{place}: does not name the images of {split}.{langs[0]}.ids in the same order; pre-training "
                    "needs every image with a caption in every language, as preprocess/ccrk.py writes them"
                )
            if len(tokens.empty):
                raise UserError(f"{prefix}.bin: caption {tokens.empty[0] + 1} is empty; fix it and binarise again")
            captions[lang], images = tokens, ids
        assert images is not None
        logger.info("%s: %d images with captions in %s", split, len(images), ", ".join(langs))
        return ParallelCaptions(
            captions,
            self.pixel_column(images, training=True),
            group_numbers(len(images), None, images, None),
            self.cfg.captions_per_image or len(langs),
            self.cfg.seed,
            self.masking(number),
        )

    def masking(self, number: int = 0) -> WordMasking:
        """How words are masked, with the dictionary of a data directory."""
        return WordMasking.of(
            self.dictionaries[number],
            share=self.cfg.mask_share,
            most=self.cfg.mask_most,
            span_share=self.cfg.mask_span_share,
            keep_end=self.cfg.mask_keep_end,
        )

    def make_dataset(self, tokens: FlatTokens, image_ids: Ids, text_ids: Ids, training: bool) -> CaptionDataset:
        """As `CaptionTask.make_dataset`, with masked words where a pre-training is validated."""
        dataset = super().make_dataset(tokens, image_ids, text_ids, training)
        if self.cfg.mode == "pretrain":
            dataset.columns.append(MaskedColumn(tokens, self.masking(), self.cfg.seed))
        return dataset

    def pixel_column(self, image_ids: Sequence[str], training: bool) -> PixelColumn:
        """The images, augmented for training."""
        if not training or self.cfg.crop_area == 0:
            return super().pixel_column(image_ids, training)
        augmentation = Augmentation(
            size=self.model.cfg.image_size,
            least_area=self.cfg.crop_area,
            operations=self.cfg.augment_operations,
            level=self.cfg.augment_level,
        )
        return AugmentedPixels(image_ids, self.pixel_loader(training), augmentation, self.cfg.seed)
