"""What the package does on one GPU, in one run that ends within its budget and reads nothing from the network.

    python -m benchmarks.gpu [--budget 230] [--out DIR]
    python -m benchmarks.gpu --tiny                        # the same code at toy sizes, also on a CPU

Models have random weights at published sizes. `share` is the part of the largest measured speed of matrix products in
the same precision; `waits` counts the places where the CPU waits for the GPU, and `at` names them. Sections run in the
order of their worth. One that fails, or for which no time is left, says so, and the others still run.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch

import mclip_fairseq.tasks  # noqa: F401  (registers the components)
from benchmarks.gpu import encoding, losses, training
from benchmarks.gpu.measuring import TINY, Report, Sizes

SECTIONS = {
    "exactness": losses.exactness,
    "ceilings": losses.ceilings,
    "trikd": training.trikd,
    "mte": training.mte_stage2,
    "contrast": losses.contrast,
    "features": encoding.features,
    "texts": encoding.texts,
    "images": encoding.images,
    "retrieval": encoding.retrieval,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns 1 if a section failed or was left out."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budget", type=float, default=230, help="seconds after which no section begins (default 230)")
    parser.add_argument("--out", type=Path, help="also write the figures to gpu.json in this folder")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to see that the code runs")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, separated by commas (default: all)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: with --tiny only")
    options = parser.parse_args(argv)
    chosen = options.only.split(",")
    if unknown := set(chosen) - set(SECTIONS):
        parser.error(f"--only: {', '.join(sorted(unknown))} is not among {', '.join(SECTIONS)}")
    on_gpu = torch.cuda.is_available() and options.device != "cpu"
    if not on_gpu and not options.tiny:
        parser.error("torch finds no GPU here; --tiny runs the same code at toy sizes on the CPU")
    card = torch.cuda.get_device_name() if on_gpu else "CPU"
    print(f"{card}, torch {torch.__version__}, Python {platform.python_version()}", flush=True)
    report = Report(torch.device("cuda" if on_gpu else "cpu"))
    complete = run(report, TINY if options.tiny else Sizes(), chosen, options.budget)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        kept = {"card": card, "torch": torch.__version__, "figures": report.rows}
        (options.out / "gpu.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return 0 if complete else 1


def run(report: Report, size: Sizes, chosen: Sequence[str], budget: float) -> bool:
    """Run the sections; returns whether all of them ran to their end.

    Args:
        report: gets the figures.
        size: of the work.
        chosen: names of sections; they run in the order of `SECTIONS`.
        budget: seconds after which no section begins.
    """
    begun, complete = time.perf_counter(), True
    for name, section in SECTIONS.items():
        if name not in chosen:
            continue
        start = time.perf_counter()
        if start - begun > budget:
            report.add(name, "left out: no time remains", budget=budget)
            complete = False
            continue
        try:
            section(report, size)
        except Exception as error:  # the other sections still have something to say
            traceback.print_exc()
            report.add(name, "failed", error=f"{type(error).__name__}: {error}".splitlines()[0])
            complete = False
        if report.on_gpu:
            torch.cuda.empty_cache()
        report.add(name, "took", s=time.perf_counter() - start)
    return complete


if __name__ == "__main__":
    sys.exit(main())
