"""XLM-R archives of fairseq, and directories of `transformers` with the same token ids.

The token ids are the same on both sides only if the dictionary lists the SentencePiece pieces in their own order, as
XLM-R's does: fairseq counts `<s> <pad> </s> <unk>`, then the dictionary, then `<mask>`; `transformers` counts the same
four, then the pieces from the model file, then `<mask>`.
"""

import copy
import shutil
from pathlib import Path

import torch

from mclip_fairseq.compat import shield_torchaudio
from mclip_fairseq.data.hf_tokenizer import PieceTokenizer
from mclip_fairseq.data.tokenizer import XLMRTokenizer
from mclip_fairseq.data.tokens import load_dictionary
from mclip_fairseq.models.teacher_loading import load_with_transformers
from mclip_fairseq.models.xlmr_encoder import XLMREncoder
from mclip_fairseq.models.xlmr_transformers import from_transformers, to_transformers
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.hub import published_file
from mclip_fairseq.storage.pieces import SENTENCEPIECE, copy_tokenizer, piece_list, write_dictionary
from mclip_fairseq.storage.staging import staged

SPECIALS = 4


def check_order(tokenizer: XLMRTokenizer) -> None:
    """Check that a dictionary's ids are those that `transformers` computes from the SentencePiece model.

    Raises:
        UserError: naming the first entry that differs.
    """
    directory, pieces = tokenizer.directory, piece_list(tokenizer.processor)
    entries = tokenizer.dictionary.symbols[SPECIALS : SPECIALS + len(pieces)]
    for row, (piece, entry) in enumerate(zip(pieces, entries, strict=False), start=1):
        if piece != entry:
            raise UserError(
                f"{directory}/dict.txt, line {row}: is {entry!r} where {SENTENCEPIECE} has {piece!r}; transformers "
                "numbers pieces in the model's order, so give a dictionary in that order"
            )
    if len(entries) != len(pieces):
        raise UserError(
            f"{directory}/dict.txt: has {len(entries)} entries but {SENTENCEPIECE} has {len(pieces)} pieces; convert "
            "with the dictionary that belongs to it"
        )


def write_archive(encoder: XLMREncoder, tokenizer: Path, output: Path) -> None:
    """Write an encoder as an XLM-R archive that fairseq reads too.

    Args:
        encoder: with its weights.
        tokenizer: directory with its `dict.txt` and SentencePiece model, which are copied.
        output: directory to make; may be `tokenizer`.
    """
    with staged(output) as staging:
        torch.save(encoder.checkpoint(), staging / "model.pt")
        copy_tokenizer(tokenizer, staging)


def write_transformers(archive: Path, output: Path) -> None:
    """Convert an archive to a `transformers` directory with the same token ids.

    Raises:
        UserError: the archive cannot be read, or its dictionary is in another order.
    """
    tokenizer = XLMRTokenizer(archive)
    check_order(tokenizer)
    encoder = XLMREncoder.from_checkpoint(archive, tokenizer.dictionary).eval()
    with staged(output) as staging:
        to_transformers(encoder).save_pretrained(staging)
        write_xlmr_tokenizer(tokenizer, staging, encoder.max_positions)


def write_tokenizer(tokenizer: XLMRTokenizer | PieceTokenizer, output: Path) -> None:
    """Write a tokenizer as `transformers` reads it, with the same token ids.

    Args:
        tokenizer: of XLM-R or of another text encoder.
        output: directory.

    Raises:
        UserError: see `check_order`.
    """
    if isinstance(tokenizer, PieceTokenizer):
        portable = copy.deepcopy(tokenizer.tokenizer)
        portable.model_max_length = tokenizer.max_tokens
        portable.save_pretrained(output)
        return
    check_order(tokenizer)
    write_xlmr_tokenizer(tokenizer, output)


def write_xlmr_tokenizer(tokenizer: XLMRTokenizer, output: Path, max_tokens: int = 0) -> None:
    """Write a tokenizer as that of XLM-R in `transformers`; `check_order` says whether the ids are the same.

    Args:
        tokenizer: with a SentencePiece model.
        output: directory.
        max_tokens: longest text; 0: the tokenizer's own.
    """
    shield_torchaudio()
    from transformers import XLMRobertaTokenizer

    shutil.copyfile(tokenizer.directory / SENTENCEPIECE, output / SENTENCEPIECE)
    longest = max_tokens or tokenizer.max_tokens
    XLMRobertaTokenizer.from_pretrained(output, model_max_length=longest).save_pretrained(output)


def write_fairseq(source: str, output: Path, revision: str | None = None) -> None:
    """Convert a Hub name or `transformers` directory to an archive with the same token ids.

    Raises:
        UserError: the source is not an XLM-R, or has no SentencePiece model.
    """
    shield_torchaudio()
    from transformers import XLMRobertaForMaskedLM

    model, info = load_with_transformers(
        source,
        "XLM-R of transformers",
        lambda: XLMRobertaForMaskedLM.from_pretrained(
            source, revision=revision, dtype=torch.float32, weights_only=True, output_loading_info=True
        ),
        revision,
    )
    # transformers fills what a directory lacks with random numbers. Without an output layer, the states are the same.
    if missing := sorted(name for name in info["missing_keys"] if not name.startswith("lm_head.")):
        raise UserError(f"{source}: lacks {len(missing)} weights of XLM-R, such as {missing[0]}; give an XLM-R")
    pieces = published_file(source, SENTENCEPIECE, revision)
    if pieces is None:
        raise UserError(f"{source}: has no {SENTENCEPIECE}; copy XLM-R's into the directory")
    with staged(output) as staging:
        shutil.copyfile(pieces, staging / SENTENCEPIECE)
        write_dictionary(staging)
        encoder = from_transformers(model.eval(), load_dictionary(staging), source)
        torch.save(encoder.checkpoint(), staging / "model.pt")
