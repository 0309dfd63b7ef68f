"""Lets `fairseq --user-dir` accept every path to this package, and registers the plugin when fairseq asks.

`fairseq.utils.import_user_module` looks for `--user-dir` in the working directory and then beside fairseq itself, in
site-packages. It imports the last part of the path as a module and then the `tasks/` and `models/` of that path. Three
things go wrong there:

- If a package of this name is already imported, it only checks that the absolute path is in the package's `__path__`,
  compared as strings. It would refuse the same directory reached through a link, or through `..` (which fairseq itself
  writes for an installed package), as "not globally unique"; and a package that was imported only for its losses would
  register nothing.
- An editable install is not in site-packages. `setup.py` puts a signpost there (`signpost`).
- In the folder that holds a checkout, `mclip_fairseq` is the checkout, whose `tasks/` do not exist.
"""

from __future__ import annotations

import importlib
import os
import sys

NAME = "mclip_fairseq"
SIGNPOST = '''"""Leads to the checkout that is installed in editable mode (written by its setup.py)."""

import importlib.util
import sys

spec = importlib.util.spec_from_file_location(__name__, {init!r}, submodule_search_locations=[{folder!r}])
if spec is None or spec.loader is None:
    raise ImportError("cannot load " + {init!r})
module = sys.modules[__name__] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
'''


class PackagePath(list[str]):
    """A package's `__path__` in which `path in __path__` compares directories instead of strings.

    On a match the plugin is registered, because only fairseq's `--user-dir` asks. Iteration, length and order
    are those of a list, so the import system works as before.
    """

    def __contains__(self, path: object) -> bool:
        """Whether a path leads to one of the directories; registers the plugin if so."""
        if not isinstance(path, str | os.PathLike):
            return False
        same = super().__contains__(path) or any(leads_to(os.fspath(path), entry) for entry in self)
        if same:
            serve_fairseq()
        return same


def leads_to(path: str, package: str) -> bool:
    """Whether a path is the package's directory, the checkout around it, or a signpost to it."""
    real, target = os.path.realpath(path), os.path.realpath(package)
    if real in (target, os.path.dirname(target)):
        return True
    try:
        with open(os.path.join(real, "__init__.py"), encoding="utf-8") as file:
            return file.read() == signpost(target)
    except (OSError, UnicodeDecodeError):
        return False


def signpost(package: str) -> str:
    """Source of an `__init__.py` that loads the package from the absolute path of its directory."""
    return SIGNPOST.format(init=os.path.join(package, "__init__.py"), folder=package)


def register_if_asked() -> None:
    """Register the plugin if fairseq is importing it as `--user-dir`; called at the end of the package's import.

    fairseq notes each `--user-dir` before it imports it. Where the path is a signpost or a checkout, it finds no
    `tasks/` in it.
    """
    asked = getattr(getattr(sys.modules.get("fairseq.utils"), "import_user_module", None), "memo", ())
    if any(os.path.basename(path) == NAME for path in asked):
        serve_fairseq()


def serve_fairseq() -> None:
    """Register the plugin in one of fairseq's programs, whose errors then end in one line; idempotent."""
    importlib.import_module("mclip_fairseq.tasks")
    importlib.import_module("mclip_fairseq.resilience.launch").report_in_one_line()
