"""Evaluation on the tiny real model: scores, interrupted runs, layouts, broken items, the command."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llamavid.cli import main
from llamavid.errors import UsageError
from llamavid.runtime.evaluate import (
    Settings,
    evaluate,
    grey_features,
    is_right,
    scores,
    watch_blind,
    wilson_interval,
)
from llamavid.runtime.qa_layouts import read_data_set
from llamavid.runtime.session import VideoSession
from tests.clips import drawn_frame, write_clip

BRIEF = Settings(max_new_tokens=3)
ASKED = (("one.mp4", "color"), ("two.mp4", "color"), ("one.mp4", "count"), ("still.png", "color"))


@pytest.fixture(scope="module")
def session(short_bundle: Path) -> VideoSession:
    return VideoSession.open(short_bundle, threads=1)


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips, of one and of two seconds, and a picture."""
    folder = tmp_path_factory.mktemp("media")
    write_clip(folder / "one.mp4", frames=25)
    write_clip(folder / "two.mp4", frames=50)
    Image.fromarray(drawn_frame(7)).save(folder / "still.png")
    return folder


def llava_item(name: str, file: str, kind: str, answer: str = "red", **more: Any) -> dict[str, Any]:
    said = [("human", f"<image>\nWhich {kind}?"), ("gpt", answer)]
    return {
        "id": name,
        "image" if file.endswith("png") else "video": file,
        "kind": kind,
        "conversations": [{"from": who, "value": words} for who, words in said],
        **more,
    }


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def data(session: VideoSession, media: Path, tmp_path: Path) -> Path:
    """Four questions. Of the first and the third, the right answer is what the model says."""
    items = [llava_item(f"q{index}", *asked) for index, asked in enumerate(ASKED)]
    first = evaluate(session, read_data_set(write(tmp_path / "draft.json", items), media=media), BRIEF)
    for index in (0, 2):
        items[index]["conversations"][1]["value"] = f" The {first.records[index]['answer'].upper()}. "
    items[2]["unseen_pair"], items[3]["unseen_pair"] = True, False
    return write(tmp_path / "questions.json", items)


# Scores


def test_scores_add_up_and_unseen_pairs_are_told_apart(
    session: VideoSession, data: Path, media: Path, tmp_path: Path
) -> None:
    outcome = evaluate(session, read_data_set(data, media=media), BRIEF, output=tmp_path / "answers.jsonl")
    found = scores(outcome.records)
    assert {kind: (row.questions, row.right) for kind, row in found.kinds.items()} == {
        "color": (3, 1),
        "count": (1, 1),
    }
    assert (found.total.questions, found.total.right, found.total.accuracy) == (4, 2, 0.5)
    assert (found.total.low, found.total.high) == wilson_interval(2, 4)
    assert found.unseen_pairs is not None
    assert (found.unseen_pairs.questions, found.unseen_pairs.right) == (1, 1)
    header, *records = lines(tmp_path / "answers.jsonl")
    assert header["bundle"] == session.bundle.digest
    assert [record["id"] for record in records] == ["q0", "q2", "q1", "q3"]  # video by video
    assert records[1].keys() == {"id", "kind", "question", "expected", "answer", "right", "unseen_pair"}
    assert records[1]["question"] == "Which count?"
    assert "unseen_pair" not in records[0]


def test_a_video_is_watched_once_for_all_of_its_questions(
    short_bundle: Path, data: Path, media: Path
) -> None:
    with VideoSession.open(short_bundle, threads=1) as session:
        shown: Counter[int] = Counter()
        watched = []

        def look(done: int, total: int) -> None:
            assert total == 4
            shown[done] += 1
            watched.append(session.watched)

        evaluate(session, read_data_set(data, media=media), BRIEF, on_progress=look)
    assert shown == Counter([1, 2, 3, 4])
    assert watched[0] is watched[1]
    assert len({id(video) for video in watched}) == 3


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("Red.", "red", True),
        ("  the red circle !\n", "Red circle", True),
        ("A the red", "red", True),
        ("banana split", "banansplit", False),
        ("a", "A.", True),  # a choice, not an article
        ("redder", "red", False),
        ("", "red", False),
    ],
)
def test_case_articles_and_final_punctuation_do_not_make_an_answer_wrong(
    answer: str, expected: str, right: bool
) -> None:
    assert is_right(answer, expected) is right


@pytest.mark.parametrize(
    ("right", "questions", "interval"),
    [
        (0, 10, (0.0, 0.2775)),  # z2 / (10 + z2)
        (5, 10, (0.2366, 0.7634)),
        (10, 10, (0.7225, 1.0)),
        (81, 263, (0.2553, 0.3662)),  # Newcombe 1998, table I
        (0, 0, (0.0, 1.0)),
    ],
)
def test_the_interval_is_wilsons(right: int, questions: int, interval: tuple[float, float]) -> None:
    assert wilson_interval(right, questions) == pytest.approx(interval, abs=5e-5)


# Runs that end early


def test_an_interrupted_run_continues_to_the_same_file(
    session: VideoSession, data: Path, media: Path, tmp_path: Path
) -> None:
    """Interrupted by Ctrl-C after two answers, and by a power failure in the middle of a third line."""
    questions = read_data_set(data, media=media)
    whole, parted = tmp_path / "whole.jsonl", tmp_path / "parted.jsonl"
    expected = evaluate(session, questions, BRIEF, output=whole)

    def press_ctrl_c(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(session, questions, BRIEF, output=parted, on_progress=press_ctrl_c)
    assert parted.read_bytes() == b"".join(whole.read_bytes().splitlines(keepends=True)[:3])
    with parted.open("ab") as file:
        file.write(b'{"id": "q1", "ki')
    seen: list[int] = []
    found = evaluate(
        session, questions, BRIEF, output=parted, on_progress=lambda done, total: seen.append(done)
    )
    assert seen == [3, 4]
    assert found == expected
    assert parted.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("difference", ["data", "settings", "bundle"])
def test_answers_of_another_run_are_not_continued(
    session: VideoSession, data: Path, media: Path, tmp_path: Path, difference: str
) -> None:
    output = tmp_path / "answers.jsonl"
    evaluate(session, read_data_set(data, media=media, limit=1), BRIEF, output=output)
    settings = BRIEF
    if difference == "data":
        data.write_text(data.read_text() + "\n")
    elif difference == "settings":
        settings = Settings(max_new_tokens=3, blind=True)
    else:
        output.write_text(output.read_text().replace(session.bundle.digest, "0" * 64))
    before = output.read_bytes()
    with pytest.raises(UsageError, match=f"of another run: its {difference} differ"):
        evaluate(session, read_data_set(data, media=media), settings, output=output)
    assert output.read_bytes() == before


@pytest.mark.parametrize("content", ["my diary", "[]\n", '{"a": 1}\n', "\n"])
def test_a_file_of_something_else_is_never_written_over(
    session: VideoSession, data: Path, media: Path, tmp_path: Path, content: str
) -> None:
    (tmp_path / "diary").write_text(content)
    with pytest.raises(UsageError, match="no file of answers"):
        evaluate(session, read_data_set(data, media=media), BRIEF, output=tmp_path / "diary")
    assert (tmp_path / "diary").read_text() == content


def test_a_run_that_failed_before_its_first_answer_is_in_nobodys_way(
    session: VideoSession, data: Path, media: Path, tmp_path: Path
) -> None:
    questions, output = read_data_set(data, media=media, limit=1), tmp_path / "answers.jsonl"
    with pytest.raises(UsageError, match="fps"):
        evaluate(session, questions, Settings(fps=-1), output=output)
    evaluate(session, questions, BRIEF, output=output)
    assert [line.get("id") for line in lines(output)] == [None, "q0"]


# Blind


def test_a_blind_model_sees_as_many_frames_all_of_them_grey(session: VideoSession, media: Path) -> None:
    seeing = session.watch(media / "two.mp4")
    seen = seeing.features()
    grey = grey_features(session)
    blind = watch_blind(session, media / "two.mp4", grey, fps=1.0)
    assert blind.frames == seeing.frames
    assert blind.features().shape == seen.shape
    np.testing.assert_array_equal(blind.features()[0], blind.features()[1])
    assert not np.allclose(blind.features(), seen)


def test_a_blind_run_gives_the_same_answer_about_every_video_of_a_length(
    session: VideoSession, media: Path, tmp_path: Path
) -> None:
    shutil.copy(media / "one.mp4", tmp_path / "one.mp4")
    Image.fromarray(drawn_frame(3)).save(tmp_path / "still.png")
    items = [llava_item("a", "one.mp4", "color"), llava_item("b", "still.png", "color")]
    questions = read_data_set(write(tmp_path / "data.json", items))
    first, second = evaluate(session, questions, Settings(max_new_tokens=3, blind=True)).records
    assert first["answer"] == second["answer"]


# Broken items


def test_broken_items_are_named_and_the_others_answered(
    session: VideoSession, media: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    shutil.copy(media / "one.mp4", tmp_path)
    items = [
        llava_item("missing", "gone.mp4", "color"),
        llava_item("damaged", "text.mp4", "color"),
        llava_item("long", "one.mp4", "word " * 300),
        llava_item("sound", "one.mp4", "color"),
        llava_item("sound", "one.mp4", "count"),
        llava_item("silent", "one.mp4", "color", conversations=[]),
        {**llava_item("mute", "one.mp4", "color"), "video": None},
    ]
    named: list[Any] = []
    data = read_data_set(write(tmp_path / "data.json", items))
    outcome = evaluate(session, data, BRIEF, on_broken=lambda broken: named.append(broken))
    assert [record["id"] for record in outcome.records] == ["sound"]
    assert tuple(named) == outcome.broken
    assert {str(broken.name) for broken in named} == {str(item["id"]) for item in items}
    reasons = " ".join(broken.reason for broken in named)
    for reason in ("cannot be opened", "damaged", "tokens", "earlier item", "not one question", "names no"):
        assert reason in reasons
    assert outcome.too_broken


# Open-ended questions


@pytest.mark.parametrize("layout", ["Video-ChatGPT", "as published"])
def test_open_ended_questions_become_predictions_for_a_judge(
    session: VideoSession, media: Path, tmp_path: Path, layout: str
) -> None:
    """ActivityNet's videos have v_ before their names; MSVD's and MSRVTT's are named by a number."""
    output, answers = tmp_path / "predictions.jsonl", None
    if layout == "Video-ChatGPT":
        shutil.copy(media / "one.mp4", tmp_path / "v_abc.mp4")
        asked = [{"video_name": "abc", "question": f"what is {i}", "question_id": f"abc_{i}"} for i in (1, 2)]
        gold = [{"question_id": f"abc_{i}", "answer": f"thing {i}", "type": 0} for i in (2, 1)]
        answers = write(tmp_path / "test_a.json", gold)
    else:
        shutil.copy(media / "one.mp4", tmp_path / "video7010.mp4")
        asked = [
            {"video_id": 7010, "question": f"what is {i}", "id": i, "answer": f"thing {i}"} for i in (1, 2)
        ]
    data = read_data_set(write(tmp_path / "test_q.json", asked), answers=answers)
    assert not data.scored
    evaluate(session, data, BRIEF, output=output)
    once = output.read_bytes()
    records = lines(output)
    assert [record.keys() for record in records] == [{"id", "question", "answer", "pred"}] * 2
    assert [record["answer"] for record in records] == ["thing 1", "thing 2"]
    assert all(record["pred"] for record in records)
    output.write_bytes(once[: len(once) // 2])
    evaluate(session, data, BRIEF, output=output)
    assert output.read_bytes() == once


# The command


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(short_bundle: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """`llamavid eval BUNDLE ...`: exit code, stdout, stderr."""

    def command(*arguments: str | Path) -> tuple[int, str, str]:
        words = ["eval", str(short_bundle), *map(str, arguments), "--max-new-tokens", "3"]
        with pytest.raises(SystemExit) as ended:
            main(words, prog_name="llamavid")
        return (int(ended.value.code or 0), *capsys.readouterr())

    return command


def test_the_command_prints_a_table_and_keeps_the_answers(
    run: Run, data: Path, media: Path, tmp_path: Path
) -> None:
    output = tmp_path / "answers.jsonl"
    code, stdout, stderr = run(data, "--video-dir", media, "-o", output)
    assert (code, stderr) == (0, "asking questions ...\n")
    table = [line.split() for line in stdout.splitlines()]
    assert table[1] == ["color", "3", "1", "33.3%", "6.1%", "to", "79.2%"]
    assert table[3][:4] == ["total", "4", "2", "50.0%"]
    assert table[4][:6] == ["of", "these,", "unseen", "pairs", "1", "1"]
    assert len(lines(output)) == 5


def test_the_command_gives_one_json_document(run: Run, data: Path, media: Path) -> None:
    code, stdout, stderr = run(data, "--media", media, "--limit", "2", "--json", "--blind")
    document = json.loads(stdout)
    assert (code, stderr, document["answered"], document["broken"]) == (0, "", 2, [])
    assert document["settings"]["blind"]
    assert document["scores"]["kinds"].keys() == {"color"}
    assert document["scores"]["total"]["questions"] == 2


def test_too_many_broken_items_fail_the_command_after_its_table(run: Run, data: Path, tmp_path: Path) -> None:
    code, stdout, stderr = run(data, "--media", tmp_path / "elsewhere")
    *named, last = stderr.splitlines()
    assert code == 1
    assert "total" in stdout
    assert sum(line.startswith("broken: q") for line in named) == 4
    assert last.startswith("error: 4 of 4 items are broken")


@pytest.mark.parametrize(
    ("content", "options", "problem"),
    [
        ("[]", [], "is not a list of items"),
        ("{", [], "cannot be read"),
        ('[{"a": 1}]', [], "has a; expected LLaVA JSON"),
        ('[{"conversations": []}]', ["--answers", "a.json"], "Leave --answers out"),
        ('[{"video_name": "a", "question": "b"}]', [], "--answers FILE"),
        ('[{"video_id": "a", "question": "b", "answer": "c"}]', [], "-o PREDICTIONS.jsonl"),
        ('[{"conversations": []}]', ["--template", "llama_3"], "template 'llama_3'"),
        ('[{"conversations": []}]', ["--limit", "0"], "--limit"),
    ],
)
def test_what_was_typed_wrong_is_one_line(
    run: Run, tmp_path: Path, content: str, options: list[str], problem: str
) -> None:
    (tmp_path / "data.json").write_text(content)
    code, stdout, stderr = run(tmp_path / "data.json", *options)
    assert (code, stdout) == (2, "")
    assert problem in stderr.splitlines()[-1]
    assert stderr.splitlines()[-1].lower().startswith("error: ")
