"""What `make bench-gpu` measures computes what `llamavid/model` does: on the CPU, tiny, in float32."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from benchmarks.gpu.compiling import compiled_for
from benchmarks.gpu.dimensions import SIZES
from benchmarks.gpu.fast_context import FastContext
from benchmarks.gpu.fast_decoder import NONE, FastDecoder, Image, Rewrites
from benchmarks.gpu.fast_encoder import FastEncoder
from benchmarks.gpu.fp8 import EightBits, watch_ranges
from benchmarks.gpu.published import published_features, published_hidden
from benchmarks.gpu.random_model import FrameNetworks, random_frames
from benchmarks.gpu.variants import Choices, Variant, stages

CPU = torch.device("cpu")
FRAMES, WORDS = 3, 7
EXACT = 5e-6  # relative norm, float32 with other sums; folded weights add a rounding
BOTH = ("tiny", "tiny-bert")


def relative(found: Tensor, expected: Tensor) -> float:
    """The worst frame's."""
    assert found.shape == expected.shape
    difference = (found.double() - expected.double()).flatten(1).norm(dim=1)
    return float((difference / expected.double().flatten(1).norm(dim=1)).max())


@dataclasses.dataclass(frozen=True)
class Truth:
    networks: FrameNetworks
    pixels: Tensor
    ids: Tensor
    features: Tensor
    hidden: Tensor
    context: Tensor


@pytest.fixture(scope="module", params=BOTH)
def truth(request: pytest.FixtureRequest) -> Truth:
    return _truth(request.param)


@pytest.fixture(scope="module")
def q_former() -> Truth:
    return _truth("tiny")


@torch.inference_mode()
def _truth(size: str) -> Truth:
    config = SIZES[size]
    networks = random_frames(config, CPU)
    torch.manual_seed(1)
    pixels = torch.randn(FRAMES, 3, config.vision.image_size, config.vision.image_size)
    ids = torch.randint(0, config.text_decoder.vocab_size, (1, WORDS))
    features = networks.vision(pixels)
    hidden = networks.text_decoder(features, ids)
    context = networks.compressor.context_tokens(features, networks.compressor.text_query(hidden))
    return Truth(networks, pixels, ids, features, hidden, context)


@torch.inference_mode()
def test_the_published_computation_is_the_plain_model(truth: Truth) -> None:
    assert relative(published_features(truth.networks.vision, truth.pixels), truth.features) < EXACT
    found = published_hidden(truth.networks.text_decoder, truth.features, truth.ids)
    assert relative(found, truth.hidden) < EXACT


@pytest.mark.parametrize("head_size", [None, 96, 128])
@torch.inference_mode()
def test_padded_heads_change_nothing(q_former: Truth, head_size: int | None) -> None:
    encoder = FastEncoder(q_former.networks.vision, head_size=head_size)
    assert relative(encoder(q_former.pixels), q_former.features) < EXACT
    assert encoder.blocks[0].qkv.weight.shape[0] == 3 * 2 * (head_size or 88)


@pytest.mark.parametrize("image", list(Image), ids=lambda image: image.name)
@torch.inference_mode()
def test_every_way_to_keys_and_values_gives_the_same_rows(truth: Truth, image: Image) -> None:
    assert _hidden_error(truth, Rewrites(image=image)) < EXACT


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Rewrites)])
@torch.inference_mode()
def test_every_rewrite_alone_gives_the_same_rows(truth: Truth, name: str) -> None:
    value = getattr(Rewrites(), name)
    assert _hidden_error(truth, dataclasses.replace(NONE, **{name: value})) < EXACT


@torch.inference_mode()
def test_without_rewrites_the_fast_decoder_is_the_plain_one(truth: Truth) -> None:
    assert _hidden_error(truth, NONE) < EXACT


def _hidden_error(truth: Truth, rewrites: Rewrites, **made: Any) -> float:
    decoder = FastDecoder(truth.networks.text_decoder, rewrites, **made)
    found = decoder(decoder.image(truth.features), decoder.question(truth.ids))
    return relative(found, truth.hidden)


@torch.inference_mode()
def test_words_that_no_frame_has_touched_are_multiplied_once(q_former: Truth) -> None:
    decoder = FastDecoder(q_former.networks.text_decoder, Rewrites())
    seen: list[int] = []
    for layer in decoder.layers:
        layer.word_feed_forward.register_forward_pre_hook(lambda _, entering: seen.append(len(entering[0])))
    decoder(decoder.image(q_former.features), decoder.question(q_former.ids))
    for layer in decoder.layers:
        layer.word_feed_forward._forward_pre_hooks.clear()
    assert seen == [1, FRAMES, FRAMES]  # and never in the last layer


@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize("averaged", [True, False])
@torch.inference_mode()
def test_context_tokens_are_the_same_with_every_rewrite(truth: Truth, folded: bool, averaged: bool) -> None:
    context = FastContext(truth.networks.compressor, folded_keys=folded, averaged_weights=averaged)
    assert relative(context(truth.features, truth.hidden), truth.context) < EXACT


@torch.inference_mode()
def test_a_frame_of_a_batch_is_that_frame_alone(truth: Truth) -> None:
    encoder, decoder = (
        FastEncoder(truth.networks.vision),
        FastDecoder(truth.networks.text_decoder, Rewrites()),
    )
    context = FastContext(truth.networks.compressor)
    asked = decoder.question(truth.ids)

    def tokens(pixels: Tensor) -> Tensor:
        features = encoder(pixels)
        return context(features, decoder(decoder.image(features), asked))

    alone = torch.cat([tokens(frame) for frame in truth.pixels.split(1)])
    assert relative(tokens(truth.pixels), alone) < EXACT


@torch.inference_mode()
def test_compiled_parts_compute_the_same(q_former: Truth) -> None:
    compile_ = compiled_for(CPU)
    encoder = FastEncoder(q_former.networks.vision, compile=compile_)
    assert relative(encoder(q_former.pixels), q_former.features) < EXACT
    assert _hidden_error(q_former, Rewrites(), compile=compile_) < EXACT
    context = FastContext(q_former.networks.compressor, compile=compile_)
    assert relative(context(q_former.features, q_former.hidden), q_former.context) < EXACT


@torch.inference_mode()
def test_a_block_is_compiled_once_for_all_blocks(q_former: Truth) -> None:
    compiled = []

    def counting(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        compiled.append(graph)
        return graph.forward

    def compile_(function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(function, backend=counting, dynamic=False, fullgraph=True)

    FastEncoder(q_former.networks.vision, compile=compile_)(q_former.pixels)
    assert len(compiled) == 1


@torch.inference_mode()
def test_float8_is_close_and_not_equal(q_former: Truth) -> None:
    encoder = FastEncoder(q_former.networks.vision)
    largest = watch_ranges(encoder, q_former.pixels)
    encoder.replace_products(lambda name, dense: EightBits(dense, largest[name]))
    assert 1e-3 < relative(encoder(q_former.pixels), q_former.features) < 0.1


@torch.inference_mode()
def test_float8_s_ranges_are_watched_whatever_was_compiled_before(q_former: Truth) -> None:
    """Compiled blocks kept the hooks of the first one, or had none: 39 compilations, or no ranges at all."""
    networks, compiled = q_former.networks, Variant("ours", "float32", compiled=True)
    float8 = dataclasses.replace(compiled, precision="float8")
    stages(compiled, networks, q_former.ids, q_former.pixels, Choices()).encoder(q_former.pixels)
    before = counters["stats"]["unique_graphs"]
    made = stages(float8, networks.to(torch.float16), q_former.ids, q_former.pixels, Choices())
    assert counters["stats"]["unique_graphs"] == before
    assert 1e-3 < relative(made.encoder(q_former.pixels.half()), q_former.features) < 0.1
    assert counters["stats"]["unique_graphs"] == before + 1  # one block for all blocks


@torch.inference_mode()
def test_a_number_beyond_float8_s_range_is_cut_and_no_nan(q_former: Truth) -> None:
    encoder = FastEncoder(q_former.networks.vision)
    largest = watch_ranges(encoder, q_former.pixels)
    encoder.replace_products(lambda name, dense: EightBits(dense, largest[name]))
    assert encoder(100 * q_former.pixels).isfinite().all()
