"""Where the parts of a model were when it was trained, and where they are now."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mclip_fairseq.storage.errors import UserError

# Options of models that name directories, and the programs' options that replace them.
PARTS = {"text_encoder": "--text-encoder", "text_tokenizer": "--text-encoder", "teacher": "--teacher"}


def relative_places(options: Any, folder: str | Path) -> dict[str, str]:
    """The directories that a model's options name, as seen from the folder of its checkpoints.

    A relative option means something in the working directory of the training only; this holds wherever a checkpoint
    is read, and names no path of the machine.

    Args:
        options: of the model.
        folder: --save-dir.

    Returns:
        option -> relative path, for each option that is an existing directory (a Hub name is none).
    """
    given = {name: getattr(options, name, "") or "" for name in PARTS}
    return {
        name: os.path.relpath(os.path.realpath(path), os.path.realpath(folder))
        for name, path in given.items()
        if path and os.path.isdir(path)
    }


def stored_places(extra_state: Any) -> dict[str, str]:
    """What `relative_places` wrote into a checkpoint.

    Args:
        extra_state: of the checkpoint, in which each task has an entry.
    """
    entries = extra_state.values() if isinstance(extra_state, Mapping) else ()
    places = next((entry["places"] for entry in entries if isinstance(entry, Mapping) and "places" in entry), None)
    pairs = places.items() if isinstance(places, Mapping) else ()
    return {name: path for name, path in pairs if name in PARTS and isinstance(path, str)}


def find_part(file: Path, name: str, given: str, places: Mapping[str, str]) -> Path:
    """The directory of a part that a checkpoint names.

    It is where the training found it, seen from the checkpoint; or where the option says, below a folder that the
    checkpoint is in, or, last, in the working directory.

    Args:
        file: the checkpoint.
        name: of the part, a key of `PARTS`.
        given: the option as the training had it.
        places: see `stored_places`.

    Raises:
        UserError: none of these exists; the message names the option to pass.
    """
    above = file.resolve().parents
    recorded = [Path(os.path.normpath(above[0] / places[name]))] if name in places else []
    if os.path.isabs(given):
        candidates = [Path(given), *recorded]
    else:
        candidates = [*recorded, *(parent / given for parent in above), Path(given)]
    for place in candidates:
        if place.is_dir():
            return place
    python = "teacher" if name == "teacher" else "text_encoder"
    raise UserError(
        f"{file}: its {name} {given} is not here; pass {PARTS[name]} (in Python {python}=) with the directory as it "
        "is now"
    )
