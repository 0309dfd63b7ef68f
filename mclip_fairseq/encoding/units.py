"""Units of work, of which any process can encode any one: slices of a list of inputs, or parts.

A unit becomes one shard of a feature directory. To encode it, a process needs only the unit and the directory's plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mclip_fairseq.encoding.bulk import BulkSettings, Source, encode_batch, split_into_batches
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.feature_writer import FeatureWriter, write_shard
from mclip_fairseq.storage.files import shown


@dataclass(frozen=True)
class Unit:
    """What is encoded at once and written as one shard.

    Attributes:
        shard: its number.
        inputs: (id, file or caption) of a slice of a list, or the address of a part.
        first: number of the first of them in the list.
    """

    shard: int
    inputs: Any
    first: int = 0


@dataclass(frozen=True)
class Done:
    """What became of a unit.

    Attributes:
        shard: its number.
        inputs: how many it has.
        unreadable: (id, reason) of those without features.
        written: whether its shard is on the disk; False where the budget does not allow that.
        error: why it cannot be encoded at all; empty if it was.
    """

    shard: int
    inputs: int = 0
    unreadable: tuple[tuple[str, str], ...] = ()
    written: bool = False
    error: str = ""


class Budget:
    """Counts unreadable inputs over all units; a unit that is encoded again, after a lost worker, counts once.

    Args:
        limit: how many may be skipped.
        spent: shard -> unreadable inputs of an earlier run.
    """

    def __init__(self, limit: int, spent: int) -> None:
        self.limit, self.earlier = limit, spent
        self.spent: dict[int, int] = {}

    def allows(self, shard: int, unreadable: int) -> bool:
        """Whether a shard may be written without this many inputs; if it may, they are counted."""
        others = self.earlier + sum(count for number, count in self.spent.items() if number != shard)
        if unreadable and others + unreadable > self.limit:
            return False
        self.spent[shard] = unreadable
        return True


@dataclass(frozen=True)
class Job:
    """What the processes that share the work are given besides their units.

    Attributes:
        path: the feature directory, absolute: every process must see it.
        plan: of its writer.
        settings: how inputs are encoded.
        start: gives the device and what opens the inputs of a unit; it loads the model.
        with_ids: the units are parts, whose ids are known once they are read.
    """

    path: Path
    plan: Mapping[str, Any]
    settings: BulkSettings
    start: Callable[[], tuple[torch.device, Callable[[Unit], AbstractContextManager[Source]]]]
    with_ids: bool


def encode_unit(
    unit: Unit,
    job: Job,
    opened: Callable[[Unit], AbstractContextManager[Source]],
    device: torch.device,
    allows: Callable[[int, int], bool],
) -> Done:
    """Encode a unit and write its shard, unless more inputs cannot be read than the budget allows.

    Raises:
        UserError: it cannot be opened or written.
    """
    with opened(unit) as source:
        features = [torch.zeros(0, job.plan["dim"], device=device)]
        unreadable: list[tuple[str, str]] = []
        for batch in source.batches(split_into_batches(range(len(source.ids)), job.settings.batch_size), device):
            unreadable += batch.unreadable
            if batch.inputs:
                features.append(encode_batch(source, batch.inputs, job.settings, device))
        written = allows(unit.shard, len(unreadable))
        if written:
            rows = torch.cat(features).cpu().numpy()
            write_shard(job.path, job.plan, unit.shard, source.ids, rows, unreadable, job.with_ids)
        return Done(unit.shard, len(source.ids), tuple(unreadable), written)


def compute_units(units: Iterable[Unit], job: Job, earlier: int) -> Iterator[Done]:
    """Encode units one after the other in this process.

    Args:
        units: what is missing.
        job: see `Job`.
        earlier: inputs that were skipped before.
    """
    device, opened = job.start()
    budget = Budget(job.settings.skip_budget or 0, earlier)
    for unit in units:
        yield encode_unit(unit, job, opened, device, budget.allows)


def follow(done: Iterable[Done], total: int, job: Job, writer: FeatureWriter, earlier: int) -> None:
    """Follow the units that are being encoded, until all are, or the budget is spent.

    Args:
        done: of `compute_units`, or from the workers.
        total: number of units.
        job: see `Job`.
        writer: the feature directory, for messages.
        earlier: inputs that were skipped before.

    Raises:
        UserError: a unit cannot be encoded, or more inputs cannot be read than the budget allows; finished shards are
            kept.
    """
    unreadable: list[tuple[str, str]] = []
    inputs, too_many = 0, False
    budget = job.settings.skip_budget
    with tqdm(total=total, unit="shard", disable=None) as progress:
        for each in done:
            if each.error:
                raise UserError(f"{each.error}; finished shards are kept, run the same command again to continue")
            inputs += each.inputs
            unreadable += each.unreadable
            too_many |= not each.written
            progress.update()
            if too_many and budget is not None:
                break  # without a budget all inputs are read, to list all that cannot be
    if not too_many:
        return
    lines = "".join(f"\n  {shown(name)}: {reason}" for name, reason in unreadable)
    if budget is None:
        count = len(unreadable)
        raise UserError(
            f"{writer.path}: {count} of {inputs} inputs cannot be read; fix them, remove them, or skip them with "
            f"--skip-budget {count}:{lines}"
        )
    raise UserError(
        f"{writer.path}: more than --skip-budget {budget} inputs cannot be read ({earlier} were skipped before), "
        f"stopped at:{lines}"
    )
