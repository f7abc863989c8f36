"""Long videos are encoded once: from frames to a feature file, and from there to a session.

store_features(open_bundle("bundle"), "movie.mp4", Path("movie.safetensors"))
subtitles = adopt_stored(session, "movie.safetensors")
answer = session.ask_movie("Who is the rabbit?", subtitles)
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from llamavid.bundle import Bundle
from llamavid.feature_file import (
    StoredFeatures,
    check_fits,
    check_replaceable,
    is_feature_file,
    read_features,
    write_features,
)
from llamavid.runtime.clip import frame_pixels
from llamavid.runtime.executors import OnnxExecutor
from llamavid.runtime.features.cache import FeatureCache, feature_key
from llamavid.runtime.features.memory import half
from llamavid.runtime.features.slots import disk_folder
from llamavid.runtime.features.watched import Watched
from llamavid.runtime.session import VideoSession
from llamavid.runtime.video.frames import FrameTime, Source
from llamavid.runtime.video.sources import open_source
from llamavid.subtitles import Subtitle, subtitle_of_each_frame

OnFrame = Callable[[int, int | None], None]

_BATCH = 32  # frames copied at once


def store_features(
    bundle: Bundle,
    video: Path | str,
    output: Path,
    *,
    subtitles: Sequence[Subtitle] = (),
    fps: float = 1.0,
    keep_class_token: bool = False,
    on_frame: OnFrame = lambda done, expected: None,
) -> tuple[StoredFeatures, list[str]]:
    """Encodes a video into the feature file `output`; gives what was written, and remarks for the user.

    Args:
        fps: frames a second to look at.
        keep_class_token: store row 0 of each frame too; the published movie files do not have it.
        on_frame: called with the frames encoded so far and the number expected, if known.

    Raises:
        SourceError: the video cannot be read.
        UsageError: `output` is something else than features, which is not replaced.
        BundleError: the encoder gives values that float16 does not hold.
    """
    check_replaceable(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    vision = bundle.manifest.model.vision
    # An hour is 2.6 GB: it waits on the disk until the number of frames, which comes first, is known.
    with open_source(video, fps=fps) as source, tempfile.TemporaryFile(dir=output.parent) as spool:
        times = _spool(bundle, source, 0 if keep_class_token else 1, spool, on_frame)
        shape = (len(times), vision.patches + keep_class_token, vision.width)
        pts_seconds = tuple(time.pts_seconds for time in times)
        stored = StoredFeatures(
            np.memmap(spool, np.float16, "r", shape=shape),
            has_class_token=keep_class_token,
            bundle_digest=bundle.digest,
            frame_indices=tuple(time.index for time in times),
            pts_seconds=pts_seconds,
            subtitles=tuple(subtitle_of_each_frame(subtitles, pts_seconds)),
        )
        write_features(output, stored)
        return stored, source.notes


def adopt_stored(session: VideoSession, path: Path | str) -> list[str] | None:
    """Makes a feature file the session's video; gives its subtitles, or None where `path` is something else.

    Raises:
        SourceError: the features are damaged, or another encoder's.
    """
    if not is_feature_file(path):
        return None
    stored = read_features(path)
    check_fits(stored, session.config.vision, path)
    times = [FrameTime(*time) for time in zip(stored.frame_indices, stored.pts_seconds, strict=True)]
    session.adopt(stored.features, times, notes=_notes(stored, session.bundle))
    return list(stored.subtitles)


def watch_cached(
    session: VideoSession,
    video: Path | str,
    cache: FeatureCache,
    *,
    fps: float = 1.0,
    on_frame: OnFrame = lambda done, expected: None,
) -> Watched:
    """As `session.watch`, but a video that the cache holds is not encoded again.

    Raises: as `session.watch`.
    """
    with open_source(video, fps=fps) as source:  # what cannot be watched is told before it is hashed
        notes = list(source.notes)
    key = feature_key(session.bundle, video, fps=fps)
    stored = cache.get(key)
    if stored is not None:
        notes += ["It was watched before: its features come from the cache.", *cache.notes]
        times = [FrameTime(*time) for time in zip(stored.frame_indices, stored.pts_seconds, strict=True)]
        return session.adopt(stored.features, times, notes=notes)
    watched = session.watch(video, fps=fps, on_frame=on_frame)
    try:
        if feature_key(session.bundle, video, fps=fps) == key:  # not of a file that is still being written
            with tempfile.TemporaryFile(dir=disk_folder()) as spool:
                cache.put(key, _stored(watched, session.bundle, spool))
    except OSError as error:
        cache.notes.append(f"The features are not kept ({error.strerror}).")
    session.watched = replace(watched, notes=(*watched.notes, *cache.notes))
    return session.watched


def _stored(watched: Watched, bundle: Bundle, spool: BinaryIO) -> StoredFeatures:
    """The features lie in `spool`: an hour of them is not to be in memory at once."""
    shape: tuple[int, ...] = ()
    for features, _ in watched.held.batches(_BATCH):
        spool.write(features.data)
        shape = features.shape[1:]
    spool.flush()
    return StoredFeatures(
        np.memmap(spool, np.float16, "r", shape=(len(watched.frames), *shape)),
        has_class_token=True,
        bundle_digest=bundle.digest,
        frame_indices=tuple(frame.index for frame in watched.frames),
        pts_seconds=tuple(frame.pts_seconds for frame in watched.frames),
        subtitles=("",) * len(watched.frames),
    )


def _spool(
    bundle: Bundle, source: Source, first_row: int, spool: BinaryIO, on_frame: OnFrame
) -> list[FrameTime]:
    """Frames -> float16 rows from `first_row` on, appended to `spool`."""
    entry = bundle.manifest.graphs["vision"]
    vision = OnnxExecutor(bundle.path(entry.file), entry.contract)
    dtype = entry.contract.spec("pixels").dtype.numpy
    times: list[FrameTime] = []
    for frame in source.frames():
        pixels = frame_pixels([frame], source.kind, bundle.manifest.model.preprocessing)
        features = vision.run({"pixels": pixels.astype(dtype, copy=False)})["features"]
        spool.write(half(features[:, first_row:], [frame.index]).tobytes())
        times.append(FrameTime(frame.index, frame.pts_seconds))
        on_frame(len(times), source.expected_frames)
    spool.flush()
    return times


def _notes(stored: StoredFeatures, bundle: Bundle) -> list[str]:
    if stored.bundle_digest == bundle.digest:
        return []
    maker = "another bundle" if stored.bundle_digest else "another program"
    return [f"The features were made by {maker}: answers are right only if its vision encoder is the same."]
