"""What a release calls a tensor and what we call it: one table, read both ways."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_EVA_DEPTH = 39  # blocks; the reference never runs the original's last

# Release prefix, our prefix. The longest that fits wins.
_PREFIXES = (
    ("model.vision_tower.vision_tower.", "vision."),
    ("model.vlm_att_query", "text_decoder.queries"),
    ("model.vlm_att_ln.", "text_decoder.image_norm."),
    ("model.vlm_att_bert_proj.", "text_decoder.image_projection."),
    ("model.vlm_att_encoder.bert.embeddings.LayerNorm.", "text_decoder.embedding_norm."),
    ("model.vlm_att_encoder.bert.embeddings.", "text_decoder."),
    ("model.vlm_att_encoder.bert.encoder.layer.", "text_decoder.layers."),
    ("model.vlm_att_projector.", "compressor.query_projector."),
    ("model.vlm_att_key_projector.", "compressor.key_projector."),
    ("model.vlm_att_val_projector.", "compressor.value_projector."),
    ("model.mm_projector.", "compressor.content_projector."),
    ("model.layers.", "language.model.layers."),
    ("model.embed_tokens.", "language.model.embed_tokens."),
    ("model.norm.", "language.model.norm."),
    ("lm_head.", "language.lm_head."),
)
_TEXT_LAYER = {  # inside one layer of the text decoder
    **{f"attention.self.{role}": f"attention.{role}" for role in ("query", "key", "value")},
    **{f"crossattention.self.{role}": f"cross_attention.{role}" for role in ("query", "key", "value")},
    "attention.output.dense": "attention.output",
    "attention.output.LayerNorm": "attention.norm",
    "crossattention.output.dense": "cross_attention.output",
    "crossattention.output.LayerNorm": "cross_attention.norm",
    "intermediate.dense": "feed_forward.up",
    "output.dense": "feed_forward.down",
    "output.LayerNorm": "feed_forward.norm",
    "intermediate_query.dense": "query_feed_forward.up",
    "output_query.dense": "query_feed_forward.down",
    "output_query.LayerNorm": "query_feed_forward.norm",
}
_DROPPED = re.compile(
    r".*rotary_emb\.inv_freq"  # computed
    r"|.*embeddings\.position_ids"  # 0, 1, 2, ...
    r"|model\.vlm_att_encoder\.(cls|bert\.pooler)\..*"  # BERT's heads, never run
)
_TOWER_EXTRAS = re.compile(r"norm\.|fc_norm\.|head\.|mask_token$|lm_head\.|rel_pos_bias\.")


def our_name(stored_name: str) -> str | None:
    """A release name under our names; None when it is dropped on purpose, "" when nobody knows it."""
    if _DROPPED.fullmatch(stored_name):
        return None
    if stored_name in ("model.mm_projector.weight", "model.mm_projector.bias"):  # `linear` has no number
        return stored_name.replace("model.mm_projector.", "compressor.content_projector.0.")
    return _renamed(stored_name, _PREFIXES, _TEXT_LAYER)


def release_name(our_name: str, *, projector_depth: int) -> str:
    """The inverse of `our_name`, for a model whose `mm_projector` has so many linear layers."""
    name = _renamed(
        our_name, [(ours, release) for release, ours in _PREFIXES], {b: a for a, b in _TEXT_LAYER.items()}
    )
    assert name, our_name
    return name.replace("model.mm_projector.0.", "model.mm_projector.") if projector_depth == 1 else name


def _renamed(name: str, prefixes: Sequence[tuple[str, str]], layer: Mapping[str, str]) -> str:
    """`name` with its prefix and, in a text layer, its middle replaced; "" when no table knows it."""
    fitting = [(old, new) for old, new in prefixes if name.startswith(old)]
    if not fitting:
        return ""
    old, new = max(fitting, key=lambda pair: len(pair[0]))
    name = new + name.removeprefix(old)
    inside = re.fullmatch(r"(.*(?:encoder\.layer|text_decoder\.layers)\.\d+\.)(.*)(\.weight|\.bias)", name)
    if not inside:
        return name
    return inside[1] + layer[inside[2]] + inside[3] if inside[2] in layer else ""


def is_surplus(name: str, *, text_layers: int | None) -> bool:
    """Whether this is a weight, by our name, that the reference never runs.

    Args:
        text_layers: how many layers of a raw BERT are run; None for all.
    """
    part, _, rest = name.partition(".")
    if part == "vision":
        block = re.match(r"blocks\.(\d+)\.", rest)
        return bool(_TOWER_EXTRAS.match(rest)) or bool(block and int(block[1]) >= _EVA_DEPTH)
    layer = re.match(r"layers\.(\d+)\.", rest) if part == "text_decoder" else None
    return bool(layer and text_layers is not None and int(layer[1]) >= text_layers)
