"""`mclip-report RUN_DIR`: losses, scale and recalls of a training over time, as one HTML page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mclip_fairseq.cli.main import Parser, run_main
from mclip_fairseq.storage.files import write_bytes

PROGRAM = "mclip-report"
EPILOG = """\
RUN_DIR holds what fairseq-train logged with

  fairseq-train ... --log-format json --log-file RUN_DIR/train.log

Several .log files are read oldest first; a resumed run replaces the values that it logs again.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `mclip-report`; returns 0, or 2 after one sentence on stderr when something cannot be used."""
    parser = Parser(
        prog=PROGRAM,
        description="Losses, scale and recalls of a training over time, as one HTML page.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="folder with the log")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the page (default: RUN_DIR/report.html)")
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parser.parse_args(arguments)
    output = options.output or options.run / "report.html"
    return run_main(PROGRAM, lambda: write_page(options.run, output, [PROGRAM, *arguments]))


def write_page(run: Path, output: Path, command: Sequence[str]) -> None:
    """Write the page of a run and print the last value of every metric."""
    from mclip_fairseq.evaluation.reports.pages import training_page
    from mclip_fairseq.evaluation.reports.training_log import find_logs, read_curves

    logs = find_logs(run)
    curves = read_curves(logs)
    write_bytes(output, training_page(curves, run.resolve().name, logs, command).encode())
    for place, metrics in curves.points.items():
        print(f"{place}: " + ", ".join(f"{name} {list(points.values())[-1]:g}" for name, points in metrics.items()))
    print(f"Written: {output}")


if __name__ == "__main__":
    sys.exit(main())
