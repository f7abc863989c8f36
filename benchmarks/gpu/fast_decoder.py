"""The text decoder for one question and many frames. Equal to `TextDecoderModel`.

    decoder = FastDecoder(plain)
    asked = decoder.question(ids)                 # once a question
    image = decoder.image(features)               # once a frame, before any question
    hidden = decoder(image, asked)                # [T, M or L, H]

Queries and words are kept apart. While no frame has touched the words there is one row of them, not one a
frame, and a product of theirs is computed once; they meet the frames where attention reads both. That is
layer 0, and every product of layer 1's words (facts section 11). Which rewrite is written in what way is in
`Rewrites`; without any of them this is the plain order of things.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.gpu.compiling import Compile, not_compiled
from benchmarks.gpu.fast_encoder import Dense
from llamavid.config import TextDecoder
from llamavid.model.qformer import Attention, FeedForward, Layer, TextDecoderModel


class Image(enum.Enum):
    """How the cross-attentions come to a frame's keys and values."""

    EACH_LAYER = "each layer's own product"
    ONE_PRODUCT = "one product for all layers"
    ABSORBED = "absorbed by the queries"  # q (W x) = (q W) x: the rows themselves are keys and values
    KEPT = "kept with the features"  # as ONE_PRODUCT, computed before any question


@dataclass(frozen=True)
class Rewrites:
    """Which of the exact rewrites are used; each may be switched off."""

    question_once: bool = True
    last_words: bool = True  # the last layer's text rows, which nothing reads, are not computed
    one_product: bool = True  # q, k and v of one input
    image: Image = Image.ONE_PRODUCT


NONE = Rewrites(False, False, False, Image.EACH_LAYER)


class Question(NamedTuple):
    """One row of each, as they enter layer 0: queries [1, M, H] (none for raw BERT), words [1, L, H]."""

    queries: Tensor
    words: Tensor


class FastDecoder(nn.Module):
    """image and a question -> hidden [T, M or L, H]."""

    def __init__(
        self, plain: TextDecoderModel, rewrites: Rewrites, *, compile: Compile = not_compiled
    ) -> None:
        """Takes its weights from `plain`, in their dtype and where they are."""
        super().__init__()
        self.plain, self.rewrites, self.config = plain, rewrites, plain.config
        last = len(plain.layers) - 1 if rewrites.last_words and plain.config.queries else None
        layers = [
            FastLayer(cast(Layer, layer), rewrites, is_last=place == last)
            for place, layer in enumerate(plain.layers)
        ]
        crossing = [layer.cross for layer in layers if layer.cross is not None]
        self.layers = nn.ModuleList(layers)
        self.keys_and_values = Dense(
            torch.cat([each.keys_and_values.weight for each in crossing]),
            torch.cat([each.keys_and_values.bias for each in crossing]),
        )
        self.run_layer = compile(_run_layer)

    def question(self, ids: Tensor) -> Question:
        """ids [1, L], without padding."""
        rows = self.plain._embed(ids)
        return Question(rows[:, : self.config.queries], rows[:, self.config.queries :])

    def image(self, features: Tensor) -> Tensor:
        """features [T, R, C] -> what is read of them: rows [T, K, W], or every layer's keys and values."""
        rows = self._rows(features)
        return self.keys_and_values(rows) if self.rewrites.image is Image.KEPT else rows

    def forward(self, image: Tensor, asked: Question) -> Tensor:
        memories = self._memories(image)
        queries, words = asked
        if not self.rewrites.question_once:
            queries, words = (rows.expand(len(image), -1, -1) for rows in (queries, words))
        for layer in self.layers:
            memory = next(memories) if layer.cross is not None else None
            queries, words = self.run_layer(layer, queries, words, memory)
        return queries if self.config.queries else words

    def _rows(self, features: Tensor) -> Tensor:
        if self.config.kind is TextDecoder.RAW_BERT:
            return self.plain.image_projection(features[:, -self.plain.patches :])
        rows = self.plain.image_projection(features) if self.config.projects_image else features
        return self.plain.image_norm(rows)

    def _memories(self, image: Tensor) -> Iterator[Tensor]:
        """For each cross-attention what it reads: rows, or keys and values."""
        if self.rewrites.image in (Image.EACH_LAYER, Image.ABSORBED):
            while True:
                yield image
        every = image if self.rewrites.image is Image.KEPT else self.keys_and_values(image)
        yield from every.split(2 * self.config.width, dim=-1)


class FastLayer(nn.Module):
    """queries [T or 1, M, H], words [T or 1, L, H] and a memory [T, ...] -> queries and words after it."""

    def __init__(self, plain: Layer, rewrites: Rewrites, *, is_last: bool) -> None:
        super().__init__()
        self.is_last, self.has_queries = is_last, bool(plain.queries)
        self.own = SelfAttention(plain.attention, one_product=rewrites.one_product, causal=not plain.queries)
        self.cross = (
            CrossAttention(plain.cross_attention, rewrites) if hasattr(plain, "cross_attention") else None
        )
        self.word_feed_forward: FeedForward = plain.feed_forward
        if self.has_queries:
            self.query_feed_forward: FeedForward = plain.query_feed_forward

    def forward(self, queries: Tensor, words: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor]:
        queries, words = self.own(queries, words, queries_only=self.is_last)
        if not self.has_queries:
            return queries, self.word_feed_forward(self.cross(words, memory))  # type: ignore[misc]
        if self.cross is not None:
            queries = self.cross(queries, memory)
        words = words if self.is_last else self.word_feed_forward(words)
        return self.query_feed_forward(queries), words


class SelfAttention(nn.Module):
    """Post-norm attention of queries and words to both; causal for raw BERT, which has words alone."""

    def __init__(self, plain: Attention, *, one_product: bool, causal: bool) -> None:
        super().__init__()
        self.heads, self.one_product, self.causal = plain.heads, one_product, causal
        parts = (plain.query, plain.key, plain.value)
        self.qkv = Dense(torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts]))
        self.output, self.norm = plain.output, plain.norm

    def forward(self, queries: Tensor, words: Tensor, *, queries_only: bool) -> tuple[Tensor, Tensor]:
        """`queries_only`: nobody reads the words that come out; they come back as they went in."""
        frames, count = max(len(queries), len(words)), queries.shape[1]
        if len(queries) == len(words):
            rows = torch.cat([queries, words], dim=1)
            projected = self._products(rows)
        else:
            rows = torch.cat([each.expand(frames, -1, -1) for each in (queries, words)], dim=1)
            projected = torch.cat(
                [self._products(each).expand(frames, -1, -1) for each in (queries, words)], dim=1
            )
        q, k, v = projected.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if queries_only:
            q, rows = q[:, :, :count], queries
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal).transpose(1, 2).flatten(2)
        rows = self.norm(rows + self.output(mixed))
        return rows[:, :count], words if queries_only else rows[:, count:]

    def _products(self, rows: Tensor) -> Tensor:
        if self.one_product:
            return self.qkv(rows)
        weights, biases = self.qkv.weight.chunk(3), self.qkv.bias.chunk(3)
        return torch.cat([F.linear(rows, w, b) for w, b in zip(weights, biases, strict=True)], dim=-1)


class CrossAttention(nn.Module):
    """Post-norm attention of x [T or 1, Q, H] to a frame: its rows, or its keys and values."""

    def __init__(self, plain: Attention, rewrites: Rewrites) -> None:
        super().__init__()
        self.heads, self.kind = plain.heads, rewrites.image
        self.query, self.output, self.norm = plain.query, plain.output, plain.norm
        self.keys_and_values = Dense(
            torch.cat([plain.key.weight, plain.value.weight]), torch.cat([plain.key.bias, plain.value.bias])
        )
        self.read = _READERS[self.kind]

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        q = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [T or 1, heads, Q, d]
        if len(q) < len(memory):  # copied: not every attention kernel takes a stride of 0
            q = q.expand(len(memory), -1, -1, -1).contiguous()
        mixed = self.read(self, q, memory)
        return self.norm(x + self.output(mixed.transpose(1, 2).flatten(2)))


def _read_rows(own: CrossAttention, q: Tensor, rows: Tensor) -> Tensor:
    return _read_projected(own, q, own.keys_and_values(rows))


def _read_projected(own: CrossAttention, q: Tensor, both: Tensor) -> Tensor:
    k, v = both.unflatten(-1, (2, own.heads, -1)).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v)


def _read_absorbed(own: CrossAttention, q: Tensor, rows: Tensor) -> Tensor:
    """Keys: q (Wk x + bk) = (q Wk) x + a constant over the rows, which softmax drops. Values: the weights sum
    to 1, so that bv is added once."""
    wk, wv = own.keys_and_values.weight.unflatten(0, (2, own.heads, -1))  # each [heads, d, W]
    bv = own.keys_and_values.bias.unflatten(0, (2, own.heads, 1, -1))[1]
    asking = (q * q.shape[-1] ** -0.5) @ wk  # [T, heads, Q, W]
    weights = (asking.flatten(1, 2) @ rows.transpose(1, 2)).softmax(dim=-1)  # [T, heads Q, K]
    gathered = (weights @ rows).unflatten(1, (own.heads, -1))
    return gathered @ wv.transpose(1, 2) + bv


_READERS: dict[Image, Callable[[CrossAttention, Tensor, Tensor], Tensor]] = {
    Image.EACH_LAYER: _read_rows,
    Image.ONE_PRODUCT: _read_projected,
    Image.KEPT: _read_projected,
    Image.ABSORBED: _read_absorbed,
}


def _run_layer(
    layer: FastLayer, queries: Tensor, words: Tensor, memory: Tensor | None
) -> tuple[Tensor, Tensor]:
    return layer(queries, words, memory)
