"""Lets fairseq, torchaudio and transformers work together in one process."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import sys
from collections.abc import Iterator

logger = logging.getLogger(__name__)
_problems: dict[str, str] = {}


def shield_torchaudio() -> None:
    """Make a torchaudio that cannot be loaded look absent, so that `transformers` models can be imported.

    fairseq requires torchaudio, whose wheel often does not fit the installed torch; transformers then fails wherever it
    finds the package. Call this before the first import of transformers. It does nothing if torchaudio works or is not
    installed, and a second call costs nothing.
    """
    if "torchaudio" in sys.modules or importlib.util.find_spec("torchaudio") is None:
        return
    try:
        importlib.import_module("torchaudio")
    except Exception as error:  # OSError, ImportError, RuntimeError: the loader decides, and all mean "unusable"
        _problems["torchaudio"] = f"{type(error).__name__}: {error}"
        logger.debug("torchaudio is hidden because it cannot be loaded: %s", error)
        for name in [name for name in sys.modules if name.startswith("torchaudio.")]:
            del sys.modules[name]
        sys.modules["torchaudio"] = None  # type: ignore[assignment]  # find_spec and import now report it as missing
        _forget_availability()


def torchaudio_problem() -> str:
    """Why `shield_torchaudio` hid torchaudio in this process; empty if it did not."""
    return _problems.get("torchaudio", "")


def _forget_availability() -> None:
    """Clear what transformers has cached about torchaudio."""
    utils = sys.modules.get("transformers.utils.import_utils")
    for name in ("is_torchaudio_available", "is_speech_available"):
        forget = getattr(getattr(utils, name, None), "cache_clear", None)
        if forget is not None:
            forget()


@contextlib.contextmanager
def root_logger_kept() -> Iterator[None]:
    """Restore the root logger's level and handlers at the end; until then, only warnings and errors are shown."""
    root = logging.getLogger()
    level, handlers, disabled = root.level, list(root.handlers), root.manager.disable
    logging.disable(max(disabled, logging.INFO))
    try:
        yield
    finally:
        logging.disable(disabled)
        root.setLevel(level)
        root.handlers[:] = handlers


def import_fairseq() -> None:
    """Import fairseq before any of its modules is used; idempotent.

    The root logger keeps its level and handlers, which fairseq would set to DEBUG, and a torchaudio that cannot be
    loaded is hidden from `transformers`.
    """
    shield_torchaudio()
    with root_logger_kept():
        importlib.import_module("fairseq.tasks")
