"""The user's downloads: that they are there, what they hash to, and whether that is what was expected."""

from pathlib import Path

from corpora.files import numbered_lines, sha256
from mclip_fairseq.storage.errors import UserError

# Published files that are read as they were downloaded, with the hashes that TensorFlow Datasets records.
KNOWN = {"caption_datasets.zip": "4cfd70132527b80933105e5829dc9034eaab9573482e2e680abbab6130244817"}


class Sources:
    """The files that a corpus is made from.

    A source of a name in `KNOWN` must have the hash that is known.

    Args:
        checksums: a file as `sha256sum` writes it, or None; a source that it names must have that hash.
    """

    def __init__(self, checksums: Path | None = None) -> None:
        self.paths: list[Path] = []
        self.files: list[dict[str, object]] = []
        self.expected = {} if checksums is None else read_checksums(checksums)

    def file(self, path: Path) -> Path:
        """Take a file in; returns its path.

        Raises:
            UserError: it is not there, or is not the expected one.
        """
        if not path.is_file():
            raise UserError(f"{path}: not found; --help says where the data are from and how they must lie")
        self.take(path, sha256(path))
        return path

    def take(self, path: Path, digest: str) -> None:
        """Take a file in whose hash is known."""
        expected = self.expected.get(path.name) or KNOWN.get(path.name, digest)
        if digest != expected:
            raise UserError(f"{path}: its SHA-256 is {digest}, expected is {expected}; download it again")
        self.paths.append(path)
        self.files.append({"file": path.name, "bytes": path.stat().st_size, "sha256": digest})

    def described(self) -> list[dict[str, object]]:
        """Name, size and hash of every source.

        Raises:
            UserError: checksums were given, but of none of them.
        """
        if self.expected and self.expected.keys().isdisjoint(str(source["file"]) for source in self.files):
            names = ", ".join(str(source["file"]) for source in self.files)
            raise UserError(f"--checksums names none of the files that were read ({names}); is it of another set?")
        return self.files


def existing(folder: Path) -> Path:
    """The folder, if it is one.

    Raises:
        UserError: it is not.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; --help says where the data are from and how they must lie")
    return folder


def read_checksums(path: Path) -> dict[str, str]:
    """File name -> hash of a file as `sha256sum` writes it."""
    hashes = {}
    for place, line in numbered_lines(path):
        digest, _, name = line.partition(" ")
        if len(digest) != 64 or not name.strip():
            raise UserError(f"{place}: write it as sha256sum does: hash, two spaces, file name")
        hashes[Path(name.strip().removeprefix("*")).name] = digest.lower()
    return hashes
