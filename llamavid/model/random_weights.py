"""The weights of a random checkpoint: every tensor's name, shape and values, at any size.

Takes a `Size`, gives the `Parameter`s of its files (facts sections 3, 4, 5, 8), which draw their own
values. Knows nothing about files, and nothing about the modules that will hold the weights.

Note [Drawing]
    Every tensor is drawn in float32 from its own generator, seeded by the seed and the tensor's name,
    then rounded to the dtype. So the same seed gives the same weights whatever the shard size, format,
    dtype or number of layers. (torch promises this for one version on one kind of processor.)

Note [Scale]
    A linear weight has std 1/sqrt(inputs), so its outputs are as large as its inputs, and norms are near 1.
    Measured at 7b: std 6.8 and at most 31 after 39 blocks, 5.9 and 25 after 32 layers, logits of std 1; far
    inside float16. Biases are small but not zero, so that dropping one is noticed.

Note [Heavy tails]
    Normal weights give normal activations, which any eight bits hold: ranges cannot be studied on them. What
    was published of trained models is otherwise: weights with heavy tails, and a few channels of a
    normalization tens of times as large as the others, in every token (Dettmers et al., "LLM.int8()", 2022;
    Xiao et al., "SmoothQuant", 2023; Kovaleva et al., "BERT busters", 2021: it is the gains that are large).
    So, when asked for, matrices are Student-t of 5 degrees of freedom (excess kurtosis 6) with the same std,
    and up to 6 gains of each norm are 20 to 60 times larger; the tensor's own generator says which. This
    imitates two findings; it is no trained model.
"""

from __future__ import annotations

import enum
import hashlib
import math
import re
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llamavid.errors import UsageError

PATCH = 14  # pixels
TRAINED_IMAGE_SIZE = 224  # pixels
EVA_DEPTH = 39  # blocks that are run of the original's 40; facts section 3
QUERIES = 32  # M
TEXT_POSITIONS = 512
BIAS_STD, NORM_STD, EMBEDDING_STD = 0.05, 0.1, 0.1
# Note [Heavy tails]
DEGREES = 5  # of freedom
OUTLIERS, CHANNELS_AN_OUTLIER = 6, 64  # at most; fewer in a narrow norm
OUTLIER_GAINS = (20.0, 60.0)


@dataclass(frozen=True)
class Size:
    """Dimensions of a checkpoint, and what a release may vary (`dataclasses.replace` makes variants).

    Raises:
        UsageError: a field names something that LLaMA-VID does not have.
    """

    name: str
    vision_width: int  # C
    vision_depth: int  # blocks
    text_width: int  # H
    text_layers: int
    text_heads: int
    text_mlp: int
    text_vocab: int  # lines of `vocab.txt`; the embedding has one more, [DEC]
    text_leading_unused: int
    hidden: int  # D
    layers: int
    heads: int
    mlp: int
    vocab: int
    shard_bytes: int
    kv_heads: int | None = None  # None: as many as heads
    rope_factor: float | None = None  # linear scaling: the long-video model has 16
    image_size: int = 224  # pixels, of the preprocessing; the position embedding stays at 224
    tower_in_checkpoint: bool = False  # other values than in `eva_vit_g.pth`: which were loaded shows
    text_image_width: int | None = None  # the Q-Former's image rows, if not C; adds `vlm_att_bert_proj`
    bert_type: str = "qformer_pretrain"  # or qformer_pretrain_freeze[_all], raw_bert_layer:K
    compress_type: str | None = "mean"  # or grid:G; None keeps every patch
    mm_projector_type: str = "mlp2x_gelu"  # or linear, mlpKx_gelu

    def __post_init__(self) -> None:
        q_former = re.fullmatch("qformer_pretrain(_freeze(_all)?)?", self.bert_type)
        raw_bert = re.fullmatch("raw_bert_layer:[0-9]+", self.bert_type)
        if not q_former and not (raw_bert and 1 <= number_in(self.bert_type) <= self.text_layers):
            expected = f"qformer_pretrain[_freeze[_all]] or raw_bert_layer:K, K from 1 to {self.text_layers}"
            raise UsageError(f"bert_type {self.bert_type!r}", expected=expected)
        if not re.fullmatch("mean|grid:[1-9][0-9]*", self.compress_type or "mean"):
            raise UsageError(f"compress_type {self.compress_type!r}", expected="mean, grid:G or none")
        if not re.fullmatch("linear|mlp[1-9][0-9]*x_gelu", self.mm_projector_type):
            raise UsageError(f"mm_projector_type {self.mm_projector_type!r}", expected="linear or mlpKx_gelu")
        if self.kv_heads is not None and (self.kv_heads < 1 or self.heads % self.kv_heads):
            raise UsageError(f"kv_heads {self.kv_heads}", expected=f"a divisor of {self.heads} heads")
        if self.image_size < PATCH or self.image_size % PATCH:
            raise UsageError(f"image_size {self.image_size}", expected=f"a multiple of {PATCH} pixels")
        if self.rope_factor is not None and self.rope_factor < 1:
            raise UsageError(f"rope_factor {self.rope_factor}", expected="1 or more")

    @property
    def raw_layers(self) -> int | None:
        """K of `raw_bert_layer:K`; None for a Q-Former."""
        return number_in(self.bert_type) if self.bert_type.startswith("raw") else None

    @property
    def text_image_rows(self) -> int:
        """Width of the image rows that the text decoder's cross-attention reads."""
        return self.text_width if self.raw_layers else self.text_image_width or self.vision_width


# fmt: off
TINY = Size(
    name="tiny", vision_width=176, vision_depth=3,
    text_width=96, text_layers=4, text_heads=4, text_mlp=192, text_vocab=160, text_leading_unused=5,
    hidden=128, layers=2, heads=4, mlp=344, vocab=448, shard_bytes=1_000_000,
)
SIZE_7B = Size(
    name="7b", vision_width=1408, vision_depth=39,
    text_width=768, text_layers=12, text_heads=12, text_mlp=3072, text_vocab=30522, text_leading_unused=99,
    hidden=4096, layers=32, heads=32, mlp=11008, vocab=32000, shard_bytes=2_000_000_000,
)
# fmt: on
SIZE_13B = replace(SIZE_7B, name="13b", hidden=5120, layers=40, heads=40, mlp=13824)
SIZES = {size.name: size for size in (TINY, SIZE_7B, SIZE_13B)}


class Kind(enum.Enum):
    """What has heavy tails, each in its own way."""

    MATRIX = "of a linear layer"
    GAIN = "of a normalization"
    OTHER = "all else"


@dataclass(frozen=True)
class Parameter:
    """One tensor of a file: normal with `mean` and `std`, or `fixed`, which keeps its own dtype."""

    key: str
    shape: tuple[int, ...]
    std: float = 0.0
    mean: float = 0.0
    fixed: Tensor | None = None
    kind: Kind = Kind.OTHER

    def nbytes(self, dtype: torch.dtype) -> int:
        return math.prod(self.shape) * (dtype if self.fixed is None else self.fixed.dtype).itemsize

    def drawn(self, seed: int, dtype: torch.dtype, *, heavy_tails: bool = False) -> Tensor:
        """See Note [Drawing] and Note [Heavy tails]."""
        if self.fixed is not None:
            return self.fixed
        digest = hashlib.sha256(f"{seed}/{self.key}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
        if heavy_tails and self.kind is Kind.MATRIX:
            return student_t(self.shape, self.std, generator).to(dtype)
        values = torch.empty(self.shape).normal_(self.mean, self.std, generator=generator)
        if heavy_tails and self.kind is Kind.GAIN:
            enlarge_some(values, generator)
        return values.to(dtype)


def student_t(shape: tuple[int, ...], std: float, generator: torch.Generator) -> Tensor:
    """Student-t of `DEGREES` n, float32: sqrt(n (U^(-2/n) - 1)) cos(2 pi V), U, V uniform (Bailey 1994)."""
    radius = 1 - torch.empty(shape).uniform_(generator=generator)  # above 0, at most 1
    radius.pow_(-2 / DEGREES).sub_(1).mul_(DEGREES).sqrt_()
    angle = torch.empty(shape).uniform_(generator=generator)
    return radius.mul_(angle.mul_(2 * math.pi).cos_()).mul_(std * ((DEGREES - 2) / DEGREES) ** 0.5)


def enlarge_some(gains: Tensor, generator: torch.Generator) -> None:
    """Makes a handful of channels outliers."""
    count = max(1, min(OUTLIERS, len(gains) // CHANNELS_AN_OUTLIER))
    channels = torch.randperm(len(gains), generator=generator)[:count]
    gains[channels] *= torch.empty(count).uniform_(*OUTLIER_GAINS, generator=generator)


def tower_file_parameters(size: Size) -> list[Parameter]:
    """`eva_vit_g.pth`: the tower, and what the reference drops of the original: norm, head, block 39.

    Only a tower of 39 has that block: a shallower one would count it as its own.
    """
    c = size.vision_width
    last = block_parameters(f"blocks.{EVA_DEPTH}", c) if size.vision_depth == EVA_DEPTH else []
    return [*tower_parameters(size), *last, *norm("norm", c), *linear("head", c, c)]


def tower_parameters(size: Size) -> list[Parameter]:
    c = size.vision_width
    positions = 1 + (TRAINED_IMAGE_SIZE // PATCH) ** 2
    parameters = [*embedding("cls_token", 1, 1, c), *embedding("pos_embed", 1, positions, c)]
    weight = Parameter("patch_embed.proj.weight", (c, 3, PATCH, PATCH), (3 * PATCH * PATCH) ** -0.5)
    parameters += [weight, Parameter("patch_embed.proj.bias", (c,), BIAS_STD)]
    for i in range(size.vision_depth):
        parameters += block_parameters(f"blocks.{i}", c)
    return parameters


def block_parameters(key: str, c: int) -> list[Parameter]:
    """One pre-norm block of EVA; the keys have no bias."""
    mlp = int(c * 4.3637)  # EVA-g's ratio: 1408 -> 6144
    return [
        *norm(f"{key}.norm1", c),
        Parameter(f"{key}.attn.q_bias", (c,), BIAS_STD),
        Parameter(f"{key}.attn.v_bias", (c,), BIAS_STD),
        *linear(f"{key}.attn.qkv", 3 * c, c, bias=False),
        *linear(f"{key}.attn.proj", c, c),
        *norm(f"{key}.norm2", c),
        *linear(f"{key}.mlp.fc1", mlp, c),
        *linear(f"{key}.mlp.fc2", c, mlp),
    ]


def checkpoint_parameters(size: Size) -> list[Parameter]:
    """`checkpoint/`: the language model, text decoder, compressor and, if asked, the vision tower."""
    tower = tower_parameters(size) if size.tower_in_checkpoint else []
    return [
        *embedding("model.embed_tokens.weight", size.vocab, size.hidden),
        *(p for i in range(size.layers) for p in language_layer_parameters(f"model.layers.{i}", size)),
        *norm("model.norm", size.hidden, bias=False),
        *(replace(p, key=f"model.vision_tower.vision_tower.{p.key}") for p in tower),
        *text_decoder_parameters(size),
        *compressor_parameters(size),
        *linear("lm_head", size.vocab, size.hidden, bias=False),
    ]


def language_layer_parameters(key: str, size: Size) -> list[Parameter]:
    """One layer of LLaMA, with the `inv_freq` that older releases saved."""
    d, head_size = size.hidden, size.hidden // size.heads
    kv_rows = (size.kv_heads or size.heads) * head_size
    frequencies = 10_000.0 ** (-torch.arange(0, head_size, 2) / head_size)
    return [
        *linear(f"{key}.self_attn.q_proj", d, d, bias=False),
        *linear(f"{key}.self_attn.k_proj", kv_rows, d, bias=False),
        *linear(f"{key}.self_attn.v_proj", kv_rows, d, bias=False),
        *linear(f"{key}.self_attn.o_proj", d, d, bias=False),
        Parameter(f"{key}.self_attn.rotary_emb.inv_freq", (head_size // 2,), fixed=frequencies),
        *linear(f"{key}.mlp.gate_proj", size.mlp, d, bias=False),
        *linear(f"{key}.mlp.up_proj", size.mlp, d, bias=False),
        *linear(f"{key}.mlp.down_proj", d, size.mlp, bias=False),
        *norm(f"{key}.input_layernorm", d, bias=False),
        *norm(f"{key}.post_attention_layernorm", d, bias=False),
    ]


def text_decoder_parameters(size: Size) -> list[Parameter]:
    """Q-Former (cross-attention in every other layer, queries) or raw BERT (in every layer, token types)."""
    h, key = size.text_width, "model.vlm_att_encoder.bert"
    positions = torch.arange(TEXT_POSITIONS)[None]
    parameters = [
        Parameter(f"{key}.embeddings.position_ids", (1, TEXT_POSITIONS), fixed=positions),
        *embedding(f"{key}.embeddings.word_embeddings.weight", size.text_vocab + 1, h),
        *embedding(f"{key}.embeddings.position_embeddings.weight", TEXT_POSITIONS, h),
        *norm(f"{key}.embeddings.LayerNorm", h),
    ]
    if size.raw_layers:
        parameters += embedding(f"{key}.embeddings.token_type_embeddings.weight", 2, h)
    else:
        parameters += embedding("model.vlm_att_query", 1, QUERIES, h)
        parameters += norm("model.vlm_att_ln", size.text_image_rows)
    if size.raw_layers or size.text_image_rows != size.vision_width:
        parameters += linear("model.vlm_att_bert_proj", size.text_image_rows, size.vision_width)
    for i in range(size.raw_layers or size.text_layers):
        parameters += text_layer_parameters(f"{key}.encoder.layer.{i}", i, size)
    return parameters


def text_layer_parameters(key: str, index: int, size: Size) -> list[Parameter]:
    """One layer of post-norm BERT."""
    h = size.text_width
    parameters = attention_parameters(f"{key}.attention", h, h)
    if size.raw_layers or index % 2 == 0:
        parameters += attention_parameters(f"{key}.crossattention", h, size.text_image_rows)
    for rows in ("",) if size.raw_layers else ("", "_query"):
        parameters += linear(f"{key}.intermediate{rows}.dense", size.text_mlp, h)
        parameters += linear(f"{key}.output{rows}.dense", h, size.text_mlp)
        parameters += norm(f"{key}.output{rows}.LayerNorm", h)
    return parameters


def attention_parameters(key: str, h: int, memory_width: int) -> list[Parameter]:
    return [
        *linear(f"{key}.self.query", h, h),
        *linear(f"{key}.self.key", h, memory_width),
        *linear(f"{key}.self.value", h, memory_width),
        *linear(f"{key}.output.dense", h, h),
        *norm(f"{key}.output.LayerNorm", h),
    ]


def compressor_parameters(size: Size) -> list[Parameter]:
    """Context attention and `mm_projector`, whose linear layers are numbered 0, 2, 4 (1 and 3 are GELU)."""
    c, d = size.vision_width, size.hidden
    parameters = [
        *linear("model.vlm_att_projector", c, size.text_width),
        *linear("model.vlm_att_key_projector", c, c),
        *linear("model.vlm_att_val_projector", d, c),
    ]
    if size.mm_projector_type == "linear":
        return parameters + linear("model.mm_projector", d, c)
    for i in range(number_in(size.mm_projector_type)):
        parameters += linear(f"model.mm_projector.{2 * i}", d, c if i == 0 else d)
    return parameters


def linear(key: str, outputs: int, inputs: int, *, bias: bool = True) -> list[Parameter]:
    """See Note [Scale]."""
    weight = Parameter(f"{key}.weight", (outputs, inputs), inputs**-0.5, kind=Kind.MATRIX)
    return [weight, Parameter(f"{key}.bias", (outputs,), BIAS_STD)] if bias else [weight]


def norm(key: str, width: int, *, bias: bool = True) -> list[Parameter]:
    weight = Parameter(f"{key}.weight", (width,), NORM_STD, mean=1.0, kind=Kind.GAIN)
    return [weight, Parameter(f"{key}.bias", (width,), NORM_STD)] if bias else [weight]


def embedding(key: str, *shape: int) -> list[Parameter]:
    return [Parameter(key, shape, EMBEDDING_STD)]


def number_in(text: str) -> int:
    """The K of `raw_bert_layer:K` and `mlpKx_gelu`."""
    return int("".join(filter(str.isdigit, text)))
