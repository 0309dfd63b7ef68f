"""A trained model as a directory with a card, and its upload: what `mclip-export` does."""

from __future__ import annotations

from pathlib import Path

from mclip_fairseq.export.card import CardFacts, model_card
from mclip_fairseq.export.directory import save_directory
from mclip_fairseq.export.mla import save_mla_directory
from mclip_fairseq.formats.altclip import write_altclip
from mclip_fairseq.formats.m_clip import write_m_clip
from mclip_fairseq.formats.mla import MLATower
from mclip_fairseq.formats.sentence_encoder import write_sentence_encoder
from mclip_fairseq.formats.towers import TrainedTower
from mclip_fairseq.inference import MultilingualCLIP
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import first_line


def load_exportable(
    model: str, text_encoder: str = "", teacher: str = "", language: str = ""
) -> TrainedTower | MLATower:
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
        model,
        device="cpu",
        language=language or None,
        text_encoder=text_encoder or None,
        teacher=teacher or None,
    )
    if language and not isinstance(loaded.tower, MLATower):
        raise UserError(f"{model}: reads all languages in the same way; leave out --language")
    if not isinstance(loaded.tower, TrainedTower | MLATower):
        raise UserError(f"{model}: is a transformers model already; mclip-export takes a model that was trained here")
    return loaded.tower


def write_model(tower: TrainedTower | MLATower, output: Path, facts: CardFacts) -> None:
    """Write the directory, with its card.

    Args:
        tower: the model.
        output: directory to make.
        facts: for the card.

    Raises:
        UserError: a report is of a different model, or the directory is not empty; nothing is written then.
    """
    card = model_card(tower, facts)
    if isinstance(tower, MLATower):
        save_mla_directory(tower, output)
    else:
        save_directory(tower, output)
    (output / "README.md").write_text(card, encoding="utf-8")


def write_published(tower: TrainedTower, layout: str, output: Path) -> None:
    """Write the directory in the layout of a published model.

    Args:
        tower: the model.
        layout: `m-clip`, `altclip` or `sentence-transformers`.
        output: directory to make.

    Raises:
        UserError: the directory is not empty, or the model is not of this layout.
    """
    if output.exists() and any(output.iterdir()):
        raise UserError(f"{output}: is not empty; give a new directory")
    writers = {"m-clip": write_m_clip, "altclip": write_altclip, "sentence-transformers": write_sentence_encoder}
    writers[layout](tower, output)


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
