"""Recognises a directory that `mclip-export` or `mclip-convert` wrote; `formats.directory.load_saved` loads it."""

from pathlib import Path
from typing import Any

from mclip_fairseq.storage.fields import check_fields
from mclip_fairseq.storage.files import read_json

FORMAT = "mclip_fairseq model"
MODEL_TYPE = "mclip_fairseq"  # of `transformers`
CONFIG = "config.json"
REMEDY = "put back the file that belongs to the model"


def is_saved_directory(path: Path) -> bool:
    """Whether a directory is one of this project."""
    return (path / CONFIG).is_file() and read_config(path).get("format") == FORMAT


def read_config(path: Path) -> dict[str, Any]:
    """The `config.json` of a model directory.

    Raises:
        UserError: it cannot be read, or is not a JSON object.
    """
    return check_fields(path / CONFIG, read_json(path / CONFIG), {}, REMEDY)
