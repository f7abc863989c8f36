"""Which clips calibration watches, by what was named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llamavid.calibration.clips import FoundClip, find_clips, in_chosen_order, require_clips
from llamavid.calibration.material import Clip, Material
from llamavid.errors import UsageError

ENDINGS = (".mp4", ".png")


def written(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"not looked into")
    return folder


def names_of(found: list[FoundClip]) -> list[str]:
    return [clip.name for clip in found]


def test_a_folder_gives_its_videos_and_pictures_however_deep_and_nothing_hidden(tmp_path: Path) -> None:
    folder = written(
        tmp_path, "b.mp4", "a/deep/er.PNG", "notes.txt", "clip.json", ".hidden.mp4", ".cache/thumb.png"
    )
    assert sorted(names_of(find_clips([folder], endings=ENDINGS))) == ["a/deep/er.PNG", "b.mp4"]


def test_a_file_may_have_any_ending_when_it_is_named_itself(tmp_path: Path) -> None:
    written(tmp_path, "recording.raw")
    (found,) = find_clips([tmp_path / "recording.raw"], endings=ENDINGS)
    assert found == FoundClip(tmp_path / "recording.raw", "recording.raw")


def test_a_list_names_files_and_folders_from_where_it_lies(tmp_path: Path) -> None:
    written(tmp_path, "data/one.mp4", "data/more/two.mp4", "lists/here.mp4")
    (tmp_path / "lists" / "clips.txt").write_text("../data/one.mp4\n\nhere.mp4\n  ../data/more  \n")
    found = find_clips([tmp_path / "lists" / "clips.txt"], endings=ENDINGS)
    assert names_of(found) == ["../data/one.mp4", "here.mp4", "../data/more/two.mp4"]
    assert all(clip.path.is_file() for clip in found)


def test_a_clip_that_is_named_twice_is_watched_once(tmp_path: Path) -> None:
    folder = written(tmp_path, "a.mp4", "b.mp4")
    found = find_clips([folder, folder / "a.mp4", folder / "." / "b.mp4"], endings=ENDINGS)
    assert sorted(names_of(found)) == ["a.mp4", "b.mp4"]


def test_a_line_that_names_nothing_is_told_by_its_number(tmp_path: Path) -> None:
    written(tmp_path, "one.mp4")
    (tmp_path / "clips.txt").write_text("one.mp4\ngone.mp4\n")
    with pytest.raises(UsageError, match=r"line 2 of .*clips\.txt names gone\.mp4, which does not exist"):
        find_clips([tmp_path / "clips.txt"], endings=ENDINGS)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00broken", b"a\0b"])
def test_a_list_that_is_no_text_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "clips.txt").write_bytes(content)
    with pytest.raises(UsageError, match="text; expected a list of clips, one a line"):
        find_clips([tmp_path / "clips.txt"], endings=ENDINGS)


def test_a_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"gone does not exist; expected a video, a picture, a folder"):
        find_clips([tmp_path / "gone"], endings=ENDINGS)


def test_the_same_seed_chooses_the_same_clips_wherever_the_folder_lies(tmp_path: Path) -> None:
    names = [f"{index}.mp4" for index in range(30)]
    here, there = written(tmp_path / "here", *names), written(tmp_path / "th ere", *reversed(names))
    chosen = [
        names_of(in_chosen_order(find_clips([folder], endings=ENDINGS), seed=3)) for folder in (here, there)
    ]
    assert chosen[0] == chosen[1]
    assert chosen[0] != names_of(in_chosen_order(find_clips([here], endings=ENDINGS), seed=4))


def test_a_clip_more_changes_the_choice_by_that_clip_at_most(tmp_path: Path) -> None:
    folder = written(tmp_path, *(f"{index}.mp4" for index in range(30)))
    before = names_of(in_chosen_order(find_clips([folder], endings=ENDINGS), seed=0))
    written(folder, "0/new.mp4")
    after = names_of(in_chosen_order(find_clips([folder], endings=ENDINGS), seed=0))
    after.remove("0/new.mp4")
    assert after == before


@pytest.mark.parametrize(
    ("found", "unreadable", "line"),
    [
        (0, 0, "0 clips found; expected 16 to calibrate on. Name more clips, or pass --sample."),
        (1, 0, "1 clip found; expected 16 to calibrate on. Name more clips, or pass --clips 1."),
        (3, 2, "3 clips found (2 more cannot be read); expected 16 to calibrate on. "
         "Name more clips, or pass --clips 3."),
    ],
)  # fmt: skip
def test_too_few_clips_are_one_line_with_both_numbers(found: int, unreadable: int, line: str) -> None:
    with pytest.raises(UsageError) as told:
        require_clips(found, 16, unreadable=unreadable)
    assert str(told.value) == line
    require_clips(16, 16)


def test_material_is_known_by_what_was_seen_and_asked_and_not_by_its_names() -> None:
    def material(*, name: str = "a", shift: float = 0.0, question: str = "What?") -> Material:
        pixels = [np.arange(12, dtype=np.float32).reshape(1, 3, 2, 2) + index + shift for index in range(3)]
        first = Clip(name, np.concatenate(pixels[:2]), (question, "How many?"))
        return Material((first, Clip("b", pixels[2], ("Where?",))))

    whole = material()
    assert whole.digest == material(name="other").digest
    assert len({whole.digest, material(shift=1e-3).digest, material(question="Who?").digest}) == 3
    assert (whole.frames, whole.lengths, whole.pixels().shape) == (3, (2, 1), (3, 3, 2, 2))
    assert list(whole.asked()) == [
        (slice(0, 2), "What?"),
        (slice(0, 2), "How many?"),
        (slice(2, 3), "Where?"),
    ]
