"""Lets ``fairseq --user-dir`` accept every path that leads to this package, symbolic links included.

When a package of this name is already imported, ``fairseq.utils.import_user_module`` compares the absolute
path of ``--user-dir`` with the package's ``__path__`` as strings. The same directory reached through a link,
or through ``..`` as fairseq itself writes it for an installed package, is refused as "not globally unique".
"""

from __future__ import annotations

import os


class PackagePath(list[str]):
    """A package's ``__path__`` in which ``path in __path__`` asks whether both are the same directory.

    Iteration, length and order are a list's, so that the import system sees nothing new::

        __path__ = PackagePath(__path__)
    """

    def __contains__(self, path: object) -> bool:
        """Whether ``path`` leads to one of the directories; a path that does not exist leads to none."""
        if super().__contains__(path):
            return True
        if not isinstance(path, str | os.PathLike):
            return False
        real = os.path.realpath(path)
        return any(os.path.realpath(entry) == real for entry in self)
