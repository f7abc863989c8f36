"""The little world: what is said of a clip is what its pixels show, and nothing can be guessed.

The files are read as the model sees them, at a frame a second, by arithmetic of its own: all that it shares
with the code that draws is the names of colors and shapes, and the colors' values.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from llamavid.runtime.video.sources import open_source
from llamavid.train.little_world import frames, main, questions, scenes, write_world
from llamavid.train.world_captions import caption
from llamavid.train.world_drawing import RGB
from llamavid.train.world_questions import NUMBERS, THIRDS, Kind, Question
from llamavid.train.world_scene import COLORS, SHAPES, UNSEEN_PAIRS, Pair, Scene

SCENES = 250


@pytest.fixture(scope="module")
def train() -> list[Scene]:
    return [*scenes("train", 1, SCENES), *scenes("train", 1, 50, form="still")]


@pytest.fixture(scope="module")
def heldout() -> list[Scene]:
    return [*scenes("heldout", 1, SCENES), *scenes("heldout", 1, 50, form="still")]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """15 clips and 10 stills of the heldout split, as files."""
    folder = tmp_path_factory.mktemp("worlds") / "heldout"
    write_world(folder, "heldout", seed=5, clips=15, stills=10)
    return folder


@pytest.fixture(scope="module")
def read(world: Path) -> dict[str, Reading]:
    """What the pixels of each file of that world show, by its path in the world."""
    return {media(item): read_file(world / media(item)) for item in items(world, "captions")}


def items(folder: Path, name: str) -> list[dict[str, Any]]:
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def media(item: dict[str, Any]) -> str:
    return item["image"] if "image" in item else item["video"]


def all_questions(drawn: Iterable[Scene]) -> list[Question]:
    return [question for scene in drawn for question in questions(scene)]


# What the pixels show.


class Seen(NamedTuple):
    """One shape in one frame. second: of the frame. x, y: pixels."""

    second: int
    color: str
    shape: str
    x: float
    y: float


class Reading(NamedTuple):
    """A whole file at a frame a second."""

    seen: list[Seen]
    frame_count: int


def read_file(path: Path) -> Reading:
    with open_source(path, fps=1) as source:
        pictures = [frame.rgb for frame in source.frames()]
        assert not source.notes
    return Reading([seen for at, rgb in enumerate(pictures) for seen in seen_in(rgb, at)], len(pictures))


def seen_in(rgb: np.ndarray, second: int) -> list[Seen]:
    """Every color of which there is enough in uint8 [H, W, 3]."""
    distances = np.stack([np.linalg.norm(rgb.astype(float) - RGB[color], axis=-1) for color in COLORS])
    nearest = np.where(distances.min(0) < 40, distances.argmin(0), -1)
    seen = []
    for index, color in enumerate(COLORS):
        y, x = np.nonzero(nearest == index)
        if len(x) > 250:  # pixels; the smallest shape has some 500, soft edges between colors a few
            seen.append(Seen(second, color, shape_of(x - x.mean(), y - y.mean()), x.mean(), y.mean()))
    return seen


def shape_of(x: np.ndarray, y: np.ndarray) -> str:
    """From the pixels around a center: how far they reach, and how often that goes up and down in a turn."""
    turn = ((np.arctan2(y, x) / (2 * np.pi) % 1) * 48).astype(int) % 48
    reach = np.array([np.hypot(x, y)[turn == direction].max() for direction in range(48)])
    waves = np.abs(np.fft.rfft(reach / reach.mean()))[3:6] / 24
    corners = 3 + int(waves.argmax())
    if waves.max() < 0.08:
        return "circle"
    if corners == 4:
        return "cross" if waves.max() > 0.23 else "square"
    return {3: "triangle", 5: "star"}[corners]


def read_answer(kind: Kind, text: str, reading: Reading) -> str:
    """The answer to a question, from the pixels and the question's words alone."""
    seen = reading.seen
    words = re.findall("[a-z]+", text.lower())
    shape = next((word for word in words if word in SHAPES), None)
    color = next((word for word in words if word in COLORS), None)
    named = [s for s in seen if shape in (None, s.shape) and color in (None, s.color)]
    if kind is Kind.COLOR:
        (answer,) = {s.color for s in named}
    elif kind is Kind.SHAPE:
        (answer,) = {s.shape for s in named}
    elif kind is Kind.COUNT:
        answer = NUMBERS[len({s.shape for s in seen})]
    elif kind is Kind.DIRECTION:
        x, y = named[-1].x - named[0].x, named[-1].y - named[0].y
        assert max(abs(x), abs(y)) > 30  # pixels of 128: it cannot be overlooked
        assert min(abs(x), abs(y)) < 4
        answer = ("right" if x > 0 else "left") if abs(x) > abs(y) else ("down" if y > 0 else "up")
    elif kind is Kind.ORDER:
        answer = read_order(words, seen, named)
    elif kind is Kind.WHEN:
        (answer,) = {THIRDS[3 * s.second // reading.frame_count] for s in named}
    elif kind is Kind.YES_NO:
        answer = "yes" if named else "no"
    else:
        assert named[0].color != named[-1].color
        answer = named[-1].color
    return answer


def read_order(words: list[str], seen: list[Seen], named: list[Seen]) -> str:
    entrances = {shape: min(s.second for s in seen if s.shape == shape) for shape in {s.shape for s in seen}}
    if "first" in words:
        second = min(entrances.values())
    elif "last" in words:
        second = max(entrances.values())
    else:
        second = min(at for at in entrances.values() if at > named[0].second)
    (answer,) = [shape for shape, at in entrances.items() if at == second]
    return answer


def test_every_answer_is_what_the_pixels_of_the_files_show(world: Path, read: dict[str, Reading]) -> None:
    asked = items(world, "questions")
    for item in asked:
        human, gpt = item["conversations"]
        assert read_answer(Kind(item["kind"]), human["value"], read[media(item)]) == gpt["value"], item
    assert {item["kind"] for item in asked} == {kind.value for kind in Kind}


def test_shapes_can_be_told_apart_at_112_pixels(heldout: list[Scene]) -> None:
    for scene in heldout[:40]:
        rgb = frames(scene, 1, side_pixels=112)[0]
        there = {actor.pairs[0] for actor in scene.actors if actor.life.presence(0)}
        assert {(seen.color, seen.shape) for seen in seen_in(rgb, 0)} == there


def test_a_caption_names_every_shape_and_every_color(heldout: list[Scene]) -> None:
    for scene in heldout:
        said = re.findall("[a-z]+", caption(scene).lower())
        shown = {word for actor in scene.actors for word in (actor.shape, *actor.colors)}
        assert shown == {word for word in said if word in SHAPES + COLORS}


# What cannot be guessed.


def test_no_answer_of_a_kind_is_much_more_frequent_than_the_others(heldout: list[Scene]) -> None:
    asked = all_questions(heldout)
    for kind in Kind:
        answers = Counter(question.answer for question in asked if question.kind is kind)
        even = sum(answers.values()) / len(answers)
        assert sum(answers.values()) > SCENES / 4
        assert max(answers.values()) < even + 3 * even**0.5  # three standard deviations of pure chance


def test_the_words_of_a_question_do_not_give_the_answer_away(
    train: list[Scene], heldout: list[Scene]
) -> None:
    """A model that sees nothing does no better than the most frequent answer to the same words."""
    by_text: dict[str, Counter[str]] = {}
    for question in all_questions(train):
        by_text.setdefault(question.text, Counter())[question.answer] += 1
    asked = all_questions(heldout)
    guessed = [by_text[q.text].most_common(1)[0][0] == q.answer for q in asked if q.text in by_text]
    assert sum(guessed) / len(asked) < 0.35


def test_half_of_the_yes_no_questions_are_no_and_many_of_those_near_misses(heldout: list[Scene]) -> None:
    near = no = total = 0
    for scene in heldout:
        shown = {word for actor in scene.actors for word in (actor.shape, *actor.colors)}
        (question,) = [q for q in questions(scene) if q.kind is Kind.YES_NO]
        total, no = total + 1, no + (question.answer == "no")
        near += question.answer == "no" and any(word in shown for word in re.findall("[a-z]+", question.text))
    assert 0.42 < no / total < 0.58
    assert near / no > 0.5


# What is held out.


def pairs_of(drawn: Iterable[Scene]) -> set[Pair]:
    return {pair for scene in drawn for actor in scene.actors for pair in actor.pairs}


def test_the_unseen_pairs_are_never_shown_nor_spoken_of_in_training(train: list[Scene]) -> None:
    assert len(pairs_of(train)) == len(SHAPES) * len(COLORS) - len(UNSEEN_PAIRS)
    assert pairs_of(train).isdisjoint(UNSEEN_PAIRS)
    said = " ".join([*map(caption, train), *(question.text for question in all_questions(train))])
    assert not any(str(pair) in said for pair in UNSEEN_PAIRS)
    assert not any(question.unseen_pair for question in all_questions(train))


def test_the_unseen_pairs_are_shown_and_flagged_in_the_heldout_split(heldout: list[Scene]) -> None:
    assert pairs_of(heldout) > UNSEEN_PAIRS
    for kind in Kind:
        flags = [question.unseen_pair for question in all_questions(heldout) if question.kind is kind]
        assert 0.02 < np.mean(flags) < 0.5
    for scene in heldout:
        flagged = any(question.unseen_pair for question in questions(scene) if question.kind is Kind.COUNT)
        assert flagged == (not pairs_of([scene]).isdisjoint(UNSEEN_PAIRS))


def test_the_splits_and_the_seeds_have_no_scene_in_common(train: list[Scene], heldout: list[Scene]) -> None:
    drawn = [*train, *heldout, *scenes("train", 2, 5)]
    assert len({(scene.background, scene.actors) for scene in drawn}) == len(drawn)


# Time.


def test_every_state_lasts_three_seconds_and_every_move_four(train: list[Scene]) -> None:
    for scene in train:
        assert 4 <= scene.seconds <= 60 or scene.is_still
        events = {0, scene.seconds}
        for life in (actor.life for actor in scene.actors):
            events |= {life.enters_seconds, life.leaves_seconds or 0, life.changes_seconds or 0}
            if life.moves_seconds:
                assert life.moves_seconds[1] - life.moves_seconds[0] >= 4
        assert scene.is_still or np.diff(sorted(events)).min() >= 3


def test_most_clips_are_short(train: list[Scene]) -> None:
    seconds = [scene.seconds for scene in train if not scene.is_still]
    assert np.mean(np.array(seconds) <= 12) > 0.7
    assert max(seconds) > 30


# The same again.


def test_the_same_seed_gives_the_same_scenes_questions_and_frames(train: list[Scene]) -> None:
    again = list(scenes("train", 1, 5))
    assert again == train[:5]
    assert all_questions(again) == all_questions(train[:5])
    for one, other in zip(again, train, strict=False):
        assert np.array_equal(frames(one, 1), frames(other, 1))


def test_more_processes_write_the_same_bytes(tmp_path: Path) -> None:
    write_world(tmp_path / "one", "train", seed=3, clips=3, stills=2)
    write_world(tmp_path / "two", "train", seed=3, clips=3, stills=2, workers=2)
    one, two = (
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in ("one", "two")
    )
    assert one == two
    assert len(one) == 3 + 2 + 3


# Files.


def test_a_clip_has_a_frame_for_each_second_and_is_small(world: Path, read: dict[str, Reading]) -> None:
    for item in items(world, "captions"):
        assert read[media(item)].frame_count == max(1, item["seconds"])
        assert (world / media(item)).stat().st_size < 6000 * max(2, item["seconds"])  # 60 kB for 10 s


@pytest.mark.parametrize("name", ["captions", "instructions", "questions"])
def test_the_items_are_llava_json(world: Path, name: str) -> None:
    listed = items(world, name)
    assert len({item["id"] for item in listed}) == len(listed)
    for item in listed:
        assert ("video" in item) != ("image" in item)
        said = item["conversations"]
        assert [turn["from"] for turn in said] == ["human", "gpt"] * (len(said) // 2)
        assert [turn["value"].startswith("<image>\n") for turn in said] == [True] + [False] * (len(said) - 1)
        assert name == "instructions" or len(said) == 2


def test_the_turns_of_a_conversation_are_the_questions_about_its_clip(world: Path) -> None:
    def said(listed: list[dict[str, Any]]) -> Counter[tuple[str, str, str]]:
        return Counter(
            (media(item), human["value"].removeprefix("<image>\n"), gpt["value"])
            for item in listed
            for human, gpt in zip(item["conversations"][::2], item["conversations"][1::2], strict=True)
        )

    assert said(items(world, "instructions")) == said(items(world, "questions"))


# The command.


def test_the_command_writes_a_world_and_counts_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "new" / "world"
    arguments = ["--split", "train", "--clips", "2", "--stills", "1", "--workers", "1", "-o", str(folder)]
    assert main([*arguments, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["clips"] == 2
    assert sum(kind["questions"] for kind in summary["kinds"].values()) == len(items(folder, "questions"))
    assert sorted(path.name for path in folder.parent.iterdir()) == ["world"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--split", "test", "--clips", "1", "-o", "new"], "invalid choice"),
        (["--split", "train", "--clips", "few", "-o", "new"], "invalid int"),
        (["--split", "train", "--clips", "0", "-o", "new"], "at least one clip"),
        (["--split", "train", "--clips", "1", "-o", "full"], "is not empty"),
        (["--split", "train", "--clips", "1", "-o", "left"], "did not finish"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full" / "something").mkdir(parents=True)
    (tmp_path / "left.partial").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert sorted(tmp_path.rglob("*")) == before
