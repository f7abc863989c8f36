"""The published computation as a side: eager equals the model; a machine without a compiler is told of."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.published import NotCompiledError, compiled, eager, encoder, text_related
from llamavid.embedded import embedded_checkpoint
from llamavid.model.checkpoint import open_checkpoint
from llamavid.model.llamavid import model_from_checkpoint


def test_the_published_computation_is_the_model_s_though_it_asks_every_frame_the_question() -> None:
    checkpoint = open_checkpoint(embedded_checkpoint())
    model, side = model_from_checkpoint(checkpoint), checkpoint.config.vision.image_size
    pixels = np.random.default_rng(0).standard_normal((3, 3, side, side), np.float32)
    features = eager(encoder(checkpoint))(pixels)
    np.testing.assert_allclose(features, model.encode_frames(torch.from_numpy(pixels)).numpy(), atol=1e-5)
    question = "What color is the ball?"
    ids = model.question_tokenizer.ids(question)
    expected = model.frame_tokens(torch.from_numpy(features), question)[:, :1].numpy()
    np.testing.assert_allclose(eager(text_related(checkpoint, ids))(features), expected, atol=1e-4)


def test_without_a_compiler_torch_compile_is_skipped_in_one_line() -> None:
    with (
        torch._inductor.config.patch({"cpp.cxx": ("/nowhere/g++",), "fx_graph_cache": False}),
        pytest.raises(NotCompiledError, match="compile fails here") as refused,
    ):
        compiled(lambda array: torch.sin(array) * 3.25, np.ones((5, 7), np.float32))
    assert "\n" not in str(refused.value)
