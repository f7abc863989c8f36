"""The reference in parts is the reference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from llamavid.model.llamavid import model_from_checkpoint
from llamavid.model.streamed import streamed_logits
from llamavid.model.watching import KEYS, VALUES, pair_norms, watched
from tests.conftest import golden_checkpoint


class Listener:
    """Keeps everything."""

    kinds = ("inputs", KEYS, VALUES)

    def __init__(self) -> None:
        self.seen: dict[tuple[str, str], list[Tensor]] = {}

    def see(self, kind: str, name: str, values: Tensor) -> None:
        self.seen.setdefault((kind, name), []).append(values.clone())


def test_prompts_of_several_lengths_go_through_together() -> None:
    checkpoint = golden_checkpoint("long-video")  # RoPE x16
    prompts = [torch.randn(1, length, checkpoint.config.language.hidden) for length in (5, 1, 12)]
    model = model_from_checkpoint(checkpoint).language
    with torch.inference_mode():
        expected = [model(inputs_embeds=prompt).logits[0] for prompt in prompts]
    for found, exact in zip(streamed_logits(checkpoint, prompts), expected, strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-5)


def test_what_enters_products_and_what_is_cached_is_shown_by_its_name() -> None:
    checkpoint, listener = golden_checkpoint("short-video"), Listener()

    @contextmanager
    def around(part: str, module: nn.Module) -> Iterator[None]:
        with watched(module, part.removeprefix("language."), listener):
            yield

    prompts = [torch.randn(1, length, checkpoint.config.language.hidden) for length in (3, 7)]
    streamed_logits(checkpoint, prompts, around=around)
    layers = [f"model.layers.{index}" for index in range(checkpoint.config.language.layers)]
    roles = [f"self_attn.{role}_proj" for role in "qkvo"] + [
        f"mlp.{role}_proj" for role in ("gate", "up", "down")
    ]
    products = {("inputs", f"{layer}.{role}") for layer in layers for role in roles} | {("inputs", "lm_head")}
    cached = {(kind, f"{layer}.self_attn") for layer in layers for kind in (KEYS, VALUES)}
    assert listener.seen.keys() == products | cached
    assert [len(rows[0]) for rows in listener.seen["inputs", "lm_head"]] == [3, 7]
    keys, values = (listener.seen[kind, "model.layers.0.self_attn"][0] for kind in (KEYS, VALUES))
    (x, _) = listener.seen["inputs", "model.layers.0.self_attn.v_proj"]
    weight = checkpoint.read("language.model.layers.0.self_attn.v_proj.weight")
    torch.testing.assert_close(values, x @ weight.T)
    assert keys.shape[-1] * 2 == checkpoint.config.language.head_dim


def test_no_position_makes_a_key_larger_than_the_norm_of_its_pairs() -> None:
    """Cache ranges are taken before RoPE, where there is no position yet."""
    keys, width = torch.randn(1, 6, 3 * 16), 16
    largest = float(pair_norms(keys, width).amax())
    angles = torch.linspace(0, 6.3, 1000)[:, None, None, None]
    first, second = keys.unflatten(-1, (3, 2, width // 2)).unbind(-2)
    turned = first * angles.cos() - second * angles.sin()
    assert float(turned.abs().amax()) <= largest * 1.0001
    assert float(turned.abs().amax()) > largest * 0.999
