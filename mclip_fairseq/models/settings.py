"""What a model's vectors depend on besides its weights: structure, image processor, tokenizer; free of paths.

Equal settings give equal text, whether a model was copied, moved, or written again by another version of a library.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from torch import nn

from mclip_fairseq.storage.files import file_sha256

# Numbers of a module that change what it computes but not the shapes of its weights.
STRUCTURE = (
    *("num_heads", "nhead", "head_dim", "scaling", "scale", "eps", "padding_idx", "normalize_before", "norm_first"),
    *("activation_fn", "activation", "pooling", "max_positions", "max_source_positions", "stride", "padding"),
)
# Of a configuration of `transformers`: where it comes from, and how it is stored.
ORIGIN = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "_commit_hash")
# Of an image processor: names, and where and how its result is given.
NOT_PIXELS = (
    *("processor_class", "image_processor_type", "feature_extractor_type", "device", "data_format"),
    *("input_data_format", "return_tensors", "disable_grouping"),
)
# State of a tokenizer that its last call has set.
OF_THE_LAST_CALL = ("truncation", "padding")


def digest(facts: Any) -> str:
    """SHA-256 of facts, as hexadecimal."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def structure_settings(module: nn.Module) -> dict[str, Any]:
    """What the submodules of a model compute: heads, order of normalisations, activations, configurations.

    Args:
        module: the model; a teacher inside it is left out.
    """
    settings: dict[str, Any] = {}
    for name, part in module.named_modules():
        if name == "teacher" or name.startswith("teacher."):
            continue
        facts = {key: plain_value(getattr(part, key)) for key in STRUCTURE if key in vars(part)}
        if hasattr(config := getattr(part, "config", None), "to_diff_dict"):
            facts["config"] = config_settings(config)
        if facts := {key: value for key, value in facts.items() if value is not None}:
            settings[name] = facts
    return settings


def plain_value(value: Any) -> Any:
    """A number, word, truth value or tuple of these, the name of a function; None for anything else."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        return [plain_value(item) for item in value]
    return getattr(value, "__name__", None)


def config_settings(config: Any) -> dict[str, Any]:
    """What a configuration of `transformers` says that differs from the defaults of its class."""

    def without_origin(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): without_origin(item) for key, item in value.items() if key not in ORIGIN}
        return value

    settings: dict[str, Any] = without_origin(config.to_diff_dict())
    return settings


def processor_settings(processor: Any) -> dict[str, Any]:
    """What an image processor does: resizing, resampling, crop, mean, deviation."""
    settings = {key: value for key, value in processor.to_dict().items() if value is not None}
    kept = {key: value for key, value in settings.items() if key not in NOT_PIXELS and not key.startswith("_")}
    return {"class": type(processor).__name__} | kept


def transform_settings(transform: Any) -> Any:
    """The settings of an image transform: those of its processor, or its description."""
    processor = getattr(transform, "processor", None)
    if processor is not None:
        return processor_settings(processor)
    return getattr(transform, "description", None) or repr(transform)


def tokenizer_settings(tokenizer: Any) -> Any:
    """What a tokenizer makes of texts: the hash of its vocabulary and rules, and how it pads and cuts.

    Args:
        tokenizer: XLM-R's, one of `transformers`, or a function with such a one as its attribute `tokenizer`.
    """
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    if tokenizer is None:
        return None
    facts: dict[str, Any] = {"limit": getattr(tokenizer, "max_tokens", None)}
    if hasattr(tokenizer, "directory"):
        files = sorted(path for path in Path(tokenizer.directory).iterdir() if is_vocabulary(path))
        return facts | {"files": {path.name: file_sha256(path) for path in files}}
    facts |= {key: plain_value(getattr(tokenizer, key, None)) for key in ("padding_side", "pad_token", "eos_token")}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        rules = json.loads(backend.to_str())
        return facts | {"rules": digest({key: value for key, value in rules.items() if key not in OF_THE_LAST_CALL})}
    vocabulary = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else type(tokenizer).__name__
    return facts | {"rules": digest([type(tokenizer).__name__, vocabulary])}


def is_vocabulary(path: Path) -> bool:
    """Whether a file is part of XLM-R's tokenizer."""
    return path.name in ("dict.txt", "sentencepiece.bpe.model")


def stored_image_settings(name_or_path: str | Path, revision: str | None = None) -> Any:
    """The settings of a dual encoder's image side, from its files and without its weights.

    Args:
        name_or_path: directory or Hub name; of the latter only files that were downloaded before are read.
        revision: of a Hub name.

    Returns:
        what `DualEncoderTeacher.image_settings` returns; None where the files are not on this machine.
    """
    from mclip_fairseq.models.teacher_loading import load_settings

    read = load_settings(name_or_path, revision)
    return None if read is None else image_side_settings(*read)


def image_side_settings(config: Any, processor: Any) -> dict[str, Any]:
    """The settings of a dual encoder's image side, from its configuration and image processor."""
    return {"config": config_settings(config), "processor": processor_settings(processor)}
