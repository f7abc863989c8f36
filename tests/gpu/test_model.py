"""The PyTorch reference on the GPU in float16, against itself on the CPU in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.gpu.conftest import needed

pytestmark = pytest.mark.gpu

GOLDEN = Path(__file__).parent.parent / "golden" / "short-video"
HALF = 2e-2  # relative norm, float16 through a few blocks
FRAMES, TOKENS = 64, 128


def relative(found: Any, expected: Any) -> float:
    found, expected = found.double().cpu(), expected.double().cpu()
    return float((found - expected).norm() / expected.norm())


def test_64_frames_are_encoded_in_float16(torch: Any) -> None:
    from llamavid.config import VisionConfig
    from llamavid.model.vision import VisionEncoder

    torch.manual_seed(0)
    config = VisionConfig(
        image_size=112, patch_size=14, width=352, depth=4, heads=4, mlp_width=1536, norm_eps=1e-6
    )
    model = VisionEncoder(config).eval()
    pixels = torch.randn(FRAMES, 3, 112, 112)
    with torch.inference_mode():
        expected = torch.cat([model(batch) for batch in pixels.split(8)])
        on_gpu = model.half().cuda()
        found = torch.cat([on_gpu(batch) for batch in pixels.half().cuda().split(16)])
    assert found.dtype is torch.float16
    assert relative(found, expected) < HALF


def test_a_128_token_answer_in_float16_follows_the_cpu_s(torch: Any) -> None:
    """The same tokens are fed to both, so that one near tie does not end the comparison."""
    needed("transformers", "safetensors", "sentencepiece", "tokenizers")
    from llamavid.model.llamavid import load_model

    where = {
        "vision_tower": GOLDEN / "eva_vit_g.pth",
        "text_tokenizer": GOLDEN / "bert-base-uncased",
        "image_processor": GOLDEN / "image_processor",
    }
    on_cpu = load_model(GOLDEN / "checkpoint", **where)
    on_gpu = load_model(GOLDEN / "checkpoint", dtype=torch.float16, device="cuda", **where)
    torch.manual_seed(0)
    side = on_cpu.config.vision.image_size
    pixels = torch.randn(FRAMES, 3, side, side)
    features = [model.encode_frames(pixels.to(device)) for model, device in _both(on_cpu, on_gpu)]
    assert relative(features[1], features[0]) < HALF
    rows = [
        model.frame_tokens(f, "What happens?")
        for (model, _), f in zip(_both(on_cpu, on_gpu), features, strict=True)
    ]
    assert relative(rows[1], rows[0]) < HALF
    ids = torch.randint(3, on_cpu.config.language.vocab_size, (1, TOKENS))
    logits = []
    for (model, device), frames in zip(_both(on_cpu, on_gpu), rows, strict=True):
        words = model.language.model.embed_tokens(ids.to(device))
        sequence = torch.cat([frames.flatten(0, 1)[None], words], dim=1)
        with torch.inference_mode():
            logits.append(model.language(inputs_embeds=sequence).logits[0, -TOKENS:].float())
    assert relative(logits[1], logits[0]) < HALF


def _both(on_cpu: Any, on_gpu: Any) -> tuple[tuple[Any, str], tuple[Any, str]]:
    return (on_cpu, "cpu"), (on_gpu, "cuda")
