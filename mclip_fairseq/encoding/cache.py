"""Features on disk, recognised by the content they were made from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mclip_fairseq.encoding.galleries import Encoder, reader_of
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import file_sha256, first_line
from mclip_fairseq.storage.fingerprints import text_side
from mclip_fairseq.storage.owners import own_name, remove_leftovers


class CachedEncoder:
    """An encoder that computes nothing twice; what is not defined here is the encoder's own.

    Args:
        encoder: what computes.
        folder: where features are kept, one `.npy` file per call; a file is complete or missing.
        fingerprint: of the encoder's weights, tokenizer and numeric type: whatever changes its features.
    """

    def __init__(self, encoder: Encoder, folder: Path, fingerprint: str) -> None:
        self.encoder = encoder
        self.folder = folder
        self.fingerprint = fingerprint
        self.hits = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.encoder, name)

    def for_language(self, language: str) -> Encoder:
        """The encoder of one language, with entries of its own where the model reads it in another way."""
        view = reader_of(self.encoder, language)
        return self if view is self.encoder else CachedEncoder(view, self.folder, f"{self.fingerprint} {language}")

    def encode_text(self, texts: list[str], batch_size: int = 256, normalize: bool = True) -> Tensor:
        """(n, D) features of texts, from the cache where the same texts were encoded before."""
        contents = (text.encode("utf-8", "surrogatepass") for text in texts)
        encode_texts = partial(self.encoder.encode_text, texts, batch_size, normalize)
        return self._cached("text", normalize, len(texts), contents, encode_texts)

    def encode_image(self, images: list[Path], batch_size: int = 64, normalize: bool = True, **options: Any) -> Tensor:
        """(n, D) features of picture files, from the cache where files of the same hashes were encoded before."""
        contents = (file_sha256(path).encode() for path in images)
        encode_images = partial(self.encoder.encode_image, images, batch_size, normalize, **options)
        return self._cached("image", normalize, len(images), contents, encode_images)

    def _cached(
        self, kind: str, normalize: bool, rows: int, contents: Iterable[bytes], compute: Callable[[], Tensor]
    ) -> Tensor:
        side = text_side(self.fingerprint) if kind == "text" else self.fingerprint
        digest = hashlib.sha256(f"{side} {kind} {normalize}".encode())
        for content in contents:
            # With its length in front, so that "ab", "c" and "a", "bc" differ.
            digest.update(len(content).to_bytes(8, "little") + content)
        file = self.folder / f"{kind}-{digest.hexdigest()[:32]}.npy"
        if file.is_file():
            self.hits += 1
            return self._read(file, rows)
        features = compute().float().cpu()
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.folder)
        unfinished = own_name(file)
        with unfinished.open("wb") as stream:
            np.save(stream, features.numpy(), allow_pickle=False)
        unfinished.replace(file)
        return features

    def _read(self, file: Path, rows: int) -> Tensor:
        try:
            features = np.load(file, allow_pickle=False)
        except Exception as error:  # numpy raises what damaged bytes lead it to
            raise UserError(f"{file}: cannot be read: {first_line(error)}; remove it") from error
        if not isinstance(features, np.ndarray):
            raise UserError(f"{file}: is an archive, not an array; remove it")
        shape = (rows, getattr(self.encoder, "dim", features.shape[-1] if features.ndim else 0))
        if features.dtype != np.float32 or features.shape != shape or not np.isfinite(features).all():
            raise UserError(
                f"{file}: holds {features.dtype} of shape {features.shape} and not finite float32 of shape {shape}; "
                "remove it"
            )
        return torch.from_numpy(features)
