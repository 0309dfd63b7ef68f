"""Token states of the frozen text encoder, computed once: TriKD's epochs then skip the encoder."""

import hashlib
import logging
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from mclip_fairseq.batching import batch_cost, batches_by_tokens
from mclip_fairseq.data.tokens import FlatTokens
from mclip_fairseq.models.text_encoder import TextEncoder
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.indexed import MappedValues

logger = logging.getLogger(__name__)


class TokenStates(MappedValues):
    """States of all sentences back to back, memory-mapped.

    Args:
        values: (total tokens, dim) states; each sentence takes its size, `<s>` and `</s>` included.
        sizes: (sentences,) tokens per sentence.
    """

    def __init__(self, values: npt.NDArray[np.floating], sizes: npt.NDArray[np.int64]) -> None:
        self.values = values
        self.sizes = sizes
        self.offsets = np.concatenate([[0], np.cumsum(sizes)])[:-1]

    def batch(self, rows: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Right-padded states.

        Args:
            rows: (batch,) sentence numbers.

        Returns:
            (batch, longest, dim) float32 states, zero at pads, and (batch, longest) bool padding.
        """
        sizes = self.sizes[rows][:, None]
        # One fancy index over the flat array: pads read the sentence's first state and are zeroed below.
        column = np.arange(int(sizes.max(initial=1)))[None, :]
        padding = column >= sizes
        states = self.values[self.offsets[rows][:, None] + np.where(padding, 0, column)].astype(np.float32)
        states[padding] = 0.0
        return torch.from_numpy(states), torch.from_numpy(padding)


def cache_name(tokens: FlatTokens, encoder: TextEncoder) -> str:
    """File name that depends on the encoder's weights and on every token, and on nothing else."""
    digest = hashlib.sha256(encoder.identity()["sha256"].encode())
    for array in (tokens.lengths, tokens.offsets, np.asarray(tokens.values)):
        digest.update(np.ascontiguousarray(array).tobytes())
    return f"states-{digest.hexdigest()[:24]}.npy"


def compute_states(path: Path, tokens: FlatTokens, encoder: TextEncoder, device: torch.device, dtype: str) -> None:
    """Encode all sentences into one `.npy` file, longest batches last, and move it into place when complete."""
    partial = path.with_suffix(f".{os.getpid()}.partial")
    sizes = tokens.sizes
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    out = np.lib.format.open_memmap(partial, mode="w+", dtype=dtype, shape=(int(offsets[-1]), encoder.dim))
    encoder = encoder.to(device).eval()
    with torch.inference_mode(), tqdm(total=len(sizes), desc="token states", unit="caption") as progress:
        for rows in batches_by_tokens(sizes, batch_cost(device)):
            states = encoder(tokens.batch(rows).to(device)).float().cpu().numpy()
            inside = np.arange(states.shape[1])[None, :] < sizes[rows][:, None]
            places = offsets[rows][:, None] + np.arange(states.shape[1])[None, :]
            out[places[inside]] = states[inside]
            progress.update(len(rows))
    out.flush()
    os.replace(partial, path)


def cached_states(
    directory: str | Path, tokens: FlatTokens, encoder: TextEncoder, device: torch.device, dtype: str
) -> TokenStates:
    """Open the cache of these sentences under this encoder, computing it where it is missing.

    Every process may call this: files are complete or absent, and two that compute the same write the same.

    Args:
        directory: where caches are kept.
        tokens: the sentences.
        encoder: a frozen encoder; it is moved to `device`.
        device: where to encode.
        dtype: `float32` or `float16` on disk.
    """
    path = Path(directory) / f"{dtype}-{cache_name(tokens, encoder)}"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        compute_states(path, tokens, encoder, device, dtype)
    logger.info("token states of %d captions: %s", len(tokens), path.name)
    states = np.load(path, mmap_mode="r", allow_pickle=False)
    if states.shape != (int(tokens.sizes.sum()), encoder.dim) or states.dtype != dtype:
        raise UserError(f"{path}: holds {states.dtype} of shape {states.shape}, not these captions; remove it")
    return TokenStates(states, tokens.sizes)
