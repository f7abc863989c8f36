"""What full depth is composed of, and the clip that is watched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.clips import varied_clip
from benchmarks.second_question import ALL_BLOCKS, ALL_LAYERS, depth_factors, whole_depth
from llamavid.runtime.video.sources import open_source
from tests.clips import write_clip
from tests.test_work import RELEASED


def test_stages_grow_with_depth_as_their_operations_and_bytes_do() -> None:
    vision, language = replace(RELEASED.vision, depth=3), replace(RELEASED.language, layers=2)
    factors = depth_factors(replace(RELEASED, vision=vision, language=language), 1250)
    assert factors["vision"] == pytest.approx(ALL_BLOCKS / 3, rel=0.01)  # patches are embedded once
    assert factors["prefill"] == pytest.approx(
        31.17 / 1.17, rel=0.01
    )  # the last layer: keys and values alone
    assert 0.7 * ALL_LAYERS / 2 < factors["decode"] < 0.9 * ALL_LAYERS / 2  # every token meets it
    spent = {"decode_video": 9.0, "vision": 1.0, "context": 5.0}
    assert whole_depth(spent, factors) == {"decode_video": 0.0, "vision": factors["vision"], "context": 5.0}


def test_a_whole_model_needs_no_scaling() -> None:
    factors = depth_factors(RELEASED, 1250)
    assert [factors[stage] for stage in ("vision", "prefill", "decode")] == pytest.approx([1.0] * 3)


def test_no_picture_of_the_long_clip_comes_twice(tmp_path: Path) -> None:
    short = write_clip(tmp_path / "short.mp4", frames=132)
    clip = varied_clip(tmp_path / "clip.mp4", times=27, clip=short)  # two looks
    assert set(tmp_path.iterdir()) == {clip, short}
    with open_source(clip, fps=1.0) as source:
        seen = {frame.rgb.tobytes() for frame in source.frames()}
    assert len(seen) == 27 * 132 // 25 + 1
