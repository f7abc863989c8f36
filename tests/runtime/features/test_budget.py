"""A budget for the whole process: features beyond it lie on disk, and what cannot be held is said first."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamavid.errors import DeviceError
from llamavid.runtime.features import budget as memory_budget
from llamavid.runtime.features.memory import FeatureMemory
from llamavid.runtime.memory import resident_memory
from llamavid.runtime.session import VideoSession
from tests.clips import write_clip

TIGHT = 40 << 20  # for the features and what a test's own process grows by meanwhile


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", frames=75)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of test size does not need what a real one's batches take."""
    monkeypatch.setattr(memory_budget, "WORKING_BYTES", 1 << 20)


def test_features_beyond_the_budget_lie_on_disk_and_the_answer_is_the_same(
    short_bundle: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with VideoSession.open(short_bundle) as session:
        session.watch(clip, fps=25)
        expected = session.ask("Why?", max_new_tokens=8).token_ids
    monkeypatch.setattr(memory_budget, "FEATURES_BYTES", 3000)  # a frame and a bit
    with VideoSession.open(short_bundle) as session:
        watched = session.watch(clip, fps=25)
        assert isinstance(watched.held, FeatureMemory)
        use = watched.held.use()
        assert use.spilled_bytes > use.resident_bytes
        assert session.ask("Why?", max_new_tokens=8).token_ids == expected


@pytest.mark.usefixtures("small_parts")
def test_a_budget_that_holds_the_model_is_enough(short_bundle: Path, clip: Path) -> None:
    with VideoSession.open(short_bundle, memory_bytes=resident_memory() + TIGHT) as session:
        session.watch(clip)
        assert session.ask("Why?", max_new_tokens=4).token_ids


def test_a_budget_too_small_for_the_model_and_one_frame_is_told_in_numbers(
    short_bundle: Path, clip: Path
) -> None:
    with (
        VideoSession.open(short_bundle, memory_bytes=64 << 20) as session,
        pytest.raises(DeviceError, match=r"64\.0 MiB leaves nothing .* expected at least [\d,.]+ MiB"),
    ):
        session.watch(clip)


def test_features_that_fit_neither_memory_nor_disk_are_refused_before_hours_of_encoding(
    short_bundle: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_budget, "FEATURES_BYTES", 1000)
    monkeypatch.setattr(memory_budget, "SPILL_BYTES", 1000)
    seen: list[int] = []
    with VideoSession.open(short_bundle) as session, pytest.raises(DeviceError, match="3 frames take"):
        session.watch(clip, on_frame=lambda done, _: seen.append(done))
    assert not seen


def test_a_picture_that_does_not_change_is_encoded_once(short_bundle: Path, tmp_path: Path) -> None:
    still = write_clip(tmp_path / "still.mp4", frames=50, moving=False)
    with VideoSession.open(short_bundle) as session:
        watched = session.watch(still, fps=25)
        assert len(watched.frames) == 50
        assert session.frames_encoded == 1
        assert len(watched.features()) == 50
