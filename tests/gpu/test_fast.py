"""What `make bench-gpu` measures, on a real GPU: against float32, frame by frame, and replayed as a graph.

Widths are EVA-g's, the Q-Former's and Vicuna's; a few layers of each.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tests.gpu.conftest import missing_gpu, needed

pytestmark = pytest.mark.gpu

FRAMES = 5
SAME = 5e-3  # float16, where another batch or stream may choose other tiles
TOKENS, FOLLOWING, HELD = 100, 8, 128


def _config(kind: str) -> Any:
    from benchmarks.gpu.dimensions import REAL, SIZES

    config = SIZES[kind]
    return dataclasses.replace(
        config,
        vision=dataclasses.replace(REAL.vision, depth=3),
        text_decoder=dataclasses.replace(
            config.text_decoder, layers=min(4, config.text_decoder.layers), vocab_size=512
        ),
        language=dataclasses.replace(REAL.language, layers=2, vocab_size=512),
    )


@pytest.fixture(scope="module", params=["7b", "7b-bert"])
def made(request: pytest.FixtureRequest) -> Any:
    """Networks in float32 on the GPU, and the truth of five frames."""
    (torch,) = needed("torch")
    if not torch.cuda.is_available():
        missing_gpu(f"torch {torch.__version__} sees no GPU")
    from benchmarks.gpu.errors import exact_float32
    from benchmarks.gpu.random_model import random_frames
    from benchmarks.gpu.truth import truth_of

    exact_float32()
    config, device = _config(request.param), torch.device("cuda")
    networks = random_frames(config, device)
    return networks, truth_of(networks, config, FRAMES, device)


VARIANTS = ["published", "ours", "ours graphed", "ours graphed bfloat16", "ours compiled graphed"]


@pytest.mark.parametrize("name", [*VARIANTS, "ours compiled graphed float8"])
@pytest.mark.parametrize("batch", [1, FRAMES])
def test_every_variant_is_within_its_bound(torch: Any, made: Any, name: str, batch: int) -> None:
    """Modules and the whole, each frame; a graph's result is poisoned before it is replayed."""
    from benchmarks.gpu.frames import measured_row
    from benchmarks.gpu.variants import stages

    networks, truth = made
    variant = _variant(torch, name)
    with torch.inference_mode():
        prepared = stages(variant, networks.to(variant.dtype), truth.ids, truth.watched_pixels, _choices(96))
    row = measured_row(variant, prepared, truth, batch)
    assert row.void == "", dict(row.errors)


def _variant(torch: Any, name: str) -> Any:
    from benchmarks.gpu.compiling import why_not_compiled
    from benchmarks.gpu.fp8 import why_no_fp8
    from benchmarks.gpu.variants import Variant

    precision = next((each for each in ("bfloat16", "float8") if each in name), "float16")
    if precision == "float8" and (why := why_no_fp8(torch.device("cuda"))):
        pytest.skip(why)
    if "compiled" in name and (why := why_not_compiled(torch.device("cuda"))):
        pytest.skip(why)
    return Variant(name, precision, "ours" in name, "compiled" in name, "graphed" in name)


def _choices(head_size: int | None) -> Any:
    from benchmarks.gpu.variants import Choices

    return Choices(head_size)


@pytest.mark.parametrize("name", ["ours", "ours compiled graphed"])
def test_a_frame_of_a_batch_is_that_frame_alone(torch: Any, made: Any, name: str) -> None:
    """Engines have been seen that are right in the first slot only."""
    from benchmarks.gpu.errors import relative
    from benchmarks.gpu.graphs import captured
    from benchmarks.gpu.variants import stages

    networks, truth = made
    variant = _variant(torch, name)
    with torch.inference_mode():
        prepared = stages(
            variant, networks.to(variant.dtype), truth.ids, truth.watched_pixels, _choices(None)
        )
        pixels = truth.pixels.to(variant.dtype)
        alone = torch.cat([prepared.tokens(frame) for frame in pixels.split(1)])
        if variant.graphed:
            together = captured(lambda: prepared.tokens(pixels)).replay()
        else:
            together = prepared.tokens(pixels)
    assert relative(together, alone) < SAME


def test_a_replayed_graph_computes_what_lies_there_now(torch: Any, made: Any) -> None:
    from benchmarks.gpu.errors import relative
    from benchmarks.gpu.graphs import captured
    from benchmarks.gpu.variants import stages

    networks, truth = made
    variant = _variant(torch, "ours graphed")
    with torch.inference_mode():
        prepared = stages(variant, networks.to(torch.float16), truth.ids, truth.pixels, _choices(None))
        pixels = truth.pixels.half()
        graph = captured(lambda: prepared.tokens(pixels))
        first = graph.replay().clone()
        assert relative(first, prepared.tokens(pixels)) < SAME
        pixels.copy_(pixels.flip(0))
        assert relative(graph.replay(), prepared.tokens(pixels)) < SAME
        assert relative(graph.result, first) > 0.1  # other frames


@pytest.mark.parametrize("image", ["EACH_LAYER", "ONE_PRODUCT", "ABSORBED", "KEPT"])
def test_every_way_to_keys_and_values_is_within_float16_s_bound(torch: Any, made: Any, image: str) -> None:
    from benchmarks.gpu.errors import BOUNDS, relative
    from benchmarks.gpu.fast_decoder import FastDecoder, Image, Rewrites

    networks, truth = made
    with torch.inference_mode():
        decoder = FastDecoder(networks.to(torch.float16).text_decoder, Rewrites(image=Image[image]))
        found = decoder(decoder.image(truth.features.half()), decoder.question(truth.ids))
    assert relative(found, truth.hidden) < BOUNDS["float16"]


@pytest.mark.parametrize("backend", ["FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION"])
@pytest.mark.parametrize("head_size", [None, 96, 128])
def test_every_kernel_takes_every_head_size_or_says_so(
    torch: Any, made: Any, backend: str, head_size: int | None
) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from benchmarks.gpu.attention import NO_KERNEL
    from benchmarks.gpu.errors import BOUNDS, relative
    from benchmarks.gpu.fast_encoder import FastEncoder

    networks, truth = made
    with torch.inference_mode(), sdpa_kernel(getattr(SDPBackend, backend)):
        try:
            found = FastEncoder(networks.to(torch.float16).vision, head_size=head_size)(truth.pixels.half())
        except RuntimeError as error:
            if not any(words in str(error) for words in NO_KERNEL):
                raise
            pytest.skip(f"no {backend} for heads of {head_size or 88} here")
    assert relative(found, truth.features) < BOUNDS["float16"]


@pytest.mark.parametrize("attention", ["KERNEL", "SPLIT"])
@pytest.mark.parametrize("how", ["eager", "graph", "compiled graph"])
def test_decoded_logits_follow_float32(torch: Any, attention: str, how: str) -> None:
    from benchmarks.gpu.compiling import compiled_for, not_compiled, why_not_compiled
    from benchmarks.gpu.errors import BOUNDS, exact_float32, relative
    from benchmarks.gpu.fast_language import Attention, FastLanguage
    from benchmarks.gpu.graphs import captured
    from benchmarks.gpu.plain_language import PlainLanguage, float32_logits
    from benchmarks.gpu.random_model import drawn

    if "compiled" in how and (why := why_not_compiled(torch.device("cuda"))):
        pytest.skip(why)
    exact_float32()
    device = torch.device("cuda")
    with torch.device("meta"):
        plain = PlainLanguage(_config("7b").language)
    plain = drawn(plain, device, torch.float16, seed=3)
    compile_ = compiled_for(device) if "compiled" in how else not_compiled
    fast = FastLanguage(plain, tokens=256, attention=Attention[attention], compile=compile_)
    random = torch.Generator(device).manual_seed(4)
    rows = torch.randn(TOKENS + FOLLOWING, plain.config.hidden, device=device, generator=random).half()
    position, row = torch.tensor([TOKENS], device=device), rows[TOKENS, None].clone()

    def step() -> Any:
        return fast.decode(row, position, held=HELD)

    with torch.inference_mode():
        expected = float32_logits(plain, rows, FOLLOWING + 1)
        found = [fast.prefill(rows[:TOKENS]).clone()]
        run = captured(step).replay if "graph" in how else step
        for place in range(TOKENS, len(rows)):
            position.fill_(place)
            row.copy_(rows[place, None])
            found.append(run().clone())
    assert relative(torch.stack(found), expected) < BOUNDS["float16"]


def test_events_time_what_the_gpu_does_and_not_how_it_is_handed_out(torch: Any) -> None:
    from benchmarks.gpu.timing import timed

    device = torch.device("cuda")
    small, large = (torch.randn(side, side, device=device).half() for side in (2048, 8192))
    times = [timed(lambda a=a: a @ a, device, rounds=5).median for a in (small, large)]
    assert times[1] > 16 * times[0]  # 64 times the work, on a card that the small one does not fill
