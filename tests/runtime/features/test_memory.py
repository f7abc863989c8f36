"""Features are kept within bounds, exactly and in order, whatever becomes of the disk and the process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamavid.bundle import Bundle, open_bundle
from llamavid.errors import BundleError, DeviceError, UsageError
from llamavid.feature_file import StoredFeatures
from llamavid.runtime.features.cache import FeatureCache, default_folder, feature_key
from llamavid.runtime.features.memory import FeatureMemory, pixel_digests

ROOT = Path(__file__).parent.parent.parent
Array = np.ndarray[Any, Any]

FEATURES, CONTENT = (5, 8), (2, 4)  # [R, C] and [k, D] of a frame
FRAME_BYTES = 2 * (5 * 8 + 2 * 4)
LINUX = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux about the process")


def frames(count: int, *, seed: int = 0, dtype: type = np.float16) -> tuple[Array, Array]:
    """Features [n, R, C] and content tokens [n, k, D], all different."""
    random = np.random.default_rng(seed)
    features: Array = random.standard_normal((count, *FEATURES)).astype(dtype)
    return features, random.standard_normal((count, *CONTENT)).astype(dtype)


def remember(memory: FeatureMemory, features: Array, content: Array, *, batch: int = 2, **more: Any) -> None:
    """Appended as an encoder gives them; frame i is at index 25 i and second i."""
    start = len(memory)
    for at in range(0, len(features), batch):
        part = slice(at, at + batch)
        numbers = range(start, start + len(features))[part]
        digests = {"digests": more["digests"][part]} if more else {}
        memory.append(
            features[part],
            content[part],
            frame_indices=[25 * i for i in numbers],
            pts_seconds=[float(i) for i in numbers],
            **digests,
        )


def recalled(memory: FeatureMemory, size: int = 3) -> tuple[Array, Array]:
    pairs = [(features.copy(), content.copy()) for features, content in memory.batches(size)]
    features, content = zip(*pairs, strict=True)
    return np.concatenate(features), np.concatenate(content)


def python(code: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A fresh Python that knows this module's names."""
    return subprocess.run(
        [sys.executable, "-c", f"from tests.runtime.features.test_memory import *\n{textwrap.dedent(code)}"]
        + [str(argument) for argument in arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )


# What is remembered.


@pytest.mark.parametrize("in_memory", [0, 4, 100])
@pytest.mark.parametrize("size", [1, 3, 32])
def test_what_is_remembered_comes_back_exactly_and_in_order(
    tmp_path: Path, in_memory: int, size: int
) -> None:
    features, content = frames(11)
    with FeatureMemory(in_memory * FRAME_BYTES, spill_folder=tmp_path) as memory:
        remember(memory, features, content)
        for _ in range(2):  # a second question
            np.testing.assert_array_equal(recalled(memory, size)[0], features)
            np.testing.assert_array_equal(recalled(memory, size)[1], content)
        assert memory.pts_seconds == tuple(float(i) for i in range(11))
        assert memory.frame_indices == tuple(25 * i for i in range(11))
        held = min(in_memory, 11)
        assert memory.use().resident_bytes == held * FRAME_BYTES
        assert memory.use().spilled_bytes == (11 - held) * FRAME_BYTES


def test_other_floats_are_rounded_to_float16_once() -> None:
    features, content = frames(3, dtype=np.float32)
    with FeatureMemory(1 << 20) as memory:
        remember(memory, features, content)
        np.testing.assert_array_equal(recalled(memory)[0], features.astype(np.float16))
        np.testing.assert_array_equal(recalled(memory)[1], content.astype(np.float16))


def test_a_feature_that_float16_does_not_hold_is_refused_by_its_frame() -> None:
    features, content = frames(2, dtype=np.float32)
    features[1, 2, 3] = 70_000
    with FeatureMemory(1 << 20) as memory, pytest.raises(BundleError, match="frame 25 do not fit float16"):
        remember(memory, features, content)


def test_appending_while_a_question_reads_is_caught() -> None:
    """An evicting memory would give the new frame in the place of an old one."""
    features, content = frames(4)
    with FeatureMemory(4 * FRAME_BYTES, on_full="evict") as memory:
        remember(memory, features, content)
        reading = memory.batches(2)
        next(reading)
        remember(memory, *frames(1, seed=1))
        with pytest.raises(AssertionError, match="appended while the memory was read"):
            next(reading)


def test_an_empty_memory_gives_nothing() -> None:
    with FeatureMemory(1 << 20) as memory:
        assert list(memory.batches(2)) == []
        assert memory.summary() is None
        assert len(memory) == memory.use().resident_bytes == 0


def test_a_scene_that_does_not_move_is_stored_once(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).standard_normal((3, 3, 4, 4)).astype(np.float32)[[0, 0, 1, 0, 2, 2]]
    digests = pixel_digests(pixels)
    features, content = frames(3)
    seen = [0, 0, 1, 0, 2, 2]
    with FeatureMemory(2 * FRAME_BYTES, spill_folder=tmp_path) as memory:
        remember(memory, features[seen], content[seen], digests=digests)
        assert memory.holds(digests[0])
        memory.append_equal(digests[0], frame_index=150, pts_seconds=6.0)  # not even encoded
        np.testing.assert_array_equal(recalled(memory)[0], features[[*seen, 0]])
        np.testing.assert_array_equal(recalled(memory)[1], content[[*seen, 0]])
        assert memory.pts_seconds == (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
        assert memory.use().repeated == 4
        assert memory.use().spilled_bytes == FRAME_BYTES


# Its bounds.

HOLD = """
import json
import numpy as np
from llamavid.runtime.features.memory import FeatureMemory

def resident(name):
    fields = dict(line.split(":") for line in open("/proc/self/status"))
    return int(fields[name].split()[0]) << 10

features, content = np.empty((2, 257, 1408), np.float16), np.zeros((2, 1, 64), np.float16)
before, right = resident("VmRSS"), 0
with FeatureMemory(16 << 20) as memory:
    for i in range(0, 400, 2):
        features[0], features[1] = i, i + 1
        memory.append(features, content, frame_indices=[i, i + 1], pts_seconds=[i, i + 1])
    for found, _ in memory.batches(8):
        right += sum(bool((found[k] == right + k).all()) for k in range(8))
    use = memory.use()
print(json.dumps([resident("VmHWM") - before, use.resident_bytes, use.spilled_bytes, right]))
"""


@LINUX
def test_the_process_stays_within_the_budget_whatever_it_remembers() -> None:
    """400 frames of the real size, 290 MB, under 16 MiB; a batch of 8 is read into 6 MB."""
    done = subprocess.run([sys.executable, "-c", HOLD], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    grown, resident, spilled, right = json.loads(done.stdout)
    assert right == 400
    assert resident <= 16 << 20
    assert spilled > 270e6
    assert grown < (16 << 20) + 6e6 + 16e6  # the last: Python's and the allocator's own


def test_a_full_disk_quota_is_told_in_numbers_and_loses_nothing(tmp_path: Path) -> None:
    features, content = frames(6)
    with FeatureMemory(2 * FRAME_BYTES, spill_bytes=3 * FRAME_BYTES, spill_folder=tmp_path) as memory:
        with pytest.raises(
            DeviceError, match=r"5 frames fill 0\.0 MiB of memory and 0\.0 MiB of disk"
        ) as told:
            remember(memory, features, content, batch=6)
        assert "fewer frames a second" in str(told.value)
        np.testing.assert_array_equal(recalled(memory)[0], features[:5])


def test_a_spill_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with FeatureMemory(0, spill_folder=tmp_path / "gone") as memory:
        with pytest.raises(DeviceError, match="No such file or directory"):
            remember(memory, *frames(1))
        assert len(memory) == memory.use().spilled_bytes == 0


@LINUX
def test_a_full_disk_is_one_clear_line_and_loses_nothing(tmp_path: Path) -> None:
    """A process may write 10 records and a half, which is what a disk looks like that becomes full."""
    code = """
        import resource
        limit = 10 * FRAME_BYTES + FRAME_BYTES // 2
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        features, content = frames(20)
        memory = FeatureMemory(3 * FRAME_BYTES, spill_folder=sys.argv[1])
        try:
            remember(memory, features, content)
        except DeviceError as error:
            print(error)
        np.testing.assert_array_equal(recalled(memory)[0], features[:13])
        assert memory.use().spilled_bytes == 10 * FRAME_BYTES
    """
    done = python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"{tmp_path} takes 0.0 MiB of features and no more (File too large).")


# The spill file.


@LINUX
def test_the_spill_file_has_no_name_and_its_room_comes_back(tmp_path: Path) -> None:
    def spilled() -> list[str]:
        links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
        return [os.readlink(link) for link in links if os.path.exists(link) or os.path.islink(link)]

    memory = FeatureMemory(0, spill_folder=tmp_path)
    remember(memory, *frames(4))
    assert os.listdir(tmp_path) == []
    assert any(name.startswith(str(tmp_path)) for name in spilled())
    memory.close()
    assert not any(name.startswith(str(tmp_path)) for name in spilled())
    assert memory.use().spilled_bytes == len(memory) == 0


@LINUX
def test_an_interrupted_process_leaves_nothing_behind(tmp_path: Path) -> None:
    code = """
        memory = FeatureMemory(0, spill_folder=sys.argv[1])
        remember(memory, *frames(4))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    assert python(code, tmp_path).returncode == -signal.SIGKILL
    assert os.listdir(tmp_path) == []


# Endless streams.


def test_the_oldest_frames_lose_their_features_and_leave_their_content_tokens(tmp_path: Path) -> None:
    features, content = frames(10)
    with FeatureMemory(4 * FRAME_BYTES + 7, on_full="evict", spill_folder=tmp_path) as memory:
        for at in range(10):
            memory.append(
                features[at : at + 1], content[at : at + 1], frame_indices=[at], pts_seconds=[float(at)]
            )
        np.testing.assert_array_equal(recalled(memory)[0], features[6:])
        np.testing.assert_array_equal(recalled(memory)[1], content[6:])
        assert memory.pts_seconds == (6.0, 7.0, 8.0, 9.0)
        summary = memory.summary()
        assert summary is not None
        np.testing.assert_array_equal(summary.content, content[:6])
        assert summary.frame_indices == tuple(range(6))
        assert summary.pts_seconds == (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)
        use = memory.use()
        assert (use.frames, use.evicted, use.forgotten, use.spilled_bytes) == (4, 6, 0, 0)
        assert use.resident_bytes == 4 * FRAME_BYTES + content[:6].nbytes


def test_an_endless_stream_is_bounded_summaries_and_all() -> None:
    with FeatureMemory(4 * FRAME_BYTES, on_full="evict", max_frames=7) as memory:
        most = 0
        for at in range(200):
            features, content = frames(1, seed=at)
            memory.append(features, content, frame_indices=[at], pts_seconds=[float(at)])
            most = max(most, memory.use().resident_bytes)
        use, summary = memory.use(), memory.summary()
        assert summary is not None
        assert summary.frame_indices + memory.frame_indices == tuple(range(193, 200))
        assert (use.frames, use.evicted, use.forgotten) == (4, 196, 193)
        assert most == 4 * FRAME_BYTES + 3 * 2 * 2 * 4


def test_a_still_picture_streamed_for_ever_is_bounded_too() -> None:
    features, content = frames(1)
    with FeatureMemory(4 * FRAME_BYTES, on_full="evict", max_frames=50) as memory:
        for at in range(500):
            memory.append(
                features, content, frame_indices=[at], pts_seconds=[float(at)], digests=[b"the same"]
            )
        assert memory.frame_indices == tuple(range(450, 500))
        assert memory.use().resident_bytes == FRAME_BYTES
        assert len(recalled(memory)[0]) == 50


def test_a_frame_that_a_later_one_shares_stays_until_that_one_goes() -> None:
    features, content = frames(4)
    with FeatureMemory(2 * FRAME_BYTES, on_full="evict") as memory:
        for at, which in enumerate([0, 1, 0, 2]):  # 2 needs room: frames 0 and 1 go, picture 0 stays
            memory.append(
                features[which : which + 1],
                content[which : which + 1],
                frame_indices=[at],
                pts_seconds=[float(at)],
                digests=[bytes([which])],
            )
        assert memory.frame_indices == (2, 3)
        np.testing.assert_array_equal(recalled(memory)[0], features[[0, 2]])
        assert memory.holds(bytes([0]))
        assert not memory.holds(bytes([1]))


def test_a_budget_below_one_frame_cannot_evict_its_way_out() -> None:
    with FeatureMemory(FRAME_BYTES - 1, on_full="evict") as memory, pytest.raises(DeviceError, match="takes"):
        remember(memory, *frames(1))


# Files, between processes.

KEYS = [f"{number:064x}" for number in range(9)]


def stored(number: int = 0, count: int = 6) -> StoredFeatures:
    features, _ = frames(count, seed=number)
    times = tuple(range(count))
    return StoredFeatures(features, True, "abc", times, tuple(map(float, times)), ("",) * count)


ENTRY_BYTES = 6 * 5 * 8 * 2
ROOM_FOR_THREE = 3 * (ENTRY_BYTES + 400) + 100  # an entry's header takes less than 400 bytes


def entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def test_another_process_finds_what_one_has_kept(tmp_path: Path) -> None:
    kept = FeatureCache(tmp_path / "cache").put(KEYS[1], stored())
    np.testing.assert_array_equal(kept.features, stored().features)
    code = """
        found = FeatureCache(sys.argv[1]).get(KEYS[1])
        assert found is not None and found.pts_seconds == (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)
        np.testing.assert_array_equal(found.features, stored().features)
        assert FeatureCache(sys.argv[1]).get(KEYS[2]) is None
    """
    done = python(code, tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "cache").stat().st_mode & 0o077 == 0  # what a video shows is its owner's


def test_the_least_recently_used_goes_when_the_quota_is_passed(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, quota_bytes=ROOM_FOR_THREE)
    for number in range(3):
        cache.put(KEYS[number], stored(number))
    for number, path in enumerate(entries(tmp_path)):  # as if used one second after another, long ago
        os.utime(path, (1000.0 + number, 1000.0 + number))
    assert cache.get(KEYS[0]) is not None  # now the last used
    cache.put(KEYS[3], stored(3))
    assert [path.name[:64] for path in entries(tmp_path)] == [KEYS[0], KEYS[2], KEYS[3]]
    assert cache.size_bytes() <= ROOM_FOR_THREE
    assert cache.notes == []


@pytest.mark.parametrize("used_seconds_ago", [10, -86400])  # the clock was put back a day
def test_an_entry_s_header_counts_and_the_newest_entry_stays(tmp_path: Path, used_seconds_ago: int) -> None:
    """The features alone would fit beside the other entry, with their header they do not."""
    FeatureCache(tmp_path).put(KEYS[0], stored())
    (other,) = entries(tmp_path)
    os.utime(other, (time.time() - used_seconds_ago,) * 2)
    FeatureCache(tmp_path, quota_bytes=2 * other.stat().st_size - 1).put(KEYS[1], stored(1))
    assert [path.name[:64] for path in entries(tmp_path)] == [KEYS[1]]


def test_what_is_larger_than_the_quota_is_not_kept_and_drives_nothing_out(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, quota_bytes=ROOM_FOR_THREE)
    cache.put(KEYS[0], stored())
    given = stored(1, count=60)
    assert cache.put(KEYS[1], given) is given
    assert "not kept: they take" in cache.notes[0]
    assert [path.name[:64] for path in entries(tmp_path)] == [KEYS[0]]


def test_files_that_are_not_entries_are_never_touched(tmp_path: Path) -> None:
    (tmp_path / "holiday.mp4").write_bytes(b"x" * 10_000)
    (tmp_path / f"{KEYS[0]}.safetensors").write_bytes(b"x" * 10_000)
    cache = FeatureCache(tmp_path, quota_bytes=ROOM_FOR_THREE)
    for number in range(5):
        cache.put(KEYS[number], stored(number))
    assert (tmp_path / "holiday.mp4").exists()
    assert (tmp_path / f"{KEYS[0]}.safetensors").exists()


def flipped(data: bytes) -> bytes:
    return data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]


@pytest.mark.parametrize(
    "damage", [flipped, lambda data: data[:-100], lambda data: b"", lambda data: data * 2]
)
def test_a_damaged_entry_is_removed_with_a_remark_and_made_again(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    cache = FeatureCache(tmp_path)
    cache.put(KEYS[0], stored())
    (path,) = entries(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    assert cache.get(KEYS[0]) is None
    assert entries(tmp_path) == []
    (note,) = cache.notes
    assert note.startswith("A damaged cache entry was removed")
    cache.put(KEYS[0], stored())
    assert cache.get(KEYS[0]) is not None


def test_an_entry_that_is_being_read_outlives_its_removal(tmp_path: Path) -> None:
    found = FeatureCache(tmp_path).put(KEYS[0], stored())
    FeatureCache(tmp_path, quota_bytes=ENTRY_BYTES + 500).put(KEYS[1], stored(1))
    assert [path.name[:64] for path in entries(tmp_path)] == [KEYS[1]]
    np.testing.assert_array_equal(found.features, stored().features)


def test_processes_share_a_folder_without_ever_reading_another_one_s_half(tmp_path: Path) -> None:
    """Four write and read five keys in room for three: what is found is right, and the quota holds."""
    code = """
        cache = FeatureCache(sys.argv[1], quota_bytes=ROOM_FOR_THREE)
        order = np.random.default_rng(int(sys.argv[2]))
        hits = 0
        for _ in range(150):
            number = int(order.integers(5))
            found = cache.get(KEYS[number])
            hits += found is not None
            found = found or cache.put(KEYS[number], stored(number))
            np.testing.assert_array_equal(found.features, stored(number).features)
        assert cache.notes == [], cache.notes
        assert hits
    """
    command = f"from tests.runtime.features.test_memory import *\n{textwrap.dedent(code)}"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", command, str(tmp_path), str(seed)],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in range(4)
    ]
    for process in running:
        said = process.communicate(timeout=120)[1]
        assert process.returncode == 0, said
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert FeatureCache(tmp_path).size_bytes() <= ROOM_FOR_THREE


@LINUX
def test_a_full_disk_costs_the_entry_and_not_the_answer(tmp_path: Path) -> None:
    code = """
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
        cache, given = FeatureCache(sys.argv[1]), stored()
        assert cache.put(KEYS[0], given) is given
        print(*cache.notes, sep="\\n")
    """
    done = python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"The features are not kept in {tmp_path} (File too large).\n"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_costs_the_entry_and_not_the_answer(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache, given = FeatureCache(tmp_path / "file"), stored()
    assert cache.get(KEYS[0]) is None
    assert cache.put(KEYS[0], given) is given
    (note,) = cache.notes
    assert "File exists" in note


def test_what_a_killed_writer_left_is_swept_up_and_a_living_one_s_is_not(tmp_path: Path) -> None:
    abandoned = tmp_path / f"..{KEYS[0]}.{'0' * 16}.unfinished.77"
    writing = tmp_path / f"..{KEYS[0]}.{'1' * 16}.unfinished.78"
    for path, age_seconds in ((abandoned, 7200), (writing, 60)):
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age_seconds,) * 2)
    FeatureCache(tmp_path).put(KEYS[1], stored())
    assert not abandoned.exists()
    assert writing.exists()


def test_the_default_folder_follows_the_desktop_s_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert default_folder() == Path("/caches/llamavid")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # "must be absolute", and ignored otherwise
    assert default_folder() == Path("/home/someone/.cache/llamavid")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == Path("/home/someone/.cache/llamavid")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    with pytest.raises(UsageError, match="no home folder"):
        default_folder()


def test_the_key_is_all_that_makes_features_and_nothing_else(short_bundle: Path, tmp_path: Path) -> None:
    bundle = open_bundle(short_bundle)
    video, copy, other = (tmp_path / name for name in ("a.mp4", "b.mp4", "c.mp4"))
    video.write_bytes(b"frames")
    copy.write_bytes(b"frames")
    other.write_bytes(b"Frames")
    key = feature_key(bundle, video, fps=1.0)
    assert key == feature_key(bundle, copy, fps=1) == feature_key(renamed(bundle), video, fps=1.0)
    changed = [
        feature_key(bundle, other, fps=1.0),
        feature_key(bundle, video, fps=0.5),
        feature_key(with_encoder(bundle, weights="0" * 64), video, fps=1.0),
        feature_key(with_encoder(bundle, precision="int8"), video, fps=1.0),
        feature_key(
            with_pixels(bundle, pad_pictures=not bundle.manifest.model.preprocessing.pad_pictures),
            video,
            fps=1.0,
        ),
        feature_key(with_pixels(bundle, mean=(0.5, 0.5, 0.5)), video, fps=1.0),
    ]
    assert len({key, *changed}) == 7


def renamed(bundle: Bundle) -> Bundle:
    """Another language model: the features are the same."""
    manifest = bundle.manifest
    llm = replace(manifest.files["llm.onnx.data"], sha256="1" * 64)
    files = {**manifest.files, "llm.onnx.data": llm}
    return replace(bundle, manifest=replace(manifest, files=files, template="llava_v1"), digest="2" * 64)


def with_encoder(bundle: Bundle, *, weights: str = "", precision: str = "") -> Bundle:
    manifest, graph = bundle.manifest, bundle.manifest.graphs["vision"]
    name = f"{graph.file}.data"
    data = replace(manifest.files[name], sha256=weights or manifest.files[name].sha256)
    graphs = {**manifest.graphs, "vision": replace(graph, precision=precision or graph.precision)}
    return replace(bundle, manifest=replace(manifest, files={**manifest.files, name: data}, graphs=graphs))


def with_pixels(bundle: Bundle, **constants: Any) -> Bundle:
    model = bundle.manifest.model
    pixels = replace(model.preprocessing, **constants)
    return replace(bundle, manifest=replace(bundle.manifest, model=replace(model, preprocessing=pixels)))
