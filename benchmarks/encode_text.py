"""`MultilingualCLIP.encode_text` beside sentence-transformers and plain transformers: same weights, default settings.

    python -m benchmarks.encode_text [--texts 96] [--captions FILE ...] [--tokenizer DIR] [--rounds 3]

XLM-R base with random weights and mean pooling. Plain transformers encodes 32 texts at a time in their order. Without
files, captions are made up: in one alphabet a token has five letters, in the other two. Medians of rounds in which
the ways take turns.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks._measure import medians_of_rounds, print_ratios
from mclip_fairseq.compat import shield_torchaudio
from mclip_fairseq.inference import MultilingualCLIP

OURS, BATCH = "MultilingualCLIP", 32
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")


def made_up_captions(count: int, seed: int = 0) -> list[str]:
    """Captions of about 17 tokens, between 4 and 50, half of them in each alphabet."""
    rng = random.Random(seed)
    texts = []
    for number in range(count):
        letters, width = ("abcdefghij", 5) if number % 2 else ("αβγδεζηθικ", 2)
        tokens = min(max(round(rng.gauss(15, 6)), 2), 48)
        texts.append(" ".join("".join(rng.choices(letters, k=width)) for _ in range(tokens)))
    return texts


def made_up_tokenizer() -> Any:
    """A tokenizer of `transformers` with four tokens, which splits as `made_up_captions` expects."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({token: i for i, token in enumerate(SPECIAL)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("[a-z]{1,5}|[α-ω]{1,2}"), "removed", invert=True)
    core.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=512, **names)


def save_model(folder: Path, layers: int, tokenizer: Any) -> None:
    """A sentence-transformers directory of XLM-R base with random weights."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling
    from transformers import XLMRobertaConfig, XLMRobertaModel

    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer), "num_hidden_layers": layers, "max_position_embeddings": 514}
    XLMRobertaModel(XLMRobertaConfig(**sizes, type_vocab_size=1)).save_pretrained(folder / "hf")
    tokenizer.save_pretrained(folder / "hf")
    transformer = Transformer(str(folder / "hf"), max_seq_length=512)
    pooling = Pooling(768)
    SentenceTransformer(modules=[transformer, pooling], device="cpu").save(str(folder / "st"))


@torch.inference_mode()
def plain(model: Any, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """Mean of the token states, 32 texts at a time."""
    rows = []
    for start in range(0, len(texts), BATCH):
        inputs = tokenizer(texts[start : start + BATCH], padding=True, truncation=True, return_tensors="pt")
        states = model(**{name: inputs[name] for name in ("input_ids", "attention_mask")}).last_hidden_state
        mask = inputs["attention_mask"][..., None].float()
        rows.append((states * mask).sum(1) / mask.sum(1))
    return torch.cat(rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=96, help="texts per call")
    parser.add_argument("--layers", type=int, default=12, help="layers of the encoder")
    parser.add_argument("--captions", type=Path, nargs="+", default=[], help="take lines of these files at random")
    parser.add_argument("--tokenizer", help="tokenizer of transformers (default: made up)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, of which the median is taken")
    options = parser.parse_args()
    shield_torchaudio()
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel, AutoTokenizer

    texts = made_up_captions(options.texts)
    if options.captions:
        lines = [line for file in options.captions for line in file.read_text(encoding="utf-8").splitlines()]
        texts = random.Random(0).sample(lines, options.texts)
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer) if options.tokenizer else made_up_tokenizer()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_model(folder, options.layers, tokenizer)
        ours, theirs = (
            MultilingualCLIP.from_pretrained(folder / "st"),
            SentenceTransformer(str(folder / "st"), device="cpu"),
        )
        model = AutoModel.from_pretrained(folder / "hf", weights_only=True).eval()
        ways: dict[str, Callable[[], Any]] = {
            OURS: partial(ours.encode_text, texts),
            "sentence-transformers": partial(theirs.encode, texts, normalize_embeddings=True),
            "transformers": partial(plain, model, tokenizer, texts),
        }
        first = [torch.nn.functional.normalize(torch.as_tensor(way()), dim=1) for way in ways.values()]
        assert all(torch.allclose(first[0], other, atol=1e-5) for other in first)
        measured = medians_of_rounds(ways, options.rounds)
    print(f"{options.texts} texts, {options.layers} layers of 768, {torch.get_num_threads()} threads")
    print_ratios(measured, OURS)


if __name__ == "__main__":
    main()
