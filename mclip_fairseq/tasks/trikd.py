"""Task `trikd`: captions in many languages, the images they describe, and teacher features of both."""

import logging
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq import utils
from fairseq.data import Dictionary, indexed_dataset
from fairseq.dataclass import ChoiceEnum
from fairseq.logging import metrics
from fairseq.tasks import register_task
from omegaconf import II
from torch import Tensor

from mclip_fairseq.data.captions import CaptionDataset, read_ids
from mclip_fairseq.data.pixels import PixelLoader
from mclip_fairseq.data.states import TokenStates, cached_states
from mclip_fairseq.data.tokens import FlatTokens, data_dictionary
from mclip_fairseq.models.freezing import holds_text_encoder
from mclip_fairseq.models.teacher import DualEncoderTeacher
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.feature_files import same_teacher
from mclip_fairseq.storage.features import FeatureStore
from mclip_fairseq.storage.images import MAX_PIXELS, check_max_pixels
from mclip_fairseq.tasks.sampled import SampledTask, SampledTaskConfig, split_list
from mclip_fairseq.tasks.validation_retrieval import validation_recalls

logger = logging.getLogger(__name__)
Ids = list[str] | None


@dataclass
class TriKDTaskConfig(SampledTaskConfig):
    """Captions, images and what the teacher says of them."""

    data: str = field(
        default="???",
        metadata={
            "help": "directories, separated by colons, with {split}.{lang}-None.{lang}.bin/.idx from "
            "fairseq-preprocess --only-source and {split}.{lang}.ids"
        },
    )
    langs: str = field(
        default="en", metadata={"help": "caption languages to train on, separated by commas", "data_position": True}
    )
    valid_langs: str = field(default="", metadata={"help": "caption languages to validate on; empty: those of --langs"})
    image_features: str = field(default="", metadata={"help": "feature directories of the images, separated by colons"})
    text_features: str = field(
        default="", metadata={"help": "feature directories of teacher text features, separated by colons"}
    )
    image_root: str = field(default="", metadata={"help": "folder of the images when pixels are decoded on the fly"})
    max_pixels: int = field(
        default=MAX_PIXELS,
        metadata={"help": "refuse an image whose header claims more pixels; applies to --image-root"},
    )
    max_caption_tokens: int = field(
        default=78,
        metadata={"help": "captions are cut to this many tokens, <s> and </s> included", "data_position": True},
    )
    sampling_temperature: float = field(
        default=1.0,
        metadata={
            "help": "draw a language of n captions in proportion to n^(1/T); 1 keeps the proportions",
            "data_position": True,
        },
    )
    text_state_cache: str = field(
        default="",
        metadata={"help": "directory for token states of the frozen text encoder, computed once; empty: none"},
    )
    text_state_dtype: ChoiceEnum(["float32", "float16"]) = field(  # type: ignore[valid-type]
        default="float32", metadata={"help": "storage of --text-state-cache"}
    )
    valid_retrieval: bool = field(
        default=False,
        metadata={
            "help": "at each validation, search every caption of the split `valid` in all its images and log "
            "mean_recall, for --best-checkpoint-metric mean_recall --maximize-best-checkpoint-metric"
        },
    )
    cpu: bool = II("common.cpu")


@register_task("trikd", dataclass=TriKDTaskConfig)
class TriKDTask(SampledTask):
    """Image-caption data for Triangle Cross-modal Knowledge Distillation (mCLIP)."""

    cfg: TriKDTaskConfig
    too_long = "lower --max-caption-tokens or raise --max-tokens"

    def __init__(self, cfg: TriKDTaskConfig, dictionary: Dictionary) -> None:
        super().__init__(cfg)
        if cfg.image_features and cfg.image_root:
            raise UserError("--image-features and --image-root are both given; the images come from one of them")
        check_max_pixels(cfg.max_pixels)
        self.dictionary = dictionary
        self.images = open_features(cfg.image_features, "image")
        self.texts = open_features(cfg.text_features, "text")
        self.recalls: dict[str, float] = {}
        self.validating = False
        if self.images is not None and self.texts is not None:
            check_same_teacher(self.images, self.texts)

    @classmethod
    def setup_task(cls, cfg: TriKDTaskConfig, **kwargs: Any) -> "TriKDTask":
        """Read the dictionary and open the features, which are verified here, before a step is taken."""
        return cls(cfg, data_dictionary(utils.split_paths(cfg.data)[0]))

    @property
    def source_dictionary(self) -> Dictionary:
        """The text encoder's dictionary."""
        return self.dictionary

    @property
    def target_dictionary(self) -> None:
        """None: nothing is generated."""
        return None

    @property
    def needs_teacher(self) -> bool:
        """Whether images are decoded here, so that the model must hold the teacher."""
        return bool(self.cfg.image_root)

    @property
    def teacher_identity(self) -> dict[str, Any]:
        """Path-free identity of the teacher that made the features."""
        store = self.images or self.texts
        return {} if store is None else dict(store.identity)

    def max_positions(self) -> int:
        """Longest caption in tokens that the option and the model allow; longer ones are cut, so that none is lost."""
        limits = [self.cfg.max_caption_tokens] + ([self.model.max_positions()] if self.model is not None else [])
        return min(limits)

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> torch.nn.Module:
        """Build the model with the teacher's width; keep it for --text-state-cache and the teacher's transform."""
        store = self.images or self.texts
        if store is not None:
            if cfg.teacher_dim not in (0, store.dim):
                raise UserError(f"--teacher-dim is {cfg.teacher_dim} but the features have {store.dim} columns")
            cfg.teacher_dim = store.dim
        if self.needs_teacher and not cfg.teacher:
            raise UserError("--image-root needs --teacher, the dual encoder that encodes the pixels")
        if from_checkpoint and holds_text_encoder(cfg):
            cfg.text_encoder = ""  # the archive may be elsewhere by now
        return super().build_model(cfg, from_checkpoint)

    def load_parts(self, split: str, training: bool) -> dict[str, CaptionDataset]:
        """The captions of every language and data directory."""
        langs = split_list(self.cfg.langs, "--langs")
        if not training and self.cfg.valid_langs:
            langs = split_list(self.cfg.valid_langs, "--valid-langs")
        parts: dict[str, CaptionDataset] = {}
        for lang in langs:
            found = {
                f"{lang}:{number}": self.load_captions(number, Path(directory), split, lang, training)
                for number, directory in enumerate(utils.split_paths(self.cfg.data))
                if indexed_dataset.dataset_exists(caption_prefix(directory, split, lang), impl=None)
            }
            if not found:
                otherwise = "" if training else ", name others with --valid-langs, or give --disable-validation"
                raise UserError(
                    f"{caption_prefix(self.cfg.data, split, lang)}: not found; make it with fairseq-preprocess "
                    f"--only-source --source-lang {lang} --srcdict dict.txt{otherwise}"
                )
            parts.update(found)
        return parts

    def begin_valid_epoch(self, epoch: int, model: torch.nn.Module) -> None:
        """Measure retrieval over the whole split, on every rank alike."""
        super().begin_valid_epoch(epoch, model)
        if self.cfg.valid_retrieval and "valid" in self.datasets:
            dataset = self.datasets["valid"]
            self.recalls = validation_recalls(
                model, dict(zip(dataset.names, dataset.parts, strict=True)), self.between_batches
            )
            if not self.recalls:
                raise UserError("--valid-retrieval: no caption of the split valid has an image")

    def valid_step(
        self, sample: dict[str, Any], model: torch.nn.Module, criterion: torch.nn.Module
    ) -> tuple[Tensor, Any, dict[str, Any]]:
        """Fairseq's step; what is logged next belongs to validation."""
        self.validating = True
        step: tuple[Tensor, Any, dict[str, Any]] = super().valid_step(sample, model, criterion)
        return step

    def train_step(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Any, dict[str, Any]]:
        """See `SampledTask`; what is logged next belongs to training."""
        self.validating = False
        return super().train_step(*args, **kwargs)

    def reduce_metrics(self, logging_outputs: list[dict[str, Any]], criterion: Any) -> None:
        """Log the criterion's sums and, in validation, the recalls over the whole split."""
        super().reduce_metrics(logging_outputs, criterion)
        if self.validating:
            for name, value in self.recalls.items():
                metrics.log_scalar(name, value, round=2)

    def load_captions(self, number: int, directory: Path, split: str, lang: str, training: bool) -> CaptionDataset:
        """Read one caption file with its ids."""
        longest = self.max_positions()
        tokens = FlatTokens.from_prefix(caption_prefix(directory, split, lang), self.dictionary, longest)
        image_ids, text_ids = read_ids(directory / f"{split}.{lang}.ids", len(tokens))
        logger.info("%s %s: %d captions, %d cut to %d tokens", split, lang, len(tokens), tokens.truncated, longest)
        if image_ids is not None and self.images is None and not self.needs_teacher:
            raise UserError(f"{directory}/{split}.{lang}.ids names images; give --image-features or --image-root")
        reason = f"is empty (in {directory})"
        empty = [(self.line_name(number, f"{split}.{lang}", row), reason) for row in tokens.empty]
        if empty and not training:
            raise UserError(f"{' '.join(empty[0])}, one of {len(empty)}; mend the captions and binarise them again")
        self.skips.add(empty)
        if training and self.skips.budget:
            tokens, image_ids, text_ids = self.without_unusable(tokens, image_ids, text_ids)
        pixels = self.pixel_loader(training) if self.needs_teacher else None
        return CaptionDataset(
            tokens,
            image_ids,
            text_ids,
            self.images,
            pixels,
            self.texts,
            self.token_states(tokens),
        )

    def pixel_loader(self, training: bool) -> PixelLoader:
        """Images decoded on the fly; training spends --skip-budget on those that cannot be read."""
        teacher: DualEncoderTeacher = self.model.teacher
        skips = self.skips if training and self.skips.budget else None
        return PixelLoader(self.cfg.image_root, teacher.transform, self.cfg.max_pixels, skips)

    def token_states(self, tokens: FlatTokens) -> TokenStates | None:
        """Cached states of the frozen text encoder, if asked for."""
        if not self.cfg.text_state_cache:
            return None
        encoder = self.model.text_encoder
        if not encoder.frozen:
            raise UserError("--text-state-cache needs a frozen text encoder; pass --freeze-text all")
        device = torch.device("cuda" if torch.cuda.is_available() and not self.cfg.cpu else "cpu")
        return cached_states(self.cfg.text_state_cache, tokens, encoder, device, str(self.cfg.text_state_dtype))

    def without_unusable(self, tokens: FlatTokens, image_ids: Ids, text_ids: Ids) -> tuple[FlatTokens, Ids, Ids]:
        """Leave out empty captions and those whose image or teacher text has no features, within the budget."""
        known = np.ones(len(tokens), dtype=bool)
        known[tokens.empty] = False
        for store, ids in ((self.images, image_ids), (self.texts, text_ids)):
            if store is not None and ids is not None:
                known &= store.has(ids)
                missing = Counter(ids[row] for row in np.flatnonzero(~store.has(ids)))
                reason = f"has no features in {store.paths[0].name}"
                self.skips.add([(name, f"{reason} ({count} captions)") for name, count in missing.items()])
        rows = np.flatnonzero(known)
        if len(rows) == len(tokens):
            return tokens, image_ids, text_ids
        chosen = [None if ids is None else [ids[row] for row in rows] for ids in (image_ids, text_ids)]
        return tokens.select(rows), chosen[0], chosen[1]


def caption_prefix(directory: str | Path, split: str, lang: str) -> str:
    """Where fairseq-preprocess --only-source puts a language."""
    return f"{directory}/{split}.{lang}-None.{lang}"


def open_features(paths: str, modality: str) -> FeatureStore | None:
    """Open and verify the feature directories of a colon-separated option.

    Raises:
        UserError: they are damaged, or of the other modality.
    """
    if not paths:
        return None
    store = FeatureStore.open_all(utils.split_paths(paths))
    if store.manifest["modality"] != modality:
        raise UserError(
            f"{store.paths[0]}: holds {store.manifest['modality']} features; --{modality}-features needs those of "
            f"{modality}s"
        )
    return store


def check_same_teacher(images: FeatureStore, texts: FeatureStore) -> None:
    """Refuse image and text features of two teachers: they do not live in one space."""
    if images.dim != texts.dim or not same_teacher(images.identity, texts.identity):
        raise UserError(
            f"the image features are of {images.identity} ({images.dim} columns) and the text features of "
            f"{texts.identity} ({texts.dim} columns); both must come from one teacher"
        )
