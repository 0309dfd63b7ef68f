"""Files of a published model: a Hub name or a local directory."""

from pathlib import Path, PurePosixPath
from typing import Any

from mclip_fairseq.compat import shield_torchaudio
from mclip_fairseq.storage.files import read_json


def published_file(source: str, name: str) -> Path | None:
    """A file of a Hub name or directory; None where there is none, or no connection to ask."""
    shield_torchaudio()
    from transformers.utils import cached_file

    try:
        found = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError):
        return None  # whoever loads the model says what is wrong with it
    return None if found is None else Path(found)


def published_json(source: str, name: str) -> Any:
    """A JSON file of a Hub name or directory; None where there is none that can be read."""
    found = published_file(source, name)
    try:
        return None if found is None else read_json(found)
    except ValueError:
        return None


def packed_dual_encoder(source: str) -> str | None:
    """Where sentence-transformers packed a dual encoder of `transformers` (`0_CLIPModel` in its CLIP models).

    Args:
        source: Hub name or directory.

    Returns:
        a local directory, or `source` itself; None where nothing of the kind is packed there.
    """
    modules = published_json(source, "modules.json")
    if not isinstance(modules, list) or not modules or not isinstance(modules[0], dict):
        return None
    folder = str(modules[0].get("path", ""))
    if PurePosixPath(folder).is_absolute() or ".." in PurePosixPath(folder).parts:
        return None
    config = published_json(source, f"{folder}/config.json" if folder else "config.json")
    if not isinstance(config, dict) or "vision_config" not in config:
        return None
    if not folder:
        return source
    if Path(source).is_dir():
        return str(Path(source) / folder)
    from huggingface_hub import snapshot_download

    return str(Path(snapshot_download(source, allow_patterns=[f"{folder}/*"])) / folder)


def stated_languages(source: str) -> list[str]:
    """The languages that the model card states; none where it states none."""
    card = published_file(source, "README.md")
    if card is None:
        return []
    from huggingface_hub import ModelCard

    try:
        languages = ModelCard.load(card).data.get("language")
    except (OSError, ValueError):
        return []
    return [languages] if isinstance(languages, str) else list(languages or [])
