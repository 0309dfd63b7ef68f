"""AltCLIP's variant `invert`: the student's token states go through further layers into CLIP's frozen text tower."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairseq.modules.transformer_sentence_encoder import init_bert_params
from torch import Tensor, nn

from mclip_fairseq.compat import shield_torchaudio
from mclip_fairseq.models.acquirers import block_states
from mclip_fairseq.models.mla_parts import text_tower
from mclip_fairseq.models.pooling import pool_last
from mclip_fairseq.models.projectors import post_norm_layers
from mclip_fairseq.models.settings import ORIGIN
from mclip_fairseq.models.sizes import SizeGroup
from mclip_fairseq.models.teacher import DualEncoderTeacher
from mclip_fairseq.models.teacher_loading import call_transformers, model_without_memory
from mclip_fairseq.models.weights import check_weights
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.fields import check_fields
from mclip_fairseq.storage.files import parse_json

HEADS = 8
INVERSE = SizeGroup("inverse_layers", "inverse.layers.", {})
# The tower reads states instead of words, so that its table of words is left out.
WORDS = "embeddings.token_embedding.weight"


class InverseTower(nn.Module):
    """Post-norm layers, then CLIP's text tower with their states in the place of its word embeddings.

    The tower is frozen. Its weights are stored with the model, so that no teacher is needed to load it.

    Args:
        description: JSON of the tower's configuration, from `describe`.
        layers: number of layers before it (AltCLIP: 3).
        dropout: of these layers.
        attention_dropout: of their attention weights.
    """

    def __init__(self, description: str, layers: int, dropout: float, attention_dropout: float) -> None:
        super().__init__()
        shield_torchaudio()
        from transformers import CLIPTextConfig, CLIPTextModel

        config = CLIPTextConfig(**json.loads(description))
        width = int(config.hidden_size)
        self.layers = nn.ModuleList(post_norm_layers(layers, width, 4 * width, HEADS, dropout, attention_dropout))
        self.layers.apply(init_bert_params)
        self.text: Any = CLIPTextModel(config)
        del self.text.embeddings.token_embedding
        self.text.requires_grad_(False)
        self.train()

    @staticmethod
    def describe(teacher: DualEncoderTeacher) -> str:
        """What the constructor needs to build the text tower of a teacher.

        Raises:
            UserError: the teacher is not a CLIP, or its width does not divide by the heads.
        """
        config = text_tower(teacher.model)[0].config
        if config.hidden_size % HEADS:
            raise UserError(f"--inverse-layers: the teacher's width {config.hidden_size} does not divide by {HEADS}")
        settings = {name: value for name, value in config.to_dict().items() if name not in (*ORIGIN, "model_type")}
        return json.dumps(settings, sort_keys=True)

    @classmethod
    def copy(cls, teacher: DualEncoderTeacher, layers: int, dropout: float, attention_dropout: float) -> InverseTower:
        """Random layers before a copy of the teacher's text tower; see the constructor for the arguments."""
        tower = cls(cls.describe(teacher), layers, dropout, attention_dropout)
        weights = dict(text_tower(teacher.model)[0].state_dict())
        del weights[WORDS]
        tower.text.load_state_dict(weights)
        return tower

    @staticmethod
    def check_size(place: Path, description: str, weights: Mapping[str, Tensor]) -> None:
        """Refuse a description from a file that is not that of its weights, before memory is allocated.

        Args:
            place: the file, for messages.
            description: see the constructor.
            weights: of the tower alone, under its own names.

        Raises:
            UserError: the description is damaged, or other weights belong to it.
        """
        from transformers import CLIPTextConfig

        facts = check_fields(place, parse_json(description), {}, "restore the file that belongs to the weights")
        config = call_transformers(place, "a text tower", lambda: CLIPTextConfig(**facts))
        expected = dict(model_without_memory(config, place).state_dict())
        del expected[WORDS]
        check_weights(weights, expected, place)

    @property
    def max_positions(self) -> int:
        """Longest text in tokens that CLIP's tower reads."""
        return int(self.text.config.max_position_embeddings)

    def train(self, mode: bool = True) -> InverseTower:
        """Set the mode of the layers; the tower stays in eval mode."""
        super().train(mode)
        self.text.eval()
        return self

    def forward(self, states: Tensor, padding: Tensor) -> Tensor:
        """From token states to one state a text.

        Args:
            states: (batch, length, width), each text ended by `</s>` and padded on the right.
            padding: (batch, length) bool, True at pads.

        Returns:
            (batch, width): the tower's state at `</s>`, before its projection.
        """
        for layer in self.layers:
            # fairseq's layers are (length, batch, dim)
            states = layer(states.transpose(0, 1), encoder_padding_mask=padding).transpose(0, 1)
        return self.read(states, padding)

    def read(self, states: Tensor, padding: Tensor) -> Tensor:
        """The part of `forward` behind the layers, with the same arguments and result."""
        *_, states = block_states(self.text, states, [nn.Identity()] * len(self.text.encoder.layers))
        return pool_last(self.text.final_layer_norm(states), padding)
