"""What enters the products of each graph, and where dividing it by channel costs nothing.

    for found in block_inputs(config.vision, 3):
        found.readers                 ("blocks.3.attn.qkv",)
        found.divided                 the gain and bias of norm1: a division of the input folds into them

Takes dimensions, gives names as graphs have them. Knows no numbers.

Note [Exact places]
    An input's channel can be divided, and the readers' columns multiplied, where all that reads the tensor is
    known and what makes it is linear in that channel: the normalization before (gain and bias), the values
    of an attention (it mixes rows, never channels), the up projection of LLaMA's feed-forward (the gate only
    multiplies it). Not: what a GELU makes; features, which others read too; rows of the post-norm text
    decoder, which are also its residual; values that several query heads share, since one channel of them is
    several of the output projection.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamavid.config import LanguageConfig, ModelConfig, TextDecoder, TextDecoderConfig, VisionConfig
from llamavid.scales import Divided


@dataclass(frozen=True)
class Input:
    """One tensor.

    Args:
        readers: the linear layers that multiply it.
        divided: what makes it, where a division can be folded in; Note [Exact places].
    """

    readers: tuple[str, ...]
    divided: tuple[Divided, ...] = ()

    @property
    def name(self) -> str:
        """It is called after its first reader."""
        return self.readers[0]


def graph_inputs(config: ModelConfig, graph: str) -> tuple[Input, ...]:
    """Of `vision`, `content`, `context` or `llm`, in the order of the model."""
    if graph == "vision":
        blocks = range(config.vision.depth)
        return tuple(found for index in blocks for found in block_inputs(config.vision, index))
    if graph == "content":
        return content_inputs(config)
    if graph == "context":
        return context_inputs(config.text_decoder)
    layers = range(config.language.layers)
    return tuple(found for index in layers for found in layer_inputs(config.language, index)) + HEAD_INPUTS


def block_inputs(vision: VisionConfig, index: int) -> tuple[Input, ...]:
    """Of one block of the encoder."""
    block = f"blocks.{index}"
    values = Divided(f"{block}.attn.qkv.weight", 2 * vision.width), Divided(f"{block}.attn.v_bias")
    return (
        Input((f"{block}.attn.qkv",), _gain_and_bias(f"{block}.norm1")),
        Input((f"{block}.attn.proj",), values),
        Input((f"{block}.mlp.fc1",), _gain_and_bias(f"{block}.norm2")),
        Input((f"{block}.mlp.fc2",)),
    )


def content_inputs(config: ModelConfig) -> tuple[Input, ...]:
    """Of the content projector."""
    return tuple(Input((f"content_projector.{2 * index}",)) for index in range(config.projector_depth))


def context_inputs(decoder: TextDecoderConfig) -> tuple[Input, ...]:
    """Of the text decoder and the compressor."""
    found = [Input(("text_decoder.image_projection",))] if decoder.projects_image else []
    found.append(_image_rows(decoder))
    for index in range(decoder.layers):
        found += _text_layer(decoder, index)
    return (*found, *(Input((f"compressor.{role}_projector",)) for role in ("query", "key", "value")))


def layer_inputs(language: LanguageConfig, index: int) -> tuple[Input, ...]:
    """Of one layer of the language model."""
    layer = f"model.layers.{index}"
    attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
    own_values = language.kv_heads == language.heads
    return (
        Input(
            tuple(f"{attention}.{role}_proj" for role in "qkv"), (Divided(f"{layer}.input_layernorm.weight"),)
        ),
        Input((f"{attention}.o_proj",), (Divided(f"{attention}.v_proj.weight"),) if own_values else ()),
        Input((f"{mlp}.gate_proj", f"{mlp}.up_proj"), (Divided(f"{layer}.post_attention_layernorm.weight"),)),
        Input((f"{mlp}.down_proj",), (Divided(f"{mlp}.up_proj.weight"),)),
    )


HEAD_INPUTS = (Input(("lm_head",)),)


def _image_rows(decoder: TextDecoderConfig) -> Input:
    """Every cross-attention reads the same rows of the frame."""
    layers = [index for index in range(decoder.layers) if decoder.has_cross_attention(index)]
    roles = ("key", "value")
    readers = tuple(f"text_decoder.layers.{i}.cross_attention.{role}" for i in layers for role in roles)
    raw = decoder.kind is TextDecoder.RAW_BERT
    return Input(readers, _gain_and_bias(f"text_decoder.{'image_projection' if raw else 'image_norm'}"))


def _text_layer(decoder: TextDecoderConfig, index: int) -> list[Input]:
    layer = f"text_decoder.layers.{index}"
    found = [Input(tuple(f"{layer}.attention.{role}" for role in ("query", "key", "value")))]
    found.append(Input((f"{layer}.attention.output",), _gain_and_bias(f"{layer}.attention.value")))
    if decoder.has_cross_attention(index):
        crossing = f"{layer}.cross_attention"
        found += [
            Input((f"{crossing}.query",)),
            Input((f"{crossing}.output",), _gain_and_bias(f"{crossing}.value")),
        ]
    queries = ("query_feed_forward",) if decoder.kind is TextDecoder.Q_FORMER else ()
    for feed_forward in (*queries, "feed_forward"):
        found += [Input((f"{layer}.{feed_forward}.{side}",)) for side in ("up", "down")]
    return found


def _gain_and_bias(module: str) -> tuple[Divided, ...]:
    return Divided(f"{module}.weight"), Divided(f"{module}.bias")
