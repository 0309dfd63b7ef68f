"""Curves of a training from the JSON that fairseq logs."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import parse_json, printable, read_lines

# `--log-file` holds lines of JSON alone, among others; on a terminal the time and the place come first.
LINE = re.compile(r"(?:.*?\| (?:train_inner|train|valid\w*|test\w*) \| |(?=\{\"))(\{.*\})\s*")
STEP = "num_updates"
INNER = "train_inner"
# fairseq logs its whole configuration as Python's spelling of a dictionary.
OPTIONS = re.compile(r"(?:.*?\| )?(\{'_name': .*\})\s*")
# Values in it that are not literals, such as infinity and enumerations.
NAMES = re.compile(r"(?<=[:\[,] )(?!None\b|True\b|False\b)([-A-Za-z_][\w.]*|<[^<>]*>)(?=[,}\]])")
# Bookkeeping that is not worth a plot.
LEFT_OUT = {"epoch", "update", "num_updates", "train_wall", "wall", "wpb", "bsz", "clip", "loss_scale"}


@dataclass
class Curves:
    """Metrics over updates, in each place where they were logged.

    Attributes:
        points: place ("train_inner", "train", "valid") -> metric -> update -> value; a resumed run replaces the values
            that it logs again.
        seconds: how long the runs took, as far as they logged it, one entry per log file.
        options: fairseq's configuration of the last run, group -> option -> value; empty if it is not in the log.
    """

    points: dict[str, dict[str, dict[int, float]]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)

    def add(self, values: dict[str, Any]) -> None:
        """Add one logged line; lines without a number of updates are ignored."""
        place = next((name.removesuffix(f"_{STEP}") for name in values if name.endswith(f"_{STEP}")), INNER)
        prefix = "" if place == INNER else f"{place}_"
        numbers = {
            printable(name.removeprefix(prefix)): number
            for name, value in values.items()
            if (number := _number(value)) is not None
        }
        step = numbers.get(STEP)
        if step is None or not math.isfinite(step):
            return
        if self.seconds and math.isfinite(numbers.get("wall", math.nan)):
            self.seconds[-1] = max(self.seconds[-1], numbers["wall"])
        for name, value in numbers.items():
            if name not in LEFT_OUT:
                self.points.setdefault(printable(place), {}).setdefault(name, {})[int(step)] = value

    @property
    def metrics(self) -> list[str]:
        """All metrics, in the order in which they appeared."""
        return list(dict.fromkeys(name for metrics in self.points.values() for name in metrics))


def read_curves(logs: Sequence[Path]) -> Curves:
    """Read the JSON lines of fairseq's log files.

    Args:
        logs: written by `--log-file` with `--log-format json`, in the order of the runs.

    Raises:
        UserError: a line is not JSON, or none of the files has a logged number.
    """
    curves = Curves()
    for path in logs:
        curves.seconds.append(0.0)
        for number, line in enumerate(read_lines(path), 1):
            match = LINE.fullmatch(line)
            if match is None:
                curves.options = read_options(line) or curves.options
                continue
            try:
                values = parse_json(match[1])
            except ValueError as error:  # not JSON, nested too deeply, or a number of more than 4,300 digits
                raise UserError(f"{path}, line {number}: is not JSON: {error}; remove the line") from error
            curves.add(values)
    if not curves.points:
        files = ", ".join(map(str, logs))
        raise UserError(f"{files}: holds no logged numbers; train with --log-format json --log-file RUN_DIR/train.log")
    return curves


def read_options(line: str) -> dict[str, Any]:
    """Fairseq's configuration in a line of its log; empty if the line has none, or one that is not made of literals."""
    match = OPTIONS.fullmatch(line)
    try:
        options = ast.literal_eval(NAMES.sub(r"'\1'", match[1])) if match else {}
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return {}
    return {str(group): values for group, values in options.items()} if isinstance(options, dict) else {}


def find_logs(folder: Path) -> list[Path]:
    """The log files of a run, oldest first.

    Raises:
        UserError: the folder is missing or has none.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: is not a directory; give the folder that --log-file wrote into")
    logs = sorted(folder.glob("*.log"), key=lambda path: (path.stat().st_mtime, path.name))
    if not logs:
        raise UserError(f"{folder}: holds no .log file; train with --log-format json --log-file {folder}/train.log")
    return logs


def _number(value: Any) -> float | None:
    """The number of a logged value, if it is one: fairseq writes most numbers as text, and unknown ones as `None`."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None
