"""A sentence encoder as a directory that sentence-transformers loads by itself: a text encoder and mean pooling.

Nothing of this project is needed where it is loaded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mclip_fairseq.formats.towers import TrainedTower
from mclip_fairseq.formats.xlmr import write_tokenizer
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import write_json

MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]


def write_sentence_encoder(tower: TrainedTower, output: Path) -> None:
    """Write the encoder that embeds sentences.

    Args:
        tower: of a model `contrastive_tension`.
        output: directory to make.

    Raises:
        UserError: another model; or the dictionary is not in the order of the SentencePiece model.
    """
    module: Any = tower.module
    if module.registered_name() != "contrastive_tension":
        raise UserError(
            f"{tower.name}: is not a sentence encoder of contrastive_tension; write it with --format directory, which "
            "sentence-transformers reads, too"
        )
    output.mkdir(parents=True, exist_ok=True)
    write_tokenizer(tower.tokenizer, output)
    module.text_encoder.plain_module().save_pretrained(output)
    pooling = {"word_embedding_dimension": module.dim, "pooling_mode_mean_tokens": True}
    pooling |= {f"pooling_mode_{name}": False for name in ("cls_token", "max_tokens", "mean_sqrt_len_tokens")}
    (output / "1_Pooling").mkdir()
    write_json(output / "1_Pooling" / "config.json", pooling)
    write_json(output / "sentence_bert_config.json", {"max_seq_length": tower.tokenizer.max_tokens})
    (output / "modules.json").write_text(json.dumps(MODULES, indent=2) + "\n", encoding="utf-8")
