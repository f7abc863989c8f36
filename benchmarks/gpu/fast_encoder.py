"""EVA ViT-g as a GPU likes it. Equal to `VisionEncoder`; knows nothing about batches, graphs or time.

What is done once instead of at every frame: the biases of q, k and v are one vector, and the head size 88,
which no attention kernel is written for, may be padded by zero rows in the weights themselves, so that
nothing is copied. Zeros add nothing to a score and give zero columns, which meet zero weights.

Note [Products]
    A block multiplies by four matrices. Which type they are in is what `Dense` and `fp8.EightBits` differ in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.gpu.compiling import Compile, not_compiled
from llamavid.model.vision import Block, VisionEncoder


class Dense(nn.Module):
    """x [..., in] -> [..., out], in the dtype of its weights."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight.contiguous())
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class FastEncoder(nn.Module):
    """pixels [T, 3, S, S] -> features [T, 1+N, C]."""

    class_row: Tensor
    positions: Tensor

    def __init__(
        self, plain: VisionEncoder, *, head_size: int | None = None, compile: Compile = not_compiled
    ) -> None:
        """Takes its weights from `plain`, in their dtype and where they are.

        Args:
            head_size: that of the padded heads; None: as it is.
        """
        super().__init__()
        kernel = plain.patch_embed.proj
        self.patch_size = plain.config.patch_size
        self.kernel = Dense(kernel.weight.flatten(1), cast(Tensor, kernel.bias))
        self.register_buffer("class_row", plain.cls_token + plain.pos_embed[:, :1])
        self.register_buffer("positions", plain.pos_embed[:, 1:])
        self.blocks = nn.ModuleList(FastBlock(cast(Block, block), head_size) for block in plain.blocks)
        self.run_block = compile(_run_block)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.kernel(_cut(pixels, self.patch_size)) + self.positions
        x = torch.cat([self.class_row.expand(len(patches), -1, -1), patches], dim=1)
        for block in self.blocks:
            x = self.run_block(block, x)
        return x

    def replace_products(self, made: Callable[[str, Dense], nn.Module]) -> None:
        """Every block's four matrices become what `made` gives for them and their names."""
        for place, block in enumerate(self.blocks):
            for name in ("qkv", "proj", "fc1", "fc2"):
                setattr(block, name, made(f"{place}.{name}", getattr(block, name)))


class FastBlock(nn.Module):
    """x [T, R, C] -> x [T, R, C]."""

    def __init__(self, plain: Block, head_size: int | None) -> None:
        super().__init__()
        own = plain.attn
        size = own.proj.weight.shape[0] // own.heads
        self.heads, self.scale = own.heads, size**-0.5
        bias = torch.cat([own.q_bias, torch.zeros_like(own.q_bias), own.v_bias])
        more = (head_size or size) - size
        weight = _padded_rows(own.qkv.weight, 3 * own.heads, more)
        self.qkv = Dense(weight, _padded_rows(bias[:, None], 3 * own.heads, more).flatten())
        self.proj = Dense(_padded_rows(own.proj.weight.t(), own.heads, more).t(), own.proj.bias)
        self.fc1 = Dense(plain.mlp.fc1.weight, plain.mlp.fc1.bias)
        self.fc2 = Dense(plain.mlp.fc2.weight, plain.mlp.fc2.bias)
        self.norm1, self.norm2 = plain.norm1, plain.norm2

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        rows = F.scaled_dot_product_attention(q, k, v, scale=self.scale).transpose(1, 2).flatten(2)
        x = x + self.proj(rows)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


def _run_block(block: FastBlock, x: Tensor) -> Tensor:
    """The blocks are all alike: compiled once, it serves every one."""
    return block(x)


def _cut(pixels: Tensor, size: int) -> Tensor:
    """[T, 3, S, S] -> patches as rows [T, N, 3 size size], for which a convolution is one product."""
    cut = pixels.unflatten(3, (-1, size)).unflatten(2, (-1, size))  # [T, 3, grid, size, grid, size]
    return cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def _padded_rows(matrix: Tensor, heads: int, more: int) -> Tensor:
    """[heads d, K] -> [heads (d + more), K]: every head gets `more` rows of zeros."""
    return F.pad(matrix.unflatten(0, (heads, -1)), (0, 0, 0, more)).flatten(0, 1)
