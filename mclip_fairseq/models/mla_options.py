"""Options of the model `mla`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fairseq.dataclass import FairseqDataclass

from mclip_fairseq.storage.errors import UserError

ENGLISH = "en"
PARTS = ("acquirers", "embedding", "linear", "clip")


@dataclass
class MLAModelConfig(FairseqDataclass):
    """CLIP, the languages it acquires, and what of them is trained."""

    teacher: str = field(default="", metadata={"help": "CLIP as a transformers directory or Hub name"})
    teacher_revision: str = field(default="", metadata={"help": "branch, tag or commit of CLIP on the Hub"})
    acquirers: str = field(
        default="", metadata={"help": "languages that the model acquires, separated by commas; English needs none"}
    )
    acquirer_dim: int = field(
        default=256,
        metadata={"help": "width inside an acquirer; 0: no acquirers, so that only its words tell a language (skip)"},
    )
    clip_embedding: bool = field(
        default=False,
        metadata={
            "help": "read all languages with CLIP's own tokenizer and table instead of a shared table with a linear "
            "map (new_embed off)"
        },
    )
    embedding: str = field(
        default="",
        metadata={
            "help": "transformers model whose word embeddings the shared table starts from, such as "
            "bert-base-multilingual-cased; empty: random, or those of --base"
        },
    )
    embedding_dim: int = field(default=768, metadata={"help": "width of a random table"})
    embedding_rows: int = field(
        default=0, metadata={"help": "rows of a random table; 0: as many as the data's dictionary has entries"}
    )
    end_token: int = field(
        default=-1, metadata={"help": "id that ends a text of other languages; -1: that of the data's dictionary"}
    )
    base: str = field(
        default="",
        metadata={
            "help": "mla checkpoint, or directory of mclip-convert mla, to start from: its table, linear map and "
            "acquirers; languages it does not have start at random"
        },
    )
    train_parts: str = field(
        default="acquirers,embedding,linear",
        metadata={"help": "what is trained, separated by commas: acquirers, embedding, linear, clip (both towers)"},
    )
    train_langs: str = field(
        default="", metadata={"help": "languages whose acquirers are trained, separated by commas (all)"}
    )
    distill_layers: str = field(
        default="",
        metadata={
            "help": "layers of the text tower whose states are compared with the teacher's, too, such as 0,6 (NLT; "
            "kd_layers): --text-features are made with mclip-features --text-layers, and --layer-weight weighs them"
        },
    )
    drop_frozen: bool = field(
        default=False,
        metadata={
            "help": "leave out of checkpoints what is frozen and comes from --base or --embedding, too: a checkpoint "
            "of one added language then has about 12 MB, and needs that file to be loaded"
        },
    )
    text_tokenizer: str = field(
        default="",
        metadata={"help": "directory of the tokenizer of all languages but English, for inference"},
    )


def split_names(value: str) -> list[str]:
    """The items of a comma-separated option."""
    return [item.strip() for item in value.split(",") if item.strip()]


def check_options(cfg: Any, languages: Sequence[str], trained: Sequence[str]) -> None:
    """Refuse options that contradict each other.

    Raises:
        UserError: naming the option.
    """
    if not cfg.teacher:
        raise UserError("--teacher is empty; give the CLIP that acquires languages")
    if not languages or ENGLISH in languages or len(set(languages)) < len(languages):
        raise UserError(
            f"--acquirers is {cfg.acquirers!r}; name each language once, and not English, which takes CLIP's own path"
        )
    if unknown := [part for part in split_names(cfg.train_parts) if part not in PARTS]:
        raise UserError(f"--train-parts: {unknown[0]} is not one of {', '.join(PARTS)}")
    if unknown := [language for language in trained if language not in languages]:
        raise UserError(f"--train-langs: {unknown[0]} is not among --acquirers {cfg.acquirers}")
    if cfg.acquirer_dim < 0 or (cfg.acquirer_dim == 0 and cfg.train_langs):
        raise UserError(
            f"--acquirer-dim is {cfg.acquirer_dim}; give at least 1, or 0 without --train-langs for no acquirers"
        )
    if cfg.clip_embedding and cfg.embedding:
        raise UserError("--clip-embedding and --embedding are both given; there is one table of words")
    if cfg.clip_embedding and cfg.acquirer_dim == 0 and "clip" not in split_names(cfg.train_parts):
        raise UserError("--clip-embedding with --acquirer-dim 0 leaves nothing to train; leave one of them out")
    if cfg.base and cfg.embedding:
        raise UserError("--base and --embedding are both given; the shared table comes from one of them")
    if cfg.drop_frozen and not (cfg.base or cfg.embedding):
        raise UserError("--drop-frozen needs --base or --embedding, the file that holds what is left out")
