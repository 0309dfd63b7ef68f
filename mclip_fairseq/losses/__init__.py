"""Losses: pure functions on tensors. Only `gather` knows the process group."""

from mclip_fairseq.losses.contrastive import ContrastiveOutput, global_info_nce, symmetric_info_nce
from mclip_fairseq.losses.distillation import distillation_loss, global_distillation_loss
from mclip_fairseq.losses.gather import gather_rows, gather_sizes, max_over_ranks, share_of_mean, sum_over_ranks
from mclip_fairseq.losses.smoothing import chunked_linear_label_smoothed_nll, label_smoothed_nll
from mclip_fairseq.losses.tension import contrastive_tension_loss, global_contrastive_tension_loss

__all__ = [
    "ContrastiveOutput",
    "chunked_linear_label_smoothed_nll",
    "contrastive_tension_loss",
    "distillation_loss",
    "gather_rows",
    "gather_sizes",
    "global_contrastive_tension_loss",
    "global_distillation_loss",
    "global_info_nce",
    "label_smoothed_nll",
    "max_over_ranks",
    "share_of_mean",
    "sum_over_ranks",
    "symmetric_info_nce",
]
