"""A checkpoint of `fairseq-train`, read for inference."""

import dataclasses
import importlib
from argparse import Namespace
from collections.abc import Mapping
from enum import EnumMeta
from pathlib import Path
from typing import Any

from fairseq.data import Dictionary
from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_DATACLASS_REGISTRY
from torch import Tensor

from mclip_fairseq.data.hf_tokenizer import PieceTokenizer
from mclip_fairseq.data.tokenizer import XLMRTokenizer
from mclip_fairseq.formats.towers import Tower, TrainedTower
from mclip_fairseq.models.dual_encoder import DualEncoder
from mclip_fairseq.models.freezing import IDENTITY, decode_identity
from mclip_fairseq.models.settings import stored_image_settings
from mclip_fairseq.models.stored_options import missing_options
from mclip_fairseq.models.teacher import DualEncoderTeacher
from mclip_fairseq.registration import import_components
from mclip_fairseq.storage.checkpoints import load_checkpoint
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.fields import check_fields
from mclip_fairseq.storage.files import first_line
from mclip_fairseq.storage.places import StoredParts

TASK_OPTIONS = {"langs": str | None, "max_caption_tokens": int | None, "max_sentence_tokens": int | None}
MAX_TOKENS = 512


def load_training_checkpoint(file: Path, text_encoder: str = "", teacher: str = "") -> Tower:
    """Rebuild a trained model.

    Args:
        file: the checkpoint.
        text_encoder: directory with the text encoder's archive, instead of the one named in the checkpoint.
        teacher: Hub name or directory of the teacher, likewise.

    Raises:
        UserError: not a checkpoint of this project, or a part of the model is not where the checkpoint says.
    """
    state = load_checkpoint(file)
    if not isinstance(state.get("cfg"), dict) or not isinstance(state.get("model"), dict):
        raise UserError(f"{file}: is not a training checkpoint of this project; it has no configuration")
    stored, task = state["cfg"].get("model"), state["cfg"].get("task")
    if not isinstance(stored, dict) or not isinstance(task, dict):
        raise UserError(f"{file}: is not a training checkpoint of this project; mclip-convert reads published ones")
    kind = dual_encoder_class(stored.get("_name"), file)
    options = stored_options(kind, stored, file)
    check_fields(file, task, TASK_OPTIONS, "give another checkpoint")
    parts = StoredParts.of(file, state)
    # A model whose parts are not XLM-R beside a teacher has a reader of its own.
    if kind.format_module:
        reader = importlib.import_module(kind.format_module)
        own: Tower = reader.load_checkpoint(parts, kind, options, state["model"], text_encoder, teacher)
        return own
    directory = text_directory(parts, options, text_encoder)
    # Weights that the checkpoint holds need no archive; of the archive only the tokenizer is read then.
    kind.use_stored_weights(options)
    if options.text_encoder:
        options.text_encoder = str(directory)
    tokenizer = read_tokenizer(directory, options)
    module = build_module(kind, options, tokenizer.dictionary, state["model"], file)
    tokenizer.max_tokens = int(min(module.max_positions(), longest_text(task) or MAX_TOKENS))
    languages = module.encoder_languages or (task.get("langs") or "").split(",")
    images = TeacherSource(parts, options, teacher)
    return TrainedTower(
        module,
        tokenizer,
        name=f"{file.parent.name}/{file.stem}",
        languages=[lang for lang in languages if lang],
        load_teacher=images.load,
        read_settings=images.settings,
    )


def read_tokenizer(directory: Path, options: Any) -> XLMRTokenizer | PieceTokenizer:
    """The tokenizer of a model's text encoder.

    Args:
        directory: with the files of XLM-R's, or, for a text encoder of `transformers`, with its tokenizer.
        options: of the model.

    Raises:
        UserError: it cannot be read.
    """
    described = getattr(options, "text_config", "")
    return PieceTokenizer.from_pretrained(directory) if described else XLMRTokenizer(directory)


def longest_text(task: Mapping[str, Any]) -> int | None:
    """What the options of a task cut texts to, in tokens; None where they do not say."""
    longest: int | None = task.get("max_caption_tokens") or task.get("max_sentence_tokens")
    return longest


def text_directory(parts: StoredParts, options: Any, given: str) -> Path:
    """Where the text encoder's archive, or at least its tokenizer, is.

    Args:
        parts: of the checkpoint.
        options: of its model.
        given: the user's directory, or empty.

    Raises:
        UserError: it is not where the checkpoint or the user says.
    """
    if given:
        if not Path(given).is_dir():
            raise UserError(f"{given}: is not a directory; give the text encoder's")
        return Path(given)
    part = "text_encoder" if options.text_encoder else "text_tokenizer"
    if not getattr(options, part):
        raise UserError(
            f"{parts.file}: the checkpoint names no text_encoder; pass --text-encoder (in Python text_encoder=) with "
            "the directory that holds dict.txt and sentencepiece.bpe.model"
        )
    return Path(parts.find(part, getattr(options, part)))


@dataclasses.dataclass(frozen=True)
class TeacherSource:
    """The teacher that encodes a checkpoint's images, which is loaded when the first image comes.

    Attributes:
        parts: of the checkpoint.
        options: of its model; `teacher` is a name on the Hub or a directory, empty where it trained on features.
        given: the user's name for the teacher; empty where that of the options counts.
    """

    parts: StoredParts
    options: Any
    given: str

    def place(self) -> tuple[str, str | None]:
        """Directory or Hub name, and revision.

        Raises:
            UserError: there is none, or it is not where the checkpoint says.
        """
        if self.given:
            return self.given, None
        if not getattr(self.options, "teacher", ""):
            raise UserError(
                f"{self.parts.file}: was trained on features and names no teacher; pass --teacher (in Python "
                "teacher=) to encode images"
            )
        return self.parts.find("teacher", self.options.teacher), self.options.teacher_revision or None

    def load(self) -> DualEncoderTeacher:
        """Load it; only a name that the user gives downloads anything.

        Raises:
            UserError: there is none, or it is not on this machine.
        """
        source, revision = self.place()
        try:
            return DualEncoderTeacher.from_pretrained(source, revision, fetch=bool(self.given))
        except UserError as error:
            if self.given or Path(source).is_dir():
                raise
            raise UserError(
                f"{self.parts.file}: names the teacher {source!r}, which is not on this machine; name it with "
                "--teacher (teacher=) to download it"
            ) from error

    def settings(self) -> Any:
        """Its image settings, as far as they can be read without loading it; None without a teacher."""
        try:
            return stored_image_settings(*self.place())
        except UserError:  # loading it says what is missing
            return None


def dual_encoder_class(name: Any, place: Path) -> type[DualEncoder]:
    """The registered model of a stored name.

    Raises:
        UserError: it is unknown, or a model without an image side.
    """
    import_components("models")
    kind = ARCH_MODEL_REGISTRY.get(name) if isinstance(name, str) else None
    if kind is None or not issubclass(kind, DualEncoder):
        raise UserError(f"{place}: holds a model {name!r}, which has no image side; train with --arch mclip_base")
    return kind


def stored_options(kind: type[DualEncoder], stored: Mapping[str, Any], place: Path) -> Namespace:
    """The options of a model from a file, their types and choices checked; see `missing_options` for those it lacks.

    Raises:
        UserError: an option of the wrong type, or outside its choices.
    """
    config = MODEL_DATACLASS_REGISTRY[kind.registered_name()]
    options = missing_options(config, stored)
    kinds: dict[str, type] = {}
    for option in dataclasses.fields(config):
        if option.name in stored:
            options[option.name] = stored[option.name]
        if type(option.default) in (int, float, str, bool):
            kinds[option.name] = type(option.default)
        choices = [choice.value for choice in option.type] if isinstance(option.type, EnumMeta) else []
        if choices and options[option.name] not in choices:
            raise UserError(f"{place}: {option.name} is not one of {', '.join(choices)}; give another file")
    check_fields(place, options, kinds, "give another file")
    return Namespace(**options)


def build_module(
    kind: type[DualEncoder], options: Namespace, dictionary: Dictionary, weights: Mapping[str, Tensor], place: Path
) -> DualEncoder:
    """Build a model without a task and load its weights.

    Args:
        kind: the model.
        options: its options (`stored_options`); an empty `text_encoder` builds the encoder from the sizes in them.
        dictionary: of its text encoder.
        weights: its state dict.
        place: the file that the options come from.

    Raises:
        UserError: the options claim larger sizes than the weights have, or the weights do not fit them.
    """
    kind.check_sizes(place, options, weights)
    stored = decode_identity(weights[IDENTITY]) if IDENTITY in weights else {}
    task = Namespace(
        source_dictionary=dictionary,
        needs_teacher=False,
        teacher_identity=stored.get("teacher") or {},
        projections={},  # they are in the checkpoint
    )
    module = kind.build_model(options, task)
    try:
        module.load_state_dict(dict(weights), strict=True)
    except RuntimeError as error:  # what torch says of weights that are missing, unknown or misshapen
        raise UserError(f"{place}: its options do not fit its weights: {first_line(error)}") from error
    return module
