"""``mclip-report RUN_DIR``: losses, scale and recalls of a training over time, as one HTML page."""

from __future__ import annotations

import argparse
import html
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from mclip_fairseq.evaluation.reports.training_log import Curves, find_logs, read_curves
from mclip_fairseq.storage.files import shown

PROGRAM = "mclip-report"
EPILOG = """\
RUN_DIR holds what fairseq-train logged with

  fairseq-train ... --log-format json --log-file RUN_DIR/train.log

Several .log files are read oldest first; what a resumed run logged again replaces what was there.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``mclip-report``; returns 0, or 2 after one sentence on stderr when something cannot be used."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="folder with the log")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the page (default: RUN_DIR/report.html)")
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parser.parse_args(arguments)
    try:
        logs = find_logs(options.run)
        curves = read_curves(logs)
        output = options.output or options.run / "report.html"
        output.write_text(page(curves, options.run.resolve().name, logs, [PROGRAM, *arguments]), encoding="utf-8")
    except (ValueError, OSError) as error:
        print(f"{PROGRAM}: error: {shown(str(error))}", file=sys.stderr)
        return 2
    for place, metrics in curves.points.items():
        last = {name: list(points.values())[-1] for name, points in metrics.items()}
        print(f"{place}: " + ", ".join(f"{name} {value:g}" for name, value in last.items()))
    print(f"Written: {output}")
    return 0


def page(curves: Curves, title: str, logs: Sequence[Path], command: Sequence[str]) -> str:
    """The page: a plot per metric, every place of logging a line of its own.

    Args:
        curves: what was logged.
        title: of the page.
        logs: where it was read.
        command: what the user typed.
    """
    from mclip_fairseq.evaluation.reports.pages import STYLE, embed_figure
    from mclip_fairseq.storage.provenance import provenance

    made = provenance(command)
    body = [f"<h1>{html.escape(title)}</h1>"]
    for metric in curves.metrics:
        series = {place: found[metric] for place, found in curves.points.items() if metric in found}
        body.append(f"<h2>{html.escape(metric)}</h2>{embed_figure(metric, series)}")
    facts = {"command": made["command"], "versions": made["versions"], "logs": list(map(str, logs))}
    body.append(f"<pre>{html.escape(json.dumps(facts, indent=1))}</pre>")
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>\n'


if __name__ == "__main__":
    sys.exit(main())
