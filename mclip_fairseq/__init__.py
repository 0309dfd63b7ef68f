"""A fairseq plugin that turns an English CLIP into a multilingual one.

`--user-dir mclip_fairseq` registers the tasks, models, criterions and optimizers; `MultilingualCLIP` uses what they
trained. Importing this package is light: torch, fairseq and transformers are imported where they are used.
"""

from typing import Any

if __name__ != "mclip_fairseq":
    raise ImportError(
        f"the plugin has to be called mclip_fairseq, not {__name__}: give --user-dir a path that ends in mclip_fairseq"
    )

from mclip_fairseq.compat import keep_fairseq_quiet
from mclip_fairseq.user_dir import PackagePath, register_if_asked

keep_fairseq_quiet()
__version__ = "0.2.0"
__all__ = ["MultilingualCLIP", "__version__"]
__path__ = PackagePath(__path__)


def __getattr__(name: str) -> Any:
    """Import the inference class when it is first asked for."""
    if name == "MultilingualCLIP":
        from mclip_fairseq.inference import MultilingualCLIP

        return MultilingualCLIP
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


register_if_asked()
