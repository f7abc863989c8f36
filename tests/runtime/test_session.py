"""The runtime against the recordings, from a video file to the answer, and what a session promises.

Bundles are exported from the recorded checkpoints; nothing here but the PyTorch witness is PyTorch.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from llamavid.bundle import EMBEDDINGS, LANGUAGE_TOKENIZER, QUESTION_VOCABULARY, Bundle, open_bundle
from llamavid.errors import PromptError, SourceError, UsageError
from llamavid.export.frame_types import FrameTypes, write_frame_graphs
from llamavid.export.precision import FP32
from llamavid.export.rewrites import NONE
from llamavid.model.llamavid import LlamaVid, model_from_checkpoint
from llamavid.prompt import Part, Turn, conversation, movie
from llamavid.runtime import decoder as decoder_module
from llamavid.runtime import session as session_module
from llamavid.runtime.assembly import FrameTokens, assemble
from llamavid.runtime.decoder import Decoder
from llamavid.runtime.executors import OnnxExecutor
from llamavid.runtime.parity import run_graph
from llamavid.runtime.session import VideoSession
from llamavid.runtime.video.frames import FrameTime
from llamavid.sampling import Sampling
from llamavid.tokenizer import LanguageTokenizer, QuestionTokenizer
from tests.clips import sample_clip, write_clip
from tests.conftest import Recording, golden_checkpoint, largest_relative_error, recording

RELATIVE_ERROR = 1e-5  # float32, the sums in another order; a wrong formula is off by 1e-2 or more
HALF = 2**-11  # float16, as a watched video is held
SUBTITLES = ["the rabbit", "", "a butterfly"]  # of the movie's three frames
VIDEO, PICTURE = ("short-video", "video_3_frames"), ("short-video", "image_two_turns")
MOVIE = ("long-video", "movie_3_frames_subtitles")
CASES = pytest.mark.parametrize("case", [VIDEO, PICTURE, MOVIE], ids=lambda case: case[1])
INNER = ["text_hidden", "text_query"]  # of the plain context graph
TIMES = [FrameTime(0, 0.0), FrameTime(25, 1.0), FrameTime(50, 2.0)]  # of the recorded frames

Array = np.ndarray[Any, Any]
Bundles = dict[str, Bundle]


@pytest.fixture(scope="module")
def bundles(short_bundle: Path, long_bundle: Path) -> Bundles:
    return {"short-video": open_bundle(short_bundle), "long-video": open_bundle(long_bundle)}


@pytest.fixture
def session(bundles: Bundles) -> VideoSession:
    """Has watched the recorded video."""
    return watching(bundles["short-video"], recording(*VIDEO))


@pytest.fixture(scope="module")
def witness() -> LlamaVid:
    """The PyTorch model of the short-video checkpoint."""
    return model_from_checkpoint(golden_checkpoint("short-video"))


@pytest.fixture(scope="module")
def opening(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The beginning of the real clip, as it was encoded: of its frames, 0, 25 and 50 are looked at."""
    return cut(sample_clip("bikes"), tmp_path_factory.mktemp("clips") / "opening.mp4", packets=60)


def cut(source: Path, target: Path, *, packets: int) -> Path:
    """The first packets of a video, not encoded anew."""
    with av.open(str(source)) as whole, av.open(str(target), "w") as part:
        stream = part.add_stream_from_template(whole.streams.video[0])
        for _, packet in zip(range(packets), whole.demux(whole.streams.video[0]), strict=False):
            packet.stream = stream
            part.mux(packet)
    return target


def features(bundle: Bundle, case: Recording) -> Array:
    """[T, 1+N, C] computed from the recorded pixels, or a movie's stored float16 [T, N, C]."""
    if case.family == "long-video":
        return case["features"]
    vision = bundle.manifest.graphs["vision"]
    return run_graph(bundle.folder, vision, {"pixels": case["pixels"]})["features"]


def watching(bundle: Bundle, case: Recording) -> VideoSession:
    session = VideoSession(bundle)
    seen = features(bundle, case)
    session.adopt(seen, TIMES[: len(seen)])
    return session


def changed(bundle: Bundle, **language: Any) -> Bundle:
    """The same graphs under another word of the manifest."""
    model = bundle.manifest.model
    model = replace(model, language=replace(model.language, **language))
    return replace(bundle, manifest=replace(bundle.manifest, model=model))


def parts(case: Recording) -> list[Part]:
    if case.family == "long-video":
        return movie(case.prompts[0], SUBTITLES, tokens_per_frame=2, template=case.template)
    return conversation(case.prompts[0], template=case.template)


def answer(session: VideoSession, case: Recording) -> list[int]:
    options: dict[str, Any] = {"max_new_tokens": 12, "template": case.template}
    if case.family == "long-video":
        return list(session.ask_movie(case.prompts[0], SUBTITLES, **options).token_ids)
    return list(session.ask(case.prompts[0], **options).token_ids)


def language_model(bundle: Bundle) -> Decoder:
    entry = bundle.manifest.graphs["llm"]
    executor = OnnxExecutor(bundle.path(entry.file), entry.contract)
    return Decoder(executor, entry.contract, bundle.manifest.model.language)


# Stages


def plain_context(family: str, folder: Path) -> onnx.ModelProto:
    """The plain context graph, which has every stage by its name; an exact rewrite may leave one out."""
    types = FrameTypes(FP32, rewrites=NONE)
    entry = write_frame_graphs(golden_checkpoint(family), folder, types)["context"]
    graph = onnx.load(str(folder / entry.file))
    for name in INNER:
        graph.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return graph


def inner_values(plain: onnx.ModelProto, seen: Array, ids: Array) -> list[Array]:
    """What the context graph computes on the way: text_hidden, text_query."""
    runner = ort.InferenceSession(plain.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(runner.run(INNER, {"features": seen.astype(np.float32), "question_ids": ids}))


def context_tokens(bundle: Bundle, seen: Array, ids: Array) -> Array:
    inputs = {"features": seen.astype(np.float32), "question_ids": ids}
    return run_graph(bundle.folder, bundle.manifest.graphs["context"], inputs)["context_tokens"]


@pytest.fixture(scope="module")
def stages(
    bundles: Bundles, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], dict[str, Array]]:
    """Of each case, every stage as the bundle computes it, under the names of the recording."""
    plain = {family: plain_context(family, tmp_path_factory.mktemp("plain")) for family in bundles}
    return {
        case: stages_of(bundles[case[0]], plain[case[0]], recording(*case))
        for case in (VIDEO, PICTURE, MOVIE)
    }


def stages_of(bundle: Bundle, plain: onnx.ModelProto, case: Recording) -> dict[str, Array]:
    seen = features(bundle, case)
    tokenizer = QuestionTokenizer(bundle.path(QUESTION_VOCABULARY))
    asked = [tokenizer.ids(prompt) for prompt in case.prompts]
    inner = [inner_values(plain, seen, ids) for ids in asked]
    hidden, query = (np.concatenate(values) for values in zip(*inner, strict=True))
    context = np.concatenate([context_tokens(bundle, seen, ids) for ids in asked])
    inputs = {"features": seen.astype(np.float32)}
    content = run_graph(bundle.folder, bundle.manifest.graphs["content"], inputs)["content_tokens"]
    tokens = FrameTokens(context[: len(seen)], content)  # the first prompt is the one asked
    ids = LanguageTokenizer(bundle.path(LANGUAGE_TOKENIZER)).ids(parts(case))
    table = np.load(bundle.path(EMBEDDINGS), mmap_mode="r")
    sequence = assemble(ids, table, tokens, dtype=np.float32)
    decoder = language_model(bundle)
    cache = decoder.new_cache(sequence.shape[1])
    return {
        "vision_features": seen,
        "text_decoder_hidden": hidden,
        "text_query": query,
        "context_token": context,
        "content_token": np.repeat(content, len(case.prompts), axis=0),
        "inputs_embeds": sequence,
        "logits_last": decoder.prefill(cache, sequence)[None],
        "input_ids": ids[None],
    }


STAGES = [
    "text_decoder_hidden",
    "text_query",
    "context_token",
    "content_token",
    "inputs_embeds",
    "logits_last",
]
STAGES_OF_CASES = [
    *((case, stage) for case in (VIDEO, PICTURE) for stage in ["vision_features", *STAGES]),
    *((MOVIE, stage) for stage in STAGES),  # a movie's features are stored, not computed
]


@pytest.mark.parametrize(
    ("case", "stage"), STAGES_OF_CASES, ids=lambda value: value if isinstance(value, str) else value[1]
)
def test_every_stage_is_what_was_recorded(
    stages: dict[tuple[str, str], dict[str, Array]], case: tuple[str, str], stage: str
) -> None:
    assert largest_relative_error(stages[case][stage], recording(*case)[stage]) <= RELATIVE_ERROR


@CASES
def test_what_a_question_looks_at_is_what_the_pytorch_model_looks_at(
    bundles: Bundles, stages: dict[tuple[str, str], dict[str, Array]], case: tuple[str, str]
) -> None:
    """Its first question, as the graph reads it; PyTorch takes the recorded queries."""
    recorded, bundle = recording(*case), bundles[case[0]]
    seen = stages[case]["vision_features"].astype(np.float32)
    ids = QuestionTokenizer(bundle.path(QUESTION_VOCABULARY)).ids(recorded.prompts[0])
    inputs = {"features": seen, "question_ids": ids}
    found = run_graph(bundle.folder, bundle.manifest.graphs["context"], inputs)
    compressor = model_from_checkpoint(golden_checkpoint(case[0])).compressor
    with torch.inference_mode():
        query = torch.from_numpy(recorded["text_query"][: len(seen)])
        attention, relevance = compressor.context_attention(torch.from_numpy(seen), query)
    assert largest_relative_error(found["attention"], attention.numpy()) <= RELATIVE_ERROR
    assert largest_relative_error(found["relevance"], relevance.numpy()) <= RELATIVE_ERROR


@CASES
def test_the_prompt_becomes_the_recorded_ids(
    stages: dict[tuple[str, str], dict[str, Array]], case: tuple[str, str]
) -> None:
    np.testing.assert_array_equal(stages[case]["input_ids"], recording(*case)["input_ids"])


@CASES
def test_recorded_inputs_give_the_recorded_answer(bundles: Bundles, case: tuple[str, str]) -> None:
    recorded = recording(*case)
    assert answer(watching(bundles[case[0]], recorded), recorded) == recorded["generated_ids"].tolist()


# From a file


def test_a_video_file_gives_the_recorded_answer(bundles: Bundles, opening: Path) -> None:
    recorded = recording(*VIDEO)
    with VideoSession(bundles["short-video"]) as session:
        watched = session.watch(opening)
        assert watched.frames == tuple(TIMES)
        assert largest_relative_error(watched.features(), recorded["vision_features"]) <= HALF
        assert answer(session, recorded) == recorded["generated_ids"].tolist()


def test_a_clip_of_one_frame_gives_the_recorded_answer(bundles: Bundles, tmp_path: Path) -> None:
    """The recorded picture is the clip's first frame."""
    recorded = recording(*PICTURE)
    with VideoSession(bundles["short-video"]) as session:
        watched = session.watch(cut(sample_clip("bikes"), tmp_path / "one.mp4", packets=1))
        assert watched.frames == (FrameTime(0, 0.0),)
        assert answer(session, recorded) == recorded["generated_ids"].tolist()


def test_one_frame_a_second_is_watched_unless_told_otherwise(bundles: Bundles) -> None:
    with VideoSession(bundles["short-video"]) as session:
        seen: list[tuple[int, int | None]] = []
        watched = session.watch(sample_clip("bikes"), on_frame=lambda *step: seen.append(step))
        assert [frame.index for frame in watched.frames] == list(range(0, 250, 25))
        assert seen[-1] == (10, 10)
        three = watched.features()[:3]
        assert largest_relative_error(three, recording(*VIDEO)["vision_features"]) <= HALF
        sparse = session.watch(sample_clip("bikes"), fps=0.2)
        assert [frame.pts_seconds for frame in sparse.frames] == [0.0, 5.0]


def test_a_file_that_cannot_be_read_leaves_no_video_to_ask_about(
    session: VideoSession, tmp_path: Path
) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"not a clip")
    with pytest.raises(SourceError):
        session.watch(tmp_path / "clip.mp4")
    with pytest.raises(UsageError, match="no video is watched"):
        session.ask("What happens?")


# Questions


QUESTIONS = {
    "plain": "What is happening in the video?",
    "spells special tokens": "<image> </s> [SEP] ##ing",  # a user's words are only ever text
    "not English": "Où est le vélo, 自行车在哪里 🚲?",
    "too long": "and then " * 300 + "what?",  # loses its beginning, in the text decoder alone
}


def encoded(session: VideoSession) -> torch.Tensor:
    """The features of what was watched, for the witness."""
    assert session.watched is not None
    return torch.from_numpy(session.watched.features())


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
def test_any_question_is_answered_as_pytorch_does(
    session: VideoSession, witness: LlamaVid, question: str
) -> None:
    found = session.ask(question, max_new_tokens=6, truncate_question=True)
    assert list(found.token_ids) == witness.generate(encoded(session), question, max_new_tokens=6)


def test_a_template_can_be_chosen_for_a_question(session: VideoSession, witness: LlamaVid) -> None:
    own, other = (session.ask("Why?", max_new_tokens=6, template=name) for name in (None, "llava_v1"))
    assert own.token_ids != other.token_ids
    expected = witness.generate(encoded(session), "Why?", max_new_tokens=6, template="llava_v1")
    assert list(other.token_ids) == expected


@pytest.mark.parametrize("sampling", [Sampling(0.7, 1.0, seed=3), Sampling(1.3, 0.6, seed=4)], ids=str)
def test_a_sampled_answer_is_the_one_that_pytorch_draws(
    session: VideoSession, witness: LlamaVid, sampling: Sampling
) -> None:
    first, again = (session.ask("Why?", max_new_tokens=6, sampling=sampling) for _ in range(2))
    assert first.token_ids == again.token_ids
    assert first.token_ids != session.ask("Why?", max_new_tokens=6).token_ids
    expected = witness.generate(encoded(session), "Why?", max_new_tokens=6, **asdict(sampling))
    assert list(first.token_ids) == expected


@torch.inference_mode()
def test_an_earlier_turn_is_part_of_the_prompt(session: VideoSession, witness: LlamaVid) -> None:
    history = [Turn("What color is the bike?", "It is red."), Turn("Who rides it?", "A boy.")]
    rows = witness.frame_tokens(encoded(session), "Why?").flatten(0, 1)
    sequence = witness.sequence(conversation("Why?", history=history), [rows])
    found = session.ask("Why?", history=history, max_new_tokens=6)
    assert found.prompt_tokens == sequence.shape[1]
    for token in found.token_ids:
        assert token == witness.language(inputs_embeds=sequence).logits[0, -1].argmax()
        said = witness.language.model.embed_tokens(torch.tensor([[token]]))
        sequence = torch.cat([sequence, said], dim=1)


def test_a_video_is_encoded_once_for_all_questions(bundles: Bundles, opening: Path) -> None:
    with VideoSession(bundles["short-video"]) as session:
        session.watch(opening)
        once = {stage: session.timings.milliseconds[stage] for stage in ("decode_video", "vision", "content")}
        found = [
            session.ask(question, max_new_tokens=6).token_ids for question in ("a" * 200, "Why?", "Who?")
        ]
        assert {stage: session.timings.milliseconds[stage] for stage in once} == once
    for question, ids in zip(("a" * 200, "Why?", "Who?"), found, strict=True):
        with VideoSession(bundles["short-video"]) as fresh:
            fresh.watch(opening)
            assert fresh.ask(question, max_new_tokens=6).token_ids == ids


def test_the_time_of_an_answer_is_its_own(session: VideoSession) -> None:
    """Not the sum over the questions before it."""
    answers = [session.ask("What happens?", max_new_tokens=4) for _ in range(30)]
    steps = [answer.timings_ms["decode"] for answer in answers]
    assert steps != sorted(steps)


def test_the_time_of_a_video_is_its_own(bundles: Bundles, opening: Path) -> None:
    """Not the sum over the videos before it."""
    with VideoSession(bundles["short-video"]) as session:
        watched = session.watch(opening)
        assert "vision" in session.ask("Why?", max_new_tokens=2).timings_ms
        session.adopt(watched.features(), watched.frames)
        assert "vision" not in session.ask("Why?", max_new_tokens=2).timings_ms


def test_text_streams_as_the_answer_that_is_given(session: VideoSession) -> None:
    pieces: list[str] = []
    read: list[tuple[int, int]] = []
    found = session.ask(
        "Why?",
        max_new_tokens=40,
        on_text=pieces.append,
        on_prefill=lambda *step: read.append(step),
    )
    assert len(pieces) > 5
    assert "".join(pieces).strip() == found.text
    assert read[-1] == (found.prompt_tokens, found.prompt_tokens)
    assert found.finish_reason == "length"
    assert len(found.token_ids) == 40


@pytest.mark.parametrize("said", [0, 3])
def test_an_answer_ends_at_the_stop_token_which_is_not_part_of_it(bundles: Bundles, said: int) -> None:
    recorded = recording(*VIDEO)
    expected = recorded["generated_ids"].tolist()
    stopping = changed(bundles["short-video"], eos_id=expected[said])
    found = watching(stopping, recorded).ask(recorded.prompts[0], max_new_tokens=12)
    assert (list(found.token_ids), found.finish_reason) == (expected[:said], "stop")


def test_a_question_that_the_text_decoder_cannot_read_whole_is_refused(session: VideoSession) -> None:
    with pytest.raises(PromptError, match="--truncate-question"):
        session.ask("bike " * 255)
    session.check_question("bike " * 254)
    with pytest.raises(PromptError, match="empty"):
        session.ask(" \n")


def test_an_answer_of_no_token_is_refused(session: VideoSession) -> None:
    with pytest.raises(UsageError, match="max-new-tokens is 0"):
        session.ask("Why?", max_new_tokens=0)


def test_a_movie_needs_one_subtitle_for_each_frame(bundles: Bundles) -> None:
    with pytest.raises(PromptError, match="2 subtitles; expected one for each of the 3 frames"):
        watching(bundles["long-video"], recording(*MOVIE)).ask_movie("Why?", ["a", "b"])


def test_a_closed_session_has_no_video(session: VideoSession) -> None:
    session.close()
    with pytest.raises(UsageError, match="no video is watched"):
        session.ask("Why?")


# The context


def test_prompt_and_answer_may_fill_the_context_to_the_last_token(bundles: Bundles) -> None:
    recorded = recording(*VIDEO)
    tokens = recorded["inputs_embeds"].shape[1] + 12
    full = watching(changed(bundles["short-video"], context_length=tokens), recorded)
    assert answer(full, recorded) == recorded["generated_ids"].tolist()
    over = watching(changed(bundles["short-video"], context_length=tokens - 1), recorded)
    with pytest.raises(PromptError, match=f"need {tokens} tokens; expected at most {tokens - 1}"):
        answer(over, recorded)


@pytest.mark.parametrize("suffix", [".mp4", ".h264"], ids=["length in the header", "no length in the header"])
def test_a_video_too_long_for_the_context_is_refused_without_encoding_all(
    bundles: Bundles, tmp_path: Path, suffix: str
) -> None:
    clip = write_clip(tmp_path / f"clip{suffix}", frames=50)
    session = VideoSession(changed(bundles["short-video"], context_length=20))  # ten frames' tokens
    encoded: list[int] = []
    with pytest.raises(PromptError, match="Lower --fps"):
        session.watch(clip, fps=25, on_frame=lambda done, _: encoded.append(done))
    assert max(encoded, default=0) < 10
    if suffix == ".mp4":
        assert not encoded


# How it runs


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_reading_the_prompt_in_chunks_changes_nothing(
    bundles: Bundles, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    recorded = recording(*VIDEO)
    monkeypatch.setattr(decoder_module, "PREFILL_CHUNK", chunk)
    decoder, sequence = language_model(bundles["short-video"]), recorded["inputs_embeds"]
    cache = decoder.new_cache(sequence.shape[1])
    read: list[int] = []
    logits = decoder.prefill(cache, sequence, on_chunk=read.append)
    assert read == [*range(chunk, sequence.shape[1], chunk), sequence.shape[1]]
    assert largest_relative_error(logits[None], recorded["logits_last"]) <= RELATIVE_ERROR


def test_one_token_at_a_time_is_the_same_as_all_at_once(bundles: Bundles) -> None:
    recorded = recording(*VIDEO)
    decoder, sequence = language_model(bundles["short-video"]), recorded["inputs_embeds"]
    cache = decoder.new_cache(sequence.shape[1])
    decoder.prefill(cache, sequence[:, :-9])
    steps = [decoder.decode_one(cache, row) for row in sequence[0, -9:]]
    assert cache.length == sequence.shape[1]
    assert largest_relative_error(steps[-1][None], recorded["logits_last"]) <= RELATIVE_ERROR


@pytest.mark.parametrize("batch", [1, 2])
def test_the_number_of_frames_a_run_changes_nothing(
    bundles: Bundles, opening: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(session_module, "VISION_BATCH", batch)
    monkeypatch.setattr(session_module, "CONTEXT_BATCH", batch)
    recorded = recording(*VIDEO)
    with VideoSession(bundles["short-video"]) as session:
        session.watch(opening)
        assert answer(session, recorded) == recorded["generated_ids"].tolist()


class WatchedExecutor(OnnxExecutor):
    """Remembers the buffers that it shares."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.buffers: dict[str, Array] = {}

    def share(self, source: str, target: str, buffer: Array) -> None:
        self.buffers[source] = buffer
        super().share(source, target, buffer)


def test_a_step_writes_its_keys_and_values_into_the_buffer_and_touches_no_others(bundles: Bundles) -> None:
    entry, folder = bundles["short-video"].manifest.graphs["llm"], bundles["short-video"].folder
    language, sequence = bundles["short-video"].manifest.model.language, recording(*VIDEO)["inputs_embeds"]
    executor = WatchedExecutor(folder / entry.file, entry.contract)
    decoder = Decoder(executor, entry.contract, language)
    cache = decoder.new_cache(40)
    decoder.prefill(cache, sequence[:, :30])
    assert len(executor.buffers) == 2 * language.layers
    before = {name: buffer.copy() for name, buffer in executor.buffers.items()}
    decoder.decode_one(cache, sequence[0, 30])
    for name, buffer in executor.buffers.items():
        assert (before[name][:, :, :30] != 0).any(axis=-1).all()
        assert (buffer[:, :, 30] != 0).any(axis=-1).all()
        buffer[:, :, 30] = 0
        np.testing.assert_array_equal(buffer, before[name])


def test_the_buffers_stay_where_they_are_from_question_to_question(bundles: Bundles) -> None:
    entry, folder = bundles["short-video"].manifest.graphs["llm"], bundles["short-video"].folder
    executor = WatchedExecutor(folder / entry.file, entry.contract)
    decoder = Decoder(executor, entry.contract, bundles["short-video"].manifest.model.language)
    sequence = recording(*VIDEO)["inputs_embeds"]
    cache = decoder.new_cache(150)
    alone = decoder.prefill(cache, sequence)
    first = dict(executor.buffers)
    again = decoder.new_cache(200, reuse=cache)
    assert (again is cache, cache.length) == (True, 0)
    np.testing.assert_array_equal(decoder.prefill(again, sequence), alone)  # nothing of before is read
    assert all(executor.buffers[name] is buffer for name, buffer in first.items())
    larger = decoder.new_cache(4096, reuse=cache)
    assert largest_relative_error(decoder.prefill(larger, sequence), alone) <= RELATIVE_ERROR


def test_sequences_in_caches_of_their_own_do_not_meet(bundles: Bundles) -> None:
    decoder, sequence = language_model(bundles["short-video"]), recording(*VIDEO)["inputs_embeds"]
    alone = decoder.prefill(decoder.new_cache(300), sequence)
    caches = [decoder.new_cache(300) for _ in range(2)]
    for piece in (sequence[:, :20], sequence[:, 20:]):
        found = [
            decoder.prefill(cache, row) for cache, row in zip(caches, (piece, piece[:, ::-1]), strict=True)
        ]
    assert largest_relative_error(found[0], alone) <= RELATIVE_ERROR
    assert largest_relative_error(found[1], alone) > 0.01


def test_a_rolled_back_sequence_goes_on_as_if_nothing_had_been_read_since(bundles: Bundles) -> None:
    decoder, sequence = language_model(bundles["short-video"]), recording(*VIDEO)["inputs_embeds"]
    cache = decoder.new_cache(300)
    decoder.prefill(cache, sequence[:, :30])
    decoder.prefill(cache, sequence[:, :70])  # a question and its answer
    cache.length = 30
    rolled_back = decoder.prefill(cache, sequence[:, 30:])
    assert largest_relative_error(rolled_back[None], recording(*VIDEO)["logits_last"]) <= RELATIVE_ERROR
