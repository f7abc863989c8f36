"""Profiles read back and compared: what must be alike, what is clear, what is no profile."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llamavid.ceilings import Ceilings
from llamavid.config import ModelConfig
from llamavid.contract import (
    DType,
    content_contract,
    context_contract,
    language_contract,
    vision_contract,
)
from llamavid.errors import UsageError
from llamavid.runtime.profile.comparing import Ratio, compare
from llamavid.runtime.profile.document import (
    FORMAT_VERSION,
    Conditions,
    FrameFigures,
    LanguageFigures,
    Profile,
    QuestionFigures,
    VideoFigures,
    read_profile,
)
from llamavid.runtime.profile.figures import Figure
from llamavid.runtime.profile.roofline import roofline
from llamavid.runtime.profile.stages import Origin
from llamavid.runtime.profile.vouching import wide_spreads
from llamavid.work import MODULES, cache_numbers
from tests.test_work import RELEASED

ALIKE = {
    "processor": "A",
    "precision": "vision fp16",
    "batch": "8",
    "bundle": "0123",
}
CONTRACTS = {
    "vision": vision_contract(RELEASED, DType.FLOAT16),
    "content": content_contract(RELEASED, DType.FLOAT16),
    "context": context_contract(RELEASED, DType.FLOAT16),
    "llm": language_contract(RELEASED.language, DType.FLOAT16),
}
ORIGIN = Origin(CONTRACTS, dict.fromkeys(CONTRACTS, "fp16"), (), "0123")
CEILINGS = Ceilings("here", {"fp32": 1e11, "fp16": 1e11}, 2e10, "measured here", is_cpu=True)


def steady(ms: float, spread: float = 0.02) -> Figure:
    return Figure(ms, ms * (1 - spread / 2), ms * (1 + spread / 2), 20)


def made(encoder: float = 8000.0, *, config: ModelConfig = RELEASED, **alike: str) -> Profile:
    """A profile of a machine whose encoder takes so long."""
    times = {"encoder": encoder, "content": 1.0, "decoder": 400.0, "context": 20.0}
    modules = {name: steady(ms) for name, ms in times.items()}
    sums = {"text-free": encoder + 1, "text-related": 420.0, "total": encoder + 421}
    frames = (FrameFigures(8, {**modules, **{name: steady(ms) for name, ms in sums.items()}}, "nodes"),)
    language = LanguageFigures(256, 64, steady(9000.0), steady(700.0))
    questions = QuestionFigures(
        9,
        256,
        steady(70000.0),
        steady(90000.0),
        steady(20000.0),
        steady(13000.0),
        {"first": {}, "second": {}},
    )
    video = VideoFigures("clip.mp4", "640 x 360", 9, 9, steady(100.0), steady(3.0), steady(1.0))
    roof = roofline(config, 16, frames, language, ORIGIN, CEILINGS)
    conditions = Conditions({**ALIKE, **alike}, {"llamavid": "0.1.0"}, {"vision": "1e-4"}, ())
    return Profile(FORMAT_VERSION, conditions, video, frames, language, questions, roof, ())


def written(folder: Path, data: Any) -> Path:
    file = folder / "profile.json"
    file.write_text(data if isinstance(data, str) else json.dumps(data))
    return file


def test_a_profile_that_was_written_reads_back_the_same(tmp_path: Path) -> None:
    assert read_profile(written(tmp_path, made().to_json())) == made()


def test_ratios_say_how_many_times_as_fast_the_second_is_and_what_is_clear() -> None:
    ratios = {each.what: each for each in compare(made(8000.0), made(4000.0)).ratios}
    assert ratios["encoder, batch 8"].times == pytest.approx(2.0)
    assert ratios["encoder, batch 8"].is_clear
    assert ratios["decoder, batch 8"].times == pytest.approx(1.0)
    assert ratios["decoder, batch 8"].doubt == "within the spread"


def test_one_round_alone_makes_no_difference_clear() -> None:
    alone = Figure(8000.0, 8000.0, 8000.0, 1)
    assert Ratio("encoder", alone, steady(4000.0)).doubt == "too few rounds for a spread"


@pytest.mark.parametrize("what", ALIKE)
def test_profiles_that_were_not_made_alike_are_refused_naming_what_differs(what: str) -> None:
    other = made(**{what: "B"})
    with pytest.raises(UsageError, match=f"{what} {ALIKE[what]} and B") as refused:
        compare(made(), other)
    assert "--unlike" in refused.value.next_step
    assert compare(made(), other, unlike=True).unlike == (f"{what} {ALIKE[what]} and B",)


def test_a_condition_that_only_one_tells_of_is_a_difference() -> None:
    with pytest.raises(UsageError, match="power mode not told and MAXN"):
        compare(made(), made(**{"power mode": "MAXN"}))


def test_other_versions_are_told_and_not_refused() -> None:
    second = made()
    newer = replace(second, conditions=replace(second.conditions, told={"llamavid": "0.2.0"}))
    assert compare(made(), newer).told == ("llamavid 0.1.0 and 0.2.0",)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format_version": 2}, "format_version is 2, not 1"),
        ({"format_version": None}, "format_version is None"),
        ({"frames": "none"}, "no profile"),
        ({"more": 1}, "unknown fields: 'more'"),
    ],
)
def test_what_is_no_profile_is_refused_with_the_way_to_make_one(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    file = written(tmp_path, {**json.loads(made().to_json()), **change})
    with pytest.raises(UsageError, match=said) as refused:
        read_profile(file)
    assert "llamavid profile --json" in refused.value.next_step


@pytest.mark.parametrize("text", ["", "[]", "{}", "{" * 100_000, '{"format_version": NaN}', "null"])
def test_damaged_files_are_refused_in_words(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="is no profile"):
        read_profile(written(tmp_path, text))


def test_numbers_that_no_clock_gives_are_refused(tmp_path: Path) -> None:
    text = made().to_json().replace('"median": 3.0', '"median": -3.0')
    with pytest.raises(UsageError, match="a figure of"):
        read_profile(written(tmp_path, text))


def test_the_share_of_a_ceiling_is_the_floor_over_the_time() -> None:
    (encoder,) = [each for each in made().roofline.reached if each.module == "encoder"]
    assert encoder.floor == pytest.approx(5200, rel=0.03)  # 0.52 TFLOP at 0.1 TFLOP/s
    assert encoder.share == pytest.approx(0.65, rel=0.03)
    assert encoder.bound == "products"


def test_decoding_a_token_is_bound_by_memory() -> None:
    (decode,) = [each for each in made().roofline.reached if each.module == "decode"]
    assert decode.bound == "memory"
    assert decode.floor == pytest.approx(2 * 6.6e9 / 2e10 * 1000, rel=0.05)


def test_keys_and_values_are_counted_in_the_type_that_they_are_kept_in() -> None:
    """After an hour of video the cache is more than int4 weights are."""
    profile = made()
    language = replace(profile.language, prompt_tokens=7200)

    def bytes_of_a_token(cache: DType) -> float:
        contract = language_contract(RELEASED.language, DType.FLOAT32, cache=cache)
        origin = replace(ORIGIN, contracts={**CONTRACTS, "llm": contract})
        roof = roofline(RELEASED, 16, profile.frames, language, origin, CEILINGS)
        return next(each.bytes for each in roof.reached if each.module == "decode")

    kept = cache_numbers(RELEASED.language) * (7200 + 32 + 1)
    assert bytes_of_a_token(DType.FLOAT32) - bytes_of_a_token(DType.INT8) == pytest.approx(3 * kept)


def test_a_projection_is_at_least_the_floor_and_no_faster_at_the_share_reached_here() -> None:
    projected = {each.device: each for each in made().roofline.projected}
    assert set(projected) == {"A100", "H200", "AGX Orin", "Orin Nano", "Thor"}
    for each in projected.values():
        assert each.frame_at_least is not None
        assert each.frame_at_this_share is not None
        assert each.frame_at_least <= each.frame_at_this_share
        assert each.origin
    assert projected["A100"].frame_at_least == pytest.approx(1.72, rel=0.05)


def test_a_wide_spread_is_told_by_name_and_not_averaged_away() -> None:
    profile = made()
    frames = profile.frames[0]
    wide = replace(frames, modules={**frames.modules, "decoder": steady(400.0, spread=0.6)})
    (mark,) = wide_spreads((wide,), profile.language, profile.questions)
    assert mark == "rounds lie further apart than 25% of the median: decoder at batch 8 (60%)"
    assert not list(wide_spreads((frames,), profile.language, profile.questions))


def test_many_wide_spreads_are_told_by_the_worst_and_a_number() -> None:
    profile = made()
    all_wide = {name: steady(1.0, spread=0.5) for name in MODULES}
    frames = [replace(profile.frames[0], modules=all_wide, batch=batch) for batch in (1, 8)]
    (mark,) = wide_spreads(frames, profile.language, profile.questions)
    assert mark.endswith("and 4 more")
