"""Reading and hashing the plain files of a user."""

import gzip
import hashlib
from pathlib import Path


def read_lines(path: str | Path) -> list[str]:
    """Lines of a UTF-8 file, plain or `.gz`, split at line feeds only.

    Raises:
        ValueError: the file cannot be read.
    """
    path = Path(path)
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text (byte {error.start}); convert it first") from error
    except (OSError, EOFError) as error:
        raise ValueError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
