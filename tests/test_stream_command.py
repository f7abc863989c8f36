"""llamavid stream, as its users meet it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from llamavid.cli import main
from tests.clips import write_clip


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six seconds."""
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", frames=150)


def stream(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["stream", *map(str, arguments), "--max-new-tokens", "4"])


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_answers_come_as_lines_with_their_time_and_the_rest_is_on_stderr(
    short_bundle: Path, clip: Path
) -> None:
    done = stream(short_bundle, clip, "--ask", "What happens?", "--every", "2s")
    assert done.exit_code == 0, done.output
    times = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("[00:")]
    assert times == ["[00:02.0]", "[00:04.0]", "[00:05.0]"]
    assert "3 answers, 0 skipped; 6 frames encoded" in done.stderr


def test_json_lines_tell_of_each_answer_its_window_and_of_the_end_every_count(
    short_bundle: Path, clip: Path
) -> None:
    asked = ("--ask", "What happens?", "--ask", "Who is it?", "--every", "3", "--window", "2s", "--json")
    done = stream(short_bundle, clip, *asked)
    documents = lines(done.stdout)
    answers = [each for each in documents if each["event"] == "answer"]
    assert [(each["pts_seconds"], each["question"]) for each in answers] == [
        (3.0, "What happens?"),
        (3.0, "Who is it?"),
        (5.0, "What happens?"),
        (5.0, "Who is it?"),
    ]
    for each in answers:
        window = each["window"]
        assert window["last"]["pts_seconds"] == each["pts_seconds"]
        assert window["first"]["pts_seconds"] >= each["pts_seconds"] - 2
        assert each["first_token_ms"] <= each["total_ms"]
    end = documents[-1]
    assert (end["event"], end["answers"], end["frames_encoded"], end["notes"]) == ("end", 4, 6, [])
    assert end["stream"]["pushed"] == end["source"]["frames"] == 6
    assert [each["kind"] for each in documents if each["event"] == "source"] == ["ended"]


def test_a_stream_can_be_told_how_long_to_go_on(short_bundle: Path, clip: Path) -> None:
    done = stream(short_bundle, clip, "--ask", "Why?", "--every", "1s", "--for", "3s", "--json")
    assert [each["pts_seconds"] for each in lines(done.stdout) if each["event"] == "answer"] == [1, 2, 3]


def test_every_question_has_its_last_answer_before_a_stream_is_over(short_bundle: Path, clip: Path) -> None:
    """`--for` ended with the first question's answer: the others' was lost."""
    asked = ("--ask", "Why?", "--ask", "Who is it?", "--every", "1s", "--for", "2s", "--json")
    answers = [each for each in lines(stream(short_bundle, clip, *asked).stdout) if each["event"] == "answer"]
    assert [(each["pts_seconds"], each["question"]) for each in answers[-2:]] == [
        (2, "Why?"),
        (2, "Who is it?"),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--ask", " "), "the question is empty"),
        (("--ask", "Why?", "--window", "24h"), "fill the model's context"),
        (("--ask", "Why?", "--every", "often"), "not a duration like 2s or 10m"),
        (("--ask", "Why?", "--memory", "1M"), "leaves nothing for features"),
        (("--ask", "Why?", "--fps", "-1"), "fps is -1"),
        ((), "Missing option '--ask'"),
    ],
)
def test_a_mistake_is_one_line(
    short_bundle: Path, clip: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = stream(short_bundle, clip, *arguments)
    assert done.exit_code in (1, 2)
    assert message in done.stderr.splitlines()[-1]
    assert done.stdout == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_a_service_s_stop_end_with_the_counts(
    short_bundle: Path, tmp_path: Path, number: signal.Signals
) -> None:
    clip = write_clip(tmp_path / "clip.ts", frames=100, codec="libx264", pix_fmt="yuv420p")
    program = [sys.executable, "-m", "llamavid", "stream", str(short_bundle), "-", "--ask", "Why?", "--json"]
    with (
        subprocess.Popen(
            [*program, "--every", "1s"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.buffer.write(clip.read_bytes())  # and then nothing more: a camera that went silent
        process.stdin.flush()
        while json.loads(process.stdout.readline())["event"] != "answer":
            pass
        process.send_signal(number)
        asked = time.monotonic()
        rest = lines(process.stdout.read())
        assert time.monotonic() - asked < 5
    assert process.returncode == 0
    assert rest[-1]["event"] == "end"
