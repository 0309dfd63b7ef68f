"""Coverage-guided fuzzing with atheris (libFuzzer): `python -m tests.fuzz.coverage_guided manifest -runs=100000`.

Targets are those of `targets.py`, or `all`, of which the first byte of an input chooses one.

Needs `pip install "mclip_fairseq[fuzz]"` (Linux on x86-64). What follows the target's name is libFuzzer's; a crash is
written to a file beside, which this command reads again when it is given as the last option.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path


def main(argv: list[str]) -> None:
    """Fuzz one target until libFuzzer's options say stop."""
    import atheris
    import fairseq.data
    import fairseq.tasks  # noqa: F401

    # Only what is to be explored is instrumented; the rest is imported before, and costs nothing.
    import transformers  # noqa: F401

    with atheris.instrument_imports(include=["mclip_fairseq.data", "mclip_fairseq.evaluation", "mclip_fairseq.cli"]):
        from tests.fuzz import targets

    logging.disable(logging.CRITICAL)
    name, *options = argv
    folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=targets.fast_folder()))
    corpus = folder / "corpus"
    work = folder / "work"
    for path in (corpus, work):
        path.mkdir()
    (work / "a.npy").write_bytes(targets.NPY)
    names = list(targets.TARGETS) if name == "all" else [name]
    for place, target in enumerate(names):
        for number, seed in enumerate(targets.SEEDS[target]):
            (corpus / f"{target}{number}").write_bytes(bytes([place]) * (name == "all") + seed)

    def one(data: bytes) -> None:
        if name != "all":
            targets.attempt(name, work, data)
        elif data:
            targets.attempt(names[data[0] % len(names)], work, data[1:])

    limits = ["-max_len=4096", "-timeout=20", "-rss_limit_mb=4096", f"-artifact_prefix={Path.cwd()}/"]
    atheris.Setup(["fuzz", *limits, *options, str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
