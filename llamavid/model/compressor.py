"""From a frame's features to its tokens: content (text-free) and context (text-related).

Paper section 3.2; facts sections 5 and 6.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llamavid.config import ModelConfig


class Compressor(nn.Module):
    """Every frame in two tokens (or 1 + n of them)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, hidden = config.vision.width, config.language.hidden
        self.config = config
        self.query_projector = nn.Linear(config.text_decoder.width, width)
        self.key_projector = nn.Linear(width, width)
        self.value_projector = nn.Linear(width, hidden)
        self.content_projector = projector(width, hidden, config.projector_depth)

    def content_tokens(self, features: Tensor) -> Tensor:
        """features [T, R, C] -> content tokens [T, n, D]; pooled first, projected after."""
        return self.content_projector(self._pooled(self._patches(features)))

    def text_query(self, hidden: Tensor) -> Tensor:
        """Text decoder rows [B, M, H] -> queries [B, M, C]."""
        return self.query_projector(hidden)

    def context_tokens(self, features: Tensor, query: Tensor) -> Tensor:
        """Context attention: features [F, R, C], queries [B, M, C] -> context tokens [max(F, B), 1, D].

        E = mean over M ( softmax over N ( q k^T / sqrt(C) ) X ), context = value projection of E.
        Which question looks at which frame: as in `TextDecoderModel`.
        """
        patches = self._patches(features)
        asking = query.reshape(len(patches), -1, query.shape[-1]) if len(query) > 1 else query
        scores = asking @ self.key_projector(patches).transpose(1, 2) / patches.shape[-1] ** 0.5
        rows = (scores.softmax(dim=-1) @ patches).flatten(0, 1)
        gathered = rows.unflatten(0, (-1, query.shape[1])).mean(dim=1, keepdim=True)
        return self.value_projector(gathered)

    def _patches(self, features: Tensor) -> Tensor:
        """The last N rows: stored features come without the class token."""
        return features[:, -self.config.vision.patches :]

    def _pooled(self, patches: Tensor) -> Tensor:
        """Average pooling of the patch map, [T, N, C] -> [T, n, C]; rows that do not divide are left out."""
        if self.config.pool_grid is None:
            return patches
        kernel, grid = self.config.pool_kernel, self.config.vision.grid
        side = grid // kernel
        square = patches.unflatten(1, (grid, grid))[:, : side * kernel, : side * kernel]
        return square.unflatten(2, (side, kernel)).unflatten(1, (side, kernel)).mean(dim=(2, 4)).flatten(1, 2)


def projector(width: int, hidden: int, depth: int) -> nn.Sequential:
    """`linear` (depth 1) or `mlpKx_gelu` (depth K): Linear, then GELU and Linear K-1 times."""
    layers: list[nn.Module] = [nn.Linear(width, hidden)]
    for _ in range(depth - 1):
        layers += [nn.GELU(), nn.Linear(hidden, hidden)]
    return nn.Sequential(*layers)


def frame_tokens(context: Tensor, content: Tensor) -> Tensor:
    """Context [T, 1, D] and content [T, n, D] -> one frame after the other [T, 1+n, D]."""
    return torch.cat([context, content], dim=1)
