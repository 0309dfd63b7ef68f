"""What training skips because it cannot be read: listed in a file, counted against a budget, never replaced."""

import fcntl
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from mclip_fairseq.storage import locks
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import printable, read_lines, shown

logger = logging.getLogger(__name__)
SHOWN = 5


class SkipList:
    """The items skipped so far by all ranks, loader processes and restarts: they share one file.

    Args:
        path: per line the id and, after a tab, the reason; made when the first item is skipped.
        budget: items that may be skipped; 0 makes the first one an error.
    """

    def __init__(self, path: str | Path, budget: int) -> None:
        if budget < 0:
            raise UserError(f"--skip-budget is {budget}; give the number of items that may be skipped, 0 for none")
        self.path = Path(path)
        self.budget = budget
        self._known: set[str] = set()

    def add(self, items: Sequence[tuple[str, str]]) -> None:
        """Skip items; one that is in the file already costs nothing.

        Args:
            items: (id, reason).

        Raises:
            UserError: more than the budget allows, naming the first of these items.
        """
        new = {shown(name): printable(reason) for name, reason in items if shown(name) not in self._known}
        if not new:
            return
        if not self.budget:
            raise UserError(f"{self._first(new)}; fix it, remove it, or skip it with --skip-budget N")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._open() as stream:
            locks.take(fcntl.flock, stream.fileno(), fcntl.LOCK_EX)
            self._end_last_line(stream)
            self._known = set(self.listed())
            new = {name: reason for name, reason in new.items() if name not in self._known}
            if len(self._known) + len(new) > self.budget:
                raise UserError(
                    f"{self._first(new)}; with the {len(self._known)} in {self.path} that is more than --skip-budget "
                    f"{self.budget} allows; fix the data or raise the budget"
                )
            stream.writelines(f"{name}\t{reason}\n" for name, reason in new.items())
        self._known |= set(new)
        for name, reason in list(new.items())[:SHOWN]:
            logger.warning("skipped: %s: %s (%s)", name, reason, self.path)
        if len(new) > SHOWN:
            logger.warning("skipped: %d more (%s)", len(new) - SHOWN, self.path)

    def check(self) -> None:
        """Refuse a budget smaller than what earlier runs skipped.

        Raises:
            UserError: with the budget that is needed.
        """
        earlier = len(self.listed())
        if 0 < self.budget < earlier:
            raise UserError(f"{self.path}: {earlier} items were skipped before, so it needs --skip-budget {earlier}")

    def listed(self) -> list[str]:
        """Ids in the file, in its order.

        Raises:
            UserError: the file cannot be read.
        """
        return [line.partition("\t")[0] for line in read_lines(self.path)] if self.path.exists() else []

    def _open(self) -> IO[str]:
        try:
            return open(locks.open_own(self.path, os.O_RDWR | os.O_APPEND), "a+", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror}); remove it") from error

    @staticmethod
    def _end_last_line(stream: IO[str]) -> None:
        """The last line may be cut off if its writer was killed."""
        end = stream.seek(0, os.SEEK_END)
        if os.pread(stream.fileno(), 1, max(end - 1, 0)) not in (b"", b"\n"):
            stream.write("\n")
            stream.flush()

    @staticmethod
    def _first(items: dict[str, str]) -> str:
        name, reason = next(iter(items.items()))
        others = f" (and {len(items) - 1} more)" if len(items) > 1 else ""
        return f"{name}: {reason}{others}"
