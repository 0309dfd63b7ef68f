"""A checkpoint of `fairseq-train`, read for inference."""

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mclip_fairseq.data.tokenizer import XLMRTokenizer
from mclip_fairseq.data.tokens import load_dictionary
from mclip_fairseq.formats.towers import ProjectedTower
from mclip_fairseq.models.freezing import IDENTITY, decode_identity, holds_text_encoder
from mclip_fairseq.models.sizes import ENCODER, PROJECTORS, refuse_oversized
from mclip_fairseq.models.teacher import DualEncoderTeacher
from mclip_fairseq.registration import import_components
from mclip_fairseq.storage.checkpoints import load_checkpoint
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import expecting


def load_training_checkpoint(file: Path, text_encoder: str = "", teacher: str = "") -> ProjectedTower:
    """Rebuild a trained model.

    Args:
        file: the checkpoint.
        text_encoder: directory with the text encoder's archive, in place of the one named in the checkpoint.
        teacher: Hub name or directory of the teacher, likewise.

    Raises:
        UserError: no checkpoint of this project, or a part of the model is not where the checkpoint says.
    """
    with expecting(file, "a training checkpoint of this project"):
        return _load_training_checkpoint(file, text_encoder, teacher)


def _load_training_checkpoint(file: Path, text_encoder: str, teacher: str) -> ProjectedTower:
    state = load_checkpoint(file)
    if not isinstance(state.get("cfg"), dict) or "model" not in state:
        raise UserError(f"{file}: is not a training checkpoint of this project; it has no configuration")
    cfg, task = state["cfg"]["model"], state["cfg"]["task"]
    if not isinstance(cfg, Mapping):
        raise UserError(f"{file}: is not a training checkpoint of this project; mclip-convert reads published ones")
    directory = find_text_encoder(file, text_encoder or cfg.get("text_encoder") or cfg.get("text_tokenizer") or "")
    options = Namespace(**cfg)
    if holds_text_encoder(options):
        options.text_encoder = ""
    elif options.text_encoder:
        options.text_encoder = str(directory)
    name = getattr(options, "_name", "")
    try:
        module = build_module(name, options, directory, state["model"], file)
    except LookupError as error:
        raise UserError(f"{file}: {error}") from error
    tokenizer = XLMRTokenizer(directory)
    tokenizer.max_tokens = int(min(module.max_positions(), task.get("max_caption_tokens") or tokenizer.max_tokens))
    languages = getattr(module.text_encoder.args, "langs", None) or task.get("langs") or ""

    def load_teacher() -> DualEncoderTeacher:
        source = teacher or cfg.get("teacher") or ""
        if not source:
            raise UserError(f"{file}: was trained on features and names no teacher; pass teacher= to encode images")
        revision = None if teacher else cfg.get("teacher_revision") or None
        return DualEncoderTeacher.from_pretrained(source, revision=revision)

    return ProjectedTower(
        module,
        tokenizer,
        name=f"{file.parent.name}/{file.stem}",
        languages=[lang for lang in languages.split(",") if lang],
        load_teacher=load_teacher,
    )


def find_text_encoder(file: Path, path: str) -> Path:
    """Resolve the text encoder named in a checkpoint: as it stands, or below a folder that the checkpoint is in.

    Trainings are started in one place and used from others, with relative paths in their options.
    """
    if not path:
        raise UserError(
            f"{file}: the checkpoint names no text_encoder; pass text_encoder= with the directory that holds dict.txt "
            "and sentencepiece.bpe.model"
        )
    for place in (Path(path), *(parent / path for parent in file.resolve().parents)):
        if place.is_dir():
            return place
    raise UserError(f"{file}: its text_encoder {path} is not here; pass text_encoder= with the directory as it is now")


def build_module(name: str, options: Namespace, directory: Path, weights: Mapping[str, Tensor], where: Path) -> Any:
    """Build a registered model without a task and load its weights.

    Args:
        name: of the model or architecture, as registered.
        options: its configuration; an empty `text_encoder` builds the encoder from the sizes in it.
        directory: where `dict.txt` is.
        weights: its state dict.
        where: the file that the options come from.

    Raises:
        LookupError: the model has no image side.
        UserError: the options claim larger sizes than the weights have.
    """
    from fairseq.models import ARCH_MODEL_REGISTRY

    import_components("models")
    builder = ARCH_MODEL_REGISTRY.get(name)
    if not hasattr(builder, "project_teacher"):
        raise LookupError(f"holds a model {name!r}, which has no image side; train with --arch mclip_base")
    if not options.text_encoder:
        refuse_oversized(where, options, weights, ENCODER, prefix="text_encoder.encoder.")
    refuse_oversized(where, options, weights, PROJECTORS)
    stored = decode_identity(weights[IDENTITY]) if IDENTITY in weights else {}
    task = Namespace(
        source_dictionary=load_dictionary(directory),
        needs_teacher=False,
        teacher_identity=stored.get("teacher") or {},
    )
    module = builder.build_model(options, task)
    module.load_state_dict(dict(weights), strict=True)
    return module
