"""Options in files that an earlier version wrote."""

import dataclasses
from collections.abc import Container
from typing import Any

from fairseq.dataclass import FairseqDataclass

# What an earlier version did where it did not have the option.
BEFORE_THE_OPTION = {"save_frozen": True}


def missing_options(config: type[FairseqDataclass], stored: Container[str]) -> dict[str, Any]:
    """The options that a file does not have, with the values that its writer behaved by.

    Args:
        config: the model's options.
        stored: names of the options in the file.
    """
    return {
        option.name: BEFORE_THE_OPTION.get(option.name, option.default)
        for option in dataclasses.fields(config)
        if option.name != "_name" and option.name not in stored
    }
