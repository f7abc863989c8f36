"""What `llamavid calibrate` shows the model: clips read by the runtime, or scenes of the little world."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llamavid.console import Progress, remark
from llamavid.errors import SourceError

if TYPE_CHECKING:
    from llamavid.calibration.material import Material
    from llamavid.config import Preprocessing

_QUESTIONS_PER_CLIP = 2  # two ways into the text decoder for the same frames


@dataclass(frozen=True)
class Choice:
    """Of `clips` clips, `frames` frames each."""

    clips: int
    frames: int
    seed: int
    questions: Path | None


def material_from_files(
    named: Sequence[Path], choice: Choice, preprocessing: Preprocessing, progress: Progress
) -> Material:
    """A clip that cannot be read is left out with a line, and the next by chance takes its place.

    Raises:
        UsageError: there are too few clips, or what was named is none.
    """
    from llamavid.calibration.clips import find_clips, in_chosen_order, require_clips
    from llamavid.calibration.material import Clip, Material
    from llamavid.calibration.questions import Questions, read_questions
    from llamavid.runtime.clip import CLIP_ENDINGS, spread_pixels

    questions = read_questions(choice.questions) if choice.questions else Questions()
    found = find_clips(named, endings=CLIP_ENDINGS)
    require_clips(len(found), choice.clips)
    clips: list[Clip] = []
    unreadable = 0
    for one in in_chosen_order(found, seed=choice.seed):
        if len(clips) == choice.clips:
            break
        progress.update("reading clips", len(clips), choice.clips, one.name)
        try:
            pixels = spread_pixels(one.path, preprocessing, frames=choice.frames)
        except SourceError as error:
            unreadable += 1
            progress.close()
            remark(f"left out: {error}")
            continue
        asked = questions.about(
            one.name, path=one.path.absolute().as_posix(), seed=choice.seed, count=_QUESTIONS_PER_CLIP
        )
        clips.append(Clip(one.name, pixels, asked))
    require_clips(len(clips), choice.clips, unreadable=unreadable)
    return Material(tuple(clips))


def sample_material(
    choice: Choice,
    preprocessing: Preprocessing,
    *,
    on_clip: Callable[[int, int], None] = lambda done, total: None,
) -> Material:
    """Scenes of the little world, drawn here: what the embedded model knows, with questions about each."""
    from llamavid.calibration.material import Clip, Material
    from llamavid.calibration.questions import Questions, read_questions
    from llamavid.runtime.yuv import pixels_from_pictures
    from llamavid.train.world_casting import scenes
    from llamavid.train.world_drawing import picture
    from llamavid.train.world_questions import questions as questions_about

    given = read_questions(choice.questions) if choice.questions else None
    clips: list[Clip] = []
    for scene in scenes("train", choice.seed, choice.clips):  # the held-out ones tell what it cost
        on_clip(len(clips), choice.clips)
        middles = [(index + 0.5) * scene.seconds / choice.frames for index in range(choice.frames)]
        pixels = pixels_from_pictures(
            [picture(scene, seconds) for seconds in middles],
            image_size=preprocessing.image_size,
            mean=preprocessing.mean,
            std=preprocessing.std,
        )
        own = Questions(own={scene.name: tuple(question.text for question in questions_about(scene))})
        asked = (given or own).about(scene.name, seed=choice.seed, count=_QUESTIONS_PER_CLIP)
        clips.append(Clip(scene.name, pixels, asked))
    return Material(tuple(clips))
