"""Running `mclip-search` in a test's process."""

from __future__ import annotations

import json
from collections.abc import Callable

from mclip_fairseq.cli import search as cli

BUILD = ["build", "photos", "--model", "colours", "--output", "index", "--workers", "0"]
LOAD_MODEL = cli.load_model  # a fixture replaces it
Run = Callable[..., str]


def hits(run: Run, *arguments: object) -> list[str]:
    """Ids that a query finds, best first."""
    answers = json.loads(run("query", "index", *arguments, "--json"))["answers"]
    return [hit["id"] for hit in answers[0]["results"]]
