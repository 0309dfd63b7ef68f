"""Where the files of caption tasks are, and checks that directories belong together."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq import utils
from fairseq.data import Dictionary, indexed_dataset
from torch import Tensor

from mclip_fairseq.data.captions import read_caption_ids
from mclip_fairseq.data.columns import TranslationColumn, option_of
from mclip_fairseq.data.subwords import SubwordSampler
from mclip_fairseq.data.tokens import FlatTokens
from mclip_fairseq.models.dual_encoder import Columns
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.feature_files import same_teacher
from mclip_fairseq.storage.features import FeatureStore
from mclip_fairseq.storage.files import read_lines
from mclip_fairseq.storage.hub import can_be_hub_name
from mclip_fairseq.storage.pieces import SENTENCEPIECE, load_sentencepiece


def caption_prefix(directory: str | Path, split: str, lang: str) -> str:
    """Where fairseq-preprocess --only-source puts a language."""
    return f"{directory}/{split}.{lang}-None.{lang}"


def no_captions(directories: str, split: str, lang: str, training: bool) -> UserError:
    """The error where no data directory has captions of a split in a language."""
    otherwise = "" if training else ", name others with --valid-langs, or give --disable-validation"
    return UserError(
        f"{caption_prefix(directories, split, lang)}: not found; make it with fairseq-preprocess --only-source "
        f"--source-lang {lang} --srcdict dict.txt{otherwise}"
    )


def check_tokenizer(cfg: Any, published: bool = False) -> None:
    """Refuse a --text-tokenizer that does not exist: training does not read it, so only inference would miss it.

    Args:
        cfg: options of the model.
        published: whether the model also takes the name of a tokenizer on the Hub.

    Raises:
        UserError: naming it.
    """
    given = getattr(cfg, "text_tokenizer", None) or ""
    if given and not os.path.exists(given) and not (published and can_be_hub_name(given)):
        raise UserError(f"--text-tokenizer {given}: not found; give the directory of the tokenizer that made the data")


def check_teacher(cfg: Any) -> None:
    """Refuse a --teacher that does not exist: beside features of its own, training does not read it.

    Args:
        cfg: options of the model.

    Raises:
        UserError: naming it.
    """
    given = getattr(cfg, "teacher", None) or ""
    if given and not os.path.exists(given) and not can_be_hub_name(given):
        raise UserError(f"--teacher {given}: not found; give a directory, or the name of a model on the Hub")


def check_one_dictionary(directories: Sequence[str], dictionaries: Sequence[Dictionary]) -> None:
    """Refuse data directories of one text encoder that were made with different dictionaries.

    Raises:
        UserError: naming both directories.
    """
    for directory, dictionary in zip(directories, dictionaries, strict=True):
        if dictionary.symbols != dictionaries[0].symbols:
            raise UserError(
                f"{directory}: its dictionary differs from that of {directories[0]}; binarise both with the text "
                "encoder's dict.txt"
            )


def check_columns(name: str, present: set[str], columns: Columns, needed: Sequence[tuple[str, ...]]) -> None:
    """Refuse captions without a column that is needed, or with one that is not read.

    Args:
        name: `split language:number`, for the message.
        present: the columns of the captions.
        columns: those of the model.
        needed: further groups of alternatives, of the task.

    Raises:
        UserError: naming the column's option.
    """
    missing = [group for group in (*columns.required, *needed) if not present & set(group)]
    if missing:
        wanted = " or ".join(missing[0])
        options = " or ".join(option_of(column) for column in missing[0])
        ids = name.replace(" ", ".").split(":")[0] + ".ids"
        raise UserError(f"{name}: the model needs {wanted} for every caption; give {options}, and the ids in {ids}")
    unread = sorted(present - columns.all)
    if unread:
        raise UserError(f"{name}: the model does not read {unread[0]}; leave out {option_of(unread[0])}")


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
    """Refuse image and text features of two teachers; the model compares their widths and spaces."""
    same_width = images.dim == texts.dim or {images.space, texts.space} != {"joint"}
    if not same_width or not same_teacher(images.identity, texts.identity):
        raise UserError(
            f"the image features are of {images.identity} ({images.dim} columns) and the text features of "
            f"{texts.identity} ({texts.dim} columns); both must come from one teacher"
        )


def training_images(data: str, images: FeatureStore, count: int, seed: int) -> Tensor:
    """Features of images that training captions name, the same ones on every rank.

    Images that no training caption names, such as those of the split valid, are left out.

    Args:
        data: directories, separated by colons.
        images: features; images without are left out.
        count: how many to draw; 0, or more than there are: all.
        seed: of the draw.

    Returns:
        (images, teacher dim) float32.

    Raises:
        UserError: no training caption names an image.
    """
    named: set[str] = set()
    for directory in utils.split_paths(data):
        for path in sorted(Path(directory).glob("train.*.ids")):
            named.update(line.split("\t")[0].strip() for line in read_lines(path))
    ids = sorted(named)
    rows = images.rows([name for name, known in zip(ids, images.has(ids), strict=True) if known])
    if not len(rows):
        raise UserError(f"{data}: no training caption names an image of --image-features")
    chosen = np.random.default_rng(seed).permutation(rows)[: count or None]
    return torch.from_numpy(np.asarray(images.take(chosen), dtype=np.float32))


def translation_column(
    directory: Path, split: str, language: str, dictionary: Dictionary, longest: int, text_ids: Sequence[str] | None
) -> TranslationColumn | None:
    """The captions of another language in the same directory with the same teacher texts.

    Args:
        directory: a data directory.
        split: such as `train`.
        language: of the translations.
        dictionary: of the directory.
        longest: captions are cut to this many tokens.
        text_ids: teacher text of each caption; None without.

    Returns:
        None where there are no teacher texts, or no captions in that language.

    Raises:
        UserError: a caption has no translation.
    """
    prefix, file = caption_prefix(directory, split, language), directory / f"{split}.{language}.ids"
    if text_ids is None or not indexed_dataset.dataset_exists(prefix, impl=None):
        return None
    tokens = FlatTokens.from_prefix(prefix, dictionary, longest)
    known = {text: number for number, text in enumerate(read_caption_ids(file, len(tokens))[1] or ())}
    missing = [text for text in text_ids if text not in known]
    if missing:
        raise UserError(
            f"{file}: has no caption of the teacher text {missing[0]}; leave out --pair-language {language}"
        )
    return TranslationColumn(tokens, np.array([known[text] for text in text_ids], dtype=np.int64))


def subword_sampler(cfg: Any, dictionaries: Sequence[Dictionary]) -> SubwordSampler | None:
    """What cuts training captions into other pieces; None without --subword-sampling.

    Args:
        cfg: options of a `CaptionTask`.
        dictionaries: one per data directory.

    Raises:
        UserError: the options contradict each other, or the model is missing or has no probabilities.
    """
    if cfg.subword_sampling < 0:
        raise UserError(f"--subword-sampling is {cfg.subword_sampling}; give a positive number, or 0 for none")
    if not cfg.subword_sampling:
        return None
    if cfg.text_state_cache:
        raise UserError("--subword-sampling changes the captions in every epoch; leave out --text-state-cache")
    check_one_dictionary(utils.split_paths(cfg.data), dictionaries)
    file = Path(cfg.subword_model) / SENTENCEPIECE
    if not file.is_file():
        raise UserError(f"{file}: not found; give --subword-model the directory of the data's tokenizer")
    processor = load_sentencepiece(file)
    try:
        processor.nbest_encode("a", nbest_size=2)
    except RuntimeError as error:  # what its library raises for a model without probabilities
        raise UserError(f"{file}: is not a unigram model; leave out --subword-sampling") from error
    return SubwordSampler(processor, dictionaries[0], cfg.subword_sampling)
