"""From a frame's features to its tokens: content (text-free) and context (text-related).

Paper section 3.2; facts sections 5 and 6.

Note [Relevance]
    Which frames does a question find something in? The attention's weights sum to 1 in every frame, so
    they tell where the question looks and never whether anything is there. Relevance is taken from the scores
    before the softmax: their highest less their mean, averaged over the queries. What is added to all
    scores of a frame changes no weight, and so nothing that the model sees; the difference is free of it,
    where the highest score alone, or their log-sum-exp, is not. `python -m benchmarks.evidence` compares
    such numbers on frames of which it is known what they show.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from llamavid.config import ModelConfig


class ContextAttention(NamedTuple):
    """What the context attention looked at in each frame, in float32."""

    attention: Tensor  # [max(F, B), N], the weights with which patches are gathered; they sum to 1
    relevance: Tensor  # [max(F, B)], comparable between frames; Note [Relevance]


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
        rows = (self._scores(patches, query).softmax(dim=-1) @ patches).flatten(0, 1)
        gathered = rows.unflatten(0, (-1, query.shape[1])).mean(dim=1, keepdim=True)
        return self.value_projector(gathered)

    def context_attention(self, features: Tensor, query: Tensor) -> ContextAttention:
        """Where that attention looks, and how much it finds; arguments as of `context_tokens`."""
        rows = self._scores(self._patches(features), query).float().flatten(0, 1)
        scores = rows.unflatten(0, (-1, query.shape[1]))  # [max(F, B), M, N]
        relevance = (scores.amax(dim=-1) - scores.mean(dim=-1)).mean(dim=1)
        return ContextAttention(scores.softmax(dim=-1).mean(dim=1), relevance)

    def _scores(self, patches: Tensor, query: Tensor) -> Tensor:
        """q k^T / sqrt(C): patches [F, N, C], queries [B, M, C] -> [F, all queries of a frame, N]."""
        asking = query.reshape(len(patches), -1, query.shape[-1]) if len(query) > 1 else query
        return asking @ self.key_projector(patches).transpose(1, 2) / patches.shape[-1] ** 0.5

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
