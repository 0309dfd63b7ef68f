"""Model `ccrk`: a trainable image tower, a text encoder, and a fusion encoder that looks at both (CCRK)."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from fairseq.models import register_model, register_model_architecture
from torch import Tensor, nn

from mclip_fairseq.losses.pairs import ChoosePairs, Encoded
from mclip_fairseq.models.architectures import XLMR_TINY, set_defaults
from mclip_fairseq.models.autocast import unit, widened
from mclip_fairseq.models.ccrk_options import CCRKModelConfig, check_window, chosen_layers, swin_sizes
from mclip_fairseq.models.dual_encoder import Columns, DualEncoder, ImageTransform
from mclip_fairseq.models.fusion import FusionEncoder, MatchingHead
from mclip_fairseq.models.pooling import pool_first
from mclip_fairseq.models.sizes import ENCODER, SizeGroup
from mclip_fairseq.models.vision.swin import TABLE, SwinTower, load_swin, resize_tables, window_of
from mclip_fairseq.models.xlmr_encoder import XLMREncoder
from mclip_fairseq.storage.errors import UserError

CITATION = """@inproceedings{nie-etal-2024-improving,
  title = {Improving the Consistency in Cross-Lingual Cross-Modal Retrieval with 1-to-{K} Contrastive Learning},
  author = {Nie, Zhijie and Zhang, Richong and Feng, Zhangchi and Huang, Hailang and Liu, Xudong},
  booktitle = {Proceedings of KDD},
  year = {2024},
}"""
LEAST_TEMPERATURE, LARGEST_TEMPERATURE = 0.001, 0.5
STAGES = "image_tower.model.encoder.layers."
FUSION = SizeGroup(
    "fusion_layers",
    "fusion.layers.",
    {
        "joint_dim": (("text_proj.weight", 0),),
        "image_embed_dim": (("image_tower.model.embeddings.patch_embeddings.projection.weight", 0),),
        "image_patch_size": (("image_tower.model.embeddings.patch_embeddings.projection.weight", 2),),
    },
)


@register_model("ccrk", dataclass=CCRKModelConfig)
class CCRKModel(DualEncoder):
    """A dual encoder whose text states go on through a fusion encoder (Nie et al. 2024).

    Retrieval compares the first states of both towers, projected; `match` looks at a text and an image together, to
    put the nearest ones in a better order. Nothing is frozen.

    Args:
        cfg: options.
        image_tower: Swin.
        text_encoder: the lower half of the text layers, with the masked-language-model head.
        fusion: the upper half.
    """

    columns = Columns(
        required=(("text_tokens",), ("pixel_values",)),
        optional=("masked_tokens", "masked_positions", "masked_labels"),
    )
    text_encoder_prefix = "text_encoder.encoder."
    size_groups = ((ENCODER, text_encoder_prefix), (FUSION, ""))
    tied_weights: ClassVar = {
        f"{text_encoder_prefix}lm_head.weight": f"{text_encoder_prefix}sentence_encoder.embed_tokens.weight"
    }
    citation = CITATION
    can_match = True

    def __init__(
        self, cfg: CCRKModelConfig, image_tower: SwinTower, text_encoder: XLMREncoder, fusion: FusionEncoder
    ) -> None:
        super().__init__()
        self.cfg: Any = cfg
        self.identity = {"text_encoder": None, "teacher": {}}
        self.image_tower = image_tower
        self.text_encoder = text_encoder
        self.fusion = fusion
        self.padding_idx = text_encoder.encoder.dictionary.pad()
        self.text_proj = nn.Linear(text_encoder.dim, cfg.joint_dim)
        self.vision_proj = nn.Linear(image_tower.dim, cfg.joint_dim)
        self.temp = nn.Parameter(torch.tensor(float(cfg.temperature)))
        self.itm_head = MatchingHead(text_encoder.dim)
        self.word_head.requires_grad_(True)
        # No published weights start these: an optimizer may give them a larger learning rate.
        fresh = [self.temp, *fusion.cross_attention()]
        fresh += [weight for part in (self.text_proj, self.vision_proj, self.itm_head) for weight in part.parameters()]
        for parameter in fresh:
            parameter.fresh = True  # type: ignore[attr-defined]

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> CCRKModel:
        """Build from options; sizes of given towers replace those of the options and are kept with them.

        Args:
            cfg: options.
            task: with `source_dictionary`.

        Raises:
            UserError: a tower that cannot be read, layers that it does not have, or sizes that do not fit together.
        """
        weights = None
        if cfg.image_encoder:
            sizes, weights = load_swin(cfg.image_encoder)
            cfg.image_patch_size, cfg.image_embed_dim = sizes.patch_size, sizes.embed_dim
            cfg.image_depths = ",".join(map(str, sizes.depths))
            cfg.image_heads = ",".join(map(str, sizes.heads))
        image_tower = SwinTower(check_window(swin_sizes(cfg)))
        if weights is not None:
            image_tower.load(weights, cfg.image_encoder)
        text_encoder, upper = text_halves(cfg, task.source_dictionary)
        fusion = FusionEncoder(
            layers=cfg.fusion_layers,
            dim=cfg.encoder_embed_dim,
            ffn_dim=cfg.encoder_ffn_embed_dim,
            heads=cfg.encoder_attention_heads,
            image_dim=image_tower.dim,
            dropout=cfg.dropout,
            attention_dropout=cfg.attention_dropout,
        )
        fusion.load_state_dict(upper, strict=False)
        return cls(cfg, image_tower, text_encoder, fusion)

    @property
    def word_head(self) -> nn.Module:
        """The head that says which word is masked; its output layer is the token table."""
        head: nn.Module = self.text_encoder.encoder.lm_head
        return head

    @property
    def dim(self) -> int:
        """Width of the joint space."""
        return int(self.cfg.joint_dim)

    @property
    def scale(self) -> Tensor:
        """1 / temperature, 0-d."""
        return 1 / widened(self.temp).clamp(LEAST_TEMPERATURE, LARGEST_TEMPERATURE)

    @property
    def text_description(self) -> str:
        """For model cards."""
        return f"XLM-R, {self.cfg.encoder_layers} layers, and a fusion encoder of {self.cfg.fusion_layers} to re-rank"

    @property
    def image_transform(self) -> ImageTransform | None:
        """Square pixels with CLIP's mean and deviation."""
        return self.image_tower.transform

    @classmethod
    def use_stored_weights(cls, cfg: Any) -> None:
        """Change stored options so that neither tower is read from where the training began."""
        cfg.text_encoder = cfg.image_encoder = ""

    @classmethod
    def check_sizes(cls, place: Path, options: Any, weights: Mapping[str, Tensor]) -> None:
        """Refuse options that claim larger sizes than the weights have; see `DualEncoder.check_sizes`."""
        super().check_sizes(place, options, weights)
        blocks = {tuple(name.removeprefix(STAGES).split(".")[:3:2]) for name in weights if name.startswith(STAGES)}
        for stage, depth in enumerate(swin_sizes(options).depths):
            stored = len([block for block in blocks if block[0] == str(stage) and block[1].isdigit()])
            if depth > stored:
                raise UserError(
                    f"{place}: says image_depths {options.image_depths}, but stage {stage + 1} of its weights has "
                    f"{stored} blocks; put back the file that belongs to them"
                )
        windows = [window_of(table) for name, table in weights.items() if name.endswith(TABLE)]
        if options.image_window > max(windows, default=0):
            raise UserError(
                f"{place}: says image_window {options.image_window}, but its weights have {max(windows, default=0)}; "
                "put back the file that belongs to them"
            )

    def image_states(self, pixel_values: Tensor) -> Tensor:
        """(batch, 3, height, width) -> (batch, 1 + tokens, image dim); the first is the mean of the others."""
        states: Tensor = self.image_tower(pixel_values)
        return states

    def text_states(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, length) ids, padded on either side -> states (batch, length, text dim) and padding, True at pads."""
        return self.text_encoder(tokens), tokens.eq(self.padding_idx)

    def image_features(self, states: Tensor) -> Tensor:
        """Image states -> (batch, dim), L2-normalised."""
        return unit(self.vision_proj(states[:, 0]))

    def text_features(self, states: Tensor, padding: Tensor) -> Tensor:
        """Text states -> (batch, dim), L2-normalised."""
        return unit(self.text_proj(pool_first(states, padding)))

    def encode_text(self, tokens: Tensor) -> Tensor:
        """(batch, length) ids `<s> ... </s>`, padded on either side -> (batch, dim), L2-normalised."""
        return self.text_features(*self.text_states(tokens))

    def encode_image(self, pixel_values: Tensor | None = None, features: Tensor | None = None) -> Tensor:
        """(batch, 3, height, width) -> (batch, dim), L2-normalised.

        Raises:
            UserError: features are given: images are trained here, so nobody can have stored them before.
        """
        if pixel_values is None:
            raise UserError("ccrk trains its image tower; give pixels (--image-root), not image features")
        return self.image_features(self.image_states(pixel_values))

    def match_states(self, text: Tensor, padding: Tensor, image: Tensor) -> Tensor:
        """Scores of pairs from the states of both sides.

        Args:
            text: (pairs, length, text dim).
            padding: (pairs, length) bool, True at pads.
            image: (pairs, 1 + tokens, image dim).

        Returns:
            (pairs, 2): mismatch and match.
        """
        scores: Tensor = self.itm_head(pool_first(self.fusion(text, padding, image), padding))
        return scores

    def match(self, tokens: Tensor, pixel_values: Tensor) -> Tensor:
        """Matching logits of n texts with n images.

        Args:
            tokens: (n, length) ids, padded on either side.
            pixel_values: (n, 3, height, width).

        Returns:
            (n,); larger is better.
        """
        return self.match_states(*self.text_states(tokens), self.image_states(pixel_values))[:, 1]

    def masked_words(self, tokens: Tensor, rows: Tensor, positions: Tensor, image_states: Tensor) -> Tensor:
        """What the model takes the masked words for, seeing the rest of the text and the image.

        Args:
            tokens: (batch, length) ids, some of them masked.
            rows: (words,) int64, the text of each masked word.
            positions: (words,) int64, where it is in the text.
            image_states: (batch, 1 + tokens, image dim).

        Returns:
            (words, vocabulary) logits.
        """
        states = self.fusion(*self.text_states(tokens), image_states)
        words: Tensor = self.word_head(states[rows, positions])
        return words

    def forward(
        self,
        text_tokens: Tensor,
        pixel_values: Tensor,
        masked_tokens: Tensor | None = None,
        masked_positions: Tensor | None = None,
        masked_labels: Tensor | None = None,
        choose_pairs: ChoosePairs | None = None,
    ) -> dict[str, Tensor | None]:
        """All that a training step compares, in one pass, so that whatever wraps the model sees every part at work.

        Args:
            text_tokens: (B K, length) captions, K of each image, image by image.
            pixel_values: (B, 3, height, width).
            masked_tokens: (B K, length) the same captions with masked words, or None.
            masked_positions: (B K, slots) int64, where; 0 in slots that are not used, because `<s>` is never masked.
            masked_labels: (B K, slots) int64, the words at these positions.
            choose_pairs: given what is encoded, which pairs to match, and which own caption of each image to ask for
                its masked words. None compares the features only.

        Returns:
            `image` (B, dim) and `text` (B K, dim), L2-normalised; `scale`, 0-d; `match` (pairs, 2), `match_labels`
            (pairs,), `words` (n, vocabulary), `word_labels` (n,), None where nothing was asked; `anchor`, 0-d, zero,
            with whatever was not used in its graph.
        """
        if self.training:
            self.temp.data.clamp_(LEAST_TEMPERATURE, LARGEST_TEMPERATURE)
        image_states = self.image_states(pixel_values)
        text_states, padding = self.text_states(text_tokens)
        image, text = self.image_features(image_states), self.text_features(text_states, padding)
        out: dict[str, Tensor | None] = {
            **{"image": image, "text": text, "scale": self.scale},
            **dict.fromkeys(("match", "match_labels", "words", "word_labels")),
        }
        unused: list[nn.Module] = [self.fusion, self.itm_head, self.word_head]
        if choose_pairs is not None:
            pairs = choose_pairs(Encoded(image, text, self.scale, image_states, text_states, padding))
            out["match"] = self.match_states(pairs.text_states, pairs.padding, pairs.image_states)
            out["match_labels"] = pairs.labels
            unused = [self.word_head]
            if masked_tokens is not None and masked_positions is not None and masked_labels is not None:
                positions = masked_positions[pairs.own]
                used = positions.nonzero(as_tuple=True)
                out["words"] = self.masked_words(masked_tokens[pairs.own], used[0], positions[used], image_states)
                out["word_labels"] = masked_labels[pairs.own][used]
                unused = []
        trained = [weight for part in unused for weight in part.parameters() if weight.requires_grad]
        out["anchor"] = sum((weight.sum() * 0.0 for weight in trained), self.temp * 0.0)
        return out

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, model_cfg: Any = None, args: Any = None
    ) -> Any:
        """Load stored weights; a checkpoint of another window fits, such as one trained at a lower resolution."""
        return super().load_state_dict(resize_tables(state_dict, self.cfg.image_window), strict, model_cfg, args)

    def max_positions(self) -> int:
        """Longest caption in tokens."""
        return self.text_encoder.max_positions

    def portable_text(self) -> nn.Module:
        """The text tower of the dual encoder, for other runtimes."""
        from mclip_fairseq.models.portable import PortableText

        return PortableText(self.text_encoder, "first", [], self.text_proj)

    def portable_image(self, image_tower: nn.Module | None) -> nn.Module:
        """Swin and its projection, for other runtimes; the model has its own image tower."""
        from mclip_fairseq.models.portable import PortableImage

        self.image_tower.use_plain_attention()
        return PortableImage(self, image_tower)


def text_halves(cfg: Any, dictionary: Any) -> tuple[XLMREncoder, dict[str, Tensor]]:
    """The text encoder, and the weights that the fusion encoder starts from (none for a random one).

    Args:
        cfg: options; the number of layers and the sizes of an archive are written into them.
        dictionary: one entry per row of the embedding table.

    Raises:
        UserError: layers that the archive does not have.
    """
    if not cfg.text_encoder:
        return XLMREncoder.build("", cfg, dictionary), {}
    archive = XLMREncoder.build(cfg.text_encoder, cfg, dictionary)
    layers = chosen_layers(cfg.text_layers, cfg.encoder_layers)
    cfg.encoder_layers = cfg.fusion_layers = len(layers) // 2
    args = Namespace(**{**vars(archive.args), "encoder_layers": cfg.encoder_layers})
    encoder = XLMREncoder(args, dictionary)
    stack = "sentence_encoder.layers."
    lower: dict[str, Tensor] = {}
    upper: dict[str, Tensor] = {}
    for name, weight in archive.encoder.state_dict().items():
        if not name.startswith(stack):
            lower[name] = weight
            continue
        number, _, rest = name.removeprefix(stack).partition(".")
        if int(number) in layers:
            place = layers.index(int(number))
            half, own = (lower, stack) if place < cfg.encoder_layers else (upper, "layers.")
            half[f"{own}{place % cfg.encoder_layers}.{rest}"] = weight
    encoder.encoder.load_state_dict(lower)
    return encoder, upper


@register_model_architecture("ccrk", "ccrk_base")
def ccrk_base(args: Namespace) -> None:
    """As published: Swin base at 224 pixels, twelve layers of XLM-R large."""


@register_model_architecture("ccrk", "ccrk_tiny")
def ccrk_tiny(args: Namespace) -> None:
    """For tests."""
    set_defaults(
        args,
        **XLMR_TINY,
        fusion_layers=2,
        image_size=32,
        image_window=4,
        image_embed_dim=8,
        image_depths="2,2",
        image_heads="1,2",
        joint_dim=16,
    )
