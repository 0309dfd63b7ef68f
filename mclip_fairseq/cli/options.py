"""What the command lines share: types of options, and the choice of a device."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.machine import cores

if TYPE_CHECKING:
    import torch

# Each holds two batches ready, and together they prepare thousands of images per second (python -m benchmarks.pixels).
MOST_WORKERS = 16
DTYPES = ("float32", "float16", "bfloat16")


def count(text: str) -> int:
    """An option's whole number that is not negative."""
    return _whole_number(text, least=0)


def positive(text: str) -> int:
    """An option's whole number above zero."""
    return _whole_number(text, least=1)


def share(text: str) -> float:
    """An option's number above 0 and up to 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0 and up to 1")
    return value


def add_workers(parser: argparse.ArgumentParser) -> None:
    """Add the option `--workers`."""
    number = min(MOST_WORKERS, cores())
    help_text = f"decode in N processes, or threads without a GPU (default {number}: all cores, at most {MOST_WORKERS})"
    parser.add_argument("--workers", type=count, default=number, metavar="N", help=help_text)


def add_dtype(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the option `--dtype`, which `pick_device` checks."""
    help_text = f"{what} in (default float32; the others need a GPU)"
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help=help_text)


def path(text: str) -> Path:
    """An option's path; `~` is the home directory."""
    return Path(text).expanduser()


def pick_device(name: str | None, dtype: str = "float32") -> torch.device:
    """The device that an option names, or a GPU if there is one.

    Args:
        name: of the option `--device`, such as `cuda:1`; None picks.
        dtype: of the option `--dtype`.

    Raises:
        UserError: torch cannot use the device, or the CPU is to compute in another type than float32.
    """
    import torch

    has_gpu = torch.cuda.is_available()
    try:
        device = torch.device(name or ("cuda" if has_gpu else "cpu"))
        if device.type == "cuda" and not has_gpu:
            raise UserError(f"--device {name}: torch finds no GPU here; run mclip-doctor to see why")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch: unknown name, not built in, or no device of this number
        raise UserError(f"--device {name}: torch has no such device; write cpu, cuda or cuda:N") from error
    if device.type == "cpu" and dtype != "float32":
        raise UserError(f"--dtype {dtype} needs a GPU; use float32 on the CPU")
    return device


def _whole_number(text: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from {least} up")
    return number
