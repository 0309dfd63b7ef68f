"""Evaluation: `metrics` are pure functions, `benchmarks` know the data on disk, `reports` show results.

Importing this package is light: torch is imported with the first name that is asked for, scipy, sacrebleu and
matplotlib (the extra `evaluate`) where they are used, fairseq and transformers never.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mclip_fairseq.evaluation.metrics.languages import average_languages, evaluate_languages
    from mclip_fairseq.evaluation.metrics.rerank import ranks_of_own, rerank
    from mclip_fairseq.evaluation.metrics.retrieval import (
        RetrievalRanks,
        retrieval_metrics,
        retrieval_ranks,
        top_images,
    )
    from mclip_fairseq.evaluation.metrics.variance import mean_rank_variance
    from mclip_fairseq.evaluation.reports.report import format_table, write_report
    from mclip_fairseq.storage.provenance import provenance

__all__ = [
    "RetrievalRanks",
    "average_languages",
    "evaluate_languages",
    "format_table",
    "mean_rank_variance",
    "provenance",
    "ranks_of_own",
    "rerank",
    "retrieval_metrics",
    "retrieval_ranks",
    "top_images",
    "write_report",
]
_METRICS, _REPORTS = f"{__name__}.metrics", f"{__name__}.reports"
_MODULE_OF = {
    "RetrievalRanks": f"{_METRICS}.retrieval",
    "average_languages": f"{_METRICS}.languages",
    "evaluate_languages": f"{_METRICS}.languages",
    "format_table": f"{_REPORTS}.report",
    "mean_rank_variance": f"{_METRICS}.variance",
    "provenance": "mclip_fairseq.storage.provenance",
    "ranks_of_own": f"{_METRICS}.rerank",
    "rerank": f"{_METRICS}.rerank",
    "retrieval_metrics": f"{_METRICS}.retrieval",
    "retrieval_ranks": f"{_METRICS}.retrieval",
    "top_images": f"{_METRICS}.retrieval",
    "write_report": f"{_REPORTS}.report",
}


def __getattr__(name: str) -> Any:
    """Import a name of `__all__` when it is first asked for."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)
