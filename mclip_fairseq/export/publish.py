"""A trained model as a directory with a card, and its upload: what `mclip-export` does."""

from __future__ import annotations

from pathlib import Path

from mclip_fairseq.export.card import CardFacts, model_card
from mclip_fairseq.export.directory import save_directory
from mclip_fairseq.formats.saved import is_saved_directory
from mclip_fairseq.formats.towers import TrainedTower
from mclip_fairseq.inference import MultilingualCLIP
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import first_line


def load_exportable(model: str, text_encoder: str = "", teacher: str = "") -> TrainedTower:
    """Load a model that was trained here.

    Args:
        model: training checkpoint, or exported directory.
        text_encoder: current path of the text encoder's archive; empty: the checkpoint's.
        teacher: current Hub name or directory of the teacher; empty: the checkpoint's.

    Raises:
        UserError: it cannot be loaded, or is a model of another project.
    """
    loaded = MultilingualCLIP.from_pretrained(
        model, device="cpu", text_encoder=text_encoder or None, teacher=teacher or None
    )
    if not isinstance(loaded.tower, TrainedTower):
        raise UserError(f"{model}: is a transformers model already; mclip-export takes a model that was trained here")
    return loaded.tower


def write_model(tower: TrainedTower, output: Path, facts: CardFacts) -> bool:
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
    save_directory(tower, output, card=card)
    return True


def is_written(tower: TrainedTower, output: Path, card: str) -> bool:
    """Whether a directory holds this model and this card."""
    readme = output / "README.md"
    if not (is_saved_directory(output) and readme.is_file() and readme.read_text(encoding="utf-8") == card):
        return False
    try:
        stored = MultilingualCLIP.from_pretrained(output, device="cpu")
    except UserError:  # damaged: not what would be written
        return False
    return stored.fingerprint == MultilingualCLIP(tower, device="cpu").fingerprint


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
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        commit = api.upload_folder(folder_path=str(folder), repo_id=repository, commit_message="mclip-export")
    except HfHubHTTPError as error:
        raise UserError(f"{repository}: the Hub refuses the upload: {first_line(error)}") from error
    return str(commit.commit_url)
