"""Named sizes: an architecture sets what the user did not."""

from argparse import Namespace
from typing import Any

XLMR_LARGE = {
    "encoder_layers": 24,
    "encoder_embed_dim": 1024,
    "encoder_ffn_embed_dim": 4096,
    "encoder_attention_heads": 16,
}
XLMR_TINY = {
    "encoder_layers": 2,
    "encoder_embed_dim": 32,
    "encoder_ffn_embed_dim": 64,
    "encoder_attention_heads": 4,
    "encoder_max_positions": 128,
}


def set_defaults(args: Namespace, **defaults: Any) -> None:
    """Set options that were not given on the command line."""
    for name, value in defaults.items():
        if not hasattr(args, name):
            setattr(args, name, value)
