"""A whole model in one directory: what `mclip-export` and `mclip-convert released` write and `from_pretrained` reads.

    config.json          format, architecture, sizes, languages, longest text, identities of the frozen parts
    model.safetensors    text encoder, projectors, scale
    dict.txt, sentencepiece.bpe.model
    modules.json         for sentence-transformers
    teacher/             a `transformers` directory: weights, image processor and, where there is one, tokenizer

Nothing in it is a pickle, and no path leads out of it.
"""

import json
import shutil
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mclip_fairseq.data.tokenizer import SENTENCEPIECE, XLMRTokenizer
from mclip_fairseq.formats.towers import ProjectedTower
from mclip_fairseq.formats.training import build_module
from mclip_fairseq.models.freezing import IDENTITY, encode_identity
from mclip_fairseq.models.teacher import DualEncoderTeacher
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import expecting, file_sha256, first_line, read_json, write_json

FORMAT = "mclip_fairseq model"
VERSION = 1
MODULES = "modules.json"
SENTENCE_TRANSFORMERS_MODULE = {
    "idx": 0,
    "name": "0",
    "path": "",
    "type": "mclip_fairseq.formats.sentence_transformers.MCLIPModule",
}
CONFIG, WEIGHTS, TEACHER = "config.json", "model.safetensors", "teacher"
TOKENIZER_FILES = ("dict.txt", SENTENCEPIECE)
LEAST_TOKENS = 3
# The output layer of the masked-language model is the token table.
OUTPUT_TABLE = "text_encoder.encoder.lm_head.weight"
TOKEN_TABLE = "text_encoder.encoder.sentence_encoder.embed_tokens.weight"
# Options that name files of the machine that trained, or what only training uses.
NOT_STORED = ("text_encoder", "text_tokenizer", "teacher", "teacher_revision", "save_frozen", "_name", "_parent")


def is_saved_directory(path: Path) -> bool:
    """Whether a directory was written by `save_directory`."""
    if not (path / CONFIG).is_file():
        return False
    return _read_config(path).get("format") == FORMAT


def save_directory(tower: ProjectedTower, output: Path, into: bool = False) -> None:
    """Write a model with everything that inference needs.

    Args:
        tower: the model; its teacher is loaded and written too.
        output: directory to make; it must be empty or absent, unless
        into: files may stand in it already.

    Raises:
        UserError: the directory holds something, or the teacher cannot be loaded.
    """
    if not into and output.exists() and any(output.iterdir()):
        raise UserError(f"{output}: is not empty; give a new directory")
    teacher = tower.teacher
    output.mkdir(parents=True, exist_ok=True)
    teacher.save(output / TEACHER)
    for name in TOKENIZER_FILES:
        shutil.copyfile(tower.tokenizer.directory / name, output / name)
    save_file(portable_weights(tower.module), output / WEIGHTS)
    options = {key: value for key, value in vars(as_namespace(tower.module.cfg)).items() if key not in NOT_STORED}
    config = {
        "format": FORMAT,
        "version": VERSION,
        "architecture": registered_name(tower.module),
        "model": {key: getattr(value, "value", value) for key, value in options.items()},
        "max_tokens": tower.tokenizer.max_tokens,
        "files": {name: file_sha256(output / name) for name in TOKENIZER_FILES},
        "image_size": teacher.image_size,
        "languages": tower.languages,
        "identity": tower.identity,
    }
    (output / MODULES).write_text(json.dumps([SENTENCE_TRANSFORMERS_MODULE], indent=2) + "\n", encoding="utf-8")
    write_json(output / CONFIG, config)  # last: a directory without it is not finished


def registered_name(module: Any) -> str:
    """The name that a model's class is registered under with fairseq."""
    from fairseq.models import MODEL_REGISTRY

    return next(name for name, kind in MODEL_REGISTRY.items() if kind is type(module))


def portable_weights(module: Any) -> dict[str, Tensor]:
    """All weights but the teacher's, tied ones once, contiguous on the CPU."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in named
        if name != OUTPUT_TABLE and not name.startswith("teacher.")
    }


def as_namespace(cfg: Any) -> Namespace:
    """A model configuration, of whichever kind fairseq gave it, as a namespace."""
    return cfg if isinstance(cfg, Namespace) else Namespace(**(cfg if isinstance(cfg, Mapping) else vars(cfg)))


def load_directory(path: Path) -> ProjectedTower:
    """Read what `save_directory` wrote.

    Raises:
        UserError: a file is missing or damaged, or parts do not belong together.
    """
    config = _read_config(path)
    if config.get("version") != VERSION:
        raise UserError(f"{path}/{CONFIG}: version {config.get('version')} is not read here; update mclip_fairseq")
    with expecting(path / CONFIG, "what mclip-export writes"):
        return _build(path, config)


def _build(path: Path, config: dict[str, Any]) -> ProjectedTower:
    for name, written in config["files"].items():
        if Path(name).name != name or file_sha256(path / name) != written:
            raise UserError(f"{path / name}: is not the file that was written with the model; put that back")
    if int(config["max_tokens"]) < LEAST_TOKENS:
        raise UserError(
            f"{path / CONFIG}: says max_tokens {int(config['max_tokens'])}, but <s>, a token and </s> are "
            f"{LEAST_TOKENS}; put back the file that belongs to the model"
        )
    tokenizer = XLMRTokenizer(path, max_tokens=int(config["max_tokens"]))
    options = Namespace(**config["model"], text_encoder="", text_tokenizer="", teacher="", save_frozen=True)
    weights = _read_weights(path / WEIGHTS)
    if TOKEN_TABLE not in weights:
        raise UserError(f"{path / WEIGHTS}: lacks {TOKEN_TABLE}; copy the directory again")
    weights[OUTPUT_TABLE] = weights[TOKEN_TABLE]
    weights[IDENTITY] = encode_identity(config["identity"])
    try:
        module = build_module(config["architecture"], options, path, weights, path / CONFIG)
    except (LookupError, RuntimeError) as error:
        raise UserError(f"{path}: {WEIGHTS} does not fit {CONFIG}: {first_line(error)}") from error
    module.identity.update(config["identity"])

    def load_teacher() -> DualEncoderTeacher:
        teacher = DualEncoderTeacher.from_pretrained(path / TEACHER)
        if teacher.image_size != config["image_size"]:
            raise UserError(
                f"{path / TEACHER}: its image processor makes {teacher.image_size} pixels but the model was made with "
                f"{config['image_size']}; put back the preprocessor_config.json that was written with it"
            )
        return teacher

    return ProjectedTower(module, tokenizer, path.resolve().name, config["languages"], load_teacher)


def _read_config(path: Path) -> dict[str, Any]:
    config = read_json(path / CONFIG)
    if not isinstance(config, dict):
        raise UserError(f"{path / CONFIG}: is not a JSON object")
    return config


def _read_weights(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: cannot be read: {error}; copy the directory again") from error
