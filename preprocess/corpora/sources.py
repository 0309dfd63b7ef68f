"""The user's downloads: whether they exist, their hashes, and whether those are the expected ones."""

import hashlib
from pathlib import Path

from corpora.files import numbered_lines
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import file_sha256

# Files that are read as they were downloaded, with the hashes that TensorFlow Datasets records.
PUBLISHED_HASHES = {"caption_datasets.zip": "4cfd70132527b80933105e5829dc9034eaab9573482e2e680abbab6130244817"}
SEE_HELP = "--help says where to get the data and what layout it expects"


class Sources:
    """The files that a corpus is made from.

    A source whose name is in `PUBLISHED_HASHES` must have that hash.

    Args:
        checksums: a file in the format of `sha256sum`, or None; a source that it names must have that hash.
    """

    def __init__(self, checksums: Path | None = None) -> None:
        self.paths: list[Path] = []
        self.files: list[dict[str, object]] = []
        self.expected = {} if checksums is None else read_checksums(checksums)

    def file(self, path: Path) -> Path:
        """Register a file and return its path.

        Raises:
            UserError: it does not exist, or has a different hash than expected.
        """
        check_file(path)
        self.register(path, file_sha256(path))
        return path

    def register(self, path: Path, digest: str) -> None:
        """Register a file whose hash was already computed."""
        expected = self.expected.get(path.name) or PUBLISHED_HASHES.get(path.name, digest)
        if digest != expected:
            raise UserError(f"{path}: its SHA-256 is {digest}, expected is {expected}; download it again")
        self.paths.append(path)
        self.files.append({"file": path.name, "bytes": path.stat().st_size, "sha256": digest})

    def folder(self, folder: Path, ending: str) -> None:
        """Register the files of a folder with this ending as one source: its hash is over their names and hashes."""
        paths = sorted(path for path in folder.rglob(f"*{ending}") if path.is_file())
        digest = hashlib.sha256()
        for path in paths:
            digest.update(f"{path.relative_to(folder).as_posix()}\t{file_sha256(path)}\n".encode())
        self.paths += paths
        size = sum(path.stat().st_size for path in paths)
        entry = {"file": f"{folder.name}/*{ending}", "count": len(paths), "bytes": size, "sha256": digest.hexdigest()}
        self.files.append(entry)

    def described(self) -> list[dict[str, object]]:
        """Name, size and hash of every source.

        Raises:
            UserError: the given checksums name none of them.
        """
        if self.expected and self.expected.keys().isdisjoint(str(source["file"]) for source in self.files):
            names = ", ".join(str(source["file"]) for source in self.files)
            raise UserError(
                f"--checksums names none of the files that were read ({names}); check that it is for this set"
            )
        return self.files


def check_file(path: Path) -> None:
    """Check that a download exists.

    Raises:
        UserError: it does not.
    """
    if not path.is_file():
        raise UserError(f"{path}: not found; {SEE_HELP}")


def check_folder(folder: Path) -> Path:
    """The folder.

    Raises:
        UserError: it does not exist.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; {SEE_HELP}")
    return folder


def read_checksums(path: Path) -> dict[str, str]:
    """File name -> hash of a file in the format of `sha256sum`."""
    hashes = {}
    for place, line in numbered_lines(path):
        digest, _, name = line.partition(" ")
        if len(digest) != 64 or not name.strip():
            raise UserError(f"{place}: is not in the format of sha256sum; write hash, two spaces, file name")
        hashes[Path(name.strip().removeprefix("*")).name] = digest.lower()
    return hashes
