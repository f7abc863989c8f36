"""Vicuna's matrices as TensorRT-LLM's engine backend names, joins and splits them (facts/deployment, 4).

Takes our names, gives its names and each rank's part. Knows nothing about formats of numbers.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from llamavid.config import LanguageConfig

EMBEDDINGS, HEAD = "transformer.vocab_embedding.weight", "lm_head.weight"
HEAD_SOURCE = "language.lm_head.weight"


class Split(enum.Enum):
    """How a matrix [out, in] is shared among ranks."""

    ROWS = 0
    COLUMNS = 1


class Linear(NamedTuple):
    """One matrix there: some of ours, the rows of one after those of the other."""

    name: str  # without `.weight`
    sources: tuple[str, ...]
    split: Split
    rows: tuple[int, ...]  # of each source
    columns: int
    scales: str  # under which calibration gives its input's ranges: fc and gate read the same input


def linears(language: LanguageConfig) -> Iterator[Linear]:
    """Every quantizable matrix, layer by layer."""
    hidden, mlp = language.hidden, language.mlp_width
    heads, kv_heads = language.heads * language.head_dim, language.kv_heads * language.head_dim
    for index in range(language.layers):
        ours = f"language.model.layers.{index}"
        theirs = f"transformer.layers.{index}"
        qkv = tuple(f"{ours}.self_attn.{name}_proj.weight" for name in "qkv")
        attention, fc = f"{theirs}.attention", f"{theirs}.mlp.fc"
        yield Linear(
            f"{attention}.qkv", qkv, Split.ROWS, (heads, kv_heads, kv_heads), hidden, f"{attention}.qkv"
        )
        for name, source, split, rows, columns, scales in (
            (f"{attention}.dense", "self_attn.o_proj", Split.COLUMNS, hidden, heads, f"{attention}.dense"),
            (fc, "mlp.gate_proj", Split.ROWS, mlp, hidden, fc),
            (f"{theirs}.mlp.gate", "mlp.up_proj", Split.ROWS, mlp, hidden, fc),
            (f"{theirs}.mlp.proj", "mlp.down_proj", Split.COLUMNS, hidden, mlp, f"{theirs}.mlp.proj"),
        ):
            yield Linear(name, (f"{ours}.{source}.weight",), split, (rows,), columns, scales)


def copied(language: LanguageConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    """What every rank holds whole: its name there -> its name here, its shape."""
    row = (language.hidden,)
    found: dict[str, tuple[str, tuple[int, ...]]] = {
        EMBEDDINGS: ("language.model.embed_tokens.weight", (language.vocab_size, language.hidden)),
        "transformer.ln_f.weight": ("language.model.norm.weight", row),
    }
    for index in range(language.layers):
        ours, theirs = f"language.model.layers.{index}", f"transformer.layers.{index}"
        found[f"{theirs}.input_layernorm.weight"] = (f"{ours}.input_layernorm.weight", row)
        found[f"{theirs}.post_layernorm.weight"] = (f"{ours}.post_attention_layernorm.weight", row)
    return found


def rank_shape(linear: Linear, ranks: int) -> tuple[int, int]:
    """[out, in] of a rank's part."""
    rows, columns = sum(linear.rows), linear.columns
    return (rows // ranks, columns) if linear.split is Split.ROWS else (rows, columns // ranks)


def rank_part(sources: Sequence[Tensor], split: Split, *, ranks: int, rank: int) -> Tensor:
    """A rank's part of the joined matrix: each source is split first, so that a rank has whole heads."""
    return torch.cat([source.chunk(ranks, split.value)[rank] for source in sources])


def head_rows(language: LanguageConfig, ranks: int) -> int:
    """Rows of `lm_head` in one rank: the vocabulary is padded to a multiple of the ranks."""
    return -(-language.vocab_size // ranks)


def padded_head(head: Tensor, language: LanguageConfig, ranks: int) -> Tensor:
    """`lm_head` [V, D] with rows of zeros behind it; the runtime never samples them."""
    rows = head_rows(language, ranks) * ranks
    return torch.nn.functional.pad(head, (0, 0, 0, rows - len(head)))
