"""What calibration asks about its clips."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llamavid.calibration.questions import GENERAL, Questions, read_questions
from llamavid.errors import UsageError
from llamavid.train.world_casting import scenes
from llamavid.train.world_files import entry


def test_clips_are_asked_different_general_questions_and_the_same_ones_again() -> None:
    asked = {clip: Questions().about(clip, seed=0, count=2) for clip in map(str, range(30))}
    assert all(len(set(two)) == 2 for two in asked.values())
    assert {question for two in asked.values() for question in two} == set(GENERAL)
    assert asked["7"] == Questions().about("7", seed=0, count=2)


def test_a_text_has_a_question_a_line(tmp_path: Path) -> None:
    file = tmp_path / "questions.txt"
    file.write_text("\ufeffWho is it?\n\n  Where?  \r\nWho is it?\n", encoding="utf-8")
    assert read_questions(file).general == ("Who is it?", "Where?")


def test_a_data_set_s_questions_are_asked_about_their_own_clips(tmp_path: Path) -> None:
    made = [entry(scene) for scene in scenes("train", 0, 3)]
    items = [*made[0].questions, *made[1].questions, made[2].turns]
    (tmp_path / "questions.json").write_text(json.dumps(items))
    questions = read_questions(tmp_path / "questions.json")
    assert not any("<image>" in question for question in questions.general)
    own = [turn["value"] for turn in made[2].turns["conversations"] if turn["from"] == "human"]
    own[0] = own[0].removeprefix("<image>\n")
    asked = questions.about(f"elsewhere/{made[2].turns['video']}", seed=0, count=len(own))
    assert sorted(asked) == sorted(own)
    assert len(questions.about("a clip of another set", seed=0, count=3)) == 3


def test_open_ended_questions_are_found_by_a_name_without_its_ending(tmp_path: Path) -> None:
    file = tmp_path / "test_q.json"
    file.write_text(json.dumps([{"video_name": "v_abc", "question": "is it raining"}, {"question": "who"}]))
    assert read_questions(file).about("clips/v_abc.mp4", seed=0, count=1) == ("is it raining",)


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("q.txt", b"\n \n", "holds no question"),
        ("q.txt", b"\xff\xfe", "is not UTF-8 text"),
        ("q.json", b"[", "is not JSON"),
        ("q.json", b'{"question": "Who?"}', "is not a list"),
        (
            "q.json",
            b'[1, {"conversations": [7, {"from": "human", "value": "<image>"}]}]',
            "holds no question",
        ),
    ],
)
def test_a_file_without_questions_is_one_line(tmp_path: Path, name: str, content: bytes, line: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=line):
        read_questions(tmp_path / name)
