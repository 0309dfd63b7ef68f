"""A whole model in one directory: what `mclip-export` writes (`mclip_fairseq.export.directory`), read here.

    config.json          format, architecture, sizes, languages, longest text, identities of the frozen parts
    model.safetensors    text encoder, projectors, scale
    dict.txt, sentencepiece.bpe.model    or tokenizer/, of a text encoder of `transformers`
    modules.json         for sentence-transformers
    tokenizer.json, tokenizer_config.json, preprocessor_config.json, modeling_mclip.py
                         for transformers; nothing here reads them
    teacher/             a `transformers` directory: weights, image processor and, if the teacher has one, tokenizer

Nothing in it is a pickle, and no path leads out of it.
"""

import importlib
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mclip_fairseq.data.hf_tokenizer import PIECES
from mclip_fairseq.formats.saved import CONFIG, REMEDY, read_config
from mclip_fairseq.formats.towers import Tower, TrainedTower
from mclip_fairseq.formats.training import build_module, dual_encoder_class, read_tokenizer, stored_options
from mclip_fairseq.models.freezing import IDENTITY, encode_identity
from mclip_fairseq.models.settings import stored_image_settings
from mclip_fairseq.models.teacher import DualEncoderTeacher
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.fields import check_fields
from mclip_fairseq.storage.files import file_sha256

VERSION = 1
WEIGHTS, TEACHER = "model.safetensors", "teacher"
CONFIG_FIELDS = {
    "architecture": str,
    "model": dict,
    "max_tokens": int,
    "files": dict,
    "image_size": int,
    "languages": list,
    "identity": dict,
}
LEAST_TOKENS = 3


def load_saved(path: Path) -> Tower:
    """Read a directory of this project: its model says which module reads it.

    Raises:
        UserError: a file is missing or damaged, or parts do not belong together.
    """
    config = check_fields(path / CONFIG, read_config(path), {"architecture": str}, REMEDY)
    kind = dual_encoder_class(config["architecture"], path / CONFIG)
    reader = importlib.import_module(kind.format_module) if kind.format_module else None
    tower: Tower = load_directory(path) if reader is None else reader.load_directory(path)
    return tower


def load_directory(path: Path) -> TrainedTower:
    """Read what `mclip_fairseq.export.directory.save_directory` wrote.

    Raises:
        UserError: a file is missing or damaged, or parts do not belong together.
    """
    config = read_config(path)
    place = path / CONFIG
    if config.get("version") != VERSION:
        raise UserError(f"{place}: version {config.get('version')} is not read here; update mclip_fairseq")
    check_fields(place, config, CONFIG_FIELDS, REMEDY)
    check_files(path, config["files"])
    if config["max_tokens"] < LEAST_TOKENS:
        raise UserError(
            f"{place}: says max_tokens {config['max_tokens']}, but <s>, a token and </s> are {LEAST_TOKENS}; {REMEDY}"
        )
    kind = dual_encoder_class(config["architecture"], place)
    options = stored_options(kind, config["model"], place)
    # All weights are in this directory, also those that a training checkpoint leaves to the archive.
    options.text_encoder, options.save_frozen = "", True
    weights = _read_weights(path / WEIGHTS)
    for name, source in kind.ties(options).items():
        if source not in weights:
            raise UserError(f"{path / WEIGHTS}: lacks {source}; copy the directory again")
        weights[name] = weights[source]
    weights[IDENTITY] = encode_identity(config["identity"])
    tokenizer = read_tokenizer(path / PIECES if getattr(options, "text_config", "") else path, options)
    tokenizer.max_tokens = config["max_tokens"]
    module = build_module(kind, options, tokenizer.dictionary, weights, place)
    module.identity.update(config["identity"])

    def load_teacher() -> DualEncoderTeacher:
        teacher = DualEncoderTeacher.from_pretrained(path / TEACHER)
        if teacher.image_size != config["image_size"]:
            raise UserError(
                f"{path / TEACHER}: its image processor makes {teacher.image_size} pixels but the model was made with "
                f"{config['image_size']}; put back the preprocessor_config.json that was written with it"
            )
        return teacher

    read_settings = partial(stored_image_settings, path / TEACHER)
    return TrainedTower(module, tokenizer, path.resolve().name, config["languages"], load_teacher, read_settings)


def check_files(path: Path, hashes: dict[str, Any]) -> None:
    """Refuse a directory in which a file is not the one that was written with the model.

    Args:
        path: the directory.
        hashes: file name, below the directory -> SHA-256.

    Raises:
        UserError: naming the file.
    """
    for name, written in hashes.items():
        file = path / name
        outside = Path(name).is_absolute() or ".." in Path(name).parts
        if outside or not file.is_file() or file_sha256(file) != written:
            raise UserError(f"{file}: is not the file that was written with the model; put that back")


def _read_weights(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: cannot be read: {error}; copy the directory again") from error
