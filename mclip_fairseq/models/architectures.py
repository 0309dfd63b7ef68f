"""Named sizes: an architecture sets what the user did not."""

from argparse import Namespace
from typing import Any


def set_defaults(args: Namespace, **defaults: Any) -> None:
    """Set options that were not given on the command line."""
    for name, value in defaults.items():
        if not hasattr(args, name):
            setattr(args, name, value)
