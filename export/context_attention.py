"""The context attention: the text decoder's rows ask a frame's patches, and what they find is one token.

`Compressor.context_tokens` and `Compressor.context_attention` as nodes, and two rewrites of them.

Note [Folded keys]
    With matrices as [inputs, outputs], q k^T = (h Wq + bq) (X Wk + bk)^T = (h Wq Wk^T + bq Wk^T) X^T + q bk.
    Wq Wk^T is one matrix [H, C], known ahead of time, and N rows times a C x C matrix are gone. The last term
    is the same for all N patches of a query: softmax drops it, and so does the relevance, the highest score
    less the mean (Note [Relevance] in `llamavid.model.compressor`).
"""

from __future__ import annotations

import numpy as np

from llamavid.config import ModelConfig
from llamavid.contract import ATTENTION, RELEVANCE
from llamavid.export.builder import Value
from llamavid.export.layers import Layers
from llamavid.export.rewrites import Rewrite

_QUERY, _KEY, _PRODUCT = "compressor.query_projector", "compressor.key_projector", "compressor.context"


def write_context_attention(layers: Layers, config: ModelConfig, hidden: Value, patches: Value) -> None:
    """hidden [n, M, H], patches [n, N, C] -> the context graph's three outputs."""
    g = layers.g
    folds = Rewrite.FOLDED_KEYS in layers.rewrites and layers.alike((_QUERY, _KEY, _PRODUCT))
    scores = (_folded_scores if folds else _scores)(layers, config, hidden, patches)
    with g.scope("context"):
        weights = g.op("Softmax", layers.sensitive(scores), axis=-1)
        mean = g.op("ReduceMean", weights, g.constant([1]), keepdims=1)
        gathered = _gathered(
            layers, mean if Rewrite.AVERAGED_WEIGHTS in layers.rewrites else weights, patches
        )
        g.output("context_tokens", layers.linear(gathered, "compressor.value_projector"))
        g.output(ATTENTION, layers.reshape(mean, 0, config.vision.patches))
        g.output(RELEVANCE, _relevance(layers, layers.sensitive(scores)))


def _scores(layers: Layers, config: ModelConfig, hidden: Value, patches: Value) -> Value:
    """[n, M, N], before softmax."""
    g, dtype = layers.g, layers.product_type(_PRODUCT)
    query = g.mark(layers.linear(hidden, _QUERY), "text_query")
    with g.scope("context"):
        keys = g.cast(layers.linear(patches, _KEY), dtype)
        asked = layers.scale(g.cast(query, dtype), config.vision.width**-0.5)
        return g.op("MatMul", asked, layers.transpose(keys, 0, 2, 1))


def _folded_scores(layers: Layers, config: ModelConfig, hidden: Value, patches: Value) -> Value:
    """The same but for a number a query: Note [Folded keys]."""
    g, scale = layers.g, np.float32(config.vision.width**-0.5)
    keys = layers.read(f"{_KEY}.weight") * scale  # [outputs, inputs], so Wk^T
    asked = layers.matmul(hidden, f"{_QUERY}+key.weight", layers.read(f"{_QUERY}.weight").T @ keys)
    asked = layers.add_bias(asked, f"{_QUERY}+key.bias", layers.read(f"{_QUERY}.bias") @ keys)
    with g.scope("context"):
        return g.op("MatMul", asked, layers.transpose(g.cast(patches, asked.dtype), 0, 2, 1))


def _gathered(layers: Layers, weights: Value, patches: Value) -> Value:
    """weights [n, M or 1, N] -> the mean over M of their patches, [n, 1, C]."""
    g, dtype = layers.g, layers.product_type(_PRODUCT)
    rows = g.op("MatMul", g.cast(weights, dtype), g.cast(patches, dtype))
    if Rewrite.AVERAGED_WEIGHTS in layers.rewrites:
        return rows
    return g.op("ReduceMean", layers.sensitive(rows), g.constant([1]), keepdims=1)


def _relevance(layers: Layers, scores: Value) -> Value:
    """Scores [n, M, N] -> [n]: how far the highest stands above their mean, averaged over the queries."""
    g = layers.g
    highest, mean = (g.op(kind, scores, g.constant([2]), keepdims=0) for kind in ("ReduceMax", "ReduceMean"))
    return g.op("ReduceMean", g.op("Sub", highest, mean), g.constant([1]), keepdims=0)
