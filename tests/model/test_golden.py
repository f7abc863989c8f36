"""The PyTorch model against the recordings of the published implementation, stage by stage.

Each stage takes what our stage before it gave, so that the last error is the whole model's.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llamavid.errors import PromptError
from llamavid.model import LlamaVid, load_model
from llamavid.model.compressor import frame_tokens
from llamavid.model.llamavid import model_from_checkpoint
from llamavid.prompt import Part, conversation, movie
from tests.conftest import GOLDEN, Recording, golden_checkpoint, largest_relative_error, recording

RELATIVE_ERROR = 1e-5  # float32 on two machines; a wrong formula is off by 1e-2 or more
SUBTITLES = ["the rabbit", "", "a butterfly"]  # of the movie's three frames
VIDEO, PICTURE = ("short-video", "video_3_frames"), ("short-video", "image_two_turns")
MOVIE = ("long-video", "movie_3_frames_subtitles")
CASES = pytest.mark.parametrize("case", [VIDEO, PICTURE, MOVIE], ids=lambda case: case[1])

TEXT_STAGES = ["text_decoder_hidden", "text_query", "context_token", "content_token"]
STAGES = [*TEXT_STAGES, "inputs_embeds", "logits_last"]
STAGES_OF_CASES = [
    *((case, stage) for case in (VIDEO, PICTURE) for stage in ["vision_features", *STAGES]),
    *((MOVIE, stage) for stage in STAGES),  # a movie's features are stored, not computed
]


@cache
def model(family: str) -> LlamaVid:
    return model_from_checkpoint(golden_checkpoint(family))


def features(ours: LlamaVid, case: Recording) -> Tensor:
    """[T, 1+N, C] computed from pixels, or a movie's stored [T, N, C]."""
    if case.family == "long-video":
        return torch.from_numpy(case["features"]).float()
    return ours.encode_frames(torch.from_numpy(case["pixels"]))


def parts(case: Recording) -> list[Part]:
    """The prompt. It asks the first question; a second one is of a turn that was not recorded."""
    if case.family == "long-video":
        return movie(case.prompts[0], SUBTITLES, tokens_per_frame=2, template=case.template)
    return conversation(case.prompts[0], template=case.template)


@torch.inference_mode()
def prefill(ours: LlamaVid, case: Recording, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Frame tokens [T, 1+n, D] -> the sequence [1, L, D] and its last logits [1, V]."""
    rows = tokens.flatten(0, 1)
    sequence = ours.sequence(parts(case), rows[:, None] if case.family == "long-video" else [rows])
    return sequence, ours.language(inputs_embeds=sequence).logits[:, -1]


def answer(ours: LlamaVid, case: Recording, **options: Any) -> list[int]:
    seen, options = features(ours, case), {"template": case.template, **options}
    if case.family == "long-video":
        return ours.generate_movie(seen, SUBTITLES, case.prompts[0], **options)
    return ours.generate(seen, case.prompts[0], **options)


# Stages


@cache
@torch.inference_mode()
def stages(family: str, name: str) -> dict[str, np.ndarray]:
    """Every stage as this model computes it, under the names of the recording."""
    case, ours = recording(family, name), model(family)
    ids, mask = (torch.from_numpy(case[f"text_decoder_{kind}"]) for kind in ("input_ids", "attention_mask"))
    seen = features(ours, case)
    hidden = ours.text_decoder(seen, ids, mask)
    query = ours.compressor.text_query(hidden)
    context = ours.compressor.context_tokens(seen, query)
    content = ours.compressor.content_tokens(seen).repeat_interleave(len(ids), dim=0)
    tokens = frame_tokens(context, content)[:: len(ids)]  # of the first prompt
    computed = (seen, hidden, query, context, content, *prefill(ours, case, tokens))
    return dict(zip(["vision_features", *STAGES], map(Tensor.numpy, computed), strict=True))


@pytest.mark.parametrize(
    ("case", "stage"), STAGES_OF_CASES, ids=lambda value: value if isinstance(value, str) else value[1]
)
def test_every_stage_is_what_was_recorded(case: tuple[str, str], stage: str) -> None:
    assert largest_relative_error(stages(*case)[stage], recording(*case)[stage]) <= RELATIVE_ERROR


@CASES
def test_the_questions_become_the_recorded_ids_without_the_padding(case: tuple[str, str]) -> None:
    recorded, tokenizer = recording(*case), model(case[0]).question_tokenizer
    ids, mask = recorded["text_decoder_input_ids"], recorded["text_decoder_attention_mask"]
    for prompt, row, words in zip(recorded.prompts, ids, mask, strict=True):
        np.testing.assert_array_equal(tokenizer.ids(prompt)[0], row[words == 1])


@CASES
def test_the_prompt_becomes_the_recorded_ids(case: tuple[str, str]) -> None:
    ids = model(case[0]).language_tokenizer.ids(parts(recording(*case)))
    np.testing.assert_array_equal(ids[None], recording(*case)["input_ids"])


@CASES
def test_the_greedy_answer_is_the_recorded_one(case: tuple[str, str]) -> None:
    recorded, ours = recording(*case), model(case[0])
    expected = recorded["generated_ids"].tolist()
    assert ours.config.language.eos_id not in expected  # the recording does not stop at </s>, we do
    assert answer(ours, recorded, max_new_tokens=len(expected)) == expected


def test_a_prompt_padded_in_a_batch_gives_what_it_gives_alone() -> None:
    recorded, ours = recording(*PICTURE), model("short-video")
    for prompt, batched in zip(recorded.prompts, recorded["context_token"], strict=True):
        alone = ours.frame_tokens(features(ours, recorded), prompt)[0, :1].numpy()
        assert largest_relative_error(alone, batched) <= RELATIVE_ERROR


@CASES
@torch.inference_mode()
def test_the_attention_is_the_weights_that_the_recorded_context_token_was_gathered_with(
    case: tuple[str, str],
) -> None:
    recorded, compressor = recording(*case), model(case[0]).compressor
    seen = features(model(case[0]), recorded)
    query = torch.from_numpy(recorded["text_query"])
    attention, relevance = compressor.context_attention(seen, query)
    patches = seen[:, -compressor.config.vision.patches :]
    patches = patches.repeat_interleave(len(attention) // len(patches), dim=0)
    context = compressor.value_projector(attention[:, None] @ patches)
    assert largest_relative_error(context.numpy(), recorded["context_token"]) <= RELATIVE_ERROR
    assert attention.dtype is relevance.dtype is torch.float32
    assert relevance.shape == attention.shape[:1]


@torch.inference_mode()
def test_relevance_is_how_far_the_highest_score_stands_above_the_mean() -> None:
    """By the weights themselves: log of the highest less the mean log, which no sum over patches changes."""
    recorded, compressor = recording(*VIDEO), model("short-video").compressor
    seen, query = features(model("short-video"), recorded), torch.from_numpy(recorded["text_query"])
    one = compressor.context_attention(seen, query[:, :1])  # of one query the mean is the row itself
    logs = one.attention.double().log()
    expected = logs.amax(dim=1) - logs.mean(dim=1)
    torch.testing.assert_close(one.relevance.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch", [1, 2])
def test_the_batch_size_does_not_change_a_frame(batch: int) -> None:
    recorded, ours = recording(*VIDEO), model("short-video")
    seen = ours.encode_frames(torch.from_numpy(recorded["pixels"]), batch=batch)
    context = ours.frame_tokens(seen, recorded.prompts[0], batch=batch)[:, :1]
    assert largest_relative_error(seen.numpy(), recorded["vision_features"]) <= RELATIVE_ERROR
    assert largest_relative_error(context.numpy(), recorded["context_token"]) <= RELATIVE_ERROR


# The public door


# From pixels to logits 1.8e-3 and 1.4e-2 were measured, two units in the last place of either dtype.
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 6e-3), (torch.bfloat16, 5e-2)])
def test_a_model_loaded_in_half_precision_is_close_to_the_recording(dtype: torch.dtype, bound: float) -> None:
    folder, recorded = GOLDEN / "short-video", recording(*VIDEO)
    half = load_model(
        str(folder / "checkpoint"),
        vision_tower=folder / "eva_vit_g.pth",
        text_tokenizer=folder / "bert-base-uncased" / "vocab.txt",
        image_processor=224,
        dtype=dtype,
    )
    tokens = half.frame_tokens(features(half, recorded), recorded.prompts[0])
    _, logits = prefill(half, recorded, tokens)
    assert {parameter.dtype for parameter in half.parameters()} == {tokens.dtype} == {logits.dtype} == {dtype}
    assert largest_relative_error(logits.float().numpy(), recorded["logits_last"]) <= bound
    assert len(answer(half, recorded, max_new_tokens=4)) == 4


def test_a_movie_answers_from_the_float16_features_that_were_stored() -> None:
    recorded = recording(*MOVIE)
    stored = torch.from_numpy(recorded["features"])
    assert stored.dtype is torch.float16
    asked = model("long-video").generate_movie(stored, SUBTITLES, recorded.prompts[0], max_new_tokens=12)
    assert asked == recorded["generated_ids"].tolist()


def test_the_seed_decides_a_sampled_answer() -> None:
    recorded, ours = recording(*VIDEO), model("short-video")
    first, again, other = (
        answer(ours, recorded, max_new_tokens=8, temperature=1.0, top_p=0.9, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_a_prompt_and_answer_that_do_not_fit_the_context_are_refused() -> None:
    recorded, ours = recording(*VIDEO), model("short-video")
    with pytest.raises(PromptError, match="145 tokens and 3952 are to come; expected at most 4096 together"):
        answer(ours, recorded, max_new_tokens=4096 - 145 + 1)


def test_a_movie_needs_one_subtitle_for_each_frame() -> None:
    stored = torch.from_numpy(recording(*MOVIE)["features"])
    with pytest.raises(PromptError, match="2 subtitles; expected one for each of the 3 frames"):
        model("long-video").generate_movie(stored, ["a", "b"], "Why?", max_new_tokens=1)


def test_an_empty_question_is_refused() -> None:
    stored = torch.from_numpy(recording(*MOVIE)["features"])
    with pytest.raises(PromptError, match="the question is empty"):
        model("long-video").frame_tokens(stored, " \n")
