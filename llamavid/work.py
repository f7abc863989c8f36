"""How much each module has to do, by the model's dimensions alone: multiply-adds, weights, and what goes in
and out.

Counts the plain computation, as it was published: an exact rewrite that needs fewer may be faster than a
floor by these counts. Left out is what no matrix product does (normalizations, softmax, GELU, look-ups),
well under a hundredth. Knows no machine.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamavid.config import LanguageConfig, ModelConfig, TextDecoder

ENCODER, CONTENT, DECODER, CONTEXT = "encoder", "content", "decoder", "context"
MODULES = (ENCODER, CONTENT, DECODER, CONTEXT)  # the columns of the paper's Table 9
GRAPH_OF = {ENCODER: "vision", CONTENT: "content", DECODER: "context", CONTEXT: "context"}

# Bytes of a weight. int4: half, and a float16 scale for each block of 64.
WEIGHT_BYTES = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "int8": 1.0, "fp8": 1.0, "int4": 0.5 + 2 / 64}


@dataclass(frozen=True)
class Work:
    """Of one module.

    Args:
        weighted: multiply-adds with weights, a frame or a run.
        mixed: multiply-adds between activations (attention).
        weights: numbers that are read once a run, however many frames it has.
        carried: numbers that go in and out, a frame or a run; what stays inside may stay in caches.
        kept: of these, keys and values, which a bundle may hold in a smaller type than the rest.
    """

    weighted: int
    mixed: int
    weights: int
    carried: int
    kept: int = 0

    @property
    def operations(self) -> int:
        """Multiplications and additions, as ceilings are quoted."""
        return 2 * (self.weighted + self.mixed)


def frame_work(config: ModelConfig, question_tokens: int) -> dict[str, Work]:
    """A frame through each of `MODULES`, for a question of so many of the text decoder's tokens."""
    return {
        ENCODER: _encoder(config),
        CONTENT: _content(config),
        DECODER: _decoder(config, question_tokens),
        CONTEXT: _context(config, question_tokens),
    }


def _encoder(config: ModelConfig) -> Work:
    vision = config.vision
    rows, width = 1 + vision.patches, vision.width
    block = 4 * width**2 + 2 * width * vision.mlp_width
    kernel = 3 * vision.patch_size**2 * width
    return Work(
        weighted=vision.depth * rows * block + vision.patches * kernel,
        mixed=vision.depth * 2 * rows**2 * width,
        weights=vision.depth * block + kernel,
        carried=3 * vision.image_size**2 + rows * width,
    )


def _content(config: ModelConfig) -> Work:
    """Pooled first, projected after."""
    width, hidden = config.vision.width, config.language.hidden
    weights = width * hidden + (config.projector_depth - 1) * hidden**2
    carried = config.vision.patches * width + config.content_tokens * hidden
    return Work(config.content_tokens * weights, 0, weights, carried)


def _decoder(config: ModelConfig, words: int) -> Work:
    """The text decoder, and the projection of its rows to queries, which ends it."""
    decoder, vision = config.text_decoder, config.vision
    is_q_former = decoder.kind is TextDecoder.Q_FORMER
    asking = decoder.queries if is_q_former else words  # rows that look at the image
    rows = decoder.queries + words
    image = vision.patches + is_q_former  # with the class token
    square, feed_forward = decoder.width**2, 2 * decoder.width * decoder.mlp_width
    weighted = mixed = weights = 0
    for layer in range(decoder.layers):
        weighted += rows * (4 * square + feed_forward)
        mixed += 2 * rows**2 * decoder.width
        weights += 4 * square + feed_forward * (2 if is_q_former else 1)
        if decoder.has_cross_attention(layer):
            keys_and_values = 2 * decoder.image_width * decoder.width
            weighted += asking * 2 * square + image * keys_and_values
            mixed += 2 * asking * image * decoder.width
            weights += 2 * square + keys_and_values
    if decoder.projects_image:
        weighted += image * vision.width * decoder.image_width
        weights += vision.width * decoder.image_width
    query = decoder.width * vision.width
    carried = (1 + vision.patches) * vision.width
    return Work(weighted + asking * query, mixed, weights + query, carried)


def _context(config: ModelConfig, words: int) -> Work:
    """Keys, attention over the patches, and the projection of what it gathers."""
    width, patches, hidden = config.vision.width, config.vision.patches, config.language.hidden
    asking = config.text_decoder.queries or words
    return Work(
        weighted=patches * width**2 + width * hidden,
        mixed=2 * asking * patches * width,
        weights=width**2 + width * hidden,
        carried=hidden,  # the features are those that the decoder has read
    )


def prefill_work(language: LanguageConfig, tokens: int) -> Work:
    """A prompt of so many tokens, read into an empty cache; only its last row becomes logits."""
    layers, head = _layer_weights(language) * language.layers, language.hidden * language.vocab_size
    pairs = tokens * (tokens + 1) // 2
    return Work(
        weighted=tokens * layers + head,
        mixed=2 * pairs * language.heads * language.head_dim * language.layers,
        weights=layers + head,
        carried=tokens * (language.hidden + cache_numbers(language)),
        kept=tokens * cache_numbers(language),
    )


def decode_work(language: LanguageConfig, tokens: int) -> Work:
    """One token more, where so many are in the cache."""
    layers, head = _layer_weights(language) * language.layers, language.hidden * language.vocab_size
    return Work(
        weighted=layers + head,
        mixed=2 * (tokens + 1) * language.heads * language.head_dim * language.layers,
        weights=layers + head,
        carried=language.hidden + (tokens + 1) * cache_numbers(language),
        kept=(tokens + 1) * cache_numbers(language),
    )


def cache_numbers(language: LanguageConfig) -> int:
    """Keys and values of one token."""
    return 2 * language.layers * language.kv_heads * language.head_dim


def _layer_weights(language: LanguageConfig) -> int:
    queries, shared = (heads * language.head_dim for heads in (language.heads, language.kv_heads))
    return language.hidden * (2 * queries + 2 * shared + 3 * language.mlp_width)
