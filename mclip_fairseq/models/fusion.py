"""Text that looks at an image: the second half of CCRK's text stack, and the head that says whether both match."""

from __future__ import annotations

from argparse import Namespace

from fairseq.modules import TransformerDecoderLayer
from torch import Tensor, nn


class FusionEncoder(nn.Module):
    """Transformer layers with attention to the image after attention to the text.

    They are fairseq's decoder layers without a mask of the future: its encoder layers have no second attention.

    Args:
        layers: how many.
        dim: width of the text states.
        ffn_dim: feed-forward width.
        heads: attention heads.
        image_dim: width of the image states.
        dropout: of every sublayer.
        attention_dropout: of the attention weights.
    """

    def __init__(
        self, layers: int, dim: int, ffn_dim: int, heads: int, image_dim: int, dropout: float, attention_dropout: float
    ) -> None:
        super().__init__()
        options = Namespace(
            decoder_embed_dim=dim,
            decoder_ffn_embed_dim=ffn_dim,
            decoder_attention_heads=heads,
            decoder_normalize_before=False,
            encoder_embed_dim=image_dim,
            activation_fn="gelu",
            dropout=dropout,
            attention_dropout=attention_dropout,
            activation_dropout=0.0,
        )
        self.layers = nn.ModuleList(TransformerDecoderLayer(options) for _ in range(layers))

    def forward(self, text: Tensor, padding: Tensor, image: Tensor) -> Tensor:
        """Text states that have seen the image of the same row.

        Args:
            text: (pairs, length, dim) states of the text encoder.
            padding: (pairs, length) bool, True at pads.
            image: (pairs, tokens, image dim) image states.

        Returns:
            (pairs, length, dim); pad positions hold no meaning.
        """
        states, image = text.transpose(0, 1), image.transpose(0, 1)  # fairseq's layers take the batch second
        for layer in self.layers:
            states = layer(states, encoder_out=image, self_attn_padding_mask=padding)[0]
        return states.transpose(0, 1)

    def cross_attention(self) -> list[nn.Parameter]:
        """The parameters that no text encoder has: attention to the image, and its norm."""
        return [
            parameter
            for layer in self.layers
            for name, parameter in layer.named_parameters()
            if name.startswith(("encoder_attn.", "encoder_attn_layer_norm."))
        ]


class MatchingHead(nn.Sequential):
    """(pairs, dim) -> (pairs, 2): scores of a mismatch and of a match.

    Args:
        dim: width of its input.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(nn.Linear(dim, 2 * dim), nn.LayerNorm(2 * dim), nn.GELU(), nn.Linear(2 * dim, 2))
