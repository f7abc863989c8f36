"""A dozen of the thousand files of `make fuzz-videos`: damaged videos end in an answer or one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.mutants import MUTATIONS, mutant
from benchmarks.seeds import Seed, seeds

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="watches processes by Linux's account of them"
)


@pytest.fixture(scope="module")
def made() -> list[Seed]:
    return seeds()


def number_of(made: list[Seed], kind: str, mutation: str) -> int:
    """The first mutant of that kind, or of another where this FFmpeg has no such encoder."""
    place = next((number for number, seed in enumerate(made) if seed.kind == kind), 0)
    return list(MUTATIONS).index(mutation) * len(made) + place


def test_the_same_number_is_the_same_file(made: list[Seed]) -> None:
    assert mutant(made, 321) == mutant(seeds(), 321)
    assert mutant(made, 321) != mutant(made, 321, seed=1)


def test_every_mutation_of_every_kind_is_made(made: list[Seed]) -> None:
    all_of_them = [mutant(made, number) for number in range(len(made) * len(MUTATIONS))]
    assert len({(one.kind, one.mutation) for one in all_of_them}) == len(all_of_them)
    unchanged = [one for one in all_of_them if any(one.data == seed.data for seed in made)]
    assert len(unchanged) < len(all_of_them) / 50  # a cut between two pieces that are alike, at most


def test_each_ends_in_an_answer_or_one_line(made: list[Seed], tmp_path: Path) -> None:
    """In a process of its own: the pool's helpers would be children of the tests'."""
    numbers = [str(number_of(made, kind, mutation)) for kind, mutation in CHOSEN]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.mutated_videos", "--numbers", *numbers],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count('"problems": []') == len(CHOSEN)
    assert done.stdout.count('"exit_code": 0') > 0
    assert done.stdout.count('"exit_code": 1') > 0


CHOSEN = [
    ("mpegts h264", "many bits"),  # streams appear midway: a traceback, once
    ("mpegts mpeg2", "bits behind the header"),
    ("mp4 h264", "number in a box"),
    ("fragmented mp4", "length of a box"),
    ("mkv ffv1", "size of the picture"),
    ("webm vp9", "one after another"),
    ("avi mpeg4", "half and half"),
    ("raw hevc", "beginning lost"),
    ("gif", "piece twice"),
    ("apng", "cut before a box"),
    ("jpg progressive", "size of the picture"),  # a picture of 16,384 px a side
    ("png", "size of the picture"),
]
