"""What builds where: every graph in every precision with TensorRT-RTX; seconds, sizes and peak memory.

    python -m benchmarks.what_builds [--model tiny --model real --model full]

tiny is what the tests build on every commit, real (two blocks and layers) too in three of the precisions.
full is EVA-g with all its 39 blocks, the whole text decoder and one decoder layer of the 7B, in float16
for SM80 alone. Each graph is built in a process of its own, whose peak memory is the build's. Writes
docs/what-builds.md and .json; what was not measured this time stays as it is there.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.one_build import Build, built
from benchmarks.report import machine
from llamavid.export.tensorrt_library import open_library
from llamavid.targets import Capability, Library, find_target, precisions_of

if TYPE_CHECKING:  # it brings PyTorch, which a process that builds is not to load
    from benchmarks.every_graph import WrittenGraph

PAGE = Path(__file__).parent.parent / "docs" / "what-builds.md"
SCRATCH = PAGE.parent.parent / "build"
CAPABILITIES: tuple[Capability, ...] = ((8, 0), (8, 6), (8, 9), (12, 0))


def main(models: tuple[str, ...]) -> None:
    found = _known()
    for model in models:
        found = [build for build in found if build.model != model]
        SCRATCH.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="what-builds-", dir=SCRATCH) as folder:
            found += _builds_of(model, Path(folder))
    library = open_library(Library.TENSORRT_RTX).label
    on = machine()
    document = {"library": library, "machine": on, "builds": [asdict(build) for build in found]}
    PAGE.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(_page(library, on, found), encoding="utf-8")
    print(f"{PAGE} and {PAGE.with_suffix('.json').name}")


def _known() -> list[Build]:
    file = PAGE.with_suffix(".json")
    if not file.exists():
        return []
    builds = json.loads(file.read_text(encoding="utf-8"))["builds"]
    return [Build(**{**b, "capabilities": tuple(map(tuple, b["capabilities"]))}) for b in builds]


def _builds_of(model: str, folder: Path) -> list[Build]:
    from benchmarks.every_graph import MODELS, PRECISIONS, every_graph
    from llamavid.model.checkpoint import open_checkpoint
    from llamavid.model.random_checkpoint import write_random_checkpoint
    from llamavid.model.random_weights import SIZES

    full = model == "full"
    size = replace(SIZES["7b"], name="full", layers=1) if full else MODELS[model]
    write_random_checkpoint(folder / "random", size, seed=7)
    checkpoint = open_checkpoint(folder / "random" / "checkpoint")
    found = []
    for precision in ("fp16",) if full else PRECISIONS:
        wanted = [c for c in CAPABILITIES if precision in precisions_of(c)]
        with tempfile.TemporaryDirectory(dir=folder) as graphs:
            for written in every_graph(checkpoint, Path(graphs), precision):
                capabilities = ((8, 0),) if full else tuple(wanted)
                found.append(_alone(model, precision, written, capabilities))
                print(_row(found[-1]), flush=True)
    return found


def _alone(model: str, precision: str, written: WrittenGraph, capabilities: tuple[Capability, ...]) -> Build:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        parts = (written.graph, written.file, written.contract, written.profiles, written.fixed)
        return pool.submit(built, model, precision, *parts, capabilities).result()


def _page(library: str, on: dict[str, str], builds: list[Build]) -> str:
    names = {
        "tiny": "The tiny model",
        "real": "The 7B model's dimensions, cut to two blocks and two layers",
        "full": "EVA-g with all 39 blocks, the whole text decoder, one decoder layer of the 7B",
    }
    lines = [
        "# What builds where",
        "",
        f"{library} without a GPU, {on['system']}, {on['processor']}; {on['memory']}.",
        "Other work shared the machine, so seconds are upper bounds. `make builds` measures again.",
        "One call builds for all devices of a row and fails where one of them cannot. Peak is the resident",
        "memory of a process that does nothing else.",
    ]
    for model, title in names.items():
        rows = [build for build in builds if build.model == model]
        if rows:
            lines += ["", f"## {title}", "", *_table(rows)]
    return "\n".join([*lines, "", *_not_built(), ""])


def _table(rows: list[Build]) -> list[str]:
    head = "| graph | precision | builds for | weights MB | engine MB | seconds | peak GB |"
    return [head, "|---|---|---|---|---|---|---|", *map(_row, rows)]


def _row(build: Build) -> str:
    devices = " ".join("SM{}{}".format(*capability) for capability in build.capabilities)
    sizes = f"{build.weights_bytes / 1e6:,.1f} | {build.engine_bytes / 1e6:,.1f}"
    cost = f"{build.seconds:.1f} | {build.peak_bytes / 1e9:.2f}"
    return f"| {build.graph} | {build.precision} | {build.refused or devices} | {sizes} | {cost} |"


def _not_built() -> list[str]:
    """What a device does not have, refused before anything is built."""
    all_of_them = precisions_of(CAPABILITIES[-1])
    lacking = {c: [p for p in all_of_them if p not in precisions_of(c)] for c in CAPABILITIES}
    lacking[(7, 5)] = [p for p in all_of_them if p not in find_target("rtx-sm75").precisions]
    named = [f"SM{a}{b}: {', '.join(absent)}" for (a, b), absent in lacking.items() if absent]
    return [
        "## What does not",
        "",
        f"Refused in one line before anything is built: {'; '.join(named)}.",
        "int8 on SM75 must be exported with `--compute fp16`: TensorRT-RTX has no float32 product there.",
        "It has no SM87 (Orin), SM90 (H100) and SM110 (Thor): their engines are TensorRT's, built",
        "on the device.",
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", action="append", choices=["tiny", "real", "full"], default=None)
    main(tuple(parser.parse_args().model or ("tiny", "real", "full")))
