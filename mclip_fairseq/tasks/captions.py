"""Base of the tasks that train on captions: data directories, features, pixels, validation by retrieval."""

import contextlib
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from fairseq import utils
from fairseq.data import Dictionary, indexed_dataset

from mclip_fairseq.data.captions import CaptionDataset, group_numbers, read_caption_ids
from mclip_fairseq.data.checksums import checksum
from mclip_fairseq.data.columns import (
    Column,
    FeatureColumn,
    LanguageColumn,
    PixelColumn,
    StateColumn,
    TokenColumn,
)
from mclip_fairseq.data.pixels import PixelLoader
from mclip_fairseq.data.states import cached_states
from mclip_fairseq.data.subwords import SampledTokenColumn
from mclip_fairseq.data.tokens import FlatTokens, data_dictionary
from mclip_fairseq.models.dual_encoder import DualEncoder
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.images import check_max_pixels
from mclip_fairseq.storage.projection import Projection
from mclip_fairseq.storage.tar_index import FolderImages, TarImages, open_images
from mclip_fairseq.tasks.caption_files import (
    caption_prefix,
    check_columns,
    check_one_dictionary,
    check_same_teacher,
    check_teacher,
    check_tokenizer,
    no_captions,
    open_features,
    subword_sampler,
    training_images,
    translation_column,
)
from mclip_fairseq.tasks.caption_options import CaptionTaskConfig
from mclip_fairseq.tasks.sampled import SampledTask, model_class, split_list
from mclip_fairseq.tasks.validation_retrieval import check_rankable, validation_recalls, warn_of_single_rows

logger = logging.getLogger(__name__)
Ids = list[str] | None


class CaptionTask(SampledTask):
    """Captions in many languages with the columns of `mclip_fairseq.data.columns`.

    | batch entry | shape | needed by |
    |---|---|---|
    | `net_input` | the columns of the data, which `DualEncoder.columns` requires or allows | the model |
    | `group` | (batch,) int64, equal for captions of one image | criterions with several positives |
    | `id`, `nsentences`, `ntokens` | (batch,) int64, int, int | messages, the log |

    A batch holds captions of one language.

    Args:
        cfg: options.
        dictionaries: one per data directory.
    """

    cfg: CaptionTaskConfig
    too_long = "lower --max-caption-tokens or raise --max-tokens"
    # Groups of alternatives that the task's criterions need, whatever the model could do without.
    needed: ClassVar[tuple[tuple[str, ...], ...]] = ()

    def __init__(self, cfg: CaptionTaskConfig, dictionaries: Sequence[Dictionary]) -> None:
        super().__init__(cfg)
        self.dictionaries = list(dictionaries)
        self.images = open_features(cfg.image_features, "image")
        self.texts = open_features(cfg.text_features, "text")
        self.subwords = subword_sampler(cfg, self.dictionaries)
        if self.images is not None and self.texts is not None:
            check_same_teacher(self.images, self.texts)

    @classmethod
    def setup_task(cls, cfg: CaptionTaskConfig, **kwargs: Any) -> "CaptionTask":
        """Check the options, read the dictionaries and verify the features, before a step is taken.

        Raises:
            UserError: options that contradict each other, or data that cannot be used.
        """
        if cfg.image_features and cfg.image_root:
            raise UserError("--image-features and --image-root are both given; the images come from one of them")
        check_max_pixels(cfg.max_pixels)
        return cls(cfg, [data_dictionary(directory) for directory in utils.split_paths(cfg.data)])

    @property
    def source_dictionary(self) -> Dictionary:
        """The dictionary of the first data directory, which is the text encoder's."""
        return self.dictionaries[0]

    def dictionary_of(self, language: str) -> Dictionary:
        """The dictionary of the first data directory with captions in a language.

        Raises:
            UserError: no directory has any.
        """
        for directory, dictionary in zip(utils.split_paths(self.cfg.data), self.dictionaries, strict=True):
            if any(Path(directory).glob(f"*.{language}-None.{language}.idx")):
                return dictionary
        raise UserError(f"{self.cfg.data}: has no captions in {language}; give a data directory with some")

    def dictionary_identity(self) -> dict[str, int]:
        """Size and CRC-32 of the dictionary; where the data directories have several, of all of them."""
        symbols = [dictionary.symbols for dictionary in self.dictionaries]
        if all(other == symbols[0] for other in symbols):
            return super().dictionary_identity()
        joined = "\n".join("\n".join(own) for own in symbols)
        return {"symbols": sum(map(len, symbols)), "crc32": checksum([joined.encode()])}

    @property
    def target_dictionary(self) -> None:
        """None: nothing is generated."""
        return None

    @property
    def needs_teacher(self) -> bool:
        """Whether pixels are decoded here, so that the model must hold its image tower."""
        return bool(self.cfg.image_root)

    @cached_property
    def image_source(self) -> FolderImages | TarImages:
        """Where --image-root has the images."""
        return open_images(self.cfg.image_root)

    @property
    def projections(self) -> dict[str, Projection]:
        """The teacher's projections behind pooled features: `image`, `text` or both."""
        stores = {"image": self.images, "text": self.texts}
        return {name: store.projection for name, store in stores.items() if store is not None and store.projection}

    @property
    def teacher_identity(self) -> dict[str, Any]:
        """Path-free identity of the teacher that made the features."""
        store = self.images or self.texts
        return {} if store is None else dict(store.identity)

    def max_positions(self) -> int:
        """Longest caption in tokens; longer ones are cut, so none is lost."""
        return self.cfg.max_caption_tokens

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> torch.nn.Module:
        """Build the model for the features, and check that the data give what it reads.

        Raises:
            UserError: the options, the data and the model do not fit together.
        """
        kind = model_class(cfg)
        if kind is None or not issubclass(kind, DualEncoder):
            raise UserError(f"--arch {getattr(cfg, '_name', None)}: is not a model of images and texts")
        if not from_checkpoint:
            check_tokenizer(cfg, published=not kind.one_dictionary)
            check_teacher(cfg)
        if kind.one_dictionary:
            check_one_dictionary(utils.split_paths(self.cfg.data), self.dictionaries)
        if self.images or self.texts:
            kind.fit_to_stores(cfg, self.images, self.texts)
        model = super().build_model(cfg, from_checkpoint)
        assert isinstance(model, DualEncoder)
        if model.max_positions() < self.cfg.max_caption_tokens:
            raise UserError(
                f"--max-caption-tokens is {self.cfg.max_caption_tokens}, but the text encoder takes at most "
                f"{model.max_positions()} tokens; pass --max-caption-tokens {model.max_positions()}"
            )
        if self.needs_teacher and model.image_transform is None:
            raise UserError("--image-root needs --teacher, the dual encoder that encodes the pixels")
        if self.cfg.text_state_cache and model.frozen_text_encoder is None:
            raise UserError("--text-state-cache needs a frozen text encoder; pass --freeze-text all")
        if self.cfg.keep_text_states and not self.cfg.text_state_cache:
            raise UserError("--keep-text-states keeps the states of --text-state-cache; give both, or leave it out")
        for split, dataset in self.datasets.items():
            self.check_columns(split, dict(zip(dataset.names, dataset.parts, strict=True)))
        return model

    def load_parts(self, split: str, training: bool) -> dict[str, CaptionDataset]:
        """The captions of every language and data directory."""
        langs = split_list(self.cfg.langs, "--langs")
        if not training and self.cfg.valid_langs:
            langs = split_list(self.cfg.valid_langs, "--valid-langs")
        parts: dict[str, CaptionDataset] = {}
        for lang in langs:
            own = {
                f"{lang}:{number}": self.load_captions(number, Path(directory), split, lang, training)
                for number, directory in enumerate(utils.split_paths(self.cfg.data))
                if indexed_dataset.dataset_exists(caption_prefix(directory, split, lang), impl=None)
            }
            if not own:
                raise no_captions(self.cfg.data, split, lang, training)
            parts.update(own)
        self.check_columns(split, parts)
        return parts

    def load_dataset(self, split: str, epoch: int = 1, combine: bool = False, **kwargs: Any) -> None:
        """As `SampledTask.load_dataset`; a set to validate on must have something to rank."""
        super().load_dataset(split, epoch, combine, **kwargs)
        dataset = self.datasets[split]
        groups = defaultdict(list)
        for name, part in zip(dataset.names, dataset.parts, strict=True):
            if isinstance(part, CaptionDataset):
                groups[name.split(":")[0]].append(part.groups)
        if groups and not dataset.shuffle:
            of_language = {language: np.concatenate(parts) for language, parts in groups.items()}
            check_rankable(split, of_language, self.cfg.valid_retrieval)

    def content_elsewhere(self, part: Any) -> Iterator[bytes]:
        """The features of the captions, and the files of their images."""
        for column in part.columns if isinstance(part, CaptionDataset) else ():
            if isinstance(column, FeatureColumn):
                yield from column.content()
        if isinstance(part, CaptionDataset) and part.pixels is not None:
            for image_id in np.unique(part.pixels.ids).tolist():
                with contextlib.suppress(UserError, OSError):  # the validation itself says so
                    place = self.image_source.open(image_id)
                    yield place.read_bytes() if isinstance(place, Path) else place.read()

    def get_batch_iterator(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """As `SampledTask.get_batch_iterator`; warn of validation batches without a negative."""
        iterator = super().get_batch_iterator(dataset, *args, **kwargs)
        if not dataset.shuffle and not self.cfg.valid_retrieval:
            warn_of_single_rows(iterator.frozen_batches)
        return iterator

    def check_columns(self, split: str, parts: Mapping[str, Any]) -> None:
        """Refuse data without a column that the model needs, or with one that it does not read.

        Args:
            split: for the message.
            parts: `language:number` -> captions; nothing is checked while there is no model.

        Raises:
            UserError: naming the column's option.
        """
        if self.model is None:
            return
        for name, part in parts.items():
            check_columns(f"{split} {name}", part.names, self.model.columns, self.needed)

    def load_captions(self, number: int, directory: Path, split: str, lang: str, training: bool) -> CaptionDataset:
        """Read one caption file with its ids.

        Args:
            number: of the data directory, from 0.
            directory: the data directory.
            split: such as `train`.
            lang: language of the captions.
            training: whether lines and images that cannot be used may spend --skip-budget.
        """
        longest = self.max_positions()
        if self.model is not None:
            self.model.check_text_path(lang, self.dictionaries[number])
        prefix = caption_prefix(directory, split, lang)
        tokens = FlatTokens.from_prefix(prefix, self.dictionaries[number], longest)
        image_ids, text_ids = read_caption_ids(directory / f"{split}.{lang}.ids", len(tokens))
        logger.info("%s %s: %d captions, %d cut to %d tokens", split, lang, len(tokens), tokens.truncated, longest)
        if image_ids is not None and self.images is None and not self.needs_teacher:
            raise UserError(f"{directory}/{split}.{lang}.ids names images; give --image-features or --image-root")
        reason = f"is empty (in {directory})"
        empty = [(self.line_name(number, f"{split}.{lang}", row), reason) for row in tokens.empty]
        if empty and not training:
            raise UserError(f"{' '.join(empty[0])}, one of {len(empty)}; fix the captions and binarise them again")
        self.skips.add(empty)
        if training and self.skips.budget:
            tokens, image_ids, text_ids = self.without_unusable(tokens, image_ids, text_ids)
        dataset = self.make_dataset(tokens, image_ids, text_ids, training)
        if self.cfg.pair_language not in ("", lang):
            pairs = translation_column(
                directory, split, self.cfg.pair_language, self.dictionaries[number], longest, text_ids
            )
            dataset.columns += [] if pairs is None else [pairs]
        if self.model is not None and "language" in self.model.columns.all:
            dataset.columns.append(LanguageColumn(lang))
        return dataset

    def make_dataset(self, tokens: FlatTokens, image_ids: Ids, text_ids: Ids, training: bool) -> CaptionDataset:
        """Captions with the columns that the options ask for.

        Args:
            tokens: the captions.
            image_ids: image id per caption; None without images.
            text_ids: teacher text id per caption; None without teacher texts.
            training: whether unreadable images may spend --skip-budget.
        """
        columns: list[Column] = [self.text_column(tokens, training)]
        image_rows, text_rows, pixels = None, None, None
        if self.images is not None and image_ids is not None:
            column = FeatureColumn("image_features", self.images, image_ids)
            columns.append(column)
            image_rows = column.store_rows
        elif self.needs_teacher and image_ids is not None:
            pixels = self.pixel_column(image_ids, training)
        if self.texts is not None and text_ids is not None:
            column = FeatureColumn("teacher_text", self.texts, text_ids)
            columns.append(column)
            text_rows = column.store_rows
        groups = group_numbers(len(tokens), image_rows, None if pixels is None else image_ids, text_rows)
        return CaptionDataset(tokens.sizes, columns, groups, pixels)

    def text_column(self, tokens: FlatTokens, training: bool) -> Column:
        """Token ids, drawn ones if --subword-sampling asks for them, or cached states of a frozen text encoder."""
        if training and self.subwords is not None:
            return SampledTokenColumn(tokens, self.subwords, self.cfg.seed, self.max_positions())
        if not self.cfg.text_state_cache:
            return TokenColumn(tokens)
        device = torch.device("cuda" if torch.cuda.is_available() and not self.cfg.cpu else "cpu")
        encoder = self.model.frozen_text_encoder
        states = cached_states(
            self.cfg.text_state_cache,
            tokens,
            encoder,
            device,
            str(self.cfg.text_state_dtype),
            lowered=self.cfg.autocast != "none",
            pooling=self.model.state_pooling,
        )
        if self.cfg.keep_text_states:
            states.kept_from = self.model.kept_states.add(states.name, states.values)
        return StateColumn(states)

    def pixel_column(self, image_ids: Sequence[str], training: bool) -> PixelColumn:
        """The images of captions; a task that augments them overrides this."""
        return PixelColumn(image_ids, self.pixel_loader(training))

    def pixel_loader(self, training: bool) -> PixelLoader:
        """Images decoded for each batch; training spends --skip-budget on those that cannot be read."""
        skips = self.skips if training and self.skips.budget else None
        return PixelLoader(self.image_source, self.model.image_transform, self.cfg.max_pixels, skips)

    def without_unusable(self, tokens: FlatTokens, image_ids: Ids, text_ids: Ids) -> tuple[FlatTokens, Ids, Ids]:
        """Leave out empty captions and those whose image or teacher text has no features, within the budget."""
        # A missing image costs one item of the budget, however many captions it has.
        usable = np.ones(len(tokens), dtype=bool)
        usable[tokens.empty] = False
        for store, ids in ((self.images, image_ids), (self.texts, text_ids)):
            if store is not None and ids is not None:
                present = store.has(ids)
                usable &= present
                missing = Counter(ids[row] for row in np.flatnonzero(~present))
                reason = f"has no features in {store.paths[0].name}"
                self.skips.add([(name, f"{reason} ({count} captions)") for name, count in missing.items()])
        rows = np.flatnonzero(usable)
        if len(rows) == len(tokens):
            return tokens, image_ids, text_ids
        chosen = [None if ids is None else [ids[row] for row in rows] for ids in (image_ids, text_ids)]
        return tokens.select(rows), chosen[0], chosen[1]

    def image_bank(self, count: int) -> torch.Tensor:
        """Features of `count` images of the training captions; see `training_images`.

        Raises:
            UserError: the model does not compare texts with a bank, or no training caption names an image.
        """
        assert self.images is not None
        if self.model is not None and not self.model.reads_image_bank:
            raise UserError(f"--arch {self.model.cfg._name}: has no soft labels; leave out --soft-label-weight")
        return training_images(self.cfg.data, self.images, count, self.cfg.seed)

    def begin_valid_epoch(self, epoch: int, model: torch.nn.Module) -> None:
        """Measure retrieval over the whole split, on every rank alike."""
        super().begin_valid_epoch(epoch, model)
        if self.cfg.valid_retrieval and "valid" in self.datasets:
            dataset = self.datasets["valid"]
            self.figures = validation_recalls(
                self.in_precision(model), dict(zip(dataset.names, dataset.parts, strict=True)), self.between_batches
            )
            if not self.figures:
                raise UserError("--valid-retrieval: no caption of the split valid has an image")
