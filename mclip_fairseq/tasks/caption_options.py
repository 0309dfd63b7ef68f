"""Options of the tasks that train on captions."""

from dataclasses import dataclass, field

from fairseq.dataclass import ChoiceEnum
from omegaconf import II

from mclip_fairseq.storage.images import MAX_PIXELS
from mclip_fairseq.tasks.sampled_options import SampledTaskConfig


@dataclass
class CaptionTaskConfig(SampledTaskConfig):
    """Captions, their images, and the teacher's features of both."""

    data: str = field(
        default="???",
        metadata={
            "help": "directories, separated by colons, with {split}.{lang}-None.{lang}.bin/.idx from "
            "fairseq-preprocess --only-source and {split}.{lang}.ids"
        },
    )
    langs: str = field(
        default="en", metadata={"help": "caption languages to train on, separated by commas", "data_position": True}
    )
    valid_langs: str = field(default="", metadata={"help": "languages to validate on (default: --langs)"})
    image_features: str = field(default="", metadata={"help": "feature directories of the images, separated by colons"})
    text_features: str = field(
        default="", metadata={"help": "feature directories of teacher text features, separated by colons"}
    )
    image_root: str = field(
        default="",
        metadata={
            "help": "image folder, to decode pixels during training; or webdataset tars: a path, an address (s3://...) "
            "or a pattern that ends in .tar"
        },
    )
    max_pixels: int = field(
        default=MAX_PIXELS,
        metadata={"help": "refuse images whose header claims more pixels (with --image-root)"},
    )
    max_caption_tokens: int = field(
        default=78,
        metadata={"help": "cut captions to this many tokens, <s> and </s> included", "data_position": True},
    )
    subword_sampling: float = field(
        default=0.0,
        metadata={
            "help": "cut the words of training captions into other pieces in every epoch, drawn by the probability of "
            "SentencePiece's unigram model to the power of this (0.1 to 0.5: Kudo 2018); 0 is off",
        },
    )
    subword_model: str = field(
        default="", metadata={"help": "directory with the sentencepiece.bpe.model of the data, for --subword-sampling"}
    )
    pair_language: str = field(
        default="",
        metadata={"help": "give captions of other languages their translation in this one, for --pair-weight"},
    )
    sampling_temperature: float = field(
        default=1.0,
        metadata={
            "help": "draw a language of n captions in proportion to n^(1/T); 1 keeps the proportions",
            "data_position": True,
        },
    )
    text_state_cache: str = field(
        default="",
        metadata={
            "help": "directory for states of the frozen text encoder, computed once: of each token, or pooled ones "
            "where the model reads no others; empty: no cache"
        },
    )
    text_state_dtype: ChoiceEnum(["float32", "float16"]) = field(  # type: ignore[valid-type]
        default="float32", metadata={"help": "type in which --text-state-cache stores them"}
    )
    keep_text_states: bool = field(
        default=False,
        metadata={
            "help": "keep all states of --text-state-cache in the memory of the device that trains, on every rank: "
            "batches need not be put together and copied to a GPU"
        },
    )
    valid_retrieval: bool = field(
        default=False,
        metadata={
            "help": "at each validation, search all images of the split valid with every caption and log mean_recall, "
            "for --best-checkpoint-metric mean_recall --maximize-best-checkpoint-metric"
        },
    )
    cpu: bool = II("common.cpu")
