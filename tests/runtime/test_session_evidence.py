"""Evidence through the session, from a file: the true frames, and no change to the answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llamavid import embedded
from llamavid.errors import BundleError
from llamavid.runtime import session as session_module
from llamavid.runtime.evidence import Evidence
from llamavid.runtime.session import VideoSession
from tests.clips import write_clip


@pytest.fixture(scope="module")
def looked() -> Evidence:
    """At the sample clip, for its red square; the scene has it from 3 to 5 seconds."""
    with VideoSession.open(embedded.default_bundle()) as session:
        session.watch(embedded.sample_clip())
        found = session.ask("What color is the square?", max_new_tokens=8, evidence=True).evidence
    assert found is not None
    return found


def test_the_most_relevant_frames_are_those_that_show_what_was_asked_about(looked: Evidence) -> None:
    assert sorted(looked.frames[at].pts_seconds for at in looked.top(3)) == [3.0, 4.0, 5.0]
    assert looked.relevance[3:6].min() > 2 * np.delete(looked.relevance, [3, 4, 5]).max()


def test_the_attention_lies_on_the_square(looked: Evidence) -> None:
    """Left of the middle and a little below it, about a quarter of the picture wide."""
    attention = looked.attention[4].reshape(8, 8)
    assert attention[3:7, 0:4].sum() > 0.9


def test_the_shares_of_the_frames_sum_to_one_and_so_do_the_patches(looked: Evidence) -> None:
    np.testing.assert_allclose(looked.shares.sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(looked.attention.sum(axis=1), 1, rtol=1e-5)
    assert sorted(looked.ranks) == list(range(1, len(looked.frames) + 1))


def test_evidence_changes_no_answer_and_looking_is_the_same_without_one(
    short_bundle: Path, tmp_path: Path
) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=50)
    with VideoSession.open(short_bundle) as session:
        session.watch(clip)
        plain = session.ask("What happens?", max_new_tokens=6)
        told = session.ask("What happens?", max_new_tokens=6, evidence=True)
        movie = session.ask_movie("What happens?", ["", "a bike"], max_new_tokens=2, evidence=True)
        looked = session.look("What happens?")
    assert plain.evidence is None
    assert told.token_ids == plain.token_ids
    for found in (told.evidence, movie.evidence):
        assert found is not None
        assert found.frames == told.frames == looked.frames
        np.testing.assert_array_equal(found.relevance, looked.relevance)
        np.testing.assert_array_equal(found.attention, looked.attention)


def test_the_number_of_frames_a_run_changes_no_evidence(
    short_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=75)
    with VideoSession.open(short_bundle) as session:
        session.watch(clip)
        whole = session.look("What happens?")
        monkeypatch.setattr(session_module, "CONTEXT_BATCH", 2)
        parts = session.look("What happens?")
    np.testing.assert_allclose(parts.relevance, whole.relevance, rtol=1e-5)
    np.testing.assert_allclose(parts.attention, whole.attention, rtol=1e-5)


def test_a_bundle_from_before_answers_and_gives_no_evidence(
    short_bundle: Path, earlier_bundle: Path, tmp_path: Path
) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=50)
    said = []
    for folder in (short_bundle, earlier_bundle):
        with VideoSession.open(folder) as session:
            session.watch(clip)
            said.append(session.ask("What happens?", max_new_tokens=8).token_ids)
    assert said[0] == said[1]
    with VideoSession.open(earlier_bundle) as session:
        session.watch(clip)
        with pytest.raises(BundleError, match=r"gives no evidence.*Export it again"):
            session.ask("What happens?", evidence=True)
        with pytest.raises(BundleError, match="gives no evidence"):
            session.look("What happens?")
