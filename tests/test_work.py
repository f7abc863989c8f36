"""Operations and bytes, against what is known of the released model."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llamavid.bundle import open_bundle
from llamavid.ceilings import PUBLISHED, Ceilings, floor
from llamavid.config import (
    LanguageConfig,
    ModelConfig,
    Preprocessing,
    TextDecoder,
    TextDecoderConfig,
    VisionConfig,
)
from llamavid.embedded import default_bundle
from llamavid.work import MODULES, Work, cache_numbers, decode_work, frame_work, prefill_work

VICUNA_7B = LanguageConfig(4096, 32, 32, 32, 128, 11008, 32000, 1e-5, 10000.0, 1.0, 4096)
RELEASED = ModelConfig(
    VisionConfig(224, 14, 1408, 39, 16, 6144),
    TextDecoderConfig(TextDecoder.Q_FORMER, 768, 12, 12, 3072, 30523, 512, 1408, 32, False),
    VICUNA_7B,
    Preprocessing(224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), False),
    pool_grid=1,
    projector_depth=2,
)
BERT = TextDecoderConfig(TextDecoder.RAW_BERT, 768, 2, 12, 3072, 30523, 512, 768, 0, True)


def test_a_frame_through_eva_g_is_half_a_teraflop() -> None:
    assert frame_work(RELEASED, 16)["encoder"].operations == pytest.approx(0.53e12, rel=0.03)


def test_a_frame_through_the_q_former_is_fifteen_gigaflop() -> None:
    assert frame_work(RELEASED, 16)["decoder"].operations == pytest.approx(15e9, rel=0.05)


def test_the_cross_attention_keys_and_values_of_a_frame_are_6_7_gigaflop_of_it() -> None:
    no_keys = replace(RELEASED, text_decoder=replace(RELEASED.text_decoder, image_width=1))
    fewer = frame_work(RELEASED, 16)["decoder"].operations - frame_work(no_keys, 16)["decoder"].operations
    assert fewer == pytest.approx(6.7e9, rel=0.01)


def test_bert_of_two_layers_is_a_part_of_the_q_former() -> None:
    """0.25 of 1.08 ms in the paper's Table 9."""
    bert = replace(RELEASED, text_decoder=BERT)
    ratio = frame_work(bert, 16)["decoder"].operations / frame_work(RELEASED, 16)["decoder"].operations
    assert 0.05 < ratio < 0.25


def test_a_token_through_vicuna_is_13_5_gigaflop_and_half_a_mebibyte_of_cache() -> None:
    assert decode_work(VICUNA_7B, 256).operations == pytest.approx(13.5e9, rel=0.03)
    assert cache_numbers(VICUNA_7B) * 2 == 2**19  # float16


def test_a_prompt_costs_its_tokens_but_the_head_only_once() -> None:
    one, many = prefill_work(VICUNA_7B, 1), prefill_work(VICUNA_7B, 100)
    assert one.weighted == decode_work(VICUNA_7B, 0).weighted
    assert many.weighted < 100 * one.weighted
    assert many.weights == one.weights


def test_the_weights_are_those_that_a_float32_bundle_holds() -> None:
    """But for biases, norms and the width of look-up tables: of a tiny model some, of a large one nothing."""
    bundle = open_bundle(default_bundle())
    model, files = bundle.manifest.model, bundle.manifest.files
    work = frame_work(model, 8)
    counted = {
        "vision": work["encoder"].weights,
        "content": work["content"].weights,
        "context": work["decoder"].weights + work["context"].weights,
        "llm": decode_work(model.language, 1).weights,
    }
    text = model.text_decoder
    counted["context"] += (text.vocab_size + text.max_positions) * text.width
    for graph, numbers in counted.items():
        entry = bundle.manifest.graphs[graph]
        stored = files[entry.weights_file].size / (4 if entry.precision == "fp32" else 2)
        assert numbers <= stored, graph
        assert numbers == pytest.approx(stored, rel=0.15), graph


def test_a_floor_is_that_of_products_or_of_memory_whichever_is_higher() -> None:
    machine = Ceilings("m", {"fp32": 1e12, "fp16": 2e12}, 1e9, "made up")
    products, memory = Work(10**9, 0, 1, 1), Work(1, 0, 10**6, 0)
    assert floor(products, "fp32", machine) == (2.0, "products")
    assert floor(products, "fp16", machine) == (1.0, "products")
    assert floor(memory, "fp32", machine) == (pytest.approx(4.0), "memory")
    shared = floor(memory, "fp32", machine, frames=4)
    assert shared is not None
    assert shared.milliseconds == pytest.approx(1.0)


def test_no_floor_is_told_for_a_type_that_the_machine_does_not_multiply() -> None:
    a100 = next(each for each in PUBLISHED if each.name == "A100")
    assert floor(Work(1, 0, 1, 1), "fp8", a100) is None


def test_published_ceilings_give_the_floors_that_are_known_of_eva_g() -> None:
    """At least 1.7 ms on an A100, 12 ms and more on an AGX Orin (the field's figures)."""
    known = {"A100": 1.7, "AGX Orin": 12.2}
    for machine in PUBLISHED:
        least = floor(frame_work(RELEASED, 16)["encoder"], "fp16", machine, frames=32)
        assert least is not None
        assert set(MODULES) == frame_work(RELEASED, 16).keys()
        if machine.name in known:
            assert least.milliseconds == pytest.approx(known[machine.name], rel=0.05)
