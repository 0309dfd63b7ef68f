"""XLM-R's tokenizer as `tokenizer.json`, which `tokenizers` and `transformers` read by themselves, with our ids.

`XLMRTokenizer` looks SentencePiece's pieces up in a dictionary. Here the vocabulary is in the dictionary's order, and
the normalizers repeat what both of them do to a text. One difference is known: SentencePiece composes a letter with the
marks that follow it directly, and Unicode's composition also with marks further away. So the ids of a letter with
several combining marks in an unusual order may differ.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mclip_fairseq.data.hf_tokenizer import PieceTokenizer
from mclip_fairseq.data.tokenizer import XLMRTokenizer
from mclip_fairseq.storage.files import write_json
from mclip_fairseq.storage.pieces import CONTROL_PIECES, SENTENCEPIECE, WORD_START
from mclip_fairseq.storage.texts import SPLITTERS

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
# What `str.split` splits at.
SPACES = "[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+"
# NFKC changes these and SentencePiece's rules do not; they are put aside as private characters that no script uses.
KEPT_FROM_NFKC = {"\uff5e": "\U0010fdd0", "\u0344": "\U0010fdd1", "\U0001f23b": "\U0010fdd2"}
FILLING = re.compile(r"madeupword\d+|<mask>")
UNREACHABLE = "\x01"  # SentencePiece's rules remove it, so no text contains it


def write_tokenizer_json(tokenizer: XLMRTokenizer | PieceTokenizer, output: Path) -> bool:
    """Write `tokenizer.json` and `tokenizer_config.json`, with which `AutoTokenizer` gives the ids of a tokenizer.

    Args:
        tokenizer: of the text encoder.
        output: existing directory.

    Returns:
        False, and nothing is written, where the pieces are not the dictionary's entries: SentencePiece then gives
        pieces that the dictionary does not have, and `tokenizer.json` cannot say that they are `<unk>`. Nor for a
        tokenizer of `transformers`, which has a folder of its own.
    """
    made = make_tokenizer(tokenizer) if isinstance(tokenizer, XLMRTokenizer) else None
    if made is None:
        return False
    made.save(str(output / TOKENIZER))
    entries = tokenizer.dictionary
    start, end, unknown, pad = (entries[i] for i in (entries.bos(), entries.eos(), entries.unk(), entries.pad()))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{"bos_token": start, "cls_token": start, "eos_token": end, "sep_token": end},
        **{"unk_token": unknown, "pad_token": pad},
        "model_max_length": tokenizer.max_tokens,
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "right",
        "split_special_tokens": True,  # "</s>" in a caption is text
        "clean_up_tokenization_spaces": False,
    }
    write_json(output / TOKENIZER_CONFIG, config)
    return True


def make_tokenizer(tokenizer: XLMRTokenizer) -> Tokenizer | None:
    """A tokenizer of `tokenizers` with the ids of ours; None where there is none, see `write_tokenizer_json`."""
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import Tokenizer, decoders, models, processors

    model = sentencepiece_model_pb2.ModelProto.FromString((tokenizer.directory / SENTENCEPIECE).read_bytes())
    scores = {piece.piece: piece.score for piece in list(model.pieces)[CONTROL_PIECES:]}
    entries = tokenizer.dictionary
    ordinary = {symbol for symbol in entries.symbols[entries.nspecial :] if not FILLING.fullmatch(symbol)}
    if ordinary != set(scores):
        return None
    lowest = min(scores.values())
    vocabulary: list[tuple[str, float]] = []
    for number, symbol in enumerate(entries.symbols):
        if number >= entries.nspecial and symbol not in scores:
            symbol = f"{UNREACHABLE}{number}"
        vocabulary.append((symbol, scores.get(symbol, lowest)))
    made = Tokenizer(models.Unigram(vocabulary, unk_id=entries.unk(), byte_fallback=False))
    made.normalizer = normalizer_of(model.normalizer_spec.precompiled_charsmap)
    made.pre_tokenizer = splitter_of(tokenizer, any(WORD_START in piece[1:] for piece in scores))
    start, end = entries[entries.bos()], entries[entries.eos()]
    made.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        pair=f"{start} $A {end} {end} $B {end}",
        special_tokens=[(start, entries.bos()), (end, entries.eos())],
    )
    made.decoder = decoders.Metaspace()
    made.enable_truncation(tokenizer.max_tokens)
    return made


def normalizer_of(rules: bytes) -> Any:
    """What happens to a text before it is cut: invisible characters, spaces, SentencePiece's rules.

    Args:
        rules: `precompiled_charsmap` of a SentencePiece model; empty for none.
    """
    from tokenizers import Regex, normalizers

    steps: list[Any] = [
        normalizers.Replace(Regex(SPLITTERS.pattern), ""),
        normalizers.Replace(Regex(SPACES), " "),
    ]
    if rules:
        # `Precompiled` applies rules of several characters to whole graphemes of up to five bytes only; NFKC does it
        # for all.
        steps += [normalizers.Replace(kept, aside) for kept, aside in KEPT_FROM_NFKC.items()]
        steps.append(normalizers.NFKC())
        steps += [normalizers.Replace(aside, kept) for kept, aside in KEPT_FROM_NFKC.items()]
        steps.append(normalizers.Precompiled(rules))
    return normalizers.Sequence(
        [
            *steps,
            normalizers.Replace(Regex(" +"), " "),
            normalizers.Replace(Regex(f"[ {WORD_START}]+$"), ""),
            normalizers.Strip(),
            normalizers.Prepend(WORD_START),
        ]
    )


def splitter_of(tokenizer: XLMRTokenizer, across_words: bool) -> Any:
    """Cuts a text into words, and what looks like a special token into parts, so that it is read as text.

    Args:
        tokenizer: of the text encoder.
        across_words: whether a piece spans several words, so that they stay together.
    """
    from tokenizers import Regex, pre_tokenizers

    entries, cuts = tokenizer.dictionary, []
    for special in entries.symbols[: entries.nspecial]:
        pieces = [piece.removeprefix(WORD_START) for piece in tokenizer.processor.encode(special, out_type=str)]
        first = next(filter(None, pieces), "")
        if 0 < len(first) < len(special):
            cuts.append(f"{re.escape(first)}(?={re.escape(special[len(first) :])})")
    words = pre_tokenizers.Metaspace(prepend_scheme="never", split=not across_words)
    if not cuts:
        return words
    return pre_tokenizers.Sequence([words, pre_tokenizers.Split(Regex("|".join(cuts)), "merged_with_previous")])
