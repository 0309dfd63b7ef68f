"""The option groups that models share: the multilingual text encoder, and the teacher beside it."""

from dataclasses import dataclass, field

from fairseq.dataclass import ChoiceEnum, FairseqDataclass

# `encoder` is what --freeze called `all` in version 0.1.
FREEZING = ("all", "embeddings", "none", "encoder")


@dataclass
class TextEncoderConfig(FairseqDataclass):
    """The XLM-R text encoder and what of it is trained."""

    text_encoder: str = field(
        default="",
        metadata={
            "help": "XLM-R archive to start from (a directory with model.pt: XLM-R itself, or mclip-extract-mte's "
            "output); empty: random weights. --xlmr is its old name",
            "argparse_alias": "--xlmr",
        },
    )
    freeze_text: ChoiceEnum(FREEZING) = field(  # type: ignore[valid-type]
        default="none",
        metadata={
            "help": "what of the text encoder is not trained: all, embeddings or none. --freeze is its old name, "
            "encoder the old name of all",
            "argparse_alias": "--freeze",
        },
    )
    encoder_layers: int = field(default=12, metadata={"help": "layers of a random text encoder"})
    encoder_embed_dim: int = field(default=768, metadata={"help": "width of a random text encoder"})
    encoder_ffn_embed_dim: int = field(default=3072, metadata={"help": "feed-forward width of a random text encoder"})
    encoder_attention_heads: int = field(default=12, metadata={"help": "attention heads of a random text encoder"})
    encoder_max_positions: int = field(
        default=512, metadata={"help": "longest input of a random text encoder, in tokens"}
    )
    dropout: float = field(default=0.1, metadata={"help": "dropout of the trained parts"})
    attention_dropout: float = field(default=0.1, metadata={"help": "dropout of attention weights"})


TEXT_CONFIG_HELP = (
    "set by --text-encoder, if that is a directory of transformers (config.json, weights, tokenizer: LaBSE, mBERT, "
    "DistilmBERT and others): its configuration as JSON"
)


@dataclass
class StudentConfig(TextEncoderConfig):
    """A text encoder that learns the space of an image-text teacher; it may be XLM-R, or any of `transformers`."""

    text_tokenizer: str = field(
        default="",
        metadata={
            "help": "directory with dict.txt and sentencepiece.bpe.model (or with a tokenizer of transformers, if the "
            "text encoder is one), for inference; empty: that of --text-encoder"
        },
    )
    text_config: str = field(default="", metadata={"help": TEXT_CONFIG_HELP})
    teacher: str = field(
        default="",
        metadata={
            "help": "transformers dual encoder (Hub name or directory); needed for --image-root and for inference"
        },
    )
    teacher_revision: str = field(default="", metadata={"help": "branch, tag or commit of the teacher on the Hub"})
    teacher_dim: int = field(default=0, metadata={"help": "width of the teacher features; 0: read it off the features"})
    save_frozen: bool = field(default=False, metadata={"help": "store frozen weights in checkpoints, too"})


def frozen_part(cfg: TextEncoderConfig) -> str:
    """What `--freeze-text` freezes: `all`, `embeddings` or `none`."""
    choice = str(cfg.freeze_text)
    return "all" if choice == "encoder" else choice
