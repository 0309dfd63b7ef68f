"""CLIP_benchmark with our models: `python -m mclip_fairseq.cli.clip_benchmark eval --model_type mclip_fairseq ...`.

The command line is that of `clip_benchmark`, which keeps its types of models in a table; this adds one to it.
`--pretrained` then names what `MultilingualCLIP.from_pretrained` reads. It needs the extra `tools`.
"""

from __future__ import annotations

import sys
from typing import Any

from mclip_fairseq.cli.main import run_main
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.extras import import_extra

MODEL_TYPE = "mclip_fairseq"


def load(pretrained: str, device: Any = "cpu", **others: Any) -> Any:
    """Model, transform and tokenizer, as CLIP_benchmark asks for them.

    Args:
        pretrained: a model that `MultilingualCLIP.from_pretrained` reads.
        device: where it runs.
        **others: name and cache directory, which are for models of open_clip.

    Raises:
        UserError: there is no such model, or it reads each language in its own way.
    """
    from mclip_fairseq.export.open_clip import open_clip_triple
    from mclip_fairseq.inference import MultilingualCLIP

    model = MultilingualCLIP.from_pretrained(pretrained, device=device)
    if not model.reads_any_language:
        raise UserError(
            f"{pretrained}: reads each language in its own way, and CLIP_benchmark does not say which one a text has; "
            "evaluate it with mclip-evaluate"
        )
    return open_clip_triple(model)


def run() -> None:
    """Add our type to the table and run CLIP_benchmark."""
    models = import_extra("clip_benchmark.models", "tools")
    models.TYPE2FUNC[MODEL_TYPE] = load
    if MODEL_TYPE not in models.MODEL_TYPES:
        models.MODEL_TYPES.append(MODEL_TYPE)
    import_extra("clip_benchmark.cli", "tools").main()


def main() -> int:
    """See the module."""
    return run_main("clip_benchmark", run)


if __name__ == "__main__":
    sys.exit(main())
