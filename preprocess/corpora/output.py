"""A directory that is written in one go: files appear under their names when all of them are complete."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO, cast

from corpora.files import read_json, sha256
from mclip_fairseq.storage.errors import UserError

PART = ".part"
# Names hold language codes of the sources.
SAFE_FILE = re.compile(r"[0-9A-Za-z_.+-]{1,200}")
MANIFEST = "manifest.json"
# Fewer than any system lets a process open.
MOST_OPEN = 128


def make_folder(folder: Path) -> None:
    """Make a directory for what is written, where it is not there.

    Raises:
        UserError: it cannot be made.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; --output names a directory")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror}); give another --output") from error


@contextmanager
def written_whole(path: Path) -> Iterator[TextIO]:
    """A text file that gets its name when it is complete; nothing is left of one that is not."""
    part = path.with_name(path.name + PART)
    try:
        with part.open("w", encoding="utf-8", newline="\n") as stream:
            yield stream
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def keep_sources(sources: Iterable[Path], targets: Iterable[Path]) -> None:
    """Refuse to write over what is read.

    Raises:
        UserError: a target, or what it is called while it is written, is one of the sources.
    """
    names = [name for target in targets for name in (target, target.with_name(target.name + PART)) if name.exists()]
    for source in sources:
        if any(source.samefile(name) for name in names):
            raise UserError(f"{source}: would be overwritten; give an --output other than the directory of the input")


class Output:
    """Writes text files into a directory, and a manifest last.

    Args:
        folder: made when it is not there; files of the same names are replaced, if they are of the same set.
        name: of the set, as its manifest has it.
        manifest: name of the manifest.
    """

    def __init__(self, folder: Path, name: str = "", manifest: str = MANIFEST) -> None:
        self.folder = folder
        self.name = name
        self.manifest = manifest
        self.names: set[str] = set()
        self.streams: dict[str, TextIO] = {}

    def __enter__(self) -> Self:
        make_folder(self.folder)
        self._refuse_another()
        (self.folder / self.manifest).unlink(missing_ok=True)
        return self

    def _refuse_another(self) -> None:
        """Keep what another set has written.

        Raises:
            UserError: the folder's manifest has another name.
        """
        path = self.folder / self.manifest
        held = read_json(path) if path.is_file() else {"name": self.name}
        name = held.get("name", "") if isinstance(held, dict) else ""
        if name != self.name:
            raise UserError(
                f"{self.folder}: holds {name or 'something else'} already, which {self.name} would overwrite; give "
                "every set a directory of its own"
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        for name in self.names:
            (self.folder / (name + PART)).unlink(missing_ok=True)

    def _close(self) -> None:
        for stream in self.streams.values():
            stream.close()
        self.streams.clear()

    def write(self, name: str, line: str) -> None:
        """Add a line to a file.

        Raises:
            UserError: the line holds half of a character, as a JSON file may, or no file can have that name.
        """
        if name not in self.streams:
            if SAFE_FILE.fullmatch(name) is None:
                raise UserError(f"{name!r} is no name for a file; look for a language code in the sources that is none")
            if len(self.streams) >= MOST_OPEN:
                self._close()
            mode = "a" if name in self.names else "w"
            path = self.folder / (name + PART)
            self.streams[name] = cast(TextIO, path.open(mode, encoding="utf-8", newline="\n"))
            self.names.add(name)
        try:
            self.streams[name].write(line + "\n")
        except UnicodeEncodeError as error:
            around = line[max(0, error.start - 40) : error.end + 40]
            raise UserError(f"{name}: {around!r} holds half of a character; mend it in the source file") from error

    def finish(self, facts: dict[str, Any], sources: Sequence[Path]) -> None:
        """Give all files their names, and write what is known of them and the set's name.

        Raises:
            UserError: one of the sources has such a name.
        """
        self._close()
        keep_sources(sources, [self.folder / name for name in (*self.names, self.manifest)])
        for name in self.names:
            (self.folder / (name + PART)).replace(self.folder / name)
        hashes = {name: sha256(self.folder / name) for name in sorted(self.names)}
        text = json.dumps({"name": self.name} | facts | {"files": hashes}, indent=2, ensure_ascii=False)
        (self.folder / self.manifest).write_text(text + "\n", encoding="utf-8")
