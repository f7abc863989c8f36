"""What a text decoder's cross-attentions look at: a frame's rows, and three ways to project them.

    image = image_rows(layers, decoder, features, patches)
    x = image.looked_at(layers, decoder, x, "text_decoder.layers.2.cross_attention")

Note [Absorbed image]
    Per head, q (X Wk + bk)^T = (q Wk^T) X^T + q bk, and what is the same for all rows of X softmax drops. And
    P (X Wv + bv) = (P X) Wv + bv, since the rows of P sum to 1. So the rows of X, 257 of them, are never
    projected: the 32 queries of 12 heads are, to C, and multiply X itself. At EVA-g's widths that is 0.35
    billion multiplications a layer instead of 0.57. It needs few queries, so it is the Q-Former's alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamavid.config import TextDecoder, TextDecoderConfig
from llamavid.export.builder import Value, stored_as
from llamavid.export.layers import Array, Layers
from llamavid.export.projections import joined, projection, projections
from llamavid.export.rewrites import Rewrite
from llamavid.export.text_layers import after_attention, attended, bare, query_factor


@dataclass(frozen=True)
class ImageRows:
    """Of the frames of a run.

    Args:
        features: [n, ...], what the rows are made of: who asks for n alone needs no rows.
        rows: [n, R, image width], normalized where the decoder does that.
        projected: keys and values [n, R, H] by module, where all were made at once.
        first: name of the cross-attention that comes first; what asks there may not have met a frame.
    """

    features: Value
    rows: Value
    projected: dict[str, Value]
    first: str

    def looked_at(self, layers: Layers, decoder: TextDecoderConfig, x: Value, name: str) -> Value:
        """x [1 or n, M or L, H] -> [n, M or L, H]: the cross-attention `name`, and the residual sum.

        Where x may have one entry it is asked of n frames: then q gets as many, its rows being few.
        """
        modules = [f"{name}.key", f"{name}.value"]
        q = projection(layers, x, f"{name}.query", query_factor(layers, decoder, name).get(f"{name}.query"))
        if _absorbs(layers, decoder, name):
            return after_attention(layers, decoder, x, _absorbed(layers, decoder, q, self.rows, name), name)
        k, v = (
            [self.projected[module] for module in modules]
            if self.projected
            else projections(layers, self.rows, modules, bare=bare(layers, name))
        )
        if Rewrite.QUESTION_ONCE in layers.rewrites and name == self.first:
            q = layers.repeat_first(q, layers.dim(self.features, 0))
        return attended(layers, decoder, x, q, k, v, name)


def image_rows(layers: Layers, decoder: TextDecoderConfig, features: Value, patches: Value) -> ImageRows:
    """features [n, R, C], patches [n, N, C]; raw BERT looks at the patches alone."""
    rows = _rows(layers, decoder, features, patches)
    crossing = [index for index in range(decoder.layers) if decoder.has_cross_attention(index)]
    names = [f"text_decoder.layers.{index}.cross_attention" for index in crossing]
    modules = [f"{name}.{role}" for name in names for role in ("key", "value")]
    at_once = Rewrite.IMAGE_ONCE in layers.rewrites and layers.alike(modules)
    if not at_once or any(_absorbs(layers, decoder, name) for name in names):
        return ImageRows(features, rows, {}, names[0])
    without = [module for name in names for module in bare(layers, name)]
    values = joined(layers, rows, modules, bare=without)
    return ImageRows(features, rows, dict(zip(modules, values, strict=True)), names[0])


def _rows(layers: Layers, decoder: TextDecoderConfig, features: Value, patches: Value) -> Value:
    if decoder.kind is TextDecoder.RAW_BERT:
        return layers.linear(patches, "text_decoder.image_projection")
    rows = layers.linear(features, "text_decoder.image_projection") if decoder.projects_image else features
    return layers.layer_norm(rows, "text_decoder.image_norm", decoder.image_norm_eps)


def _absorbs(layers: Layers, decoder: TextDecoderConfig, name: str) -> bool:
    asked = Rewrite.ABSORBED_IMAGE in layers.rewrites and decoder.kind is TextDecoder.Q_FORMER
    return asked and layers.alike((name, f"{name}.query", f"{name}.key", f"{name}.value"))


def _absorbed(layers: Layers, decoder: TextDecoderConfig, q: Value, rows: Value, name: str) -> Value:
    """q [1 or n, M, H], rows X [n, R, C] -> [n, M, H]: Note [Absorbed image]."""
    g, heads, head_dim = layers.g, decoder.heads, decoder.width // decoder.heads
    if Rewrite.FOLDED_SCALE not in layers.rewrites:
        q = layers.scale(q, head_dim**-0.5)
    to_rows, from_rows = (_by_head(layers, f"{name}.{role}", heads) for role in ("key", "value"))
    x, width = g.cast(rows, q.dtype), decoder.image_width
    asked = g.op(
        "MatMul", layers.split_heads(q, heads), g.weight(f"{name}.key by head", stored_as(to_rows, q.dtype))
    )
    asked = layers.reshape(asked, 0, heads * decoder.queries, width)
    weights = layers.softmax(g.op("MatMul", asked, layers.transpose(x, 0, 2, 1)), q.dtype)
    gathered = layers.reshape(g.op("MatMul", weights, x), 0, heads, decoder.queries, width)
    matrices = g.weight(f"{name}.value by head", stored_as(from_rows.transpose(0, 2, 1), q.dtype))
    mixed = layers.join_heads(g.op("MatMul", gathered, matrices), decoder.width)
    return layers.add_bias(mixed, f"{name}.value.bias", layers.read(f"{name}.value.bias"))


def _by_head(layers: Layers, name: str, heads: int) -> Array:
    """A projection's weight [H, C] -> [heads, H / heads, C]."""
    weight = layers.read(f"{name}.weight")
    return weight.reshape(heads, -1, weight.shape[1])
