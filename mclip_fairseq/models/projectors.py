"""mCLIP's two trained parts: the C-projector for the teacher and the X-projector for the text encoder."""

from fairseq.models.transformer.transformer_config import EncDecBaseConfig, TransformerConfig
from fairseq.modules.transformer_layer import TransformerEncoderLayerBase
from torch import Tensor, nn


class XProjector(nn.Module):
    """Post-norm transformer layers over frozen token states (mCLIP, section 3.2).

    Args:
        layers: number of layers; 0 passes the states through.
        dim: width.
        ffn_dim: feed-forward width.
        heads: attention heads.
        dropout: after attention and feed-forward.
        attention_dropout: of attention weights.
    """

    def __init__(
        self, *, layers: int, dim: int, ffn_dim: int, heads: int, dropout: float, attention_dropout: float
    ) -> None:
        super().__init__()
        cfg = TransformerConfig(
            activation_fn="gelu",
            dropout=dropout,
            attention_dropout=attention_dropout,
            encoder=EncDecBaseConfig(embed_dim=dim, ffn_embed_dim=ffn_dim, attention_heads=heads),
        )
        self.layers = nn.ModuleList([TransformerEncoderLayerBase(cfg) for _ in range(layers)])

    def forward(self, states: Tensor, padding: Tensor) -> Tensor:
        """Transform token states.

        Args:
            states: (batch, length, dim).
            padding: (batch, length) bool, True at pads.

        Returns:
            (batch, length, dim).
        """
        states = states.transpose(0, 1)  # fairseq's layers are (length, batch, dim)
        for layer in self.layers:
            states = layer(states, encoder_padding_mask=padding)
        return states.transpose(0, 1)


def c_projector(teacher_dim: int, dim: int) -> nn.Linear:
    """The linear map of teacher image and text features into the joint space, without bias, Xavier-initialised."""
    linear = nn.Linear(teacher_dim, dim, bias=False)
    nn.init.xavier_uniform_(linear.weight)
    return linear
