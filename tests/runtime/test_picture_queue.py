"""The compiled queue and the one in Python agree, whatever is asked of them."""

from __future__ import annotations

import importlib
import importlib.util
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from llamavid.runtime.picture_queue import PictureQueue, Status
from llamavid.runtime.pixels import CLIP_MEAN, CLIP_STD
from llamavid.runtime.stream import StreamCounters
from tests.runtime.test_pixels import needs_native

HEADER = Path(__file__).parents[2] / "runtime/native/include/llamavid/runtime.h"
PICTURES = np.random.default_rng(0).integers(0, 256, (5, 6, 9, 3), np.uint8)

CALLS = st.one_of(
    st.tuples(st.just("push"), st.integers(-2, 60)),  # 60: not a number
    st.tuples(st.just("push"), st.integers(-2, 60)),
    st.tuples(st.sampled_from(["next", "next", "no picture"]), st.just(0)),
    st.tuples(st.sampled_from(["end", "close"]), st.just(0)),
)


@needs_native
@settings(max_examples=200, deadline=None)
@given(
    calls=st.lists(CALLS, max_size=40),
    capacity=st.integers(1, 4),
    fps=st.sampled_from([0.0, 0.3, 1.0, 7.0, 1e300]),
    drop_oldest=st.booleans(),
)
def test_both_queues_agree_in_every_status_counter_and_pixel(
    calls: list[tuple[str, int]], capacity: int, fps: float, drop_oldest: bool
) -> None:
    options = {
        "image_size": 4,
        "mean": np.asarray(CLIP_MEAN, np.float32),
        "std": np.asarray(CLIP_STD, np.float32),
        "half": False,
        "capacity": capacity,
        "fps": fps,
        "drop_oldest": drop_oldest,
    }
    native = importlib.import_module("llamavid.runtime._native").PictureQueue(**options, simd="scalar")
    queues = (PictureQueue(**options), native)  # type: ignore[arg-type]
    for number, (call, tenths) in enumerate(calls):
        outcomes = []
        for queue in queues:
            pixels = np.zeros((3, 4, 4), np.float32)
            outcome: Any = None
            if call == "push":
                seconds = math.nan if tenths == 60 else tenths / 10 + number / 20
                outcome = queue.push(PICTURES[number % 5], number, seconds, 0)
            elif call == "no picture":
                outcome = queue.push(None, number, 0.0, 0)
            elif call == "next":
                outcome = queue.next(pixels, 0)
            else:
                getattr(queue, call)()
            outcomes.append((outcome, queue.counters(), pixels.tobytes()))
            c = StreamCounters(*queue.counters())
            assert c.pushed == c.kept + c.sampled_out + c.refused + c.timed_out
            assert c.kept == c.delivered + c.dropped + c.waiting
        assert outcomes[0] == outcomes[1]


def test_statuses_have_the_numbers_of_the_header() -> None:
    numbers = dict(re.findall(r"LLAMAVID_(\w+) = (\d+)[,\s]", HEADER.read_text(encoding="utf-8")))
    assert {status.name: str(status.value) for status in Status}.items() <= numbers.items()
