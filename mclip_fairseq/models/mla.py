"""Model `mla`: acquirers of further languages inside CLIP's own text tower (Zhang et al., NeurIPS 2022)."""

import logging
import re
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from fairseq.models import register_model, register_model_architecture
from torch import Tensor, nn

from mclip_fairseq.models.acquirers import block_states, make_acquirers, pool_first, with_positions
from mclip_fairseq.models.architectures import set_defaults
from mclip_fairseq.models.autocast import unit
from mclip_fairseq.models.dual_encoder import Columns, DualEncoder, ImageTransform
from mclip_fairseq.models.freezing import IDENTITY, check_same_parts, decode_identity, state_hash
from mclip_fairseq.models.mla_options import ENGLISH, MLAModelConfig, check_options, split_names
from mclip_fairseq.models.mla_parts import (
    check_unchanged,
    clip_vocabulary,
    covered_languages,
    end_token_of,
    projected,
    read_base,
    text_tower,
    word_embeddings,
)
from mclip_fairseq.models.mla_portable import TextPath
from mclip_fairseq.models.teacher import DualEncoderTeacher
from mclip_fairseq.models.text_layers import check_layers, parse_layers, split_layers
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.feature_files import same_teacher
from mclip_fairseq.storage.features import FeatureStore

logger = logging.getLogger(__name__)
# The released code's factor of the cosine in all stages; CLIP's own training ends there.
SCALE = 100.0
QUERY_KEY_VALUE = re.compile(r"[qkv]_proj(?=\.(weight|bias)$)")
CITATION = """@inproceedings{zhang-etal-2022-mla,
  title = {Generalizing Multimodal Pre-training into Multilingual via Language Acquisition},
  author = {Zhang, Liang and Hu, Anwen and Jin, Qin},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2022},
}"""


@register_model("mla", dataclass=MLAModelConfig)
class MLAModel(DualEncoder):
    """CLIP with acquirers: English takes CLIP's own path, other languages the same blocks with their acquirers.

    Args:
        cfg: options, with the table's sizes and the end token filled in.
        clip: CLIP, its image processor and tokenizer.
    """

    columns = Columns(
        required=(("text_tokens",), ("language",)), optional=("image_features", "pixel_values", "teacher_text")
    )
    one_dictionary = False
    format_module = "mclip_fairseq.formats.mla"
    citation = CITATION

    def __init__(self, cfg: MLAModelConfig, clip: DualEncoderTeacher) -> None:
        super().__init__()
        self.cfg: Any = cfg
        self.clip, self.clip_tokenizer, self.transform = clip.model, clip.tokenizer, clip.transform
        self.identity = {"text_encoder": None, "teacher": dict(clip.identity)}
        self.languages = split_names(cfg.acquirers)
        text = text_tower(self.clip)[0].config
        self.distilled = parse_layers(cfg.distill_layers, "--distill-layers", text.num_hidden_layers)
        if not cfg.clip_embedding:
            self.embedding = nn.Embedding(cfg.embedding_rows, cfg.embedding_dim)
            self.embedding_linear = nn.Linear(cfg.embedding_dim, text.hidden_size)
        self.acquirers = make_acquirers(self.languages, text.num_hidden_layers, text.hidden_size, cfg.acquirer_dim)
        for name, weight in self.named_parameters():
            # Read by the optimizer bert_adam. OpenAI keeps query, key and value in one matrix, and clips them as one.
            weight.is_bias = name.endswith("bias")
            if QUERY_KEY_VALUE.search(name):
                weight.clip_group = QUERY_KEY_VALUE.sub("in_proj", name)
        self.freeze()

    @classmethod
    def fit_to_stores(cls, cfg: Any, images: FeatureStore | None, texts: FeatureStore | None) -> None:
        """As `DualEncoder.fit_to_stores`; text features may hold states of layers besides."""
        if texts is not None:
            check_layers(texts, cfg.distill_layers)
        texts = None if cfg.distill_layers else texts
        if images is not None or texts is not None:
            super().fit_to_stores(cfg, images, texts)

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> "MLAModel":
        """Build from options; sizes that come from files are kept with the options.

        Args:
            cfg: options.
            task: with `needs_teacher`, `teacher_identity` and `dictionary_of`; the last is asked for sizes that the
                options leave open.

        Raises:
            UserError: options that contradict each other, or files that cannot be used.
        """
        languages, trained = split_names(cfg.acquirers), split_names(cfg.train_langs)
        check_options(cfg, languages, trained)
        clip = DualEncoderTeacher.from_pretrained(cfg.teacher, revision=cfg.teacher_revision or None)
        made_by = dict(task.teacher_identity)
        if made_by and not same_teacher(made_by, clip.identity):
            raise UserError(f"--teacher is {clip.identity}, but the features are of {made_by}; give one CLIP")
        if "clip" in split_names(cfg.train_parts) and made_by and not task.needs_teacher:
            raise UserError("--train-parts clip trains the image tower: give --image-root instead of --image-features")
        base = read_base(Path(cfg.base), shared=not cfg.clip_embedding) if cfg.base else {}
        table = word_embeddings(cfg.embedding) if cfg.embedding else base.get("embedding.weight")
        if table is not None:
            cfg.embedding_rows, cfg.embedding_dim = table.shape
        if cfg.embedding_rows <= 0 and not cfg.clip_embedding:
            cfg.embedding_rows = len(task.dictionary_of(languages[0]))
        if cfg.clip_embedding:
            cfg.end_token = clip_vocabulary(text_tower(clip.model)[0].config)[1]
        if cfg.end_token < 0 and cfg.base:
            cfg.end_token = end_token_of(Path(cfg.base))
        if cfg.end_token < 0:
            cfg.end_token = task.dictionary_of(languages[0]).eos()
        model = cls(cfg, clip)
        model.start_from(table, base)
        return model

    def start_from(self, table: Tensor | None, base: Mapping[str, Tensor]) -> None:
        """Copy the parts that files give; the rest stays random."""
        if base:
            self.load_state_dict(base)
        if table is not None:
            with torch.no_grad():
                self.embedding.weight.copy_(table)
        if self.cfg.drop_frozen:
            own = self.own_weights()
            left_out = {name: own[name] for name in self.dropped_names() & own.keys() if not name.startswith("clip.")}
            self.identity["text_encoder"] = {"sha256": state_hash(left_out)}

    def own_weights(self) -> dict[str, Tensor]:
        """Every weight, also those that a checkpoint leaves out."""
        return dict(nn.Module.state_dict(self))

    def freeze(self) -> None:
        """Train what `train_parts` and `train_langs` name, and nothing else."""
        parts, trained = split_names(self.cfg.train_parts), split_names(self.cfg.train_langs) or self.languages
        self.trains_clip = "clip" in parts
        # Whether CLIP is as `teacher` has it, so that checkpoints can leave it out.
        self.clip_is_original = not self.trains_clip
        prefixes: dict[str, tuple[str, ...]] = {
            **{"embedding": ("embedding.",), "linear": ("embedding_linear.",), "clip": ("clip.",)},
            "acquirers": tuple(f"acquirers.{language}." for language in trained),
        }
        names = tuple(prefix for part in parts for prefix in prefixes[part])
        for name, weight in self.named_parameters():
            weight.requires_grad_(name.startswith(names) and name != "clip.logit_scale")  # the factor is fixed

    def train(self, mode: bool = True) -> "MLAModel":
        """A frozen CLIP stays in eval mode."""
        super().train(mode)
        if not self.trains_clip:
            self.clip.eval()
        return self

    @property
    def dim(self) -> int:
        """Width of CLIP's joint space."""
        dim: int = text_tower(self.clip)[1].out_features
        return dim

    @property
    def scale(self) -> Tensor:
        """Factor of the cosine, 0-d: 100 in every stage."""
        return self.clip.logit_scale.new_full((), SCALE, dtype=torch.float32)

    @property
    def text_description(self) -> str:
        """The text path in a few words, for model cards."""
        return f"CLIP's text tower with acquirers for {', '.join(self.languages)}"

    @property
    def image_transform(self) -> ImageTransform:
        """CLIP's image preprocessing."""
        return self.transform

    def max_positions(self) -> int:
        """Longest caption in tokens, 77."""
        return int(text_tower(self.clip)[0].config.max_position_embeddings)

    def check_text_path(self, language: str, dictionary: Any) -> None:
        """Refuse captions whose ids are not those of their language's path.

        Raises:
            UserError: another tokenizer, or a language without acquirers.
        """
        if language == ENGLISH and self.distilled:
            raise UserError("--distill-layers compares with English; leave en out of --langs")
        if language not in [ENGLISH, *self.languages]:
            raise UserError(f"{language} has no acquirers; name it in --acquirers ({', '.join(self.languages)})")
        if language in self.languages and not self.cfg.clip_embedding:
            rows, end, tokenizer = self.cfg.embedding_rows, self.cfg.end_token, "the tokenizer of the shared table"
        else:
            (rows, end), tokenizer = clip_vocabulary(text_tower(self.clip)[0].config), "CLIP's tokenizer"
        if len(dictionary) > rows or dictionary.eos() != end:
            raise UserError(
                f"the captions in {language} have {len(dictionary)} token ids ending with {dictionary.eos()}, but the "
                f"model reads {rows} ending with {end}; make their data directory with {tokenizer}"
            )

    def encode_clip_text(self, tokens: Tensor) -> Tensor:
        """English by CLIP's own path: (batch, length) ids of CLIP's tokenizer -> (batch, dim), not normalised."""
        return projected(self.clip.get_text_features(input_ids=tokens))

    def text_features(self, tokens: Tensor, language: str) -> Tensor:
        """Text in CLIP's space, not normalised.

        Args:
            tokens: (batch, length) ids of the language's tokenizer, right-padded, at most `max_positions` long.
            language: one of `languages`, or `en`.

        Returns:
            (batch, dim).
        """
        if language not in self.languages:
            return self.encode_clip_text(tokens)
        return self.layers_and_features(tokens, language, ())[1]

    def layers_and_features(self, tokens: Tensor, language: str, layers: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """As `text_features`, with the states at the end of the text after some layers, (batch, width) each."""
        text_model, projection = text_tower(self.clip)
        if self.cfg.clip_embedding:
            embedded = text_model.embeddings.token_embedding(tokens)
        else:
            embedded = self.embedding_linear(self.embedding(tokens))
        kept, end = {0: with_positions(text_model, embedded)} if 0 in layers else {}, self.cfg.end_token
        blocks = block_states(text_model, embedded, list(self.acquirers[language].children()))
        for number, states in enumerate(blocks, 1):
            if number in layers:
                kept[number] = states
        # The first end token is where the text ends, however many a caption holds.
        pooled = pool_first(text_model.final_layer_norm(states), tokens, end)
        return [pool_first(kept[layer], tokens, end) for layer in layers], projection(pooled)

    def encode_text(self, tokens: Tensor, language: str) -> Tensor:
        """Text in CLIP's space, (batch, dim), L2-normalised; see `text_features`."""
        return unit(self.text_features(tokens, language))

    def encode_image(self, pixel_values: Tensor | None = None, features: Tensor | None = None) -> Tensor:
        """(batch, channels, height, width) pixels, or (batch, dim) features of CLIP -> (batch, dim), L2-normalised."""
        return unit(self.image_features(pixel_values) if features is None else features)

    def image_features(self, pixel_values: Tensor | None) -> Tensor:
        """(batch, channels, height, width) -> (batch, dim) of CLIP, not normalised."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trains_clip):
            return projected(self.clip.get_image_features(pixel_values=pixel_values))

    def forward(
        self,
        text_tokens: Tensor,
        language: str,
        image_features: Tensor | None = None,
        pixel_values: Tensor | None = None,
        teacher_text: Tensor | None = None,
    ) -> dict[str, Tensor | None]:
        """What every stage reads; a criterion takes its part.

        Args:
            text_tokens: (batch, length) ids.
            language: of the batch.
            image_features: (batch, dim) of CLIP's image tower; or
            pixel_values: (batch, channels, height, width).
            teacher_text: (batch, dim) CLIP's features of the English texts.

        Returns:
            `student`, `image_features` and `teacher_text`, (batch, dim) as they are; `text` and `image`, (batch, dim),
            L2-normalised; `scale`, 0-d, and the same as `distillation_scale`, for a contrast with the teacher. None
            where the input was. With --distill-layers also `student_layers` and `teacher_layers`, (batch, width) each.
        """
        layers: dict[str, Any] = {}
        if self.distilled and teacher_text is not None:
            own, student = self.layers_and_features(text_tokens, language, self.distilled)
            states, teacher_text = split_layers(teacher_text, self.distilled, self.dim)
            layers = {"student_layers": own, "teacher_layers": states}
        else:
            student = self.text_features(text_tokens, language)
        if self.training:
            student = student + self.idle(language)
        if pixel_values is not None and image_features is None:
            image_features = self.image_features(pixel_values)
        return {
            "student": student,
            "text": unit(student),
            "image": None if image_features is None else unit(image_features),
            "image_features": image_features,
            "teacher_text": teacher_text,
            "scale": self.scale,
            "distillation_scale": self.scale,
            **layers,
        }

    def idle(self, language: str) -> Tensor:
        """0-d zero that gives the weights which this batch does not use a gradient of zeros.

        A batch uses the acquirers of one language. Without this the others would have no gradient on one rank, where
        the optimizer leaves them alone, but zeros on several ranks, where momentum and weight decay move them: one
        rank and two would train different models.
        """
        used = ("embedding", f"acquirers.{language}.") if language in self.languages else ()
        unused = [
            weight for name, weight in self.named_parameters() if weight.requires_grad and not name.startswith(used)
        ]
        return torch.stack([weight.flatten()[0] * 0.0 for weight in unused]).sum() if unused else self.scale * 0.0

    def portable_path(self, language: str) -> nn.Module:
        """The text path of one language as a module of (batch, length) ids; see `DualEncoder.portable_text`."""
        return TextPath(self, language).eval()

    @classmethod
    def use_stored_weights(cls, cfg: Any) -> None:
        """Files whose weights the checkpoint has are not needed any more."""
        if not cfg.drop_frozen:
            cfg.base = cfg.embedding = ""

    @classmethod
    def check_sizes(cls, place: Path, options: Any, weights: Mapping[str, Tensor]) -> None:
        """Refuse options whose table or acquirers have other sizes than the weights."""
        for option, ending, axis in SIZES:
            own = [name for name in weights if name.endswith(ending) and not name.startswith("clip.")]
            sizes = {weights[name].shape[axis] for name in own}
            if sizes and sizes != {getattr(options, option)}:
                raise UserError(
                    f"{place}: says {option} {getattr(options, option)}, but its weights have {max(sizes)}; put back "
                    "the file that belongs to them"
                )

    def external_parts(self) -> tuple[str, ...]:
        """CLIP, unless it has been trained; with --drop-frozen also what --base or --embedding holds."""
        if self.cfg.drop_frozen and self.cfg.base:
            return ("clip.", "embedding.", "embedding_linear.", "acquirers.")
        parts = ("clip.",) if self.clip_is_original else ()
        return (*parts, "embedding.") if self.cfg.drop_frozen else parts

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, model_cfg: Any = None, args: Any = None
    ) -> Any:
        """Load stored weights; languages that the checkpoint does not have keep their start.

        Raises:
            UserError: CLIP or a left-out part is not the one that the checkpoint was trained with.
        """
        state = {name: value for name, value in state_dict.items() if not self.is_foreign_acquirer(name)}
        stored = decode_identity(state.pop(IDENTITY)) if IDENTITY in state else {}
        left_out = stored.get("text_encoder") is not None
        check_same_parts(self.identity, stored, (self.cfg.base or self.cfg.embedding or "new") if left_out else None)
        own, dropped = self.own_weights(), self.dropped_names()
        has_clip = any(name.startswith("clip.") for name in state)
        needed = self.languages if self.cfg.acquirer_dim else []
        new = set(needed) - covered_languages(state, needed)
        kept = tuple(f"acquirers.{language}." for language in new) + (() if has_clip else ("clip.",))
        if self.identity["text_encoder"] is not None:
            # What is left out at saving comes from the file again: it must not be replaced here.
            check_unchanged(own, {name: state[name] for name in dropped & state.keys()}, self.cfg)
        elif new:
            logger.info("languages that start at random: %s", ", ".join(sorted(new)))
        absent = {name for name in own if name in dropped or name.startswith(kept)}
        state.update({name: own[name] for name in absent - state.keys()})
        result = nn.Module.load_state_dict(self, state, strict)
        self.clip_is_original &= not has_clip
        return result

    def is_foreign_acquirer(self, name: str) -> bool:
        """Whether a weight belongs to a language that this model does not have."""
        return name.startswith("acquirers.") and name.split(".")[1] not in self.languages


# Option -> the weights that show it, and in which dimension.
SIZES = (
    ("embedding_rows", "embedding.weight", 0),
    ("embedding_dim", "embedding.weight", 1),
    ("acquirer_dim", ".down.weight", 0),
)


@register_model_architecture("mla", "mla_base")
def mla_base(args: Namespace) -> None:
    """The published sizes: 256 inside an acquirer, mBERT's table."""


@register_model_architecture("mla", "mla_tiny")
def mla_tiny(args: Namespace) -> None:
    """For tests."""
    set_defaults(args, acquirer_dim=8, embedding_dim=12)
