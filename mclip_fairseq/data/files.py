"""Reading and hashing the plain files of a user."""

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any


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


def read_json(path: str | Path) -> Any:
    """The value of a JSON file.

    Raises:
        ValueError: it cannot be read, is not JSON, or is nested too deeply.
    """
    try:
        return parse_json(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: not JSON, or nested too deeply for any honest writer.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
