"""A long video as a file: what is written is read, asked about, and refused when it is damaged."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import load_file, save_file

from llamavid.bundle import open_bundle
from llamavid.cli import main
from llamavid.errors import SourceError, UsageError
from llamavid.feature_file import (
    MAX_HEADER_BYTES,
    StoredFeatures,
    is_feature_file,
    read_features,
    write_features,
)
from llamavid.runtime.clip import clip_pixels
from llamavid.runtime.features.stored import adopt_stored
from llamavid.runtime.parity import run_graph
from llamavid.runtime.session import FrameTime, VideoSession
from tests.clips import write_clip

STORED = StoredFeatures(
    np.random.default_rng(0).standard_normal((3, 4, 8)).astype(np.float16),
    has_class_token=False,
    bundle_digest="abc",
    frame_indices=(0, 25, 50),
    pts_seconds=(0.0, 1.0, 2.0),
    subtitles=("the rabbit", "", "ein Schmetterling, größer"),
)
SRT = "1\n00:00:00,100 --> 00:00:00,900\nThe rabbit\n\n2\n00:00:01,200 --> 00:00:03,000\na butterfly\n"
ANSWER = ("--max-new-tokens", "6", "--json")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_features(tmp_path / "movie.safetensors", STORED)
    return tmp_path / "movie.safetensors"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """At one frame a second, frames 0 and 25 are looked at."""
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", frames=50)


def llamavid(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def header_changed(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


# The file


def test_what_is_written_is_read_and_nothing_is_left_beside_it(file: Path) -> None:
    read = read_features(file)
    assert np.array_equal(read.features, STORED.features)
    assert replace(read, features=STORED.features).__dict__ == STORED.__dict__
    assert [found.name for found in file.parent.iterdir()] == [file.name]


def test_the_safetensors_library_reads_the_same(file: Path) -> None:
    assert np.array_equal(load_file(file)["features"], STORED.features)


def test_other_files_are_not_taken_for_features(file: Path, tmp_path: Path, clip: Path) -> None:
    save_file({"features": STORED.features}, tmp_path / "other.safetensors")
    (tmp_path / "deep").write_bytes(struct.pack("<Q", 100_000) + b"[" * 100_000)
    others = [tmp_path / "other.safetensors", tmp_path / "deep", tmp_path, tmp_path / "none", clip]
    assert [is_feature_file(path) for path in [file, *others]] == [True] + [False] * len(others)


def test_features_are_written_over_features_and_over_nothing_else(file: Path, tmp_path: Path) -> None:
    write_features(file, replace(STORED, subtitles=("", "", "")))
    assert read_features(file).subtitles == ("", "", "")
    (tmp_path / "movie.mp4").write_bytes(b"a film")
    with pytest.raises(UsageError, match="holds no features"):
        write_features(tmp_path / "movie.mp4", STORED)
    assert (tmp_path / "movie.mp4").read_bytes() == b"a film"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda h: h["__metadata__"].update(version="2"), "version '2'"),
        (lambda h: h["__metadata__"].pop("subtitles"), "subtitles"),
        (lambda h: h["__metadata__"].update(subtitles='["a"]'), "1 subtitles for 3 frames"),
        (lambda h: h["__metadata__"].update(subtitles="[1, 2, 3]"), "does not hold str"),
        (lambda h: h["__metadata__"].update(pts_seconds="[0.0, NaN, 1.0]"), "not finite"),
        (lambda h: h["__metadata__"].update(frame_indices="[" * 100_000), "nested too deeply"),
        (lambda h: h["features"].update(dtype="F32"), "F32"),
        (lambda h: h["features"].update(shape=[3, 4, 9]), "not 216"),
        (lambda h: h["features"].update(shape=[-3, -4, 8]), "-3"),
        (lambda h: h["features"].update(data_offsets=[8, 200]), r"\[8, 200\]"),
        (lambda h: h.update(more=h["features"]), "more"),
        (lambda h: h.pop("features"), "features alone"),
    ],
)
def test_a_header_that_does_not_hold_together_is_refused(
    file: Path, change: Callable[[dict[str, Any]], object], problem: str
) -> None:
    header_changed(file, change)
    with pytest.raises(SourceError, match=problem):
        read_features(file)


def test_a_file_cut_anywhere_is_refused(file: Path) -> None:
    whole = file.read_bytes()
    for length in [*range(0, len(whole), 37), len(whole) - 1]:
        file.write_bytes(whole[:length])
        with pytest.raises(SourceError):
            read_features(file)


def test_a_header_said_to_be_huge_is_not_read(file: Path) -> None:
    file.write_bytes(struct.pack("<Q", MAX_HEADER_BYTES + 1) + file.read_bytes()[8:])
    with pytest.raises(SourceError, match="no safetensors header"):
        read_features(file)


def test_features_that_are_not_finite_are_refused(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-2] + np.float16(np.inf).tobytes())
    with pytest.raises(SourceError, match="not finite"):
        read_features(file)


# The commands


def test_features_are_the_encoders_without_the_class_token(
    short_bundle: Path, clip: Path, tmp_path: Path
) -> None:
    made = tmp_path / "made.safetensors"
    (tmp_path / "clip.srt").write_text(SRT)
    done = llamavid(
        "features", short_bundle, clip, "-o", made, "--subtitles", tmp_path / "clip.srt", "--json"
    )
    assert done.exit_code == 0, done.output
    bundle, stored = open_bundle(short_bundle), read_features(made)
    pixels = clip_pixels(clip, bundle.manifest.model.preprocessing)
    seen = run_graph(short_bundle, bundle.manifest.graphs["vision"], {"pixels": pixels})["features"]
    # float16 of features that differ in the last bits, as they were encoded in other batches
    np.testing.assert_allclose(stored.features, seen[:, 1:], rtol=2e-3, atol=1e-4)
    assert (stored.frame_indices, stored.pts_seconds) == ((0, 25), (0.0, 1.0))
    assert (stored.subtitles, stored.bundle_digest) == (("The rabbit", "a butterfly"), bundle.digest)
    document = json.loads(done.stdout)
    assert (document["shape"], document["subtitles"]) == (list(stored.features.shape), 2)


def test_asking_about_stored_features_is_asking_about_a_movie_with_its_words(
    short_bundle: Path, clip: Path, tmp_path: Path
) -> None:
    made = tmp_path / "made.safetensors"
    (tmp_path / "clip.srt").write_text(SRT)
    assert (
        llamavid("features", short_bundle, clip, "-o", made, "--subtitles", tmp_path / "clip.srt").exit_code
        == 0
    )
    asked = llamavid("ask", short_bundle, made, "What?", *ANSWER)
    stored = read_features(made)
    with VideoSession.open(short_bundle) as session:
        session.adopt(stored.features, [FrameTime(0, 0.0), FrameTime(25, 1.0)])
        answer = session.ask_movie("What?", ["The rabbit", "a butterfly"], max_new_tokens=6)
    document = json.loads(asked.stdout)
    assert document["token_ids"] == list(answer.token_ids)
    assert document["prompt_tokens"] == answer.prompt_tokens
    assert document["frames"][1] == {"index": 25, "pts_seconds": 1.0}
    assert document["notes"] == []


def test_the_class_token_is_kept_when_asked_for_and_the_file_says_so(
    short_bundle: Path, clip: Path, tmp_path: Path
) -> None:
    made = tmp_path / "made.safetensors"
    assert llamavid("features", short_bundle, clip, "-o", made, "--keep-class-token").exit_code == 0
    stored, vision = read_features(made), open_bundle(short_bundle).manifest.model.vision
    assert stored.has_class_token
    assert stored.features.shape == (2, 1 + vision.patches, vision.width)
    assert llamavid("ask", short_bundle, made, "What?", *ANSWER).exit_code == 0


def test_features_do_not_replace_the_video(short_bundle: Path, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=1)
    before = clip.read_bytes()
    done = llamavid("features", short_bundle, clip, "-o", clip)
    assert (done.exit_code, clip.read_bytes()) == (2, before)


def test_another_encoders_features_are_refused_and_another_bundles_remarked_on(
    short_bundle: Path, file: Path
) -> None:
    with VideoSession.open(short_bundle) as session:
        with pytest.raises(SourceError, match="4 x 8 a frame"):
            adopt_stored(session, file)
        vision = session.config.vision
        fitting = np.zeros((3, vision.patches, vision.width), np.float16)
        write_features(file, replace(STORED, features=fitting))
        assert adopt_stored(session, file) == list(STORED.subtitles)
        assert session.watched is not None
        assert "another bundle" in session.watched.notes[0]
