"""The text decoder: reads the question beside a frame and says where to look.

Two networks do it (paper Table 8): the Q-Former, whose learned queries leave as
output, and raw BERT, whose text rows do. Both are post-norm BERT layers with
cross-attention to the frame; this file is both.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llamavid.config import TextDecoder, TextDecoderConfig


class TextDecoderModel(nn.Module):
    """features [F, R, C] and question ids [B, L] -> hidden [max(F, B), M or L, H].

    Frame i goes with question i, and one question with every frame. Where B = k F, every frame has k
    questions of its own, one after the other: question j looks at frame j // k.
    The Q-Former reads every row of the features, the class token among them when
    it is there; raw BERT reads the last `patches` rows only.
    """

    def __init__(self, config: TextDecoderConfig, *, feature_width: int, patches: int) -> None:
        super().__init__()
        self.config = config
        self.patches = patches
        self.word_embeddings = nn.Embedding(config.vocab_size, config.width)
        self.position_embeddings = nn.Embedding(config.max_positions, config.width)
        self.embedding_norm = nn.LayerNorm(config.width, config.norm_eps)
        self.layers = nn.ModuleList(Layer(config, index) for index in range(config.layers))
        if config.projects_image:
            self.image_projection = nn.Linear(feature_width, config.image_width)
        if config.kind is TextDecoder.Q_FORMER:
            self.queries = nn.Parameter(torch.zeros(1, config.queries, config.width))
            self.image_norm = nn.LayerNorm(config.image_width, config.image_norm_eps)
        else:
            self.token_type_embeddings = nn.Embedding(2, config.width)

    def forward(
        self, features: Tensor, ids: Tensor, mask: Tensor | None = None, asked: Tensor | None = None
    ) -> Tensor:
        """Layer 0 reads each question once, before it looks at any frame.

        Args:
            mask: [B, L], 1 on words and 0 on padding; left out, there is no padding.
            asked: int64 [P], which of the ids each of P pairs reads; P then stands for B above.
        """
        if asked is None and len(ids) == 1 < len(features):
            asked = torch.zeros(len(features), dtype=torch.int64, device=ids.device)
        mask = torch.ones_like(ids) if mask is None else mask
        image = self._image_rows(features)
        x = self._embed(ids)
        bias = self._attention_bias(mask, x.dtype)
        for index, layer in enumerate(self.layers):
            x = layer(x, image, bias, asked if index == 0 else None)
            bias = _of_pairs(bias, asked) if index == 0 else bias
        return x[:, : self.config.queries] if self.config.queries else x

    def _image_rows(self, features: Tensor) -> Tensor:
        """What the cross-attention reads, [T, R, image_width]."""
        if self.config.kind is TextDecoder.RAW_BERT:
            return self.image_projection(features[:, -self.patches :])
        rows = self.image_projection(features) if self.config.projects_image else features
        return self.image_norm(rows)

    def _embed(self, ids: Tensor) -> Tensor:
        """Queries (which have no position) and words, [B, M+L, H]."""
        words = self.word_embeddings(ids) + self.position_embeddings.weight[: ids.shape[1]]
        if self.config.kind is TextDecoder.RAW_BERT:
            return self.embedding_norm(words + self.token_type_embeddings.weight[0])
        return self.embedding_norm(torch.cat([self.queries.expand(len(ids), -1, -1), words], dim=1))

    def _attention_bias(self, mask: Tensor, dtype: torch.dtype) -> Tensor:
        """0 where a row may look, the smallest number where not, [B, 1, 1 or L, M+L]."""
        allowed = F.pad(mask.bool(), (self.config.queries, 0), value=True)[:, None, None, :]
        if self.config.kind is TextDecoder.RAW_BERT:
            allowed = allowed & torch.ones(2 * mask.shape[1:], dtype=torch.bool, device=mask.device).tril()
        return torch.zeros(allowed.shape, dtype=dtype, device=mask.device).masked_fill(
            ~allowed, torch.finfo(dtype).min
        )


class Layer(nn.Module):
    """One layer: self-attention over all rows, cross-attention of the leading rows, feed-forward."""

    def __init__(self, config: TextDecoderConfig, index: int) -> None:
        super().__init__()
        self.queries = config.queries
        self.attention = Attention(config, config.width)
        if config.has_cross_attention(index):
            self.cross_attention = Attention(config, config.image_width)
        self.feed_forward = FeedForward(config)
        if config.kind is TextDecoder.Q_FORMER:
            self.query_feed_forward = FeedForward(config)

    def forward(self, x: Tensor, image: Tensor, bias: Tensor, asked: Tensor | None = None) -> Tensor:
        """`asked` [P]: x are questions, and entry i of the P that come out is of question `asked[i]`."""
        x = self.attention(x, x, bias)
        if not self.queries:  # raw BERT: the words themselves look at the frame
            return self.feed_forward(self.cross_attention(_of_pairs(x, asked), image))
        queries, words = _of_pairs(x[:, : self.queries], asked), self.feed_forward(x[:, self.queries :])
        if hasattr(self, "cross_attention"):
            queries = self.cross_attention(queries, image)
        return torch.cat([self.query_feed_forward(queries), _of_pairs(words, asked)], dim=1)


def _of_pairs(x: Tensor, asked: Tensor | None) -> Tensor:
    return x if asked is None else x.index_select(0, asked)


class Attention(nn.Module):
    """Post-norm attention of x [B, R, H] to memory [F, K, memory_width], B = k F: k entries share a memory.

    What shares a memory is asked of it as k R rows at once, so that its keys and values are computed once.
    """

    def __init__(self, config: TextDecoderConfig, memory_width: int) -> None:
        super().__init__()
        self.heads = config.heads
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(memory_width, config.width)
        self.value = nn.Linear(memory_width, config.width)
        self.output = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, config.norm_eps)

    def forward(self, x: Tensor, memory: Tensor, bias: Tensor | None = None) -> Tensor:
        asking = x.reshape(len(memory), -1, x.shape[-1])
        q, k, v = (
            rows.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for rows in (self.query(asking), self.key(memory), self.value(memory))
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)
        return self.norm(x + self.output(mixed).view_as(x))


class FeedForward(nn.Module):
    """Post-norm GELU feed-forward."""

    def __init__(self, config: TextDecoderConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.width, config.mlp_width)
        self.down = nn.Linear(config.mlp_width, config.width)
        self.norm = nn.LayerNorm(config.width, config.norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.down(F.gelu(self.up(x))))
