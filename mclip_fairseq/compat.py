"""Lets fairseq, torchaudio and transformers work together in one process."""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.util
import logging
import sys
import warnings
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

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


def hide_fairseq_warnings() -> None:
    """Ignore what hydra and torch say of fairseq's use of them, twenty lines in each run; idempotent."""
    warnings.filterwarnings("ignore", category=UserWarning, module=r"hydra\.")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"fairseq\.")
    warnings.filterwarnings("ignore", r"\s*'config' is validated against ConfigStore schema", UserWarning)
    warnings.filterwarnings("ignore", "'pin_memory' argument is set as true but no accelerator", UserWarning)


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


# What a criterion and a task of fairseq import for scores that nothing here computes: a quarter of the import.
LATE = ("sklearn", "sklearn.metrics", "scipy.stats")


@contextlib.contextmanager
def scores_imported_late() -> Iterator[None]:
    """Let fairseq import functions of scikit-learn and scipy that load these packages when they are called."""
    stubs = {name: _Late(name) for name in LATE if name not in sys.modules}
    if "sklearn" in stubs and "sklearn.metrics" in stubs:
        vars(stubs["sklearn"])["metrics"] = stubs["sklearn.metrics"]
    sys.modules.update(stubs)
    try:
        yield
    finally:
        for name, stub in stubs.items():
            if sys.modules.get(name) is stub:
                del sys.modules[name]


class _Late(ModuleType):
    """A module whose functions import the real one when they are called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def called(*args: Any, **kwargs: Any) -> Any:
            return getattr(importlib.import_module(self.__name__), name)(*args, **kwargs)

        return called


class QuietFairseq(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports fairseq, whichever module asks for it, so that a user's process stays as it is.

    fairseq sets the root logger to DEBUG and logs as it is imported, it imports scikit-learn and scipy for scores, and
    a torchaudio that it requires but that cannot be loaded breaks `transformers`. Modules of this package import
    fairseq where they need it; this finder stands in front of the import system until the first of them does.
    """

    def __init__(self) -> None:
        self.loader: Any = None

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """The spec of `fairseq` with this loader, once; None for every other module.

        Asked for transformers, which breaks where it finds a torchaudio that cannot be loaded, it hides that first.

        Raises:
            ModuleNotFoundError: fairseq is not installed.
        """
        if name == "transformers":
            shield_torchaudio()
        if name != "fairseq":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None:
            sys.meta_path.insert(0, self)
            raise ModuleNotFoundError("fairseq is not installed; run mclip-doctor --fix", name=name)
        self.loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As fairseq's own loader."""
        module: ModuleType | None = self.loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Run fairseq's own loader: the root logger kept, scores imported late, an unusable torchaudio hidden."""
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.loader
        shield_torchaudio()
        with root_logger_kept(), scores_imported_late():
            self.loader.exec_module(module)


def keep_fairseq_quiet() -> None:
    """Put `QuietFairseq` in front of the import system, unless fairseq is imported already; idempotent."""
    if "fairseq" not in sys.modules and not any(isinstance(finder, QuietFairseq) for finder in sys.meta_path):
        sys.meta_path.insert(0, QuietFairseq())
