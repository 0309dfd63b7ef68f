"""What lets `transformers` load an exported directory by itself: `model_type`, `auto_map`, image processor."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from mclip_fairseq.formats.saved import MODEL_TYPE

CODE = "modeling_mclip.py"
SOURCE = """\
\"\"\"The classes that `AutoModel.from_pretrained(DIR, trust_remote_code=True)` takes; pip install mclip_fairseq.\"\"\"

from mclip_fairseq.formats.auto import MCLIPConfig, MCLIPModel  # noqa: F401
"""
IMAGE_PROCESSOR = ("preprocessor_config.json", "processor_config.json")
# For `transformers` and `safetensors`: how the tensors were stored.
WEIGHTS_METADATA = {"format": "pt"}


def auto_settings() -> dict[str, Any]:
    """The entries of `config.json` that `transformers` reads."""
    model = f"{Path(CODE).stem}.MCLIPModel"
    return {
        "model_type": MODEL_TYPE,
        "architectures": ["MCLIPModel"],
        "auto_map": {
            "AutoConfig": f"{Path(CODE).stem}.MCLIPConfig",
            "AutoModel": model,
            "AutoModelForZeroShotImageClassification": model,
        },
    }


def write_code(output: Path) -> None:
    """Write the Python file that `auto_map` names."""
    (output / CODE).write_text(SOURCE, encoding="utf-8")


def copy_image_processor(teacher: Path, output: Path) -> None:
    """Copy the image processor of a teacher to where `AutoImageProcessor` looks for it.

    Args:
        teacher: its directory, as it was written.
        output: directory of the model.
    """
    for name in IMAGE_PROCESSOR:
        if (teacher / name).is_file():
            shutil.copyfile(teacher / name, output / name)
