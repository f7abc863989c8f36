"""The text decoder as nodes: a question beside every frame, `llamavid.model.qformer` line by line.

Raw BERT's words look at the frame themselves; the Q-Former's queries do, and this file keeps queries and
words apart, because the exact rewrites leave out some of the words. What is left of attention and
feed-forward is `text_layers`.

Note [Question once]
    Until the first cross-attention nothing depends on a frame: layer 0's self-attention, and of the
    Q-Former's words its feed-forward and what layer 1 projects of them. All that has one entry, [1, rows, H],
    until it meets the n frames; the products and sums broadcast it. The last layer's words are never read:
    they are looked at, so their keys and values are needed, and nothing else.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from llamavid.config import TextDecoder, TextDecoderConfig
from llamavid.contract import DType
from llamavid.export.builder import Value
from llamavid.export.image_rows import ImageRows, image_rows
from llamavid.export.layers import Layers
from llamavid.export.projections import projections
from llamavid.export.rewrites import Rewrite
from llamavid.export.text_layers import attended, bare, feed_forward, query_factor


class _Rows(NamedTuple):
    """Between two layers; the entries are n, or 1 where no frame was met."""

    queries: Value  # [1 or n, M, H]
    words: Value  # [1 or n, L, H]


def text_rows(
    layers: Layers, decoder: TextDecoderConfig, features: Value, patches: Value, ids: Value
) -> Value:
    """features [n, R, C], patches [n, N, C], ids [1, L] -> rows of the text decoder [n, M or L, H]."""
    return asked_rows(layers, decoder, image_rows(layers, decoder, features, patches), features, ids)


def asked_rows(
    layers: Layers, decoder: TextDecoderConfig, image: ImageRows, features: Value, ids: Value
) -> Value:
    """The same of image rows that are there already; of the features, only how many frames they are."""
    frames = layers.dim(features, 0)
    words = _embedded(layers, decoder, ids)
    if decoder.kind is TextDecoder.RAW_BERT:
        return _raw_bert(layers, decoder, words, image, frames, _causal_bias(layers, decoder, ids))
    return _q_former(layers, decoder, words, image, frames)


def _raw_bert(
    layers: Layers, decoder: TextDecoderConfig, x: Value, image: ImageRows, frames: Value, bias: Value
) -> Value:
    """Words [1, L, H] -> [n, L, H]."""
    if Rewrite.QUESTION_ONCE not in layers.rewrites:
        x = layers.repeat_first(x, frames)
    for index in range(decoder.layers):
        name = f"text_decoder.layers.{index}"
        with layers.g.scope(f"layers.{index}"):
            q, k, v = _projected(layers, decoder, x, f"{name}.attention", "query", "key", "value")
            x = attended(layers, decoder, x, q, k, v, f"{name}.attention", bias)
            x = image.looked_at(layers, decoder, x, f"{name}.cross_attention")
            x = feed_forward(layers, decoder, x, f"{name}.feed_forward")
    return x


def _q_former(layers: Layers, decoder: TextDecoderConfig, x: Value, image: ImageRows, frames: Value) -> Value:
    """Queries and words [1, M+L, H] -> queries [n, M, H]."""
    if Rewrite.QUESTION_ONCE not in layers.rewrites:
        x = layers.repeat_first(x, frames)
    rows = _apart(layers, decoder, x)
    for index in range(decoder.layers):
        with layers.g.scope(f"layers.{index}"):
            rows = _q_former_layer(layers, decoder, rows, image, frames, index)
    return rows.queries


def _q_former_layer(
    layers: Layers, decoder: TextDecoderConfig, rows: _Rows, image: ImageRows, frames: Value, index: int
) -> _Rows:
    name = f"text_decoder.layers.{index}"
    ends = index == decoder.layers - 1 and Rewrite.LAST_WORDS in layers.rewrites
    q, k, v = _looked_with(layers, decoder, rows, frames, index, ends=ends)
    if _only_words_are_once(layers, index):
        rows = rows._replace(words=layers.repeat_first(rows.words, frames))
    x = rows.queries if ends else layers.concat(*rows, axis=1)
    x = attended(layers, decoder, x, q, k, v, f"{name}.attention")
    queries, words = (x, rows.words) if ends else _apart(layers, decoder, x)
    if decoder.has_cross_attention(index):
        queries = image.looked_at(layers, decoder, queries, f"{name}.cross_attention")
    queries = feed_forward(layers, decoder, queries, f"{name}.query_feed_forward")
    return _Rows(queries, words if ends else feed_forward(layers, decoder, words, f"{name}.feed_forward"))


def _looked_with(
    layers: Layers, decoder: TextDecoderConfig, rows: _Rows, frames: Value, index: int, *, ends: bool
) -> list[Value]:
    """q, k and v of a self-attention; where the decoder ends, q of the queries alone."""
    name = f"text_decoder.layers.{index}.attention"
    asking, asked = ("query",), ("key", "value")
    if _only_words_are_once(layers, index):
        of_queries = _projected(layers, decoder, rows.queries, name, *asking, *asked)
        of_words = _projected(layers, decoder, rows.words, name, *(() if ends else asking), *asked)
        of_words = [layers.repeat_first(value, frames) for value in of_words]
        q = of_queries[:1] if ends else []
        pairs = zip(of_queries[len(q) :], of_words, strict=True)
        return q + [layers.concat(*pair, axis=1) for pair in pairs]
    x = layers.concat(*rows, axis=1)
    if ends:
        q = _projected(layers, decoder, rows.queries, name, *asking)
        return q + _projected(layers, decoder, x, name, *asked)
    return _projected(layers, decoder, x, name, *asking, *asked)


def _only_words_are_once(layers: Layers, index: int) -> bool:
    """Note [Question once]: in layer 1 the queries have met the frames, and the words have not."""
    return index == 1 and Rewrite.QUESTION_ONCE in layers.rewrites


def _projected(layers: Layers, decoder: TextDecoderConfig, x: Value, name: str, *roles: str) -> list[Value]:
    factors = query_factor(layers, decoder, name)
    names = [f"{name}.{role}" for role in roles]
    return projections(layers, x, names, factors=factors, bare=bare(layers, name))


def _apart(layers: Layers, decoder: TextDecoderConfig, x: Value) -> _Rows:
    return _Rows(layers.slice(x, 0, decoder.queries, axis=1), layers.slice(x, decoder.queries, None, axis=1))


def _embedded(layers: Layers, decoder: TextDecoderConfig, ids: Value) -> Value:
    """Queries, which have no position, and words [1, M+L, H]."""
    g = layers.g
    positions = layers.slice(
        layers.compute("text_decoder.position_embeddings.weight"), 0, layers.dim(ids, 1), axis=0
    )
    x = g.op("Add", g.op("Gather", layers.compute("text_decoder.word_embeddings.weight"), ids), positions)
    if decoder.kind is TextDecoder.RAW_BERT:
        types = layers.read("text_decoder.token_type_embeddings.weight")
        x = g.op("Add", x, layers.weight("text_decoder.token_type_embeddings.row", types[0]))
    else:
        x = layers.concat(layers.compute("text_decoder.queries"), x, axis=1)
    return layers.layer_norm(x, "text_decoder.embedding_norm", decoder.norm_eps)


def _causal_bias(layers: Layers, decoder: TextDecoderConfig, ids: Value) -> Value:
    """Raw BERT's words look back only; [L, L], added to the scores of every layer."""
    ahead = np.triu(np.full(2 * [decoder.max_tokens], np.finfo(np.float32).min), k=1)
    table = layers.g.weight("text_decoder.causal_bias", ahead.astype(DType.FLOAT32.numpy))
    length = layers.dim(ids, 1)
    return layers.slice(layers.slice(table, 0, length, axis=0), 0, length, axis=1)
