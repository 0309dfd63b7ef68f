"""A directory that is written in one go: files get their names when all of them are complete."""

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO, cast

from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import file_sha256, read_json, write_json

PART = ".part"
# Beside a manifest: the one of the call before, until this call has ended.
EARLIER = ".earlier"
# File names contain language codes from the sources.
SAFE_FILE = re.compile(r"[0-9A-Za-z_.+-]{1,200}")
MANIFEST = "manifest.json"
# Below the open-file limit of any system.
MAX_OPEN = 128


def make_folder(folder: Path) -> None:
    """Make an output directory if it does not exist.

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
    """A text file that gets its name when it is complete; an incomplete one leaves nothing behind."""
    part = path.with_name(path.name + PART)
    try:
        with part.open("w", encoding="utf-8", newline="\n") as stream:
            yield stream
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def check_not_overwritten(sources: Iterable[Path], targets: Iterable[Path]) -> None:
    """Check that no input is about to be overwritten.

    Raises:
        UserError: a target, or its name while it is written, is one of the sources.
    """
    names = [name for target in targets for name in (target, target.with_name(target.name + PART)) if name.exists()]
    for source in sources:
        if any(source.samefile(name) for name in names):
            raise UserError(f"{source}: would be overwritten; give an --output other than the directory of the input")


class Output:
    """Writes text files into a directory, and a manifest last.

    Args:
        folder: made if it does not exist; what an earlier call for the same set has written is replaced.
        name: of the set, for the manifest.
        manifest: name of the manifest.
    """

    def __init__(self, folder: Path, name: str = "", manifest: str = MANIFEST) -> None:
        self.folder = folder
        self.name = name
        self.manifest = manifest
        self.names: set[str] = set()
        self.earlier: dict[str, Any] = {}
        self.streams: dict[str, TextIO] = {}

    def __enter__(self) -> Self:
        make_folder(self.folder)
        path, earlier = self.folder / self.manifest, self.folder / (self.manifest + EARLIER)
        for file in (earlier, path):  # the first one is of a call that was killed
            if file.is_file():
                self.earlier |= self._files_of(file)
        if self.earlier:
            write_json(earlier, {"name": self.name, "files": self.earlier})
        path.unlink(missing_ok=True)
        return self

    def _files_of(self, path: Path) -> dict[str, Any]:
        """The files that a manifest of this set names.

        Raises:
            UserError: it is the manifest of another set, whose files are kept.
        """
        manifest = read_json(path)
        name = manifest.get("name", "") if isinstance(manifest, dict) else ""
        if name != self.name:
            raise UserError(
                f"{self.folder}: already holds {name or 'something else'}, which {self.name} would overwrite; give "
                "every set its own directory"
            )
        files = manifest.get("files")
        return files if isinstance(files, dict) else {}

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

    def write(self, name: str, line: str, place: str = "") -> None:
        """Add a line to a file.

        Args:
            name: of the file.
            line: without its end.
            place: where the line is from, for messages.

        Raises:
            UserError: the line cannot be stored as UTF-8 text, or the name is not a valid file name.
        """
        if name not in self.streams:
            if SAFE_FILE.fullmatch(name) is None:
                raise UserError(f"{name!r} is not a valid file name; look for a wrong language code in the sources")
            if len(self.streams) >= MAX_OPEN:
                self._close()
            mode = "a" if name in self.names else "w"
            path = self.folder / (name + PART)
            self.streams[name] = cast(TextIO, path.open(mode, encoding="utf-8", newline="\n"))
            self.names.add(name)
        if "\0" in line:
            raise UserError(f"{place or name}: holds a null character, as UTF-16 does; convert the source to UTF-8")
        try:
            self.streams[name].write(line + "\n")
        except UnicodeEncodeError as error:
            around = line[max(0, error.start - 40) : error.end + 40]
            raise UserError(f"{place or name}: {around!r} holds half a character; fix it in the source file") from error

    def finish(self, facts: dict[str, Any], sources: Sequence[Path]) -> None:
        """Give all files their names and write the manifest: the set's name, the facts, and a hash per file.

        Raises:
            UserError: this would overwrite one of the sources.
        """
        self._close()
        check_not_overwritten(sources, [self.folder / name for name in (*self.names, self.manifest)])
        for name in self.names:
            (self.folder / (name + PART)).replace(self.folder / name)
        hashes = {name: file_sha256(self.folder / name) for name in sorted(self.names)}
        self._remove_earlier(sources)
        write_json(self.folder / self.manifest, {"name": self.name} | facts | {"files": hashes})
        (self.folder / (self.manifest + EARLIER)).unlink(missing_ok=True)

    def _remove_earlier(self, sources: Sequence[Path]) -> None:
        """Remove what an earlier call has written and this one has not: it does not belong to the other files."""
        stale = [self.folder / name for name in sorted(self.earlier) if SAFE_FILE.fullmatch(name)]
        stale = [path for path in stale if path.is_file() and path.name not in self.names]
        stale = [path for path in stale if not any(map(path.samefile, sources))]
        for path in stale:
            path.unlink()
        if stale:
            names = ", ".join(path.name for path in stale)
            print(f"{self.folder}: removed {names}, which an earlier call wrote and this one did not", file=sys.stderr)
