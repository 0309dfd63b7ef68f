"""Any text encoder of `transformers` as a student: LaBSE, mBERT, DistilmBERT and others, and the choice among them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from fairseq.data import Dictionary
from torch import Tensor, nn

from mclip_fairseq.compat import shield_torchaudio
from mclip_fairseq.models.settings import ORIGIN
from mclip_fairseq.models.teacher_loading import (
    call_transformers,
    check_directory_size,
    load_with_transformers,
    model_without_memory,
    position_limits,
)
from mclip_fairseq.models.text_encoder import TextEncoder
from mclip_fairseq.models.weights import check_weights
from mclip_fairseq.models.xlmr_encoder import XLMREncoder, checkpoint_file
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.fields import check_fields
from mclip_fairseq.storage.files import first_line, parse_json
from mclip_fairseq.storage.self_contained import check_configuration

# Encoders without a table of positions can read more, but were trained on texts of about this length.
MAX_TOKENS = 512
WHAT = "a text encoder of transformers"
DROPOUT = ("hidden_dropout_prob", "dropout", "hidden_dropout")
ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout")
REMEDY = "restore the file that belongs to the weights"


class TransformersEncoder(TextEncoder):
    """An encoder of `transformers` with token states as output.

    Args:
        model: of `AutoModel`.
        dictionary: of the data, whose ids the encoder reads.
        source: of the model, for messages.

    Raises:
        UserError: it does not map ids to token states, or the dictionary has more entries than its table has rows.
    """

    def __init__(self, model: Any, dictionary: Dictionary, source: str | Path) -> None:
        super().__init__()
        self.encoder = model.float()
        self.kind = str(model.config.model_type)
        self.pad = int(dictionary.pad())
        rows = len(model.get_input_embeddings().weight)
        if len(dictionary) > rows:
            raise UserError(
                f"{source}: its token table has {rows} rows but the data's dictionary has {len(dictionary)} entries; "
                "make the data with its tokenizer (preprocess/binarise.py --tokenizer)"
            )
        self._freeze_unused(dictionary, source)

    def _freeze_unused(self, dictionary: Dictionary, source: str | Path) -> None:
        """Freeze what no state depends on, such as a pooler: DDP waits for the gradients of all that is trained."""
        self.encoder.eval()
        with torch.enable_grad():
            try:
                states = self.states(torch.tensor([[dictionary.bos(), dictionary.eos()]]))
            except Exception as error:  # its models raise whatever input they do not expect leads them to
                raise UserError(f"{source}: does not read token ids as {WHAT} does: {first_line(error)}") from error
        used = parameters_behind(states)
        for parameter in self.encoder.parameters():
            parameter.requires_grad_(parameter in used)
        self.unused = {name for name, parameter in self.encoder.named_parameters() if parameter not in used}
        self.train()

    @classmethod
    def from_directory(cls, path: str | Path, cfg: Any, dictionary: Dictionary) -> TransformersEncoder:
        """Load a directory of `transformers`.

        Args:
            path: the directory; weights of heads for other tasks are left out.
            cfg: with `dropout` and `attention_dropout`.
            dictionary: of the data.

        Raises:
            UserError: the directory holds another kind of model, or lacks weights.
        """
        shield_torchaudio()
        from transformers import AutoConfig, AutoModel

        config = load_with_transformers(
            path, WHAT, lambda: AutoConfig.from_pretrained(str(path), trust_remote_code=False)
        )
        check_kind(config, path)
        set_dropout(config, cfg)
        check_directory_size(Path(path), config, WHAT)
        model, info = load_with_transformers(
            path,
            WHAT,
            lambda: AutoModel.from_pretrained(
                str(path), config=config, dtype=torch.float32, weights_only=True, output_loading_info=True
            ),
        )
        encoder = cls(model, dictionary, path)
        missing = set(info["missing_keys"])
        if lacking := sorted(missing - encoder.unused):
            raise UserError(f"{path}: lacks {len(lacking)} weights, such as {lacking[0]}; copy the directory again")
        with torch.no_grad():  # not random: the identity covers all weights
            for name in missing:
                model.get_parameter(name).zero_()
        return encoder

    @classmethod
    def from_description(cls, cfg: Any, dictionary: Dictionary) -> TransformersEncoder:
        """An encoder of random weights from what `store_sizes` wrote into `cfg.text_config`."""
        from transformers import AutoModel

        config = described(cfg.text_config)
        set_dropout(config, cfg)
        model = call_transformers("--text-config", WHAT, lambda: AutoModel.from_config(config, trust_remote_code=False))
        return cls(model, dictionary, "--text-config")

    @staticmethod
    def check_size(place: Path, description: str, weights: Mapping[str, Tensor]) -> None:
        """Refuse a description from a file that is not that of its weights, before memory is allocated.

        Args:
            place: the file, for messages.
            description: as in `cfg.text_config`.
            weights: of the encoder alone, under its own names.

        Raises:
            UserError: the description is damaged, or other weights belong to it.
        """
        config = call_transformers(place, WHAT, lambda: described(description, place))
        check_kind(config, place)
        check_weights(weights, model_without_memory(config, place).state_dict(), place)

    @property
    def config(self) -> Any:
        """That of `transformers`."""
        return self.encoder.config

    @property
    def dim(self) -> int:
        """Width of a token state."""
        return int(self.config.hidden_size)

    @property
    def max_positions(self) -> int:
        """Longest input in tokens."""
        return min([MAX_TOKENS, *position_limits(self.encoder)])

    @property
    def padding_idx(self) -> int:
        """Id of the tokenizer's pad."""
        return self.pad

    @property
    def layers(self) -> Sequence[nn.Module] | nn.ModuleList:
        """The layers: the only list of as many modules as the configuration says.

        Raises:
            UserError: there is no such list.
        """
        for module in self.encoder.modules():
            if isinstance(module, nn.ModuleList) and len(module) == self.config.num_hidden_layers:
                return module
        raise UserError(f"{self.kind}: has no list of layers, which adapters need; leave out --adapter-dim")

    @property
    def description(self) -> str:
        """Its kind and width."""
        return f"{self.kind} of {self.dim} dimensions"

    def embedding_modules(self) -> list[nn.Module]:
        """All embeddings, with the LayerNorm behind them."""
        return [getattr(self.encoder, "embeddings", self.encoder.get_input_embeddings())]

    def states(self, tokens: Tensor) -> Tensor:
        """(batch, length) ids, right-padded -> (batch, length, dim)."""
        states: Tensor = self.encoder(input_ids=tokens, attention_mask=tokens.ne(self.pad).long()).last_hidden_state
        return states

    def plain_module(self) -> Any:
        """The module itself; adapters, where there are some, are hooked to its layers."""
        return self.encoder

    def store_sizes(self, cfg: Any) -> None:
        """Write the configuration into `cfg.text_config`."""
        settings = {name: value for name, value in self.config.to_dict().items() if name not in ORIGIN}
        cfg.text_config = json.dumps(settings, sort_keys=True, default=str)


def build_text_encoder(cfg: Any, dictionary: Dictionary) -> TextEncoder:
    """The encoder of `cfg.text_encoder`, or a random one of the sizes in `cfg`.

    Args:
        cfg: a model configuration; sizes of a given encoder are written into it.
        dictionary: of the data.

    Raises:
        UserError: the encoder cannot be read.
    """
    archive = cfg.text_encoder
    if archive and is_transformers_directory(archive):
        encoder = TransformersEncoder.from_directory(archive, cfg, dictionary)
        encoder.store_sizes(cfg)
        return encoder
    if not archive and cfg.text_config:
        return TransformersEncoder.from_description(cfg, dictionary)
    cfg.text_config = ""
    return XLMREncoder.build(archive, cfg, dictionary)


def is_transformers_directory(path: str | Path) -> bool:
    """Whether a directory is one of `transformers`, and not fairseq's archive."""
    return (Path(path) / "config.json").is_file() and not checkpoint_file(path).is_file()


def check_kind(config: Any, source: str | Path) -> None:
    """Refuse models that are not text encoders.

    Raises:
        UserError: naming what it is.
    """
    if getattr(config, "is_encoder_decoder", False) or not isinstance(getattr(config, "hidden_size", None), int):
        raise UserError(
            f"{source}: is a model {config.model_type!r}; give a text encoder, such as mBERT, DistilmBERT or LaBSE"
        )


def set_dropout(config: Any, cfg: Any) -> None:
    """Take the dropout of a model's options into a configuration, whatever the rates are called there."""
    for names, rate in ((DROPOUT, cfg.dropout), (ATTENTION_DROPOUT, cfg.attention_dropout)):
        for name in names:
            if hasattr(config, name):
                setattr(config, name, rate)


def described(description: str, place: str | Path = "--text-config") -> Any:
    """The configuration in `cfg.text_config`.

    Raises:
        UserError: it is damaged, or names another model.
    """
    shield_torchaudio()
    from transformers import AutoConfig

    facts = check_fields(place, parse_json(description), {"model_type": str}, REMEDY)
    check_configuration(place, facts)
    return AutoConfig.for_model(**facts)


def parameters_behind(result: Tensor) -> set[nn.Parameter]:
    """The parameters from which a tensor was computed, without computing a gradient."""
    found: set[nn.Parameter] = set()
    waiting, seen = [result.grad_fn], set()
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(node.variable)
        waiting.extend(following for following, _ in node.next_functions)
    return found
