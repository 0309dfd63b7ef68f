"""Losses: pure functions on tensors. Only `gather` knows the process group."""

from mclip_fairseq.losses.contrastive import ContrastiveOutput, global_info_nce, symmetric_info_nce
from mclip_fairseq.losses.distillation import distillation_loss, global_distillation_loss
from mclip_fairseq.losses.gather import (
    gather_rows,
    gather_sizes,
    max_over_ranks,
    objects_of_all_ranks,
    share_of_mean,
    sum_over_ranks,
)
from mclip_fairseq.losses.matching import (
    HardNegativeWeights,
    MatchingPairs,
    draw_matching_pairs,
    hard_negative_weights,
    masked_word_loss,
    matching_loss,
)
from mclip_fairseq.losses.one_to_k import global_one_to_k_info_nce, one_to_k_info_nce
from mclip_fairseq.losses.relational import (
    global_soft_label_loss,
    global_structure_loss,
    soft_label_loss,
    structure_loss,
)
from mclip_fairseq.losses.smoothing import chunked_linear_label_smoothed_nll, label_smoothed_nll
from mclip_fairseq.losses.tension import contrastive_tension_loss, global_contrastive_tension_loss

__all__ = [
    "ContrastiveOutput",
    "HardNegativeWeights",
    "MatchingPairs",
    "chunked_linear_label_smoothed_nll",
    "contrastive_tension_loss",
    "distillation_loss",
    "draw_matching_pairs",
    "gather_rows",
    "gather_sizes",
    "global_contrastive_tension_loss",
    "global_distillation_loss",
    "global_info_nce",
    "global_one_to_k_info_nce",
    "global_soft_label_loss",
    "global_structure_loss",
    "hard_negative_weights",
    "label_smoothed_nll",
    "masked_word_loss",
    "matching_loss",
    "max_over_ranks",
    "objects_of_all_ranks",
    "one_to_k_info_nce",
    "share_of_mean",
    "soft_label_loss",
    "structure_loss",
    "sum_over_ranks",
    "symmetric_info_nce",
]
