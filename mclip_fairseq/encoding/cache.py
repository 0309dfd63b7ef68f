"""Features on disk, found again by the content they were made from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mclip_fairseq.encoding.galleries import Encoder
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import expecting, file_sha256


class CachedEncoder:
    """An encoder that computes nothing twice; everything else is the encoder's own.

    Args:
        encoder: what computes.
        folder: where features are kept, one `.npy` file per call; a file is complete or not there.
        fingerprint: of the encoder's weights, tokenizer and numeric type: whatever changes its features.
    """

    def __init__(self, encoder: Encoder, folder: Path, fingerprint: str) -> None:
        self.encoder = encoder
        self.folder = folder
        self.fingerprint = fingerprint
        self.hits = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.encoder, name)

    def encode_text(self, texts: list[str], batch_size: int = 256, normalize: bool = True) -> Tensor:
        """See ``Encoder``."""
        parts = (text.encode("utf-8", "surrogatepass") for text in texts)
        encode = partial(self.encoder.encode_text, texts, batch_size, normalize)
        return self._cached("text", normalize, len(texts), parts, encode)

    def encode_image(self, images: list[Path], batch_size: int = 64, normalize: bool = True, **options: Any) -> Tensor:
        """See ``Encoder``; a picture is known by the hash of its file."""
        parts = (file_sha256(path).encode() for path in images)
        encode = partial(self.encoder.encode_image, images, batch_size, normalize, **options)
        return self._cached("image", normalize, len(images), parts, encode)

    def _cached(
        self, kind: str, normalize: bool, rows: int, parts: Iterable[bytes], compute: Callable[[], Tensor]
    ) -> Tensor:
        digest = hashlib.sha256(f"{self.fingerprint} {kind} {normalize}".encode())
        for part in parts:
            digest.update(len(part).to_bytes(8, "little") + part)
        file = self.folder / f"{kind}-{digest.hexdigest()[:32]}.npy"
        if file.is_file():
            self.hits += 1
            return self._read(file, rows)
        features = compute().float().cpu()
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(f".{os.getpid()}.part")
        with unfinished.open("wb") as stream:
            np.save(stream, features.numpy(), allow_pickle=False)
        unfinished.replace(file)
        return features

    def _read(self, file: Path, rows: int) -> Tensor:
        with expecting(file, "a file of this cache, so remove it"):
            found = np.load(file, allow_pickle=False)
            expected = (rows, getattr(self.encoder, "dim", found.shape[-1]))
            if found.dtype != np.float32 or found.shape != expected or not np.isfinite(found).all():
                raise UserError(
                    f"{file}: holds {found.dtype} of shape {found.shape} and not finite float32 of shape {expected}; "
                    "remove it"
                )
            return torch.from_numpy(found)
