"""MLA: its published state dicts, our training checkpoints of it, and directories of `mclip-convert mla`.

config.json          format, languages, sizes, identity of CLIP; the language, where it was exported for one
model.safetensors    acquirers, shared table and linear map
clip/                a `transformers` directory: CLIP, its image processor and, for English, its tokenizer
tokenizer/           the tokenizer of all other languages
"""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from mclip_fairseq.data.hf_tokenizer import PieceTokenizer
from mclip_fairseq.formats.openai_clip import Preprocessing, image_processor, pixels_along_an_edge, to_clip_model
from mclip_fairseq.formats.openai_names import to_openai
from mclip_fairseq.formats.saved import CONFIG, REMEDY, read_config
from mclip_fairseq.formats.towers import count_known_by, option_settings
from mclip_fairseq.models.freezing import IDENTITY, encode_identity
from mclip_fairseq.models.mla import MLAModel
from mclip_fairseq.models.mla_options import ENGLISH, MLAModelConfig
from mclip_fairseq.models.mla_parts import WEIGHTS, clip_vocabulary, read_base
from mclip_fairseq.models.settings import structure_settings, tokenizer_settings, transform_settings
from mclip_fairseq.models.teacher import DualEncoderTeacher
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.fields import Kind, check_fields
from mclip_fairseq.storage.files import first_line
from mclip_fairseq.storage.places import StoredParts

VERSION = 1
CLIP, TOKENIZER = "clip", "tokenizer"
SIZES: dict[str, Kind] = {
    **{"acquirers": str, "acquirer_dim": int, "embedding_rows": int, "embedding_dim": int, "end_token": int},
    "clip_embedding": bool | None,  # absent in directories of version 0.2
}
FIELDS = {"version": int, "model": dict, "identity": dict, "language": str | None}
SHORT_CODES = {
    **{"ara": "ar", "ces": "cs", "cmn": "zh", "deu": "de", "eng": "en", "fra": "fr", "hin": "hi", "ind": "id"},
    **{"ita": "it", "jpn": "ja", "kor": "ko", "nld": "nl", "pol": "pl", "por": "pt", "rus": "ru", "spa": "es"},
    **{"swe": "sv", "tha": "th", "tur": "tr", "ukr": "uk", "vie": "vi", "zho": "zh"},
}
ACQUIRER = re.compile(r"transformer\.resblocks\.(\d+)\.acquirer\.([^.]+)\.mlp\.(c_fc|c_proj)\.(weight|bias)")
# Stored by the released code, and used nowhere in it.
UNUSED = re.compile(r"transformer\.resblocks\.\d+\.acquirer\.([^.]+\.)?ln\.(weight|bias)")
LAYERS = {"c_fc": "down", "c_proj": "up"}
SHARED = {
    "multilingual_embedding.weight": "embedding.weight",
    "multilingual_embedding_linear.weight": "embedding_linear.weight",
    "multilingual_embedding_linear.bias": "embedding_linear.bias",
}
# What loading a checkpoint as --clip_ckpt rounds to half in the released code: layers, not tables, positions or norms.
ROUNDED = re.compile(
    r"(text_projection|visual\.proj|visual\.conv1\.weight|multilingual_embedding_linear\.\w+"
    r"|.*\.(attn\.(in_proj_|out_proj\.)|(mlp\.)?c_(fc|proj)\.)(weight|bias))"
)


@dataclass(frozen=True)
class Published:
    """A state dict of the released code in two.

    Attributes:
        body: CLIP under OpenAI's names.
        acquired: table and linear map, which a file made without `new_embed` lacks, and acquirers, under this
            project's names.
        languages: that have acquirers, in the file's order.
    """

    body: dict[str, Tensor]
    acquired: dict[str, Tensor]
    languages: list[str]


def split_published(state: Mapping[str, Tensor], source: str) -> Published:
    """CLIP apart from what MLA adds to it.

    Args:
        state: a state dict of the released code.
        source: for messages.

    Raises:
        UserError: it has no acquirers with a language.
    """
    body: dict[str, Tensor] = {}
    acquired: dict[str, Tensor] = {}
    languages: list[str] = []
    for name, tensor in state.items():
        if match := ACQUIRER.fullmatch(name):
            layer, language, part, kind = match.groups()
            acquired[f"acquirers.{language}.{layer}.{LAYERS[part]}.{kind}"] = tensor.float()
            if language not in languages:
                languages.append(language)
        elif name in SHARED:
            acquired[SHARED[name]] = tensor.float()
        elif not UNUSED.fullmatch(name):
            body[name] = tensor
    missing = [name for name, own in SHARED.items() if own not in acquired]
    if not languages or 0 < len(missing) < len(SHARED):
        raise UserError(
            f"{source}: lacks {missing[0] if languages else 'acquirers with a language'}; give a checkpoint of MLA "
            "with m_acquirer, or pass one as --acquirers"
        )
    return Published(body, acquired, languages)


def merge_published(body: Mapping[str, Tensor], acquirers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The body of one file with the acquirers, table and linear map of another, as the released inference merges them.

    Args:
        body: loaded as `clip_ckpt`.
        acquirers: loaded as `acquirer_ckpt`: of it only names with `acquirer` or `multilingual_embedding` count.
    """
    return dict(body) | {
        name: tensor for name, tensor in acquirers.items() if "acquirer" in name or "multilingual_embedding" in name
    }


def round_as_released(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights as the released code has them after reading a file as `clip_ckpt`: layers rounded to half."""
    return {name: tensor.half().float() if ROUNDED.fullmatch(name) else tensor for name, tensor in state.items()}


def to_published(model: MLAModel, values: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Weights under the names of the released code, which reads them with `strict=False`.

    Args:
        model: whose CLIP has a ViT.
        values: name in this project -> tensor, such as gradients; None: the weights.
    """
    values = model.own_weights() if values is None else values
    backwards = {own: name for name, own in SHARED.items()} | {own: name for name, own in LAYERS.items()}
    clip = {name.removeprefix("clip."): tensor for name, tensor in values.items() if name.startswith("clip.")}
    state = to_openai(clip)
    for name, tensor in values.items():
        if name.startswith("acquirers."):
            _, language, layer, part, kind = name.split(".")
            state[f"transformer.resblocks.{layer}.acquirer.{language}.mlp.{backwards[part]}.{kind}"] = tensor
        elif name in backwards:
            state[backwards[name]] = tensor
    return state


def model_of(published: Published, source: str, end_token: int, tokenizer: Any = None, resize: int = 0) -> MLAModel:
    """The model of published weights.

    Args:
        published: the weights.
        source: of CLIP, for messages and as its name.
        end_token: id that ends a text of the other languages, `[SEP]`.
        tokenizer: CLIP's, of `transformers`; None: English text is refused.
        resize: pixels of an image's shorter edge before the crop; 0: CLIP's resolution.

    Raises:
        UserError: weights that are missing, unknown or misshapen.
    """
    clip = to_clip_model(published.body, source)
    processor = image_processor(pixels_along_an_edge(clip), Preprocessing(resize=resize))
    table = published.acquired.get("embedding.weight")
    first = published.acquired.get(f"acquirers.{published.languages[0]}.0.down.weight")
    if first is None:
        raise UserError(f"{source}: lacks the acquirer of the first layer; copy the file again")
    cfg = MLAModelConfig(
        acquirers=",".join(published.languages),
        acquirer_dim=len(first),
        embedding_rows=0 if table is None else table.shape[0],
        embedding_dim=0 if table is None else table.shape[1],
        end_token=clip_vocabulary(clip.config.text_config)[1] if table is None else end_token,
        clip_embedding=table is None,
    )
    model = MLAModel(cfg, DualEncoderTeacher(clip, processor, tokenizer, Path(source).stem, None))
    load_strictly(model, published.acquired, source)
    return model


def load_strictly(model: MLAModel, weights: Mapping[str, Tensor], source: str | Path) -> None:
    """Load weights, and refuse any that do not fit.

    Raises:
        UserError: with what torch says about them.
    """
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:  # what torch says of weights that are missing, unknown or misshapen
        raise UserError(f"{source}: its options do not fit its weights: {first_line(error)}") from error


class MLATower:
    """An `mla`, of which a view reads one language.

    Args:
        module: the model, with its CLIP.
        tokenizers: path -> tokenizer: `en`, and `other` for every acquired language; None where there is none.
        name: for tables.
        language: that texts are read in; empty: texts are refused.
    """

    writer = "mclip_fairseq.export.mla"
    image_module = None
    matcher = None

    def __init__(
        self, module: MLAModel, tokenizers: Mapping[str, PieceTokenizer | None], name: str, language: str = ""
    ) -> None:
        self.module: Any = module
        self.tokenizers = dict(tokenizers)
        self.name = name
        self.language = language
        self.dim = self.feature_dim = module.dim
        self.languages = [ENGLISH, *module.languages]
        self.identity: dict[str, Any] = dict(module.identity)

    def for_language(self, language: str) -> MLATower:
        """The view of one language.

        Args:
            language: one of `languages`, or its code of three letters, as some benchmarks have them.

        Raises:
            UserError: a language that the model does not have.
        """
        language = language if language in self.languages else SHORT_CODES.get(language, language)
        if language not in self.languages:
            raise UserError(f"{self.name}: does not have the language {language!r}; it has {', '.join(self.languages)}")
        return MLATower(self.module, self.tokenizers, self.name, language)

    @property
    def reads_any_language(self) -> bool:
        """Whether the view has a language."""
        return bool(self.language)

    @property
    def max_tokens(self) -> int:
        """Tokens of the longest text."""
        limit: int = self.module.max_positions()
        return limit

    @property
    def tokenizer(self) -> PieceTokenizer:
        """The tokenizer of the language."""
        if not self.language:
            raise UserError(
                f"{self.name}: reads each language in its own way; name one with for_language, of "
                f"{', '.join(self.languages)}"
            )
        tokenizer = self.tokenizers[ENGLISH if self.language == ENGLISH else "other"]
        if tokenizer is None:
            place = "beside its CLIP" if self.language == ENGLISH else "given as text_encoder= or --text-tokenizer"
            raise UserError(f"{self.name}: has no tokenizer to read {self.language}; it must be {place}")
        return tokenizer

    def tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Model input of texts, over-long ones cut."""
        return self.model_input(self.tokenizer(texts))

    def model_input(self, tokens: Tensor) -> dict[str, Tensor]:
        """Model input of (texts, length) token ids.

        Raises:
            UserError: ids of another tokenizer.
        """
        size = len(self.tokenizer.dictionary)
        if tokens.numel() and int(tokens.max()) >= size:
            raise UserError(
                f"token id {int(tokens.max())} is beyond the {size} entries of the vocabulary of {self.language}; "
                "tokenise with this model's tokenizer"
            )
        return {"tokens": tokens}

    def token_mask(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """(texts, length) bool, True up to the first end token; the tower is causal and does not read what follows."""
        ends = inputs["tokens"].eq(self.tokenizer.dictionary.eos()).long()
        return (ends.cumsum(1) - ends).eq(0)

    def count_known(self, texts: Sequence[str]) -> list[tuple[int, int]]:
        """Per text, how many of its pieces the tokenizer knows, and how many it has."""
        return count_known_by(self.tokenizer.tokenizer, self.tokenizer(list(texts)))

    def text_settings(self) -> Any:
        """Structure, options, tokenizers, and the language of a view."""
        tokenizers = {path: own and tokenizer_settings(own.tokenizer) for path, own in self.tokenizers.items()}
        return [
            structure_settings(self.module),
            option_settings(self.module),
            tokenizers,
            self.max_tokens,
            self.language,
        ]

    def image_settings(self) -> Any:
        """CLIP's image processor; its weights are among those of the module."""
        return transform_settings(self.module.image_transform)

    def encode_text(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """(texts, dim), L2-normalised."""
        return self.module.encode_text(**inputs, language=self.language)

    def encode_pixels(self, pixel_values: Tensor) -> Tensor:
        """(images, channels, height, width) -> (images, dim), L2-normalised."""
        return self.module.encode_image(pixel_values)

    def project(self, features: Tensor) -> Tensor:
        """(images, dim) features of CLIP -> (images, dim), L2-normalised."""
        return self.module.encode_image(features=features)

    @property
    def transform(self) -> Callable[[list[Image.Image]], Tensor]:
        """CLIP's image preprocessing."""
        return self.module.image_transform

    @property
    def scale(self) -> Tensor:
        """Factor of the cosine, 0-d."""
        return self.module.scale.detach().float().cpu()


def make_tower(module: MLAModel, tokenizer: PieceTokenizer | None, name: str) -> MLATower:
    """A tower with CLIP's own tokenizer for English.

    Raises:
        UserError: a tokenizer whose ids are not those of the model.
    """
    english = None
    if module.clip_tokenizer is not None:
        english = PieceTokenizer(module.clip_tokenizer, f"{name}'s CLIP", module.max_positions())
        module.check_text_path(ENGLISH, english.dictionary)
    if module.cfg.clip_embedding:
        tokenizer = english
    elif tokenizer is not None:
        tokenizer.max_tokens = module.max_positions()
        module.check_text_path(module.languages[0], tokenizer.dictionary)
    return MLATower(module, {ENGLISH: english, "other": tokenizer}, name)


def load_checkpoint(
    parts: StoredParts,
    kind: type[MLAModel],
    options: Namespace,
    weights: Mapping[str, Tensor],
    text_encoder: str,
    teacher: str,
) -> MLATower:
    """A training checkpoint; `formats.training` has read it.

    Args:
        parts: of the checkpoint.
        kind: the model.
        options: its options.
        weights: the stored state dict.
        text_encoder: tokenizer of the other languages, instead of the one named in the options.
        teacher: where CLIP is now, likewise.

    Raises:
        UserError: a part of the model is not where the options say.
    """
    file = parts.file
    kind.use_stored_weights(options)
    kind.check_sizes(file, options, weights)
    for name in ("base", "embedding"):
        if getattr(options, name):
            setattr(options, name, parts.find(name, getattr(options, name)))
    if teacher:
        options.teacher, options.teacher_revision = teacher, ""
    elif options.teacher:
        options.teacher = parts.find("teacher", options.teacher)
    stored = Namespace(teacher_identity={}, needs_teacher=True)
    module = kind.build_model(options, stored)
    load_strictly(module, weights, file)
    source = text_encoder or (options.text_tokenizer and parts.find("text_tokenizer", options.text_tokenizer))
    tokenizer = PieceTokenizer.from_pretrained(source) if source else None
    return make_tower(module, tokenizer, f"{file.parent.name}/{file.stem}")


def load_directory(path: Path) -> MLATower:
    """Read a directory of `mclip-convert mla`.

    Raises:
        UserError: a file is missing or damaged, or parts do not belong together.
    """
    place = path / CONFIG
    config = check_fields(place, read_config(path), FIELDS, REMEDY)
    if config["version"] != VERSION:
        raise UserError(f"{place}: version {config['version']} is not read here; update mclip_fairseq")
    sizes = check_fields(place, config["model"], SIZES, REMEDY)
    own_table = bool(sizes.get("clip_embedding"))
    weights = read_base(path, shared=not own_table)
    options = MLAModelConfig(**{name: sizes[name] for name in SIZES if name in sizes} | {"clip_embedding": own_table})
    MLAModel.check_sizes(place, options, weights)
    module = MLAModel(options, DualEncoderTeacher.from_pretrained(path / CLIP))
    load_strictly(module, weights | {IDENTITY: encode_identity(config["identity"])}, path / WEIGHTS)
    tokenizer = PieceTokenizer.from_pretrained(path / TOKENIZER)
    tower = make_tower(module, tokenizer, path.resolve().name)
    return tower.for_language(config["language"]) if config.get("language") else tower
