"""Where the parts of a model and its data were when it was trained, and where they are now.

A checkpoint is made to be shared, so it names no absolute path. Those of its options are remembered in the user's
cache, under a mark that only this machine can make; a checkpoint without such a mark came from elsewhere and chooses
nothing that is read or fetched: the user names its parts, or they are in its own folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import read_json, write_bytes
from mclip_fairseq.storage.owners import own_name
from mclip_fairseq.storage.provenance import shareable
from mclip_fairseq.storage.verified import cache_folder

# Options of models that name directories or models of the Hub, and how the user names them when a checkpoint is read.
PARTS = {
    "text_encoder": "pass --text-encoder (in Python text_encoder=) with its place here",
    "text_tokenizer": "pass --text-encoder (in Python text_encoder=) with its place here",
    "teacher": "pass --teacher (in Python teacher=) with its name or place here",
    "base": "copy it into the checkpoint's folder",
    "embedding": "copy it into the checkpoint's folder",
}
# Entry of a checkpoint's options: the mark.
MARK = "mclip_places"
# The groups of options that name what a model is built from; the paths of the others are not needed again.
REMEMBERED = ("task", "model", "criterion")
# Says where the first rank listens.
HOST = "distributed_init_method"
SAVE_DIR = "save_dir"


def hide_places(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a checkpoint as others may read them.

    Absolute paths lose their folders, the address of the first rank is left out, and what was left out of the groups
    `REMEMBERED` is recorded on this machine.

    Args:
        cfg: fairseq's configuration, group -> options.

    Returns:
        a copy, with the mark of the record; without one if the cache cannot be written to.
    """
    places: dict[str, str] = {}
    for group in REMEMBERED:
        for name, value in options_of(cfg.get(group)):
            if name == SAVE_DIR or not isinstance(value, str) or not value:
                continue
            if name in PARTS:
                places[f"{group}.{name}"] = os.path.abspath(value) if os.path.exists(value) else value
            elif shareable(value) != value:
                places[f"{group}.{name}"] = value
    hidden: dict[str, Any] = {group: without_folders(options) for group, options in cfg.items()}
    if isinstance(hidden.get("distributed_training"), dict) and HOST in hidden["distributed_training"]:
        hidden["distributed_training"][HOST] = None
    mark = remember(places)
    return hidden | ({MARK: mark} if mark else {})


def options_of(group: Any) -> Iterator[tuple[str, Any]]:
    """Names and values of a group of options, of whichever kind fairseq keeps it."""
    values = vars(group) if isinstance(group, Namespace) else group
    yield from values.items() if isinstance(values, Mapping) else ()


def without_folders(value: Any) -> Any:
    """A copy of an option's value, or of a group of options, in which absolute paths have lost their folders."""
    if isinstance(value, str):
        return shareable(value)
    if isinstance(value, Namespace):
        return Namespace(**without_folders(vars(value)))
    if isinstance(value, Mapping):
        return {name: without_folders(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(without_folders(each) for each in value)
    return value


def remember(places: Mapping[str, str]) -> str:
    """Record the places of a training's parts and data.

    Args:
        places: `group.option` -> absolute path, or name on the Hub.

    Returns:
        the mark of the record, equal for equal places; empty if the cache cannot be written to.
    """
    with contextlib.suppress(OSError):
        content = json.dumps(places, sort_keys=True).encode()
        mark = hmac.new(machine_key(), content, hashlib.sha256).hexdigest()
        record = record_of(mark)
        if not record.is_file():
            record.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(record, content)
        return mark
    return ""


def recall(mark: Any) -> dict[str, str] | None:
    """What `remember` recorded under a mark; None for a mark of another machine, or if the record is gone."""
    if not (isinstance(mark, str) and len(mark) == 64 and mark.isalnum()) or not record_of(mark).is_file():
        return None
    try:
        places = read_json(record_of(mark))
    except UserError:  # as good as none: the user is asked for the places
        return None
    return {str(name): str(value) for name, value in places.items()} if isinstance(places, dict) else None


def record_of(mark: str) -> Path:
    """The record of a mark, in the cache."""
    return cache_folder() / "checkpoints" / f"{mark}.json"


def machine_key() -> bytes:
    """What makes marks that nobody else can: without it, guessed paths would give the marks of their records.

    Raises:
        OSError: the cache cannot be written to.
    """
    file = cache_folder() / "key"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        own = own_name(file.with_name(f"key.{secrets.token_hex(4)}"))
        own.touch(mode=0o600)
        own.write_bytes(secrets.token_bytes(32))
        with contextlib.suppress(FileExistsError):  # another rank was faster
            os.link(own, file)
        own.unlink()
    return file.read_bytes()


def relative_places(options: Any, folder: str | Path) -> dict[str, str]:
    """The directories and files that a model's options name, as seen from the folder of its checkpoints.

    Only where both were given as relative paths: such a tree of folders can be moved as a whole, and its paths say
    nothing of the machine.

    Args:
        options: of the model.
        folder: --save-dir.

    Returns:
        option -> relative path.
    """
    places = {}
    for name in PARTS:
        given = getattr(options, name, "") or ""
        if not given or not os.path.exists(given) or os.path.isabs(given) or os.path.isabs(folder):
            continue
        relative = os.path.relpath(given, folder)
        seen = os.path.join(os.path.realpath(folder), relative)  # behind a link, `..` is another folder
        if os.path.exists(seen) and os.path.samefile(seen, given):
            places[name] = relative
    return places


def stored_places(extra_state: Any) -> dict[str, str]:
    """What `relative_places` wrote into a checkpoint.

    Args:
        extra_state: of the checkpoint, in which each task has an entry.
    """
    entries = extra_state.values() if isinstance(extra_state, Mapping) else ()
    places = next((entry["places"] for entry in entries if isinstance(entry, Mapping) and "places" in entry), None)
    pairs = places.items() if isinstance(places, Mapping) else ()
    return {name: path for name, path in pairs if name in PARTS and isinstance(path, str)}


@dataclass(frozen=True)
class StoredParts:
    """The parts of one checkpoint.

    Attributes:
        file: the checkpoint.
        known: what `remember` recorded; None for a checkpoint that came from elsewhere.
        beside: what `relative_places` wrote.
    """

    file: Path
    known: Mapping[str, str] | None
    beside: Mapping[str, str]

    @classmethod
    def of(cls, file: Path, state: Mapping[str, Any]) -> StoredParts:
        """Those of a checkpoint's content."""
        mark = (state.get("cfg") or {}).get(MARK)
        return cls(file, recall(mark), stored_places(state.get("extra_state")))

    def find(self, name: str, stored: str) -> str:
        """The directory or file of a part, or its name on the Hub.

        Of a checkpoint that was written here, it is where the training found it: seen from the checkpoint, or under its
        absolute path. Of one that came from elsewhere, it is a directory of that name in the checkpoint's own folder.

        Args:
            name: of the part, a key of `PARTS`.
            stored: the option in the checkpoint.

        Raises:
            UserError: there is none; the message says what to do.
        """
        folder = self.file.resolve().parent
        shown = stored.rstrip("/") or name
        beside = [Path(os.path.normpath(folder / self.beside[name]))] if name in self.beside else []
        if self.known is None:
            for place in [*beside, folder / os.path.basename(shown)]:
                if place.exists() and place != folder and place.resolve().is_relative_to(folder):
                    return str(place)
            raise UserError(
                f"{self.file}: was not written on this machine, so its {name} {shown} is not looked for; {PARTS[name]}"
            )
        recorded = self.known.get(f"model.{name}", stored)
        for place in [*beside, Path(recorded)]:
            if place.exists():
                return str(place)
        if name in self.beside or os.path.isabs(recorded):
            raise UserError(f"{self.file}: its {name} {shown} is not here; {PARTS[name]}")
        return recorded
