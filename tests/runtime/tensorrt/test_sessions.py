"""A session on engines says what it says on the CPU, holds what it should, and gives all of it back.

The GPU is `tests.standin`: it works late and in the order least expected, and fresh memory is no number.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llamavid.bundle import open_bundle
from llamavid.contract import Lowering
from llamavid.embedded import sample_clip
from llamavid.errors import DeviceError, LlamaVidError, PromptError
from llamavid.feature_file import read_features
from llamavid.runtime.clip import clip_pixels
from llamavid.runtime.features.stored import store_features
from llamavid.runtime.session import Answer, VideoSession
from llamavid.runtime.stream_session import StreamSession
from llamavid.runtime.tensorrt import frames as frames_module
from llamavid.runtime.tensorrt.buffers import DeviceBuffer, PinnedBuffer
from llamavid.runtime.tensorrt.cuda import Cuda, Event, Stream
from llamavid.runtime.video.frames import FrameTime
from tests.runtime.tensorrt.conftest import QUESTION
from tests.standin.cuda import Gpu
from tests.standin.install import Machine, install

Make = Callable[..., Path]


@pytest.mark.parametrize("lowering", [Lowering.STATIC, Lowering.PRIMITIVE], ids=lambda each: each.value)
def test_an_answer_is_the_cpu_s_word_for_word(
    machine: Machine, stamped: Make, on_cpu: Answer, lowering: Lowering
) -> None:
    with VideoSession.open(stamped(machine, lowering=lowering)) as session:
        session.watch(sample_clip(), fps=2)
        answer = session.ask(QUESTION, max_new_tokens=24, evidence=True)
    assert answer.token_ids == on_cpu.token_ids
    assert answer.prompt_tokens == on_cpu.prompt_tokens
    assert answer.evidence is not None
    assert on_cpu.evidence is not None
    np.testing.assert_allclose(answer.evidence.relevance, on_cpu.evidence.relevance, rtol=2e-2)
    assert machine.leaks() == {}


def test_a_chunk_after_the_other_and_one_batch_after_the_other_change_no_word(
    machine: Machine, stamped: Make, on_cpu: Answer
) -> None:
    """Prompts are longer than a chunk of 16 tokens, videos than a batch of 2 frames."""
    with VideoSession.open(stamped(machine, frames=2, prefill=16)) as session:
        session.watch(sample_clip(), fps=2)
        assert session.ask(QUESTION, max_new_tokens=24).token_ids == on_cpu.token_ids
    assert machine.leaks() == {}


def test_an_engine_with_one_profile_reads_and_writes_with_it(
    machine: Machine, stamped: Make, on_cpu: Answer
) -> None:
    """TensorRT-RTX stores the weights once a profile: a second would double the engine."""
    with VideoSession.open(stamped(machine, decode=False)) as session:
        session.watch(sample_clip(), fps=2)
        assert session.ask(QUESTION, max_new_tokens=24).token_ids == on_cpu.token_ids
    assert machine.leaks() == {}


def test_features_beyond_the_budget_lie_on_the_host_and_come_back(
    machine: Machine, stamped: Make, on_cpu: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames_module, "RESIDENT_BYTES", 1)  # one block
    with VideoSession.open(stamped(machine, frames=2)) as session:
        watched = session.watch(sample_clip(), fps=2)
        assert len(watched.frames) > 4
        assert session.ask(QUESTION, max_new_tokens=24).token_ids == on_cpu.token_ids
        assert session.ask(QUESTION, max_new_tokens=24).token_ids == on_cpu.token_ids
    assert machine.leaks() == {}


def test_a_stream_sees_nothing_of_what_did_not_fit_before(
    late: Machine, stamped: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames_module, "RESIDENT_BYTES", 1)  # one block of 2 frames
    folder = stamped(late, frames=2)
    pixels = clip_pixels(sample_clip(), open_bundle(folder).manifest.model.preprocessing, fps=4)
    with VideoSession.open(folder) as session:
        times = [FrameTime(at, float(at)) for at in range(5)]
        session._encoder.see(pixels[:5], times)
        (new,) = session._encoder.see(pixels[5:6], times[:1]).batches(5)
        (alone,) = session._encoder.see(pixels[5:6], times[:1]).batches(5)
        assert len(session._encoder._new.order) == 1  # type: ignore[attr-defined]
        for a, b in zip(new, alone, strict=True):
            np.testing.assert_array_equal(a, b)


def test_nothing_but_pixels_words_and_logits_crosses_to_or_from_the_gpu(late: Machine, stamped: Make) -> None:
    with VideoSession.open(stamped(late)) as session:
        watched = session.watch(sample_clip(), fps=2)
        written = late.gpu.host_writes
        answer = session.ask(QUESTION, max_new_tokens=8)
        model = session.config
        steps = len(answer.token_ids) + 2  # and the prefill's two chunks, at most
        assert written == 0  # no feature, no token came down
        assert late.gpu.host_writes <= steps * 4 * model.language.vocab_size
        pixels = 2 * 3 * model.vision.image_size**2 * len(watched.frames)
        words = 2 * model.language.hidden * (answer.prompt_tokens + len(answer.token_ids))
        assert late.gpu.host_reads < pixels + words + 4096  # ids and lengths


def test_a_still_picture_is_encoded_once_and_counts_as_often_as_it_is_shown(
    machine: Machine, stamped: Make
) -> None:
    folder = stamped(machine)
    shown = clip_pixels(sample_clip(), open_bundle(folder).manifest.model.preprocessing, fps=2)
    pixels = shown[[0, 1, 0, 1, 2, 0]]
    times = [FrameTime(at, float(at)) for at in range(len(pixels))]
    logits = {}
    for on in ("cpu", "a100"):
        with VideoSession.open(folder, on=on, threads=1) as session:
            memory = session._encoder.memory(frames=0, memory_bytes=None)
            session._encoder.remember(memory, pixels, times)
            session._watch(times, memory, [])
            logits[on] = session.ask(QUESTION, max_new_tokens=12).token_ids
            assert session.frames_encoded == 3
            features = session.watched.features()  # type: ignore[union-attr]
            assert np.array_equal(features[0], features[5])
            assert not np.array_equal(features[0], features[1])
    assert logits["cpu"] == logits["a100"]
    assert machine.leaks() == {}


def test_stored_features_go_up_for_each_question(machine: Machine, stamped: Make, tmp_path: Path) -> None:
    folder, file = stamped(machine), tmp_path / "clip.safetensors"
    store_features(open_bundle(folder), sample_clip(), file, fps=2)  # without class tokens
    stored = read_features(file)
    times = [FrameTime(*time) for time in zip(stored.frame_indices, stored.pts_seconds, strict=True)]
    said = {}
    for on in ("cpu", "this"):
        with VideoSession.open(folder, on=on, threads=1) as session:
            session.adopt(stored.features, times)
            said[on] = session.ask_movie(QUESTION, ["what?"] * len(times), max_new_tokens=12).token_ids
    assert said["cpu"] == said["this"]
    assert machine.leaks() == {}


@pytest.mark.parametrize("lowering", [Lowering.STATIC, Lowering.PRIMITIVE], ids=lambda each: each.value)
def test_standing_questions_answer_as_on_the_cpu_while_their_windows_slide(
    machine: Machine, stamped: Make, lowering: Lowering
) -> None:
    folder = stamped(machine, lowering=lowering, frames=2)
    pixels = clip_pixels(sample_clip(), open_bundle(folder).manifest.model.preprocessing, fps=4)
    said = {}
    for on in ("cpu", "a100"):
        with StreamSession(
            open_bundle(folder),
            [QUESTION],
            fps=4,
            window_seconds=1.5,
            max_new_tokens=6,
            remembers=True,
            threads=1,
            on=on,
        ) as session:
            answers = []
            for start in range(0, len(pixels), 3):
                batch = pixels[start : start + 3]
                session.see(batch, [FrameTime(start + at, (start + at) / 4) for at in range(len(batch))])
                answers += [answer.token_ids for answer in session.answers()]
            session.ask("How many shapes are there?")  # sees what is remembered
            answers += [answer.token_ids for answer in session.answers()]
            assert session.frames_read_again > 0
            said[on] = answers
    assert said["cpu"] == said["a100"]
    assert machine.leaks() == {}


def test_a_long_answer_is_one_graph_launched_again_and_again(
    late: Machine, stamped: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    with VideoSession.open(stamped(late)) as session:
        session.watch(sample_clip(), fps=1)
        decoder = session._language.decoder()
        cache = decoder.new_cache(200)
        decoder.prefill(cache, np.zeros((1, 5, session.config.language.hidden), np.float16))
        before = dict(late.gpu.calls)
        for _ in range(128):
            decoder.decode_one(cache, np.zeros(session.config.language.hidden, np.float16))
        calls = {name: late.gpu.calls[name] - before.get(name, 0) for name in late.gpu.calls}
    assert calls["cudaGraphInstantiate"] == 1
    assert calls["cudaGraphLaunch"] == 127  # the first run prepares
    assert cache.length == 133
    assert late.leaks() == {}


def test_what_is_forgotten_while_a_graph_is_captured_is_given_back_after_it(late: Machine) -> None:
    """A collection of garbage may come at any moment, and no memory is freed during a capture."""
    cuda = Cuda()
    with Stream(cuda) as stream:
        target = DeviceBuffer(cuda, 256, "a test")
        garbage: list[object] = [DeviceBuffer(cuda, 256, "a test"), PinnedBuffer(cuda, 256)]
        garbage.append(garbage)
        held = late.gpu.memory.live

        def work() -> None:
            nonlocal garbage
            garbage = []
            gc.collect()
            stream.fill_zero(target.address, 256)

        graph = stream.captured(work)
        assert late.gpu.memory.live == held - 2
        stream.launch(graph)
        graph.close()
        target.close()
    assert late.leaks() == {}


def test_a_cache_of_one_fixed_length_is_enough(late: Machine, stamped: Make, on_cpu: Answer) -> None:
    """An engine whose cache TensorRT updates in place has one length."""
    with VideoSession.open(stamped(late, cache=(512, 512))) as session:
        session.watch(sample_clip(), fps=2)
        assert session.ask(QUESTION, max_new_tokens=24).token_ids == on_cpu.token_ids
        with pytest.raises(PromptError, match="at most 512"):
            session.ask(QUESTION, max_new_tokens=500)


def test_memory_on_the_gpu_stays_where_it_was_over_questions_and_videos(late: Machine, stamped: Make) -> None:
    with VideoSession.open(stamped(late)) as session:

        def once() -> None:
            session.watch(sample_clip(), fps=4)
            session.ask(QUESTION, max_new_tokens=4)
            session.ask("What color is the star?", max_new_tokens=30)

        once()
        peak, held, blocks = late.gpu.memory.peak_bytes, late.gpu.memory.live_bytes, late.gpu.memory.live
        for _ in range(3):
            once()
        assert late.gpu.memory.peak_bytes == peak
        assert (late.gpu.memory.live_bytes, late.gpu.memory.live) == (held, blocks)
    assert late.leaks() == {}


def test_an_error_in_the_middle_leaves_a_session_that_works(
    late: Machine, stamped: Make, on_cpu: Answer
) -> None:
    def stop(text: str) -> None:
        raise RuntimeError("the reader went away")

    with VideoSession.open(stamped(late)) as session:
        session.watch(sample_clip(), fps=2)
        with pytest.raises(RuntimeError, match="went away"):
            session.ask(QUESTION, on_text=stop)
        assert session.ask(QUESTION, max_new_tokens=24).token_ids == on_cpu.token_ids
    assert late.leaks() == {}


@pytest.mark.parametrize("after", range(0, 25, 3))
def test_nothing_is_left_wherever_the_memory_ends(late: Machine, stamped: Make, after: int) -> None:
    folder = stamped(late)
    late.gpu.fail_after["cudaMalloc"] = after

    def answer() -> None:
        with VideoSession.open(folder) as session:
            session.watch(sample_clip(), fps=2)
            session.ask(QUESTION, max_new_tokens=3)

    with pytest.raises(DeviceError, match=r"needs [\d.,]+ MiB"):  # a number, and what it was for
        answer()
    assert late.leaks() == {}


def test_too_little_memory_is_told_with_both_numbers(stamped: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = install(monkeypatch, Gpu(total_bytes=3 << 20))
    with VideoSession.open(stamped(machine)) as session:
        session.watch(sample_clip(), fps=2)
        with pytest.raises(DeviceError, match=r"a cache of 1280 tokens needs .* MiB .* at most .* free"):
            session.ask(QUESTION, max_new_tokens=1000)
    assert machine.leaks() == {}


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        (
            "set_optimization_profile_async",
            r"no working memory for profile frames \(.*memory.* MiB .* are free",
        ),
        ("set_tensor_address", r"engine vision refuses pixels at 0x"),
    ],
)
def test_what_tensorrt_refuses_is_told_and_not_run(
    late: Machine, stamped: Make, refused: str, words: str
) -> None:
    with VideoSession.open(stamped(late)) as session:
        late.gpu.fail_after[refused] = 0
        with pytest.raises(DeviceError, match=words):
            session.watch(sample_clip(), fps=2)
    assert late.counts.runs == {}
    assert late.leaks() == {}


def test_a_shape_outside_the_profile_is_told_with_its_bounds(late: Machine, stamped: Make) -> None:
    with VideoSession.open(stamped(late)) as session:
        session.watch(sample_clip(), fps=2)
        context = session._encoder._context("vision")  # type: ignore[attr-defined]
        with pytest.raises(
            DeviceError, match=r"pixels of engine vision is \[9, .*expected \[1, .* to \[4, .*frames"
        ):
            context.set_shapes({"pixels": (9, 3, 112, 112)})


def test_logits_that_are_no_number_are_no_answer(
    late: Machine, stamped: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    with VideoSession.open(stamped(late)) as session:
        decoder = session._language.decoder()
        cache = decoder.new_cache(20)
        with pytest.raises(DeviceError, match="no number"):
            decoder.prefill(cache, np.full((1, 5, session.config.language.hidden), np.nan, np.float16))


@pytest.mark.parametrize("lowering", [Lowering.STATIC, Lowering.PRIMITIVE], ids=lambda each: each.value)
def test_a_prompt_that_gave_no_number_does_not_spoil_the_next_one_s_answer(
    late: Machine, stamped: Make, lowering: Lowering
) -> None:
    """Masked keys and values weigh nothing, but nothing times what is no number is no number."""
    with VideoSession.open(stamped(late, lowering=lowering)) as session:
        decoder = session._language.decoder()
        width = session.config.language.hidden
        cache = decoder.new_cache(20)
        before = decoder.prefill(cache, np.ones((1, 3, width), np.float16))
        cache = decoder.new_cache(20, reuse=cache)
        with pytest.raises(DeviceError, match="no number"):
            decoder.prefill(cache, np.full((1, 5, width), np.nan, np.float16))
        cache = decoder.new_cache(20, reuse=cache)
        after = decoder.prefill(cache, np.ones((1, 3, width), np.float16))
    np.testing.assert_array_equal(after, before)


LEFT_OUT = {
    "streams that wait": (Stream, "wait_for"),
    "a host that waits for a stream": (Stream, "synchronize"),
    "a host that waits for its staging memory": (Event, "synchronize"),
    "zeros in a fresh cache": (Stream, "fill_zero"),
}


@pytest.mark.parametrize("what", LEFT_OUT)
def test_each_kind_of_waiting_is_needed(
    late: Machine, stamped: Make, on_cpu: Answer, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the software GPU: it notices. Otherwise the tests above would show nothing."""
    folder = stamped(late, frames=1)
    monkeypatch.setattr(*LEFT_OUT[what], lambda *arguments: None)
    said: tuple[int, ...] = ()
    with contextlib.suppress(LlamaVidError, AssertionError), VideoSession.open(folder) as session:
        session.watch(sample_clip(), fps=2)
        said = session.ask(QUESTION, max_new_tokens=24).token_ids
    assert said != on_cpu.token_ids
