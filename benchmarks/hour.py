"""An hour of video, a frame a second, every frame another picture: is memory bounded, and flat?

Features have EVA ViT-g's size, 0.72 MB a frame, 2.6 GB in all; the encoder has one block and the language
model two small layers, so that an hour takes minutes. `ask` watches the hour under a budget that does not
hold it; `stream` follows it with a window of ten minutes.

python -m benchmarks.hour
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.bundles import random_bundle
from benchmarks.report import Line, publish
from benchmarks.resident import Run, run_llamavid
from llamavid.commands.quantities import ByteSize
from tests.clips import write_clip

SECONDS = 3600
ENCODED: dict[str, Any] = {
    "size": (320, 180),
    "codec": "libx264",
    "pix_fmt": "yuv420p",
    "options": {"preset": "ultrafast"},
}
BUDGETS = {"ask": "1500M", "stream": "1200M"}


def main() -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        small = {"vision_depth": 1, "text_layers": 1, "hidden": 512, "layers": 2, "heads": 4, "mlp": 1024}
        bundle = random_bundle(Path(folder), rope_factor=4.0, **small)
        clip = write_clip(Path(folder, "hour.mp4"), frames=SECONDS, fps=1, **ENCODED)
        lines = [*_ask(bundle, clip), *_stream(bundle, clip)]
    publish("hour", "An hour of video: resident memory", "python -m benchmarks.hour", lines)


def _ask(bundle: Path, clip: Path) -> list[Line]:
    run = run_llamavid(
        "ask", bundle, clip, "What happens?", "--max-new-tokens", "4", "--memory", BUDGETS["ask"], "--json"
    )
    answer = json.loads(run.stdout)
    assert len(answer["frames"]) == SECONDS
    spent = {stage: milliseconds / 1000 for stage, milliseconds in answer["timings_ms"].items()}
    asking = spent["context"] + spent["sequence"] + spent["prefill"] + spent["decode"]
    return [
        *_memory("ask", run, watched_seconds=run.seconds[-1] - asking),
        Line("ask: frames watched", len(answer["frames"]), "", "2.6 GB of features"),
        Line(
            "ask: the question's pass over all of them", spent["context"], "s", "most come back from the disk"
        ),
    ]


def _stream(bundle: Path, clip: Path) -> list[Line]:
    asked = ("--ask", "What happens?", "--every", "60s", "--window", "10m", "--max-new-tokens", "4")
    run = run_llamavid("stream", bundle, clip, *asked, "--memory", BUDGETS["stream"], "--json")
    *_, end = map(json.loads, run.stdout.splitlines())
    assert end["frames_encoded"] == SECONDS
    note = f"{end['answers']} answers, {end['frames_read_again']} frames read again as the window slid"
    return [
        *_memory("stream", run, watched_seconds=run.seconds[-1]),
        Line("stream: frames encoded", end["frames_encoded"], "", note),
    ]


def _memory(what: str, run: Run, *, watched_seconds: float) -> list[Line]:
    budget = ByteSize().convert(BUDGETS[what], None, None) / 2**20
    peak = float(run.resident.max())
    held = "within the budget" if peak <= budget else "OVER THE BUDGET"
    return [
        Line(f"{what}: budget", budget, "MiB", f"--memory {BUDGETS[what]}"),
        Line(f"{what}: largest", peak, "MiB", held),
        Line(
            f"{what}: growth over the last 36 minutes of the hour",
            run.growth(watched_seconds),
            "MiB",
            f"which took {watched_seconds:.0f} s, along the line of least squares",
        ),
        Line(f"{what}: the decoding process beside it, largest", float(run.children.max()), "MiB"),
    ]


if __name__ == "__main__":
    main()
