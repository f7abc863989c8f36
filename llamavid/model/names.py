"""What a release calls a tensor and what we call it: one table, and what is dropped on purpose."""

from __future__ import annotations

import re

_EVA_DEPTH = 39  # blocks; the reference never runs the original's last

# Release name -> our name; None = known and dropped on purpose. First match wins.
_RENAMES: tuple[tuple[str, str | None], ...] = (
    (r".*rotary_emb\.inv_freq", None),  # computed
    (r".*embeddings\.position_ids", None),  # 0, 1, 2, ...
    (r"model\.vlm_att_encoder\.(cls|bert\.pooler)\..*", None),  # BERT's heads, never run
    (r"model\.vision_tower\.vision_tower\.(.*)", r"vision.\1"),
    (r"model\.vlm_att_query", r"text_decoder.queries"),
    (r"model\.vlm_att_ln\.(.*)", r"text_decoder.image_norm.\1"),
    (r"model\.vlm_att_bert_proj\.(.*)", r"text_decoder.image_projection.\1"),
    (r"model\.vlm_att_encoder\.bert\.embeddings\.LayerNorm\.(.*)", r"text_decoder.embedding_norm.\1"),
    (r"model\.vlm_att_encoder\.bert\.embeddings\.(.*)", r"text_decoder.\1"),
    (r"model\.vlm_att_encoder\.bert\.encoder\.layer\.(\d+)\.(.*)", r"text_decoder.layers.\1.\2"),
    (r"model\.vlm_att_projector\.(.*)", r"compressor.query_projector.\1"),
    (r"model\.vlm_att_key_projector\.(.*)", r"compressor.key_projector.\1"),
    (r"model\.vlm_att_val_projector\.(.*)", r"compressor.value_projector.\1"),
    (r"model\.mm_projector\.(weight|bias)", r"compressor.content_projector.0.\1"),
    (r"model\.mm_projector\.(.*)", r"compressor.content_projector.\1"),
    (r"(model\.(?:layers|embed_tokens|norm)\..*|lm_head\..*)", r"language.\1"),
)
_LAYER_RENAMES: tuple[tuple[str, str], ...] = (  # inside text_decoder.layers.N
    (r"attention\.self\.(query|key|value)", r"attention.\1"),
    (r"crossattention\.self\.(query|key|value)", r"cross_attention.\1"),
    (r"attention\.output\.dense", r"attention.output"),
    (r"attention\.output\.LayerNorm", r"attention.norm"),
    (r"crossattention\.output\.dense", r"cross_attention.output"),
    (r"crossattention\.output\.LayerNorm", r"cross_attention.norm"),
    (r"intermediate\.dense", r"feed_forward.up"),
    (r"output\.dense", r"feed_forward.down"),
    (r"output\.LayerNorm", r"feed_forward.norm"),
    (r"intermediate_query\.dense", r"query_feed_forward.up"),
    (r"output_query\.dense", r"query_feed_forward.down"),
    (r"output_query\.LayerNorm", r"query_feed_forward.norm"),
)
_TOWER_EXTRAS = re.compile(r"norm\.|fc_norm\.|head\.|mask_token$|lm_head\.|rel_pos_bias\.")


def our_name(stored_name: str) -> str | None:
    """A release name under our names; None when it is dropped on purpose, "" when nobody knows it."""
    for pattern, ours in _RENAMES:
        match = re.fullmatch(pattern, stored_name)
        if match:
            return None if ours is None else _layer_name(match.expand(ours))
    return ""


def _layer_name(name: str) -> str:
    match = re.fullmatch(r"(text_decoder\.layers\.\d+\.)(.*)\.(weight|bias)", name)
    if not match:
        return name
    for pattern, ours in _LAYER_RENAMES:
        if inner := re.fullmatch(pattern, match[2]):
            return f"{match[1]}{inner.expand(ours)}.{match[3]}"
    return ""


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
