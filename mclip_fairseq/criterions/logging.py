"""What the criterions log alike."""

from typing import Any

from fairseq.dataclass import ChoiceEnum
from fairseq.logging import metrics

loss_arithmetic = ChoiceEnum(["sound", "released"])


def log_ratio(
    name: str, outputs: list[dict[str, Any]], above: str, below: str, divisor: float = 1.0, scale: float = 1.0
) -> None:
    """Log the sum of one entry over the sum of another, weighted by the latter.

    Args:
        name: under which it is logged.
        outputs: one dict a batch (already summed over ranks).
        above: entry of the numerator.
        below: entry of the denominator; the metric is left out while it is 0.
        divisor: divides the ratio (log 2 for bits).
        scale: multiplies it (100 for percent).
    """
    total = float(sum(output.get(below, 0) for output in outputs))
    if total > 0:
        value = float(sum(output.get(above, 0) for output in outputs)) / total / divisor * scale
        metrics.log_scalar(name, value, total, round=3)
