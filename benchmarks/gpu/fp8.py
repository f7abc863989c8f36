"""Products in float8 (e4m3): both sides rounded, one scale a matrix and one for what enters it.

    watched = watch_ranges(FastEncoder(plain), pixels)
    encoder.replace_products(lambda name, dense: EightBits(dense, watched[name]))

Where the chip multiplies them (compute capability 8.9 and later). The result is not the same function: its
error is told with its speed. Knows nothing about networks.

Note [Shapes]
    `torch._scaled_mm` takes matrices whose sides are multiples of 16, but for the rows that enter.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.gpu.fast_encoder import Dense, FastEncoder

E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max  # 448
_CAPABILITY = (8, 9)


def why_no_fp8(device: torch.device) -> str:
    """Empty where float8 is multiplied; otherwise why not."""
    if device.type == "cpu":
        return ""  # PyTorch multiplies it there too, slowly: the tests do
    found = torch.cuda.get_device_capability(device)
    return "" if found >= _CAPABILITY else f"compute capability {found[0]}.{found[1]} multiplies no float8"


class EightBits(nn.Module):
    """x [..., in] -> [..., out] in x's dtype; `largest` is the largest number that is expected in x."""

    weight: Tensor
    weight_scale: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, dense: Dense, largest: float) -> None:
        super().__init__()
        weight = dense.weight.float()
        scale = weight.abs().amax() / LARGEST
        self.register_buffer("weight", (weight / scale).to(E4M3))
        self.register_buffer("weight_scale", scale)
        self.register_buffer("scale", torch.tensor(largest / LARGEST, device=weight.device))
        self.register_buffer("bias", dense.bias)

    def forward(self, x: Tensor) -> Tensor:
        # Beyond the expected range a number is cut; in float8 itself it would be NaN.
        rounded = (x.float() / self.scale).clamp(-LARGEST, LARGEST).to(E4M3)
        product = torch._scaled_mm(
            rounded.flatten(0, -2),
            self.weight.t(),
            scale_a=self.scale,
            scale_b=self.weight_scale,
            bias=self.bias,
            out_dtype=x.dtype,
            use_fast_accum=True,
        )
        return product.unflatten(0, x.shape[:-1])


def watch_ranges(encoder: FastEncoder, pixels: Tensor) -> dict[str, float]:
    """The largest number that enters each product while `pixels` are encoded, by `FastEncoder`'s names.

    `encoder`: one that is not compiled. Compiling traces each block's own hooks, so that each is compiled
    again; and what was compiled before has none.
    """
    found: dict[str, Tensor] = {}

    def watched(name: str, dense: Dense) -> nn.Module:
        dense.register_forward_pre_hook(lambda _, entering: found.update({name: entering[0].abs().amax()}))
        return dense

    encoder.replace_products(watched)
    with torch.inference_mode():
        encoder(pixels)
    for module in encoder.modules():
        module._forward_pre_hooks.clear()
    return {name: float(largest) for name, largest in found.items()}
