"""Token states of the frozen text encoder, or their pooled states, computed once: epochs then skip the encoder."""

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from mclip_fairseq.batching import batch_cost, batches_by_tokens, one_behind
from mclip_fairseq.data.tokens import FlatTokens
from mclip_fairseq.losses.gather import every_nth, objects_of_all_ranks
from mclip_fairseq.models.pooling import POOLING
from mclip_fairseq.models.settings import structure_settings
from mclip_fairseq.models.text_encoder import TextEncoder
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import first_line
from mclip_fairseq.storage.indexed import MappedValues
from mclip_fairseq.storage.owners import TEMPORARY, own_name, owner, remove_leftovers

logger = logging.getLogger(__name__)
Numbers = npt.NDArray[np.int64]


class TokenStates(MappedValues):
    """States of all sentences back to back, memory-mapped.

    Args:
        values: (total tokens, dim) states; each sentence takes its size, `<s>` and `</s>` included.
        sizes: (sentences,) tokens per sentence.
        name: of the file.

    Attributes:
        kept_from: the place of the first state where the model keeps them all (`models.kept_states`); None where it
            keeps none.
    """

    def __init__(self, values: npt.NDArray[np.floating], sizes: Numbers, name: str = "") -> None:
        self.name = name
        self.kept_from: int | None = None
        self.values = values
        self.sizes = sizes
        self.offsets = starts_of(sizes)

    def batch(self, rows: Numbers) -> tuple[Tensor, Tensor]:
        """States back to back, as stored: half of them padding, and in float32, would be three times as much to copy.

        Args:
            rows: (batch,) sentence numbers.

        Returns:
            (tokens of the batch, dim) states in their stored type, or their (tokens of the batch,) int64 places where
            the model keeps them; and (batch, longest) bool padding, on the right. `models.pooling.pad_rows` puts them
            together on the model's device.
        """
        sizes = self.sizes[rows]
        padding = np.arange(int(sizes.max(initial=1)))[None, :] >= sizes[:, None]
        places = places_of(self.offsets[rows], sizes)
        states = self.values[places] if self.kept_from is None else self.kept_from + places
        return torch.from_numpy(states), torch.from_numpy(padding)


def starts_of(sizes: Numbers) -> Numbers:
    """Where each sentence begins in a flat array of all of them."""
    return np.concatenate([[0], np.cumsum(sizes)])[:-1]


def places_of(offsets: Numbers, sizes: Numbers) -> Numbers:
    """The positions in the flat array of all tokens of some sentences, one sentence after the other."""
    return np.repeat(offsets - starts_of(sizes), sizes) + np.arange(int(sizes.sum()))


def cache_name(tokens: FlatTokens, encoder: TextEncoder, pooling: str) -> str:
    """File name that depends on the encoder's weights and structure, the pooling and every token alone."""
    facts = [encoder.identity()["sha256"], structure_settings(encoder), *([pooling] if pooling else [])]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for array in (tokens.lengths, tokens.offsets, np.asarray(tokens.values)):
        digest.update(np.ascontiguousarray(array).tobytes())
    return f"states-{digest.hexdigest()[:24]}.npy"


class StateWriter:
    """Encodes sentences into one `.npy` file, alone or together with other ranks.

    Args:
        path: of the file.
        tokens: the sentences.
        encoder: a frozen encoder; it is moved to `device`.
        device: where to encode.
        dtype: `float32` or `float16` on disk.
        lowered: compute in bfloat16 where torch.autocast does.
        pooling: one of `POOLING`, to keep one state per sentence; empty: those of all tokens.
    """

    def __init__(
        self,
        path: Path,
        tokens: FlatTokens,
        encoder: TextEncoder,
        device: torch.device,
        dtype: str,
        lowered: bool,
        pooling: str = "",
    ) -> None:
        self.path, self.tokens, self.device, self.dtype, self.lowered = path, tokens, device, dtype, lowered
        self.encoder = encoder.to(device).eval()
        self.pooling = pooling
        self.sizes = kept_states(tokens, pooling)
        self.batches = list(batches_by_tokens(tokens.sizes, batch_cost(device)))

    def alone(self) -> None:
        """Encode everything, and move the file into place when it is complete."""
        partial = own_name(self.path)
        self.write(partial, zip(self.batches, self.encoded(self.batches), strict=True))
        os.replace(partial, self.path)

    def together(self, mark: str) -> None:
        """Encode this rank's share of the batches; rank 0 puts the shares of all ranks into the file.

        Args:
            mark: of `common_mark`.
        """
        ranks = range(len(objects_of_all_ranks(None)))
        shares = [self.path.with_name(f"{self.path.name}.share{rank}.{mark}") for rank in ranks]
        own = every_nth()
        mine = self.batches[own]
        out = self.open(shares[own.start], sum(int(self.sizes[rows].sum()) for rows in mine))
        begin = 0
        for states in self.encoded(mine):
            out[begin : begin + len(states)] = states
            begin += len(states)
        out.flush()
        objects_of_all_ranks(None)  # all shares are complete
        if own.start == 0:
            partial = self.path.with_name(f"{self.path.name}.{mark}")
            self.write(partial, self.joined(shares))
            os.replace(partial, self.path)
        objects_of_all_ranks(None)  # the file is complete
        shares[own.start].unlink(missing_ok=True)  # a faster rank, which makes its next cache, may have removed it

    def joined(self, shares: Sequence[Path]) -> Iterator[tuple[Numbers, npt.NDArray[np.floating]]]:
        """The batches of all ranks and their states, from the shares."""
        for rank, share in enumerate(shares):
            states, begin = np.load(share, mmap_mode="r", allow_pickle=False), 0
            for rows in self.batches[rank :: len(shares)]:
                end = begin + int(self.sizes[rows].sum())
                yield rows, states[begin:end]
                begin = end

    @torch.inference_mode()
    def encoded(self, batches: Sequence[Numbers]) -> Iterator[npt.NDArray[np.floating]]:
        """(states, dim) of each batch back to back, longest sentences last."""
        with tqdm(total=sum(map(len, batches)), desc="token states", unit="caption") as progress:
            for rows, encoded in one_behind((rows, self.encode(rows)) for rows in batches):
                states = encoded.cpu().numpy()
                yield states[np.arange(states.shape[1])[None, :] < self.sizes[rows][:, None]]
                progress.update(len(rows))

    def encode(self, rows: Numbers) -> Tensor:
        """(sentences, length, dim) states of some sentences on the device, as they are stored."""
        tokens = self.tokens.batch(rows).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.lowered):
            encoded = self.encoder(tokens)
        if self.pooling:
            encoded = POOLING[self.pooling](encoded, tokens.eq(self.encoder.padding_idx))[:, None]
        return encoded.to(getattr(torch, self.dtype))

    def open(self, path: Path, length: int) -> "np.memmap[Any, np.dtype[np.floating]]":
        """A new memory-mapped file for this many states.

        Raises:
            UserError: the disk has no room for it; without this, writing to it later would end the process.
        """
        try:
            out = np.lib.format.open_memmap(path, mode="w+", dtype=self.dtype, shape=(length, self.encoder.dim))
            if hasattr(os, "posix_fallocate"):  # not on macOS
                with path.open("r+b") as stream:
                    os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise UserError(
                f"--text-state-cache {path.parent}: cannot be written ({error.strerror}); make room or give another one"
            ) from error
        return out

    def write(self, path: Path, parts: Iterator[tuple[Numbers, npt.NDArray[np.floating]]]) -> None:
        """Write batches of sentences to their places in a new file."""
        out, offsets = self.open(path, int(self.sizes.sum())), starts_of(self.sizes)
        for rows, states in parts:
            out[places_of(offsets[rows], self.sizes[rows])] = states
        out.flush()


def kept_states(tokens: FlatTokens, pooling: str) -> Numbers:
    """(sentences,) how many states of each are kept."""
    return np.ones_like(tokens.sizes) if pooling else tokens.sizes


def common_mark(directory: Path) -> str:
    """How temporary names end that all ranks share; empty if they see different directories, or for one rank alone."""
    mark = objects_of_all_ranks(f"{uuid.uuid4().hex}.{owner()}.{TEMPORARY}")[0]
    if len(objects_of_all_ranks(None)) == 1:
        return ""
    file, first = directory / f".{mark}", every_nth().start == 0
    if first:
        file.touch()
    objects_of_all_ranks(None)
    common = all(objects_of_all_ranks(file.exists()))
    if first:
        file.unlink()
    return mark if common else ""


def cached_states(
    directory: str | Path,
    tokens: FlatTokens,
    encoder: TextEncoder,
    device: torch.device,
    dtype: str,
    lowered: bool = False,
    pooling: str = "",
) -> TokenStates:
    """Open the cache of these sentences under this encoder, computing it where it is missing.

    Every rank must call this. Ranks that share the directory share the work; others compute all of it.

    Args:
        directory: where caches are kept.
        tokens: the sentences.
        encoder: a frozen encoder; it is moved to `device`.
        device: where to encode.
        dtype: `float32` or `float16` on disk.
        lowered: compute in bfloat16 where torch.autocast does.
        pooling: one of `POOLING`, to keep one state per sentence; empty: those of all tokens.

    Raises:
        UserError: the cache holds something else, is damaged, or cannot be written.
    """
    precision = "bfloat16-" if lowered else ""
    path = Path(directory) / f"{precision}{dtype}-{cache_name(tokens, encoder, pooling)}"
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    if not all(objects_of_all_ranks(path.exists())):
        mark = common_mark(path.parent)
        writer = StateWriter(path, tokens, encoder, device, dtype, lowered, pooling)
        if mark:
            writer.together(mark)
        elif not path.exists():
            writer.alone()
    logger.info("token states of %d captions: %s", len(tokens), path.name)
    try:
        states = np.lib.format.open_memmap(path, mode="r")
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)}); remove it") from error
    sizes = kept_states(tokens, pooling)
    if states.shape != (int(sizes.sum()), encoder.dim) or states.dtype != dtype:
        raise UserError(f"{path}: holds {states.dtype} of shape {states.shape}, not these captions; remove it")
    return TokenStates(states, sizes, path.name)
