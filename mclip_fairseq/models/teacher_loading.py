"""Load a dual encoder of `transformers` from files that nobody has vouched for.

Weights are read from safetensors if there are any, and otherwise without running code that a pickle may hold; no
remote code is run. Sizes are compared with the files before memory is allocated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from mclip_fairseq.compat import shield_torchaudio
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import first_line
from mclip_fairseq.storage.hub import can_be_hub_name, packed_dual_encoder, published_folder
from mclip_fairseq.storage.self_contained import check_self_contained

# No model has this many layers; each takes time to build even without memory.
MAX_LAYERS = 1000
# A processor may make images larger than the model's input, to crop them, but not many times larger.
MAX_ENLARGEMENT, UNKNOWN_IMAGE_SIZE = 4, 1024
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "spiece.model")

T = TypeVar("T")


@dataclass(frozen=True)
class DualEncoderFiles:
    """What the files of a dual encoder hold.

    Attributes:
        model: with `get_image_features` and `get_text_features`, in float32.
        processor: its image processor.
        tokenizer: its tokenizer; None if a local directory has none.
        name: Hub name, or directory name without its parents.
        revision: commit of a Hub name; None for a directory.
        source: where the files are, for messages.
    """

    model: Any
    processor: Any
    tokenizer: Any
    name: str
    revision: str | None
    source: str


def load_with_transformers(
    source: str | Path, what: str, load: Callable[[], T], revision: str | None = None, fetch: bool = True
) -> T:
    """Make one call to a loader of `transformers`.

    Args:
        source: Hub name or directory.
        what: it should hold, for the message.
        load: the call.
        revision: branch, tag or commit of a Hub name.
        fetch: whether files of a Hub name may be downloaded.

    Raises:
        UserError: the loader failed, or the source names something outside it.
    """
    check_self_contained(source, revision, fetch)
    return call_transformers(source, what, load)


def call_transformers(source: str | Path, what: str, load: Callable[[], T]) -> T:
    """Make one call to `transformers` that builds something from settings that were read before.

    Args:
        source: of the settings, for the message.
        what: they should describe, for the message.
        load: the call.

    Raises:
        UserError: the call failed.
    """
    try:
        return load()
    except Exception as error:  # its loaders raise whatever damaged files lead them to
        raise UserError(f"{source}: cannot be loaded as {what}: {first_line(error)}") from error


def load_dual_encoder(name_or_path: str | Path, revision: str | None = None, fetch: bool = True) -> DualEncoderFiles:
    """Load model, image processor and tokenizer.

    Args:
        name_or_path: Hub name or local directory, also of a CLIP that sentence-transformers packed.
        revision: branch, tag or commit of a Hub name.
        fetch: whether a Hub name may be downloaded; otherwise only files that were downloaded before are read.

    Raises:
        UserError: a file is missing or damaged, weights are missing, or the model is not a dual encoder.
    """
    shield_torchaudio()
    from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

    import mclip_fairseq.models.vision.clip_resnet  # noqa: F401  (registers it with AutoModel)

    named = str(name_or_path)
    source = (packed_dual_encoder(named) if fetch or Path(named).is_dir() else None) or named
    what = "a transformers dual encoder, image processor and tokenizer"
    local = Path(source).is_dir()
    if not local and not can_be_hub_name(named):
        raise UserError(f"{named}: not found; give a directory, or the name of a model on the Hub")
    # All files are of one commit, also if the repository changes meanwhile.
    snapshot = None if local else published_folder(source, ["config.json"], revision, fetch)
    commit = snapshot.name if snapshot else revision
    options: dict[str, Any] = {"revision": commit} if commit else {}
    options["trust_remote_code"] = False
    load = partial(load_with_transformers, source, what, revision=commit, fetch=fetch)
    if local or not fetch:
        options["local_files_only"] = True
    if local:
        config = load(lambda: AutoConfig.from_pretrained(source, **options))
        check_directory_size(Path(source), config)
    model, info = load(
        lambda: AutoModel.from_pretrained(
            source, dtype=torch.float32, weights_only=True, output_loading_info=True, **options
        )
    )
    # The PIL backend gives the same pixels with and without torchvision.
    processor = load(lambda: AutoImageProcessor.from_pretrained(source, backend="pil", **options))
    tokenizer = None
    if has_tokenizer(source):
        tokenizer = load(lambda: AutoTokenizer.from_pretrained(source, **options))
        check_text_limit(tokenizer, source)
    check_dual_encoder(model, sorted(info["missing_keys"]), source)
    check_image_sizes(processor, model, source)
    name = Path(named).resolve().name if Path(named).is_dir() else named
    return DualEncoderFiles(model, processor, tokenizer, name, None if local else commit, source)


def load_settings(name_or_path: str | Path, revision: str | None = None) -> tuple[Any, Any] | None:
    """Configuration and image processor of a dual encoder, without its weights and without the network.

    Args:
        name_or_path: local directory, or Hub name whose files were downloaded before.
        revision: branch, tag or commit of a Hub name.

    Returns:
        configuration and processor; None where they cannot be read here.
    """
    shield_torchaudio()
    from transformers import AutoConfig, AutoImageProcessor

    import mclip_fairseq.models.vision.clip_resnet  # noqa: F401  (registers its configuration)

    named = str(name_or_path)
    source = (packed_dual_encoder(named) if Path(named).is_dir() else None) or named
    options: dict[str, Any] = {"revision": revision} if revision else {}
    options |= {"trust_remote_code": False, "local_files_only": True}
    try:
        check_self_contained(source, revision, fetch=False)
        config = AutoConfig.from_pretrained(source, **options)
        return config, AutoImageProcessor.from_pretrained(source, backend="pil", **options)
    except Exception:  # its loaders raise whatever missing or damaged files lead them to; loading the model says more
        return None


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a Hub name or directory; None for an empty name.

    Raises:
        UserError: it cannot be loaded.
    """
    if not name:
        return None
    shield_torchaudio()
    from transformers import AutoTokenizer

    tokenizer = load_with_transformers(
        name, "a tokenizer", lambda: AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    )
    check_text_limit(tokenizer, name)
    return tokenizer


def model_without_memory(config: Any, source: str | Path) -> Any:
    """A `transformers` model on torch's meta device.

    Args:
        config: of `transformers`; its sizes may be any numbers.
        source: of the configuration, for messages.

    Raises:
        UserError: the configuration has more layers than any model, or no model can be built from it.
    """
    from transformers import AutoModel

    settings = config.to_dict()
    for section in (settings, *(value for value in settings.values() if isinstance(value, dict))):
        for name, value in section.items():
            if str(name).endswith("layers") and isinstance(value, int) and value > MAX_LAYERS:
                raise UserError(f"{source}: its configuration says {name} {value}; restore the original config.json")
    with torch.device("meta"):
        return call_transformers(
            source,
            "a model of its configuration",
            lambda: AutoModel.from_config(config, trust_remote_code=False),
        )


def check_directory_size(folder: Path, config: Any, what: str = "a transformers dual encoder") -> None:
    """Check that the configuration has no more parameters than the weight files have bytes.

    Args:
        folder: with the weights.
        config: what its `config.json` says.
        what: it should hold, for the message.

    Raises:
        UserError: with both numbers.
    """
    claimed = sum(parameter.numel() for parameter in model_without_memory(config, folder).parameters())
    stored = sum(file.stat().st_size for file in folder.iterdir() if file.suffix in (".safetensors", ".bin"))
    if claimed > stored:
        raise UserError(
            f"{folder}: cannot be loaded as {what}: its configuration says {claimed} parameters, "
            f"but its weights are {stored} bytes; copy the directory again"
        )


def check_dual_encoder(model: nn.Module, missing: list[str], source: str) -> None:
    """Check that a model encodes images and texts, and that all of its weights were in the files.

    Raises:
        UserError: it is another kind of model, or `missing` names a weight.
    """
    if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
        raise UserError(
            f"{source}: holds a {type(model).__name__}, which is not a dual encoder of images and texts; give a CLIP"
        )
    if missing:
        raise UserError(
            f"{source}: lacks {len(missing)} weights of {type(model).__name__}, such as {missing[0]}; copy it again"
        )


def check_image_sizes(processor: Any, model: nn.Module, source: str) -> None:
    """Check that an image processor makes images of about the model's size.

    A larger one would fill gigabytes with a single image before the model could reject it.

    Raises:
        UserError: naming the setting.
    """
    config: Any = model.config
    model_size = getattr(getattr(config, "vision_config", config), "image_size", None)
    limit = MAX_ENLARGEMENT * (model_size if isinstance(model_size, int) else UNKNOWN_IMAGE_SIZE)
    settings = processor.to_dict()
    for name, switch in (("size", "do_resize"), ("crop_size", "do_center_crop"), ("pad_size", "do_pad")):
        edges = settings.get(name) if settings.get(switch) is not False else None
        for edge in edges.values() if isinstance(edges, dict) else [edges]:
            if isinstance(edge, int | float) and not edge <= limit:  # also true of NaN
                raise UserError(
                    f"{source}: its image processor has a {name} of {edge} pixels, but the model reads "
                    f"{model_size or 'far fewer'}; restore the preprocessor_config.json that belongs to it"
                )


def check_text_limit(tokenizer: Any, source: str) -> None:
    """Check that a tokenizer's longest text is a positive number.

    Raises:
        UserError: the configuration says something else.
    """
    limit = tokenizer.model_max_length
    if not (isinstance(limit, int | float) and limit > 0):
        raise UserError(
            f"{source}: its tokenizer has model_max_length {limit!r}; restore the original tokenizer_config.json"
        )


def position_limits(model: nn.Module, part: str = "") -> list[int]:
    """Tokens that the position tables of a model have room for.

    Args:
        model: of `transformers`.
        part: only tables with this in their names count.
    """
    tables = [
        module
        for name, module in model.named_modules()
        if part in name and name.endswith(("position_embedding", "position_embeddings"))
    ]
    # RoBERTa's positions start after the padding index.
    return [
        table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
        for table in tables
        if isinstance(table, nn.Embedding)
    ]


def has_tokenizer(source: str) -> bool:
    """Whether a directory holds a tokenizer; a Hub name is taken to have one."""
    folder = Path(source)
    return not folder.is_dir() or any((folder / name).is_file() for name in TOKENIZER_FILES)
