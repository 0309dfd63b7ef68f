"""What names a collection of a database: the address, the name and the credentials."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from mclip_fairseq.storage.errors import UserError

AGAIN = "when that is solved, run the same command again"
COLLECTION = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")


@dataclass(frozen=True)
class Addresses:
    """The addresses of an engine.

    Attributes:
        engine: its name.
        server: pattern of a server's address.
        example: of such an address.
        ending: of a file or folder that needs no server.
        credentials: their form.
    """

    engine: str
    server: re.Pattern[str]
    example: str
    ending: str
    credentials: str

    @property
    def uri_variable(self) -> str:
        """The environment variable that holds the address."""
        return f"{self.engine.upper()}_URI"

    @property
    def token_variable(self) -> str:
        """The environment variable that holds the credentials."""
        return f"{self.engine.upper()}_TOKEN"

    @property
    def remedy(self) -> str:
        """How to give credentials."""
        return f"set {self.token_variable} to {self.credentials}"

    @property
    def forms(self) -> str:
        """What a user may give."""
        return f"{self.example}, or a path that ends in {self.ending}"

    def check(self, uri: str, create: bool) -> None:
        """Check an address, without asking it.

        Args:
            uri: the address.
            create: whether a file or folder may be new.

        Raises:
            UserError: it is malformed, holds credentials, or names a file that does not exist.
        """
        if not uri:
            raise UserError(f"--engine {self.engine} needs --uri or {self.uri_variable}: {self.forms}")
        if "://" in uri:
            if "@" in uri:
                raise UserError(f"--uri holds credentials, which others can read; {self.remedy}")
            if not self.server.fullmatch(uri):
                raise UserError(f"--uri {uri}: is not an address; give {self.forms}")
            return
        path = Path(uri)
        if path.suffix != self.ending:
            raise UserError(f"--uri {uri}: is neither an address nor a path that ends in {self.ending}; give one")
        if create and not path.absolute().parent.is_dir():
            raise UserError(f"--uri {uri}: the folder {path.absolute().parent} does not exist; create it first")
        if not create and not path.exists():
            raise UserError(f"--uri {uri}: no such database; create it with mclip-search build")


def check_collection_name(name: str) -> None:
    """Check that a collection can have this name.

    Raises:
        UserError: it cannot.
    """
    if not COLLECTION.fullmatch(name):
        raise UserError(f"{name!r} cannot name a collection; use letters, digits and _, up to 255 of them")
