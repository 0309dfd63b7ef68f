"""`mclip-extract-mte`: write the text encoder of a trained model as an ordinary fairseq XLM-R archive."""

import argparse
import shutil
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mclip_fairseq.data.tokenizer import SENTENCEPIECE, load_sentencepiece
from mclip_fairseq.data.tokens import load_dictionary
from mclip_fairseq.models.xlmr_encoder import XLMREncoder, xlmr_args
from mclip_fairseq.storage.checkpoints import load_checkpoint
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import expecting

# Where the models `mte` and `mclip` (trained with `--freeze-text none`) keep the encoder.
PREFIXES = ("encoder.xlmr.encoder.", "text_encoder.encoder.")


def extract(checkpoint: Path, tokenizer: Path, output: Path) -> None:
    """Write `model.pt`, `dict.txt` and `sentencepiece.bpe.model`.

    Args:
        checkpoint: of `fairseq-train --arch mte_*`, or `--arch mclip_* --freeze-text none`.
        tokenizer: directory with the text encoder's `dict.txt` and `sentencepiece.bpe.model`.
        output: directory to make.

    Raises:
        UserError: a checkpoint without a text encoder, or a dictionary of another size.
    """
    with expecting(checkpoint, "a checkpoint with a text encoder"):
        _extract(checkpoint, tokenizer, output)


def _extract(checkpoint: Path, tokenizer: Path, output: Path) -> None:
    state = load_checkpoint(checkpoint)
    options = (state.get("cfg") or {}).get("model")
    weights = {
        name.removeprefix(prefix): tensor
        for name, tensor in state.get("model", {}).items()
        for prefix in PREFIXES
        if name.startswith(prefix)
    }
    if not isinstance(options, Mapping) or not weights:
        raise UserError(
            f"{checkpoint}: holds no text encoder; give a checkpoint of --arch mte_base, or of --arch mclip_base "
            "--freeze-text none"
        )
    missing = [name for name in ("dict.txt", SENTENCEPIECE) if not (tokenizer / name).is_file()]
    if missing:
        raise UserError(
            f"{tokenizer}: has no {' and no '.join(missing)}; pass the text encoder's directory as --tokenizer"
        )
    load_sentencepiece(tokenizer / SENTENCEPIECE)
    encoder = XLMREncoder(archive_args(options), load_dictionary(tokenizer))
    table = weights["sentence_encoder.embed_tokens.weight"]
    if table.shape != encoder.embed_tokens.weight.shape:
        raise UserError(
            f"{tokenizer}/dict.txt: has {len(encoder.embed_tokens.weight)} entries (specials and <mask> included) but "
            f"{checkpoint} has {len(table)} rows; pass the dictionary it was trained with"
        )
    encoder.encoder.load_state_dict(weights, strict=True)
    output.mkdir(parents=True, exist_ok=True)
    torch.save(encoder.checkpoint(), output / "model.pt")
    for name in ("dict.txt", SENTENCEPIECE):
        if (tokenizer / name).resolve() != (output / name).resolve():
            shutil.copyfile(tokenizer / name, output / name)


def archive_args(options: Mapping[str, Any]) -> Namespace:
    """XLM-R's options from those of the model, with the languages it was strengthened on."""
    args = xlmr_args(Namespace(**options))
    args.langs = options.get("langs", "")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="mclip-extract-mte", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="checkpoint of the model mte, or of mclip with a trained encoder")
    parser.add_argument(
        "--tokenizer", type=Path, required=True, help="directory with dict.txt and sentencepiece.bpe.model"
    )
    parser.add_argument("--output", type=Path, required=True, help="XLM-R archive to write")
    args = parser.parse_args(argv)
    try:
        extract(args.checkpoint, args.tokenizer, args.output)
    except (ValueError, OSError) as error:
        print(f"mclip-extract-mte: {error}", file=sys.stderr)
        return 2
    print(f"{args.output}: model.pt, dict.txt and {SENTENCEPIECE} written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
