"""Bulk encoding: many images (`encoding/images.py`) or captions through a dual encoder into a feature directory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from mclip_fairseq.batching import batch_cost, encode_padded
from mclip_fairseq.encoding.captions import check_lines, check_no_tabs, check_table, is_tsv
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.feature_files import is_usable_id
from mclip_fairseq.storage.feature_writer import FeatureWriter
from mclip_fairseq.storage.files import read_lines, shown
from mclip_fairseq.storage.texts import is_blank


@dataclass(frozen=True)
class BulkSettings:
    """How inputs are encoded.

    Attributes:
        batch_size: inputs at once.
        dtype: `float32`, or the type that autocast computes in.
        normalize: L2-normalise the features.
        skip_budget: how many unreadable inputs may be skipped; None skips none, and reads all to list all of them.
        machine: which of the machines that share the work this is, from 0.
        machines: how many share the work.
        skipped_before: inputs outside of the feature directory that the budget has been spent on.
    """

    batch_size: int
    dtype: str = "float32"
    normalize: bool = False
    skip_budget: int | None = None
    machine: int = 0
    machines: int = 1
    skipped_before: int = 0


@dataclass(frozen=True)
class InputBatch:
    """Some inputs of one shard, ready for the model.

    Attributes:
        count: inputs it was made from.
        inputs: keyword arguments of the encoder; empty when nothing could be read.
        unreadable: (id, reason) of inputs without features.
    """

    count: int
    inputs: dict[str, Tensor]
    unreadable: list[tuple[str, str]] = field(default_factory=list)

    def pin_memory(self) -> InputBatch:
        """The same in memory from which a GPU copies while the CPU works; `DataLoader` calls it."""
        return replace(self, inputs={name: tensor.pin_memory() for name, tensor in self.inputs.items()})


class Source(Protocol):
    """Inputs of one kind and their encoder.

    Attributes:
        ids: one per input.
        modality: `image` or `text`.
        preprocessing: what happens to the inputs, in words, for the manifest.
        place: where they come from, as messages append it: " of FILE", or nothing.
    """

    ids: list[str]
    modality: str
    preprocessing: str
    place: str

    @property
    def content(self) -> str:
        """A hash of what the inputs contain; it differs when one of them was changed."""

    def batches(self, numbers: list[list[int]], device: torch.device) -> Iterator[InputBatch]:
        """Prepare the inputs with these numbers, batch by batch, in order, for a model on the device."""

    def encode(self, inputs: dict[str, Tensor], device: torch.device) -> Tensor:
        """Inputs of a batch -> (n, dim) on the device."""


class CaptionSource:
    """Captions of a file; an empty one counts as unreadable.

    Args:
        captions: (id, caption), one per line of the file.
        file: for messages.
        tokenize: texts -> keyword arguments of `encode_text`, (n, length) each.
        token_mask: these -> (n, length) bool, False at pads that may be cut off; None if none may.
        encode_text: tokens -> (n, dim).
        preprocessing: what `tokenize` does, in words.
        first: line of the first caption, for messages.
    """

    modality = "text"

    def __init__(
        self,
        captions: Sequence[tuple[str, str]],
        file: Path | str,
        tokenize: Callable[[Sequence[str]], dict[str, Tensor]],
        token_mask: Callable[[dict[str, Tensor]], Tensor | None],
        encode_text: Callable[..., Tensor],
        preprocessing: str,
        first: int = 1,
    ) -> None:
        self.first = first
        self.place = f" of {shown(file)}"
        self.ids = [name for name, _ in captions]
        self.captions = captions
        self.tokenize, self.token_mask = tokenize, token_mask
        self.encode_text, self.preprocessing = encode_text, preprocessing

    @cached_property
    def content(self) -> str:
        """A hash of the captions."""
        return texts_content([caption for _, caption in self.captions])

    def batches(self, numbers: list[list[int]], device: torch.device) -> Iterator[InputBatch]:
        """Tokenize the captions with these numbers, batch by batch, in order; the device changes nothing."""
        for batch in numbers:
            rows = [(number + self.first, *self.captions[number]) for number in batch]
            texts = [caption for _, _, caption in rows if not is_blank(caption)]
            empty = [(name, f"line {line}: the caption is empty") for line, name, caption in rows if is_blank(caption)]
            yield InputBatch(len(batch), self.tokenize(texts) if texts else {}, empty)

    def encode(self, inputs: dict[str, Tensor], device: torch.device) -> Tensor:
        """Token ids and mask (n, length) -> (n, dim), in batches of similar length."""
        return encode_padded(
            lambda batch: self.encode_text(**{name: tensor.to(device) for name, tensor in batch.items()}),
            *(inputs, self.token_mask(inputs), batch_cost(device)),
        )


def texts_content(texts: Sequence[str]) -> str:
    """A hash over texts."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(f"{text}\n".encode("utf-8", "surrogatepass"))
    return f"texts {digest.hexdigest()}"


def read_caption_list(path: Path) -> list[tuple[str, str]]:
    """(id, caption) of a text file (the id is the line number, from 0) or a `.tsv` file; either may end in `.gz`.

    Raises:
        UserError: unreadable, empty, a line that is not text or not of a table (see `check_table`), without an id, or
            with an id that appears twice, naming both lines.
    """
    lines = read_lines(path)
    if not lines:
        raise UserError(f"{path}: holds no captions; give a file with one caption per line")
    check_lines(path, lines)
    if not is_tsv(path):
        check_no_tabs(path, lines)
        return [(str(number), line) for number, line in enumerate(lines)]
    check_table(path, lines, numbered=True)
    captions: list[tuple[str, str]] = []
    first_line_of: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        name, tab, caption = line.partition("\t")
        if not (name.strip() and tab):
            raise UserError(f"{path}, line {number}: write it as 'id, tab, caption'")
        if not is_usable_id(name):
            raise UserError(f"{path}, line {number}: the id {name!r} has a line break or outer spaces; remove them")
        if first_line_of.setdefault(name, number) != number:
            raise UserError(
                f"{path}, line {number}: the id {name!r} is already on line {first_line_of[name]}; give every caption "
                "its own"
            )
        captions.append((name, caption))
    return captions


def compute(source: Source, writer: FeatureWriter, settings: BulkSettings, device: torch.device) -> None:
    """Encode and write the shards of this machine that are still missing.

    Args:
        source: the inputs.
        writer: the feature directory.
        settings: how they are encoded.
        device: where they are encoded.

    Raises:
        UserError: more inputs cannot be read than the budget allows; all of them are listed.
    """
    budget, earlier = settings.skip_budget or 0, len(writer.skipped()) + settings.skipped_before
    if earlier > budget:
        raise UserError(f"{writer.path}: {earlier} inputs were skipped before, so it needs --skip-budget {earlier}")
    pending = writer.pending(settings.machine, settings.machines)
    plan = [(shard, split_into_batches(writer.inputs(shard), settings.batch_size)) for shard in pending]
    # One stream over all shards, so that workers decode the next shard while this one is written.
    batches = source.batches([batch for _, shard_batches in plan for batch in shard_batches], device)
    total = sum(len(writer.inputs(shard)) for shard in pending)
    unreadable: list[tuple[str, str]] = []
    with tqdm(total=total, unit=source.modality, disable=None) as progress:
        for shard, shard_batches in plan:
            # On the device until the shard is complete: a copy of each batch would wait for it.
            features = [torch.zeros(0, writer.plan["dim"], device=device)]
            before = len(unreadable)
            for batch in (next(batches) for _ in shard_batches):
                unreadable += batch.unreadable
                # Past the budget nothing will be written: inputs are only read, to list all unreadable ones at once.
                if batch.inputs and earlier + len(unreadable) <= budget:
                    features.append(encode_batch(source, batch.inputs, settings, device))
                progress.update(batch.count)
            if earlier + len(unreadable) <= budget:
                writer.write(shard, torch.cat(features).cpu().numpy(), unreadable[before:])
            elif settings.skip_budget is not None:
                break
    if earlier + len(unreadable) > budget:
        raise UserError(unreadable_message(source, unreadable, earlier, settings.skip_budget))


def encode_batch(source: Source, inputs: dict[str, Tensor], settings: BulkSettings, device: torch.device) -> Tensor:
    """Inputs of one batch -> (n, dim) float32 on the device."""
    dtype = getattr(torch, settings.dtype)
    with torch.inference_mode(), torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        features = source.encode(inputs, device).float()
    return F.normalize(features, dim=1) if settings.normalize else features


def split_into_batches(numbers: range, size: int) -> list[list[int]]:
    """Batches of one shard; they never cross shards, so that a restarted run computes the same ones."""
    return [list(numbers[start : start + size]) for start in range(0, len(numbers), size)]


def unreadable_message(source: Source, unreadable: list[tuple[str, str]], earlier: int, budget: int | None) -> str:
    """The error that lists every unreadable input, one per line."""
    lines = "".join(f"\n  {shown(name)}: {reason}" for name, reason in unreadable)
    if budget is not None:
        return (
            f"more than --skip-budget {budget} inputs{source.place} cannot be read ({earlier} were skipped before), "
            f"stopped at:{lines}"
        )
    return (
        f"{len(unreadable)} of {len(source.ids)} inputs{source.place} cannot be read; fix them, remove them, or skip "
        f"them with --skip-budget {len(unreadable)}:{lines}"
    )
