"""A video that was watched once is not encoded again, and the answer is the same."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from llamavid.cli import main
from llamavid.runtime.features.cache import FeatureCache
from llamavid.runtime.features.stored import watch_cached
from llamavid.runtime.session import VideoSession
from tests.clips import drawn_frame, write_clip


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", frames=75)


def ask(*arguments: str | Path) -> dict[str, object]:
    words = [str(argument) for argument in (*arguments, "--json", "--max-new-tokens", "6")]
    done = CliRunner().invoke(main, ["ask", *words])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_asking_again_encodes_nothing_and_answers_the_same(
    short_bundle: Path, clip: Path, tmp_path: Path
) -> None:
    asked = (short_bundle, clip, "What happens?", "--cache-folder", tmp_path / "cache")
    first, second = ask(*asked), ask(*asked)
    assert "vision" in first["timings_ms"]
    assert "vision" not in second["timings_ms"]
    assert "from the cache" in second["notes"][-1]
    assert [first[name] for name in ("token_ids", "frames")] == [second[n] for n in ("token_ids", "frames")]
    assert "vision" in ask(*asked, "--fps", "2")["timings_ms"]


def test_a_damaged_entry_is_encoded_again_with_a_remark(
    short_bundle: Path, clip: Path, tmp_path: Path
) -> None:
    with VideoSession.open(short_bundle) as session:
        watched = watch_cached(session, clip, FeatureCache(tmp_path))
        features = watched.features()
        (entry,) = tmp_path.iterdir()
        entry.write_bytes(entry.read_bytes()[:-8])
        again = watch_cached(session, clip, FeatureCache(tmp_path))
        assert "damaged" in again.notes[-1]
        assert (again.features() == features).all()
        assert watch_cached(session, clip, FeatureCache(tmp_path)).notes[-1].endswith("from the cache.")


def test_features_that_find_no_room_on_their_way_to_the_cache_are_a_remark(
    short_bundle: Path, clip: Path, tmp_path: Path
) -> None:
    """A full disk cost the answer, after all had been encoded."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    with VideoSession.open(short_bundle) as session:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))  # Python ignores the signal
        try:
            watched = watch_cached(session, clip, FeatureCache(tmp_path))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        assert watched.notes[-1] == "The features are not kept (File too large)."
        assert session.ask("Why?", max_new_tokens=2).token_ids


def test_a_folder_of_pictures_is_kept_until_one_of_them_changes(short_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(3):
        Image.fromarray(drawn_frame(index)).save(folder / f"{index}.png")
    asked = (short_bundle, folder, "What happens?", "--cache-folder", tmp_path / "cache")
    first, second = ask(*asked), ask(*asked)
    assert "from the cache" in second["notes"][-1]
    assert [first[name] for name in ("token_ids", "frames")] == [second[n] for n in ("token_ids", "frames")]
    Image.fromarray(drawn_frame(9)).save(folder / "2.png")
    assert "vision" in ask(*asked)["timings_ms"]
