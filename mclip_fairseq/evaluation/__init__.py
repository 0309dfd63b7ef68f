"""Retrieval metrics, consistency over languages, and reports.

Metrics are pure functions on features; nothing here needs fairseq, and only ``pictures`` and ``fonts`` need
matplotlib.
"""

from mclip_fairseq.evaluation.metrics.languages import average_languages, evaluate_languages
from mclip_fairseq.evaluation.metrics.rerank import ranks_of_own, rerank
from mclip_fairseq.evaluation.metrics.retrieval import RetrievalRanks, retrieval_metrics, retrieval_ranks, top_images
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
