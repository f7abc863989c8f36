"""Decoding in another process: the same frames, and one clear line whatever becomes of that process."""

from __future__ import annotations

import gc
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llamavid.errors import DeviceError, SourceError, UsageError
from llamavid.runtime.video import decode_process
from llamavid.runtime.video.decode_process import SLOTS
from llamavid.runtime.video.decoding import Limits, can_isolate, source_elsewhere
from llamavid.runtime.video.frames import TURNED, Source
from llamavid.runtime.video.sources import NOT_ISOLATED, open_source
from tests.clips import QUARTER_CLOCKWISE, drawn_frame, sample_clip, write_clip, write_sound

pytestmark = pytest.mark.skipif(not can_isolate(), reason="needs memory files: Linux")

EVERY_FRAME = 1e6


def children() -> set[int]:
    return {int(child) for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}


def held() -> set[str]:
    """Our processes, our open files, and the machine's shared memory but for what others name."""
    shared = {name for name in os.listdir("/dev/shm") if not name.startswith(("sem.", "torch_"))}
    return {f"process {child}" for child in children()} | open_files() | shared


def open_files() -> set[str]:
    """What they are: another one under the same number would show."""
    links = set()
    for descriptor in os.listdir("/dev/fd"):
        with suppress(FileNotFoundError):  # the listing's own
            links.add(f"{descriptor} {os.readlink(f'/dev/fd/{descriptor}')}")
    return links


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No process, open file or shared memory may survive a test, however it ended.

    What an earlier test file left to the garbage collector may go at any time: only what is new counts.
    """
    before = held()
    yield
    deadline = time.monotonic() + 2  # other threads open and close files too
    while held() - before and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.05)
    assert held() - before == set()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", frames=50)


@contextmanager
def opened_with(path: Path, limits: Limits) -> Iterator[Source]:
    with ExitStack() as opened:
        file = opened.enter_context(open(path, "rb"))
        yield source_elsewhere(file, str(path), fps=EVERY_FRAME, opened=opened, limits=limits)


def only_child() -> int:
    (child,) = children()
    return child


def said_of(path: Path, *, isolated: bool) -> tuple[str, str, str]:
    with (
        pytest.raises(SourceError) as caught,
        open_source(path, fps=EVERY_FRAME, isolated=isolated) as source,
    ):
        list(source.frames())
    error = caught.value
    assert "\n" not in str(error)
    return error.given, error.expected, error.next_step


# The same as in this process


def clip_of(kind: str, folder: Path) -> Path:
    if kind in ("bikes", "bigbuckbunny"):
        return sample_clip(kind)
    if kind == "variable rate":
        return write_clip(folder / "a.mp4", frames=6, pts_ms=[0, 40, 80, 500, 540, 1500])
    if kind == "turned":
        return write_clip(folder / "a.mp4", frames=3, display=QUARTER_CLOCKWISE)
    if kind == "odd size":
        return write_clip(folder / "a.mkv", frames=3, size=(63, 47), codec="ffv1", pix_fmt="bgr0")
    if kind == "ntsc":
        return write_clip(folder / "a.ts", frames=20, fps=29.97, codec="libx264", pix_fmt="yuv420p")
    if kind == "damaged":
        path = write_clip(folder / "a.mp4", frames=100)
        data = bytearray(path.read_bytes())
        data[len(data) // 4 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 4)
        path.write_bytes(data)
        return path
    if kind == "size that changes":
        small = write_clip(folder / "small.ts", frames=5, size=(64, 48)).read_bytes()
        large = write_clip(folder / "large.ts", frames=5, size=(96, 80)).read_bytes()
        (folder / "both.ts").write_bytes(small + large)
        return folder / "both.ts"
    assert kind == "picture"
    Image.fromarray(drawn_frame(0)).save(folder / "a.png")
    return folder / "a.png"


KINDS = ["bikes", "bigbuckbunny", "variable rate", "turned", "odd size", "ntsc", "damaged", "picture"]


@pytest.mark.parametrize("kind", [*KINDS, "size that changes"])
def test_frames_times_and_notes_are_those_of_this_process(tmp_path: Path, kind: str) -> None:
    path = clip_of(kind, tmp_path)
    with (
        open_source(path, fps=EVERY_FRAME, isolated=False) as here,
        open_source(path, fps=EVERY_FRAME) as elsewhere,
    ):
        for a, b in zip(here.frames(), elsewhere.frames(), strict=True):
            assert (a.index, a.pts_seconds, a.rgb.shape) == (b.index, b.pts_seconds, b.rgb.shape)
            # What FFmpeg's frame threads paint over damage goes by their timing: one run in 20 differs.
            if kind != "damaged":
                np.testing.assert_array_equal(a.rgb, b.rgb)
            assert (b.rgb.dtype, b.rgb.flags.c_contiguous, b.rgb.flags.writeable) == (np.uint8, True, True)
    for name in ("path", "kind", "average_fps", "step", "expected_frames", "notes"):
        assert getattr(here, name) == getattr(elsewhere, name)
    assert (TURNED in elsewhere.notes) is (kind == "turned")


def test_a_kept_frame_is_its_reader_s_own(clip: Path) -> None:
    """More frames than slots: a slot that is written again must not show through."""
    with open_source(clip, fps=EVERY_FRAME) as source:
        frames = list(source.frames())
    assert len(frames) > 10 * SLOTS
    for frame in frames:
        np.testing.assert_array_equal(frame.rgb, drawn_frame(frame.index))


@pytest.mark.parametrize("kind", ["text", "sound", "cut", "too large"])
def test_a_file_is_refused_in_the_words_of_this_process(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.mkv"
    if kind == "text":
        path.write_text("no video at all\n" * 100)
    elif kind == "sound":
        path = write_sound(tmp_path / "a.m4a")
    elif kind == "cut":
        path = write_clip(tmp_path / "a.mp4")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        write_clip(path, frames=1, size=(16_400, 2), codec="ffv1", pix_fmt="bgr0")
    assert said_of(path, isolated=True) == said_of(path, isolated=False)


def test_what_is_no_file_starts_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_process, "_started", lambda *_: pytest.fail("started"))
    with pytest.raises(SourceError, match="No such file"):
        open_source(tmp_path / "missing.mp4")
    with pytest.raises(UsageError, match="fps is 0"):
        open_source(tmp_path / "missing.mp4", fps=0)


def test_modules_in_the_current_folder_are_not_what_the_child_runs(
    tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("av", "numpy", "json", "llamavid"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    with open_source(clip) as source:
        assert len(list(source.frames())) == 2


LOADED_BY_THE_CHILD = """
import sys
from llamavid.runtime.video import decode_child
with open(sys.argv[1], "rb") as file:
    from contextlib import ExitStack
    from llamavid.runtime.video.sources import source_here
    with ExitStack() as opened:
        list(source_here(file, "a", fps=1, opened=opened).frames())
print(*{"torch", "onnxruntime", "tokenizers", "rich", "click", "multiprocessing"} & set(sys.modules))
"""


def test_the_child_loads_what_decoding_needs_and_no_more(clip: Path) -> None:
    command = [sys.executable, "-c", LOADED_BY_THE_CHILD, str(clip)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert done.stdout.split() == []


def test_it_starts_fast(clip: Path) -> None:
    """Half a second is three times what it takes on a busy pair of cores; a heavy import would show."""

    def opening() -> float:
        start = time.perf_counter()
        open_source(clip).close()
        return time.perf_counter() - start

    assert min(opening() for _ in range(5)) < 0.5


# What becomes of the other process


@pytest.mark.parametrize("how", ["SIGSEGV", "SIGBUS", "SIGABRT", "SIGILL", "SIGFPE"])
def test_a_crash_is_one_line_after_the_frames_before_it(clip: Path, how: str) -> None:
    with open_source(clip, fps=EVERY_FRAME) as source:
        frames = source.frames()
        next(frames)
        os.kill(only_child(), signal.Signals[how])
        with pytest.raises(SourceError, match=rf"makes the decoder crash \({how}\)") as caught:
            list(frames)
    assert caught.value.next_step
    assert repr(str(clip)) in caught.value.given


def test_a_real_segmentation_fault_is_one_line(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child runs another bootstrap here, whose decoder reads address 0, as broken C code would."""
    crash = (
        "import sys; sys.path[:] = sys.argv.pop().split('\\n'); import ctypes; "
        "import llamavid.runtime.video.decode_child as c; "
        "import llamavid.runtime.video.sources as s; "
        "s.source_here = lambda *_, **__: ctypes.string_at(0); c.main()"
    )
    monkeypatch.setattr(decode_process, "BOOTSTRAP", crash)
    with pytest.raises(SourceError, match=r"makes the decoder crash \(SIGSEGV\)"):
        open_source(clip)


def test_a_killed_decoder_speaks_of_memory(clip: Path) -> None:
    with open_source(clip, fps=EVERY_FRAME) as source:
        frames = source.frames()
        next(frames)
        os.kill(only_child(), signal.SIGKILL)
        with pytest.raises(SourceError, match=r"ended from outside \(SIGKILL\).*memory ran out"):
            list(frames)


def test_a_decoder_that_hangs_is_given_up(clip: Path) -> None:
    with opened_with(clip, Limits(stall_seconds=2)) as source:
        frames = source.frames()
        next(frames)
        os.kill(only_child(), signal.SIGSTOP)
        start = time.monotonic()
        with pytest.raises(SourceError, match=r"makes the decoder hang: no frame came for 2 s"):
            list(frames)
        assert time.monotonic() - start < 10


def test_frames_that_nobody_keeps_are_progress_too(tmp_path: Path) -> None:
    """Half a minute may pass between two kept frames of a large video on a small board."""
    slow = (
        "import sys; sys.path[:] = sys.argv.pop().split('\\n'); import time; "
        "import llamavid.runtime.video.decode_child as c; c.ALIVE_EVERY_SECONDS = 0.1; "
        "real = c._Child._still_alive; c._Child._still_alive = lambda self: (time.sleep(0.05), real(self)); "
        "c.main()"
    )
    path = write_clip(tmp_path / "a.mp4", frames=40)
    with pytest.MonkeyPatch.context() as patch, ExitStack() as opened:
        patch.setattr(decode_process, "BOOTSTRAP", slow)
        file = opened.enter_context(open(path, "rb"))
        limits = Limits(stall_seconds=1.0)
        source = source_elsewhere(file, "a", fps=25 / 39, opened=opened, limits=limits)
        start = time.monotonic()
        assert [frame.index for frame in source.frames()] == [0, 39]
        assert time.monotonic() - start > 1.0


@pytest.fixture(scope="module")
def large_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(
        tmp_path_factory.mktemp("large") / "a.mp4",
        frames=10,
        size=(3840, 2160),
        codec="libx264",
        pix_fmt="yuv420p",
        options={"preset": "ultrafast"},
    )


@pytest.mark.parametrize("megabytes", [100, 150])
def test_more_memory_than_allowed_is_one_line(large_clip: Path, megabytes: int) -> None:
    limits = Limits(memory_bytes=megabytes * 2**20, least_memory_bytes=0)
    with (
        pytest.raises(SourceError, match="asks for more memory than decoding may take"),
        opened_with(large_clip, limits) as source,
    ):
        list(source.frames())


def test_allocating_without_end_is_one_line(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    greedy = (
        "import sys; sys.path[:] = sys.argv.pop().split('\\n'); "
        "import llamavid.runtime.video.decode_child as c; "
        "import llamavid.runtime.video.sources as s; "
        "s.source_here = lambda *_, **__: [bytearray(2**24) for _ in range(10**6)]; c.main()"
    )
    monkeypatch.setattr(decode_process, "BOOTSTRAP", greedy)
    with (
        pytest.raises(SourceError, match="asks for more memory than decoding may take"),
        opened_with(clip, Limits(memory_bytes=2**28, least_memory_bytes=0)),
    ):
        pass


def test_the_child_s_limits_are_set(clip: Path) -> None:
    with opened_with(clip, Limits(memory_bytes=2**30)) as source:
        limits = Path(f"/proc/{only_child()}/limits").read_text().splitlines()
        list(source.frames())
    values = {line[:26].strip(): line[26:].split()[0] for line in limits}
    assert values["Max core file size"] == "0"
    assert int(values["Max data size"]) <= 2**30
    assert int(values["Max file size"]) == decode_process.SLOTS * decode_process.SLOT_BYTES


HEAD = b'{"what": "head", "notes": [], "is_video": true, "average_fps": 1, "step": 1, "expected_frames": 9}\n'
FRAME = (
    b'{"what": "frame", "notes": [], "index": 0, "pts_seconds": 0, "full_range": false, '
    b'"slot": %d, "height": 9, "width": %d, "matrix": %s}\n'
)


@pytest.mark.parametrize(
    "words",
    [
        b"no json\n",
        b"[]\n",
        b'{"what": "head"}\n',
        b'{"what": "error", "given": 1}\n',
        b"[" * 100_000 + b"\n",
        HEAD.replace(b'"average_fps": 1', b'"average_fps": NaN'),
        HEAD + FRAME.replace(b'"pts_seconds": 0', b'"pts_seconds": 1e999') % (0, 9, b"null"),
        HEAD + FRAME.replace(b'"pts_seconds": 0', b'"pts_seconds": 1' + b"0" * 400) % (0, 9, b"null"),
        HEAD + FRAME % (7, 9, b"null"),
        HEAD + FRAME % (0, 9, b"null"),
        HEAD + FRAME % (0, 9, b'"BT601"'),
        HEAD + FRAME % (0, 9, b'"BT2020"'),
        HEAD + FRAME % (0, 9, b"[]"),
        HEAD + FRAME % (0, 9_000_000, b'"BT601"'),
        b"x" * (decode_process.MAX_MESSAGE + 1),
    ],
    ids=[
        "no json",
        "no object",
        "no fields",
        "other fields",
        "nested without end",
        "no number",
        "an infinite time",
        "a time of 400 digits",
        "no such slot",
        "no pixels",
        "no planes",
        "no such matrix",
        "no name of a matrix",
        "too wide",
        "no end of line",
    ],
)
def test_words_of_a_decoder_taken_over_are_not_believed(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: bytes
) -> None:
    said = tmp_path / "said"
    said.write_bytes(words)
    liar = f"import sys, time; sys.stdout.buffer.write(open({str(said)!r}, 'rb').read()); "
    monkeypatch.setattr(decode_process, "BOOTSTRAP", f"{liar}sys.stdout.flush(); time.sleep(60)")
    with pytest.raises(SourceError, match="makes the decoder answer nonsense"):
        open_source(clip)


def test_a_child_that_cannot_start_is_the_machine_s_fault(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_process, "BOOTSTRAP", "raise ImportError")
    with pytest.raises(DeviceError, match=r"ended by itself \(exit 1\)"):
        open_source(clip)
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(DeviceError, match="No such file or directory"):
        open_source(clip)


# The end


def test_closing_early_ends_the_child(clip: Path) -> None:
    with open_source(clip, fps=EVERY_FRAME) as source:
        frames = source.frames()
        next(frames)
        assert only_child()
    with pytest.raises(UsageError, match="were closed before this"):
        list(frames)
    source.close()  # twice is fine


def test_an_error_or_an_interrupt_of_the_reader_ends_the_child(clip: Path) -> None:
    def fail(error: type[BaseException]) -> None:
        with open_source(clip, fps=EVERY_FRAME) as source:
            for _ in source.frames():
                raise error

    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error):
            fail(error)


def test_a_hanging_decoder_can_be_interrupted(clip: Path) -> None:
    """Ctrl-C while we wait: it comes as KeyboardInterrupt, at once."""
    timer = threading.Timer(0.3, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
    with open_source(clip, fps=EVERY_FRAME) as source:
        frames = source.frames()
        next(frames)
        os.kill(only_child(), signal.SIGSTOP)
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            list(frames)
    timer.join()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_source_that_is_never_closed_leaves_no_process(clip: Path) -> None:
    source = open_source(clip, fps=EVERY_FRAME)
    child = only_child()
    del source
    gc.collect()
    assert gone(child)


READ_TWO_FRAMES_AND_DIE = """
import os, sys, signal
from pathlib import Path
from llamavid.runtime.video.sources import open_source
frames = open_source(sys.argv[1], fps=1e6).frames()
next(frames)
print(Path(f"/proc/self/task/{os.getpid()}/children").read_text(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_child_does_not_outlive_a_killed_parent(clip: Path) -> None:
    command = [sys.executable, "-c", READ_TWO_FRAMES_AND_DIE, str(clip)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == -signal.SIGKILL
    assert gone(int(done.stdout))


def gone(process: int) -> bool:
    """Ended, though it may still wait to be reaped."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            with suppress(ChildProcessError):  # it is not ours, or was reaped by now
                os.waitpid(process, 0)
            return True
        time.sleep(0.02)
    return False


def test_the_child_waits_for_its_reader_in_fixed_memory(clip: Path) -> None:
    with open_source(clip, fps=EVERY_FRAME) as source:
        time.sleep(0.5)  # time to decode all of it
        assert len(list(source.frames())) == 50


def test_memory_here_does_not_grow_with_the_frames(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", frames=200, size=(640, 480), options={"preset": "ultrafast"})
    with open_source(path, fps=EVERY_FRAME) as source:
        frames = source.frames()
        for _ in range(20):
            next(frames)
        early = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in frames:
            pass
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - early
    assert grown_kib < 20 * 900  # 180 frames of 900 KiB each were read


def test_it_works_where_the_standard_files_are_closed(clip: Path) -> None:
    """A service may start with none: the video would become file 0, which is the child's pipe."""
    code = (
        "import os, sys; os.close(0); os.close(1)\n"
        "from llamavid.runtime.video.sources import open_source\n"
        f"with open_source({str(clip)!r}) as source: sys.exit(40 + len(list(source.frames())))"
    )
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, cwd=Path(__file__).parents[2])
    assert done.returncode == 42, done.stderr.decode()


def test_where_it_cannot_be_isolated_one_note_says_so(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    with open_source(clip) as source:
        assert len(list(source.frames())) == 2
    assert source.notes == [NOT_ISOLATED]
