"""Where the files of caption tasks are, and checks that directories belong together."""

from collections.abc import Sequence
from pathlib import Path

from fairseq import utils
from fairseq.data import Dictionary

from mclip_fairseq.data.columns import option_of
from mclip_fairseq.models.dual_encoder import Columns
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.feature_files import same_teacher
from mclip_fairseq.storage.features import FeatureStore


def caption_prefix(directory: str | Path, split: str, lang: str) -> str:
    """Where fairseq-preprocess --only-source puts a language."""
    return f"{directory}/{split}.{lang}-None.{lang}"


def no_captions(directories: str, split: str, lang: str, training: bool) -> UserError:
    """The error where no data directory has captions of a split in a language."""
    otherwise = "" if training else ", name others with --valid-langs, or give --disable-validation"
    return UserError(
        f"{caption_prefix(directories, split, lang)}: not found; make it with fairseq-preprocess --only-source "
        f"--source-lang {lang} --srcdict dict.txt{otherwise}"
    )


def check_one_dictionary(directories: Sequence[str], dictionaries: Sequence[Dictionary]) -> None:
    """Refuse data directories of one text encoder that were made with different dictionaries.

    Raises:
        UserError: naming both directories.
    """
    for directory, dictionary in zip(directories, dictionaries, strict=True):
        if dictionary.symbols != dictionaries[0].symbols:
            raise UserError(
                f"{directory}: its dictionary differs from that of {directories[0]}; binarise both with the text "
                "encoder's dict.txt"
            )


def check_columns(name: str, present: set[str], columns: Columns, needed: Sequence[tuple[str, ...]]) -> None:
    """Refuse captions without a column that is needed, or with one that is not read.

    Args:
        name: `split language:number`, for the message.
        present: the columns of the captions.
        columns: those of the model.
        needed: further groups of alternatives, of the task.

    Raises:
        UserError: naming the column's option.
    """
    missing = [group for group in (*columns.required, *needed) if not present & set(group)]
    if missing:
        wanted = " or ".join(missing[0])
        options = " or ".join(option_of(column) for column in missing[0])
        ids = name.replace(" ", ".").split(":")[0] + ".ids"
        raise UserError(f"{name}: the model needs {wanted} for every caption; give {options}, and the ids in {ids}")
    unread = sorted(present - columns.all)
    if unread:
        raise UserError(f"{name}: the model does not read {unread[0]}; leave out {option_of(unread[0])}")


def open_features(paths: str, modality: str) -> FeatureStore | None:
    """Open and verify the feature directories of a colon-separated option.

    Raises:
        UserError: they are damaged, or of the other modality.
    """
    if not paths:
        return None
    store = FeatureStore.open_all(utils.split_paths(paths))
    if store.manifest["modality"] != modality:
        raise UserError(
            f"{store.paths[0]}: holds {store.manifest['modality']} features; --{modality}-features needs those of "
            f"{modality}s"
        )
    return store


def check_same_teacher(images: FeatureStore, texts: FeatureStore) -> None:
    """Refuse image and text features of two teachers; the model compares their widths and spaces."""
    same_width = images.dim == texts.dim or "pooled" in (images.space, texts.space)
    if not same_width or not same_teacher(images.identity, texts.identity):
        raise UserError(
            f"the image features are of {images.identity} ({images.dim} columns) and the text features of "
            f"{texts.identity} ({texts.dim} columns); both must come from one teacher"
        )
