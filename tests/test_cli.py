"""The command line as a person or a script meets it: what is on stdout, what on stderr, and the exit code."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from llamavid import __version__, embedded
from llamavid.bundle import MANIFEST, QUESTION_VOCABULARY
from llamavid.cli import main
from tests.clips import QUARTER_CLOCKWISE, drawn_frame, write_clip, write_sound
from tests.conftest import GOLDEN

SHORT = GOLDEN / "short-video"
TOO_LONG = "bike " * 300  # for the text decoder, which reads 256 tokens


@dataclass(frozen=True)
class Outcome:
    """What a finished command leaves behind."""

    code: int
    stdout: str
    stderr: str

    def document(self) -> Any:
        """The one JSON document on stdout."""
        assert self.code == 0, self.stderr
        return json.loads(self.stdout)

    def error(self, code: int) -> str:
        """The one line that a failed command ends with; there is no result."""
        *before, line = self.stderr.splitlines()
        assert (self.code, self.stdout) == (code, "")
        assert line.lower().startswith("error: ")
        assert not any(other.lower().startswith(("error: ", "traceback")) for other in before)
        return line

    def immediate_error(self, code: int) -> str:
        """The same, of a command that had begun nothing."""
        assert not any(line.endswith(" ...") for line in self.stderr.splitlines())  # which is progress
        return self.error(code)


Command = Callable[..., Outcome]


@pytest.fixture
def llamavid(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs one command in this process. An exception that a user would see as a traceback fails the test."""
    monkeypatch.setenv("LLAMAVID_PIXELS", "numpy")

    def run(*arguments: str | Path, stdin: str | bytes = "") -> Outcome:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments], prog_name="llamavid")
        return Outcome(int(ended.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds; at one frame a second, frames 0 and 25 are looked at."""
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", frames=50)


@pytest.fixture
def nothing_embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As in a source checkout before `make tiny`."""
    monkeypatch.setattr(embedded, "HOME", tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def home(nothing_embedded: Path, short_bundle: Path, clip: Path) -> Path:
    """A package whose embedded bundle is the short one, and whose sample is `clip`."""
    shutil.copytree(short_bundle, nothing_embedded / "bundle")
    shutil.copy(clip, nothing_embedded / "sample.mp4")
    return nothing_embedded


@pytest.fixture
def bundle(short_bundle: Path, tmp_path: Path) -> Path:
    """A copy, to be changed."""
    return shutil.copytree(short_bundle, tmp_path / "bundle")


# ask


def test_ask_prints_the_answer_and_nothing_else_on_stdout(
    llamavid: Command, short_bundle: Path, clip: Path
) -> None:
    asked = ("ask", short_bundle, clip, "What happens?", "--max-new-tokens", "8")
    done, document = llamavid(*asked), llamavid(*asked, "--json").document()
    assert done.code == 0
    assert done.stdout.strip() == document["answer"]
    assert done.stdout.endswith("\n")
    assert "2 frames" in done.stderr.splitlines()[-1]


def test_the_json_document_tells_what_was_answered_from_what(
    llamavid: Command, short_bundle: Path, clip: Path
) -> None:
    done = llamavid("ask", short_bundle, clip, "What happens?", "--max-new-tokens", "3", "--json")
    document = done.document()
    assert len(document["token_ids"]) == 3
    assert document["finish_reason"] == "length"
    assert document["prompt_tokens"] > 100
    assert document["frames"] == [{"index": 0, "pts_seconds": 0.0}, {"index": 25, "pts_seconds": 1.0}]
    assert {"decode_video", "vision", "context", "prefill", "decode"} <= set(document["timings_ms"])
    digest = hashlib.sha256((short_bundle / MANIFEST).read_bytes()).hexdigest()
    assert document["bundle"] == {"path": str(short_bundle), "digest": digest}
    assert done.stderr == ""


def test_the_module_is_the_command_line(short_bundle: Path, clip: Path) -> None:
    asked = ("ask", str(short_bundle), str(clip), "Why?", "--max-new-tokens", "2")
    command = [sys.executable, "-m", "llamavid", *asked]
    environment = {**os.environ, "PYTHONPATH": str(GOLDEN.parent.parent), "LLAMAVID_PIXELS": "numpy"}
    done = subprocess.run(command, capture_output=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(b"\n") == 1


def test_sampling_goes_by_the_seed(llamavid: Command, short_bundle: Path, clip: Path) -> None:
    def answer(seed: int) -> list[int]:
        options = ("--temperature", "1.5", "--top-p", "0.9", "--seed", str(seed), "--max-new-tokens", "8")
        return llamavid("ask", short_bundle, clip, "Why?", "--json", *options).document()["token_ids"]

    assert answer(1) == answer(1)
    assert answer(1) != answer(2)


def test_more_frames_a_second_are_looked_at_when_asked_for(
    llamavid: Command, short_bundle: Path, clip: Path
) -> None:
    options = ("--fps", "5", "--max-new-tokens", "1", "--json")
    document = llamavid("ask", short_bundle, clip, "Why?", *options).document()
    assert [frame["index"] for frame in document["frames"]] == list(range(0, 50, 5))


# What can be looked at


def one_frame(folder: Path) -> Path:
    return write_clip(folder / "one.mp4", frames=1)


def variable_frame_rate(folder: Path) -> Path:
    return write_clip(folder / "variable.mkv", frames=6, pts_ms=[0, 40, 80, 500, 1200, 3000])


def turned(folder: Path) -> Path:
    return write_clip(folder / "turned.mp4", frames=5, display=QUARTER_CLOCKWISE)


def with_sound(folder: Path) -> Path:
    return write_clip(folder / "sound.mp4", frames=5, audio=True)


def one_pixel(folder: Path) -> Path:
    Image.fromarray(drawn_frame(0, (1, 1))).save(folder / "pixel.png")
    return folder / "pixel.png"


def transparent(folder: Path) -> Path:
    Image.new("RGBA", (9, 5)).save(folder / "transparent.png")
    return folder / "transparent.png"


@pytest.mark.parametrize(
    ("source", "remark"),
    [
        (one_frame, ""),
        (variable_frame_rate, "not evenly spaced in time"),
        (turned, "put upright"),
        (with_sound, ""),
        (one_pixel, ""),
        (transparent, "shown on white"),
    ],
)
def test_unusual_sources_answer_with_their_remark(
    llamavid: Command, short_bundle: Path, tmp_path: Path, source: Callable[[Path], Path], remark: str
) -> None:
    done = llamavid("ask", short_bundle, source(tmp_path), "Why?", "--max-new-tokens", "2", "--json")
    document = done.document()
    assert len(document["token_ids"]) == 2
    assert document["frames"][0] == {"index": 0, "pts_seconds": 0.0}
    assert done.stderr.splitlines() == document["notes"]
    assert [remark in note for note in document["notes"]] == ([True] if remark else [])


def missing(folder: Path) -> Path:
    return folder / "missing.mp4"


def damaged(folder: Path) -> Path:
    whole = write_clip(folder / "damaged.mp4").read_bytes()
    (folder / "damaged.mp4").write_bytes(whole[: len(whole) // 2])  # its index was at the end
    return folder / "damaged.mp4"


def sound_alone(folder: Path) -> Path:
    return write_sound(folder / "sound.m4a")


def without_video_stream(folder: Path) -> Path:
    return write_sound(folder / "sound.mp4")


def empty(folder: Path) -> Path:
    (folder / "empty.mp4").touch()
    return folder / "empty.mp4"


def text(folder: Path) -> Path:
    (folder / "text.mp4").write_text("not a clip\n" * 100)
    return folder / "text.mp4"


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (missing, "cannot be opened"),
        (damaged, "of no known kind, or damaged"),
        (sound_alone, "holds no video, only audio"),
        (without_video_stream, "holds no video, only audio"),
        (empty, "is an empty file"),
        (text, "of no known kind, or damaged"),
        (Path, "is a folder without a picture"),
    ],
)
def test_a_source_that_cannot_be_looked_at_is_one_line_and_exit_code_1(
    llamavid: Command, short_bundle: Path, tmp_path: Path, source: Callable[[Path], Path], problem: str
) -> None:
    path = source(tmp_path)
    line = llamavid("ask", short_bundle, path, "Why?").immediate_error(1)
    assert str(path) in line
    assert problem in line


# What was typed wrong


@pytest.mark.parametrize(
    "options",
    [
        "--fps 0",
        "--fps -1",
        "--fps nan",
        "--temperature -1",
        "--temperature nan",
        "--temperature inf",
        "--top-p 0",
        "--top-p 1.01",
        "--max-new-tokens 0",
        "--max-new-tokens -5",
        "--temperature 1 --seed -1",
        "--template llama_3",
    ],
)
def test_a_value_out_of_range_is_refused_before_the_video_is_watched(
    llamavid: Command, short_bundle: Path, clip: Path, options: str
) -> None:
    *_, name, value = options.split()
    line = llamavid("ask", short_bundle, clip, "Why?", *options.split()).immediate_error(2)
    assert name.removeprefix("--") in line
    assert value in line


def test_a_temperature_of_almost_nothing_is_greedy(llamavid: Command, short_bundle: Path, clip: Path) -> None:
    """Dividing by 1e-310 overflows even float64."""
    asked = ("ask", short_bundle, clip, "Why?", "--max-new-tokens", "4", "--json")
    cold = llamavid(*asked, "--temperature", "1e-310").document()
    assert cold["token_ids"] == llamavid(*asked).document()["token_ids"]


@pytest.mark.parametrize(
    "words",
    [
        "ask",
        "ask BUNDLE",
        "ask BUNDLE CLIP Why? --frames 3",
        "ask BUNDLE CLIP Why? --fps fast",
        "ask BUNDLE CLIP Why? --threads 0",
        "export CHECKPOINT",
        "explain",
    ],
)
def test_words_that_the_command_does_not_have_are_exit_code_2(llamavid: Command, words: str) -> None:
    llamavid(*words.split()).immediate_error(2)


@pytest.mark.parametrize("question", ["", " \n\t"], ids=["nothing", "white space"])
def test_an_empty_question_is_refused(
    llamavid: Command, short_bundle: Path, clip: Path, question: str
) -> None:
    assert "the question is empty" in llamavid("ask", short_bundle, clip, question).immediate_error(2)


def test_a_question_that_is_not_text_is_refused(llamavid: Command, short_bundle: Path, clip: Path) -> None:
    """A shell passes any bytes; Python makes lone surrogates of those that are not UTF-8."""
    question = os.fsdecode(b"caf\xe9?")
    assert "UTF-8" in llamavid("ask", short_bundle, clip, question).immediate_error(2)


def test_a_question_that_is_too_long_is_refused_or_cut(
    llamavid: Command, short_bundle: Path, clip: Path
) -> None:
    line = llamavid("ask", short_bundle, clip, TOO_LONG).immediate_error(2)
    assert "302 text-decoder tokens; expected at most 256" in line
    assert "--truncate-question" in line
    options = ("--truncate-question", "--max-new-tokens", "2", "--json")
    document = llamavid("ask", short_bundle, clip, TOO_LONG, *options).document()
    assert len(document["token_ids"]) == 2


def test_an_answer_longer_than_the_context_is_refused(
    llamavid: Command, short_bundle: Path, clip: Path
) -> None:
    line = llamavid("ask", short_bundle, clip, "Why?", "--max-new-tokens", "4096").error(2)
    assert "expected at most 4096, the model's context" in line


def test_a_video_longer_than_the_context_is_refused_before_it_is_encoded(
    llamavid: Command, bundle: Path, clip: Path
) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["model"]["language"]["context_length"] = 60
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    line = llamavid("ask", bundle, clip, "Why?", "--fps", "25").immediate_error(2)
    assert "50 frames need 100 tokens; expected fewer than 60" in line
    assert "--fps" in line


# Bundles


def test_a_bundle_that_is_not_sound_does_not_answer(llamavid: Command, bundle: Path, clip: Path) -> None:
    with (bundle / "llm.onnx.data").open("r+b") as data:
        data.write(b"\1")
    line = llamavid("ask", bundle, clip, "Why?").immediate_error(1)
    assert str(bundle / "llm.onnx.data") in line
    assert "llamavid export" in line


@pytest.mark.parametrize("command", ["ask", "chat", "doctor"])
def test_what_is_no_bundle_is_said_at_once(
    llamavid: Command, tmp_path: Path, clip: Path, command: str
) -> None:
    rest = {"ask": (clip, "Why?"), "chat": (clip,), "doctor": ()}[command]
    for path in (tmp_path, tmp_path / "nothing here"):
        line = llamavid(command, path, *rest).immediate_error(1)
        assert str(path) in line
        assert "llamavid export" in line


# Evidence


def test_evidence_comes_after_the_answer_and_says_that_it_is_no_proof(
    llamavid: Command, short_bundle: Path, clip: Path
) -> None:
    asked = ("ask", short_bundle, clip, "What happens?", "--max-new-tokens", "4")
    plain, told = llamavid(*asked), llamavid(*asked, "--evidence")
    assert told.code == 0, told.stderr
    assert told.stdout.startswith(plain.stdout)
    _, *rows, last = told.stdout.removeprefix(plain.stdout).splitlines()
    assert sorted(row.split()[0] for row in rows) == ["00:00.0", "00:01.0"]
    assert "not proof" in last


def test_the_json_document_has_every_frame_s_relevance_where_it_is_asked_for(
    llamavid: Command, short_bundle: Path, clip: Path
) -> None:
    asked = ("ask", short_bundle, clip, "What happens?", "--max-new-tokens", "2", "--json")
    assert "evidence" not in llamavid(*asked).document()
    document = llamavid(*asked, "--evidence").document()
    found = document["evidence"]["frames"]
    assert [{key: frame[key] for key in ("index", "pts_seconds")} for frame in found] == document["frames"]
    assert sorted(frame["rank"] for frame in found) == [1, 2]
    assert sum(frame["share"] for frame in found) == pytest.approx(1, abs=1e-5)
    assert all(frame["relevance"] > 0 for frame in found)
    assert "not proof" in document["evidence"]["note"]


def test_chat_gives_evidence_about_each_question(llamavid: Command, short_bundle: Path, clip: Path) -> None:
    options = ("--max-new-tokens", "2", "--json", "--evidence")
    first, second = documents(llamavid("chat", short_bundle, clip, *options, stdin="What?\nWho?\n"))
    assert first["evidence"]["note"] == second["evidence"]["note"]
    assert first["evidence"]["frames"] != second["evidence"]["frames"]


@pytest.mark.parametrize("command", ["ask", "chat", "heatmap"])
def test_a_bundle_from_before_says_at_once_that_it_gives_no_evidence(
    llamavid: Command, earlier_bundle: Path, clip: Path, tmp_path: Path, command: str
) -> None:
    rest = {
        "ask": (clip, "Why?", "--evidence"),
        "chat": (clip, "--evidence"),
        "heatmap": (clip, "Why?", "-o", tmp_path / "out.png"),
    }
    line = llamavid(command, earlier_bundle, *rest[command]).immediate_error(1)
    assert f"{earlier_bundle} answers, but gives no evidence" in line
    assert "llamavid export" in line
    assert llamavid("ask", earlier_bundle, clip, "Why?", "--max-new-tokens", "2").code == 0


# heatmap


def test_heatmap_draws_the_chosen_frames_into_a_png(
    llamavid: Command, short_bundle: Path, clip: Path, tmp_path: Path
) -> None:
    asked = ("heatmap", short_bundle, clip, "What happens?", "-o", tmp_path / "new" / "out.png")
    done = llamavid(*asked)
    assert done.stdout.startswith(f"{tmp_path / 'new' / 'out.png'}: 2 of 2 frames")
    assert "not proof" in done.stdout
    with Image.open(tmp_path / "new" / "out.png") as both:
        assert both.format == "PNG"
        assert both.size == (652, 371)
    document = llamavid(*asked, "--at", "0:01.2", "--json").document()
    assert [frame["pts_seconds"] for frame in document["frames"]] == [1.0]
    assert document["picture"] == str(tmp_path / "new" / "out.png")
    assert document["question"] == "What happens?"
    assert "not proof" in document["note"]
    assert document["bundle"]["path"] == str(short_bundle)
    first = llamavid(*asked, "--frames", "1", "--json").document()["frames"][0]
    assert first["rank"] == 1


def test_heatmap_draws_a_picture_too(
    llamavid: Command, short_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(drawn_frame(3, (60, 90))).save(tmp_path / "picture.jpg")
    monkeypatch.chdir(tmp_path)
    done = llamavid("heatmap", short_bundle, "picture.jpg", "What is it?")
    assert done.stdout == "heatmap.png: 1 of 1 frame. Attention, not proof.\n"
    assert Image.open("heatmap.png").format == "PNG"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--frames", "0"), "0 is not in the range"),
        (("--frames", "25"), "25 is not in the range"),
        (("--at", "soon"), "12.5, 1:03 or 1:02:03"),
        (("--at=-1",), "12.5, 1:03 or 1:02:03"),
        (("--frames", "1", "--at", "1"), "both --frames and --at"),
        (("-o", "notes.txt"), "notes.txt exists and is no PNG"),
        (("-o", "."), ". exists and is no PNG"),
    ],
)
def test_heatmap_refuses_at_once_what_cannot_be_drawn(
    llamavid: Command,
    short_bundle: Path,
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    assert told in llamavid("heatmap", short_bundle, clip, "Why?", *options).immediate_error(2)
    assert os.listdir(tmp_path) == ["notes.txt"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_heatmap_of_a_time_after_the_end_names_the_last_frame(
    llamavid: Command, short_bundle: Path, clip: Path, tmp_path: Path
) -> None:
    asked = ("heatmap", short_bundle, clip, "Why?", "--at", "1:03", "-o", tmp_path / "out.png")
    assert "--at 01:03.0 is after the last frame; expected at most 00:01.0" in llamavid(*asked).error(2)
    assert os.listdir(tmp_path) == []


# chat


def documents(outcome: Outcome) -> Iterator[Any]:
    assert outcome.code == 0, outcome.stderr
    return map(json.loads, outcome.stdout.splitlines())


def test_chat_answers_a_document_a_line_and_remembers_until_told_to_forget(
    llamavid: Command, short_bundle: Path, clip: Path
) -> None:
    questions = "What happens?\nWhy?\n/clear\nWhat happens?\n"
    options = ("--max-new-tokens", "4", "--json")
    first, second, again = documents(llamavid("chat", short_bundle, clip, *options, stdin=questions))
    alone = llamavid("ask", short_bundle, clip, "Why?", *options).document()
    assert second["prompt_tokens"] > alone["prompt_tokens"] + 4  # the first turn and its answer
    assert again["token_ids"] == first["token_ids"]
    assert again["prompt_tokens"] == first["prompt_tokens"]
    assert again["timings_ms"]["vision"] == first["timings_ms"]["vision"]  # it was encoded once


def test_chat_prints_an_answer_a_line(llamavid: Command, short_bundle: Path, clip: Path) -> None:
    done = llamavid("chat", short_bundle, clip, "--max-new-tokens", "3", stdin="What?\nWhy?\n\nnot read\n")
    assert done.code == 0
    assert len(done.stdout.splitlines()) == 2


def test_chat_without_a_question_ends_well(llamavid: Command, short_bundle: Path, clip: Path) -> None:
    done = llamavid("chat", short_bundle, clip)
    assert (done.code, done.stdout) == (0, "")


def test_a_piped_chat_ends_at_the_first_question_that_fails(
    llamavid: Command, short_bundle: Path, clip: Path
) -> None:
    piped = f"Why?\n{TOO_LONG}\nWhy?\n"
    done = llamavid("chat", short_bundle, clip, "--max-new-tokens", "2", "--json", stdin=piped)
    assert done.code == 2
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr.splitlines()[-1].startswith("error: the question has 302 text-decoder tokens")


def test_piped_bytes_that_are_not_text_are_refused(llamavid: Command, short_bundle: Path, clip: Path) -> None:
    assert "UTF-8" in llamavid("chat", short_bundle, clip, stdin=b"caf\xe9?\n").error(2)


# The embedded tiny model

SAID_ONCE = "The embedded tiny model answers: it knows"


def test_without_a_bundle_the_embedded_one_answers_and_says_so(
    llamavid: Command, home: Path, short_bundle: Path, clip: Path
) -> None:
    asked = (clip, "What happens?", "--max-new-tokens", "4", "--json")
    by_embedded, by_bundle = llamavid("ask", *asked), llamavid("ask", short_bundle, *asked)
    (line,) = by_embedded.stderr.splitlines()
    assert line.startswith(SAID_ONCE)
    assert "Pass a BUNDLE" in line
    assert by_bundle.stderr == ""
    assert by_embedded.document()["bundle"]["path"] == str(home / "bundle")
    assert by_embedded.document()["token_ids"] == by_bundle.document()["token_ids"]


def test_chat_says_once_that_the_embedded_one_answers(llamavid: Command, home: Path, clip: Path) -> None:
    done = llamavid("chat", clip, "--max-new-tokens", "2", "--json", stdin="What?\nWhy?\n")
    assert {document["bundle"]["path"] for document in documents(done)} == {str(home / "bundle")}
    assert done.stderr.count(SAID_ONCE) == 1


def test_the_embedded_one_encodes_and_the_next_command_works(
    llamavid: Command, home: Path, clip: Path, tmp_path: Path
) -> None:
    done = llamavid("features", clip, "-o", tmp_path / "stored here.safetensors")
    _, *next_command = shlex.split(done.stdout.split("Next: ")[1])
    assert len(next_command) == 3  # without BUNDLE, as it was
    answer = llamavid(*next_command, "--max-new-tokens", "2", "--json").document()
    assert answer["bundle"]["path"] == str(home / "bundle")


def test_the_embedded_one_is_evaluated(llamavid: Command, home: Path, clip: Path, tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "red"}]
    item = {"id": "1", "video": str(clip), "kind": "color", "conversations": turns}
    (tmp_path / "data.json").write_text(json.dumps([item]))
    done = llamavid("eval", tmp_path / "data.json", "--max-new-tokens", "2", "--json")
    assert done.document()["bundle"]["path"] == str(home / "bundle")
    assert done.document()["answered"] == 1
    assert done.stderr.count(SAID_ONCE) == 1


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("ask", "Missing argument 'VIDEO_OR_IMAGE'."),
        ("ask CLIP", "Missing argument 'QUESTION'."),
        ("ask BUNDLE", "Missing argument 'VIDEO_OR_IMAGE' after the bundle BUNDLE."),
        ("ask BUNDLE CLIP", "Missing argument 'QUESTION' after the bundle BUNDLE."),
        ("ask BUNDLE CLIP What happens here?", "Put a question of several words in quotes."),
        ("chat BUNDLE", "Missing argument 'VIDEO_OR_IMAGE' after the bundle BUNDLE."),
        ("chat BUNDLE CLIP Why?", "expected VIDEO_OR_IMAGE, or BUNDLE before"),
        ("features BUNDLE", "Missing argument 'VIDEO' after the bundle BUNDLE."),
        ("eval BUNDLE", "Missing argument 'DATA.json' after the bundle BUNDLE."),
    ],
)
def test_the_word_that_is_missing_is_named(
    llamavid: Command, home: Path, short_bundle: Path, clip: Path, words: str, problem: str
) -> None:
    paths = {"BUNDLE": str(short_bundle), "CLIP": str(clip)}
    line = llamavid(*(paths.get(word, word) for word in words.split())).immediate_error(2)
    assert problem.replace("bundle BUNDLE", f"bundle {short_bundle}") in line


def test_a_question_without_quotes_is_not_taken_for_a_video(
    llamavid: Command, home: Path, clip: Path
) -> None:
    """`ask clip.mp4 What happens?` has three words, so the clip stands where BUNDLE does."""
    line = llamavid("ask", clip, "What", "happens?").immediate_error(1)
    assert f"{clip} is not a folder; expected a folder with manifest.json" in line


@pytest.mark.parametrize("words", ["ask CLIP Why?", "chat CLIP", "features CLIP", "demo"])
def test_without_an_embedded_bundle_one_line_says_what_to_do(
    llamavid: Command, nothing_embedded: Path, clip: Path, words: str
) -> None:
    line = llamavid(*(str(clip) if word == "CLIP" else word for word in words.split())).immediate_error(1)
    assert f"{nothing_embedded / 'bundle'} is missing" in line
    assert "Pass a BUNDLE, or run `make tiny`" in line


# demo


def write_questions(home: Path, **answers: str) -> None:
    items = [{"question": question, "answer": answer} for question, answer in answers.items()]
    (home / "sample.json").write_text(json.dumps(items))


def test_the_demo_prints_questions_and_answers_and_the_next_command_works(
    llamavid: Command, home: Path, clip: Path
) -> None:
    said = llamavid("ask", clip, "What?", "--max-new-tokens", "64", "--json").document()["answer"]
    write_questions(home, **{"What?": said})
    done = llamavid("demo")
    assert done.code == 0
    question, *answer, last = done.stdout.splitlines()
    assert question == "What?"
    assert "\n".join(answer) == f"  {said.strip()}  ok"
    assert last.startswith("1 of 1 right, ")
    _, *next_command = shlex.split(last.split("Next: ")[1])
    assert llamavid(*next_command, "--max-new-tokens", "2").code == 0
    assert llamavid("demo", "--json").document()["answers"][0]["right"] is True


def test_a_wrong_answer_fails_the_demo_after_all_questions(llamavid: Command, home: Path) -> None:
    write_questions(home, **{"What?": "red", "Why?": "blue"})
    done = llamavid("demo")
    assert done.code == 1
    assert done.stdout.count("  expected ") == 2
    assert done.stdout.splitlines()[-1].startswith("0 of 2 right")
    assert "answers 2 of 2 sample questions wrong" in done.stderr.splitlines()[-1]
    document = json.loads(llamavid("demo", "--json").stdout)
    assert [answer["expected"] for answer in document["answers"]] == ["red", "blue"]


# doctor


def test_doctor_tells_about_the_machine_and_a_bundle(llamavid: Command, short_bundle: Path) -> None:
    done = llamavid("doctor", short_bundle)
    assert done.code == 0
    assert f"llamavid           {__version__}" in done.stdout
    assert f"{short_bundle}: sound" in done.stdout


def test_doctor_without_a_bundle_looks_at_the_embedded_one(llamavid: Command, home: Path) -> None:
    assert f"{home / 'bundle'}: sound" in llamavid("doctor").stdout


def test_doctor_finds_that_no_bundle_is_embedded(llamavid: Command, nothing_embedded: Path) -> None:
    done = llamavid("doctor")
    assert done.code == 0  # any other bundle can be passed
    assert done.stdout.splitlines()[-1].startswith(f"-- embedded bundle    {nothing_embedded}")


def test_doctor_findings_are_a_json_document(llamavid: Command, short_bundle: Path) -> None:
    findings = llamavid("doctor", short_bundle, "--json").document()
    assert all(finding.keys() == {"subject", "ok", "text"} for finding in findings)
    assert {"llamavid", "memory", "ONNX Runtime", "bundle"} <= {finding["subject"] for finding in findings}


def test_doctor_fails_for_a_bundle_that_is_not_sound(llamavid: Command, bundle: Path) -> None:
    (bundle / QUESTION_VOCABULARY).unlink()
    assert QUESTION_VOCABULARY in llamavid("doctor", bundle).error(1)


# export


def test_export_prints_the_table_of_errors_and_the_next_command_which_works(
    llamavid: Command, tmp_path: Path, clip: Path
) -> None:
    done = llamavid("export", SHORT / "checkpoint", "-o", tmp_path / "made here")
    *table, last = done.stdout.splitlines()
    assert done.code == 0
    assert [row.split()[:3] for row in table] == [
        ["ok", graph, "fp32"]
        for graph in ("vision", "content", *["context"] * 3, "llm", "llm.static", "llm.primitive")
    ]
    assert done.stderr.count("CC BY-NC 4.0") == 1
    _, *next_command = shlex.split(last.split("Next: ")[1].replace("VIDEO", shlex.quote(str(clip))))
    answer = llamavid(*next_command, "--max-new-tokens", "2", "--json").document()
    assert answer["bundle"]["path"] == str(tmp_path / "made here")


def test_export_gives_the_table_of_errors_as_json(llamavid: Command, tmp_path: Path) -> None:
    options = ("--precision", "fp16", "--llm-precision", "int4", "--int4-block", "64", "--json")
    document = llamavid("export", SHORT / "checkpoint", "-o", tmp_path / "bundle", *options).document()
    assert document["bundle"] == str(tmp_path / "bundle")
    rows = document["parity"]
    frames = ["vision", "content", *["context"] * 3]  # its tokens, its attention, its relevance
    language = ["llm", "llm", "llm", "llm.static", "llm.primitive"]  # as run, as stored, what int4 costs
    assert [row["graph"] for row in rows] == [*frames, *frames, *language]  # also as a GPU rounds
    assert all(row["norm_error"] <= row["tolerance"] for row in rows)


def test_a_bundle_with_half_the_cache_gives_the_same_answer(
    llamavid: Command, tmp_path: Path, bundle: Path, clip: Path
) -> None:
    narrow = tmp_path / "narrow"
    assert llamavid("export", SHORT / "checkpoint", "-o", narrow, "--kv-cache", "fp16").code == 0
    question = (clip, "What happens?", "--max-new-tokens", "6", "--json")
    answers = [llamavid("ask", one, *question).document()["answer"] for one in (bundle, narrow)]
    assert answers[0] == answers[1]


def test_export_refuses_to_replace_a_bundle_unless_told_to(llamavid: Command, bundle: Path) -> None:
    before = (bundle / MANIFEST).read_bytes()
    assert "--replace" in llamavid("export", SHORT / "checkpoint", "-o", bundle).error(1)
    assert (bundle / MANIFEST).read_bytes() == before
    replaced = llamavid(
        "export", SHORT / "checkpoint", "-o", bundle, "--replace", "--template", "llava_v1", "--json"
    )
    assert replaced.code == 0
    assert json.loads((bundle / MANIFEST).read_text())["template"] == "llava_v1"


def test_a_missing_shard_fails_the_export_and_leaves_no_bundle(llamavid: Command, tmp_path: Path) -> None:
    release = shutil.copytree(SHORT, tmp_path / "release")
    shard = release / "checkpoint" / "pytorch_model-00002-of-00002.bin"
    shard.unlink()
    line = llamavid("export", release / "checkpoint", "-o", tmp_path / "out" / "bundle").error(1)
    assert str(shard) in line
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_weights_that_float16_cannot_hold_fail_the_export_in_float16_only(
    llamavid: Command, tmp_path: Path
) -> None:
    """Numbers past 65504 become infinite there."""
    tower = torch.load(SHORT / "eva_vit_g.pth", weights_only=True)
    tower["blocks.2.mlp.fc2.weight"] *= 1e6
    torch.save(tower, tmp_path / "tower.pth")
    common = ("export", SHORT / "checkpoint", "--vision-tower", tmp_path / "tower.pth")
    failed = llamavid(*common, "-o", tmp_path / "out" / "half", "--precision", "fp16")
    assert failed.code == 1
    assert failed.stdout.splitlines()[0].split()[:4] == ["FAIL", "vision", "fp16", "nan"]
    assert "graph vision (fp16) differs from PyTorch by nan" in failed.stderr.splitlines()[-1]
    assert os.listdir(tmp_path / "out") == []
    assert llamavid(*common, "-o", tmp_path / "out" / "full").code == 0


@pytest.mark.parametrize(
    "options",
    [
        *("--precision int8", "--llm-precision fp8", "--int4-block 48", "--int4-block 64", "--template x"),
        *("--kv-cache int4", "--kv-cache int8"),
    ],
)
def test_an_export_that_does_not_exist_is_refused(llamavid: Command, tmp_path: Path, options: str) -> None:
    command = ("export", SHORT / "checkpoint", "-o", tmp_path / "bundle", *options.split())
    assert options.split()[1] in llamavid(*command).immediate_error(2)


# help


@pytest.mark.parametrize(
    "command",
    ["", "ask", "build", "chat", "demo", "doctor", "eval", "export", "export-llm", "features", "verify"],
)
def test_every_command_explains_itself(llamavid: Command, command: str) -> None:
    done = llamavid(*command.split(), "--help")
    assert done.code == 0
    assert done.stdout.startswith(f"Usage: llamavid {command}".rstrip())
    assert max(map(len, done.stdout.splitlines())) <= 110


def test_the_version_is_told(llamavid: Command) -> None:
    assert __version__ in llamavid("--version").stdout
