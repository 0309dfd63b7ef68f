"""Which checkpoint of its folder a run continues from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from mclip_fairseq.storage.checkpoints import StoredCheckpoint
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.owners import TEMPORARY, owner_is_alive
from mclip_fairseq.storage.sealed import damage, sealed_updates

LAST = "checkpoint_last.pt"
OF_A_RUN = re.compile(r"checkpoint(_last|_best|\d+|_\d+_\d+|\.best_.+)\.pt")


class Choice(NamedTuple):
    """What to continue from.

    Attributes:
        path: the checkpoint; None where none exists and the run begins.
        skipped: `name (why)` of each file that was skipped.
    """

    path: Path | None
    skipped: list[str]


def choose_checkpoint(folder: str | Path, suffix: str = "") -> Choice:
    """The newest checkpoint of a run that verifies.

    This is `checkpoint_last.pt`, or a file with more updates that was written after it (the run was killed between the
    two), or, where it is damaged or missing, the file with the most updates.

    Args:
        folder: of the run.
        suffix: of its files, before `.pt` (--checkpoint-suffix).

    Raises:
        UserError: checkpoints exist, and none of them verifies.
    """
    folder = Path(folder)
    skipped: list[str] = []
    updates: dict[Path, int] = {}
    files = [path for path in folder.glob(f"checkpoint*{suffix}.pt") if _is_of_a_run(path.name, suffix)]
    for path in files:
        # Counts as a checkpoint that is damaged, so that a run never restarts because the target of a link moved.
        if not path.is_file():
            skipped.append(f"{path.name} (is {'not a file' if path.exists() else 'a link to a missing file'})")
            continue
        sealed = sealed_updates(path)  # reads the end of the file only
        try:
            updates[path] = _updates_inside(path) if sealed is None else sealed
        except UserError as error:
            skipped.append(f"{path.name} ({error})")
    # Hashing reads whole files: the best candidate comes first, and is usually the only one.
    for path in _in_order(updates, folder / f"{Path(LAST).stem}{suffix}.pt"):
        reason = damage(path)
        if not reason:
            return Choice(path, skipped)
        skipped.append(f"{path.name} ({reason})")
    if files:
        raise UserError(
            f"{folder}: no checkpoint verifies: {', '.join(skipped)}; restore one from a copy, or move them away to "
            "start from scratch"
        )
    return Choice(None, [])


def _in_order(updates: Mapping[Path, int], last: Path) -> list[Path]:
    """Candidates, best first."""
    order = sorted(updates, key=lambda path: (updates[path], path.stat().st_mtime_ns), reverse=True)
    if last not in updates:
        return order
    # A user who copies an older checkpoint to checkpoint_last.pt wants to go back, and then it is the youngest file.
    newer = [
        path for path in order if updates[path] > updates[last] and path.stat().st_mtime_ns > last.stat().st_mtime_ns
    ]
    return [*newer, last, *(path for path in order if path != last and path not in newer)]


def _updates_inside(path: Path) -> int:
    """Updates of a checkpoint without a seal.

    Raises:
        UserError: why the run cannot continue from it, in a few words.
    """
    reason = damage(path)
    if reason:
        raise UserError(reason)
    return StoredCheckpoint(path, verified=True).updates


def _is_of_a_run(name: str, suffix: str) -> bool:
    return OF_A_RUN.fullmatch(f"{name.removesuffix(f'{suffix}.pt')}.pt") is not None


def remove_leftovers(folder: str | Path, suffix: str = "") -> list[str]:
    """Remove the temporary files of interrupted saves, but none whose writer still runs; returns their names.

    The caller holds the folder (`holding`), so those of other machines are nobody's.
    """
    removed = []
    for path in sorted(Path(folder).glob(f"*.pt*.{TEMPORARY}")):
        name = re.sub(r"(\.[\w-]+\.\d+)?\.tmp$", "", path.name)
        if _is_of_a_run(name, suffix) and not owner_is_alive(path):
            path.unlink(missing_ok=True)
            removed.append(path.name)
    return removed
