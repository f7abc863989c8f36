"""A video that was watched once is not encoded again, and the answer is the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from llamavid.cli import main
from llamavid.runtime.feature_cache import FeatureCache
from llamavid.runtime.session import VideoSession
from llamavid.runtime.stored_features import watch_cached
from tests.clips import write_clip


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
        features = watched.features.copy()
        (entry,) = tmp_path.iterdir()
        entry.write_bytes(entry.read_bytes()[:-8])
        again = watch_cached(session, clip, FeatureCache(tmp_path))
        assert "damaged" in again.notes[-1]
        assert (again.features == features).all()
        assert watch_cached(session, clip, FeatureCache(tmp_path)).notes[-1].endswith("from the cache.")
