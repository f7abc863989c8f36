"""The language model of `make bench-gpu`: the truth is transformers' LLaMA, the fast form is the truth."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from benchmarks.gpu.compiling import Compile, compiled_for, not_compiled
from benchmarks.gpu.dimensions import TINY
from benchmarks.gpu.fast_language import Attention, FastLanguage
from benchmarks.gpu.plain_language import Cache, PlainLanguage, float32_logits
from benchmarks.gpu.random_model import drawn
from llamavid.model.parts import language_model

CPU = torch.device("cpu")
EXACT = 5e-6  # relative norm, float32 with other sums
PROMPT, MORE, HELD = 20, 4, 32


@pytest.fixture(scope="module", params=["shared keys", "as many keys as queries"])
def plain(request: pytest.FixtureRequest) -> PlainLanguage:
    heads = TINY.language.heads if request.param.startswith("as many") else TINY.language.kv_heads
    with torch.device("meta"):
        language = PlainLanguage(dataclasses.replace(TINY.language, kv_heads=heads))
    return drawn(language, CPU, torch.float32, seed=0)


@pytest.fixture(scope="module")
def embeddings() -> Tensor:
    return torch.randn(PROMPT + MORE, TINY.language.hidden, generator=torch.Generator().manual_seed(1))


def relative(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).norm() / expected.norm())


@torch.inference_mode()
def step_by_step(plain: PlainLanguage, embeddings: Tensor) -> Tensor:
    cache: Cache = []
    rows = [plain(embeddings[:PROMPT], cache)]
    return torch.stack(rows + [plain(row[None], cache) for row in embeddings[PROMPT:]])


@torch.inference_mode()
def test_the_plain_language_model_is_transformers_llama(plain: PlainLanguage, embeddings: Tensor) -> None:
    llama = language_model(plain.config).eval()
    llama.load_state_dict(plain.state_dict())
    expected = llama(inputs_embeds=embeddings[None]).logits[0, PROMPT - 1 :]
    assert relative(step_by_step(plain, embeddings), expected) < EXACT
    assert relative(float32_logits(plain, embeddings, MORE + 1), expected) < EXACT


@pytest.mark.parametrize("attention", list(Attention), ids=lambda attention: attention.name)
@torch.inference_mode()
def test_a_cache_that_stays_in_place_gives_the_same_logits(
    plain: PlainLanguage, embeddings: Tensor, attention: Attention
) -> None:
    assert _error(plain, embeddings, attention, not_compiled) < EXACT


@pytest.mark.parametrize("plain", ["shared keys"], indirect=True)
@torch.inference_mode()
def test_compiled_layers_compute_the_same(plain: PlainLanguage, embeddings: Tensor) -> None:
    assert _error(plain, embeddings, Attention.SPLIT, compiled_for(CPU)) < EXACT


def _error(plain: PlainLanguage, embeddings: Tensor, attention: Attention, compile_: Compile) -> float:
    fast = FastLanguage(plain, tokens=64, attention=attention, compile=compile_)
    for keys, values in fast.caches:  # what lay there before is not seen
        keys.fill_(7.0)
        values.fill_(7.0)
    rows = [fast.prefill(embeddings[:PROMPT])]
    for place in range(PROMPT, PROMPT + MORE):
        rows.append(fast.decode(embeddings[place, None], torch.tensor([place]), held=HELD))
    return relative(torch.stack(rows), step_by_step(plain, embeddings))
