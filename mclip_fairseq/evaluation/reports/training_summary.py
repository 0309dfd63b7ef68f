"""What a training came to: its best checkpoint, its time and its options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mclip_fairseq.evaluation.reports.training_log import Curves

VALID = "valid"
# Groups of fairseq's configuration that say how a model was trained; the others say where and how it was logged.
GROUPS = ("task", "model", "criterion", "optimizer", "lr_scheduler", "optimization", "dataset", "checkpoint", "common")
ALWAYS = {"common": ("seed", "fp16", "bf16"), "dataset": ("batch_size", "max_tokens"), "checkpoint": ("save_dir",)}
MEASURE = {"best_checkpoint_metric": "loss", "maximize_best_checkpoint_metric": False}


def summary(curves: Curves) -> list[list[str]]:
    """(what, value) rows: updates, time, and the best checkpoint by the metric that fairseq chose it by."""
    last = max(update for metrics in curves.points.values() for points in metrics.values() for update in points)
    rows = [["Updates", f"{last:,}"]]
    seconds = sum(curves.seconds)
    if seconds:
        rows.append(["Time", format_seconds(seconds)])
    chosen = MEASURE | {key: value for key, value in group(curves.options, "checkpoint").items() if key in MEASURE}
    metric, largest = str(chosen["best_checkpoint_metric"]), bool(chosen["maximize_best_checkpoint_metric"])
    points = curves.points.get(VALID, {}).get(metric, {})
    finite = {update: value for update, value in points.items() if value == value}
    if finite:
        best = (max if largest else min)(finite, key=lambda update: finite[update])
        name = f"{metric.replace('_', ' ')} {finite[best]:g} in validation"
        rows.append(["Best checkpoint", f"update {best:,}: {name}"])
        rows.append(["Last validation", f"update {max(points):,}: {metric.replace('_', ' ')} {points[max(points)]:g}"])
    return rows


def chosen_options(options: Mapping[str, Any]) -> list[list[str]]:
    """(option, value) rows of the groups that say how a model was trained, each once, without those that are unset."""
    rows: dict[str, str] = {}
    for name in GROUPS:
        values, wanted = group(options, name), ALWAYS.get(name)
        if values.get("_name"):
            rows[name.replace("_", " ")] = str(values["_name"])
        for option, value in values.items():
            unset = value is None or value is False or value in ("", "???")
            if not unset and option != "_name" and (wanted is None or option in wanted):
                rows.setdefault(f"--{option.replace('_', '-')}", shorten(value))
    return [[option, value] for option, value in rows.items()]


def group(options: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A group of the configuration; empty if it has none of this name."""
    values = options.get(name)
    return values if isinstance(values, dict) else {}


def shorten(value: Any) -> str:
    """A value as text, on one line of a table."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 80 else text[:79] + "…"


def format_seconds(seconds: float) -> str:
    """`1 h 02 min`, `3 min 20 s` or `12 s`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
