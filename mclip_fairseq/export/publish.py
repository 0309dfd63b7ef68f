"""A trained model as a directory with a card, and its upload: what `mclip-export` does."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from mclip_fairseq.export.card import CardFacts, model_card
from mclip_fairseq.export.immich import write_immich
from mclip_fairseq.export.onnx import RecallData
from mclip_fairseq.formats.altclip import write_altclip
from mclip_fairseq.formats.m_clip import write_m_clip
from mclip_fairseq.formats.saved import is_saved_directory
from mclip_fairseq.formats.sentence_encoder import write_sentence_encoder
from mclip_fairseq.formats.towers import Tower, TrainedTower
from mclip_fairseq.inference import MultilingualCLIP
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import first_line
from mclip_fairseq.storage.staging import make_new, staged, tidy_up

# Folder of the ONNX files in an exported directory.
ONNX = "onnx"


def load_exportable(model: str, text_encoder: str = "", teacher: str = "", language: str = "") -> Tower:
    """Load a model that was trained here.

    Args:
        model: training checkpoint, or exported directory.
        text_encoder: current path of the text encoder's archive; empty: the checkpoint's.
        teacher: current Hub name or directory of the teacher; empty: the checkpoint's.
        language: the one to export, of a model with a text path per language; empty: all.

    Raises:
        UserError: it cannot be loaded, or is a model of another project.
    """
    loaded = MultilingualCLIP.from_pretrained(
        model, device="cpu", text_encoder=text_encoder or None, teacher=teacher or None
    )
    if not loaded.tower.writer:
        raise UserError(f"{model}: is a transformers model already; mclip-export takes a model that was trained here")
    if not language:
        return loaded.tower
    if loaded.reads_any_language:
        raise UserError(f"{model}: reads all languages in the same way; leave out --language")
    return loaded.for_language(language).tower


def write_model(tower: Tower, output: Path, facts: CardFacts) -> bool:
    """Write the directory, with its card; returns False where the same one is there already.

    Args:
        tower: the model.
        output: directory to make.
        facts: for the card.

    Raises:
        UserError: a report is of a different model, or the directory is not empty; nothing is written then.
    """
    card = model_card(tower, facts)
    if is_written(tower, output, card):
        return False
    importlib.import_module(tower.writer).save_directory(tower, output, card=card)
    return True


def is_written(tower: Tower, output: Path, card: str) -> bool:
    """Whether a directory holds this model and this card."""
    readme = output / "README.md"
    if not (is_saved_directory(output) and readme.is_file() and readme.read_text(encoding="utf-8") == card):
        return False
    try:
        stored = MultilingualCLIP.from_pretrained(output, device="cpu")
    except UserError:  # damaged: not what would be written
        return False
    return stored.fingerprint == MultilingualCLIP(tower, device="cpu").fingerprint


def write_onnx(tower: Tower, output: Path, data: RecallData | None) -> dict[str, Any]:
    """Write both towers as ONNX and compare them with torch.

    Args:
        tower: the model, on the CPU.
        output: directory to make.
        data: captions and features on which the recall of an int8 text tower is measured; None: no int8.

    Returns:
        the report, which is also written.

    Raises:
        UserError: onnx is not installed, or the numbers of a tower are not those of torch.
    """
    with staged(output) as staging:
        report: dict[str, Any] = importlib.import_module(tower.writer).write_onnx(tower, staging, data)
    return report


def write_published(tower: Tower, layout: str, output: Path) -> bool:
    """Write the directory in the layout of a published model; returns False where the same one is there already.

    Args:
        tower: the model.
        layout: `m-clip`, `altclip`, `sentence-transformers` or `immich`.
        output: directory to make.

    Raises:
        UserError: the directory is not empty, or the model is not of this layout.
    """
    if not isinstance(tower, TrainedTower):
        raise UserError(f"{tower.name}: cannot be written as {layout}; use --format directory")
    writers = {
        **{"m-clip": write_m_clip, "altclip": write_altclip, "sentence-transformers": write_sentence_encoder},
        "immich": write_immich,
    }

    def write(folder: Path) -> None:
        with staged(folder) as staging:
            writers[layout](tower, staging)

    return make_new(output, write)


def upload(folder: Path, repository: str) -> str:
    """Upload a directory to the Hub as a private repository, which is made if needed.

    Returns:
        the address of the commit.

    Raises:
        UserError: the Hub refuses it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    tidy_up(folder / ONNX)  # what a killed process has left there
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        commit = api.upload_folder(folder_path=str(folder), repo_id=repository, commit_message="mclip-export")
    except HfHubHTTPError as error:
        raise UserError(f"{repository}: the Hub refuses the upload: {first_line(error)}") from error
    return str(commit.commit_url)
