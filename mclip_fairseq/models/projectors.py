"""mCLIP's two trained parts: the C-projector for the teacher and the X-projector for the text encoder."""

import torch
from fairseq.models.transformer.transformer_config import EncDecBaseConfig, TransformerConfig
from fairseq.modules import MultiheadAttention
from fairseq.modules.transformer_layer import TransformerEncoderLayerBase
from torch import Tensor, nn

from mclip_fairseq.models.pooling import pool_last

PROJECTOR_STARTS = ("random", "identity")


class XProjector(nn.Module):
    """Post-norm transformer layers over frozen token states (mCLIP, section 3.2).

    Args:
        layers: number of layers; 0 passes the states through.
        dim: width.
        ffn_dim: feed-forward width.
        heads: attention heads.
        dropout: after attention and feed-forward.
        attention_dropout: of attention weights.
        all_positions: compute the last layer at every position and keep one, as the released code does, instead of
            this one alone. The function is the same; the draws of dropout are not.
        start: of `PROJECTOR_STARTS`: with `identity`, attention and feed-forward begin as zero, so that each layer
            begins as the LayerNorm of its input.
    """

    def __init__(
        self,
        *,
        layers: int,
        dim: int,
        ffn_dim: int,
        heads: int,
        dropout: float,
        attention_dropout: float,
        all_positions: bool = False,
        start: str = "random",
    ) -> None:
        super().__init__()
        self.all_positions = all_positions
        stack = post_norm_layers(layers, dim, ffn_dim, heads, dropout, attention_dropout)
        self.layers = nn.ModuleList(stack)
        if start == "identity":
            for layer in stack:
                for last in (layer.self_attn.out_proj, layer.fc2):
                    nn.init.zeros_(last.weight)
                    nn.init.zeros_(last.bias)

    def forward(self, states: Tensor, padding: Tensor) -> Tensor:
        """The transformed state of `</s>`, the last real token.

        Only this state is used, so without `all_positions` the last layer computes it alone; the other tokens serve as
        keys and values.

        Args:
            states: (batch, length, dim).
            padding: (batch, length) bool, True at pads.

        Returns:
            (batch, dim).
        """
        whole = self.layers if self.all_positions else self.layers[:-1]
        for layer in whole:
            # fairseq's layers are (length, batch, dim)
            states = layer(states.transpose(0, 1), encoder_padding_mask=padding).transpose(0, 1)
        last = pool_last(states, padding)
        if self.all_positions or not len(self.layers):
            return last
        return pooled_layer(self.layers[-1], last, states, padding)


def post_norm_layers(
    layers: int, dim: int, ffn_dim: int, heads: int, dropout: float, attention_dropout: float
) -> list[TransformerEncoderLayerBase]:
    """Layers of BERT's kind as fairseq has them; see `XProjector` for the arguments."""
    cfg = TransformerConfig(
        activation_fn="gelu",
        dropout=dropout,
        attention_dropout=attention_dropout,
        encoder=EncDecBaseConfig(embed_dim=dim, ffn_embed_dim=ffn_dim, attention_heads=heads),
    )
    return [TransformerEncoderLayerBase(cfg) for _ in range(layers)]


def pooled_layer(layer: TransformerEncoderLayerBase, pooled: Tensor, states: Tensor, padding: Tensor) -> Tensor:
    """A post-norm layer of fairseq at one position of each sentence.

    Args:
        layer: the layer.
        pooled: (batch, dim) input at this position.
        states: (batch, length, dim) input at all positions.
        padding: (batch, length) bool, True at pads.

    Returns:
        (batch, dim).
    """
    attended = attend_once(layer.self_attn, pooled, states, padding)
    hidden = layer.self_attn_layer_norm(pooled + layer.dropout_module(attended))
    inner = layer.activation_dropout_module(layer.activation_fn(layer.fc1(hidden)))
    return layer.final_layer_norm(hidden + layer.dropout_module(layer.fc2(inner)))


def attend_once(attention: MultiheadAttention, query: Tensor, states: Tensor, padding: Tensor) -> Tensor:
    """Self-attention for one query a sentence, without projecting the other tokens.

    A score q . (W_k x + b_k) equals (W_k^T q) . x + q . b_k, and a weighted sum of W_v x + b_v is W_v times the
    weighted sum of the x, so both matrices are applied once a sentence and head instead of once a token.

    Args:
        attention: the weights.
        query: (batch, dim).
        states: (batch, length, dim).
        padding: (batch, length) bool, True at pads.

    Returns:
        (batch, dim).
    """
    heads, width = attention.num_heads, attention.head_dim
    q = attention.q_proj(query).view(-1, heads, width).transpose(0, 1) * attention.scaling  # (heads, batch, width)
    key, value = (linear.weight.view(heads, width, -1) for linear in (attention.k_proj, attention.v_proj))
    key_bias, value_bias = (linear.bias.view(heads, width, 1) for linear in (attention.k_proj, attention.v_proj))
    scores = (q @ key).transpose(0, 1) @ states.transpose(1, 2) + (q @ key_bias).transpose(0, 1)
    scores = scores.masked_fill(padding[:, None], -torch.inf)  # (batch, heads, length)
    # With half weights the softmax is in float32, as in torch's own attention.
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).type_as(states)
    weights = attention.dropout_module(weights)
    mixed = (weights @ states).transpose(0, 1) @ value.transpose(1, 2)  # (heads, batch, width)
    # Dropout leaves weights that do not add up to 1.
    mixed = mixed + weights.sum(-1).T[..., None] * value_bias.transpose(1, 2)
    return attention.out_proj(mixed.transpose(0, 1).flatten(1))


def c_projector(teacher_dim: int, dim: int, start: str = "random") -> nn.Linear:
    """The linear map of teacher image and text features into the joint space, without bias.

    Args:
        teacher_dim: width of the teacher's features.
        dim: width of the joint space; `teacher_dim` for `identity`.
        start: of `PROJECTOR_STARTS`: `random` is Xavier-uniform, `identity` leaves the features as they are.
    """
    linear = nn.Linear(teacher_dim, dim, bias=False)
    nn.init.xavier_uniform_(linear.weight)
    if start == "identity":
        nn.init.eye_(linear.weight)
    return linear


def text_head(text_dim: int, joint_dim: int) -> nn.Module:
    """From a projected text state, (batch, text dim), to the joint space; nothing where the widths are equal."""
    if text_dim == joint_dim:
        return nn.Identity()
    linear = nn.Linear(text_dim, joint_dim, bias=False)
    nn.init.xavier_uniform_(linear.weight)
    return linear
