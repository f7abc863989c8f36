"""Measures everything, the most important first, and writes results/gpu_NAME.{json,md,png} as it goes.

    python -m benchmarks.gpu                            on a GPU: 7B dimensions, random weights, ten minutes
    python -m benchmarks.gpu --device cpu --size tiny   the same steps without a GPU; times mean nothing

Needs PyTorch alone. Exit 0: all was measured; 1: something failed, or a figure is void; 2: typed wrong.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from importlib.util import find_spec
from pathlib import Path

import torch

from benchmarks.gpu.card import clocks, file_stem, machine, watched_gpu
from benchmarks.gpu.dimensions import SIZES
from benchmarks.gpu.errors import exact_float32
from benchmarks.gpu.report import Report
from benchmarks.gpu.run import Plan, run
from llamavid.runtime.profile.watch import Watch, marks, told

_WITHOUT = "Without one, --device cpu --size tiny runs the same steps."
RESULTS = Path(__file__).parent.parent / "results"


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    options = _parser().parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(f"error: torch {torch.__version__} sees no GPU. {_WITHOUT}", file=sys.stderr)
        return 1
    if device.type == "cuda":
        torch.cuda.set_device(device)
    folder = options.output or Path(os.environ.get("OUT") or (RESULTS if device.type == "cuda" else "build"))
    folder.mkdir(parents=True, exist_ok=True)
    exact_float32()
    file = folder / f"{file_stem(device)}.json"
    plan = Plan.of(options.size, compiles=options.compile)
    report = Report(file, machine(device), {"size": options.size}, options.seconds)
    _watched(report, plan, device)
    with report.attempt("the plot"):
        _draw(report)
    print(file.with_suffix(".md").read_text(encoding="utf-8"))
    return 1 if report.failed or report.has_void else 0


def _watched(report: Report, plan: Plan, device: torch.device) -> None:
    """The run, and what the machine did meanwhile: a run that is stopped tells that of its figures, too."""
    gpu = watched_gpu(device)
    before = clocks(gpu)
    with Watch(gpu) as watch:
        try:
            run(report, plan, device)
        except (SystemExit, KeyboardInterrupt):
            report.marks.append("the run was stopped before its end")
            raise
        finally:
            if before:
                report.settings |= {"clocks before": before, "clocks after": clocks(gpu)}
            report.settings |= told(watch.samples)
            report.marks += marks(watch.samples)
            report.save()


def _draw(report: Report) -> None:
    if find_spec("matplotlib") is None:
        report.skip("the plot", "matplotlib is not installed")
        return
    from benchmarks.gpu.plot import draw

    draw(report.document(), report.file.with_suffix(".png"))


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description="Speed on a GPU, published computation beside ours."
    )
    made.add_argument("--device", default="cuda", help="cuda, cuda:1, cpu (default: cuda)")
    made.add_argument("--size", choices=SIZES, default="7b", help="dimensions (default: 7b)")
    made.add_argument("--seconds", type=float, default=510.0, help="what has not begun by then is left out")
    made.add_argument("--no-compile", dest="compile", action="store_false", help="without torch.compile")
    where = "default: $OUT, or benchmarks/results, or build where there is no GPU"
    made.add_argument("--output", type=Path, metavar="DIR", help=where)
    return made


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # a time limit: marks are written
    sys.exit(main())
