"""What is said about the frames that a question looked at."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from llamavid.bundle import open_bundle
from llamavid.errors import BundleError
from llamavid.runtime.evidence import NOT_PROOF, Evidence, EvidenceCollector, clock
from llamavid.runtime.session import FrameTime


def made_up(*relevance: float) -> Evidence:
    frames = tuple(FrameTime(25 * i, i / 1.0) for i in range(len(relevance)))
    attention = np.full((len(relevance), 4), 0.25, np.float32)
    return Evidence(frames, np.array(relevance, np.float32), attention)


def test_of_equal_frames_the_earlier_comes_first() -> None:
    found = made_up(1, 3, 3, 2)
    assert found.top(3) == [1, 2, 3]
    assert found.ranks.tolist() == [4, 1, 2, 3]


def test_frames_without_any_relevance_share_it_evenly() -> None:
    assert made_up(0, 0).shares.tolist() == [0.5, 0.5]


def test_the_document_has_every_frame_with_its_true_time() -> None:
    document = json.loads(json.dumps(made_up(1, 3).document()))
    assert document == {
        "note": NOT_PROOF,
        "frames": [
            {"index": 0, "pts_seconds": 0.0, "relevance": 1.0, "share": 0.25, "rank": 2},
            {"index": 25, "pts_seconds": 1.0, "relevance": 3.0, "share": 0.75, "rank": 1},
        ],
    }


def test_the_table_has_the_most_relevant_frames_first_and_says_what_it_is() -> None:
    _, first, second, last = made_up(1, 4, 2).table(2).splitlines()
    assert first.split() == ["00:01.0", "4.0", "#" * 20]
    assert second.split() == ["00:02.0", "2.0", "#" * 10]
    assert last == NOT_PROOF
    assert "attention, not proof" in NOT_PROOF.lower()


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "00:00.0"),
        (63.54, "01:03.5"),
        (59.96, "01:00.0"),
        (3723.5, "1:02:03.5"),
        (3599.97, "1:00:00.0"),
        (-1, "00:00.0"),
    ],
)
def test_a_clock_rounds_to_tenths(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown


# What cannot be told


def test_a_bundle_from_before_gives_no_evidence(short_bundle: Path, earlier_bundle: Path) -> None:
    EvidenceCollector(open_bundle(short_bundle))
    with pytest.raises(BundleError, match=r"gives no evidence.*Export it again"):
        EvidenceCollector(open_bundle(earlier_bundle))


def test_a_frame_of_no_number_is_named(short_bundle: Path) -> None:
    collector = EvidenceCollector(open_bundle(short_bundle))
    attention = np.full((2, 4), 0.25, np.float32)
    collector.add({"attention": attention, "relevance": np.array([1, np.nan], np.float32)})
    with pytest.raises(BundleError, match=r"frame 25 at 00:01\.0 no number"):
        collector.evidence((FrameTime(0, 0.0), FrameTime(25, 1.0)))
