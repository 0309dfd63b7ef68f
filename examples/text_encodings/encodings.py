#!/usr/bin/env python3
"""Join the English captions of several sets into one table, and describe the feature directory made from it.

- join NAME=DIR ... --output DIR: DIR is what a script of preprocess/ wrote. `captions.tsv` has a line 'NAME/id, tab,
  caption' for every line of its `texts.en.tsv`; `sources.json` says where they are from.
- describe FEATURES --sources sources.json: write FEATURES/README.md, after checking that every caption is in it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mclip_fairseq.cli.main import Parser, run_main
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.features import FeatureStore
from mclip_fairseq.storage.fields import check_fields
from mclip_fairseq.storage.files import file_sha256, read_json, read_lines, write_bytes, write_json

TEXTS, CAPTIONS, SOURCES = "texts.en.tsv", "captions.tsv", "sources.json"
README = """\
# Text encodings of {model}

{count} English captions as vectors of {dim} numbers ({dtype}): the final text features of `{model}`{revision}, {norm}.

| set | from | captions | ids |
| --- | --- | --- | --- |
{rows}

The files are a feature directory of mclip_fairseq: `.npy` shards, `ids.txt` in the order of the rows, and
`manifest.json` with the hash of every file. They are read by id:

    from mclip_fairseq.storage.features import FeatureStore

    store = FeatureStore.open("DIRECTORY")
    vectors = store.take(store.rows(["{first}"]))

fairseq-train reads them as `--text-features`, for a student that learns them from captions in other languages.
"""


def join(sets: Sequence[str], output: Path) -> str:
    """Write the table and what it was made from; returns a summary.

    Args:
        sets: `NAME=DIR` of each set.
        output: directory to write.

    Raises:
        UserError: a set is malformed, or its name is not unique.
    """
    lines: list[str] = []
    sources: dict[str, Any] = {}
    for item in sets:
        name, _, place = item.partition("=")
        if not (name.isidentifier() and place) or name in sources:
            raise UserError(f"{item}: write each set as NAME=DIR, with names of letters and digits that differ")
        folder = Path(place)
        if not (folder / TEXTS).is_file():
            raise UserError(f"{folder / TEXTS}: not found; make the set with its script in preprocess/")
        manifest = check_fields(
            folder / "manifest.json", read_json(folder / "manifest.json"), {"name": str}, "make the set again"
        )
        own = [f"{name}/{line}" for line in read_lines(folder / TEXTS)]
        sources[name] = {"name": manifest["name"], "captions": len(own), "sha256": file_sha256(folder / TEXTS)}
        lines += own
    output.mkdir(parents=True, exist_ok=True)
    write_bytes(output / CAPTIONS, "".join(f"{line}\n" for line in lines).encode())
    write_json(output / SOURCES, sources)
    return f"{output / CAPTIONS}: {len(lines)} captions of {', '.join(sources)}"


def describe(features: Path, file: Path) -> str:
    """Write the README of a feature directory; returns a summary.

    Args:
        features: the directory.
        file: `sources.json`.

    Raises:
        UserError: the directory does not hold exactly the captions of the sources.
    """
    sources = check_fields(file, read_json(file), {}, "run the stage join again")
    store = FeatureStore.open(features)
    counts = dict.fromkeys(sources, 0)
    for identifier in store.ids:
        name = identifier.partition("/")[0]
        counts[name] = counts.get(name, 0) + 1
    if counts != {name: source["captions"] for name, source in sources.items()}:
        raise UserError(f"{features}: holds {counts} captions, which are not those of {file}; make it again")
    rows = [f"| {n} | {s['name']} | {s['captions']} | `{n}/SPLIT/NUMBER` |" for n, s in sources.items()]
    revision = store.identity.get("revision")
    text = README.format(
        model=store.identity["name"],
        revision=f" at {revision}" if revision else "",
        count=len(store),
        dim=store.dim,
        dtype=store.dtype,
        norm="L2-normalised" if store.manifest["normalized"] else "not normalised",
        rows="\n".join(rows),
        first=store.ids[0],
    )
    write_bytes(features / "README.md", text.encode())
    return f"{features / 'README.md'}: {len(store)} captions"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    joining = commands.add_parser("join", help="one table of captions")
    joining.add_argument("sets", nargs="+", metavar="NAME=DIR", help="a set of preprocess/, with its name in ids")
    joining.add_argument("--output", type=Path, required=True, metavar="DIR", help="directory to write")
    describing = commands.add_parser("describe", help="README of the feature directory")
    describing.add_argument("features", type=Path, help="feature directory of the table")
    describing.add_argument("--sources", type=Path, required=True, metavar="FILE", help="sources.json of join")
    options = parser.parse_args(argv)
    work = {
        "join": lambda: join(options.sets, options.output),
        "describe": lambda: describe(options.features, options.sources),
    }
    return run_main("encodings.py", lambda: print(work[options.command]()))


if __name__ == "__main__":
    sys.exit(main())
