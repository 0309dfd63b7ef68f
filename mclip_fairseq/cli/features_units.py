"""`mclip-features` on units of work: parts (tars, Parquet), or any inputs with `--engine ray`."""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mclip_fairseq.cli.options import pick_device
from mclip_fairseq.storage.errors import UserError

if TYPE_CHECKING:
    import torch

    from mclip_fairseq.encoding.bulk import Source
    from mclip_fairseq.encoding.units import Unit
    from mclip_fairseq.models.teacher import DualEncoderTeacher
    from mclip_fairseq.storage.feature_writer import FeatureWriter


def make_by_units(options: argparse.Namespace, command: Sequence[str]) -> str:
    """Run the command; returns the line to print."""
    from mclip_fairseq.cli.features import bulk_settings, device_name, finished, load_teacher
    from mclip_fairseq.encoding.units import Job, compute_units, follow

    if os.path.exists(options.model):  # workers may run elsewhere
        options.model = os.path.abspath(options.model)
    inputs, skip_budget = listed(options)
    teacher = load_teacher(options)
    settings = bulk_settings(options, skip_budget)
    writer = open_writer(options, teacher, inputs)
    earlier = len(writer.skipped())
    if earlier > (skip_budget or 0):
        raise UserError(f"{writer.path}: {earlier} inputs were skipped before, so it needs --skip-budget {earlier}")
    units = units_of(writer, inputs, options)
    with_ray = options.engine == "ray"
    start: Any = (
        functools.partial(start_worker, options, teacher.identity)
        if with_ray
        else functools.partial(opener, options, teacher)
    )
    job = Job(writer.path.absolute(), writer.plan, settings, start, with_ids=is_of_parts(options))
    if with_ray:
        from mclip_fairseq.encoding.ray_engine import compute_with_ray

        use_gpu = None if options.device is None else options.device.startswith("cuda")
        done = compute_with_ray(units, job, earlier, use_gpu) if units else iter(())
    else:
        done = compute_units(units, job, earlier)
    follow(done, len(units), job, writer, earlier)
    return finished(options, writer, command, "ray" if with_ray else device_name(device_of(options)))


def is_of_parts(options: argparse.Namespace) -> bool:
    """Whether the inputs are tars or Parquet files."""
    return isinstance(options.images or options.captions, str)


def listed(options: argparse.Namespace) -> tuple[list[Any], int | None]:
    """The inputs that the command line names, absolute, and what awkward names leave of the skip budget."""
    from mclip_fairseq.cli.features import listed_images
    from mclip_fairseq.encoding.bulk import read_caption_list
    from mclip_fairseq.storage.addresses import list_parts

    if is_of_parts(options):
        return list_parts(options.images or options.captions), options.skip_budget
    if options.captions:
        return read_caption_list(options.captions), options.skip_budget
    images, skip_budget = listed_images(options)
    return [(name, Path(os.path.abspath(file))) for name, file in images], skip_budget


def open_writer(options: argparse.Namespace, teacher: DualEncoderTeacher, inputs: list[Any]) -> FeatureWriter:
    """The feature directory, created or continued."""
    from mclip_fairseq.cli.features import encoder_of, open_source, plan_of, shard_rows
    from mclip_fairseq.encoding.parts import parts_content
    from mclip_fairseq.storage.addresses import part_name
    from mclip_fairseq.storage.feature_writer import FeatureWriter, PartWriter

    encoder, dim = encoder_of(options, teacher)
    nothing = open_source(options, teacher, [], encoder)
    if is_of_parts(options):
        names, content = [part_name(part) for part in inputs], parts_content(inputs)
        columns = {"columns": [options.column, options.id_column]} if options.column or options.id_column else {}
        plan = plan_of(options, teacher, dim, nothing, content)
        plan["settings"] |= columns
        return PartWriter(options.output, names, **plan)
    source = open_source(options, teacher, inputs, encoder)
    plan = plan_of(options, teacher, dim, source, source.content)
    return FeatureWriter(options.output, source.ids, shard_rows=shard_rows(options), **plan)


def units_of(writer: FeatureWriter, inputs: list[Any], options: argparse.Namespace) -> list[Unit]:
    """What is missing."""
    from mclip_fairseq.encoding.units import Unit

    pending = writer.pending(options.machine, options.machines)
    if is_of_parts(options):
        return [Unit(shard, inputs[shard]) for shard in pending]
    rows = {shard: writer.inputs(shard) for shard in pending}
    return [Unit(shard, inputs[part.start : part.stop], part.start) for shard, part in rows.items()]


def device_of(options: argparse.Namespace) -> torch.device:
    """The device that this process computes on."""
    return pick_device(options.device, options.dtype)


Opener = Callable[["Unit"], contextlib.AbstractContextManager["Source"]]


def opener(options: argparse.Namespace, teacher: DualEncoderTeacher) -> tuple[torch.device, Opener]:
    """The device of this process, and what opens the inputs of a unit."""
    from mclip_fairseq.cli.features import encoder_of

    device = device_of(options)
    encoder, _ = encoder_of(options, teacher.to(device))
    return device, functools.partial(open_unit, options, teacher, encoder)


def start_worker(options: argparse.Namespace, identity: dict[str, Any]) -> tuple[torch.device, Opener]:
    """Like `opener`, in a process of its own.

    Raises:
        UserError: the model is a different one here than where the command was started.
    """
    from mclip_fairseq.cli.features import load_teacher

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    teacher = load_teacher(options)
    if teacher.identity != identity:
        raise UserError(f"{options.model}: is a different model on {platform.node()}; give every machine the same")
    return opener(options, teacher)


@contextlib.contextmanager
def open_unit(
    options: argparse.Namespace, teacher: DualEncoderTeacher, encoder: Callable[..., Any], unit: Unit
) -> Iterator[Source]:
    """The images or captions of a unit."""
    from mclip_fairseq.cli.features import open_source
    from mclip_fairseq.encoding.parts import Columns, local_copy, read_part

    if not is_of_parts(options):
        yield open_source(options, teacher, unit.inputs, encoder, unit.first + 1)
        return
    modality = "text" if options.captions else "image"
    with local_copy(unit.inputs) as file:
        found = read_part(unit.inputs, file, modality, Columns(options.column, options.id_column))
        yield open_source(options, teacher, found, encoder)
