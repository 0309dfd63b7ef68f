"""Files of a published model: a Hub name or a local directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from mclip_fairseq.storage.files import read_json


def can_be_hub_name(name: str) -> bool:
    """Whether a text can name a model on the Hub (`NAME` or `USER/NAME`); otherwise it is a path."""
    return not name.startswith(("/", ".", "~")) and name.count("/") < 2


def published_file(source: str, name: str, revision: str | None = None) -> Path | None:
    """One file of a model.

    Args:
        source: Hub name, or directory.
        name: path in the model's folder.
        revision: branch, tag or commit of a Hub name.

    Returns:
        a local file, downloaded into the Hub's cache if needed; None if the model does not have it, or if it is not in
        the cache and the Hub cannot be reached (or `HF_HUB_OFFLINE` is set).
    """
    if Path(source).is_dir():
        file = Path(source) / name
        return file if file.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(hf_hub_download(source, name, revision=revision))
    except (HfHubHTTPError, OSError, ValueError):
        # Missing file or model, invalid name, no access, no connection: the caller that needs the file reports it.
        return None


def published_folder(
    source: str | Path, patterns: Sequence[str], revision: str | None = None, fetch: bool = True
) -> Path | None:
    """A directory with those files of a model whose paths fit one of some patterns, and perhaps with others.

    Args:
        source: directory, which is returned as it is, or Hub name.
        patterns: of `fnmatch`; `*` also stands for slashes.
        revision: branch, tag or commit of a Hub name.
        fetch: whether files may be downloaded into the Hub's cache; otherwise only those in it are given.

    Returns:
        None if it is neither, or if nothing is in the cache and the Hub does not give it: what loads the model says so.
    """
    if Path(source).is_dir():
        return Path(source)
    if Path(source).exists() or not can_be_hub_name(str(source)):
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(
            snapshot_download(str(source), revision=revision, allow_patterns=list(patterns), local_files_only=not fetch)
        )
    except (HfHubHTTPError, OSError, ValueError):
        return None


def published_json(source: str, name: str) -> Any:
    """The value of a JSON file of a model; None if the file is missing or cannot be read."""
    file = published_file(source, name)
    try:
        return None if file is None else read_json(file)
    except ValueError:
        return None


def packed_dual_encoder(source: str) -> str | None:
    """Where sentence-transformers packed a dual encoder of `transformers` (`0_CLIPModel` in its CLIP models).

    Args:
        source: Hub name or directory.

    Returns:
        a local directory, or `source` itself; None if it packs no dual encoder.
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
    """The languages that a model card states; empty if it states none."""
    card = published_file(source, "README.md")
    if card is None:
        return []
    from huggingface_hub import ModelCard

    try:
        languages = ModelCard.load(card).data.get("language")
    except (OSError, ValueError):
        return []
    return [languages] if isinstance(languages, str) else list(languages or [])
