"""Writes a whole model into one directory; `mclip_fairseq.formats.directory` says what is in it and reads it."""

import json
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from mclip_fairseq.export.hugging_face import WEIGHTS_METADATA, auto_settings, copy_image_processor, write_code
from mclip_fairseq.export.onnx import RecallData, export_onnx
from mclip_fairseq.export.tokenizer_json import write_tokenizer_json
from mclip_fairseq.formats.directory import TEACHER, VERSION, WEIGHTS
from mclip_fairseq.formats.saved import CONFIG, FORMAT
from mclip_fairseq.formats.towers import NOT_STORED, TrainedTower
from mclip_fairseq.models.dual_encoder import DualEncoder
from mclip_fairseq.models.teacher import DualEncoderTeacher
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import file_sha256, write_json
from mclip_fairseq.storage.staging import staged

MODULES = "modules.json"
SENTENCE_TRANSFORMERS_MODULE = {
    "idx": 0,
    "name": "0",
    "path": "",
    "type": "mclip_fairseq.formats.sentence_transformers.MCLIPModule",
}


def save_directory(tower: TrainedTower, output: Path, into: bool = False, card: str = "") -> None:
    """Write a model with everything that inference needs.

    Args:
        tower: the model; a teacher outside it is loaded and written too.
        output: directory to make; it must be empty or absent.
        into: the directory may hold other files already, which stay.
        card: of the model, for its README.md; empty writes none.

    Raises:
        UserError: the directory holds something, or the teacher cannot be loaded.
    """
    if not into and output.exists() and any(output.iterdir()):
        raise UserError(f"{output}: is not empty; give a new directory")
    # A model with an image tower of its own has all weights in one file, and its options hold the image size.
    own_images = tower.module.image_transform is not None or not tower.module.has_images
    teacher = None if own_images else tower.teacher
    with staged(output) as staging:
        write_files(tower, teacher, staging, card)


def write_files(tower: TrainedTower, teacher: DualEncoderTeacher | None, output: Path, card: str) -> None:
    """Write all files of a model directory; see `save_directory`."""
    if teacher is not None:
        teacher.save(output / TEACHER)
        copy_image_processor(output / TEACHER, output)
    tokenizer_files = tower.tokenizer.write(output)
    write_tokenizer_json(tower.tokenizer, output)
    write_code(output)
    save_file(portable_weights(tower.module), output / WEIGHTS, WEIGHTS_METADATA)
    options = {key: value for key, value in vars(as_namespace(tower.module.cfg)).items() if key not in NOT_STORED}
    config = {
        **auto_settings(),
        "format": FORMAT,
        "version": VERSION,
        "architecture": tower.module.registered_name(),
        "model": {key: getattr(value, "value", value) for key, value in options.items()},
        "max_tokens": tower.tokenizer.max_tokens,
        "files": {name: file_sha256(output / name) for name in tokenizer_files},
        "image_size": 0 if teacher is None else teacher.image_size,
        "languages": tower.languages,
        "identity": tower.identity,
    }
    (output / MODULES).write_text(json.dumps([SENTENCE_TRANSFORMERS_MODULE], indent=2) + "\n", encoding="utf-8")
    if card:
        (output / "README.md").write_text(card, encoding="utf-8")
    write_json(output / CONFIG, config)  # last: a directory without it is not finished


def portable_weights(module: DualEncoder) -> dict[str, Tensor]:
    """All weights but the teacher's, tied ones once, contiguous on the CPU."""
    tied = module.ties(module.cfg)
    # The model's own `state_dict` leaves frozen parts out; buffers that no state dict has are computed when built.
    return {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in nn.Module.state_dict(module).items()
        if name not in tied and not name.startswith("teacher.")
    }


def as_namespace(cfg: Any) -> Namespace:
    """A model configuration, of whichever kind fairseq gave it, as a namespace."""
    return cfg if isinstance(cfg, Namespace) else Namespace(**(cfg if isinstance(cfg, Mapping) else vars(cfg)))


def write_onnx(tower: TrainedTower, output: Path, data: RecallData | None = None) -> dict[str, Any]:
    """Both towers as ONNX, compared with torch; see `mclip_fairseq.export.onnx.export_onnx`."""
    return export_onnx(tower, output, data)
