"""A fairseq plugin that turns an English CLIP into a multilingual one.

`--user-dir mclip_fairseq` registers the tasks, models, criterions and optimizers; `MultilingualCLIP` uses what they
trained.
"""

import warnings
from typing import Any

if __name__ != "mclip_fairseq":
    raise ImportError(
        f"the plugin has to be called mclip_fairseq, not {__name__}: give --user-dir a path that ends in mclip_fairseq"
    )

from mclip_fairseq.quiet import root_logger_kept
from mclip_fairseq.user_dir import PackagePath

__version__ = "0.1.0"
__all__ = ["MultilingualCLIP", "__version__"]
__path__ = PackagePath(__path__)

try:
    with root_logger_kept():
        import fairseq.tasks  # noqa: F401
except (ImportError, OSError, ValueError, AttributeError) as error:
    # The doctor must still start, to say what is broken.
    warnings.warn(
        f"nothing is registered, for fairseq cannot be imported ({error}): run python -m mclip_fairseq.doctor",
        stacklevel=1,
    )
else:
    from mclip_fairseq import registration  # noqa: F401


def __getattr__(name: str) -> Any:
    """Import the inference class when it is first asked for."""
    if name == "MultilingualCLIP":
        from mclip_fairseq.inference import MultilingualCLIP

        return MultilingualCLIP
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
