"""Losses: pure functions on tensors. Only `gather` knows the process group."""

from mclip_fairseq.losses.contrastive import ContrastiveOutput, global_info_nce, symmetric_info_nce
from mclip_fairseq.losses.gather import gather_rows, objects_of_all_ranks, sum_over_ranks
from mclip_fairseq.losses.smoothing import chunked_linear_label_smoothed_nll, label_smoothed_nll

__all__ = [
    "ContrastiveOutput",
    "chunked_linear_label_smoothed_nll",
    "gather_rows",
    "global_info_nce",
    "label_smoothed_nll",
    "objects_of_all_ranks",
    "sum_over_ranks",
    "symmetric_info_nce",
]
