"""The PyTorch model against the recordings of the published implementation, stage by stage.

Each stage takes what our stage before it gave, so that the last error is the whole model's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

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


def question(case: Recording) -> str:
    """What is asked; further prompts are of turns that the recording's text does not have."""
    return case.prompts[0]


def parts(case: Recording) -> list[Part]:
    if case.family == "long-video":
        return movie(question(case), SUBTITLES, tokens_per_frame=2, template=case.template)
    return conversation(question(case), template=case.template)


def features(case: Recording) -> torch.Tensor:
    """[T, 1+N, C] computed from pixels, or a movie's stored [T, N, C]."""
    if case.family == "long-video":
        return torch.from_numpy(case["features"]).float()
    return model(case.family).encode_frames(torch.from_numpy(case["pixels"]))


@cache
@torch.inference_mode()
def stages(family: str, name: str) -> dict[str, np.ndarray]:
    """Every stage as this model computes it, under the names of the recording."""
    case, ours = recording(family, name), model(family)
    ids, mask = (torch.from_numpy(case[f"text_decoder_{kind}"]) for kind in ("input_ids", "attention_mask"))
    computed = {"vision_features": features(case)}
    hidden = ours.text_decoder(computed["vision_features"], ids, mask)
    query = ours.compressor.text_query(hidden)
    context = ours.compressor.context_tokens(computed["vision_features"], query)
    content = ours.compressor.content_tokens(computed["vision_features"]).repeat_interleave(len(ids), dim=0)
    computed |= dict(zip(TEXT_STAGES, (hidden, query, context, content), strict=True))

    rows = frame_tokens(context, content)[:: len(ids)].flatten(0, 1)  # of the prompt that has a placeholder
    embeddings = ours.sequence(parts(case), rows[:, None] if family == "long-video" else [rows])
    logits = ours.language(inputs_embeds=embeddings).logits[:, -1]
    computed |= {"inputs_embeds": embeddings, "logits_last": logits}
    return {stage: tensor.numpy() for stage, tensor in computed.items()}


@pytest.mark.parametrize(("case", "stage"), STAGES_OF_CASES, ids=lambda value: value[1] if len(value) == 2 else value)
def test_every_stage_is_what_was_recorded(case: tuple[str, str], stage: str) -> None:
    assert largest_relative_error(stages(*case)[stage], recording(*case)[stage]) <= RELATIVE_ERROR


@CASES
def test_the_question_becomes_the_recorded_ids_without_padding(case: tuple[str, str]) -> None:
    recorded = recording(*case)
    ids, mask = recorded["text_decoder_input_ids"], recorded["text_decoder_attention_mask"]
    tokenizer = model(case[0]).question_tokenizer
    assert len(ids) == len(recorded.prompts)
    for prompt, row, words in zip(recorded.prompts, ids, mask, strict=True):
        np.testing.assert_array_equal(tokenizer.ids(prompt)[0], row[words == 1])
        assert not row[words == 0].any()


@CASES
def test_the_prompt_becomes_the_recorded_ids(case: tuple[str, str]) -> None:
    recorded = recording(*case)
    ids = model(case[0]).language_tokenizer.ids(parts(recorded))
    np.testing.assert_array_equal(ids[None], recorded["input_ids"])


@CASES
def test_the_greedy_answer_is_the_recorded_one(case: tuple[str, str]) -> None:
    recorded, ours = recording(*case), model(case[0])
    expected = recorded["generated_ids"].tolist()
    assert ours.config.language.eos_id not in expected  # the recording does not stop at </s>, we do
    assert answer(ours, recorded, max_new_tokens=len(expected)) == expected


def test_prompts_padded_in_a_batch_give_what_each_gives_alone() -> None:
    recorded, ours = recording(*PICTURE), model("short-video")
    seen = features(recorded)
    together = recorded["context_token"]
    for prompt, expected in zip(recorded.prompts, together, strict=True):
        alone = ours.frame_tokens(seen, prompt)[:, :1].numpy()
        assert largest_relative_error(alone, expected[None]) <= RELATIVE_ERROR


@pytest.mark.parametrize("batch", [1, 2])
def test_the_batch_size_does_not_change_a_frame(batch: int) -> None:
    recorded, ours = recording(*VIDEO), model("short-video")
    seen = ours.encode_frames(torch.from_numpy(recorded["pixels"]), batch=batch)
    assert largest_relative_error(seen.numpy(), recorded["vision_features"]) <= RELATIVE_ERROR
    tokens = ours.frame_tokens(seen, question(recorded), batch=batch)[:, :1].numpy()
    assert largest_relative_error(tokens, recorded["context_token"]) <= RELATIVE_ERROR


# The public door


@pytest.fixture(scope="module")
def loaded() -> Callable[..., LlamaVid]:
    return lambda **options: load_model(
        str(GOLDEN / "long-video" / "checkpoint"),
        vision_tower=GOLDEN / "short-video" / "eva_vit_g.pth",
        text_tokenizer=GOLDEN / "short-video" / "bert-base-uncased" / "vocab.txt",
        image_processor=224,
        **options,
    )


# Measured: see each number's comment; the bound is three times that.
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 1e-2), (torch.bfloat16, 1e-1)])
def test_a_half_precision_model_is_close_to_the_recording(
    loaded: Callable[..., LlamaVid], dtype: torch.dtype, bound: float
) -> None:
    half, recorded = loaded(dtype=dtype), recording(*MOVIE)
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}
    seen = torch.from_numpy(recorded["features"])
    tokens = half.frame_tokens(seen, question(recorded))
    assert tokens.dtype is dtype
    with torch.inference_mode():
        logits = half.language(inputs_embeds=half.sequence(parts(recorded), tokens.flatten(0, 1)[:, None])).logits
    assert largest_relative_error(logits[:, -1].float().numpy(), recorded["logits_last"]) <= bound
    print(dtype, largest_relative_error(logits[:, -1].float().numpy(), recorded["logits_last"]))
    assert len(answer(half, recorded, max_new_tokens=4)) == 4


def answer(ours: LlamaVid, case: Recording, **options: object) -> list[int]:
    options = {"template": case.template, **options}
    if case.family == "long-video":
        return ours.generate_movie(torch.from_numpy(case["features"]), SUBTITLES, question(case), **options)
    return ours.generate(features(case), question(case), **options)


def test_a_seed_makes_a_sampled_answer_repeatable() -> None:
    recorded, ours = recording(*VIDEO), model("short-video")
    first, again, other = (
        answer(ours, recorded, max_new_tokens=8, temperature=1.0, top_p=0.9, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_a_prompt_that_does_not_fit_the_context_is_refused() -> None:
    recorded, ours = recording(*VIDEO), model("short-video")
    with pytest.raises(PromptError, match="145 tokens and 3952 are to come; expected at most 4096 together"):
        answer(ours, recorded, max_new_tokens=4096 - 145 + 1)


def test_a_movie_needs_one_subtitle_for_each_frame() -> None:
    stored = torch.from_numpy(recording(*MOVIE)["features"])
    with pytest.raises(PromptError, match="2 subtitles; expected one for each of the 3 frames"):
        model("long-video").generate_movie(stored, ["a", "b"], "Why?", max_new_tokens=1)
